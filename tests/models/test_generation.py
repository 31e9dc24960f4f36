"""Greedy and beam search over a table of next-word probabilities."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from internvideo.models.generation import generate


def table_step(table: Tensor) -> object:
    """Next-word log probabilities that depend on the last word only."""
    return lambda ids, rows: table[ids[:, -1]].log()


def test_beam_search_finds_the_better_text_that_greedy_misses() -> None:
    # Words: 0 padding, 1 start, 2 end, 3 and 4. Greedy takes 3 (.6) and then ends with .4; 4 (.4) ends with .9.
    table = torch.full((5, 5), 1e-6)
    table[1, 3], table[1, 4] = 0.6, 0.4
    table[3, 2], table[3, 3], table[3, 4] = 0.4, 0.3, 0.3
    table[4, 2], table[4, 3] = 0.99, 0.01
    step = table_step(table)
    options = {"batch_size": 2, "start": 1, "end": 2, "device": torch.device("cpu"), "length_penalty": 0.0}
    greedy = generate(step, max_length=6, **options)  # type: ignore[arg-type]  # options of several types
    beam = generate(step, max_length=6, num_beams=3, **options)  # type: ignore[arg-type]  # as above
    assert greedy.tolist() == [[1, 3, 2, 0, 0, 0]] * 2
    assert beam.tolist() == [[1, 4, 2, 0, 0, 0]] * 2
    with pytest.raises(ValueError, match="beams"):
        generate(step, max_length=6, num_beams=0, **options)  # type: ignore[arg-type]  # as above


def test_length_penalty_prefers_longer_texts() -> None:
    table = torch.full((5, 5), 1e-6)
    table[1, 3], table[1, 2] = 0.5, 0.5
    table[3, 4], table[4, 2] = 0.9, 0.9
    step = table_step(table)
    options = {"batch_size": 1, "start": 1, "end": 2, "device": torch.device("cpu"), "num_beams": 4}
    short = generate(step, max_length=7, length_penalty=0.0, **options)  # type: ignore[arg-type]  # several types
    long = generate(step, max_length=7, length_penalty=1.0, **options)  # type: ignore[arg-type]  # as above
    assert short.tolist() == [[1, 2, 0, 0, 0, 0, 0]]
    assert long.tolist() == [[1, 3, 4, 2, 0, 0, 0]]
