"""Decode token sequences by greedy search, beam search or nucleus sampling.

Shapes: B texts, K beams, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def generate(
    step: Callable[[Tensor, Tensor], Tensor],
    batch: int,
    start: int,
    end: int,
    length: int,
    *,
    device: torch.device,
    beams: int = 1,
    length_penalty: float = 1.0,
    reorder: Callable[[Tensor], None] | None = None,
) -> Tensor:
    """Decode B token sequences by beam search with K beams (K = 1: greedy).

    Args:
        step: (ids (R, l), text (R,) that each row belongs to) -> log probabilities of the next token (R, V). Each call
            has one token more than the last.
        batch: B.
        start, end: ids of the start and the end of a text.
        length: largest number of ids with both.
        device: where `step` takes its ids.
        beams: K.
        length_penalty: candidates are ranked by log probability / tokens ** length_penalty.
        reorder: called with the beam index (R,) of the last call that each row of the next one continues; for a `step`
            with a KV cache.

    Returns:
        (B, length) int64 ids, zero after the end; a text cut at `length` also ends with `end`.
    """
    if beams < 1:
        raise ValueError(f"beams {beams}: at least 1")
    texts = torch.arange(batch, device=device)
    ids = torch.full((batch, beams, 1), start, device=device)
    # Only one beam of each text is alive at first, or all K would generate the same text.
    total = torch.full((batch, beams), -torch.inf, device=device)
    total[:, 0] = 0.0
    words = torch.zeros(batch, beams, device=device)
    finished = torch.zeros(batch, beams, dtype=torch.bool, device=device)
    for _ in range(length - 2):
        scores = step(ids.flatten(0, 1), texts.repeat_interleave(beams)).reshape(batch, beams, -1)
        vocabulary = scores.shape[2]
        scores[:, :, start] = -torch.inf
        # A finished text stays as one candidate, followed by padding (id 0) at no cost.
        padding = torch.full((vocabulary,), -torch.inf, device=device)
        padding[0] = 0.0
        candidates = total[:, :, None] + torch.where(finished[:, :, None], padding, scores)
        lengths = words + (~finished).float()
        ranks = (candidates / lengths[:, :, None] ** length_penalty).flatten(1)
        best = ranks.topk(beams, dim=1).indices
        beam, word = best // vocabulary, best % vocabulary
        total = candidates.flatten(1).gather(1, best)
        words, finished = lengths.gather(1, beam), finished.gather(1, beam) | (word == end)
        ids = torch.cat([ids.gather(1, beam[:, :, None].expand(-1, -1, ids.shape[2])), word[:, :, None]], dim=2)
        if bool(finished.all()):
            break
        if reorder is not None and beams > 1:
            reorder((texts[:, None] * beams + beam).flatten())
    best_beam = (total / words.clamp(min=1) ** length_penalty).argmax(dim=1)
    best_ids, done = ids[texts, best_beam], finished[texts, best_beam]
    out = torch.zeros(batch, length, dtype=torch.long, device=device)
    out[:, : best_ids.shape[1]] = best_ids
    out[~done, best_ids.shape[1]] = end
    return out


def sample(
    step: Callable[[Tensor, Tensor], Tensor],
    batch: int,
    start: int,
    end: int,
    length: int,
    *,
    device: torch.device,
    nucleus: float = 0.9,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Decode B token sequences by nucleus (top-p) sampling with p = `nucleus`.

    Args:
        step, batch, start, end, length, device: as in `generate`.
        nucleus: probability mass p, over 0 to 1 (1: all tokens).
        temperature: divides the log probabilities.
        generator: on the CPU, so that every device samples the same texts.

    Returns:
        as `generate`.
    """
    if not 0 < nucleus <= 1 or temperature <= 0:
        raise ValueError(f"nucleus {nucleus}, temperature {temperature}: over 0 to 1, over 0")
    texts = torch.arange(batch, device=device)
    out = torch.zeros(batch, length, dtype=torch.long, device=device)
    out[:, 0] = start
    finished = torch.zeros(batch, dtype=torch.bool, device=device)
    for position in range(1, length):
        if position == length - 1:
            token = torch.full_like(texts, end)
        else:
            scores = step(out[:, :position], texts).clone()
            scores[:, start] = -torch.inf
            probabilities, tokens = (scores / temperature).softmax(dim=1).sort(dim=1, descending=True)
            before = probabilities.cumsum(dim=1) - probabilities  # the first token is always in the nucleus
            probabilities = probabilities.masked_fill(before >= nucleus, 0.0)
            sampled = torch.multinomial(probabilities.cpu(), 1, generator=generator).to(device)
            token = tokens.gather(1, sampled)[:, 0]
        out[:, position] = token.masked_fill(finished, 0)
        finished |= token == end
        if bool(finished.all()):
            break
    return out
