"""Load clips around key frames with the boxes of the persons in them: manifest -> RegionBatch (AlphAction).

A row of a manifest has the boxes of one key frame (AVA) or of many (`long.jsonl` of the sample world); boxes of one
time belong to one key frame. Corners are fractions of the frame until a transform converts them to pixels.
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

MAX_BOXES = 100
"""Maximum number of boxes of a training clip (AlphAction)."""

Output = TypeVar("Output")
Order = Sequence[int] | NDArray[np.int64]
Key = tuple[str, float]
Persons = Mapping[Key, Sequence[tuple[float, float, float, float, float]]]


class KeyFrameSettings(Settings):
    """Settings of the clips around key frames: resizing, color jitter, candidate boxes."""

    short: int = Field(256, ge=8, le=8192, description="shorter side after resizing; in tests the whole frame is used")
    longest: int = Field(464, ge=8, le=8192, description="maximum of the longer side")
    hue: float = Field(20.0, ge=0.0, le=180.0, description="training: maximum change of hue, degrees")
    saturation: float = Field(0.1, ge=0.0, le=1.0, description="training: maximum change of saturation and of value")
    around: float | None = Field(
        None, ge=1.0, description="one clip per box: a square of this many box sides around it, resized to size"
    )
    candidates: Path | None = Field(
        None,
        description="training: JSON of an object detector's boxes (tasks/spatio_temporal_localization/object_boxes.py)",
    )

    def transform(self, size: int, *, flip: bool) -> BoxedTransform:
        """Return the transform with a training crop of `size` pixels."""
        color = (self.hue, self.saturation, self.saturation)
        return BoxedTransform(size, self.short, self.longest, flip, *color, self.around)


@dataclass(frozen=True)
class KeyFrame:
    """A key frame with R boxes: corners (R, 4) as fractions, scores (R,), class indices per box (() if unknown).

    `time` (s) is that of the annotations, which may refer to a movie of which the file is a part; see `seconds`.
    `targets` (R, K) are training targets that replace the labels.
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
        """The time (s) from the start of the video file."""
        return self.time - file_start_time(self.row, self.time)


def video_name(row: Sample) -> str:
    """Return the video's name in annotation files: that of the movie if the row is one of its key frames."""
    return row.group if "timestamp" in row.attributes and row.group else row.id


def frame_key(video: str, time: float) -> Key:
    """Return the dictionary key of a key frame."""
    return video, round(time, 3)


def key_frames(manifest: Manifest) -> list[KeyFrame]:
    """Return all annotated key frames, ordered by row and time. Raises ManifestError: there are none."""
    frames = []
    for row in manifest.rows:
        times = sorted({box.time for box in row.boxes})
        for time in times:
            boxes = [box for box in row.boxes if box.time == time]
            corners = np.asarray([(box.x1, box.y1, box.x2, box.y2) for box in boxes], dtype=np.float64)
            labels = tuple(box.labels for box in boxes)
            frames.append(
                KeyFrame(row, video_name(row), annotated_time(row, time), corners, np.ones(len(boxes)), labels)
            )
    if not frames:
        raise ManifestError(manifest.source, "no row has boxes", "rows with boxes of persons at key frames")
    return frames


def with_persons(frames: Sequence[KeyFrame], persons: Persons, min_score: float) -> list[KeyFrame]:
    """Return key frames with the boxes of a person detector of at least `min_score`, without those that have none.

    Boxes at other times of the same videos are included: predictions for them are false positives.
    """
    frame_of_key = {frame_key(frame.video, frame.time): frame for frame in frames}
    frame_of_video = {frame.video: frame for frame in frames}
    detected = []
    for (video, time), boxes in sorted(persons.items()):
        frame = frame_of_key.get(frame_key(video, time)) or frame_of_video.get(video)
        kept = np.asarray([box for box in boxes if box[4] >= min_score], dtype=np.float64).reshape(-1, 5)
        if frame is not None and len(kept):
            detected.append(KeyFrame(frame.row, video, time, kept[:, :4], kept[:, 4], ((),) * len(kept)))
    return detected


def read_clip(reader: ManifestClipDecoder, frame: KeyFrame, form: ClipForm) -> Tensor:
    """Decode (T, H, W, 3) uint8 around a key frame, interpolated between two frames. Raises VideoError."""
    fraction = np.zeros(form.frames)
    positions = positions_before if form.before else centered_positions

    def sample(times: Floats) -> list[NDArray[np.int64]]:
        position = positions(times, frame, frames=form.frames, stride=form.stride)
        low = np.floor(position).astype(np.int64)
        fraction[:] = position - low
        return [low, np.minimum(low + 1, len(times) - 1)] if fraction.any() else [low]

    clips = reader.clips(frame.row, sample)
    if len(clips) == 1:
        return clips[0]
    weight = torch.from_numpy(fraction).float().view(-1, 1, 1, 1)
    return torch.lerp(clips[0].float(), clips[1].float(), weight).round().to(torch.uint8)


@dataclass(frozen=True)
class ClipForm:
    """How clips are made around a key frame: T frames at `stride`, the transform, number of classes of the targets.

    With `before` the key frame is the last frame of the clip, else its center.
    """

    frames: int
    stride: int
    transform: BoxedTransform
    num_classes: int
    before: bool = False


def targets_of(frame: KeyFrame, kept: Sequence[int], form: ClipForm) -> Tensor:
    """Return training targets (R, K) of the boxes `kept`: the key frame's targets, else its labels as 0 and 1."""
    if frame.targets is not None:
        return torch.from_numpy(frame.targets[list(kept)]).float()
    targets = torch.zeros(len(kept), form.num_classes)
    for row, box in enumerate(kept):
        targets[row, list(frame.labels[box])] = 1.0
    return targets


class _Training(Dataset[WorkerResult]):
    """Map (epoch, batch index) to a training batch."""

    def __init__(
        self, reader: ManifestClipDecoder, frames: Sequence[KeyFrame], plan: EpochPlan, form: ClipForm
    ) -> None:
        self.reader, self.frames, self.plan, self.form = reader, frames, plan, form

    def __getitem__(self, key: tuple[int, int]) -> WorkerResult:
        epoch, number = key
        order = self.plan.order(epoch)
        unreadable: list[Unreadable] = []
        try:
            parts = [self._read(epoch, position, order, unreadable) for position in self.plan.positions(number)]
        except InternVideoError as error:
            return WorkerResult(error=error)
        return WorkerResult(_join(parts), unreadable=tuple(unreadable))

    def _read(self, epoch: int, position: int, order: Order, unreadable: list[Unreadable]) -> RegionBatch:
        for attempt, candidate in enumerate([position, *self.plan.fallback_positions(position)]):
            index = int(order[candidate])
            frame = self.frames[index]
            try:
                clip = read_clip(self.reader, frame, self.form)
            except VideoError as error:
                unreadable.append(Unreadable(frame.row.id, frame.row.path, str(error)))
                continue
            rng = random_stream(AUGMENT, self.plan.seed, epoch, index, attempt)
            if self.form.transform.around is not None:
                chosen = np.sort(rng.permutation(len(frame.boxes))[:MAX_BOXES])
                corners = torch.from_numpy(frame.boxes[chosen]).float()
                pieces = self.form.transform.each(clip, corners, rng)
                return _pieces(pieces, frame, self.form, targets_of(frame, chosen.tolist(), self.form))
            transformed = self.form.transform.train(clip, torch.from_numpy(frame.boxes).float(), rng)
            kept = transformed.kept.numpy()[rng.permutation(len(transformed.kept))[:MAX_BOXES]]
            row_of_box = {int(box): row for row, box in enumerate(transformed.kept)}
            boxes = transformed.boxes[[row_of_box[int(box)] for box in kept]]
            return _batch(transformed.clip, frame, boxes, targets_of(frame, kept.tolist(), self.form))
        raise VideoError(
            self.reader.manifest.source,
            f"{len(unreadable)} clips in succession cannot be read, the last one because: {unreadable[-1].reason}",
            "",
            "check that the videos lie where the manifest says",
        )


def _batch(clip: Tensor, frame: KeyFrame, boxes: Tensor, targets: Tensor) -> RegionBatch:
    name = f"{frame.video}@{frame.time:g}"
    owner = torch.zeros(len(boxes), dtype=torch.int64)
    return RegionBatch(clip[None], (name,), clip=owner, boxes=boxes, targets=targets)


def _pieces(pieces: Sequence[Boxed], frame: KeyFrame, form: ClipForm, targets: Tensor) -> RegionBatch:
    """Make a batch with one clip per box of a key frame."""
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
    """Load training batches of one rank; unreadable clips are replaced as in `Loader`.

    Args:
        manifest: rows with boxes. form: how clips are made. settings: of the loader, without repeated augmentation.
        frames: key frames of these rows; by default those of `key_frames`.
        skipped: as for `Loader`.

    Raises:
        ManifestError: no row has boxes. RecipeError: fewer key frames than one batch.
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
        """Yield batches `start`, `start + 1`, ... of epoch `k`. Raises VideoError and RunError as `Loader.epoch`."""
        for loaded in self._source.read([(k, number) for number in range(start, len(self))], self._wait):
            self._skipped.count(loaded.unreadable, k)
            yield cast(RegionBatch, loaded.batch)

    def _wait(self, seconds: float) -> None:
        self.data_time += seconds


class _Testing(Dataset[WorkerResult]):
    """Map the index of a key frame to its test clip of the whole frame, or to one clip per box."""

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
        transformed = self.form.transform.whole(clip, corners)
        return WorkerResult(_batch(transformed.clip, frame, transformed.boxes, targets), (index,))


class KeyFrameViews:
    """Iterate over (index, clip with its boxes) of every key frame once, divided among all ranks; frame sizes differ.

    Args:
        manifest, frames, form, settings: as for `KeyFrameLoader`.
    """

    def __init__(
        self, manifest: Manifest, frames: Sequence[KeyFrame], form: ClipForm, settings: LoaderSettings
    ) -> None:
        self.frames, self.form = frames, form
        self._unreadable: list[tuple[int, Unreadable]] = []
        self._indices = range(distributed.rank(), len(frames), distributed.world_size())
        self._source = PersistentDataLoader(_Testing(clip_decoder(manifest, settings), frames, form), settings)

    @property
    def unreadable(self) -> list[Unreadable]:
        """Unreadable clips of the last iteration, complete after it; of all processes after `collected`."""
        return [clip for _, clip in self._unreadable]

    def __iter__(self) -> Iterator[tuple[list[int], RegionBatch]]:
        """Yield one key frame at a time."""
        self._unreadable = []
        for index, loaded in zip(self._indices, self._source.read(self._indices, lambda _: None), strict=True):
            self._unreadable += [(index, clip) for clip in loaded.unreadable]
            if loaded.batch is not None:
                yield list(loaded.views), cast(RegionBatch, loaded.batch)

    def collected(self, outputs: Mapping[int, Output]) -> dict[int, Output]:
        """Gather the outputs of all processes by key frame index; every process calls this after its iteration."""
        parts: list[tuple[dict[int, Output], list[tuple[int, Unreadable]]]] = distributed.all_gather_objects(
            (dict(outputs), self._unreadable)
        )
        self._unreadable = sorted((entry for _, part in parts for entry in part), key=lambda entry: entry[0])
        return dict(sorted((index, value) for part_outputs, _ in parts for index, value in part_outputs.items()))
