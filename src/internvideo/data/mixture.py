"""Several sources or several clips in one: joined manifests (paper table 1), video and image batches in turn (4.2.1),
mixed clips (3.2)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

from internvideo import distributed
from internvideo.data.batch import Batch, WrappedLoader
from internvideo.data.loader import Loader, ResumableLoader
from internvideo.data.manifest import Manifest
from internvideo.data.mixup import Mixup
from internvideo.errors import ManifestError


def join_manifests(first: Manifest, name: str, other: Manifest, stride: int | None = None) -> Manifest:
    """The rows of two manifests under the classes of both, which are the same where they have the same name.

    Rows of `other` get ids that begin with `name`, it is their "source", and their videos are read at `stride`, where
    one is given, instead of the sampler's.

    Raises:
        ManifestError: an id that both have after all.
    """
    classes = (*first.classes, *(one for one in other.classes if one not in first.classes))
    place = {name: index for index, name in enumerate(classes)}
    moved = {index: place[one] for index, one in enumerate(other.classes)}
    told = {} if stride is None else {"stride": str(stride)}
    rows = [
        row.with_class_indices(moved).model_copy(
            update={
                "id": f"{name}/{row.id}",
                "path": os.path.relpath(other.video_path(row), first.root),
                "attributes": {"source": name, **row.attributes, **told},
            }
        )
        for row in other.rows
    ]
    twice = {row.id for row in first.rows} & {row.id for row in rows}
    if twice:
        raise ManifestError(
            other.source, f"the id '{min(twice)}' is also one of {first.source}", "", "rename the source"
        )
    return replace(first, rows=(*first.rows, *rows), classes=classes, notes=(*first.notes, *other.notes))


class AlternatingLoader:
    """A video batch, an image batch, a video batch, ...

    An epoch is an epoch of the videos; the images go on where the last epoch left them, so every position depends on
    (epoch, number) alone and a resumed epoch gives the batches of the uninterrupted one.
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
        """Batches `start`, `start + 1`, ... of epoch `k`."""
        pair, within = divmod(start, 2)
        images = self._images(k * len(self.videos) + pair)
        if within:
            yield next(images)
        for video in self.videos.epoch(k, pair + within):
            yield video
            yield next(images)

    def _images(self, number: int) -> Iterator[Batch]:
        """The endless row of image batches from `number` on."""
        epoch, position = divmod(number, len(self.images))
        while True:
            yield from self.images.epoch(epoch, position)
            epoch, position = epoch + 1, 0


class MixedLoader(WrappedLoader[Loader]):
    """Mixup and cutmix of every batch of a loader; the labels become soft targets (B, C).

    Mixed clips are rounded to uint8, so that they travel to the device as small as others.

    Raises:
        ManifestError: a sample without a label.
    """

    def __init__(self, loader: Loader, mixup: Mixup, *, seed: int) -> None:
        super().__init__(loader)
        self.mixup, self.seed, self.rank = mixup, seed, distributed.rank()
        loader.manifest.require("label")

    def epoch(self, k: int, start: int = 0) -> Iterator[Batch]:
        """Batches `start`, `start + 1`, ... of epoch `k`; the mixing depends on (seed, rank, k, number) alone."""
        for number, batch in enumerate(self.loader.epoch(k, start), start):
            assert batch.labels is not None  # checked at construction
            words = np.random.SeedSequence([self.seed, self.rank, k, number]).generate_state(4)
            video, targets = self.mixup(batch.video, batch.labels, np.random.RandomState(words))
            yield replace(batch, video=video.round_().to(torch.uint8), labels=targets)
