"""Annotation files of the action data sets in any folder of the stored layout, read again in the plainest way."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from goldens_folder import GOLDENS

from internvideo.datasets.annotations import Annotations
from internvideo.datasets.catalog import BENCHMARKS
from internvideo.datasets.reading import AnnotationSource

pytestmark = pytest.mark.parity

FILES = GOLDENS / "tasks" / "annotations"
SPLITS = {"training": "train", "validation": "val", "testing": "test", "validate": "val"}


def lines(path: Path) -> list[str]:
    return [line for line in path.read_text("utf-8").splitlines() if line.strip()]


def labels(made: Annotations) -> Iterator[Any]:
    for split, rows in made.splits.items():
        yield from ((split, row.path, row.label if row.label is None else made.classes[row.label]) for row in rows)


def segments(made: Annotations) -> Iterator[Any]:
    for split, rows in made.splits.items():
        for row in rows:
            yield from ((split, row.id, part.start, part.end, made.classes[part.label]) for part in row.segments)


def segments_again(path: Path) -> Iterator[Any]:
    for video, entry in json.loads(path.read_text("utf-8"))["database"].items():
        for part in entry["annotations"]:
            split = entry["subset"].lower()
            yield SPLITS.get(split, split), video, *map(float, part["segment"]), part["label"]


def hmdb(folder: Path) -> Iterator[Any]:
    for path in folder.glob("*_test_split?.txt"):
        name, number = path.stem[: -len("_test_split1")], path.stem[-1]
        for video, code in map(str.split, lines(path)):
            if code != "0":
                yield f"{'train' if code == '1' else 'test'}{number}", f"{name}/{video}", name


def ucf(folder: Path) -> Iterator[Any]:
    for path in folder.glob("*list0?.txt"):
        for line in lines(path):
            video = line.split()[0]
            yield f"{'train' if 'train' in path.name else 'test'}{path.stem[-1]}", video, video.split("/")[0]


def moments(folder: Path) -> Iterator[Any]:
    for path in folder.glob("*Set.csv"):
        for video, label, *_ in csv.reader(lines(path)):
            yield SPLITS[path.stem.removesuffix("Set")], video, label


def official(folder: Path) -> Iterator[Any]:
    for path in folder.glob("kinetics-*.csv"):
        for row in csv.DictReader(lines(path)):
            clip = f"{row['youtube_id']}_{int(row['time_start']):06d}_{int(row['time_end']):06d}.mp4"
            yield SPLITS.get(row["split"], row["split"]), clip, row["label"]


def listed(folder: Path) -> Iterator[Any]:
    for path in folder.glob("*.csv"):
        for video, label in (line.rsplit(maxsplit=1) for line in lines(path)):
            yield path.stem, video, label


def boxes(made: Annotations) -> Iterator[Any]:
    for split, rows in made.splits.items():
        for box in (box for row in rows for box in row.boxes):
            yield from ((split, box.time, box.x1, box.y1, box.x2, box.y2, label + 1) for label in box.labels)


def ava(folder: Path) -> Iterator[Any]:
    left_out = {tuple(line.split(",")) for path in folder.glob("*excluded*.csv") for line in lines(path)}
    for path in (path for path in folder.glob("ava_*_v?.?.csv") if "excluded" not in path.name):
        for video, time, *corners, action, _ in csv.reader(lines(path)):
            if (video, time) not in left_out:
                yield path.stem.split("_")[1], float(time), *map(float, corners), int(action)


Again = Callable[[Path], Iterator[Any]]
READ: dict[str, tuple[str, Callable[[Annotations], Iterator[Any]], Again]] = {
    "activitynet_v1_3": (
        "activitynet",
        segments,
        lambda folder: segments_again(next(folder.glob("activity_net*.json"))),
    ),
    "ava_v2_2": ("ava", boxes, ava),
    "fineaction": ("fineaction", segments, lambda folder: segments_again(next(folder.glob("*.json")))),
    "hacs": ("hacs_segments", segments, lambda folder: segments_again(next(folder.glob("*segments*.json")))),
    "hmdb51": ("hmdb51", labels, hmdb),
    "kinetics400": ("kinetics400", labels, official),
    "kinetics600": ("kinetics600", labels, official),
    "kinetics700": ("kinetics700", labels, official),
    "kinetics710": ("kinetics710", labels, listed),
    "mit_v2": ("mit_v2", labels, moments),
    "thumos14": ("thumos14", segments, lambda folder: segments_again(folder / "thumos14.json")),
    "ucf101": ("ucf101", labels, ucf),
}
"""Folder -> the benchmark that reads it, what its rows say, and the same from the files."""


@pytest.mark.parametrize("name", READ)
def test_a_second_reading_gives_the_same(name: str) -> None:
    benchmark, told, again = READ[name]
    expected = Counter(again(FILES / name))
    assert expected
    assert Counter(told(BENCHMARKS[benchmark].read(AnnotationSource(FILES / name)))) == expected
