"""Combine sources and clips: joined manifests (paper table 1), alternating batches of images (4.2.1), mixup (3.2)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from typing import cast

import numpy as np

from internvideo import distributed
from internvideo.data.batch import Batch, WrappedLoader
from internvideo.data.decoding.decoded_batch import DecodedBatch, DrawnMix
from internvideo.data.loader import Loader, ResumableLoader
from internvideo.data.manifest import Manifest
from internvideo.data.mixup import Mixup
from internvideo.errors import ManifestError


def join_manifests(first: Manifest, name: str, other: Manifest, stride: int | None = None) -> Manifest:
    """Join the rows of two manifests; their classes are merged by name.

    Rows of `other` get the prefix `name` in their ids, `name` as the attribute "source" and, if given, `stride` as the
    attribute "stride", which replaces the sampler's.
    Raises ManifestError: a duplicate id.
    """
    classes = (*first.classes, *(class_ for class_ in other.classes if class_ not in first.classes))
    index_of = {class_: index for index, class_ in enumerate(classes)}
    new_index = {index: index_of[class_] for index, class_ in enumerate(other.classes)}
    stride_attribute = {} if stride is None else {"stride": str(stride)}
    rows = [
        row.with_class_indices(new_index).model_copy(
            update={
                "id": f"{name}/{row.id}",
                "path": os.path.relpath(other.video_path(row), first.root),
                "attributes": {"source": name, **row.attributes, **stride_attribute},
            }
        )
        for row in other.rows
    ]
    duplicates = {row.id for row in first.rows} & {row.id for row in rows}
    if duplicates:
        found = f"the id '{min(duplicates)}' is also one of {first.source}"
        raise ManifestError(other.source, found, "", "rename the source")
    return replace(first, rows=(*first.rows, *rows), classes=classes, notes=(*first.notes, *other.notes))


class AlternatingLoader:
    """Alternate video and image batches.

    An epoch is an epoch of the videos; the images continue from the previous epoch. Every batch depends only on its
    epoch and index, so a resumed epoch gives the same batches as an uninterrupted one.
    """

    def __init__(self, videos: Loader, images: ResumableLoader) -> None:
        self.videos, self.images = videos, images

    def __len__(self) -> int:
        """Batches per epoch: two for every video batch."""
        return 2 * len(self.videos)

    @property
    def data_time(self) -> float:
        """Seconds the consumer waited for data so far."""
        return self.videos.data_time + self.images.data_time

    def epoch(self, k: int, start: int = 0) -> Iterator[Batch]:
        """Yield batches `start`, `start + 1`, ... of epoch `k`."""
        pair, starts_with_image = divmod(start, 2)
        images = self._images(k * len(self.videos) + pair)
        if starts_with_image:
            yield next(images)
        for video in self.videos.epoch(k, pair + starts_with_image):
            yield video
            yield next(images)

    def _images(self, batch_index: int) -> Iterator[Batch]:
        """Yield image batches without end, starting at `batch_index`, which counts over all epochs."""
        epoch, position = divmod(batch_index, len(self.images))
        while True:
            yield from self.images.epoch(epoch, position)
            epoch, position = epoch + 1, 0


class MixedLoader(WrappedLoader[Loader]):
    """Apply mixup and cutmix to every batch of a loader; the labels become soft targets (B, C).

    Mixed clips are rounded to uint8 to keep the transfer to the device small.
    Raises ManifestError: a sample without a label.
    """

    def __init__(self, loader: Loader, mixup: Mixup, *, seed: int) -> None:
        super().__init__(loader)
        self.mixup, self.seed, self.rank = mixup, seed, distributed.rank()
        loader.manifest.require("label")

    def epoch(self, k: int, start: int = 0) -> Iterator[Batch]:
        """Yield batches `start`, `start + 1`, ... of epoch `k`; mixing depends only on (seed, rank, k, index)."""
        batches = cast(Iterator[Batch | DecodedBatch], self.loader.epoch(k, start))
        for batch_index, batch in enumerate(batches, start):
            assert batch.labels is not None  # checked at construction
            seeds = np.random.SeedSequence([self.seed, self.rank, k, batch_index]).generate_state(4)
            mix = DrawnMix(self.mixup, tuple(seeds.tolist()))
            if isinstance(batch, DecodedBatch):  # mixed on the device, after the augmentation
                yield cast(Batch, replace(batch, mix=mix))
            else:
                video, targets = mix(batch.video, batch.labels)
                yield replace(batch, video=video, labels=targets)
