"""`internvideo search` and `internvideo serve`: find the moments of a collection that fit a text, picture or clip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from internvideo.cli.options import Device, Json, clock
from internvideo.terminal import say, say_json, tell

if TYPE_CHECKING:
    from internvideo.search.finding import Answer, Moment, NeighborPair


def search(
    collection: Annotated[Path, typer.Argument(help="A folder written by `internvideo index`.")],
    text: Annotated[
        str, typer.Argument(help="What to look for; optional with --like, combined with it if given.")
    ] = "",
    like: Annotated[
        list[str] | None,
        typer.Option(help="A picture or clip to look for: FILE, or FILE@TIME of a video; combined with a text."),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Number of moments.")] = 10,
    where: Annotated[
        str | None, typer.Option(help='Filter, such as: folder ~ "beach" and duration > 60 and label = "waving".')
    ] = None,
    threshold: Annotated[
        str | None,
        typer.Option(
            help="Only moments whose p-value (rate of false matches of queries without a match) is at most this: 1%."
        ),
    ] = None,
    template: Annotated[
        list[str] | None, typer.Option(help='Sentence with one {}, such as "a video of {}"; several are averaged.')
    ] = None,
    rerank: Annotated[
        int, typer.Option(min=0, max=100, help="Rerank the top N moments by the model's caption decoder.")
    ] = 0,
    duplicates: Annotated[
        bool, typer.Option("--duplicates", help="Instead of a query: videos with windows that look alike.")
    ] = False,
    odd: Annotated[
        bool, typer.Option("--odd", help="Instead of a query: windows unlike those of all other videos.")
    ] = False,
    as_json: Json = False,
    save_top: Annotated[int, typer.Option(min=0, help="Write the first N moments as video files.")] = 0,
    export: Annotated[
        Path | None, typer.Option(help="Write the moments: NAME.csv, NAME.json, or NAME.edl for editing programs.")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for --save-top.")] = Path("moments"),
    encoder: Annotated[
        str | None, typer.Option("--encoder", "-e", help="The collection's model, if it is not where it was.")
    ] = None,
    device: Device = "auto",
) -> None:
    """Find moments, best first: where they are, and how often a query that nothing fits scores as high."""
    from internvideo.inference.loading import load
    from internvideo.search.calibration import parse_level
    from internvideo.search.collection import Collection
    from internvideo.search.export import check_list, save_clips, write_list
    from internvideo.search.query import TEMPLATES, parse_example

    if export is not None:
        check_list(export)
    level = None if threshold is None else parse_level(threshold)
    model = None if encoder is None else load(encoder, device=device)
    with Collection.open(collection, model, device=device) as opened:
        if duplicates or odd:
            pairs = opened.near_duplicates(where=where) if duplicates else opened.odd_windows(top=top, where=where)
            _tell_pairs(pairs[:top] if odd else pairs, "looks like" if duplicates else "nearest is")
            return
        examples = [parse_example(part) for part in like or ()]
        answer = opened.search(
            text, like=examples, top=top, where=where, threshold=level, templates=template or TEMPLATES, rerank=rerank
        )
        if as_json:
            say_json(answer.to_json())
        elif answer.nothing_fits:
            _say_nothing(answer, level)
        else:
            for moment in answer.moments:
                say(_line(moment))
        if export is not None:
            write_list(export, answer.moments, text)
            say(f"list: {export}")
        for path in save_clips(answer.moments[:save_top], output):
            say(f"clip: {path}")


def serve(
    collection: Annotated[Path, typer.Argument(help="A folder written by `internvideo index`.")],
    host: Annotated[
        str, typer.Option(help="Address to listen on; other than this machine's own it needs a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 for any free one.")] = 8808,
    token: Annotated[
        str | None,
        typer.Option(envvar="INTERNVIDEO_TOKEN", help="Secret that requests must carry; generated if required."),
    ] = None,
    mcp: Annotated[bool, typer.Option("--mcp", help="Serve MCP tools on stdin and stdout instead of a page.")] = False,
    encoder: Annotated[
        str | None, typer.Option("--encoder", "-e", help="The collection's model, if it is not where it was.")
    ] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Serve the search page and its HTTP API, or MCP tools; needs `pip install 'internvideo[search]'`."""
    from internvideo.extras import require
    from internvideo.inference.loading import load
    from internvideo.search.collection import Collection

    require("search", "internvideo serve")
    model = None if encoder is None else load(encoder, device=device)
    with Collection.open(collection, model, device=device) as opened:
        _ = opened.model  # loaded, or refused, before the server listens
        if mcp:
            from internvideo.search.mcp import serve_stdio

            serve_stdio(opened)
            return
        from internvideo.search.server import run_server

        def started(address: str) -> None:
            tell({"address": address}, f"open {address}")

        run_server(opened, host=host, port=port, token=token, started=started)


def _line(moment: Moment) -> str:
    chance = "" if moment.p_value is None else f"  p = {moment.p_value:.3g}"
    labels = f"  [{', '.join(moment.labels[:3])}]" if moment.labels else ""
    actions = ", ".join(f"{one.label} {clock(one.start, one.end)}" for one in moment.actions[:3])
    shown = f"  actions: {actions}" if actions else ""
    return f"{clock(moment.start, moment.end)}  {moment.score:.3f}{chance}  {moment.path}{labels}{shown}"


def _say_nothing(answer: Answer, level: float | None) -> None:
    if not answer.nearest:
        say("nothing to search: no window passes the filter" if answer.windows == 0 else "nothing found")
        return
    say(f"nothing fits at {level:.3g}; the nearest:" if level is None else f"nothing fits at {level:.2%}; the nearest:")
    for moment in answer.nearest:
        say(_line(moment))


def _tell_pairs(pairs: Sequence[NeighborPair], verb: str) -> None:
    if not pairs:
        say("none found")
    for pair in pairs:
        (one, *span), (other, *other_span) = pair.one, pair.other
        tell(asdict(pair), f"{pair.score:.3f}  {clock(*span)} {one}  {verb}  {clock(*other_span)} {other}")
