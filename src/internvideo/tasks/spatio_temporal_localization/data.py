"""Load clips around key frames with the boxes of the persons in them: manifest -> RegionBatch (AlphAction).

A row of a manifest has the boxes of one key frame (AVA) or of several (`long.jsonl` of the sample world); boxes with
the same time belong to one key frame. Corners are fractions of the frame until a transform converts them to pixels.
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
"""Maximum number of boxes per training clip (AlphAction)."""

Output = TypeVar("Output")
Order = Sequence[int] | NDArray[np.int64]
FrameKey = tuple[str, float]
PersonBoxes = Mapping[FrameKey, Sequence[tuple[float, float, float, float, float]]]


class KeyFrameSettings(Settings):
    """Settings of the clips around key frames: resizing, color jitter, candidate boxes."""

    short: int = Field(256, ge=8, le=8192, description="shorter side in pixels after resizing; tests do not crop")
    longest: int = Field(464, ge=8, le=8192, description="largest longer side in pixels after resizing")
    hue: float = Field(20.0, ge=0.0, le=180.0, description="training: maximum change of hue, degrees")
    saturation: float = Field(0.1, ge=0.0, le=1.0, description="training: maximum change of saturation and of value")
    around: float | None = Field(
        None,
        ge=1.0,
        description="one clip per box instead of whole frames: a square around the box, whose side is this many times "
        "the longer side of the box, resized to size",
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
    """A key frame with R boxes.

    Attributes:
        row: of the manifest. video: name of the video in annotation files, see `video_name`.
        time: in the annotations, in seconds; it may count from the start of a movie of which the file is a part.
        boxes: (R, 4) corners as fractions. scores: (R,). labels: class indices of each box, () if unknown.
        targets: (R, K) training targets that replace the labels, None for none.
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
        """The time in seconds from the start of the video file."""
        return self.time - file_start_time(self.row, self.time)


def video_name(row: Sample) -> str:
    """Return the name of a row's video in annotation files: of the movie, if the row is a key frame of a movie."""
    return row.group if "timestamp" in row.attributes and row.group else row.id


def frame_key(video: str, time: float) -> FrameKey:
    """Return the dictionary key of a key frame."""
    return video, round(time, 3)


def key_frames(manifest: Manifest) -> list[KeyFrame]:
    """Return all annotated key frames, ordered by row and time. Raises ManifestError if there are none."""
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


def with_detected_persons(frames: Sequence[KeyFrame], persons: PersonBoxes, min_score: float) -> list[KeyFrame]:
    """Return key frames with the boxes of a person detector that have at least `min_score`.

    Key frames without such a box are left out. Boxes at times without annotation, in the same videos, are included:
    predictions for them are false positives.
    """
    frame_of_key = {frame_key(frame.video, frame.time): frame for frame in frames}
    frame_of_video = {frame.video: frame for frame in frames}
    with_detected_boxes = []
    for (video, time), boxes in sorted(persons.items()):
        frame = frame_of_key.get(frame_key(video, time)) or frame_of_video.get(video)
        box_index = np.asarray([box for box in boxes if box[4] >= min_score], dtype=np.float64).reshape(-1, 5)
        if frame is not None and len(box_index):
            with_detected_boxes.append(
                KeyFrame(frame.row, video, time, box_index[:, :4], box_index[:, 4], ((),) * len(box_index))
            )
    return with_detected_boxes


def read_clip(reader: ManifestClipDecoder, frame: KeyFrame, clip_settings: KeyFrameClipSettings) -> Tensor:
    """Decode a clip (T, H, W, 3) uint8 around a key frame, linearly interpolated between frames. Raises VideoError."""
    fraction = np.zeros(clip_settings.frames)
    compute_positions = positions_before if clip_settings.ends_at_key_frame else centered_positions

    def interpolation_indices(times: Floats) -> list[NDArray[np.int64]]:
        positions_in_frames = compute_positions(times, frame, frames=clip_settings.frames, stride=clip_settings.stride)
        before = np.floor(positions_in_frames).astype(np.int64)
        fraction[:] = positions_in_frames - before
        return [before, np.minimum(before + 1, len(times) - 1)] if fraction.any() else [before]

    clips = reader.clips(frame.row, interpolation_indices)
    if len(clips) == 1:
        return clips[0]
    weight = torch.from_numpy(fraction).float().view(-1, 1, 1, 1)
    return torch.lerp(clips[0].float(), clips[1].float(), weight).round().to(torch.uint8)


@dataclass(frozen=True)
class KeyFrameClipSettings:
    """Settings of a clip around a key frame.

    Attributes:
        frames: T. stride: frames from one frame of the clip to the next. transform: of clip and boxes.
        num_classes: of the training targets.
        ends_at_key_frame: whether the key frame is the last frame of the clip; otherwise it is in the center.
    """

    frames: int
    stride: int
    transform: BoxedTransform
    num_classes: int
    ends_at_key_frame: bool = False


def training_targets(frame: KeyFrame, box_index: Sequence[int], clip_settings: KeyFrameClipSettings) -> Tensor:
    """Return the targets (R, K) of the boxes `box_index`: those of the key frame, else the labels as 0 and 1."""
    if frame.targets is not None:
        return torch.from_numpy(frame.targets[list(box_index)]).float()
    targets = torch.zeros(len(box_index), clip_settings.num_classes)
    for row, box in enumerate(box_index):
        targets[row, list(frame.labels[box])] = 1.0
    return targets


class _TrainingDataset(Dataset[WorkerResult]):
    """Training batches by (epoch, batch index)."""

    def __init__(
        self,
        reader: ManifestClipDecoder,
        frames: Sequence[KeyFrame],
        plan: EpochPlan,
        clip_settings: KeyFrameClipSettings,
    ) -> None:
        self.reader, self.frames, self.plan, self.clip_settings = reader, frames, plan, clip_settings

    def __getitem__(self, key: tuple[int, int]) -> WorkerResult:
        epoch, batch_index = key
        order = self.plan.order(epoch)
        unreadable: list[Unreadable] = []
        try:
            parts = [self._read(epoch, position, order, unreadable) for position in self.plan.positions(batch_index)]
        except InternVideoError as error:
            return WorkerResult(error=error)
        return WorkerResult(_join_batches(parts), unreadable=tuple(unreadable))

    def _read(self, epoch: int, position: int, order: Order, unreadable: list[Unreadable]) -> RegionBatch:
        for attempt, candidate in enumerate([position, *self.plan.fallback_positions(position)]):
            index = int(order[candidate])
            frame = self.frames[index]
            try:
                clip = read_clip(self.reader, frame, self.clip_settings)
            except VideoError as error:
                unreadable.append(Unreadable(frame.row.id, frame.row.path, str(error)))
                continue
            rng = random_stream(AUGMENT, self.plan.seed, epoch, index, attempt)
            if self.clip_settings.transform.around is not None:
                box_index = np.sort(rng.permutation(len(frame.boxes))[:MAX_BOXES])
                corners = torch.from_numpy(frame.boxes[box_index]).float()
                box_clips = self.clip_settings.transform.crop_boxes(clip, corners, rng)
                return _make_box_clips_batch(
                    box_clips,
                    frame,
                    self.clip_settings,
                    training_targets(frame, box_index.tolist(), self.clip_settings),
                )
            transformed = self.clip_settings.transform.train(clip, torch.from_numpy(frame.boxes).float(), rng)
            box_index = transformed.box_index.numpy()[rng.permutation(len(transformed.box_index))[:MAX_BOXES]]
            row_of_box = {int(box): row for row, box in enumerate(transformed.box_index)}
            boxes = transformed.boxes[[row_of_box[int(box)] for box in box_index]]
            return _make_batch(
                transformed.clip, frame, boxes, training_targets(frame, box_index.tolist(), self.clip_settings)
            )
        raise VideoError(
            self.reader.manifest.source,
            f"{len(unreadable)} clips in succession cannot be read, the last one because: {unreadable[-1].reason}",
            "",
            "check the paths in the manifest",
        )


def _make_batch(clip: Tensor, frame: KeyFrame, boxes: Tensor, targets: Tensor) -> RegionBatch:
    name = f"{frame.video}@{frame.time:g}"
    clip_index = torch.zeros(len(boxes), dtype=torch.int64)
    return RegionBatch(clip[None], (name,), clip_index=clip_index, boxes=boxes, targets=targets)


def _make_box_clips_batch(
    box_clips: Sequence[Boxed], frame: KeyFrame, clip_settings: KeyFrameClipSettings, targets: Tensor
) -> RegionBatch:
    """Make a batch with one clip per box of a key frame."""
    if not box_clips:
        no_clips = torch.zeros(
            (0, 3, clip_settings.frames, clip_settings.transform.size, clip_settings.transform.size), dtype=torch.uint8
        )
        return RegionBatch(
            no_clips, (), clip_index=torch.zeros(0, dtype=torch.int64), boxes=torch.zeros(0, 4), targets=targets
        )
    names = (f"{frame.video}@{frame.time:g}",) * len(box_clips)
    boxes = torch.cat([box_clip.boxes for box_clip in box_clips])
    clips = torch.stack([box_clip.clip for box_clip in box_clips])
    return RegionBatch(clips, names, clip_index=torch.arange(len(box_clips)), boxes=boxes, targets=targets)


def _join_batches(parts: Sequence[RegionBatch]) -> RegionBatch:
    first = np.cumsum([0, *(len(part.video) for part in parts)]).tolist()
    return RegionBatch(
        torch.cat([part.video for part in parts]),
        tuple(name for part in parts for name in part.ids),
        clip_index=torch.cat([part.clip_index + start for start, part in zip(first, parts, strict=False)]),
        boxes=torch.cat([part.boxes for part in parts]),
        targets=torch.cat([part.targets for part in parts]),
    )


class KeyFrameLoader:
    """Load training batches of one process; unreadable clips are replaced as in `Loader`.

    Args:
        manifest: rows with boxes. clip_settings: of clips and boxes.
        settings: of the loader; repeated augmentation is not supported.
        frames: key frames of these rows; by default those of `key_frames`.
        skipped: see `Loader`.

    Raises:
        ManifestError: no row has boxes. RecipeError: fewer key frames than one batch.
    """

    def __init__(
        self,
        manifest: Manifest,
        clip_settings: KeyFrameClipSettings,
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
            _TrainingDataset(clip_decoder(manifest, settings), frames, self._plan, clip_settings), settings
        )

    def __len__(self) -> int:
        """Number of batches per epoch, the same in every process."""
        return self._plan.batches

    def epoch(self, k: int, start: int = 0) -> Iterator[RegionBatch]:
        """Yield batches `start`, `start + 1`, ... of epoch `k`. Raises VideoError and RunError as `Loader.epoch`."""
        for loaded in self._source.read([(k, batch_index) for batch_index in range(start, len(self))], self._wait):
            self._skipped.count(loaded.unreadable, k)
            yield cast(RegionBatch, loaded.batch)

    def _wait(self, seconds: float) -> None:
        self.data_time += seconds


class _TestDataset(Dataset[WorkerResult]):
    """Test batches by index of the key frame: a clip of the whole frame, or one clip per box."""

    def __init__(
        self, reader: ManifestClipDecoder, frames: Sequence[KeyFrame], clip_settings: KeyFrameClipSettings
    ) -> None:
        self.reader, self.frames, self.clip_settings = reader, frames, clip_settings

    def __getitem__(self, index: int) -> WorkerResult:
        frame = self.frames[index]
        try:
            clip = read_clip(self.reader, frame, self.clip_settings)
        except VideoError as error:
            return WorkerResult(unreadable=(Unreadable(frame.row.id, frame.row.path, str(error)),))
        except InternVideoError as error:
            return WorkerResult(error=error)
        targets = training_targets(frame, range(len(frame.boxes)), self.clip_settings)
        corners = torch.from_numpy(frame.boxes).float()
        if self.clip_settings.transform.around is not None:
            return WorkerResult(
                _make_box_clips_batch(
                    self.clip_settings.transform.crop_boxes(clip, corners), frame, self.clip_settings, targets
                ),
                (index,),
            )
        transformed = self.clip_settings.transform.resize(clip, corners)
        return WorkerResult(_make_batch(transformed.clip, frame, transformed.boxes, targets), (index,))


class KeyFrameViews:
    """Iterate once over ((index,), batch) of the key frames, distributed over the processes.

    A batch has the boxes of one key frame. Clips of different key frames may have different sizes.

    Args:
        manifest, frames, clip_settings, settings: see `KeyFrameLoader`.
    """

    def __init__(
        self,
        manifest: Manifest,
        frames: Sequence[KeyFrame],
        clip_settings: KeyFrameClipSettings,
        settings: LoaderSettings,
    ) -> None:
        self.frames, self.clip_settings = frames, clip_settings
        self._unreadable: list[tuple[int, Unreadable]] = []
        self._indices = range(distributed.rank(), len(frames), distributed.world_size())
        self._source = PersistentDataLoader(
            _TestDataset(clip_decoder(manifest, settings), frames, clip_settings), settings
        )

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

    def gather_outputs(self, outputs: Mapping[int, Output]) -> dict[int, Output]:
        """Gather the outputs of all processes, key frame index -> output, after the iteration. Collective."""
        parts: list[tuple[dict[int, Output], list[tuple[int, Unreadable]]]] = distributed.all_gather_objects(
            (dict(outputs), self._unreadable)
        )
        self._unreadable = sorted((entry for _, part in parts for entry in part), key=lambda entry: entry[0])
        return dict(sorted((index, value) for part_outputs, _ in parts for index, value in part_outputs.items()))
