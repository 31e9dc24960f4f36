"""What may differ between the sessions of a run, and what keeps a run folder whole: locks, digests, permissions."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
from pathlib import Path
from typing import Any

import forked
import pytest
import torch
from safetensors.torch import load_file, save_file
from training_stand_ins import TinyLoader, TinyStage, run, settings, write_alone

from internvideo.errors import InternVideoError, RecipeError, RunError, WeightsError
from internvideo.storage import (
    DIGESTS,
    LOCK_FILE,
    atomic_path,
    folder_lock,
    read_metadata,
    read_safetensors,
    write_safetensors,
    write_text,
)
from internvideo.training import checkpoint
from internvideo.training.logging import read_metrics
from internvideo.training.loop import TrainResult, train
from internvideo.training.settings import TrainingSettings

OLD = Path(__file__).parents[1] / "old_run"
"""A run of `training_stand_ins.run`, stopped at step 6, as commit 3cd56d4 left it: without digests."""


def go(folder: Path, *, changes: tuple[str, ...] = (), **parts: dict[str, Any]) -> TrainResult:
    """Train the tiny stage with other settings, given by section."""
    tree = settings().model_dump(mode="json")
    for section, values in parts.items():
        tree[section].update(values)
    chosen = TrainingSettings.model_validate(tree)
    tree = chosen.model_dump(mode="json")
    return train(TinyStage(), TinyLoader(), chosen, folder, tree, batch_size=2, changes=changes)


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


# --- what may differ -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    go(folder)
    return folder


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.mark.parametrize(
    "loop", [{"log_every": 7}, {"checkpoint_every": None}, {"keep_checkpoints": 9}, {"tensorboard": True}]
)
def test_what_changes_nothing_may_differ(folder: Path, loop: dict[str, Any]) -> None:
    before = (folder / "run.json").read_bytes()
    assert go(folder, loop=loop).step == 10
    assert (folder / "run.json").read_bytes() == before


def test_a_finished_run_is_made_longer(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    longer = go(folder, schedule={"steps": 14})
    assert (longer.step, len(longer.losses)) == (14, 14)
    told = capsys.readouterr().err
    assert "train: after step 10: schedule.steps was 10, is 14; learning rate 0.0" in told
    lines = read_metrics(folder)
    told_line = {key: value for key, value in lines[-5].items() if key != "lr"}
    assert told_line == {"step": 10, "changed": {"schedule.steps": [10, 14]}}
    assert [line["step"] for line in lines[-4:]] == [11, 12, 13, 14]
    kept = json.loads((folder / "run.json").read_text())
    assert kept["recipe"]["schedule"]["steps"] == 14
    assert kept["changes"] == [{"after_step": 10, "settings": {"schedule.steps": [10, 14]}}]
    assert go(folder, schedule={"steps": 14}) == longer
    assert go(folder) == longer  # the command that it began with
    assert "already at step 14, the schedule has 10 steps" in capsys.readouterr().err
    assert json.loads((folder / "run.json").read_text()) == kept
    with pytest.raises(RunError, match=r"schedule.steps was 14, is 9; .*--change schedule.steps=VALUE"):
        go(folder, schedule={"steps": 9})


def test_a_longer_run_goes_on_by_the_longer_schedule(folder: Path, tmp_path: Path) -> None:
    """The steps after the old end are those of the new schedule, from the old weights."""
    longer, constant = {"steps": 12}, {"kind": "constant"}
    go(tmp_path / "a", schedule=constant)
    go(tmp_path / "b", schedule={**constant, **longer})
    ours, straight = go(tmp_path / "a", schedule={**constant, **longer}), go(tmp_path / "b", schedule=constant | longer)
    assert ours.losses == straight.losses  # a constant rate does not know how long the run is
    for name, tensor in load_file(ours.checkpoint).items():
        assert torch.equal(tensor, load_file(straight.checkpoint)[name]), name


def test_a_rate_is_changed_on_purpose(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = {"optimizer": {"base_lr": 0.01}, "schedule": {"steps": 12}}
    with pytest.raises(RunError, match=r"base_lr was 0.05, is 0.01.*--change optimizer.base_lr=VALUE"):
        go(folder, **other)
    assert go(folder, changes=("optimizer.base_lr",), **other).step == 12
    assert "optimizer.base_lr was 0.05, is 0.01, schedule.steps was 10, is 12" in capsys.readouterr().err
    described = read_metadata(folder / "checkpoints" / "step-00000012.safetensors")["internvideo"]
    assert json.loads(described)["recipe"]["optimizer"]["base_lr"] == 0.01
    assert go(folder, **other).step == 12  # it is the run's own rate now


def test_a_change_before_the_last_checkpoint_is_no_other_run(tmp_path: Path) -> None:
    """run.json knows the new rate, the checkpoint to go on from does not yet."""
    go(tmp_path)
    (tmp_path / "checkpoints" / "step-00000010.safetensors").unlink()

    def never(k: int, position: int) -> None:
        raise RuntimeError("killed here")

    tree = settings().model_dump(mode="json")
    tree["optimizer"]["base_lr"] = 0.02
    chosen = TrainingSettings.model_validate(tree)
    told = chosen.model_dump(mode="json")
    with pytest.raises(RuntimeError, match="killed"):
        train(TinyStage(), TinyLoader(hook=never), chosen, tmp_path, told, batch_size=2, changes=("optimizer.base_lr",))
    assert go(tmp_path, optimizer={"base_lr": 0.02}).step == 10


@pytest.mark.parametrize("key", ["loop.seed", "optimizer.kind", "model.name", "loop"])
def test_what_a_checkpoint_does_not_fit_cannot_change(folder: Path, key: str) -> None:
    with pytest.raises(
        RecipeError, match=rf"--change: '{key}' cannot change within a run; expected: optimizer.base_lr"
    ):
        go(folder, changes=(key,))


def test_a_recipe_of_an_earlier_version_is_filled_up(folder: Path) -> None:
    told = json.loads((folder / "run.json").read_text())
    del told["recipe"]["loop"]["compile"]
    write_text(folder / "run.json", json.dumps(told))
    with pytest.raises(RunError, match=r"loop.compile was 'not there', is 'none'"):
        go(folder)
    chosen = settings()
    tree = chosen.model_dump(mode="json")
    result = train(
        TinyStage(),
        TinyLoader(),
        chosen,
        folder,
        tree,
        batch_size=2,
        fill_defaults=lambda written: TrainingSettings.model_validate(written).model_dump(mode="json"),
    )
    assert result.step == 10


def test_a_run_of_an_earlier_version_goes_on(tmp_path: Path) -> None:
    shutil.copytree(OLD, tmp_path / "old")
    assert DIGESTS not in (OLD / "checkpoints" / "step-00000006.safetensors").read_bytes().decode("latin-1")
    ours, straight = run(tmp_path / "old", checkpoint_every=None), run(tmp_path / "new")
    # Not to the bit: the first steps were made on another machine.
    assert ours.losses == pytest.approx(straight.losses, abs=1e-4)
    for name, tensor in load_file(ours.checkpoint).items():
        if name.startswith("model/"):
            assert torch.allclose(tensor, load_file(straight.checkpoint)[name], atol=1e-4), name


# --- whose the folder is ---------------------------------------------------------------------------------------------


def test_a_failed_first_attempt_does_not_keep_the_folder(tmp_path: Path) -> None:
    with pytest.raises(
        RunError, match=r"data.loader.batch_size: 2 on each of 1 processes: fewer samples than one batch"
    ):
        run(tmp_path / "run", loader=TinyLoader(batches=0))
    assert not (tmp_path / "run").exists()

    def fail(k: int, position: int) -> None:
        raise OSError("no video")

    with pytest.raises(OSError, match="no video"):
        run(tmp_path / "run", loader=TinyLoader(hook=fail), seed=1)
    assert (tmp_path / "run" / "run.json").exists()
    assert run(tmp_path / "run").step == 10
    with pytest.raises(RunError, match=r"loop.seed was 0, is 1"):
        run(tmp_path / "run", seed=1)


def second(folder: Path, *, wait: bool = False) -> forked.Forked:
    return forked.fork(write_alone, folder, wait)


def test_two_processes_do_not_write_one_folder(tmp_path: Path) -> None:
    other = second(tmp_path / "run", wait=True)
    assert other.told() == "mine"
    with pytest.raises(RunError, match=rf"process {other.pid} of .* writes there") as caught:
        run(tmp_path / "run")
    assert "\n" not in str(caught.value)
    os.kill(other.pid, signal.SIGKILL)
    assert other.ended() == -signal.SIGKILL
    assert run(tmp_path / "run").step == 10  # the lock ends with its owner
    assert not (tmp_path / "run" / LOCK_FILE).exists()
    with folder_lock(tmp_path / "run"):
        assert second(tmp_path / "run").told().startswith(f"{tmp_path / 'run'}: process {os.getpid()} of ")
        assert run(tmp_path / "run").step == 10  # a block inside a block
    assert second(tmp_path / "run").told() == "mine"


def test_a_child_that_outlives_its_parent_holds_no_lock(tmp_path: Path) -> None:
    with folder_lock(tmp_path / "run"):
        (tmp_path / "run" / "kept").write_text("")
        child = os.fork()
        if child == 0:
            signal.pause()
            os._exit(0)
    try:
        assert second(tmp_path / "run").told() == "mine"
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_folder_that_was_made_for_nothing_goes_again(tmp_path: Path) -> None:
    with folder_lock(tmp_path / "new" / "run"):
        assert (tmp_path / "new" / "run" / LOCK_FILE).exists()
    assert not (tmp_path / "new" / "run").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"), folder_lock(tmp_path / "file" / "run"):
        pass


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o002, 0o664)])
def test_the_umask_decides_who_reads(tmp_path: Path, mask: int, mode: int) -> None:
    before = os.umask(mask)
    try:
        write_safetensors(tmp_path / "a.safetensors", {"x": torch.ones(3)})
        write_text(tmp_path / "b.json", "{}")
        with atomic_path(tmp_path / "c.bin") as temporary:
            temporary.touch(0o600)
        result = run(tmp_path / "run")
    finally:
        os.umask(before)
    written = [tmp_path / name for name in ("a.safetensors", "b.json", "c.bin")]
    for path in [*written, result.checkpoint, tmp_path / "run" / "run.json", tmp_path / "run" / "metrics.jsonl"]:
        assert stat.S_IMODE(path.stat().st_mode) == mode, path.name


# --- damage ----------------------------------------------------------------------------------------------------------


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(
    folder: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    newest = checkpoint.newest(folder)
    assert newest is not None
    flip(newest, newest.stat().st_size - 5)
    result = go(folder, loop={"keep_checkpoints": 1})
    told = [line for line in capsys.readouterr().err.splitlines() if "damaged" in line]
    assert len(told) == 1
    assert "has another SHA-256 than when it was written" in told[0]
    assert told[0].endswith("resuming from the checkpoint before it")
    assert result.step == 10
    assert {path.name for path in newest.parent.iterdir()} == {newest.name, newest.with_suffix(".damaged").name}
    expected = load_file(finished / "checkpoints" / newest.name)
    for name, tensor in load_file(newest).items():
        assert torch.equal(tensor, expected[name]), name
    assert [line["step"] for line in read_metrics(folder)] == list(range(1, 11))


def test_a_run_without_a_whole_checkpoint_stops(folder: Path) -> None:
    for path in (folder / "checkpoints").iterdir():
        path.write_bytes(path.read_bytes()[:-100])
    before = sorted((folder / "checkpoints").iterdir())
    with pytest.raises(WeightsError, match="none of 2 checkpoints can be read; expected: an intact one"):
        go(folder)
    assert sorted((folder / "checkpoints").iterdir()) == before


def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    tensors = {
        "a": torch.arange(6.0).reshape(2, 3),
        "b": torch.ones(3, dtype=torch.bfloat16),
        "c": torch.tensor(True),
        "none": torch.zeros(0, 2),
    }
    path, other = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    write_safetensors(path, tensors, {"recipe": '{"steps": 10}'})
    read, metadata = read_safetensors(path)
    assert metadata == read_metadata(path) == {"recipe": '{"steps": 10}'}
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())
    key, missed = path.read_bytes().index(DIGESTS.encode()), 0
    for place in range(path.stat().st_size):
        if key <= place < key + len(DIGESTS):
            continue  # without its name the list is no list
        shutil.copy(path, other)
        flip(other, place)
        try:
            found, told = read_safetensors(other)
        except InternVideoError:
            continue
        missed += 1
        assert told == metadata
        assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    assert missed < 8  # an escape that says the same


@pytest.mark.parametrize("change", ["value", "shape", "dtype", "missing", "more", "metadata", "list"])
def test_weights_that_are_not_what_was_written_are_refused(tmp_path: Path, change: str) -> None:
    path = tmp_path / "a.safetensors"
    write_safetensors(path, {"a": torch.ones(4), "b": torch.ones(2)}, {"n": "1"})
    tensors = load_file(path)
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))["__metadata__"]
    if change == "value":
        tensors["a"][1] = 2
    elif change == "shape":
        tensors["a"] = tensors["a"].reshape(2, 2)
    elif change == "dtype":
        tensors["a"] = tensors["a"].view(torch.int32)
    elif change == "missing":
        del tensors["a"]
    elif change == "more":
        tensors["c"] = torch.ones(1)
    elif change == "metadata":
        header["n"] = "2"
    else:
        header[DIGESTS] = "[" * 100_000
    save_file(tensors, path, header)
    with pytest.raises(WeightsError, match="another SHA-256 than when it was written"):
        read_safetensors(path)
    if change in ("metadata", "list"):
        with pytest.raises(WeightsError, match="another SHA-256"):
            read_metadata(path)


def test_foreign_weights_have_no_digests(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "a.safetensors", {"format": "pt"})
    tensors, metadata = read_safetensors(tmp_path / "a.safetensors")
    assert metadata == {"format": "pt"}
    assert torch.equal(tensors["a"], torch.ones(2))
