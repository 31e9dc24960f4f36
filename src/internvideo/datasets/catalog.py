"""The 39 benchmarks of the paper (section 4) and related data sets: annotation reader, sizes, metric, published figure.

A benchmark is a (task, data set) pair that has a row or column in one of the paper's tables. Sizes are those of the
official releases; `tolerance` is the relative difference that is accepted where a size is approximate ("about 240k").

Not confirmed are the sizes of Kinetics-600 and 700, Something-Something V1 and V2, ActivityNet's test set, HACS,
FineAction, AVA, AVA-Kinetics, VATEX val and test, LSMDC multiple choice and Ego4D: a reported difference may be an
error of this table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from internvideo.data.sample import Sample, did_you_mean
from internvideo.datasets import (
    activitynet,
    ava,
    captions,
    clip_sets,
    corpora,
    ego4d,
    ego4d_objects,
    hybrid,
    kinetics,
    navigation,
    questions,
    something,
)
from internvideo.datasets.annotations import Annotations
from internvideo.datasets.reading import AnnotationSource
from internvideo.errors import ManifestError

AnnotationParser = Callable[[AnnotationSource], Annotations]
Unit = Literal["clips", "videos", "questions", "Kinetics clips"]


@dataclass(frozen=True)
class Metrics:
    """The task of `internvideo evaluate` for a benchmark, and the metrics of it that the benchmark reports."""

    evaluation: str = ""
    metrics: tuple[str, ...] = ()


METRICS_OF_TASK: dict[str, Metrics] = {
    "recognition": Metrics("recognition", ("top1",)),
    "temporal localization": Metrics("temporal_localization", ("mean_mAP",)),
    "spatio-temporal localization": Metrics("spatio_temporal_localization", ("frame_mAP@0.5",)),
    "retrieval": Metrics("retrieval", ("t2v_r1", "v2t_r1")),
    "question answering": Metrics("question_answering", ("accuracy",)),
    "navigation": Metrics("navigation", ("NE_m", "PL_m", "SR", "nDTW", "SPL")),
    "zero-shot recognition": Metrics("zero_shot", ("top1",)),
    "zero-shot retrieval": Metrics("retrieval", ("t2v_r1", "v2t_r1")),
    "zero-shot multiple choice": Metrics("multiple_choice", ("accuracy",)),
    "open set": Metrics("open_set", ("evidential.auroc_binary", "evidential.top1")),
    "Ego4D": Metrics(),
    "pretraining": Metrics(),
}
"""Task of a benchmark -> its metrics, unless `Benchmark.scored_by` is set (as for Ego4D)."""


@dataclass(frozen=True)
class Benchmark:
    """One entry of the catalog.

    Attributes:
        title: the data set's name.
        task: a key of MEASURES.
        read: the reader of its annotation files.
        metric: the reported metric. paper: the paper's result, "" if it has none.
        paper_number: 1 to 39 for the benchmarks of the paper, 0 for other data sets.
        sizes: split -> official size in `unit`. tolerance: relative difference of a size that is not reported.
        unit: what a size counts: rows, distinct videos, questions.
        num_classes: number of classes, 0 without classes.
        scored_by: task and metrics, if not METRICS_OF_TASK[task].
    """

    title: str
    task: str
    read: AnnotationParser
    metric: str
    paper: str = ""
    paper_number: int = 0
    sizes: Mapping[str, int] = field(default_factory=dict)
    unit: Unit = "clips"
    tolerance: float = 0.0
    num_classes: int = 0
    scored_by: Metrics | None = None

    @property
    def measure(self) -> Metrics:
        """How it is measured; `evaluation` is "" for pretraining data."""
        return self.scored_by or METRICS_OF_TASK[self.task]

    def count(self, rows: Sequence[Sample]) -> int:
        """Count rows in the benchmark's unit."""
        if self.unit == "videos":
            return len({row.path for row in rows})
        if self.unit == "questions":
            return sum(len(row.qa) for row in rows)
        if self.unit == "Kinetics clips":
            return sum(row.attributes.get("source") == "kinetics" for row in rows)
        return len(rows)

    def differences(self, annotations: Annotations) -> list[str]:
        """List the differences from the official release, one sentence each."""
        sentences = []
        for split, size in self.sizes.items():
            if split not in annotations.splits:
                sentences.append(f"no split {split} in the annotations; officially {size:,} {self.unit}")
                continue
            count = self.count(annotations.splits[split])
            if abs(count - size) > self.tolerance * size:
                about = "about " if self.tolerance else ""
                sentences.append(f"{split} has {count:,} {self.unit}, officially {about}{size:,}")
        if self.num_classes and len(annotations.classes) != self.num_classes:
            sentences.append(f"{len(annotations.classes):,} classes, officially {self.num_classes:,}")
        return sentences

    @property
    def about(self) -> str:
        """One line: task, data set, splits, classes, metric, the paper's figure."""
        about = "~" if self.tolerance else ""
        sizes = ", ".join(f"{split} {about}{size:,}" for split, size in self.sizes.items())
        parts = [f"{self.task}: {self.title}"]
        parts += [f"{sizes} {self.unit}"] if sizes else []
        parts += [f"{self.num_classes:,} classes"] if self.num_classes else []
        parts += [self.metric] if self.metric else []
        parts += [f"paper {self.paper}"] if self.paper else []
        measure = self.measure
        parts += [f"evaluate {measure.evaluation}: {', '.join(measure.metrics)}"] if measure.evaluation else []
        return "; ".join(parts)


def _sizes(train: int = 0, val: int = 0, test: int = 0) -> dict[str, int]:
    return {name: size for name, size in (("train", train), ("val", val), ("test", test)) if size}


_HMDB_SIZES = {f"{part}{n}": size for n in (1, 2, 3) for part, size in (("train", 3570), ("test", 1530))}
_RETRIEVAL = "R@1 text to video / video to text"
_TAL = "mAP at tIoU .5:.05:.95"

BENCHMARKS: dict[str, Benchmark] = {
    "kinetics400": Benchmark(
        "Kinetics-400", "recognition", kinetics.read_400, "top-1", "D 90.9, T 91.1", 1,
        _sizes(240_000, 20_000, 39_000), tolerance=0.1, num_classes=400,
    ),
    "kinetics600": Benchmark(
        "Kinetics-600", "recognition", kinetics.read_600, "top-1", "D 91.1, T 91.3", 2,
        _sizes(390_000, 30_000, 60_000), tolerance=0.1, num_classes=600,
    ),
    "kinetics700": Benchmark(
        "Kinetics-700", "recognition", kinetics.read_700, "top-1", "D 83.8, T 84.0", 3,
        _sizes(545_000, 35_000, 70_000), tolerance=0.1, num_classes=700,
    ),
    "something_v1": Benchmark(
        "Something-Something V1", "recognition", something.read_v1, "top-1", "70.0", 4,
        _sizes(86_017, 11_522, 10_960), num_classes=174,
    ),
    "something_v2": Benchmark(
        "Something-Something V2", "recognition", something.read_v2, "top-1", "77.2", 5,
        _sizes(168_913, 24_777, 27_157), num_classes=174,
    ),
    "activitynet": Benchmark(
        "ActivityNet 1.3", "recognition", activitynet.read_activitynet, "top-1", "94.3", 6,
        _sizes(10_024, 4_926, 5_044), num_classes=200,
    ),
    "hacs": Benchmark(
        "HACS", "recognition", activitynet.read_hacs, "top-1", "95.5", 7,
        _sizes(37_613, 5_981, 5_987), unit="videos", num_classes=200,
    ),
    "hmdb51": Benchmark(
        "HMDB51", "recognition", clip_sets.read_hmdb51, "top-1, mean of 3 splits", "89.3", 8, _HMDB_SIZES,
        num_classes=51,
    ),
    "thumos14": Benchmark(
        "THUMOS14", "temporal localization", activitynet.read_thumos14, "mAP at tIoU .3:.1:.7", "71.58", 9,
        _sizes(val=200, test=213), num_classes=20,
    ),
    "activitynet_segments": Benchmark(
        "ActivityNet 1.3", "temporal localization", activitynet.read_activitynet, _TAL, "39.00", 10,
        _sizes(10_024, 4_926, 5_044), num_classes=200,
    ),
    "hacs_segments": Benchmark(
        "HACS Segments 1.1.1", "temporal localization", activitynet.read_hacs_segments, _TAL,
        "41.32 (ActionFormer), 41.55 (TCANet)", 11, _sizes(37_613, 5_981, 5_987), num_classes=200,
    ),
    "fineaction": Benchmark(
        "FineAction", "temporal localization", activitynet.read_fineaction, _TAL, "17.57", 12,
        _sizes(8_440, 4_174, 4_118), num_classes=106,
    ),
    "ava": Benchmark(
        "AVA 2.2", "spatio-temporal localization", ava.read_ava, "frame mAP at IoU .5 of 60 classes", "41.01", 13,
        _sizes(235, 64, 131), unit="videos", num_classes=80,
    ),
    "ava_kinetics": Benchmark(
        "AVA-Kinetics", "spatio-temporal localization", ava.read_ava_kinetics, "frame mAP at IoU .5 of 60 classes",
        "42.51", 14, _sizes(141_000, 32_000, 65_000), unit="Kinetics clips", tolerance=0.1, num_classes=80,
    ),
    "msrvtt": Benchmark(
        "MSR-VTT 9k/1k-A", "retrieval", captions.read_msrvtt, _RETRIEVAL, "55.2/57.9", 15, _sizes(9_000, test=1_000),
    ),
    "msvd": Benchmark(
        "MSVD", "retrieval", captions.read_msvd, _RETRIEVAL, "58.4/76.3", 16, _sizes(1_200, 100, 670),
    ),
    "lsmdc": Benchmark(
        "LSMDC", "retrieval", captions.read_lsmdc, _RETRIEVAL, "34.0/34.9", 17, _sizes(101_079, 7_408, 1_000),
    ),
    "activitynet_captions": Benchmark(
        "ActivityNet Captions, paragraphs", "retrieval", captions.read_activitynet_captions, _RETRIEVAL,
        "62.2/62.8", 18, _sizes(10_009, 4_917),
    ),
    "didemo": Benchmark(
        "DiDeMo, paragraphs", "retrieval", captions.read_didemo, _RETRIEVAL, "57.9/59.1", 19,
        _sizes(8_395, 1_065, 1_004),
    ),
    "vatex": Benchmark(
        "VATEX", "retrieval", captions.read_vatex, _RETRIEVAL, "71.1/87.2", 20, _sizes(25_991, 1_500, 1_500),
    ),
    "msrvtt_qa": Benchmark(
        "MSRVTT-QA", "question answering", questions.read_msrvtt_qa, "accuracy, 1,500 answers", "47.1", 21,
        _sizes(158_581, 12_278, 72_821), unit="questions",
    ),
    "msvd_qa": Benchmark(
        "MSVD-QA", "question answering", questions.read_msvd_qa, "accuracy, 1,000 answers", "55.5", 22,
        _sizes(30_933, 6_415, 13_157), unit="questions",
    ),
    "tgif_qa": Benchmark(
        "TGIF FrameQA", "question answering", questions.read_tgif_qa, "accuracy, 1,540 answers", "72.2", 23,
        _sizes(39_392, test=13_691), unit="questions",
    ),
    "r2r_ce": Benchmark(
        "R2R-CE", "navigation", navigation.read_r2r, "NE, PL, SR, nDTW, SPL on val_unseen",
        "4.95, 10.44, 52.90, 61.55, 47.70", 24,
        {"train": 10_819, "val_seen": 778, "val_unseen": 1_839, "test": 3_408},
    ),
    "zero_shot_msrvtt": Benchmark(
        "MSR-VTT 1k-A", "zero-shot retrieval", captions.read_msrvtt, _RETRIEVAL, "40.7/39.6", 25, _sizes(test=1_000),
    ),
    "zero_shot_msvd": Benchmark(
        "MSVD", "zero-shot retrieval", captions.read_msvd, _RETRIEVAL, "43.4/67.6", 26, _sizes(test=670),
    ),
    "zero_shot_lsmdc": Benchmark(
        "LSMDC", "zero-shot retrieval", captions.read_lsmdc, _RETRIEVAL, "17.6/13.2", 27, _sizes(test=1_000),
    ),
    "zero_shot_activitynet_captions": Benchmark(
        "ActivityNet Captions, paragraphs", "zero-shot retrieval", captions.read_activitynet_captions, _RETRIEVAL,
        "30.7/31.4", 28, _sizes(val=4_917),
    ),
    "zero_shot_didemo": Benchmark(
        "DiDeMo, paragraphs", "zero-shot retrieval", captions.read_didemo, _RETRIEVAL, "31.5/33.5", 29,
        _sizes(test=1_004),
    ),
    "zero_shot_vatex": Benchmark(
        "VATEX", "zero-shot retrieval", captions.read_vatex, _RETRIEVAL, "49.5/69.5", 30, _sizes(test=1_500),
    ),
    "msrvtt_mc": Benchmark(
        "MSR-VTT", "zero-shot multiple choice", questions.read_msrvtt_choice, "accuracy of 5", "93.4", 31,
        _sizes(test=2_990),
    ),
    "lsmdc_mc": Benchmark(
        "LSMDC", "zero-shot multiple choice", questions.read_lsmdc_choice, "accuracy of 5", "77.3", 32,
        _sizes(test=10_053),
    ),
    "ucf101_hmdb51": Benchmark(
        "UCF101, unknown HMDB51", "open set", clip_sets.read_open_hmdb, "AUC, closed-set accuracy", "85.48, 97.89", 33,
        {"train": 9_537, "test": 3_783, "unknown": 1_530}, num_classes=101,
    ),
    "ucf101_mit": Benchmark(
        "UCF101, unknown Moments in Time 2", "open set", clip_sets.read_open_moments, "AUC", "91.85", 34,
        {"train": 9_537, "test": 3_783, "unknown": 30_500}, num_classes=101,
        scored_by=Metrics("open_set", ("evidential.auroc_binary",)),
    ),
    "ego4d_mq": Benchmark(
        "Ego4D moments", "Ego4D", ego4d.read_moments, "average mAP, R@1x at .5", "fig. 1", 35, num_classes=110,
        scored_by=Metrics("temporal_localization", ("mean_mAP", "recall_1x")),
    ),
    "ego4d_nlq": Benchmark(
        "Ego4D language queries", "Ego4D", ego4d.read_queries, "R@1, R@5 at IoU .3, .5", "fig. 1", 36,
        _sizes(11_300, 3_900, 4_000), tolerance=0.05,
        scored_by=Metrics("grounding", tuple(f"R{count}@{overlap}" for count in (1, 5) for overlap in (0.3, 0.5))),
    ),
    "ego4d_sta": Benchmark(
        "Ego4D short-term anticipation", "Ego4D", ego4d.read_anticipation, "top-5 mAP", "fig. 1", 37,
        _sizes(27_800, 17_200, 19_900), tolerance=0.02, num_classes=87,
        scored_by=Metrics("anticipation", tuple(f"top5_mAP_{of}" for of in ("noun", "noun_verb", "noun_time", "all"))),
    ),
    "ego4d_fhp": Benchmark(
        "Ego4D future hands", "Ego4D", ego4d.read_hands, "displacement in pixels", "fig. 1", 38,
        scored_by=Metrics("future_hands", tuple(f"{h}_{w}_px" for w in ("mean", "contact") for h in ("left", "right"))),
    ),
    "ego4d_scod": Benchmark(
        "Ego4D state-change objects", "Ego4D", ego4d_objects.read_state_change, "COCO AP", "fig. 1", 39, num_classes=1,
        scored_by=Metrics("state_change", ("AP", "AP50", "AP75")),
    ),
    "zero_shot_k400": Benchmark(
        "Kinetics-400 test list", "zero-shot recognition", kinetics.read_zero_shot, "top-1", "64.25",
        sizes={"test": 39_000}, tolerance=0.1, num_classes=400,
    ),
    "kinetics710": Benchmark(
        "Kinetics-710", "pretraining", kinetics.read_710, "top-1",
        sizes={"train": 658_000, "val": 67_000}, tolerance=0.02, num_classes=710,
        scored_by=METRICS_OF_TASK["recognition"],
    ),
    "unlabeled_hybrid": Benchmark(
        "UnlabeledHybrid", "pretraining", hybrid.read_hybrid, "", sizes={"train": 1_348_000}, tolerance=0.02,
    ),
    "webvid": Benchmark("WebVid 2M, 10M", "pretraining", corpora.read_webvid, ""),
    "howto100m": Benchmark("HowTo100M", "pretraining", corpora.read_howto100m, ""),
    "ucf101": Benchmark(
        "UCF101", "recognition", clip_sets.read_ucf101, "top-1",
        sizes={"train1": 9_537, "test1": 3_783}, num_classes=101,
    ),
    "mit_v2": Benchmark(
        "Moments in Time 2", "recognition", clip_sets.read_moments, "top-1", sizes={"val": 30_500}, num_classes=305,
    ),
    "msrvtt_full": Benchmark(
        "MSR-VTT, whole", "retrieval", captions.read_msrvtt_full, _RETRIEVAL, sizes=_sizes(6_513, 497, 2_990),
    ),
    "tgif_choice": Benchmark(
        "TGIF-QA action, transition", "question answering", questions.read_tgif_choice, "accuracy of 5",
        scored_by=METRICS_OF_TASK["zero-shot multiple choice"],
    ),
    "hacs_clips": Benchmark("HACS Clips 1.1", "recognition", activitynet.read_hacs_clips, "top-1", num_classes=200),
}  # fmt: skip
"""Name -> benchmark."""


def benchmark(name: str) -> Benchmark:
    """Return the benchmark of a name. Raises ManifestError: there is none."""
    if name not in BENCHMARKS:
        found = f"no benchmark '{name}'{did_you_mean(name, BENCHMARKS)}"
        raise ManifestError("benchmark", found, "a name of `internvideo list benchmarks`")
    return BENCHMARKS[name]
