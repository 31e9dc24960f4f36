"""Contrastive and captioning losses against the stored retrieval losses and against their definitions."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from goldens_folder import GOLDENS

from internvideo.objectives.captioning import after_end, caption_loss
from internvideo.objectives.contrastive import (
    dual_softmax_loss,
    similarity_loss,
    symmetric_contrastive,
    symmetric_similarity_loss,
)

RETRIEVAL = GOLDENS / "tasks" / "retrieval"
LOSSES = {
    "symmetric_cross_entropy": symmetric_similarity_loss,
    "t2v": similarity_loss,
    "v2t": lambda similarity: similarity_loss(similarity.t()),
    "dual_softmax_mean_temp1000": dual_softmax_loss,
    "dual_softmax_mean_temp1": lambda similarity: dual_softmax_loss(similarity, 1.0),
}


@pytest.mark.parity
@pytest.mark.parametrize("name", json.loads((RETRIEVAL / "expected.json").read_text())["losses"])
def test_stored_loss(name: str) -> None:
    with np.load(RETRIEVAL / "retrieval.npz") as arrays:
        similarity = torch.from_numpy(arrays["loss_sim"])
    expected = json.loads((RETRIEVAL / "expected.json").read_text())["losses"][name]
    assert float(LOSSES[name](similarity)) == pytest.approx(expected, rel=1e-5)


def features(count: int, width: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, width, generator=generator), torch.randn(count, width, generator=generator)


def test_symmetric_contrastive_is_the_mean_of_both_directions() -> None:
    video, text = features(5)
    cosines = torch.stack([torch.stack([F.cosine_similarity(v, t, dim=0) for t in text]) for v in video])
    target = torch.arange(5)
    expected = (F.cross_entropy(20 * cosines, target) + F.cross_entropy(20 * cosines.t(), target)) / 2
    assert torch.allclose(symmetric_contrastive(video, text, 20.0), expected)
    assert torch.allclose(symmetric_contrastive(3 * video, 0.1 * text, 20.0), expected), "lengths must not matter"


def test_matched_pairs_have_the_smaller_loss() -> None:
    video, _ = features(5)
    assert symmetric_contrastive(video, video, 50.0) < symmetric_contrastive(video, video.roll(1, 0), 50.0)


def test_half_precision_features_are_compared_in_float32() -> None:
    video, text = features(5)
    video, text = video.bfloat16(), text.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = symmetric_contrastive(video, text, 20.0)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, symmetric_contrastive(video.float(), text.float(), 20.0))


def test_shapes_that_do_not_fit_are_refused() -> None:
    video, text = features(4)
    with pytest.raises(ValueError, match="not pairs"):
        symmetric_contrastive(video[:3], text, 1.0)
    with pytest.raises(ValueError, match="expected similarities"):
        similarity_loss(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="one position less"):
        caption_loss(torch.zeros(1, 4, 10), torch.zeros(1, 4, dtype=torch.long))


def test_caption_loss_ignores_padding_but_not_the_end() -> None:
    tokens = torch.tensor([[8, 3, 0, 9, 0, 0], [8, 2, 9, 0, 0, 0]])  # 8 start, 9 end, and 0 also a word
    assert after_end(tokens).tolist() == [[False] * 4 + [True] * 2, [False] * 3 + [True] * 3]
    logits = torch.randn(2, 5, 10, generator=torch.Generator().manual_seed(1))
    kept = [(0, 0, 3), (0, 1, 0), (0, 2, 9), (1, 0, 2), (1, 1, 9)]
    expected = torch.stack([-logits[b, i].log_softmax(0)[word] for b, i, word in kept]).mean()
    assert torch.allclose(caption_loss(logits, tokens), expected)
    padding = torch.zeros_like(tokens, dtype=torch.bool)
    padding[:, 2:] = True
    assert torch.allclose(
        caption_loss(logits, tokens, padding), -(logits[0, 0].log_softmax(0)[3] + logits[1, 0].log_softmax(0)[2]) / 2
    )
