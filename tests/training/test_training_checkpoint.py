"""Checkpoints: bit-exact resume, atomic writing, other runs, other recipes, full disks."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import forked
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from training_stand_ins import TinyLoader, TinyStage, full_disk, killed, run

from internvideo.errors import RunError, WeightsError
from internvideo.storage import atomic_path, read_metadata, read_safetensors, write_safetensors, write_text
from internvideo.training import checkpoint
from internvideo.training.ema import Ema, scaled_decay
from internvideo.training.logging import read_metrics
from internvideo.training.loop import RunInterruptedError, TrainResult
from internvideo.training.run_folder import differences


def tensors(result: TrainResult) -> dict[str, Tensor]:
    return load_file(result.checkpoint)


def assert_same_bits(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert tensor.dtype == right[name].dtype, name
        assert tensor.numpy().tobytes() == right[name].numpy().tobytes(), name


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    """Ten steps without interruption."""
    return run(tmp_path_factory.mktemp("straight"))


def test_a_checkpoint_has_everything(straight: TrainResult) -> None:
    saved = tensors(straight)
    parts = {name.split("/")[0] for name in saved}
    assert parts == {"model", "ema", "optimizer", "random", "history"}
    assert {name for name in saved if name.startswith("random/")} == {
        "random/0/cpu",
        "random/0/stage",
        "random/0/numpy",
    }
    assert "ema/hidden.weight" in saved
    assert "ema/frozen.weight" not in saved
    assert saved["optimizer/hidden.weight/exp_avg"].abs().max() > 0
    assert saved["history/losses"].tolist() == list(straight.losses)
    assert json.loads(read_metadata(straight.checkpoint)["internvideo"])["recipe"]["schedule"]["steps"] == 10


def test_two_straight_runs_are_the_same(straight: TrainResult, tmp_path: Path) -> None:
    assert_same_bits(tensors(straight), tensors(run(tmp_path)))


def test_killed_after_six_steps_then_resumed(straight: TrainResult, tmp_path: Path) -> None:
    assert forked.fork(killed, tmp_path).ended() == -signal.SIGKILL
    left = checkpoint.newest(tmp_path)
    assert left is not None
    assert left.name == "step-00000006.safetensors"
    (left.parent / ".step-00000007.99.partial.safetensors").write_bytes(b"half")
    torch.manual_seed(99)  # what happens elsewhere must not matter
    np.random.seed(99)
    resumed = run(tmp_path)
    assert_same_bits(tensors(straight), tensors(resumed))
    assert resumed.losses == straight.losses
    assert [line["step"] for line in read_metrics(tmp_path)] == list(range(1, 11))
    assert sorted(path.name for path in left.parent.iterdir()) == [f"step-{step:08d}.safetensors" for step in (9, 10)]


@pytest.mark.parametrize("stop_at", range(1, 10))
def test_stopped_by_a_signal_after_any_step(straight: TrainResult, tmp_path: Path, stop_at: int) -> None:
    def ask(k: int, position: int) -> None:
        if 4 * k + position == stop_at:
            os.kill(os.getpid(), signal.SIGTERM if stop_at % 2 else signal.SIGINT)

    with pytest.raises(RunInterruptedError, match=f"stopped at step {stop_at} of 10; start the same command again"):
        run(tmp_path, loader=TinyLoader(hook=ask), checkpoint_every=None)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [f"step-{stop_at:08d}.safetensors"]
    resumed = run(tmp_path, checkpoint_every=None)
    saved, expected = tensors(resumed), tensors(straight)
    assert_same_bits(expected, saved)


def test_signal_before_the_first_step(tmp_path: Path) -> None:
    def ask(k: int, position: int) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(RunInterruptedError, match="step 0 of 10"):
        run(tmp_path, loader=TinyLoader(hook=ask))
    assert signal.getsignal(signal.SIGTERM) is before


def test_loader_workers_killed_by_the_same_signal(tmp_path: Path) -> None:
    def ask(k: int, position: int) -> None:
        if position == 2:
            os.kill(os.getpid(), signal.SIGINT)
            raise RuntimeError("worker exited unexpectedly")

    with pytest.raises(RunInterruptedError, match="step 2 of 10"):
        run(tmp_path, loader=TinyLoader(hook=ask))


def test_accumulated_batches_resume_too(tmp_path: Path) -> None:
    # Three batches a step: a step spans two epochs.
    whole = run(tmp_path / "whole", grad_accum_steps=3)

    def ask(k: int, position: int) -> None:
        if 4 * k + position == 13:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(RunInterruptedError, match="step 4 of 10"):
        run(tmp_path / "parts", loader=TinyLoader(hook=ask), grad_accum_steps=3)
    assert_same_bits(tensors(whole), tensors(run(tmp_path / "parts", grad_accum_steps=3)))


def test_a_finished_run_returns_at_once(straight: TrainResult) -> None:
    def never(k: int, position: int) -> None:
        raise AssertionError("asked for data")

    again = run(straight.checkpoint.parents[1], loader=TinyLoader(hook=never))
    assert again == straight


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    run(tmp_path, checkpoint_every=2, keep_checkpoints=3)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == [f"step-{step:08d}.safetensors" for step in (6, 8, 10)]


def test_another_recipe_is_refused(straight: TrainResult) -> None:
    folder = straight.checkpoint.parents[1]
    with pytest.raises(RunError, match=r"belongs to another run: loop\.seed was 0, is 5; expected"):
        run(folder, seed=5)


def test_recipes_are_compared_by_dotted_keys() -> None:
    before = {"data": {"workers": 2, "size": [1, 2]}, "name": "a", "gone": {}}
    assert not differences(before, {"data": {"workers": 2, "size": (1, 2)}, "name": "a", "gone": {}})
    assert not differences(before, {**before, "data": {"workers": 4, "size": [1, 2]}}, ["data.workers"])
    assert not differences(before, {**before, "data": {}}, ["data"])
    found = differences(before, {"data": {"workers": 4, "size": [1, 2]}, "name": "a"}, ["data.work"])
    assert found == {"data.workers": (2, 4), "gone": ({}, "not there")}


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(RunError, match=r"without run\.json"):
        run(tmp_path)
    (tmp_path / "run.json").write_text("[1]")
    with pytest.raises(RunError, match="is not a valid run"):
        run(tmp_path)


class OtherStage(nn.Module):
    def __init__(self, width: int, name: str = "linear") -> None:
        super().__init__()
        self.add_module(name, nn.Linear(width, 2))


def test_a_checkpoint_of_another_stage_is_refused(tmp_path: Path) -> None:
    def state(stage: nn.Module) -> checkpoint.RunState:
        return checkpoint.RunState(stage, torch.optim.AdamW(stage.parameters()), None, torch.Generator())

    path = checkpoint.save(tmp_path, state(OtherStage(3)), {}, max_to_keep=1)
    with pytest.raises(WeightsError, match=r"has another shape of linear.weight \(1 tensors\)"):
        checkpoint.resume(tmp_path, state(OtherStage(4)))
    with pytest.raises(WeightsError, match=r"misses other.bias, other.weight \(2 tensors\)"):
        checkpoint.resume(tmp_path, state(OtherStage(3, "other")))
    assert checkpoint.resume(tmp_path, state(OtherStage(3))) == path


def test_files_that_are_no_checkpoints(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "weights.safetensors")
    with pytest.raises(WeightsError, match="not a checkpoint of a run"):
        checkpoint.read_weights(tmp_path / "weights.safetensors")
    write_safetensors(tmp_path / "new.safetensors", {}, {"internvideo": json.dumps({"format": 9})})
    with pytest.raises(WeightsError, match="format 9"):
        checkpoint.read_weights(tmp_path / "new.safetensors")
    whole = (tmp_path / "weights.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:-2])
    for read in (read_metadata, read_safetensors):
        with pytest.raises(WeightsError, match="cannot be read"):
            read(tmp_path / "cut.safetensors")
        with pytest.raises(WeightsError, match="no such file"):
            read(tmp_path / "none.safetensors")


def test_weights_with_and_without_average(straight: TrainResult) -> None:
    saved = tensors(straight)
    averaged = checkpoint.read_weights(straight.checkpoint)
    raw = {name: saved[f"model/{name}"] for name in averaged}
    assert averaged.keys() == TinyStage().state_dict().keys()
    assert torch.equal(averaged["head.weight"], saved["ema/head.weight"])
    assert not torch.equal(raw["head.weight"], averaged["head.weight"])
    assert torch.equal(averaged["norm.running_mean"], raw["norm.running_mean"])
    assert torch.equal(averaged["frozen.weight"], TinyStage().frozen.weight)


def test_a_full_disk_keeps_the_earlier_file(tmp_path: Path) -> None:
    writer = forked.fork(full_disk, tmp_path)
    first, second = writer.told(), writer.told()
    assert "a.safetensors: cannot be written" in first
    assert "free space" in second
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]
    read, metadata = read_safetensors(tmp_path / "a.safetensors")
    assert torch.equal(read["x"], torch.ones(10))
    assert metadata == {"n": "1"}


def test_atomic_path(tmp_path: Path) -> None:
    target = tmp_path / "new" / "file.txt"
    with atomic_path(target) as temporary:
        temporary.write_text("one")
        assert not target.exists()
    with pytest.raises(KeyError), atomic_path(target) as temporary:
        raise KeyError(temporary.write_text("two"))
    assert target.read_text() == "one"
    assert list(target.parent.iterdir()) == [target]
    with pytest.raises(RunError, match="cannot be written"):
        write_text(target / "below", "three")


def test_shared_and_strided_tensors_are_written(tmp_path: Path) -> None:
    base = torch.arange(6.0).reshape(2, 3)
    named = {
        "base": base,
        "same": base,
        "row": base[1],
        "turned": base.t(),
        "empty": torch.zeros(0, 2),
        "scalar": base[1, 2],
    }
    write_safetensors(tmp_path / "x.safetensors", named)
    read, _ = read_safetensors(tmp_path / "x.safetensors")
    assert read.keys() == named.keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in named.items())


def test_average_by_hand() -> None:
    module = nn.Linear(1, 1, bias=False)
    module.weight.data.fill_(0.0)
    ema = Ema(module, 0.75)
    for value in (1.0, 2.0):
        module.weight.data.fill_(value)
        ema.update()
    expected = 0.75 * (0.75 * 0.0 + 0.25 * 1.0) + 0.25 * 2.0
    assert ema.averages["weight"].item() == pytest.approx(expected)
    with pytest.raises(ValueError, match="other parameters"):
        ema.load({})


def test_average_is_shortened_in_short_runs() -> None:
    assert scaled_decay(0.9999, 100) == pytest.approx(0.9)
    assert scaled_decay(0.9999, 1_000_000) == 0.9999
    assert scaled_decay(0.9999, 5) == 0.0
    assert scaled_decay(0.9999, 300) ** 300 < 1e-4
