"""Write the untrimmed videos that RESULTS.md measures localization on: 540 videos of 10 to 30 s, 64 px.

python scripts/long_world.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

from internvideo.sample_world.generate import WorldSettings, generate


def main() -> None:
    """Generate the videos named by the one argument's folder, or finish them."""
    settings = WorldSettings(clips=10, seed=2026, size=64, difficulty=0.15, zero_shot_clips=1, long_videos=540)
    generate(Path(sys.argv[1]), settings)


if __name__ == "__main__":
    main()
