"""Features of long videos for temporal localisation: one vector a sliding window, one file a video.

Several processes may fill one folder at once: each takes the next video that nobody has taken.
"""

from __future__ import annotations

import glob
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info
from tqdm import tqdm

from internvideo import __version__
from internvideo.data.preprocessing import Preprocessing
from internvideo.errors import RecipeError, RunError, VideoError
from internvideo.features.feature_folder import INDEX, FeatureFolder, Item, Record, append_rows
from internvideo.features.feature_layers import POOLED, clip_encoder, over_tiles, tile_side
from internvideo.features.leases import Claims
from internvideo.features.parallel_windows import parallel_clips, readers_beside
from internvideo.features.read_ahead import stream_of
from internvideo.features.read_report import Coverage, Trouble
from internvideo.features.window_sampling import FrameGrid, WindowRule, frame_grid
from internvideo.features.windows import behind, open_long
from internvideo.inference.video_model import VideoModel
from internvideo.tasks.protocol import weights_hash
from internvideo.video.conversion import conversion_metadata
from internvideo.video.damage import damage_metadata
from internvideo.video.frame_folder import rate_metadata


@dataclass(frozen=True)
class ExtractSettings:
    """How videos become features.

    Attributes:
        rule: windows and rate. layer, grid: see `clip_encoder`.
        tiles: the encoder sees tiles x tiles squares of larger frames, one after another (`layers.over_tiles`).
        batch_size: windows at once; None is 16 on a GPU and 4 on a CPU, whose caches more would not fit into.
        workers: decoders: processes, and where fewer videos are left, threads of these; 0 decodes in this one.

    Raises:
        RecipeError: a number out of range.
    """

    rule: WindowRule = field(default_factory=WindowRule)
    layer: str = POOLED
    batch_size: int | None = None
    workers: int = 0
    grid: int = 1
    tiles: int = 1

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("workers", 0), ("grid", 1), ("tiles", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise RecipeError(name, str(value), f"{least} or more")


def extract(
    items: Sequence[Item],
    model: VideoModel,
    output: Path,
    settings: ExtractSettings | None = None,
    *,
    classes: tuple[str, ...] = (),
    fresh: bool = False,
    progress: bool | None = None,
) -> Coverage:
    """Write the features of videos into a folder (see `feature_folder`).

    Finished videos are kept: an interrupted run goes on, a later one reads only what is new, was changed or could not
    be read. What is in memory does not grow with the length of a video.

    Args:
        items, classes: of `find_items`.
        model: any that sees videos.
        output: the folder.
        settings: windows, layer, batches, workers.
        fresh: forget what is there.
        progress: a bar on the error stream; by default where that is a terminal.

    Raises:
        VideoError: not one video can be read. RecipeError: a setting that does not fit the model.
        RunError: the folder was begun with other settings, a full disk, numbers that are not finite.
    """
    settings = settings or ExtractSettings()
    clips = tiled_clips(model.preprocessing, settings.tiles)
    encode = over_tiles(clip_encoder(model, settings.layer, settings.grid), model.preprocessing.size, settings.tiles)
    folder = FeatureFolder(output)
    folder.begin(protocol_of(model, settings), classes, fresh=fresh)
    if settings.batch_size is None:
        settings = replace(settings, batch_size=4 if model.device.type == "cpu" else 16)
    run = _Run(items, clips, encode, settings, folder)
    run.beside = readers_beside(model.device.type)
    try:
        run.go(progress)
    finally:  # also when it was interrupted
        run.leave()
        with run.claims.alone(INDEX):
            folder.write_index(items)
    return run.told()


def tiled_clips(clips: Preprocessing, tiles: int) -> Preprocessing:
    """The same for frames that tiles x tiles squares of the encoder's size cover. RecipeError for an odd size."""
    if tiles == 1:
        return clips
    if clips.size % 2:
        raise RecipeError("tiles", f"{tiles} of {clips.size} pixels", "an encoder of an even size")
    larger = {name: getattr(clips, name) for name in ("size", "resize", "short_side")}
    return clips.changed(**{name: tile_side(side, tiles) if side else side for name, side in larger.items()})


def protocol_of(model: VideoModel, settings: ExtractSettings) -> dict[str, Any]:
    """How features were made, as plain values."""
    config = model.config
    # Told where there are several: folders begun before there were any go on.
    cells = {name: count for name in ("grid", "tiles") if (count := getattr(settings, name)) > 1}
    return {
        "model": model.name,
        "weights_sha256": model.metadata.get("weights_sha256") or weights_hash(model.module),
        "source": model.metadata.get("source", ""),
        "overrides": config["overrides"],
        "preprocessing": config["preprocessing"],
        "precision": model.precision,
        "layer": settings.layer,
        **cells,
        **asdict(settings.rule),
        **damage_metadata(),
        **conversion_metadata(),
        **rate_metadata(),
        "internvideo": __version__,
    }


def plan(items: Sequence[Item], output: Path, rule: WindowRule, *, fresh: bool = False) -> Iterator[str]:
    """What `extract` would do, a line a video and a sum; no model is needed, nothing is decoded."""
    folder = FeatureFolder(output)
    counts, vectors, seconds = {"read": 0, "done": 0, "unreadable": 0}, 0, 0.0
    for item in items:
        try:
            record = None if fresh else folder.record(item.id)
            if record is not None and record.vectors and record.identity == item.video.identity():
                counts["done"] += 1
                yield f"done: {item.video.path}"
                continue
            with open_long(item.video.path, fps=item.video.fps) as video:
                grid = frame_grid(video.info, rule, item.video.start, item.video.end)
        except VideoError as error:
            counts["unreadable"] += 1
            yield f"unreadable: {error}"
            continue
        counts["read"] += 1
        vectors, seconds = vectors + len(grid.starts), seconds + grid.duration
        where = f"{item.id}.npy: {len(grid.starts)} vectors of {grid.duration:.1f} s at {grid.fps:g} fps"
        yield f"read: {item.video.path} -> {where}"
    told = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    yield f"{told}; {vectors} vectors from {seconds / 3600:.2f} h of video to be made"


class _Piece(NamedTuple):
    """A window of video `number`; or (clip None) its end, or that somebody else has it.

    `share` of the video is behind us, 0..1, `seconds` of it since the window before.
    """

    number: int
    clip: Tensor | None
    share: float
    seconds: float = 0.0
    grid: tuple[float, int, float] | None = None  # fps, frames, duration
    trouble: str = ""
    taken: bool = True
    identity: str = ""  # of the file before it was opened: what was written into it meanwhile is read next time
    gaps: tuple[tuple[float, float], ...] = ()
    marks: tuple[str, ...] = ()


class _Reader(IterableDataset[_Piece]):
    """Windows of videos; each worker takes the next video that nobody has taken."""

    def __init__(
        self,
        items: Sequence[Item],
        numbers: list[int],
        clips: Preprocessing,
        rule: WindowRule,
        folder: FeatureFolder,
        claims: Claims,
    ) -> None:
        self.items, self.numbers, self.clips, self.rule = items, numbers, clips, rule
        self.folder, self.claims, self.began, self.readers = folder, claims, time.time(), 1

    def __iter__(self) -> Iterator[_Piece]:
        worker = get_worker_info()
        for number in self.numbers if worker is None else self.numbers[worker.id :: worker.num_workers]:
            item = self.items[number]
            if not self.claims.take(item.id):
                yield _Piece(number, None, 1.0, taken=False)
            elif is_done(self.folder.record(item.id), item, self.began):
                self.claims.give_back(item.id)
                yield _Piece(number, None, 1.0, taken=False)
            else:
                yield from self._read(number)

    def _read(self, number: int) -> Iterator[_Piece]:
        video = self.items[number].video
        grid: FrameGrid | None = None
        trouble = identity = ""
        gaps: tuple[tuple[float, float], ...] = ()
        marks: tuple[str, ...] = ()
        try:
            identity = video.identity()
            with open_long(video.path, self.clips.short_side, fps=video.fps) as opened:
                marks = opened.info.properties
                grid = frame_grid(opened.info, self.rule, video.start, video.end)
                chosen = grid.chosen(self.clips.frames)
                each = grid.duration / len(chosen)
                for turn, clip in enumerate(parallel_clips(opened, self.clips, chosen, self.readers), 1):
                    yield _Piece(number, clip, turn / len(chosen), each)
                trouble = opened.damage_report or behind(opened.info, video.end)
                begin = video.start or 0.0
                parts = np.clip(np.array(opened.gaps).reshape(-1, 2) - begin, 0.0, grid.duration)
                gaps = tuple((start, end) for start, end in parts.tolist() if end > start)
        except VideoError as error:
            trouble = str(error).removeprefix(f"{video.path}: ")
        about = (0.0, 0, 0.0) if grid is None else (grid.fps, len(grid.numbers), grid.duration)
        yield _Piece(number, None, 1.0, 0.0, about, trouble, identity=identity, gaps=gaps, marks=marks)


def is_done(record: Record | None, item: Item, began: float) -> bool:
    """Whether nothing is left to do for a video; what could not be read is tried again by a run that begins later."""
    if record is None or (not record.vectors and record.at < began):
        return False
    try:
        return record.identity == item.video.identity()
    except VideoError:
        return not record.vectors


@dataclass
class _Open:
    """A video on its way: windows given, vectors written, and the last piece once it has come."""

    rows: Path
    given: int = 0
    written: int = 0
    share: float = 0.0
    last: _Piece | None = None


class _Run:
    """The videos that are still to be read, batch by batch."""

    def __init__(
        self, items: Sequence[Item], clips: Preprocessing, encode: Any, settings: ExtractSettings, folder: FeatureFolder
    ) -> None:
        self.items, self.clips, self.encode, self.settings, self.folder = items, clips, encode, settings, folder
        self.claims, self.began = Claims(folder.work), time.time()
        self.open: dict[int, _Open] = {}
        self.batch: list[_Piece] = []
        self.found = Coverage(len(items))
        self.mine: set[int] = set()
        self.beside = 1  # readers of a video where no worker decodes

    def _waiting(self) -> list[int]:
        """Videos that are not done and that nobody is reading."""
        left = []
        for number, item in enumerate(self.items):
            done = is_done(self.folder.record(item.id), item, self.began)
            if number not in self.mine and not done and not self.claims.busy(item.id):
                left.append(number)
        return left

    def go(self, progress: bool | None) -> None:
        """Read, encode and keep all that is left for us."""
        began = time.perf_counter()
        numbers = self._waiting()
        before = {n for n, item in enumerate(self.items) if is_done(self.folder.record(item.id), item, self.began)}
        self.found.earlier = len(before)
        form = "{l_bar}{bar}| {n:.1f}/{total} videos{postfix}, {remaining} left"
        disable = None if progress is None else not progress
        count = len(numbers)
        with tqdm(total=count, bar_format=form, postfix="", disable=disable) as bar:
            while numbers:  # a second round where a process has left a video behind meanwhile
                workers = min(self.settings.workers, len(numbers))
                reader = _Reader(self.items, numbers, self.clips, self.settings.rule, self.folder, self.claims)
                reader.began = self.began
                reader.readers = self.settings.workers // workers if workers else self.beside
                for piece in stream_of(reader, workers):
                    bar.update(self._take(piece))
                    self.found.seconds = time.perf_counter() - began
                    bar.set_postfix_str(f"{self.found.speed:.1f}x real time", refresh=False)
                self._encode()
                numbers = self._waiting()
            bar.update(round(count - bar.n, 6))
        self.found.seconds = time.perf_counter() - began
        self.found.elsewhere = len(self.items) - len(before | self.mine)

    def _take(self, piece: _Piece) -> float:
        """One piece; returns how much of a video it is."""
        if not piece.taken:
            return 1.0
        item = self.items[piece.number]
        if piece.number not in self.open:
            self.mine.add(piece.number)
            for rows in self.folder.work.glob(f"{glob.escape(item.id)}.*.rows"):  # of processes that were killed
                rows.unlink(missing_ok=True)
            self.open[piece.number] = _Open(self.folder.work / f"{item.id}.{os.getpid()}.rows")
        state = self.open[piece.number]
        gone, state.share = piece.share - state.share, piece.share
        if piece.clip is None:
            state.last = piece
            self._settle(piece.number)
            return gone
        state.given += 1
        self.found.video_seconds += piece.seconds
        self.batch.append(piece)
        if len(self.batch) == self.settings.batch_size:
            self._encode()
        return gone

    def _encode(self) -> None:
        if not self.batch:
            return
        values = self.encode(torch.stack([piece.clip for piece in self.batch if piece.clip is not None]))
        finite = values.isfinite().all(dim=1)
        if not finite.all():
            piece = self.batch[int(finite.int().argmin())]
            path = self.items[piece.number].video.path
            raise RunError(path, "a feature is not finite", "", "try precision float32, or check the weights")
        self.found.width = values.shape[1]
        numbers, self.batch = [piece.number for piece in self.batch], []
        for number in dict.fromkeys(numbers):
            state = self.open[number]
            rows = values[[at for at, other in enumerate(numbers) if other == number]]
            append_rows(state.rows, rows.numpy())
            state.written += len(rows)
        for number in [*self.open]:
            self.claims.renew(self.items[number].id)
            self._settle(number)

    def _settle(self, number: int) -> None:
        """Keep a video once it has ended and all of it is encoded."""
        state, item = self.open[number], self.items[number]
        if state.last is None or state.written < state.given:
            return
        del self.open[number]
        fps, frames, duration = state.last.grid or (0.0, 0, 0.0)
        record = Record(
            state.last.identity,
            item.video.path,
            state.written,
            self.found.width if state.written else 0,
            fps,
            frames,
            duration,
            state.last.trouble or ("" if state.written else "no frame"),
            self.began,
            state.last.gaps if state.written else (),
            state.last.marks if state.written else (),
        )
        self.folder.keep(item.id, record, state.rows if state.written else None)
        state.rows.unlink(missing_ok=True)
        self.claims.give_back(item.id)
        self.found.read += bool(state.written)
        self.found.vectors += state.written

    def leave(self) -> None:
        """Give back what was not finished."""
        for number, state in self.open.items():
            state.rows.unlink(missing_ok=True)
            self.claims.give_back(self.items[number].id)
        for item in self.items:  # what a worker took and had not told of
            self.claims.give_back(item.id)

    def told(self) -> Coverage:
        """The coverage. Raises VideoError when not one video has features."""
        found, whole = self.found, 0
        for item in self.items:
            record = self.folder.record(item.id)
            if record is None:
                continue
            whole += bool(record.vectors)
            found.width = found.width or record.width
            if record.trouble:
                kind = found.partly if record.vectors else found.unreadable
                kind.append(Trouble(record.path, record.trouble, item.id))
        if not whole and found.unreadable:
            found.refuse()
        return found
