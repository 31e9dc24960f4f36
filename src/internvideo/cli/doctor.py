"""`internvideo doctor`: check the installation and measure the decoding speed."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from internvideo.cli.options import Json
from internvideo.terminal import tell


def doctor(
    seconds: Annotated[float, typer.Option(min=0.0, help="How long each decoding speed is measured.")] = 1.0,
    as_json: Json = False,
) -> None:
    """Show versions, device, memory, threads, decoding speed, disk and extras, with a line of advice for each.

    Ends with code 2 when something that is needed does not work.
    """
    from internvideo.apps.doctor import examine

    broken = False
    for check in examine(seconds):
        tell(asdict(check), check.line())
        broken = broken or check.state == "broken"
    if broken:
        raise typer.Exit(2)
