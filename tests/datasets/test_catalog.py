"""The table of the 39 benchmarks, and the pretraining mixture."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from internvideo.data.dataset import with_row_stride
from internvideo.data.sample import QA, Sample
from internvideo.data.sampling import DensePretrain, Sparse
from internvideo.datasets import hybrid
from internvideo.datasets.annotations import Annotations
from internvideo.datasets.catalog import BENCHMARKS, METRICS_OF_TASK, Benchmark, Unit, benchmark
from internvideo.datasets.reading import AnnotationSource
from internvideo.errors import ManifestError
from internvideo.pipeline import listing
from internvideo.tasks import TASKS


def test_numbers_stand_once_and_tasks_exist() -> None:
    numbers = Counter(entry.paper_number for entry in BENCHMARKS.values() if entry.paper_number)
    assert set(numbers.values()) == {1}
    assert list(numbers) == list(range(1, 40))
    assert {entry.task for entry in BENCHMARKS.values()} <= set(METRICS_OF_TASK)
    assert all(entry.paper for entry in BENCHMARKS.values() if entry.paper_number)
    assert {entry.measure.evaluation for entry in BENCHMARKS.values()} - {""} <= {task.name for task in TASKS}
    assert all(entry.measure.metrics for entry in BENCHMARKS.values() if entry.measure.evaluation)


def test_the_listing_has_a_line_for_each() -> None:
    lines = listing("benchmarks")
    assert list(lines) == list(BENCHMARKS)
    assert lines["kinetics400"] == (
        "recognition: Kinetics-400; train ~240,000, val ~20,000, test ~39,000 clips; 400 classes; top-1; "
        "paper D 90.9, T 91.1; evaluate recognition: top1; recipe benchmarks/kinetics400"
    )


def test_counts_and_differences() -> None:
    rows = [Sample(id=str(n), path=f"{n // 2}.mp4", qa=(QA(question="q", answer="a"),) * n) for n in range(4)]
    made = Annotations(("a",), {"train": rows})

    def entry(unit: Unit, size: int, tolerance: float = 0.0) -> Benchmark:
        sizes = {"train": size}
        return Benchmark("x", "recognition", lambda source: made, "", sizes=sizes, unit=unit, tolerance=tolerance)

    assert entry("clips", 4).differences(made) == []
    assert entry("videos", 2).differences(made) == []
    assert entry("questions", 6).differences(made) == []
    assert entry("clips", 5).differences(made) == ["train has 4 clips, officially 5"]
    assert entry("clips", 5, 0.2).differences(made) == []
    assert Benchmark("x", "recognition", lambda source: made, "", sizes={"val": 9}, num_classes=2).differences(
        made
    ) == [
        "no split val in the annotations; officially 9 clips",
        "1 classes, officially 2",
    ]


def test_unknown_name() -> None:
    with pytest.raises(ManifestError, match="did you mean 'fineaction'"):
        benchmark("fine_action")


def test_films_are_cut_into_clips_of_300_frames() -> None:
    spans = list(hybrid.movie_spans(30.0))
    assert len(spans) * 235 == 21_150  # the paper's 21k
    assert (spans[0], spans[-1]) == ((900.0, 910.0), (1790.0, 1800.0))
    slow = list(hybrid.movie_spans(24.0))
    assert (len(slow), slow[0]) == (72, (900.0, 912.5))
    assert slow[-1][1] == pytest.approx(1800.0)


def mixture(folder: Path) -> AnnotationSource:
    files = {
        "kinetics710/train.csv": "k700/a.mp4 3\nk600/b.mp4 700\n",
        "something_v2/labels.json": '{"Up": "0"}',
        "something_v2/train.json": '[{"id": "7", "template": "Up"}]',
        "ava_v2.2/ava_train_v2.2.csv": "film,0902,0.1,0.1,0.2,0.5,1,0\nfilm,0903,0.1,0.1,0.2,0.5,1,0\n",
        "webvid2m/all.csv": "path,caption\n" + "".join(f"w{n}.mp4,words\n" for n in range(50)),
        "own/all.txt": "".join(f"o{n}.mp4 0\n" for n in range(3)),
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return AnnotationSource(folder, frame_rate=lambda film: 25.0)


def test_the_hybrid_mixture(tmp_path: Path) -> None:
    made = hybrid.read_hybrid(mixture(tmp_path), num_sampled=10)
    rows = made.splits["train"]
    assert Counter(row.attributes["source"] for row in rows) == {
        "kinetics710": 2, "something_v2": 1, "ava": 75, "webvid2m": 10, "own": 3,
    }  # fmt: skip
    assert {row.attributes["source"]: row.attributes["stride"] for row in rows} == {
        "kinetics710": "4", "something_v2": "2", "ava": "4", "webvid2m": "4", "own": "4",
    }  # fmt: skip
    assert all(row.label is None and row.captions == () for row in rows)
    assert made.notes == ["own: all 3 clips are used; 10 were to be sampled"]
    again = hybrid.read_hybrid(mixture(tmp_path), num_sampled=10)
    other = hybrid.read_hybrid(mixture(tmp_path), num_sampled=10, seed=1)
    assert again.splits == made.splits
    assert other.splits != made.splits
    assert len(hybrid.read_hybrid(mixture(tmp_path)).splits["train"]) == 2 + 1 + 75 + 50 + 3


def test_a_row_brings_its_stride() -> None:
    fast = Sample(id="a", path="a.mp4", attributes={"stride": "2"})
    plain = Sample(id="b", path="b.mp4")
    four = DensePretrain(frames=8, stride=4)
    assert np.diff(with_row_stride(fast, four).train(100, np.random.RandomState(0))).tolist() == [2] * 7
    assert np.diff(with_row_stride(plain, four).train(100, np.random.RandomState(0))).tolist() == [4] * 7
    sparse = Sparse(frames=8)
    assert with_row_stride(fast, sparse) is sparse
