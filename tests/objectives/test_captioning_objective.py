"""The captioning loss in chunks."""

from __future__ import annotations

import torch

from internvideo.objectives.captioning import caption_loss, chunked_caption_loss


def test_a_caption_loss_in_chunks_is_the_same_one_and_keeps_no_logits() -> None:
    drawn = torch.Generator().manual_seed(0)
    features = torch.randn(3, 7, 5, generator=drawn, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(50, 5, generator=drawn, dtype=torch.float64, requires_grad=True)
    tokens = torch.tensor([[48, 3, 4, 5, 6, 7, 8, 49], [48, 3, 4, 49, 0, 0, 0, 0], [48, 0, 2, 3, 49, 0, 0, 0]])
    whole = caption_loss(features @ weight.t(), tokens)
    expected = torch.autograd.grad(whole, (features, weight))
    for size in (1, 4, 100):
        kept: list[int] = []

        def keep(tensor: torch.Tensor, kept: list[int] = kept) -> torch.Tensor:
            kept.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = chunked_caption_loss(features, lambda rows: rows @ weight.t(), tokens, size)
        torch.testing.assert_close(loss, whole)
        assert max(kept) <= features.numel()
        for found, value in zip(torch.autograd.grad(loss, (features, weight)), expected, strict=True):
            torch.testing.assert_close(found, value, rtol=1e-10, atol=1e-12)
