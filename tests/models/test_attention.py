"""Short ways through a layer give what the long ways give."""

import dataclasses

import pytest
import torch
from small_videomae import TINY, clip

from internvideo.models.attention import Attention, Bias, attend, split_heads
from internvideo.models.block import Activation, Block, BlockConfig, FeedForward, activate
from internvideo.models.videomae import VideoMAEClassifier, run_blocks


@pytest.mark.parametrize("bias", ["all", "query_value", "none"])
def test_few_queries_read_the_tokens_as_many_do(bias: Bias) -> None:
    torch.manual_seed(0)
    attention = Attention(64, 4, bias=bias).double()
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    query = torch.randn(3, 2, 64, dtype=torch.float64, requires_grad=True)
    context = torch.randn(3, 9, 64, dtype=torch.float64, requires_grad=True)
    many = torch.cat([query, torch.randn(3, 30, 64, dtype=torch.float64)], dim=1)  # so many that the long way is taken
    short, long = attention(query, context), attention(many, context)[:, :2]
    torch.testing.assert_close(short, long)
    inputs = [query, context, *attention.parameters()]
    for a, b in zip(
        torch.autograd.grad(short.sin().sum(), inputs), torch.autograd.grad(long.sin().sum(), inputs), strict=True
    ):
        torch.testing.assert_close(a, b)


def test_few_queries_make_no_keys() -> None:
    attention = Attention(64, 4)
    seen = []
    original = torch.nn.functional.linear

    def count(x: torch.Tensor, *rest: object) -> torch.Tensor:
        seen.append(x.shape[1])
        return original(x, *rest)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "linear", count)
        attention(torch.randn(2, 1, 64), torch.randn(2, 50, 64))
        assert max(seen) == 1
        attention(torch.randn(2, 20, 64), torch.randn(2, 50, 64))
        assert max(seen) == 50


def test_the_scale_of_the_products_can_be_set() -> None:
    query, key, value = (split_heads(torch.randn(2, 5, 16), 2) for _ in range(3))
    plain = (query @ key.transpose(-2, -1) * 0.7).softmax(-1) @ value
    torch.testing.assert_close(attend(query, key, value, scale=0.7), plain.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_activations_are_the_same_with_and_without_gradients(activation: Activation) -> None:
    x = torch.linspace(-8, 8, 1001)
    wanted = torch.nn.functional.gelu(x) if activation == "gelu" else x * torch.sigmoid(1.702 * x)
    torch.testing.assert_close(activate(x.clone(), activation), wanted, rtol=1e-6, atol=1e-7)
    with torch.no_grad():
        torch.testing.assert_close(activate(x.clone(), activation), wanted, rtol=1e-6, atol=1e-7)
        layer = FeedForward(4, 8, activation=activation)
        kept = torch.randn(2, 3, 4)
        before = kept.clone()
        layer(kept)
    assert torch.equal(kept, before)


@pytest.mark.parametrize("layer_scale", [0.0, 0.3])
def test_the_mean_of_a_layer_is_the_mean_of_its_tokens(layer_scale: float) -> None:
    torch.manual_seed(0)
    config = BlockConfig(width=16, heads=2, mlp_dim=40, layer_scale=layer_scale, drop_path=0.5, dropout=0.2)
    block = Block(config).double().eval()
    x = torch.randn(3, 11, 16, dtype=torch.float64)
    torch.testing.assert_close(block.forward_mean(x), block(x).mean(dim=1))


def test_a_classifier_without_gradients_gives_what_it_gives_with_them() -> None:
    torch.manual_seed(0)
    model = VideoMAEClassifier(dataclasses.replace(TINY, layer_scale=0.5)).double().eval()
    video = clip().double()
    with torch.no_grad():
        short = model(video)
    torch.testing.assert_close(short, model(video))
    torch.testing.assert_close(short, model.head(model.pool(run_blocks(model.blocks, model.embed(video), False))))
