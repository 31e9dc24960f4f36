"""What a model starts from: the chain of the stages, a CLIP file, and files that do not fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import small_world
import torch
from test_uniformerv2 import public_layout
from torch import Tensor, nn

from internvideo.errors import WeightsError
from internvideo.models.clip import CLIPConfig, CLIPModel, TextConfig
from internvideo.models.cross_model import CrossModel
from internvideo.models.uniformerv2 import UniFormerV2
from internvideo.models.viclip import ViCLIP, ViCLIPConfig
from internvideo.models.video_language import VideoLanguage
from internvideo.models.videomae import VideoMAEClassifier
from internvideo.storage import write_safetensors
from internvideo.weights.initialize import initialize
from internvideo.weights.state import save_model


def shaken(model: nn.Module) -> nn.Module:
    """With other weights than a fresh one."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.eval()


def saved(folder: Path, build: Callable[[], nn.Module]) -> tuple[nn.Module, Path]:
    model, path = shaken(build()), folder / f"{build.__name__}.safetensors"
    save_model(path, model)
    return model, path


def clips(count: int = 2) -> Tensor:
    return torch.randn(count, 3, 4, 32, 32, generator=torch.Generator().manual_seed(1))


def same_part(ours: nn.Module, theirs: nn.Module, prefix: str = "", *, but: str = "proj") -> bool:
    """Whether every tensor of `ours`, but for the fresh part, is that of `theirs` below `prefix`."""
    state = theirs.state_dict()
    return all(
        torch.equal(value, state[prefix + name])
        for name, value in ours.state_dict().items()
        if not name.startswith(but)
    )


def test_a_classifier_starts_from_masked_pretraining(tmp_path: Path) -> None:
    source, path = saved(tmp_path, small_world.pretraining_model)
    model = small_world.masked_classifier()
    head = model.head.weight.clone()
    initialize(model, {"weights": path})
    for name in ("patch_embed.proj.weight", "blocks.2.mlp.fc2.weight"):
        assert torch.equal(model.state_dict()[name], source.state_dict()[f"encoder.{name}"])
    assert torch.equal(model.head.weight, head), "the head stays as it was drawn"


def test_a_multimodal_classifier_starts_from_the_video_tower(tmp_path: Path) -> None:
    source, path = saved(tmp_path, small_world.language_model)
    model = small_world.multimodal_classifier()
    fresh = {name: value.clone() for name, value in model.state_dict().items() if name.startswith("proj.")}
    assert fresh
    initialize(model, {"weights": path})
    assert same_part(model, source, "visual.")
    assert all(torch.equal(model.state_dict()[name], value) for name, value in fresh.items())


def test_the_interaction_starts_from_both_classifiers_and_answers_like_their_mean(tmp_path: Path) -> None:
    masked, one = saved(tmp_path, small_world.masked_classifier)
    multimodal, other = saved(tmp_path, small_world.multimodal_classifier)
    model = small_world.cross_model().eval()
    assert isinstance(model, CrossModel)
    initialize(model, {"masked": one, "multimodal": other})
    output = model(clips(), clips())
    torch.testing.assert_close(output.masked, masked(clips()))
    torch.testing.assert_close(output.multimodal, multimodal(clips()))
    torch.testing.assert_close(output.fused, (masked(clips()) + multimodal(clips())) / 2)


def test_a_caption_decoder_joins_towers_that_had_none(tmp_path: Path) -> None:
    def towers() -> nn.Module:
        return VideoLanguage(replace(small_world.LANGUAGE, caption=None))

    source, path = saved(tmp_path, towers)
    model = small_world.language_model()
    initialize(model, {"weights": path})
    assert same_part(model, source, but="caption_decoder")


def test_the_same_model_goes_on(tmp_path: Path) -> None:
    for build in (small_world.pretraining_model, small_world.masked_classifier, small_world.language_model):
        source, path = saved(tmp_path, build)
        model = build()
        initialize(model, {"weights": path})
        assert all(torch.equal(value, source.state_dict()[name]) for name, value in model.state_dict().items())


# --- CLIP ------------------------------------------------------------------------------------------------------------

TEXT = TextConfig(width=16, heads=2, layers=2, vocab_size=40, context_length=9, mask_embedding=False)
VICLIP = ViCLIPConfig(
    image_size=32, patch_size=8, width=48, depth=3, heads=2, joint_width=24, text=replace(TEXT, context_length=7)
)


@pytest.fixture(scope="module")
def clip() -> CLIPModel:
    torch.manual_seed(3)
    return shaken(CLIPModel(CLIPConfig(32, 8, 48, 3, 2, TEXT, 24))).eval()  # type: ignore[return-value]  # the same model


def towers() -> VideoLanguage:
    return VideoLanguage(replace(small_world.LANGUAGE, text=replace(TEXT, mask_embedding=True), caption=None))


@pytest.fixture(params=["public.safetensors", "ours.safetensors", "half.safetensors"])
def clip_file(request: pytest.FixtureRequest, clip: CLIPModel, tmp_path: Path) -> Path:
    path = tmp_path / str(request.param)
    if path.stem == "ours":
        save_model(path, clip)
    else:
        state = public_layout(clip)
        write_safetensors(path, {n: t.half() if path.stem == "half" else t for n, t in state.items()})
    return path


def test_towers_start_from_a_clip_file_and_answer_like_clip(clip: CLIPModel, clip_file: Path) -> None:
    model = towers().eval()
    ids = torch.tensor([[38, 3, 4, 39, 0, 0, 0, 0, 0], [38, 5, 39, 0, 0, 0, 0, 0, 0]])
    assert not torch.allclose(model.encode_text(ids), clip.encode_text(ids), atol=0.01)
    initialize(model, {"clip": clip_file})
    tolerance = {"atol": 5e-3, "rtol": 5e-3} if clip_file.stem == "half" else {"atol": 1e-5, "rtol": 1e-5}
    torch.testing.assert_close(model.encode_text(ids), clip.encode_text(ids), **tolerance)
    torch.testing.assert_close(model.encode_video(clips()[:, :, :1]), clip.encode_video(clips()[:, :, :1]), **tolerance)


def test_a_classifier_and_viclip_start_from_a_clip_file(clip: CLIPModel, tmp_path: Path) -> None:
    path = tmp_path / "clip.safetensors"
    save_model(path, clip)
    for model in (small_world.multimodal_classifier(), ViCLIP(VICLIP)):
        initialize(model, {"clip": path})
        tower = model if isinstance(model, UniFormerV2) else model.visual
        ours, theirs = tower.state_dict()["blocks.1.attn.qkv.weight"], clip.state_dict()
        assert torch.equal(ours, theirs["visual.blocks.1.attn.qkv.weight"])


# --- what does not fit -----------------------------------------------------------------------------------------------


def refused(model: nn.Module, sources: dict[str, Path], found: str) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(WeightsError, match=found) as told:
        initialize(model, sources)
    assert "\n" not in str(told.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items()), "half loaded"


def test_wrong_names_are_told_with_the_right_ones(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    refused(small_world.masked_classifier(), {"clip": path}, r"init: holds clip; expected: weights: FILE;")
    refused(small_world.multimodal_classifier(), {"masked": path}, r"expected: weights: FILE or clip: FILE")
    refused(small_world.cross_model(), {"weights": path}, r"expected: masked: FILE and multimodal: FILE")
    refused(small_world.cross_model(), {}, r"init: holds nothing; expected: masked: FILE and multimodal: FILE")
    refused(towers(), {"clip": path, "weights": path}, r"holds clip, weights")


def test_an_empty_choice_leaves_the_model_as_it_was_drawn() -> None:
    model = small_world.masked_classifier()
    before = model.head.weight.clone()
    initialize(model, {})
    assert torch.equal(model.head.weight, before)


@pytest.mark.parametrize(
    ("build", "source"),
    [
        (small_world.masked_classifier, small_world.multimodal_classifier),
        (small_world.masked_classifier, small_world.language_model),
        (small_world.multimodal_classifier, small_world.pretraining_model),
        (small_world.language_model, small_world.pretraining_model),
        (small_world.language_model, small_world.multimodal_classifier),
        (small_world.pretraining_model, small_world.masked_classifier),
    ],
)
def test_weights_of_another_model_are_refused(
    build: Callable[[], nn.Module], source: Callable[[], nn.Module], tmp_path: Path
) -> None:
    refused(build(), {"weights": saved(tmp_path, source)[1]}, "missing")


def test_other_sizes_and_absent_or_broken_files_are_refused(tmp_path: Path) -> None:
    wide = VideoMAEClassifier(replace(small_world.MASKED, num_classes=2, width=24))
    path = tmp_path / "wide.safetensors"
    save_model(path, wide)
    refused(small_world.masked_classifier(), {"weights": path}, "mis-shaped")
    refused(small_world.masked_classifier(), {"weights": tmp_path / "none.safetensors"}, "no such file")
    refused(towers(), {"clip": tmp_path / "none.pt"}, "no such file")
    (tmp_path / "cut.safetensors").write_bytes(path.read_bytes()[:100])
    refused(small_world.masked_classifier(), {"weights": tmp_path / "cut.safetensors"}, "cannot be read")
    torch.save({"state_dict": {}}, tmp_path / "clip.pt")
    refused(towers(), {"clip": tmp_path / "clip.pt"}, "internvideo convert .*clip.pt -o .*clip.safetensors")
    refused(towers(), {"clip": path}, r"wide\.safetensors: unknown tensor")


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    model = small_world.masked_classifier()
    with torch.no_grad():
        model.head.weight[0, 0] = float("nan")
    save_model(tmp_path / "nan.safetensors", model)
    refused(small_world.masked_classifier(), {"weights": tmp_path / "nan.safetensors"}, "not finite")
