"""Stream image-text and video-text pairs from tar shards (LAION, webdataset) in a resumable random order.

The order is shuffled in two steps, so that the samples of a batch are close on the disk: shards are shuffled and
divided into groups, and the samples of a group are shuffled together. It depends only on (seed, epoch) and is computed
per position. So batches are the same for any number of workers, ranks divide global batches as with a manifest, and a
run resumes at any batch without reading others.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from internvideo import distributed, untrusted
from internvideo.data.dataset import CaptionRule, TextEncoder
from internvideo.data.epoch_plan import ORDER, EpochPlan, Indices, random_stream
from internvideo.data.loader import LoaderSettings, ResumableLoader
from internvideo.data.sample import Sample
from internvideo.data.sampling import FrameSampler
from internvideo.data.shard_files import Shard, ShardContents, as_video_file, list_shards, read_shard
from internvideo.data.transforms import ClipTransform
from internvideo.errors import ManifestError, RecipeError, VideoError, shown
from internvideo.video.reader import Video

SHARDS_PER_GROUP = 8
"""Number of shards whose samples are shuffled together."""
CAPTION_ERROR = "fault"


class ShardRows(Sequence[Sample]):
    """Lazy sequence of the samples of shards; captions are read on access, images by `ShardClipDecoder`."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        self.shards = tuple(shards)
        self._ends = np.cumsum([len(shard.entries) for shard in self.shards]).tolist()
        self._contents = ShardContents()

    def __len__(self) -> int:
        return int(self._ends[-1])

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | Sequence[Sample]:
        """Return a sample; if its caption cannot be read, it has none, and the attribute "fault" is the reason."""
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        shard_index, entry_index = self._locate(index)
        shard = self.shards[shard_index]
        entry = shard.entries[entry_index]
        attributes = {"shard": str(shard_index), "entry": str(entry_index)}
        try:
            if entry.caption[2] > untrusted.MAX_SETTINGS_BYTES:
                raise ValueError(f"a caption of {entry.caption[2]:,} bytes")
            caption = _parse_caption(self._contents.read(shard.url, entry.caption), entry.caption[0])
        except (ManifestError, ValueError) as error:
            attributes[CAPTION_ERROR] = getattr(error, "found", "") or str(error)
            caption = ""
        key = shown(entry.key)  # escapes control characters and surrogates
        sample_id, path = f"{Path(shard.url).stem}/{key}", f"{shard.url}#{key}.{entry.medium[0]}"
        return Sample(id=sample_id, path=path, captions=(caption,) if caption else (), attributes=attributes)

    def first_sample(self, shard_index: int) -> int:
        """Return the index of the first sample of a shard."""
        return int(self._ends[shard_index - 1]) if shard_index else 0

    def read_medium(self, sample: Sample) -> tuple[bytes, str]:
        """Read the bytes and suffix of a sample's image or video. Raises ManifestError."""
        shard = self.shards[int(sample.attributes["shard"])]
        location = shard.entries[int(sample.attributes["entry"])].medium
        return self._contents.read(shard.url, location), location[0]

    def _locate(self, index: int) -> tuple[int, int]:
        """Return the index of a sample's shard, and the sample's index in that shard. Raises IndexError."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        shard_index = bisect_right(self._ends, index)
        return shard_index, index - self.first_sample(shard_index)


def _parse_caption(content: bytes, suffix: str) -> str:
    """Parse the caption of a text or JSON file. Raises ValueError: the caption is blank, or the file is malformed."""
    text = content.decode("utf-8-sig")
    if suffix == "json":
        parsed = untrusted.parse_json(text)
        text = str(parsed.get("caption") or "") if isinstance(parsed, dict) else ""
    text = " ".join(text.split())
    if not text:
        raise ValueError("has a blank caption")
    return text


@dataclass(frozen=True)
class Shards:
    """All samples of a set of shards, with the interface of a manifest.

    Attributes:
        rows: the samples. source: the pattern of the shards. notes: messages about samples that were left out.
    """

    rows: ShardRows
    source: str
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def fingerprint(self) -> str:
        """Hash the names, sizes and sample counts of the shards: 16 hex digits."""
        entries = [[Path(shard.url).name, shard.num_bytes, len(shard.entries)] for shard in self.rows.shards]
        return hashlib.sha256(json.dumps(entries).encode()).hexdigest()[:16]


def read_shards(pattern: str, index: Path | None = None) -> Shards:
    """Index shards of samples with an image or video and a caption.

    Args:
        pattern: a folder, a glob, or a path or URL with a range: s3://mine/laion/{00000..00099}.tar.
        index: folder in which the indexed headers are cached; without it they are read at every start.

    Raises ManifestError: no shard, an unreadable shard, or no sample.
    """
    shards = [read_shard(url, index) for url in list_shards(pattern)]
    if not any(shard.entries for shard in shards):
        expected = "KEY.jpg or KEY.mp4, with KEY.txt or KEY.json"
        raise ManifestError(pattern, "no sample with a medium and a caption", expected)
    num_incomplete = sum(shard.num_incomplete for shard in shards)
    notes = (f"{num_incomplete:,} samples lack an image, a video or a caption",) if num_incomplete else ()
    return Shards(ShardRows(shards), pattern, notes)


class _ShuffledOrder(Sequence[int]):
    """Map from position in the epoch to sample index; each group of shards is shuffled when it is first needed."""

    def __init__(self, rows: ShardRows, seed: int, epoch: int) -> None:
        self._rows = rows
        shards = random_stream(ORDER, seed, epoch).permutation(len(rows.shards)).tolist()
        self._groups = [shards[first : first + SHARDS_PER_GROUP] for first in range(0, len(shards), SHARDS_PER_GROUP)]
        sizes = [sum(len(rows.shards[shard].entries) for shard in group) for group in self._groups]
        self._ends = np.cumsum(sizes).tolist()
        self._seed, self._epoch = seed, epoch
        self._shuffled: dict[int, NDArray[np.int64]] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, position: int) -> int:  # type: ignore[override]  # slices are not used
        group = bisect_right(self._ends, position)
        if group not in self._shuffled:
            if len(self._shuffled) >= 2:  # two, because fallback samples may be in the next group
                self._shuffled.pop(next(iter(self._shuffled)))
            samples = [np.arange(len(self._rows.shards[shard].entries)) + self._rows.first_sample(shard)
                       for shard in self._groups[group]]  # fmt: skip
            rng = random_stream(ORDER, self._seed, self._epoch, group + 1)
            self._shuffled[group] = rng.permutation(np.concatenate(samples))
        start = self._ends[group - 1] if group else 0
        return int(self._shuffled[group][position - start])


@dataclass(frozen=True)
class ShardPlan(EpochPlan):
    """Assign samples to batches in an order that is never materialized."""

    rows: ShardRows

    def order(self, epoch: int) -> Sequence[int]:
        """Return the map from position in the epoch to sample index."""
        return _ShuffledOrder(self.rows, self.seed, epoch) if self.shuffle else range(len(self.rows))


class ShardClipDecoder:
    """Decode images and videos of shards, each copied to a temporary file, which the decoder opens.

    Args:
        shards: the samples. short_side: as for `ClipDecoder`.
    """

    labeled = False

    def __init__(self, shards: Shards, *, short_side: int | None = None) -> None:
        self.manifest, self.short_side = shards, short_side

    def take_truncated_spans(self) -> tuple[str, ...]:
        """Return (): samples of shards have no span."""
        return ()

    def clips(self, row: Sample, select_frames: Callable[[NDArray[np.float64]], Sequence[Indices]]) -> list[Tensor]:
        """Decode the frames that `select_frames` selects, as `ClipDecoder.clips`; an image is a video of one frame.

        Raises VideoError: image, video or caption cannot be read.
        """
        if CAPTION_ERROR in row.attributes:
            raise VideoError(row.path, row.attributes[CAPTION_ERROR])
        try:
            content, suffix = self.manifest.rows.read_medium(row)
        except ManifestError as error:
            raise VideoError(row.path, error.found, error.expected, error.hint) from error
        with (
            as_video_file(content, suffix, row.path) as path,
            Video(path, short_side=self.short_side) as video,
        ):
            times = video.info.times
            clips = video.sample(np.arange(len(times)), lambda decodable: select_frames(times[decodable]))
        return [torch.from_numpy(clip) for clip in clips]


class ShardLoader(ResumableLoader):
    """Load training batches of one rank from shards; otherwise as `Loader`.

    Args:
        shards: `read_shards`.
        sampler, transform, settings, tokenizer, caption, skipped: see `Loader`.
            Without `settings.single_frame` an image is repeated for all frames of the clip.

    Raises RecipeError: fewer samples than one batch, or `settings.alike_by` is set.
    """

    def __init__(
        self,
        shards: Shards,
        sampler: FrameSampler,
        transform: ClipTransform,
        settings: LoaderSettings,
        *,
        tokenizer: TextEncoder | None = None,
        caption: CaptionRule = "first",
        skipped: Path | None = None,
    ) -> None:
        if settings.alike_by:
            raise RecipeError("data.loader.alike_by", "set, but shards have no groups", "a manifest")
        plan = ShardPlan(
            len(shards), settings.batch_size, settings.seed, settings.shuffle, settings.drop_last, distributed.rank(),
            distributed.world_size(), shards.rows,
        )  # fmt: skip
        reader = ShardClipDecoder(shards, short_side=settings.short_side)
        super().__init__(
            shards, plan, reader, sampler, transform, settings, tokenizer=tokenizer, caption=caption, skipped=skipped
        )
