"""Evaluate the models of a demo on its held-out clips and fill the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from internvideo.apps.demo_budget import VideoSetStatistics
from internvideo.apps.demo_clock import DemoClock
from internvideo.apps.demo_language import generate_captions, language_tasks
from internvideo.data.manifest import Manifest, Sample, read_manifest
from internvideo.data.sampling import linspace_frames
from internvideo.distributed import choose_device
from internvideo.evaluation import score
from internvideo.metrics import bootstrap
from internvideo.metrics.classification import confusion_matrix
from internvideo.models.videomae import VideoMAEPretrain
from internvideo.pipeline import load_trained
from internvideo.plots import report
from internvideo.pretraining.masked import MaskedSettings, MaskedStage
from internvideo.probing.pixel_ridge import pixel_ridge
from internvideo.sample_world.actions import TIME_DIRECTED, reverse_class
from internvideo.tasks import ensemble
from internvideo.tasks.clip_evaluation import make_clip_inputs
from internvideo.tasks.members import member_arrays
from internvideo.tasks.recognition import predict as recognition
from internvideo.tasks.recognition.evaluate import RecognitionOptions, make_scorer
from internvideo.tasks.recognition.evaluate import predict as predict_recognition
from internvideo.tasks.retrieval import predict as retrieval
from internvideo.tasks.retrieval.evaluate import RetrievalOptions
from internvideo.tasks.retrieval.evaluate import predict as predict_retrieval
from internvideo.tasks.table import Predictions, Result, save_result
from internvideo.tasks.task import ClipOptions
from internvideo.training.logging import read_metrics
from internvideo.training.trained import Trained
from internvideo.video.reader import Video

ENCODERS = {
    "single_frame": "single_frame",
    "masked_scratch": "supervised_scratch",
    "masked": "supervised_masked",
    "multimodal": "supervised_multimodal",
    "interaction": "interaction",
}
"""Row of the ablation -> folder of the step whose weights it measures."""

NEXT_STEPS = {
    "the same on labeled videos of your own": "internvideo demo --data FOLDER --output runs/mine",
    "every setting of a stage": "internvideo train sample/masked --dry-run data.train=MANIFEST",
    "these figures again, from the saved tables": "internvideo score {}/tables/masked.npz",
}
SHORT = (
    " This is the short profile: it shows that every step runs. A tenth of the clips and a quarter of the epochs are "
    "too few to judge any claim of the paper, so none is judged; `internvideo demo` without --profile short does."
)


@dataclass(frozen=True)
class DemoData:
    """Training and evaluation data of a demo.

    Attributes:
        train, test: manifests.
        world: whether the data is the sample world, in which the class of a reversed clip is known.
        zero_shot: manifest of classes absent from training, None if there are none.
        unlabelled: manifest of all videos, without their labels, for masked pretraining; None to use `train`.
        facts: statistics of the user's videos, None for the sample world.
        short: whether the demo trains with the short profile, which is too brief to judge a claim of the paper.
    """

    train: Path
    test: Path
    world: bool
    zero_shot: Path | None = None
    unlabelled: Path | None = None
    facts: VideoSetStatistics | None = None
    short: bool = False


def write_demo_report(output: Path, data: DemoData, device: str, clock: DemoClock) -> Path:
    """Evaluate every step's weights on the held-out clips, save the tables, write report.html and report.json."""
    settings = RecognitionOptions(batch_size=64, device=device)
    # The user's few test videos are tested with three views each; the sample world's many need only one.
    views = replace(settings, num_clips=3) if data.facts is not None else settings
    test = read_manifest(data.test)
    trained = {
        name: load_trained(output / folder / "model.safetensors", device=device) for name, folder in ENCODERS.items()
    }
    tables = {
        name: predict_recognition(encoder, test, settings if name == "single_frame" else views)
        for name, encoder in trained.items()
    }
    tables["interaction"] = _keep_scores(tables["interaction"], "fused")
    tables["ridge"] = _predict_ridge(data, test, tables["masked"])
    tables["ensemble"] = ensemble.join([ensemble.make_member(name, tables[name]) for name in ("masked", "multimodal")])
    results = {name: _save(output, name, table) for name, table in tables.items()}
    language = load_trained(output / "multimodal_pretrained" / "model.safetensors", device=device)
    retrieval_table = predict_retrieval([language], test, RetrievalOptions(batch_size=64, device=device))
    retrieval_result = _save(output, "retrieval", retrieval_table)
    language_metrics, measures = language_tasks(output, language, test, data.zero_shot, settings)
    rows = _ablation_rows(results, len(test.classes))
    reverse = _measure_reverse_test(trained["interaction"], test, settings) if data.world else None
    better = max(("masked", "multimodal"), key=lambda name: results[name]["figures"]["top1"])
    gaps = {
        "pretraining": recognition.difference(tables["masked"], tables["masked_scratch"]),
        "interaction": recognition.difference(tables["interaction"], tables["ensemble"]),
        "ensemble": recognition.difference(tables["ensemble"], tables[better]),
        "ridge": recognition.difference(tables["masked"], tables["ridge"]),
    }
    zero = _zero_shot_metrics(retrieval_result, len(test))
    return report.write_report(
        output,
        report.ReportData(
            title="InternVideo: four stages on " + ("the sample world" if data.world else data.test.parent.parent.name),
            introduction="Two encoders are pretrained separately, by reconstructing masked pixels and by matching "
            "clips with sentences. Both are fine-tuned on action labels, then exchange features. All metrics are on "
            "held-out clips." + (SHORT if data.short else ""),
            ablation=rows,
            seconds=sum(clock.seconds_so_far().values()),
            peak_memory_mb=clock.memory_mb(),
            claims=()
            if data.short
            else _claims(
                rows, gaps, zero, reverse, int(retrieval_result["protocol"]["captions_of_several_videos"]), len(test)
            ),
            zero_shot=zero,
            reverse_clip=reverse,
            losses=_loss_curves(output),
            reconstructions=_reconstructions(output, test, device),
            retrievals=_retrievals(retrieval_table, test),
            confusion=_confusion(tables["interaction"], test),
            gates=_gate_curves(output / "interaction"),
            protocol=results["interaction"]["protocol"],
            coverage=results["interaction"]["coverage"],
            next_steps=[report.NextStep(about, command.format(output)) for about, command in NEXT_STEPS.items()],
            measures=measures,
            written=generate_captions(language, test, device),
            seconds_by_step=clock.seconds_so_far(),
            more={"differences": gaps, **language_metrics},
        ),
    )


def _save(output: Path, name: str, table: Predictions) -> Result:
    path = table.save(output / "tables" / f"{name}.npz")
    result: Result = score(table)
    save_result(result, path.with_suffix(".json"))
    return result


def _keep_scores(table: Predictions, column: str) -> Predictions:
    """Return the table with the scores of only one column, such as "fused"."""
    others = {name for name in table.arrays if name.startswith("logits:")} - {f"logits:{column}"}
    return replace(table, arrays={name: values for name, values in table.arrays.items() if name not in others})


def _predict_ridge(data: DemoData, test: Manifest, like: Predictions) -> Predictions:
    """Score the videos of a table with ridge regression on pixels; the scores of unreadable videos stay 0."""
    ridge = pixel_ridge(read_manifest(data.train), test)
    scores = np.zeros((len(like["ids"]), len(test.classes)))
    index_by_id = {str(name): index for index, name in enumerate(like["ids"])}
    for row, row_scores in zip(ridge.row_index, ridge.scores, strict=True):
        if test.rows[row].id in index_by_id:
            scores[index_by_id[test.rows[row].id]] = row_scores
    arrays = {name: values for name, values in like.arrays.items() if not name.startswith("logits:")}
    first = np.unique(like["sample"], return_index=True)[1]  # one view per video
    arrays |= {"sample": like["sample"][first], "view": like["view"][first]}
    baseline = {"model": f"ridge regression on pixels, regularization {ridge.regularization:g}", "weights_sha256": ""}
    return Predictions(like.task, {**arrays, "logits:logits": scores}, {**like.protocol, **baseline}, like.coverage)


def _ablation_rows(results: Mapping[str, Result], num_classes: int) -> list[report.AblationRow]:
    rows = []
    for name in report.ABLATION:
        if name == "chance":
            directed = 1 / num_classes if "top1_time_directed" in results["masked"]["figures"] else None
            rows.append(report.AblationRow(name, 1 / num_classes, directed))
            continue
        figures, intervals = results[name]["figures"], results[name]["intervals"]
        both = [_bounds(intervals, metric) for metric in ("top1", "top1_time_directed")]
        rows.append(report.AblationRow(name, figures["top1"], figures.get("top1_time_directed"), *both))
    return rows


def _bounds(intervals: Mapping[str, Sequence[float]], name: str) -> tuple[float, float] | None:
    return (intervals[name][0], intervals[name][1]) if name in intervals else None


def _zero_shot_metrics(result: Result, num_videos: int) -> report.ZeroShot:
    figures, intervals = result["figures"], result["intervals"]
    names = ("t2v_r1", "v2t_r1", "t2v_r1_dual_softmax", "v2t_r1_dual_softmax")
    return report.ZeroShot(
        **{name: figures[name] for name in names},
        chance=1 / num_videos,
        interval_t2v=_bounds(intervals, "t2v_r1"),
        interval_v2t=_bounds(intervals, "v2t_r1"),
    )


@torch.inference_mode()
def _measure_reverse_test(trained: Trained, test: Manifest, settings: RecognitionOptions) -> report.ReverseClip:
    """Test each time-directed clip forwards and backwards: is its class scored above the reverse class?"""
    pairs = {index: reverse_class(index, test.classes) for index in range(len(test.classes))}
    usable = {index for index, name in enumerate(test.classes) if name in TIME_DIRECTED and pairs[index] is not None}
    directed = test.subset(where=lambda row: row.label in usable)
    forwards = predict_recognition(trained, directed, settings)
    score_clips = make_scorer(trained)
    inputs = make_clip_inputs(trained, directed, settings)
    backwards = recognition.predict(inputs, lambda video: score_clips(video.flip(2)))
    labels = forwards["labels"].astype(int)
    reverse_labels = np.asarray([pairs[label] for label in labels.tolist()], dtype=int)
    row = np.arange(len(labels))
    forward = recognition.probabilities(forwards, "fused")
    backward = recognition.probabilities(backwards, "fused")
    forward_correct = forward[row, labels] > forward[row, reverse_labels]
    backward_correct = backward[row, reverse_labels] > backward[row, labels]
    accuracy = (forward_correct.astype(float) + backward_correct) / 2
    low, high = bootstrap.interval(bootstrap.mean(accuracy), len(accuracy))
    return report.ReverseClip(float(accuracy.mean()), (float(low), float(high)))


def _claims(
    rows: Sequence[report.AblationRow],
    gaps: Mapping[str, Any],
    zero: report.ZeroShot,
    reverse: report.ReverseClip | None,
    num_repeated_captions: int,
    num_clips: int,
) -> list[report.Claim]:
    top1 = {row.name: row.top1 or 0.0 for row in rows}

    def percent(name: str) -> str:
        return f"{100 * top1[name]:.1f} %"

    def gap(name: str) -> str:
        low, high = gaps[name]["interval"]
        text = f"{100 * gaps[name]['top1']:+.1f} points, 95 % interval {100 * low:+.1f} to {100 * high:+.1f}"
        undecided = f"; with {num_clips} clips, gaps below about {50 * (high - low):.0f} points are not significant"
        return text + (undecided if low <= 0 <= high and low < high else "")

    def is_supported(name: str) -> bool | None:
        """Return the sign of a gap as bool, None (undecided) if its paired interval contains zero."""
        low, high = gaps[name]["interval"]
        return None if low <= 0 <= high else bool(low > 0)

    return [
        report.Claim(
            "The masked encoder is better than regression on downscaled pixels",
            f"{percent('masked')} against {percent('ridge')} ({gap('ridge')})",
            is_supported("ridge"),
        ),
        report.Claim(
            "Pretraining helps the masked encoder",
            f"{percent('masked')} against {percent('masked_scratch')} ({gap('pretraining')})",
            is_supported("pretraining"),
        ),
        report.Claim(
            "The two encoders are complementary: their ensemble is above both",
            f"{percent('ensemble')} against {percent('masked')} and {percent('multimodal')} ({gap('ensemble')})",
            is_supported("ensemble"),
        ),
        report.Claim(
            "Cross-model interaction is above the ensemble",
            f"{percent('interaction')} against {percent('ensemble')} ({gap('interaction')})",
            is_supported("interaction"),
        ),
        report.Claim(
            "Zero-shot retrieval is far above chance",
            f"R@1 {100 * zero.t2v_r1:.1f} % and {100 * zero.v2t_r1:.1f} %, chance {100 * zero.chance:.2f} %"
            + (
                f"; {num_repeated_captions} captions fit several clips, of which one counts as right"
                if num_repeated_captions
                else ""
            ),
            # Repeated captions can only lower R@1, so with them a low R@1 does not refute the claim.
            True if min(zero.t2v_r1, zero.v2t_r1) > 5 * zero.chance else (None if num_repeated_captions else False),
        ),
        report.Claim(
            "A clip and its reverse are distinguished",
            "not measured: the classes have no known reverses"
            if reverse is None
            else f"{100 * reverse.accuracy:.1f} % of the choices, chance 50 %",
            None if reverse is None or reverse.interval is None else reverse.interval[0] > 0.5,
        ),
    ]


def _loss_curves(output: Path) -> dict[str, report.LossCurve]:
    curves = {}
    for path in sorted(output.glob("*/metrics.jsonl"), key=lambda path: path.stat().st_mtime):
        rows = [row for row in read_metrics(path.parent) if "loss" in row]
        curves[path.parent.name] = report.LossCurve([row["step"] for row in rows], [row["loss"] for row in rows])
    return curves


def _gate_curves(run: Path) -> report.Gates:
    rows = read_metrics(run)
    names = [name for name in (rows[-1] if rows else {}) if name.startswith(("cma", "fuse"))]
    return report.Gates([row["step"] for row in rows], {name: [row[name] for row in rows] for name in names})


@torch.inference_mode()
def _reconstructions(output: Path, test: Manifest, device: str) -> list[report.Reconstruction]:
    """Render two held-out clips: masked input, reconstruction, original."""
    trained = load_trained(output / "masked" / "model.safetensors", device=device)
    model, device_ = cast(VideoMAEPretrain, trained.model), choose_device(device)
    stage = MaskedStage(model, cast(MaskedSettings, trained.recipe.settings))
    pictures = []
    chosen = Manifest(test.rows[:2], test.classes, test.root, test.source)
    for batch, _ in make_clip_inputs(trained, chosen, ClipOptions(batch_size=2, device=device)).loader:
        clip = batch.to(device_).video
        shown, rebuilt = stage.reconstruct(clip, torch.Generator(device_).manual_seed(0))
        for index, name in enumerate(batch.ids):
            row = next(row for row in chosen.rows if row.id == name)
            caption = row.captions[0] if row.captions else name
            masked, reconstructed, original = (_to_frames(clips[index]) for clips in (shown, rebuilt, clip))
            pictures.append(report.Reconstruction(masked, reconstructed, original, caption))
    return pictures


def _to_frames(clip: torch.Tensor) -> NDArray[np.uint8]:
    """(3, T, S, S) -> (T, S, S, 3) uint8."""
    array: NDArray[np.uint8] = clip.permute(1, 2, 3, 0).cpu().numpy()
    return array


def _retrievals(
    table: Predictions, test: Manifest, num_queries: int = 4, num_shown: int = 3
) -> list[report.RetrievalExample]:
    """Return the first sentences of the test split, each with the clips that score highest for it."""
    row_of = {row.id: row for row in test.rows}
    found = []
    [scale] = member_arrays(table, "scale")
    for query, scores in enumerate(retrieval.similarity(table)[:num_queries] / float(scale)):
        clips = []
        for video in np.argsort(-scores)[:num_shown]:
            frames = _read_frames(test, row_of[str(table["ids"][video])])
            clips.append(report.RetrievedClip(frames, bool(video == table["owner"][query]), float(scores[video])))
        found.append(report.RetrievalExample(str(table["captions"][query]), clips))
    return found


def _read_frames(test: Manifest, row: Sample, num_frames: int = 6) -> NDArray[np.uint8]:
    """Return evenly spaced, downscaled frames (num_frames, H, W, 3) uint8 of a clip."""
    with Video(test.video_path(row), short_side=64, fps=row.frame_rate) as video:
        return video.frames(linspace_frames(video.info.frames, num_frames).tolist())


def _confusion(table: Predictions, test: Manifest) -> report.Confusion:
    predicted = recognition.probabilities(table, "fused").argmax(axis=1)
    matrix = confusion_matrix(predicted, table["labels"].astype(np.int64), len(test.classes))
    return report.Confusion(matrix, test.classes)
