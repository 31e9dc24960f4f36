"""Every command that fills a folder has it for itself (`storage.folder_lock`)."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import small_apps
from goldens_folder import SAMPLES
from test_run_folder import second

from internvideo.datasets.prepare import prepare
from internvideo.errors import RunError
from internvideo.evaluation import evaluate_task
from internvideo.features.embedding import embed
from internvideo.features.video_files import find_videos
from internvideo.probing.fit import fit
from internvideo.sample_world.ego4d import generate_reaches
from internvideo.sample_world.generate import WorldSettings, generate
from internvideo.tasks.navigation.world.episodes import NavigationSettings, write_world


def held(folder: Path, act: Callable[[], object]) -> None:
    """Somebody else writes a folder; another writer is told, in one line, and changes nothing."""
    other = second(folder, wait=True)
    assert other.told() == "mine"
    before = sorted(folder.iterdir())
    with pytest.raises(RunError, match=rf"process {other.pid} of .* writes there") as caught:
        act()
    assert "\n" not in str(caught.value)
    assert sorted(folder.iterdir()) == before
    os.kill(other.pid, signal.SIGKILL)


def test_folders_of_data_have_one_writer(tmp_path: Path) -> None:
    world = WorldSettings(clips=10)
    held(tmp_path / "world", lambda: generate(tmp_path / "world", world, workers=1, progress=False))
    held(tmp_path / "reach" / "ego", lambda: generate_reaches(tmp_path / "reach", world, 1, workers=1, progress=False))
    held(tmp_path / "houses", lambda: write_world(tmp_path / "houses", NavigationSettings()))
    kinetics = SAMPLES / "tasks" / "annotations" / "kinetics400"
    held(tmp_path / "rows", lambda: prepare("kinetics400", kinetics, tmp_path / "rows"))


def test_folders_of_results_have_one_writer(tmp_path: Path) -> None:
    model, videos = small_apps.random_model("supervised"), find_videos(small_apps.clips())
    held(tmp_path / "v.npy.parts", lambda: embed(videos, model, tmp_path / "v.npy", progress=False))
    held(tmp_path / "fit", lambda: fit(small_apps.small_world.world(), model, tmp_path / "fit"))
    weights, manifest, cpu = small_apps.trained(), small_apps.small_world.world(), {"device": "cpu"}
    held(tmp_path / "eval", lambda: evaluate_task("recognition", weights, manifest, tmp_path / "eval", cpu))
