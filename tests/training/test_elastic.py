"""torchrun with machines that come and go: one is killed, the other goes on alone with the losses of one process."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from small_world import small_recipe

from internvideo.pipeline import run_recipe
from internvideo.recipe import read_recipe

STEPS = 150


def losses(run: Path) -> dict[int, float]:
    """Step -> loss of the steps that are logged; after a resume the later line counts."""
    lines = (run / "metrics.jsonl").read_text().splitlines() if (run / "metrics.jsonl").is_file() else []
    read = [json.loads(line) for line in lines if line.endswith("}")]
    return {line["step"]: line["loss"] for line in read if "loss" in line}


def agent(port: int, recipe: Path, run: Path) -> subprocess.Popen[bytes]:
    """torchrun as on one of at most two machines, in a process group of its own; docs/scale.md has the command."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "1:2", "--max-restarts", "3"]
    meeting = ["--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{port}"]
    conf = ["--rdzv-conf", "last_call_timeout=20,keep_alive_interval=1,keep_alive_max_attempt=3"]
    train = ["-m", "internvideo", "train", str(recipe), "-o", str(run), "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        [*torchrun, *meeting, *conf, *train],
        env=environment,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def is_open(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("localhost", port)) == 0


def wait_until(condition: Callable[[], bool], *agents: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < deadline
        for process in agents:
            assert process.poll() is None, process.stderr.read() if process.stderr else b""
        time.sleep(0.1)


def kill(torchrun: subprocess.Popen[bytes]) -> None:
    """Kill an agent and its worker, which has a session of its own."""
    listed = subprocess.run(["pgrep", "-P", str(torchrun.pid)], capture_output=True, check=False).stdout
    for process in (torchrun.pid, *map(int, listed.split())):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


@pytest.mark.slow
def test_a_machine_that_is_lost_costs_a_restart_and_no_step(tmp_path: Path) -> None:
    loop = {"global_batch_size": 8, "log_every": 1, "checkpoint_every": 1, "timeout_s": 20.0}
    small = small_recipe("masked", loop=loop, loader={"batch_size": 4}, schedule={"steps": STEPS, "epochs": None})
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(small))
    alone = tmp_path / "alone"
    run_recipe(read_recipe(str(tmp_path / "recipe.yaml"), []), alone, device="cpu")
    with socket.create_server(("localhost", 0)) as free:
        port = free.getsockname()[1]
    run = tmp_path / "run"
    first = agent(port, tmp_path / "recipe.yaml", run)
    wait_until(lambda: is_open(port), first)  # the machine of the endpoint is the one that must stay
    second = agent(port, tmp_path / "recipe.yaml", run)
    try:
        wait_until(lambda: max(losses(run), default=0) >= 5, first, second)
        kill(second)
        _, told = first.communicate(timeout=240)
        assert first.returncode == 0, told.decode()
    finally:
        for process in (first, second):
            kill(process)
            process.communicate()
    found, expected = losses(run), losses(alone)
    assert sorted(found) == sorted(expected) == list(range(1, STEPS + 1))
    assert found == pytest.approx(expected, abs=1e-4)
