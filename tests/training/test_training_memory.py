"""What a step keeps: counted by hand on layers whose formulas are known."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from internvideo.training.memory import count_activations, tensor_bytes


def test_shared_memory_counts_once() -> None:
    whole = torch.zeros(100)
    assert tensor_bytes([whole, whole[:10], whole.view(10, 10)]) == 400
    assert tensor_bytes([whole, torch.zeros(3, dtype=torch.float64)]) == 424
    assert tensor_bytes([]) == 0


def test_what_a_forward_pass_keeps() -> None:
    layers = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))
    x = torch.zeros(5, 8)
    with count_activations(layers.parameters()) as found:
        layers(x)
    assert found.peak_bytes == 4 * 5 * (8 + 16), "the input of each linear map, which is also the output of the tanh"
    with count_activations(layers.parameters()) as frozen, torch.no_grad():
        layers(x)
    assert frozen.peak_bytes == 0


def test_what_is_recomputed_is_not_kept() -> None:
    deep = nn.Sequential(*(layer for _ in range(6) for layer in (nn.Linear(8, 8), nn.Tanh())))
    x = torch.zeros(5, 8, requires_grad=True)
    with count_activations(deep.parameters()) as plain:
        deep(x).sum().backward()
    with count_activations(deep.parameters()) as thrifty:
        first: torch.Tensor = checkpoint(deep[:6], x, use_reentrant=False)
        checkpoint(deep[6:], first, use_reentrant=False).sum().backward()
    assert plain.peak_bytes == 7 * 160
    assert thrifty.peak_bytes == 2 * 160, "the inputs of the two halves"
