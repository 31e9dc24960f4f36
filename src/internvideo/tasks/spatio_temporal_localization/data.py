"""Clips around key frames, with the boxes of the persons in them: manifest -> RegionBatch (AlphAction).

A row of a manifest has the boxes of one key frame (AVA) or of many (`long.jsonl` of the sample world); those of one
time are one key frame. Corners are fractions of the frame until a transform turns them into pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from torch.utils.data import Dataset

from internvideo import distributed
from internvideo.data.batch import RegionBatch
from internvideo.data.dataset import Unreadable, WorkerResult
from internvideo.data.decoding.clip_decoder import ManifestClipDecoder
from internvideo.data.epoch_plan import AUGMENT, EpochPlan, random_stream
from internvideo.data.key_frame_indices import Floats, annotated_time, file_start_time
from internvideo.data.key_frame_indices import centered_positions as centered_positions
from internvideo.data.key_frame_indices import positions_before as positions_before
from internvideo.data.loader import LoaderSettings, PersistentDataLoader, check_batches, clip_decoder, epoch_plan
from internvideo.data.manifest import Manifest
from internvideo.data.sample import Sample
from internvideo.data.settings import Settings
from internvideo.data.skipped import SkippedClips
from internvideo.errors import InternVideoError, ManifestError, VideoError
from internvideo.tasks.spatio_temporal_localization.box_transforms import Boxed, BoxedTransform

MOST_BOXES = 100
"""Boxes of a training clip (AlphAction)."""

Found = TypeVar("Found")
Order = Sequence[int] | NDArray[np.int64]
Key = tuple[str, float]
Persons = Mapping[Key, Sequence[tuple[float, float, float, float, float]]]


class KeyFrameSettings(Settings):
    """How the clip around a key frame is resized and coloured."""

    short: int = Field(256, ge=8, le=8192, description="shorter side after resizing; tests see the whole frame")
    longest: int = Field(464, ge=8, le=8192, description="longer side at most")
    hue: float = Field(20.0, ge=0.0, le=180.0, description="training: largest turn, degrees")
    saturation: float = Field(0.1, ge=0.0, le=1.0, description="training: largest change, as of the value")
    around: float | None = Field(
        None, ge=1.0, description="a clip for every box: a square around it, so many of its sides wide, resized to size"
    )
    candidates: Path | None = Field(
        None,
        description="training: boxes of an object detector, JSON: tasks/spatio_temporal_localization/object_boxes.py",
    )

    def transform(self, size: int, *, flip: bool) -> BoxedTransform:
        """The transform with a training crop of `size`."""
        colour = (self.hue, self.saturation, self.saturation)
        return BoxedTransform(size, self.short, self.longest, flip, *colour, self.around)


@dataclass(frozen=True)
class KeyFrame:
    """A key frame: R boxes (R, 4) as fractions, their scores (R,), what each person does (none where not known).

    `time` (s) is that of the annotations: of a film of which the file is a part, see `seconds`. `targets` (R, K) is
    what a stage learns of each box where that is not the labels.
    """

    row: Sample
    video: str
    time: float
    boxes: Floats
    scores: Floats
    labels: tuple[tuple[int, ...], ...]
    targets: Floats | None = None

    @property
    def seconds(self) -> float:
        """The same time (s) from the start of the video file."""
        return self.time - file_start_time(self.row, self.time)


def video_name(row: Sample) -> str:
    """The name that annotation files use: the film's where a row is one key frame of it."""
    return row.group if "timestamp" in row.attributes and row.group else row.id


def frame_key(video: str, time: float) -> Key:
    """Key of a key frame in every table here."""
    return video, round(time, 3)


def key_frames(manifest: Manifest) -> list[KeyFrame]:
    """All annotated key frames, in the order of the rows and of time. Raises ManifestError where there is none."""
    found = []
    for row in manifest.rows:
        times = sorted({box.time for box in row.boxes})
        for time in times:
            boxes = [box for box in row.boxes if box.time == time]
            corners = np.asarray([(box.x1, box.y1, box.x2, box.y2) for box in boxes], dtype=np.float64)
            labels = tuple(box.labels for box in boxes)
            found.append(
                KeyFrame(row, video_name(row), annotated_time(row, time), corners, np.ones(len(boxes)), labels)
            )
    if not found:
        raise ManifestError(manifest.source, "no row has boxes", "rows with boxes of persons at key frames")
    return found


def with_persons(frames: Sequence[KeyFrame], persons: Persons, least: float) -> list[KeyFrame]:
    """The key frames with the boxes of a person detector; those without a box of score `least` are left out.

    Boxes at times that are not annotated count too, where the video is: whatever is found there is wrong.
    """
    known = {frame_key(frame.video, frame.time): frame for frame in frames}
    of_video = {frame.video: frame for frame in frames}
    found = []
    for (video, time), boxes in sorted(persons.items()):
        frame = known.get(frame_key(video, time)) or of_video.get(video)
        good = np.asarray([box for box in boxes if box[4] >= least], dtype=np.float64).reshape(-1, 5)
        if frame is not None and len(good):
            found.append(KeyFrame(frame.row, video, time, good[:, :4], good[:, 4], ((),) * len(good)))
    return found


def read_clip(reader: ManifestClipDecoder, frame: KeyFrame, form: ClipForm) -> Tensor:
    """(T, H, W, 3) uint8 around a key frame; between two frames is their weighted mean. Raises VideoError."""
    part = np.zeros(form.frames)
    positions = positions_before if form.before else centered_positions

    def choose(times: Floats) -> list[NDArray[np.int64]]:
        place = positions(times, frame, frames=form.frames, stride=form.stride)
        low = np.floor(place).astype(np.int64)
        part[:] = place - low
        return [low, np.minimum(low + 1, len(times) - 1)] if part.any() else [low]

    clips = reader.clips(frame.row, choose)
    if len(clips) == 1:
        return clips[0]
    weight = torch.from_numpy(part).float().view(-1, 1, 1, 1)
    return torch.lerp(clips[0].float(), clips[1].float(), weight).round().to(torch.uint8)


@dataclass(frozen=True)
class ClipForm:
    """How a clip is cut around a key frame and transformed: T frames every `stride`, classes of the targets.

    With `before` the key frame is the last of the clip.
    """

    frames: int
    stride: int
    transform: BoxedTransform
    classes: int
    before: bool = False


def targets_of(frame: KeyFrame, kept: Sequence[int], form: ClipForm) -> Tensor:
    """(R, K) what is learned of some boxes: the key frame's own targets, or its labels as 0 and 1."""
    if frame.targets is not None:
        return torch.from_numpy(frame.targets[list(kept)]).float()
    return _targets([frame.labels[box] for box in kept], form.classes)


def _targets(labels: Sequence[tuple[int, ...]], classes: int) -> Tensor:
    made = torch.zeros(len(labels), classes)
    for row, own in enumerate(labels):
        made[row, list(own)] = 1.0
    return made


class _Training(Dataset[WorkerResult]):
    """Batch number b of epoch k, for the key (k, b)."""

    def __init__(
        self, reader: ManifestClipDecoder, frames: Sequence[KeyFrame], plan: EpochPlan, form: ClipForm
    ) -> None:
        self.reader, self.frames, self.plan, self.form = reader, frames, plan, form

    def __getitem__(self, key: tuple[int, int]) -> WorkerResult:
        epoch, number = key
        order = self.plan.order(epoch)
        lost: list[Unreadable] = []
        try:
            parts = [self._read(epoch, place, order, lost) for place in self.plan.positions(number)]
        except InternVideoError as error:
            return WorkerResult(error=error)
        return WorkerResult(_join(parts), unreadable=tuple(lost))

    def _read(self, epoch: int, place: int, order: Order, lost: list[Unreadable]) -> RegionBatch:
        for attempt, candidate in enumerate([place, *self.plan.fallback_positions(place)]):
            index = int(order[candidate])
            frame = self.frames[index]
            try:
                clip = read_clip(self.reader, frame, self.form)
            except VideoError as error:
                lost.append(Unreadable(frame.row.id, frame.row.path, str(error)))
                continue
            rng = random_stream(AUGMENT, self.plan.seed, epoch, index, attempt)
            if self.form.transform.around is not None:
                chosen = np.sort(rng.permutation(len(frame.boxes))[:MOST_BOXES])
                corners = torch.from_numpy(frame.boxes[chosen]).float()
                pieces = self.form.transform.each(clip, corners, rng)
                return _pieces(pieces, frame, self.form, targets_of(frame, chosen.tolist(), self.form))
            made = self.form.transform.train(clip, torch.from_numpy(frame.boxes).float(), rng)
            kept = made.kept.numpy()[rng.permutation(len(made.kept))[:MOST_BOXES]]
            place_of = {int(box): row for row, box in enumerate(made.kept)}
            boxes = made.boxes[[place_of[int(box)] for box in kept]]
            return _batch(made.clip, frame, boxes, targets_of(frame, kept.tolist(), self.form))
        raise VideoError(
            self.reader.manifest.source,
            f"{len(lost)} clips in succession cannot be read, the last one because: {lost[-1].reason}",
            "",
            "check that the videos lie where the manifest says",
        )


def _batch(clip: Tensor, frame: KeyFrame, boxes: Tensor, targets: Tensor) -> RegionBatch:
    name = f"{frame.video}@{frame.time:g}"
    owner = torch.zeros(len(boxes), dtype=torch.int64)
    return RegionBatch(clip[None], (name,), clip=owner, boxes=boxes, targets=targets)


def _pieces(pieces: Sequence[Boxed], frame: KeyFrame, form: ClipForm, targets: Tensor) -> RegionBatch:
    """A clip for every box of a key frame."""
    if not pieces:
        none = torch.zeros((0, 3, form.frames, form.transform.size, form.transform.size), dtype=torch.uint8)
        return RegionBatch(none, (), clip=torch.zeros(0, dtype=torch.int64), boxes=torch.zeros(0, 4), targets=targets)
    names = (f"{frame.video}@{frame.time:g}",) * len(pieces)
    boxes = torch.cat([piece.boxes for piece in pieces])
    clips = torch.stack([piece.clip for piece in pieces])
    return RegionBatch(clips, names, clip=torch.arange(len(pieces)), boxes=boxes, targets=targets)


def _join(parts: Sequence[RegionBatch]) -> RegionBatch:
    first = np.cumsum([0, *(len(part.video) for part in parts)]).tolist()
    return RegionBatch(
        torch.cat([part.video for part in parts]),
        tuple(name for part in parts for name in part.ids),
        clip=torch.cat([part.clip + start for start, part in zip(first, parts, strict=False)]),
        boxes=torch.cat([part.boxes for part in parts]),
        targets=torch.cat([part.targets for part in parts]),
    )


class KeyFrameLoader:
    """Training batches of one rank; unreadable clips are replaced as in `Loader`.

    Args:
        manifest: rows with boxes. form: how clips are cut. settings: of the loader; repeats play no part.
        frames: key frames of these rows, where they are not those of `key_frames`.
        skipped: as for `Loader`.

    Raises:
        ManifestError: no row has boxes. RecipeError: not one batch in an epoch.
    """

    def __init__(
        self,
        manifest: Manifest,
        form: ClipForm,
        settings: LoaderSettings,
        *,
        skipped: Path | None = None,
        frames: Sequence[KeyFrame] | None = None,
    ) -> None:
        frames, self.data_time = key_frames(manifest) if frames is None else frames, 0.0
        self._plan = epoch_plan(len(frames), settings)
        check_batches(self._plan.batches, settings, len(frames), f"key frames in {manifest.source}")
        self._skipped = SkippedClips(manifest, settings.max_unreadable, skipped)
        self._source = PersistentDataLoader(
            _Training(clip_decoder(manifest, settings), frames, self._plan, form), settings
        )

    def __len__(self) -> int:
        """Batches per epoch, the same on every rank."""
        return self._plan.batches

    def epoch(self, k: int, start: int = 0) -> Iterator[RegionBatch]:
        """Batches `start`, `start + 1`, ... of epoch `k`. Raises VideoError and RunError as `Loader.epoch`."""
        for loaded in self._source.read([(k, number) for number in range(start, len(self))], self._wait):
            self._skipped.count(loaded.unreadable, k)
            yield cast(RegionBatch, loaded.batch)

    def _wait(self, seconds: float) -> None:
        self.data_time += seconds


class _Testing(Dataset[WorkerResult]):
    """The key frame of the given index, whole."""

    def __init__(self, reader: ManifestClipDecoder, frames: Sequence[KeyFrame], form: ClipForm) -> None:
        self.reader, self.frames, self.form = reader, frames, form

    def __getitem__(self, index: int) -> WorkerResult:
        frame = self.frames[index]
        try:
            clip = read_clip(self.reader, frame, self.form)
        except VideoError as error:
            return WorkerResult(unreadable=(Unreadable(frame.row.id, frame.row.path, str(error)),))
        except InternVideoError as error:
            return WorkerResult(error=error)
        targets = targets_of(frame, range(len(frame.boxes)), self.form)
        corners = torch.from_numpy(frame.boxes).float()
        if self.form.transform.around is not None:
            return WorkerResult(_pieces(self.form.transform.each(clip, corners), frame, self.form, targets), (index,))
        made = self.form.transform.whole(clip, corners)
        return WorkerResult(_batch(made.clip, frame, made.boxes, targets), (index,))


class KeyFrameViews:
    """Every key frame once over all ranks, in turn: (index, clip with its boxes), frame size as it comes.

    Args:
        manifest, frames, form, settings: as for `KeyFrameLoader`.
    """

    def __init__(
        self,
        manifest: Manifest,
        frames: Sequence[KeyFrame],
        form: ClipForm,
        settings: LoaderSettings,
    ) -> None:
        self.frames, self.form = frames, form
        self._lost: list[tuple[int, Unreadable]] = []
        self._indices = range(distributed.rank(), len(frames), distributed.world_size())
        self._source = PersistentDataLoader(_Testing(clip_decoder(manifest, settings), frames, form), settings)

    @property
    def unreadable(self) -> list[Unreadable]:
        """What of the last iteration could not be read, complete after it; of all processes once `collected`."""
        return [clip for _, clip in self._lost]

    def __iter__(self) -> Iterator[tuple[list[int], RegionBatch]]:
        """One key frame at a time."""
        self._lost = []
        for index, loaded in zip(self._indices, self._source.read(self._indices, lambda _: None), strict=True):
            self._lost += [(index, clip) for clip in loaded.unreadable]
            if loaded.batch is not None:
                yield list(loaded.views), cast(RegionBatch, loaded.batch)

    def collected(self, own: Mapping[int, Found]) -> dict[int, Found]:
        """What all processes found for their key frames, in order; each calls this once it has seen its own."""
        shares: list[tuple[dict[int, Found], list[tuple[int, Unreadable]]]] = distributed.collect(
            (dict(own), self._lost)
        )
        self._lost = sorted((lost for _, part in shares for lost in part), key=lambda lost: lost[0])
        return dict(sorted((index, value) for share, _ in shares for index, value in share.items()))
