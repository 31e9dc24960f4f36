"""Every entry of the catalog from its official annotations to its figures: what sees videos alone, or walks."""

from __future__ import annotations

from pathlib import Path

import benchmark_samples
import pytest
from benchmark_walk import LANGUAGE, WALKED, check, measured, measuring, walk

from internvideo.datasets.catalog import BENCHMARKS
from internvideo.tasks.navigation.world.episodes import NavigationSettings, write_world
from internvideo.tasks.navigation.world.house import HouseSettings
from internvideo.tasks.navigation.world.trajectories import TrajectorySettings


@pytest.mark.parity
@pytest.mark.parametrize("name", [name for name in WALKED if BENCHMARKS[name].measure.evaluation not in LANGUAGE])
def test_an_entry_is_walked_from_annotations_to_figures(name: str, tmp_path: Path) -> None:
    check(name, walk(name, tmp_path))


def test_state_change_is_walked_from_the_official_clips_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The walk above reads the COCO export of the frames."""
    official = Path(__file__).parents[1] / "annotations" / "ego4d_scod_clips"
    monkeypatch.setitem(benchmark_samples.SAMPLES, "ego4d_scod", str(official))
    walked = walk("ego4d_scod", tmp_path)
    check("ego4d_scod", walked)
    assert walked.asked == 3
    assert walked.result["figures"]["AP50_of_detector_alone"] == pytest.approx(0.5, abs=0.01), "right boxes come second"


def test_the_agent_of_r2r_ce_walks_the_embedded_world(tmp_path: Path) -> None:
    """Its own scenes need Matterport3D; in the walk above it is on a floor without end."""
    house = HouseSettings(columns=2, rows=1, smallest=5.0, largest=5.5, landmarks=2)
    ways = TrajectorySettings(shortest=2.5, longest=6.0)
    write_world(tmp_path / "w", NavigationSettings(scenes=2, episodes=6, validation=3, house=house, trajectory=ways))
    overrides = ["data.split=train", "data.world.kind=embedded", "data.world.opener=''"]
    check("r2r_ce", measured("r2r_ce", measuring("r2r_ce"), tmp_path, tmp_path / "w", None, overrides=overrides))
