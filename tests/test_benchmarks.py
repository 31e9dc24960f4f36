"""The benchmark for GPUs, which no machine of the suite has, runs in its small form on the CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).parents[1] / "benchmarks" / "gpu.py"


def test_the_gpu_benchmark_runs_dry(tmp_path: Path) -> None:
    words = [sys.executable, PROGRAM, "--device", "cpu", "--tiny", "--repeats", "1", "-o", tmp_path / "cpu.json"]
    subprocess.run(words, check=True, capture_output=True, timeout=120)
    found = json.loads((tmp_path / "cpu.json").read_text("utf-8"))
    assert found["masked_b"]["loss_on_device"] == found["masked_b"]["loss_on_cpu"]
    assert found["contrastive"]["chunk_None"]["kept_mib"] >= 0
    assert found["augmentation"]["share_of_pixels_more_than_2_levels_away"] == 0
    assert found["embedding_uniformerv2-b16"]["clips_per_second_float32"] > 0
