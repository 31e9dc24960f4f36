"""A saved graph is the model: any batch, any frames, in another program; and what differs is not kept."""

import hashlib
import json
import sys
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import in_process
import onnx
import onnxruntime
import pytest
import small_apps
import torch
from torch import Tensor

from internvideo.data.preprocessing import Preprocessing
from internvideo.data.tokenizer import Tokenizer
from internvideo.errors import RecipeError, RunError, VideoError
from internvideo.extras import ExtraError
from internvideo.inference import onnx_file
from internvideo.inference.export import Check, Export, ExportSettings, Graph, export
from internvideo.inference.video_model import VideoModel


@cache
def model(family: str) -> VideoModel:
    return small_apps.random_model(family)


def random_clips(of: VideoModel, batch: int, frames: int | None = None) -> Tensor:
    size = of.preprocessing.size
    generator = torch.Generator().manual_seed(5)
    shape = (batch, 3, frames or of.preprocessing.frames, size, size)
    clips = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return clips.float() if of.preprocessing.resize_backend == "torch" else clips


def run_torch(path: Path, x: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = torch.export.load(path).module()(x)
    return found


def run_onnx(path: Path, x: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4 * wanted.abs().max().item())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Export:
    """CLIP's video tower as ONNX, with its version in 8 bits, compared on a real video too."""
    folder = tmp_path_factory.mktemp("export")
    return export(model("clip"), folder / "m.onnx", ExportSettings(int8=True), video=small_apps.clips()[0])


def test_an_onnx_file_takes_any_batch_and_any_frames(made: Export) -> None:
    of = model("clip")
    for batch, frames in ((1, 8), (5, 8), (4, 7), (1, 1)):
        clips = random_clips(of, batch, frames)
        close(run_onnx(made.path, clips), of.encode_clips(clips))


def test_the_axes_have_names(made: Export) -> None:
    session = onnxruntime.InferenceSession(str(made.path), providers=["CPUExecutionProvider"])
    (clips,), (features,) = session.get_inputs(), session.get_outputs()
    side = model("clip").preprocessing.size
    assert (clips.name, clips.type, clips.shape) == ("clips", "tensor(uint8)", ["batch", 3, "frames", side, side])
    assert (features.name, features.shape) == ("features", ["batch", model("clip").embed_dim])
    onnx.checker.check_model(onnx.load(made.path), full_check=True)


def test_the_checks_say_what_was_compared(made: Export) -> None:
    assert [check.input for check in made.checks] == ["random"] * 4 + ["video"]
    assert len({check.shape[0] for check in made.checks}) == 3
    assert len({check.shape[2] for check in made.checks}) >= 3
    assert made.worst.relative == max(check.relative for check in made.checks) < 1e-5
    assert all(check.largest > 0.1 for check in made.checks)


def test_the_version_in_8_bits_is_near_and_smaller(made: Export) -> None:
    assert made.int8 is not None
    assert made.cosine is not None
    assert made.int8.name == "m.int8.onnx"
    assert made.int8.stat().st_size < made.path.stat().st_size
    of, clips = model("clip"), random_clips(model("clip"), 3)
    cosine = torch.nn.functional.cosine_similarity(run_onnx(made.int8, clips), of.encode_clips(clips))
    assert 0.95 < made.cosine < 1 - 1e-7  # really another model
    assert cosine.min() > 0.95


def test_the_description_is_enough_to_use_the_file(made: Export) -> None:
    about: dict[str, Any] = json.loads(made.metadata.read_text(encoding="utf-8"))
    of = model("clip")
    assert about["input"] == {
        "name": "clips",
        "type": "uint8",
        "shape": ["batch", 3, "frames", of.preprocessing.size, of.preprocessing.size],
    }
    assert about["output"]["shape"] == ["batch", of.embed_dim]
    assert Preprocessing.from_json(about["preprocessing"]) == of.preprocessing
    assert about["weights"]["weights_sha256"] == of.metadata["weights_sha256"]
    assert {file["name"] for file in about["files"]} == {"m.onnx", "m.int8.onnx"}
    for file in about["files"]:
        content = (made.path.parent / file["name"]).read_bytes()
        assert (file["bytes"], file["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
    assert about["largest_difference"] == made.worst.relative
    assert about["int8_cosine"] == made.cosine
    assert {path.name for path in made.path.parent.iterdir()} == {"m.onnx", "m.int8.onnx", "m.onnx.json"}


def test_a_torch_program_takes_any_batch_and_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    of = model("clip")
    found = export(of, settings=ExportSettings(format="torch"))
    assert found.path.name == f"{of.name}-video.pt2"
    clips = random_clips(of, 3, 6)
    close(run_torch(found.path, clips), of.encode_clips(clips))


def test_a_graph_holds_what_it_needs_and_the_model_keeps_the_rest() -> None:
    of = model("multimodal")
    names = {what: list(Graph(of, what).state_dict()) for what in ("video", "text")}
    assert not [name for name in names["video"] if ".text." in name or "caption" in name]
    assert not [name for name in names["text"] if "visual" in name or "caption" in name]
    assert of.encode_text("a dog").shape == (1, of.embed_dim)
    assert len(of.caption(small_apps.clips()[0])) == 1


def test_the_text_tower(tmp_path: Path) -> None:
    of = model("multimodal")
    found = export(of, tmp_path / "t.pt2", ExportSettings(format="torch", what="text"))
    words = ["a cat", "somebody runs to the left", "snow", "no"]
    ids = Tokenizer(context_length=small_apps.TEXT["context"]).encode(words)
    close(run_torch(found.path, ids), of.encode_text(words, normalize=False))
    assert json.loads(found.metadata.read_text())["input"]["type"] == "int64"


def test_the_command_exports_a_classifier_with_its_classes(tmp_path: Path) -> None:
    of = model("supervised")
    of.save_pretrained(tmp_path / "model")
    words = ("export", "model", "--output", "c.pt2", "--format", "torch", "--what", "classifier", "--frames")
    done = in_process.command(*words, "auto", cwd=tmp_path)
    assert done.code == 0, done.err
    assert "largest difference 0 of the largest number, allowed 0.0001" in done.out
    assert "c.pt2.json" in done.out
    clips = random_clips(of, 3)
    close(run_torch(tmp_path / "c.pt2", clips), of.logits(clips))
    about = json.loads((tmp_path / "c.pt2.json").read_text())
    assert about["classes"] == list(of.class_names)
    assert about["output"] == {"name": "logits", "type": "float32", "shape": ["batch", 3], "normalised": False}
    for options in (("dynamic",), ("auto", "--batch", "many")):
        refused = in_process.command(*words, *options, cwd=tmp_path)
        assert refused.code == 2
        assert len(refused.err.strip().splitlines()) == 1
    assert "dynamic or a number" in refused.err


def test_a_fixed_batch_and_fixed_frames_stay_fixed(tmp_path: Path) -> None:
    of = model("clip")
    found = export(of, tmp_path / "f.pt2", ExportSettings(format="torch", batch=1, frames=3))
    close(run_torch(found.path, random_clips(of, 1, 3)), of.encode_clips(random_clips(of, 1, 3)))
    assert json.loads(found.metadata.read_text())["input"]["shape"][:3] == [1, 3, 3]
    with pytest.raises(Exception, match=r"Guard failed|[Ee]xpected"):
        run_torch(found.path, random_clips(of, 2, 3))


@pytest.mark.parametrize(
    ("family", "settings", "told"),
    [
        ("supervised", {"frames": "dynamic"}, "clips of one length"),
        ("supervised", {"frames": 8}, "clips of one length"),
        ("multimodal", {"frames": 0}, "frames"),
        ("multimodal", {"what": "classifier"}, "expected: video, text"),
        ("supervised", {"what": "text"}, "expected: video, classifier"),
        ("multimodal", {"format": "tflite"}, "expected: torch, onnx"),
        ("multimodal", {"what": "all"}, "expected: video, text, classifier"),
        ("multimodal", {"batch": 0}, "1 or more"),
        ("multimodal", {"format": "torch", "int8": True}, "--format onnx"),
        ("multimodal", {"format": "torch", "opset": 18}, "--format onnx"),
        ("multimodal", {"tolerance": 0.0}, "above 0"),
    ],
)
def test_what_cannot_be_is_told(tmp_path: Path, family: str, settings: dict[str, Any], told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        export(model(family), None, ExportSettings(**settings))
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_differs_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m.pt2").write_text("an earlier one")
    other = SimpleNamespace(module=lambda: lambda clips: model("supervised").encode_clips(clips) + 0.5)
    monkeypatch.setattr(torch.export, "export", lambda *inputs, **options: other)
    monkeypatch.setattr(torch.export, "save", lambda program, path: path.write_bytes(b""))
    monkeypatch.setattr(torch.export, "load", lambda path: other)
    with pytest.raises(RunError, match=r"differs from the model by 0\.5"):
        export(model("supervised"), tmp_path / "m.pt2", ExportSettings(format="torch"))
    assert [path.name for path in tmp_path.iterdir()] == ["m.pt2"]
    assert (tmp_path / "m.pt2").read_text() == "an earlier one"


def test_not_a_number_is_a_difference() -> None:
    assert Check("random", (1,), float("nan"), 1.0).relative == float("inf")


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ExtraError, match=r"onnxscript, which is not installed.*internvideo\[export\]"):
        export(model("supervised"))


def test_the_name_must_fit_the_format_and_the_model_must_be_float32(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"ends in \.onnx"):
        export(model("supervised"), tmp_path / "m.pt2")
    half = small_apps.random_model("supervised")
    half.precision = "bfloat16"
    with pytest.raises(RecipeError, match="float32 on cpu"):
        export(half, tmp_path / "m.onnx")


def test_a_video_that_cannot_be_read_is_told_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(VideoError):
        export(model("supervised"), tmp_path / "m.pt2", ExportSettings(format="torch"), video=tmp_path / "no.mp4")


@pytest.mark.slow
@pytest.mark.parametrize(("opset", "told"), [(11, "opset: 11; the exporter wrote 18"), (99, "opset")])
def test_an_operator_set_that_cannot_be_is_told(tmp_path: Path, opset: int, told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        export(model("supervised"), tmp_path / "m.onnx", ExportSettings(opset=opset))
    assert list(tmp_path.iterdir()) == []
    made = export(model("supervised"), tmp_path / "m.onnx", ExportSettings(opset=23, int8=True))
    assert onnx.load(made.path).opset_import[0].version == 23


def test_the_example_runs_and_weights_beyond_one_file_stand_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_file, "MAX_PROTOBUF_BYTES", 1000)
    of, moved = model("supervised"), tmp_path / "elsewhere"
    folder = of.save_pretrained(tmp_path / "model")
    script = Path(__file__).parents[2] / "examples" / "export_onnx.py"
    assert len(script.read_text(encoding="utf-8").splitlines()) <= 60
    done = in_process.program(script, folder, small_apps.clips()[0], "encoder.onnx", cwd=tmp_path)
    assert done.code == 0, done.err
    assert "embedding with the model's: 1.000000" in done.out
    names = {file["name"] for file in json.loads((tmp_path / "encoder.onnx.json").read_text())["files"]}
    assert {"encoder.onnx", "encoder.onnx.data", "encoder.int8.onnx"} <= names
    moved.mkdir()
    for name in names:
        (tmp_path / name).rename(moved / name)
    clips = random_clips(of, 2)
    close(run_onnx(moved / "encoder.onnx", clips), of.encode_clips(clips))
    assert run_onnx(moved / "encoder.int8.onnx", clips).shape == (2, of.embed_dim)


@pytest.mark.slow
@pytest.mark.parametrize("family", small_apps.FAMILIES)
@pytest.mark.parametrize("kind", ["torch", "onnx"])
def test_every_family(tmp_path: Path, family: str, kind: Any) -> None:
    of = model(family)
    found = export(of, tmp_path / ("m.pt2" if kind == "torch" else "m.onnx"), ExportSettings(format=kind))
    clips = random_clips(of, 4)
    close((run_torch if kind == "torch" else run_onnx)(found.path, clips), of.encode_clips(clips))


@pytest.mark.slow
def test_halved_frames_begin_with_three(tmp_path: Path) -> None:
    of = small_apps.random_model("supervised_multimodal", temporal_downsample=True)
    found = export(of, tmp_path / "m.onnx")
    assert json.loads(found.metadata.read_text())["smallest"] == {"frames": 3}
    for frames in (3, 4, 5, 9):
        clips = random_clips(of, 2, frames)
        close(run_onnx(found.path, clips), of.encode_clips(clips))
