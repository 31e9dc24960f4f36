"""Saved tables, results on disk and on the terminal, weights' hashes."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from task_world import CLIPS, CPU, Reader, Source, manifest

from internvideo import evaluation
from internvideo.data.sampling import Dense
from internvideo.data.transforms import EvalTransform
from internvideo.errors import RunError
from internvideo.tasks.protocol import ClipInputs, ClipProtocol, clip_protocol, weights_hash
from internvideo.tasks.recognition import predict as recognition
from internvideo.tasks.table import Predictions, print_result, save_result


def a_table() -> Predictions:
    rows, model = manifest(12), Reader()
    source = Source(rows, unreadable=[5], shift={(1, 0): 2})
    return recognition.predict(ClipInputs(model, source, rows, CLIPS, CPU), recognition.classifier_scorer(model))


def test_a_saved_table_gives_the_same_result_without_model_or_video(tmp_path: Path) -> None:
    table = a_table()
    path = table.save(tmp_path / "deep" / "recognition.npz")
    again = Predictions.load(path)
    assert evaluation.score(again) == recognition.score(table)
    for name, array in table.arrays.items():
        np.testing.assert_array_equal(again[name], array)
    first = path.read_bytes()
    table.save(path)
    assert path.read_bytes() == first
    assert [entry.name for entry in path.parent.iterdir()] == ["recognition.npz"]


def test_a_table_of_an_earlier_version_has_the_present_name_of_its_task(tmp_path: Path) -> None:
    path = Predictions("localisation", {"a": np.zeros(1)}, {}, {}).save(tmp_path / "localisation.npz")
    assert Predictions.load(path).task == "temporal_localization"


def test_a_name_without_ending_gets_one(tmp_path: Path) -> None:
    assert a_table().save(tmp_path / "v1.2").name == "v1.2.npz"


@pytest.mark.parametrize("content", [b"", b"not a table", b"PK\x03\x04 torn"])
def test_what_is_no_table_is_told(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "table.npz"
    path.write_bytes(content)
    with pytest.raises(RunError, match="truncated or corrupt"):
        Predictions.load(path)


def test_torn_foreign_and_missing_tables(tmp_path: Path) -> None:
    path = a_table().save(tmp_path / "table.npz")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(RunError, match="truncated or corrupt"):
        Predictions.load(path)
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    with pytest.raises(RunError, match="truncated or corrupt"):
        Predictions.load(tmp_path / "other.npz")
    np.save(tmp_path / "array.npz.npy", np.zeros(3))
    with pytest.raises(RunError, match="truncated or corrupt"):
        Predictions.load(tmp_path / "array.npz.npy")
    with pytest.raises(RunError, match="no such file"):
        Predictions.load(tmp_path / "absent.npz")
    with pytest.raises(RunError, match="task 'juggling'"):
        evaluation.score(Predictions("juggling", {}, {}, {}))
    with pytest.raises(RunError, match="no array 'labels'"):
        evaluation.score(Predictions("recognition", {"logits:a": np.zeros((1, 2))}, {}, {}))


def test_an_earlier_table_survives_a_failed_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = a_table().save(tmp_path / "table.npz")
    before = path.read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(RunError, match="No space left"):
        a_table().save(path)
    assert path.read_bytes() == before


def test_results_on_disk_and_terminal(tmp_path: Path) -> None:
    result = recognition.score(a_table())
    save_result(result, tmp_path / "result.json")
    stored = json.loads((tmp_path / "result.json").read_text("utf-8"))
    assert stored == result
    assert set(stored) == {"task", "figures", "intervals", "protocol", "coverage"}
    out = io.StringIO()
    print_result(result, Console(file=out, width=200))
    text = out.getvalue()
    assert "videos read: 11 of 12" in text
    assert "unreadable: clip5 (5.mp4): no frame" in text
    assert "90.91 %" in text
    assert "frames 2" in text
    assert result["protocol"]["weights_sha256"][:16] in text


def test_weights_hash_changes_with_name_value_type_and_shape_only() -> None:
    state = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.tensor(1.5, dtype=torch.bfloat16)}
    base = weights_hash(state)
    assert base == weights_hash(dict(sorted(state.items())))
    changed = [
        {**state, "b": state["b"] + 1e-6},
        {**state, "b": state["b"].reshape(3, 2)},
        {**state, "b": state["b"].double()},
        {"c": state["b"], "a": state["a"]},
        {"b": state["b"]},
    ]
    assert len({base, *(weights_hash(other) for other in changed)}) == 6
    assert weights_hash(Reader()) == weights_hash(Reader().state_dict())


def test_weights_hash_ignores_memory_layout() -> None:
    wide = torch.arange(12.0).reshape(2, 6)
    assert weights_hash({"a": wide[:, ::2]}) == weights_hash({"a": wide[:, ::2].clone()})
    assert weights_hash({"a": wide.T}) == weights_hash({"a": wide.T.contiguous()})


def test_protocol_from_the_real_sampler_and_transform() -> None:
    clips = clip_protocol(Dense(frames=16, stride=4, num_clips=5), EvalTransform(size=96, num_crops=3))
    assert (clips.frames, clips.size, clips.num_clips, clips.num_crops, clips.num_views) == (16, 96, 5, 3, 15)
    assert "stride=4" in clips.sampling
    alone = clip_protocol(Dense(frames=16, stride=4, num_clips=5), EvalTransform(size=96), single_frame=True)
    assert alone == ClipProtocol(frames=1, size=96, sampling="middle frame", resizing="short side 96, pil")
    squashed = clip_protocol(
        Dense(frames=16), EvalTransform(size=96, resize=112, resize_backend="opencv", keep_aspect=False)
    )
    assert squashed.resizing == "squashed to 112, opencv"
