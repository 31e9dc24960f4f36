"""Stages divided among processes (FSDP2): equal to one process, saved on some and resumed on others, damaged."""

from __future__ import annotations

import functools
import shutil
import signal
from pathlib import Path
from typing import Any

import forked
import pytest
import torch
from divided import killed_while_saving, run, save_clips

from internvideo.training import checkpoint, sharded_checkpoint
from internvideo.training.settings import LoopSettings

STAGES = ["masked", "multimodal", "supervised", "interaction"]


def together(processes: int, *arguments: object, **loop: object) -> Any:
    """What `run` gives in the first of several processes; all of them agree."""
    started = forked.meeting(functools.partial(run, **loop), *arguments, processes=processes)
    first, *_ = [process.told() for process in started]
    return first


def assert_same(checkpoint_: Path, other: Path) -> None:
    ours, theirs = checkpoint.read_weights(checkpoint_), checkpoint.read_weights(other)
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        found = ours[name]
        if name.endswith("qkv.bias"):  # softmax ignores the bias of keys: Adam makes steps of its rounding errors
            width = len(expected) // 3
            found, expected = (torch.cat([bias[:width], bias[2 * width :]]) for bias in (found, expected))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=5e-5, msg=lambda text, name=name: f"{name}: {text}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("divided")
    save_clips(made / "clips")
    return made


def test_a_divided_run_is_resumed_by_one_process_and_falls_back_from_damage(folder: Path) -> None:
    """Saved by two; one goes on with the same clips per step, losses and weights; damage falls back in two."""
    straight = run(folder / "straight", "masked", "ddp", 4)
    assert not isinstance(straight, str), straight
    losses, newest = together(2, folder / "both", "masked", "fsdp", 4, checkpoint_every=2)
    assert losses == pytest.approx(straight[0], abs=1e-5)
    assert_same(newest, straight[1])
    files = sorted(file.name.partition("-model")[0] for file in newest.glob("*.safetensors"))
    assert files == ["shard-00001", "shard-00002"]
    single = folder / "single"
    shutil.copytree(folder / "both", single)
    shutil.rmtree(single / "checkpoints" / newest.name)
    alone = run(single, "masked", "ddp", 4, checkpoint_every=2)
    assert not isinstance(alone, str), alone
    assert alone[0] == pytest.approx(straight[0], abs=1e-5)
    assert_same(alone[1], straight[1])
    damage(newest)
    losses, last = together(2, folder / "both", "masked", "fsdp", 4, checkpoint_every=2)
    assert losses == pytest.approx(straight[0], abs=1e-5)
    assert_same(last, straight[1])
    assert (newest.with_suffix(".damaged")).is_dir()


def damage(newest: Path) -> None:
    """Flip a bit of a shard, and leave a later save as one that was killed."""
    shard = newest / "shard-00002-model-00001-of-00001.safetensors"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    unfinished = newest.with_name("step-00000005")
    shutil.copytree(newest, unfinished)
    (unfinished / sharded_checkpoint.INDEX).unlink()


@pytest.mark.slow
def test_a_divided_run_is_resumed_by_other_numbers_of_processes(folder: Path) -> None:
    """Saved by two; three and one go on with the same clips per step, losses and weights; damage falls back."""
    straight = run(folder / "straight", "masked", "ddp", 4)
    assert not isinstance(straight, str), straight
    losses, path = together(2, folder / "two", "masked", "fsdp", 2)
    assert losses == pytest.approx(straight[0][:2], abs=1e-5)
    assert sorted(file.name.partition("-model")[0] for file in path.glob("*.safetensors")) == [
        "shard-00001",
        "shard-00002",
    ]
    for processes, parallel in ((3, "fsdp"), (1, "ddp")):
        copy = folder / f"then{processes}"
        shutil.copytree(folder / "two", copy)
        losses, last = together(processes, copy, "masked", parallel, 4)
        assert losses == pytest.approx(straight[0], abs=1e-5)
        assert_same(last, straight[1])
    # A flipped bit is found, and a save that was killed is no checkpoint: the one before goes on.
    newest = folder / "then3" / "checkpoints" / "step-00000004"
    damage(newest)
    losses, last = together(2, folder / "then3", "masked", "fsdp", 4)
    assert losses == pytest.approx(straight[0], abs=1e-5)
    assert_same(last, straight[1])
    assert (newest.with_suffix(".damaged")).is_dir()


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("name", STAGES)
def test_divided_stages_learn_as_one_process(folder: Path, name: str, processes: int) -> None:
    straight = folder / f"{name}-1"
    expected = run(straight, name, "ddp", 3)
    losses, path = together(processes, folder / f"{name}-{processes}", name, "fsdp", 3)
    assert not isinstance(expected, str), expected
    assert losses == pytest.approx(expected[0], abs=1e-5)
    assert_same(path, expected[1])


@pytest.mark.slow
def test_a_copy_of_the_parameters_per_machine_learns_as_one_process(folder: Path) -> None:
    """Two machines of three processes each: divided within a machine, copied between them."""
    expected = run(folder / "hsdp-1", "masked", "ddp", 3)
    assert not isinstance(expected, str), expected
    started = forked.meeting(run, folder / "hsdp-6", "masked", "hsdp", 3, processes=6, LOCAL_WORLD_SIZE="3")
    (losses, path), *_ = [process.told() for process in started]
    assert losses == pytest.approx(expected[0], abs=1e-5)
    assert_same(path, expected[1])


@pytest.mark.slow
def test_a_process_killed_while_it_saves_costs_that_checkpoint_alone(folder: Path) -> None:
    straight = run(folder / "unkilled", "masked", "ddp", 4)
    assert not isinstance(straight, str), straight
    first, second = forked.meeting(killed_while_saving, folder / "killed", "masked", 4, 3)
    assert second.ended() == -signal.SIGKILL
    told = first.told()
    assert isinstance(told, str), "the other process says in a line that one was lost"
    assert "\n" not in told
    left = checkpoint.newest(folder / "killed")
    assert left is not None
    assert left.name == "step-00000002", "the third was not finished"
    losses, last = together(2, folder / "killed", "masked", "fsdp", 4)
    assert losses == pytest.approx(straight[0], abs=1e-5)
    assert_same(last, straight[1])


def test_settings_of_parallel_runs() -> None:
    assert LoopSettings.model_validate({"compile": True}).compile == "blocks"
    assert LoopSettings.model_validate({"compile": False}).compile == "none"
    with pytest.raises(ValueError, match="ddp"):
        LoopSettings.model_validate({"parallel": "sharded"})
