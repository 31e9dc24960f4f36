"""The loop: learning, logging, accumulation, precision, non-finite values."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from training_stand_ins import TinyLoader, TinyStage, run, settings

from internvideo.data.batch import Batch
from internvideo.errors import RecipeError, RunError
from internvideo.training.logging import MetricLog, format_duration, json_safe, read_metrics
from internvideo.training.loop import train
from internvideo.training.optimizer import make_optimizer
from internvideo.training.settings import TrainingSettings


def test_the_log_tells_every_window(tmp_path: Path) -> None:
    result = run(tmp_path, checkpoint_every=None)
    lines = read_metrics(tmp_path)
    assert [line["step"] for line in lines] == [3, 6, 9, 10]
    assert [line["epoch"] for line in lines] == [0, 1, 2, 2]
    assert lines[0]["loss"] == pytest.approx(sum(result.losses[:3]) / 3)
    assert lines[3]["loss"] == result.losses[9]
    assert lines[1]["data_wait_s"] == pytest.approx(0.75)
    assert all(line["gradient_norm"] > 0 and line["clips_per_second"] > 0 and "scale" in line for line in lines)
    assert result.step == len(result.losses) == 10
    assert sum(line["seconds"] for line in lines) == pytest.approx(result.seconds)
    assert result.clips_per_second == pytest.approx(20 / result.seconds)


def by_hand(steps: int) -> dict[str, Tensor]:
    """The same run written without the loop."""
    chosen = settings()
    stage, loader = TinyStage(random=False), TinyLoader()
    optimizer = make_optimizer(stage, chosen.optimizer)
    batches = [batch for epoch in range(3) for batch in loader.epoch(epoch)]
    for step in range(steps):
        lr = 0.05 * step if step < 2 else 0.025 * (1 + math.cos(math.pi * (step - 2) / 8))
        optimizer.zero_grad()
        stage(batches[step], torch.Generator())["loss"].backward()
        nn.utils.clip_grad_norm_([p for p in stage.parameters() if p.requires_grad], 1.0)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
    return stage.state_dict()


def test_ten_steps_equal_the_same_steps_by_hand(tmp_path: Path) -> None:
    stage = TinyStage(random=False)
    run(tmp_path, stage)
    for name, tensor in by_hand(10).items():
        assert torch.allclose(stage.state_dict()[name], tensor, atol=1e-7), name


def test_it_learns_and_frozen_parts_stay(tmp_path: Path) -> None:
    stage = TinyStage(random=False)
    before = {name: tensor.clone() for name, tensor in stage.state_dict().items()}

    class OneBatch(TinyLoader):
        def epoch(self, k: int, start: int = 0) -> Iterator[Batch]:
            return super().epoch(0, start)

    result = run(tmp_path, stage, OneBatch(batches=1))
    assert result.losses[-1] < 0.5 * result.losses[0]
    for name, tensor in stage.state_dict().items():
        assert torch.equal(before[name], tensor) == name.startswith("frozen"), name


def test_accumulated_batches_equal_one_large_batch(tmp_path: Path) -> None:
    class Halves(TinyLoader):
        """The batches of four clips, in two halves each."""

        def epoch(self, k: int, start: int = 0) -> Iterator[Batch]:
            assert start == 0
            assert self.batches == 8
            for batch in TinyLoader(batches=4, clips=4).epoch(k):
                assert batch.labels is not None
                for part in (slice(0, 2), slice(2, 4)):
                    yield Batch(video=batch.video[part], ids=batch.ids[part], labels=batch.labels[part])

    joined, halves = TinyStage(random=False), TinyStage(random=False)
    large = run(tmp_path / "large", joined, TinyLoader(clips=4))
    small = run(tmp_path / "small", halves, Halves(batches=8), grad_accum_steps=2)
    assert small.losses == pytest.approx(large.losses, abs=1e-6)
    for name, tensor in joined.state_dict().items():
        assert torch.allclose(tensor, halves.state_dict()[name], atol=1e-6), name


def test_rate_follows_the_batch(tmp_path: Path) -> None:
    chosen = TrainingSettings.model_validate(
        {
            "optimizer": {"base_lr": 0.01, "lr_scaling": "batch/256"},
            "schedule": {"epochs": 1, "kind": "constant"},
            "loop": {"grad_accum_steps": 2, "log_every": 1},
        }
    )
    result = train(TinyStage(), TinyLoader(), chosen, tmp_path, {}, batch_size=64)
    assert result.step == 2
    assert read_metrics(tmp_path)[0]["lr"] == pytest.approx(0.01 * 128 / 256)


class Poisoned(TinyStage):
    """A loss or gradient that is not finite when the loader gives batch 1 of epoch 1 (step 6)."""

    def __init__(self, what: str) -> None:
        super().__init__(random=False)
        self.what = what

    def forward(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        parts = super().forward(batch, generator)
        if batch.ids[0].startswith("e1b1"):
            if self.what == "loss":
                return {**parts, "loss": parts["loss"] * float("nan")}
            # sqrt at 0: the value is finite, the slope is not
            return {**parts, "loss": parts["loss"] + (self.scale - self.scale.detach()).abs().sqrt()}
        return parts


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_value_that_is_not_finite_stops_the_run(tmp_path: Path, what: str) -> None:
    stage = Poisoned(what)
    with pytest.raises(RunError, match=f"the {what} of step 6 is not finite; clips e1b1c0, e1b1c1; ") as caught:
        run(tmp_path, stage, log_every=4, checkpoint_every=5)
    assert caught.value.where == str(tmp_path / "nonfinite.json")
    report = json.loads((tmp_path / "nonfinite.json").read_text())
    assert report["step"] == 6
    assert report["clip_ids"] == ["e1b1c0", "e1b1c1"]
    assert report["processes"][0]["gradient_norm"] in ("nan", "inf")
    # Steps 7 and 8 were made before anybody looked, and have moved nothing: these are the weights after step 5.
    expected = by_hand(5)
    assert report["parameter_norms"].keys() == dict(stage.named_parameters()).keys()
    for name, norm in report["parameter_norms"].items():
        assert norm == pytest.approx(expected[name].double().norm().item(), rel=1e-6), name
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000005.safetensors"]
    assert read_metrics(tmp_path)[-1]["step"] == 5


class Wide(nn.Module):
    """Keeps the dtype in which its layer computed."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(96, 3)
        self.seen: set[torch.dtype] = set()

    def forward(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        assert batch.labels is not None
        logits = self.layer(batch.video.float().flatten(1) / 255.0)
        self.seen.add(logits.dtype)
        return {"loss": F.cross_entropy(logits.float(), batch.labels)}


@pytest.mark.parametrize(
    ("precision", "dtype"), [("auto", torch.float32), ("float32", torch.float32), ("bfloat16", torch.bfloat16)]
)
def test_precision(tmp_path: Path, precision: str, dtype: torch.dtype) -> None:
    stage = Wide()
    run(tmp_path, stage, precision=precision)
    assert stage.seen == {dtype}
    assert stage.layer.weight.dtype == torch.float32


def test_activation_checkpointing_is_switched_on_where_there_is_some(tmp_path: Path) -> None:
    stage = TinyStage()
    with pytest.raises(RecipeError, match="does not support activation checkpointing"):
        run(tmp_path, stage, activation_checkpointing=True)
    stage.head.checkpointing = False  # type: ignore[assignment]  # a plain attribute
    run(tmp_path / "able", stage, activation_checkpointing=True)
    assert getattr(stage.head, "checkpointing", False) is True


def test_loaders_without_a_batch(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="fewer samples than one batch"):
        run(tmp_path, loader=TinyLoader(batches=0))

    class Empty(TinyLoader):
        def epoch(self, k: int, start: int = 0) -> Iterator[Batch]:
            return iter(())

    with pytest.raises(RunError, match="epoch 1 has no batch"):
        run(tmp_path / "empty", loader=Empty())


def test_an_epoch_with_fewer_batches_than_promised(tmp_path: Path) -> None:
    class Short(TinyLoader):
        def epoch(self, k: int, start: int = 0) -> Iterator[Batch]:
            yield from list(super().epoch(k))[start:3]

    assert run(tmp_path, loader=Short()).step == 10
    assert read_metrics(tmp_path)[-1]["epoch"] == 3


def test_errors_of_the_loader_pass_through(tmp_path: Path) -> None:
    def fail(k: int, position: int) -> None:
        if position == 2:
            raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"):
        run(tmp_path, loader=TinyLoader(hook=fail))


def test_the_run_does_not_touch_the_device_between_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []
    steps: list[int] = []
    for name in ("item", "tolist", "__bool__", "__float__", "__int__"):
        original = getattr(Tensor, name)

        def spy(tensor: Tensor, *, original: Any = original) -> object:
            # Only those of the loop: optimizers ask their own settings, the stand-ins ask nothing.
            frame = sys._getframe(1).f_globals["__name__"]
            if frame.startswith(("internvideo.training", "torch.nn.utils")):
                reads.append(len(steps))
            return original(tensor)

        monkeypatch.setattr(Tensor, name, spy)
    run(tmp_path, loader=TinyLoader(hook=lambda k, position: steps.append(1)), checkpoint_every=None, log_every=5)
    assert set(reads) == {5, 10}


def test_tensorboard_and_progress(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, tensorboard=True)
    assert list((tmp_path / "tensorboard").glob("events.out.tfevents.*"))
    assert "train: step 10/10, loss" in capfd.readouterr().err


def test_progress_bar_on_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with MetricLog(tmp_path, total_steps=4, step=1, title="masked") as log:
        log.write({"step": 2, "loss": 0.5, "clips_per_second": 3.0, "seconds": 4.0, "data_wait_s": 1.0})
        for step in (2, 3, 4):
            log.progress(step)
    shown = capsys.readouterr().err
    assert "masked" in shown
    assert "4/4" in shown
    assert "step 4/4" not in shown
    assert "loss 0.5, clips/s 3, waited for data 25%" in shown


def test_a_cut_line_and_later_lines_are_dropped_on_resume(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 2}\n{"step": 4}\n{"step": 6}\n{"ste')
    with MetricLog(tmp_path, total_steps=9, step=4, title="x") as log:
        log.write({"step": 5, "loss": float("inf")})
    assert read_metrics(tmp_path) == [{"step": 2}, {"step": 4}, {"step": 5, "loss": "inf"}]


def test_small_formats() -> None:
    assert [format_duration(0.4), format_duration(65), format_duration(3725)] == ["0:00", "1:05", "1:02:05"]
    assert json_safe({"a": [float("nan"), 1.0], "b": (float("-inf"),)}) == {"a": ["nan", 1.0], "b": ["-inf"]}


def test_checkpoints_carry_the_recipe(tmp_path: Path) -> None:
    result = run(tmp_path)
    assert "model/head.weight" in load_file(result.checkpoint)
    assert json.loads((tmp_path / "run.json").read_text())["recipe"]["loop"]["max_grad_norm"] == 1.0
