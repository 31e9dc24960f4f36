"""Weights in and out: strict loading with named causes, atomic writing."""

from __future__ import annotations

import dataclasses
import resource
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from internvideo.errors import RunError, WeightsError
from internvideo.models.videomae import VideoMAEClassifier, VideoMAEConfig, VideoMAEPretrain
from internvideo.storage import read_metadata, read_safetensors, write_safetensors
from internvideo.weights.state import (
    FORMAT_VERSION,
    load_pretrained,
    load_reference,
    load_state,
    load_weights_part,
    reference_names,
    save_model,
    select_head_rows,
)

TINY = VideoMAEConfig(
    image_size=16, patch_size=4, frames=4, width=24, depth=2, heads=2, decoder_width=16, decoder_depth=2,
    decoder_heads=2, num_classes=5,
)  # fmt: skip


def published(model: VideoMAEPretrain | VideoMAEClassifier) -> dict[str, Tensor]:
    """The model's state with the embedding as a convolution, as the published files have it."""
    state = {name: torch.randn_like(value) for name, value in model.state_dict().items()}
    for name in state:
        if name.endswith("patch_embed.proj.weight"):
            state[name] = state[name].view(-1, 3, 2, 4, 4)
    return state


def fault(model: torch.nn.Module, state: dict[str, Tensor]) -> str:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(WeightsError) as error:
        load_reference(model, state, where="file.pth")
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before), "half loaded"
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("kind", [VideoMAEPretrain, VideoMAEClassifier])
def test_published_weights_arrive(kind: type[VideoMAEPretrain] | type[VideoMAEClassifier]) -> None:
    model = kind(dataclasses.replace(TINY, layer_scale=0.1, learnable_positions=True))
    state = published(model)
    load_reference(model, {name: value.half() for name, value in state.items()})
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name].half().float().view_as(value)), name


def test_every_fault_is_named() -> None:
    model = VideoMAEClassifier(TINY)
    state = published(model)
    missing = dict(state)
    del missing["blocks.1.attn.q_bias"], missing["fc_norm.weight"]
    assert "2 missing (blocks.1.attn.q_bias, fc_norm.weight)" in fault(model, missing)
    assert "1 unused (surprise.weight)" in fault(model, state | {"surprise.weight": torch.zeros(1)})
    assert "fc_norm.bias (3,) for (24,)" in fault(model, state | {"fc_norm.bias": torch.zeros(3)})
    broken = state["head.bias"].clone()
    broken[2] = float("nan")
    assert "1 not finite (head.bias)" in fault(model, state | {"head.bias": broken})
    load_reference(model, state)


def test_likely_causes() -> None:
    model = VideoMAEClassifier(TINY)
    state = published(model)
    heads = {"head.weight": torch.zeros(9, 24), "head.bias": torch.zeros(9)}
    assert "number of classes" in fault(model, state | heads)
    assert "patch size" in fault(model, state | {"patch_embed.proj.weight": torch.zeros(24, 3, 2, 8, 8)})
    deeper = published(VideoMAEClassifier(dataclasses.replace(TINY, depth=3)))
    assert "more layers" in fault(model, deeper)
    assert "fewer layers" in fault(VideoMAEClassifier(dataclasses.replace(TINY, depth=3)), state)
    assert "load_pretrained" in fault(model, published(VideoMAEPretrain(TINY)))
    assert "another size" in fault(model, published(VideoMAEClassifier(dataclasses.replace(TINY, width=32))))
    assert "'module.'" in fault(model, {f"module.{name}": value for name, value in state.items()})
    assert "another model" in fault(model, {"conv1.weight": torch.zeros(2), "fc.weight": torch.zeros(2)})
    assert "another model" in fault(model, {})


def test_our_names_of_published_parameters() -> None:
    model = VideoMAEClassifier(TINY)
    assert reference_names(model, ["head.bias", "unknown"]) == {"head.bias": ("head.bias",)}
    with pytest.raises(ValueError, match="no weight table"):
        load_reference(torch.nn.Linear(2, 2), {})


def test_a_classifier_from_pretraining_weights() -> None:
    pretrain, model = VideoMAEPretrain(TINY), VideoMAEClassifier(TINY)
    fresh = {name: model.state_dict()[name].clone() for name in ("fc_norm.weight", "head.weight")}
    state = published(pretrain)
    load_pretrained(model, state)
    own = model.state_dict()
    assert torch.equal(own["blocks.1.mlp.fc1.weight"], state["encoder.blocks.1.mlp.fc1.weight"])
    assert torch.equal(own["patch_embed.proj.weight"], state["encoder.patch_embed.proj.weight"].flatten(1))
    assert all(torch.equal(own[name], value) for name, value in fresh.items())
    load_pretrained(model, pretrain.state_dict())
    video = torch.randn(1, 3, 4, 16, 16)
    nothing = torch.zeros(1, TINY.num_tokens, dtype=torch.bool)
    tokens = model.embed(video)
    for block in model.blocks:
        tokens = block(tokens)
    torch.testing.assert_close(pretrain.encoder.norm(tokens), pretrain.encode(video, nothing))


def test_the_final_norm_comes_along_with_first_token_pooling() -> None:
    model = VideoMAEClassifier(dataclasses.replace(TINY, pooling="first"))
    state = published(VideoMAEPretrain(TINY))
    load_pretrained(model, state)
    assert torch.equal(model.state_dict()["norm.bias"], state["encoder.norm.bias"])


def test_too_small_pretraining_weights_are_refused() -> None:
    with pytest.raises(WeightsError, match="missing"):
        load_pretrained(VideoMAEClassifier(dataclasses.replace(TINY, depth=3)), published(VideoMAEPretrain(TINY)))
    with pytest.raises(WeightsError, match="missing"):
        load_pretrained(VideoMAEClassifier(TINY), published(VideoMAEClassifier(TINY)))


def test_head_rows() -> None:
    state = published(VideoMAEClassifier(TINY))
    chosen = select_head_rows(state, [4, 0])
    assert torch.equal(chosen["head.weight"], state["head.weight"][[4, 0]])
    assert torch.equal(chosen["head.bias"], state["head.bias"][[4, 0]])
    load_reference(VideoMAEClassifier(dataclasses.replace(TINY, num_classes=2)), chosen)
    for rows in ([5], [-1], []):
        with pytest.raises(WeightsError, match="requested of 5"):
            select_head_rows(state, rows)
    with pytest.raises(WeightsError, match="not in the state dict"):
        select_head_rows(state, [0], head="classifier")


def test_own_weights_come_back(tmp_path: Path) -> None:
    model, other = VideoMAEPretrain(TINY), VideoMAEPretrain(TINY)
    path = tmp_path / "runs" / "model.safetensors"
    save_model(path, model, {"recipe": "a: 1\n"})
    state, metadata = read_safetensors(path)
    assert metadata == {"recipe": "a: 1\n", "format_version": str(FORMAT_VERSION)}
    load_state(other, state, where=path)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert [entry.name for entry in path.parent.iterdir()] == ["model.safetensors"]
    with pytest.raises(WeightsError, match=r"model\.safetensors.*another model|model\.safetensors.*unused"):
        load_state(VideoMAEClassifier(TINY), state, where=path)
    with pytest.raises(WeightsError, match="missing"):
        load_state(other, {})


def test_a_part_may_stay_as_drawn() -> None:
    model, other = VideoMAEClassifier(TINY), VideoMAEClassifier(dataclasses.replace(TINY, num_classes=7))
    body = {name: value for name, value in other.state_dict().items() if not name.startswith("head.")}
    head = model.head.weight.clone()
    load_weights_part(model, body, newly_initialized=r"head\.")
    assert torch.equal(model.head.weight, head)
    assert torch.equal(model.blocks[0].mlp.fc1.weight, other.blocks[0].mlp.fc1.weight)
    with pytest.raises(WeightsError, match=r"2 missing \(head.weight, head.bias\)"):
        load_weights_part(model, body, newly_initialized=None)
    load_weights_part(model, other.state_dict(), newly_initialized=r"head\.")
    assert torch.equal(model.head.weight, head)
    with pytest.raises(WeightsError, match="number of classes"):
        load_weights_part(model, other.state_dict())


def test_shared_and_strided_tensors_are_written(tmp_path: Path) -> None:
    value = torch.arange(6.0).view(2, 3)
    write_safetensors(tmp_path / "w.safetensors", {"a": value, "b": value, "c": value.T, "d": value[:, 1]}, {})
    tensors, metadata = read_safetensors(tmp_path / "w.safetensors")
    assert metadata == {}
    assert torch.equal(tensors["a"], value)
    assert torch.equal(tensors["b"], value)
    assert torch.equal(tensors["c"], value.T)
    assert torch.equal(tensors["d"], value[:, 1])


def test_a_full_disk_leaves_the_old_file_and_no_part_of_the_new(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    write_safetensors(path, {"a": torch.ones(4)}, {})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, hard))  # writing past it fails as on a full disk
    try:
        with pytest.raises(RunError, match="free space"):
            write_safetensors(path, {"a": torch.ones(100_000)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [entry.name for entry in tmp_path.iterdir()] == ["w.safetensors"]
    assert torch.equal(read_safetensors(path)[0]["a"], torch.ones(4))


def test_an_unwritable_place_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        write_safetensors(tmp_path / "file" / "w.safetensors", {"a": torch.ones(1)}, {})


def test_an_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(self: Path, target: Path) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_safetensors(tmp_path / "w.safetensors", {"a": torch.ones(1)}, {})
    assert list(tmp_path.iterdir()) == []


def test_unreadable_files_are_told(tmp_path: Path) -> None:
    for name in ("absent.safetensors", "absent.pth"):
        with pytest.raises(WeightsError, match="no such file"):
            read_safetensors(tmp_path / name)
    for name in ("broken.safetensors", "empty.safetensors"):
        (tmp_path / name).write_bytes(b"" if "empty" in name else b"\x93not a checkpoint" * 9)
        with pytest.raises(WeightsError, match="cannot be read") as error:
            read_safetensors(tmp_path / name)
        assert "\n" not in str(error.value)
    write_safetensors(tmp_path / "cut.safetensors", {"a": torch.ones(1000)}, {})
    whole = (tmp_path / "cut.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WeightsError, match="cannot be read"):
        read_safetensors(tmp_path / "cut.safetensors")


@pytest.mark.parametrize("read", [read_safetensors, read_metadata])
@pytest.mark.parametrize("name", ["a.pth", "a b.bin", "renamed.safetensors", "legacy.weights"])
def test_pickles_are_not_opened(tmp_path: Path, name: str, read: Callable[[Path], object]) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / name, _use_new_zipfile_serialization="legacy" not in name)
    with pytest.raises(WeightsError, match=r"run: internvideo convert '?/.* -o '?/.*safetensors") as told:
        read(tmp_path / name)
    assert "\n" not in str(told.value)
