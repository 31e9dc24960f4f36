"""Recipe settings of an agent's world."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from internvideo.data.settings import Settings


class WorldSettings(Settings):
    """World and views of an agent."""

    kind: Literal["embedded", "miniworld", "habitat"] = Field(
        "embedded", description="habitat needs habitat-sim and Matterport3D"
    )
    opener: str = Field(
        "", description="habitat: MODULE:FUNCTION that opens a scene, see tasks/navigation/world/habitat.py"
    )
    scenes: Path | None = Field(None, description="folder of the scenes; by default that of the episodes")
    words: int = Field(80, ge=4, description="largest number of words of an instruction; more are cut off")


class PanoramaSettings(WorldSettings):
    """World and views, with panoramas of random walks for training."""

    panoramas: int = Field(600, ge=1, description="number of panoramas to learn from")
    clips: int = Field(2, ge=1, le=12, description="number of views of a panorama that are also rendered as clips")
    walk: int = Field(4, ge=1, description="largest number of panoramas of one random walk")
