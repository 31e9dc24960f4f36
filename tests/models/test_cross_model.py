"""Cross-model attention: placement, parameter counts, and the properties of paper 3.3."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from shapes import shapes_only
from torch import Tensor, nn

from internvideo.models.block import Block
from internvideo.models.cross_model import (
    CrossModel,
    CrossModelConfig,
    InteractionConfig,
    ScoreFusion,
    build_cross_model,
    cross_attention_block,
    insertion_layers,
)
from internvideo.models.uniformerv2 import UniFormerV2, UniFormerV2Config
from internvideo.models.videomae import VideoMAEClassifier, VideoMAEConfig

CLASSES = 5
MASKED = VideoMAEConfig(
    image_size=32,
    patch_size=16,
    frames=4,
    width=24,
    depth=4,
    heads=2,
    num_classes=CLASSES,
    drop_path=0.3,
    init_scale=1.0,
)
MULTIMODAL = UniFormerV2Config(
    image_size=32,
    patch_size=16,
    frames=2,
    width=32,
    depth=4,
    heads=2,
    global_layers=(1, 2, 3),
    num_classes=CLASSES,
    local_blocks=1,
    drop_path=0.3,
    backbone_drop_path=0.3,
)


def make(
    config: CrossModelConfig | None = None, *, open_gates: bool = False, seed: int = 0, depth: int = MASKED.depth
) -> CrossModel:
    """A small model whose multimodal encoder is not at its (degenerate) initialization."""
    torch.manual_seed(seed)
    model = build_cross_model(InteractionConfig(replace(MASKED, depth=depth), MULTIMODAL, config or CrossModelConfig()))
    with torch.no_grad():
        for parameter in model.multimodal.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        if open_gates:
            for name, parameter in model.named_parameters():
                if "gate" in name:
                    parameter.fill_(0.5)
    return model


def clips(batch: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(batch, 3, 4, 32, 32, generator=generator),
        torch.randn(batch, 3, 2, 32, 32, generator=generator),
    )


def learn(model: CrossModel, steps: int) -> dict[str, Tensor]:
    """A few steps of plain descent in training mode; returns the gradients of the first step."""
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    first: dict[str, Tensor] = {}
    labels = torch.arange(3) % CLASSES
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(*clips()).fused, labels).backward()
        first = first or {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        optimizer.step()
    return first


def test_placement_of_the_published_pairs() -> None:
    assert insertion_layers((20, 21, 22, 23), 24, 32) == (28, 30, 31)  # ViT-H with L/14
    assert insertion_layers((20, 21, 22, 23), 24, 24) == (21, 22, 23)  # ViT-L with L/14
    assert insertion_layers((8, 9, 10, 11), 12, 12) == (9, 10, 11)  # ViT-B with B/16


def test_uniform_placement_has_a_module_after_every_stage() -> None:
    assert insertion_layers((20, 21, 22, 23), 24, 32, "uniform") == (8, 16, 24)
    assert insertion_layers((8, 9, 10, 11), 12, 12, "uniform") == (3, 6, 9)
    assert insertion_layers((1, 2, 3), 4, 4, "uniform") == (2, 3)
    with pytest.raises(ValueError, match="placement 'early': expected one of late, uniform"):
        CrossModelConfig(placement="early")  # type: ignore[arg-type]  # the mistake


def test_uniform_placement_starts_as_the_encoders_and_learns() -> None:
    late, uniform = make(depth=6), make(CrossModelConfig(placement="uniform", head_dropout=0.0), depth=6)
    assert (late.insertion_layers, uniform.insertion_layers) == ((3, 5), (2, 4))
    shapes = {name: value.shape for name, value in late.state_dict().items()}
    assert {name: value.shape for name, value in uniform.state_dict().items()} == shapes
    videos = clips()
    uniform.eval()
    output = uniform(*videos)
    assert torch.equal(output.masked, uniform.masked(videos[0]))
    assert torch.equal(output.multimodal, uniform.multimodal(videos[1]))
    learn(uniform.train(), 1)
    F.cross_entropy(uniform(*videos).fused, torch.arange(3)).backward()
    for name in uniform.trainable_names:
        if not name.endswith("attn.k.bias"):
            gradient = uniform.get_parameter(name).grad
            assert gradient is not None, name
            assert bool(gradient.any()), name
    moved = make(CrossModelConfig(placement="uniform"), open_gates=True, depth=6).eval()
    other = make(CrossModelConfig(placement="late"), open_gates=True, depth=6).eval()
    assert not torch.equal(moved(*videos).masked, other(*videos).masked)


def test_parameters_of_one_module() -> None:
    with shapes_only():
        into_masked, into_query = cross_attention_block(1280, 16, 1024), cross_attention_block(1024, 16, 1280)
    millions = [sum(p.numel() for p in block.parameters()) / 1e6 for block in (into_masked, into_query)]
    assert millions == pytest.approx([19.0, 13.1], abs=0.06)


@pytest.mark.parametrize("direction", ["paper", "both"])
@pytest.mark.parametrize("fusion", ["scalar", "per_class", "free"])
def test_scores_at_the_start_are_those_of_the_encoders_alone(direction: str, fusion: str) -> None:
    model = make(CrossModelConfig(direction=direction, fusion=fusion)).eval()  # type: ignore[arg-type]  # parametrised
    masked_video, multimodal_video = clips()
    output = model(masked_video, multimodal_video)
    masked, multimodal = model.masked(masked_video), model.multimodal(multimodal_video)
    assert torch.equal(output.masked, masked)
    assert torch.equal(output.multimodal, multimodal)
    assert torch.equal(output.fused, 0.5 * masked + 0.5 * multimodal)


@pytest.mark.parametrize("direction", ["paper", "both"])
def test_gradients_at_the_start_and_after_a_step(direction: str) -> None:
    model = make(CrossModelConfig(direction=direction, head_dropout=0.0))  # type: ignore[arg-type]  # parametrised
    gradients = learn(model, 1)
    assert set(gradients) == set(model.trainable_names)
    for name, gradient in gradients.items():
        gated = name.startswith("cma") and "gate" not in name
        assert (not bool(gradient.any())) is gated, name
    F.cross_entropy(model(*clips()).fused, torch.arange(3)).backward()
    for name in model.trainable_names:
        parameter = model.get_parameter(name)
        # A shift of all keys alike moves no attention weight: its gradient is zero by nature.
        if not name.endswith("attn.k.bias"):
            assert parameter.grad is not None
            assert bool(parameter.grad.any()), name


def test_only_the_listed_tensors_change() -> None:
    model = make(CrossModelConfig(direction="both"), open_gates=True)
    before = copy.deepcopy(model.state_dict())
    learn(model, 3)
    after = model.state_dict()
    learning = set(model.trainable_names)
    for name, value in before.items():
        moved = not torch.equal(value, after[name])
        assert not moved or name in learning, name
    parts = {n.split(".")[0] if n.startswith("cma") else n for n in learning}
    assert parts == {
        "cma",
        "cma_both",
        "fuse.weight",
        "masked.head.weight",
        "masked.head.bias",
        "multimodal.query",
        "multimodal.proj.norm.weight",
        "multimodal.proj.norm.bias",
        "multimodal.proj.linear.weight",
        "multimodal.proj.linear.bias",
    }
    assert all(not torch.equal(before[n], after[n]) for n in learning if not n.endswith("attn.k.bias"))


def test_training_mode_reaches_only_what_learns() -> None:
    model = make().train()
    assert model.training
    assert model.dropout.training
    assert model.cma.training
    assert not any(m.training for part in (model.masked, model.multimodal) for m in part.modules())
    torch.manual_seed(3)
    first = model(*clips())
    second = model(*clips())
    assert not torch.equal(first.masked, second.masked), "the heads' dropout is on"
    model.eval()
    assert torch.equal(model(*clips()).fused, model(*clips()).fused)


def test_order_of_keys_does_not_matter() -> None:
    block = make(open_gates=True).cma[0].double()
    assert isinstance(block, Block)
    x, context = torch.randn(2, 3, 24).double(), torch.randn(2, 10, 32).double()
    shuffled = context[:, torch.randperm(10)]
    assert torch.allclose(block(x, context), block(x, shuffled), atol=1e-12)
    assert not torch.allclose(block(x, context), block(x, context + 1.0 * (torch.arange(32) % 3)), atol=1e-6)


def perturb(modules: nn.Module) -> None:
    with torch.no_grad():
        for parameter in modules.parameters():
            parameter.add_(torch.randn_like(parameter))


def test_multimodal_side_does_not_depend_on_modules_into_the_masked_encoder() -> None:
    model = make(open_gates=True).eval()
    seen: list[Tensor] = []
    last = model.cma[-1]
    last.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].clone()))
    for module in model.cma[:-1]:
        module.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[1].clone()))
    before = model(*clips())
    for module in model.cma[:-1]:
        perturb(module)
    after = model(*clips())
    half = len(seen) // 2
    assert half == len(MULTIMODAL.global_layers)
    assert all(torch.equal(a, b) for a, b in zip(seen[:half], seen[half:], strict=True))
    assert not torch.equal(before.masked, after.masked)
    assert not torch.equal(before.multimodal, after.multimodal), "through the last module's keys and values"


@pytest.mark.parametrize("direction", ["paper", "both"])
def test_both_directions_carry_information(direction: str) -> None:
    model = make(CrossModelConfig(direction=direction), open_gates=True).eval()  # type: ignore[arg-type]  # parametrised
    masked_video, multimodal_video = clips()
    base = model(masked_video, multimodal_video)
    other = model(masked_video, multimodal_video.flip(0))
    assert not torch.allclose(base.masked, other.masked)
    other = model(masked_video.flip(0), multimodal_video)
    assert not torch.allclose(base.multimodal, other.multimodal)


def test_frozen_parts_run_without_autograd_where_nothing_before_them_learns() -> None:
    model = make(open_gates=True).train()
    recorded: dict[str, bool] = {}

    def record(name: str, module: nn.Module) -> None:
        module.register_forward_hook(lambda m, i, output: recorded.__setitem__(name, output.requires_grad))

    record("stem", model.multimodal.stem)
    record("local", model.multimodal.local1[3])
    for i, block in enumerate(model.masked.blocks):
        record(f"masked {i}", block)
    for i, block in enumerate(model.multimodal.global_blocks):
        assert isinstance(block.position, nn.Conv3d)
        record(f"position {i}", block.position)
        record(f"read {i}", block)
    model(*clips())
    first = model.insertion_layers[0]
    assert first == 2
    for i in range(len(model.masked.blocks)):
        assert recorded[f"masked {i}"] is (i >= first)
    assert not any(value for name, value in recorded.items() if name.startswith(("stem", "local", "position")))
    assert all(recorded[f"read {i}"] for i in range(3)), "the query token learns"


def test_checkpointing_changes_nothing() -> None:
    config = CrossModelConfig(head_dropout=0.0)
    plain, saving = make(config, open_gates=True), make(config, open_gates=True)
    saving.checkpointing = True
    first, second = learn(plain, 1), learn(saving, 1)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_gates_are_told() -> None:
    model = make(CrossModelConfig(direction="both"))
    gates = model.gates()
    assert len(gates) == 2 * (3 + 2) + 2
    assert {name: float(value) for name, value in gates.items() if value} == {
        "fuse.masked": 0.5,
        "fuse.multimodal": 0.5,
    }
    assert not any(value.requires_grad for value in gates.values())
    opened = make(open_gates=True).gates()
    assert float(opened["cma.1.attention"]) == pytest.approx(0.46211716)


def test_fusion_moves_to_the_better_score() -> None:
    good, bad = torch.eye(4) * 5, -torch.eye(4) * 5
    for kind in ("scalar", "per_class", "free"):
        fusion = ScoreFusion(kind, 4)  # type: ignore[arg-type]  # the three kinds
        optimizer = torch.optim.SGD(fusion.parameters(), lr=1.0)
        for _ in range(5):
            optimizer.zero_grad()
            F.cross_entropy(fusion(good, bad), torch.arange(4)).backward()
            optimizer.step()
        first, second = fusion.weights()
        assert bool((first > second).all()), kind


def test_heads_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="classes"):
        CrossModel(VideoMAEClassifier(MASKED), UniFormerV2(replace(MULTIMODAL, num_classes=3)), CrossModelConfig())
    with pytest.raises(ValueError, match="classes"):
        CrossModel(
            VideoMAEClassifier(replace(MASKED, num_classes=0)),
            UniFormerV2(replace(MULTIMODAL, num_classes=0)),
            CrossModelConfig(),
        )
    with pytest.raises(ValueError, match="direction"):
        CrossModelConfig(direction="sideways")  # type: ignore[arg-type]  # the mistake under test


def test_learning_parameters_without_decay() -> None:
    model = make()
    exempt = {n for n in model.trainable_names if model.no_weight_decay(n, model.get_parameter(n))}
    assert {"fuse.weight", "cma.0.gate_attn", "cma.0.attn.q.bias", "multimodal.proj.norm.weight"} <= exempt
    assert not {"cma.0.attn.q.weight", "masked.head.weight"} & exempt
    assert {model.get_layer_id(n) for n in model.trainable_names} == {model.max_layer_id}
