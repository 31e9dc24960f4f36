"""Two gloo processes against one with the joined batch: losses, gradients, weights; gathering; resume."""

from __future__ import annotations

from pathlib import Path

import forked
import pytest
import torch
from safetensors.torch import load_file
from training_stand_ins import TinyLoader, TinyStage, contrastive, join, lost, private, run

from internvideo import distributed
from internvideo.errors import RunError
from internvideo.training import checkpoint
from internvideo.training.logging import read_metrics


@pytest.fixture(scope="module")
def joined(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes leave behind (training_stand_ins.join)."""
    folder = tmp_path_factory.mktemp("joined")
    forked.two(join, folder)
    return folder


@pytest.mark.parametrize("grad_accum_steps", [1, 2])
def test_two_processes_equal_one_with_the_joined_batch(joined: Path, tmp_path: Path, grad_accum_steps: int) -> None:
    folder = joined / f"two{grad_accum_steps}"
    one = run(
        tmp_path, TinyStage(random=False, contrastive=True), TinyLoader(clips=4), grad_accum_steps=grad_accum_steps
    )
    path = checkpoint.newest(folder)
    assert path is not None
    two = load_file(path)
    assert two["history/losses"].tolist() == pytest.approx(one.losses, abs=1e-5)
    for name, tensor in load_file(one.checkpoint).items():
        if not name.startswith("random"):
            assert torch.allclose(two[name], tensor, atol=1e-5), name
    assert {name.split("/")[1] for name in two if name.startswith("random/")} == {"0", "1"}
    norms = [[line["gradient_norm"] for line in read_metrics(which)] for which in (tmp_path, folder)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)
    with pytest.raises(RunError, match="written by 2 processes, now there are 1"):
        run(folder, TinyStage(random=False, contrastive=True), TinyLoader(clips=4), grad_accum_steps=grad_accum_steps)


def test_gathering(joined: Path) -> None:
    features = [torch.load(joined / f"{number}.pt") for number in range(2)]
    generator = torch.Generator().manual_seed(0)
    # Process 0 has three rows and process 1 has two.
    whole = torch.randn(5, 4, generator=generator, requires_grad=True)
    loss = (whole @ whole.t()).logsumexp(1).sum()
    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it so
    assert whole.grad is not None
    for saved in features:
        assert saved["loss"] == pytest.approx(loss.item(), rel=1e-6)
        assert torch.equal(saved["gathered"], whole.detach())
        assert saved["any"] == [True, False]
        assert saved["error"] == "run: from process 1"
    # Each process computed the whole loss: the sum of its two copies, halved by the average over processes.
    gradients = torch.cat([saved["gradient"] for saved in features]) / 2
    assert torch.allclose(gradients, whole.grad, atol=1e-6)


def test_half_precision_travels_as_float32(joined: Path) -> None:
    saved = torch.load(joined / "1.pt")
    assert saved["half"].dtype == torch.float32
    assert torch.equal(saved["half"], saved["gathered"].bfloat16().float())


def test_contrastive_losses_of_two_processes_are_those_of_one(joined: Path) -> None:
    """Every process holds rows of its own pairs alone, and has the loss and gradients of the joined batch."""
    saved = [torch.load(joined / f"{number}.pt")["contrastive"] for number in range(2)]
    for one, first, second in zip(contrastive(), *saved, strict=True):
        tight = {"rtol": 1e-12, "atol": 1e-12} if one[0].dtype == torch.float64 else {"rtol": 1e-6, "atol": 1e-6}
        for value in (first[0], second[0]):
            torch.testing.assert_close(value, one[0], **tight)
        # DistributedDataParallel averages over the processes.
        features = [torch.cat([first[place], second[place]]) / 2 for place in (1, 2)]
        for found, expected in zip([*features, (first[3] + second[3]) / 2], one[1:], strict=True):
            torch.testing.assert_close(found, expected, **tight)


def test_a_lost_process_is_one_line_on_the_others() -> None:
    processes = forked.meeting(lost)
    assert [process.told() for process in processes] == ["joined"] * 2
    told = processes[0].told()
    assert "process 0 lost another one" in told
    assert "start the same command again" in told
    assert "\n" not in told


def test_folders_that_are_not_shared_are_refused(tmp_path: Path) -> None:
    for told in forked.two(private, tmp_path):
        assert "exists for process 0, but not for process 1" in told


def test_stopped_and_resumed_in_two_processes(joined: Path) -> None:
    # The signal came to process 1 alone, both stopped at the same step.
    for number in range(2):
        assert "stopped at step 6 of 10" in (joined / f"{number}.txt").read_text()
    paths = [checkpoint.newest(joined / name) for name in ("straight", "parts")]
    left, right = (load_file(path) for path in paths if path is not None)
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert tensor.numpy().tobytes() == right[name].numpy().tobytes(), name


def test_a_single_process_is_the_identity() -> None:
    tensor = torch.ones(2, requires_grad=True)
    assert distributed.gather_with_gradient(tensor) is tensor
    assert (distributed.world_size(), distributed.rank()) == (1, 0)
    assert distributed.any_process(True)
    assert distributed.all_gather_objects("x") == ["x"]
    assert distributed.sum_over_processes(2.0) == 2.0
    with pytest.raises(RunError):
        distributed.raise_on_all_ranks(RunError("run", "bad"))
