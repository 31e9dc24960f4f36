"""`internvideo navigation-world`: generate houses, instructions and the shortest paths that they describe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from internvideo.cli.options import Json
from internvideo.terminal import tell


def navigation_world(
    output: Annotated[Path, typer.Argument(help="Where to write the houses and episodes.")],
    scenes: Annotated[int, typer.Option(min=2, help="Houses; a quarter of them only for val_unseen.")] = 20,
    episodes: Annotated[int, typer.Option(min=1, help="Instructions of train.")] = 1000,
    validation: Annotated[int, typer.Option(min=1, help="Instructions of val_seen and of val_unseen.")] = 300,
    seed: Annotated[int, typer.Option(min=0, help="One seed gives identical files.")] = 0,
    by_motion: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of goals told from a twin by how they move, where there are.")
    ] = 0.4,
    picture: Annotated[Path | None, typer.Option(help="Also draw some of val_unseen from above, an .svg file.")] = None,
    as_json: Json = False,
) -> None:
    """Write houses and R2R-CE's files of episodes: train, val_seen (the same houses) and val_unseen (others)."""
    from internvideo.extras import require
    from internvideo.tasks.navigation.world.episodes import NavigationSettings, write_world
    from internvideo.tasks.navigation.world.trajectories import TrajectorySettings

    if picture is not None:
        require("plots", "--picture")
    settings = NavigationSettings(
        scenes=scenes, episodes=episodes, validation=validation, seed=seed,
        trajectory=TrajectorySettings(by_motion=by_motion),
    )  # fmt: skip
    made = dict(write_world(output, settings))
    if picture is not None:
        from internvideo.storage import write_text
        from internvideo.tasks.navigation.plots import plot_episodes
        from internvideo.tasks.navigation.world.episodes import read_episodes

        shown = read_episodes(output, "val_unseen")[:: max(1, validation // 4)][:4]
        write_text(picture, plot_episodes(output, shown))
        made["picture"] = picture
    tell(made, *(f"{name}: {path}" for name, path in made.items()))
