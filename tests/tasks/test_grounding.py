"""Language queries: reading, the head, its losses, spans, figures as the published evaluator counts them, learning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from goldens_folder import GOLDENS
from torch.nn import functional as F

from internvideo.apps.dry_run import describe
from internvideo.data.loader import LoaderSettings
from internvideo.data.manifest import write_manifest
from internvideo.data.sample import Sample, Segment
from internvideo.data.vocabulary import Vocabulary
from internvideo.errors import ManifestError, RecipeError, RunError
from internvideo.evaluation import evaluate_task
from internvideo.evaluation import score as score_any
from internvideo.objectives.grounding import NO_ANSWER, highlight_loss, highlight_targets, span_loss, span_to_steps
from internvideo.pipeline import run_recipe
from internvideo.recipe import Recipe, build_recipe
from internvideo.tasks.grounding.data import QueryLoader, QuerySet, QuerySettings, read_query_set, select_answered
from internvideo.tasks.grounding.model import ContextQueryAttention, Grounder, GrounderConfig, most_probable_spans
from internvideo.tasks.grounding.predict import compute_prior, score, submission
from internvideo.tasks.table import Predictions
from internvideo.tasks.temporal_localization.data import FeatureSettings

pytestmark = pytest.mark.usefixtures("drawn_once")

DEEDS = ("jumping", "running", "sitting")
STEP = 0.5  # seconds between features: stride 4 at 8 fps


def world(folder: Path, videos: int = 24) -> Path:
    """Videos in which each of three things happens once, features that show which, a query about each; the manifest."""
    rng = np.random.default_rng(0)
    database: dict[str, Any] = {}
    rows = []
    (folder / "features").mkdir(parents=True)
    for number in range(videos):
        length, split = int(rng.integers(22, 31)), "test" if number % 3 == 2 else "train"
        values, at = 0.1 * rng.standard_normal((length, 4)), int(rng.integers(0, 4))
        for place, deed in enumerate(rng.permutation(3).tolist()):
            size = int(rng.integers(3, 6))
            values[at : at + size, deed] += 1
            rows.append(
                Sample(
                    id=f"v{number}_0_{place}",
                    path=f"clips/v{number}.mp4",
                    captions=((f"When is it {DEEDS[deed]}?", f"when does it start {DEEDS[deed]}?")[number % 2],),
                    segments=(Segment(start=at * STEP, end=(at + size) * STEP, label=0),),
                    split=split,
                    attributes={"clip_uid": f"v{number}", "annotation_uid": "a", "query_idx": str(place)},
                )
            )
            at += size + int(rng.integers(1, 3))
        np.save(folder / "features" / f"v{number}.npy", values.astype(np.float32))
        database[f"v{number}"] = {"subset": split, "fps": 8.0, "duration": length * STEP, "annotations": []}
    protocol = {"model": "m", "weights_sha256": "1", "layer": "pooled", "window": 4, "stride": 4, "fps": None}
    text = {"protocol": protocol, "classes": ["answer"], "database": database}
    (folder / "features" / "index.json").write_text(json.dumps(text))
    write_manifest(folder / "queries.jsonl", rows, ["answer"])
    return folder / "queries.jsonl"


def read(path: Path, *, split: str | None = None) -> QuerySet:
    return read_query_set(path, QuerySettings(features=path.parent / "features"), FeatureSettings(), split=split)


def recipe(path: Path, **changes: Any) -> Recipe:
    model = {"input_width": 4, "width": 16, "heads": 2, "kernel": 3, "max_length": 32, "words": 8, "dropout": 0.0}
    tree = {
        "stage": "grounding",
        "model": {"name": "grounder", "overrides": model},
        "data": {
            "train": str(path),
            "split": "train",
            "queries": {"features": str(path.parent / "features")},
            "loader": {"batch_size": 16},
        },
        "optimizer": {"base_lr": 1e-2},
        "schedule": {"steps": 100, "warmup": 5},
        "loop": {"max_grad_norm": 1.0, "log_every": 50},
    }
    return build_recipe({**tree, **changes})


def test_a_manifest_of_queries_finds_the_features_of_its_videos(tmp_path: Path) -> None:
    queries = read(world(tmp_path), split="test")
    assert (len(queries), queries.missing, set(queries.videos)) == (24, (), {f"v{n}" for n in range(2, 24, 3)})
    first, video = queries.queries[0], queries.features.videos[0]
    assert (first.clip, first.annotation, first.number, video.id) == ("v2", "a", 0, first.id)
    assert video.file.name == "v2.npy"
    assert video.spans.shape == (1, 2)
    assert queries.fingerprint != read(tmp_path / "queries.jsonl", split="train").fingerprint


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"captions": ()}, "no text"),
        ({"segments": (Segment(start=0, end=1, label=0),) * 2}, "2 segments"),
        ({"attributes": {"query_idx": "two"}}, "query_idx 'two'"),
        ({"path": "elsewhere.mp4"}, "have no features"),
    ],
)
def test_a_row_that_is_no_query_is_told(tmp_path: Path, changed: dict[str, Any], told: str) -> None:
    path = world(tmp_path, 1)
    row = Sample(id="q", path="v0.mp4", captions=("when?",)).model_copy(update=changed)
    write_manifest(path, [row], ["answer"])
    with pytest.raises(ManifestError, match=told):
        read(path)


def test_without_features_or_answers_there_is_nothing_to_learn(tmp_path: Path) -> None:
    path = world(tmp_path, 2)
    with pytest.raises(RecipeError, match=r"data\.queries\.features"):
        read_query_set(path, QuerySettings(), FeatureSettings())
    rows = [
        Sample(id="a", path="v0.mp4", captions=("when?",)),
        Sample(id="b", path="v1.mp4", captions=("when?",), segments=(Segment(start=1, end=2, label=0),)),
        Sample(id="c", path="gone.mp4", captions=("when?",)),
    ]
    write_manifest(path, rows, ["answer"])
    queries = read(path)
    assert (len(queries), queries.missing) == (2, ("c",))
    assert [query.id for query in select_answered(queries).queries] == ["b"]
    write_manifest(path, rows[:1], ["answer"])
    with pytest.raises(ManifestError, match="none of 1 queries has an answer"):
        select_answered(read(path))


def test_a_batch_depends_on_its_place_alone_and_carries_its_words(tmp_path: Path) -> None:
    queries = read(world(tmp_path, 6))
    words = Vocabulary.from_texts((query.text for query in queries.queries), 100)
    loader = QueryLoader(queries, words, 8, FeatureSettings(), 32, LoaderSettings(batch_size=4))
    whole, again = list(loader.epoch(1)), list(loader.epoch(1, 2))
    assert len(whole) == len(loader) == 4
    assert torch.equal(whole[2].features, again[0].features)
    texts = {query.id: query.text for query in queries.queries}
    for batch in whole:
        for name, row, spans in zip(batch.ids, batch.words.tolist(), batch.segments, strict=True):
            assert [number for number in row if number] == words.encode(texts[name], 8)
            assert len(spans) == 1
    assert whole[0].to(torch.device("cpu")).words.equal(whole[0].words)


def grounder(**changes: Any) -> Grounder:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "input_width": 4,
        "vocab_size": 9,
        "width": 8,
        "heads": 2,
        "max_length": 16,
        "max_words": 8,
    }
    return Grounder(GrounderConfig(**{**sizes, "kernel": 3, **changes})).eval()


def test_what_stands_behind_a_video_or_a_query_changes_nothing() -> None:
    model = grounder()
    features, words = torch.randn(1, 4, 10), torch.tensor([[2, 5, 3]])
    plain = model(features, torch.ones(1, 10, dtype=torch.bool), words)
    longer = torch.cat([features, torch.full((1, 4, 6), 7.0)], dim=2)
    mask = torch.arange(16)[None] < 10
    padded = model(longer, mask, torch.tensor([[2, 5, 3, 0, 0]]))
    for name in ("start", "end", "highlight"):
        torch.testing.assert_close(getattr(padded, name)[:, :10], getattr(plain, name), atol=1e-5, rtol=1e-5)
    assert (padded.start[:, 10:] == float("-inf")).all()
    assert (padded.end[:, 10:] == float("-inf")).all()


def test_the_query_and_the_order_of_its_words_matter() -> None:
    model, mask = grounder(), torch.ones(3, 10, dtype=torch.bool)
    features = torch.randn(1, 4, 10).expand(3, -1, -1)
    start = model(features, mask, torch.tensor([[2, 5, 3], [2, 3, 5], [2, 6, 3]])).start
    assert not torch.allclose(start[0], start[1], atol=1e-4)
    assert not torch.allclose(start[0], start[2], atol=1e-4)


def test_a_video_longer_than_those_of_training_is_read() -> None:
    found = grounder()(torch.randn(1, 4, 40), torch.ones(1, 40, dtype=torch.bool), torch.tensor([[2, 3]]))
    assert found.start.shape == (1, 40)
    assert bool(found.end.isfinite().all())


def test_context_query_attention_is_that_of_the_paper() -> None:
    torch.manual_seed(0)
    module = ContextQueryAttention(6).eval()
    video, query = torch.randn(2, 5, 6), torch.randn(2, 3, 6)
    seen, read_ = torch.ones(2, 5, dtype=torch.bool), torch.ones(2, 3, dtype=torch.bool)
    seen[1, 4], read_[1, 2] = False, False
    like = module.of_video(video) + module.of_query(query).transpose(1, 2) + (video * module.of_both) @ query.mT
    over_words = like.masked_fill(~read_[:, None], float("-inf")).softmax(dim=2)
    over_steps = like.masked_fill(~seen[:, :, None], float("-inf")).softmax(dim=1)
    asked, through = over_words @ query, over_words @ over_steps.mT @ video
    expected = module.out(torch.cat([video, asked, video * asked, video * through], dim=-1))
    torch.testing.assert_close(module(video, query, seen, read_), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("changed", [{"heads": 3}, {"kernel": 4}, {"vocab_size": 1}, {"max_length": 0}])
def test_sizes_that_do_not_fit_are_refused(changed: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"width|kernel"):
        grounder(**changed)


def test_ends_are_the_borders_of_steps_next_to_them() -> None:
    assert span_to_steps(torch.tensor([2.0, 5.0]) - 0.5, torch.tensor(9)).tolist() == [2, 4]
    assert span_to_steps(torch.tensor([1.8, 5.3]), torch.tensor(9)).tolist() == [2, 5]
    assert span_to_steps(torch.tensor([2.1, 2.2]), torch.tensor(9)).tolist() == [3, 3]
    assert span_to_steps(torch.tensor([-3.0, 40.0]), torch.tensor(9)).tolist() == [0, 8]


def test_losses_of_known_logits() -> None:
    steps = torch.tensor([[1, 2], [NO_ANSWER, NO_ANSWER]])
    start, end = torch.randn(2, 5), torch.randn(2, 5)
    expected = F.cross_entropy(start[:1], torch.tensor([1])) + F.cross_entropy(end[:1], torch.tensor([2]))
    torch.testing.assert_close(span_loss(start, end, steps), expected)
    assert span_loss(start, end, steps[1:].expand(2, 2)) == 0
    targets = highlight_targets(steps, 5, 0.5)
    assert targets.tolist() == [[1, 1, 1, 1, 0], [0] * 5]
    mask = torch.tensor([[True] * 4 + [False], [False] * 5])
    assert highlight_loss(torch.full((2, 5), 20.0), targets, mask) < 1e-6
    assert highlight_loss(torch.full((2, 5), -20.0), targets, mask) == pytest.approx(40.0)


def test_the_likeliest_spans_are_those_of_all_pairs() -> None:
    start, end = torch.randn(7, dtype=torch.float64), torch.randn(7, dtype=torch.float64)
    pairs = {(i, j): float(start.softmax(0)[i] * end.softmax(0)[j]) for i in range(7) for j in range(i, 7)}
    order = sorted(pairs, key=lambda pair: -pairs[pair])
    spans, scores = most_probable_spans(start, end, 5, 1.0)
    assert [(row[0] + 0.5, row[1] - 0.5) for row in spans.tolist()] == order[:5]
    np.testing.assert_allclose(scores, [pairs[pair] for pair in order[:5]], rtol=1e-6)


def test_a_span_near_a_likelier_one_waits() -> None:
    start, end = torch.full((20,), -9.0), torch.full((20,), -9.0)
    start[2], start[3], start[12], end[9], end[15] = 5.0, 4.9, 2.0, 5.0, 2.0
    spans, scores = most_probable_spans(start, end, 3, 0.7)
    assert spans[0].tolist() == [1.5, 9.5]
    assert [2.5, 9.5] not in spans.tolist()
    assert scores.tolist() == sorted(scores.tolist(), reverse=True)
    assert most_probable_spans(torch.zeros(1), torch.zeros(1), 5, 0.7)[0].tolist() == [[-0.5, 0.5]]
    assert len(most_probable_spans(torch.zeros(2), torch.zeros(2), 5, 0.0)[0]) == 3


def stored(name: str) -> Any:
    return json.loads((GOLDENS / "tasks" / "ego4d_nlq" / name).read_text())


def stored_table() -> Predictions:
    """The stored predictions in the columns that `predict` writes."""
    truths, durations = {}, {}
    for video in stored("nlq_val.json")["videos"]:
        for clip in video["clips"]:
            durations[clip["clip_uid"]] = clip["clip_end_sec"] - clip["clip_start_sec"]
            for note in clip["annotations"]:
                for number, query in enumerate(note["language_queries"]):
                    key = (clip["clip_uid"], note["annotation_uid"], number)
                    truths[key] = (query["clip_start_sec"], query["clip_end_sec"])
    rows = stored("pred.json")["results"]
    keys = [(row["clip_uid"], row["annotation_uid"], row["query_idx"]) for row in rows]
    spans = [span for row in rows for span in row["predicted_times"]]
    arrays = {
        "ids": np.asarray(["_".join(map(str, key)) for key in keys]),
        "clip": np.asarray([key[0] for key in keys]),
        "annotation": np.asarray([key[1] for key in keys]),
        "number": np.asarray([key[2] for key in keys]),
        "video": np.asarray([key[0] for key in keys]),
        "duration": np.asarray([durations[key[0]] for key in keys]),
        "truth": np.asarray([truths[key] for key in keys]),
        "query": np.repeat(np.arange(len(rows)), [len(row["predicted_times"]) for row in rows]),
        "span": np.asarray(spans, dtype=np.float64),
        "score": np.ones(len(spans)),
    }
    protocol = {"prior": [[0.0, 0.5], [0.5, 1.0]], "usual_length": 10.0}
    return Predictions("grounding", arrays, protocol, {"asked": len(rows), "read": len(rows), "unreadable": []})


@pytest.mark.parity
def test_figures_and_file_of_predictions_are_the_evaluators() -> None:
    table, expected = stored_table(), stored("expected.json")
    figures = score_any(table)["figures"]
    for level, row in zip(expected["thresholds"], expected["recall_rows_threshold_cols_topk"], strict=True):
        for k, value in zip(expected["topK"], row, strict=True):
            if level in (0.3, 0.5) and k in (1, 5):
                assert figures[f"R{k}@{level:g}"] == pytest.approx(value, abs=1e-9)
    assert figures["mean_iou"] == pytest.approx(expected["mean_iou_of_best_three"], abs=1e-9)
    assert submission(table) == stored("pred.json")


def test_baselines_are_what_they_say() -> None:
    arrays = {
        "ids": np.asarray(["a", "b", "c"]),
        "video": np.asarray(["v", "v", "w"]),
        "duration": np.asarray([10.0, 10.0, 20.0]),
        "truth": np.asarray([[4.0, 6.0], [0.0, 10.0], [np.nan, np.nan]]),
        "query": np.asarray([0, 1, 2, 2]),
        "span": np.asarray([[4.0, 6.0], [5.0, 6.0], [1.0, 2.0], [2.0, 3.0]]),
        "score": np.ones(4),
    }
    protocol = {"prior": [[0.4, 0.6], [0.0, 1.0]], "usual_length": 2.0}
    table = Predictions("grounding", arrays, protocol, {"asked": 3, "read": 3, "unreadable": []})
    figures = score(table)["figures"]
    assert (figures["R1@0.5"], figures["R1@0.5_whole"], figures["R1@0.5_centre"]) == (0.5, 0.5, 0.5)
    assert (figures["R1@0.5_prior"], figures["R5@0.5_prior"], figures["R1@0.5_over_prior"]) == (0.5, 1.0, 0.0)
    assert figures["mean_iou_centre"] == pytest.approx(0.6)
    none = {**arrays, "truth": np.full((3, 2), np.nan)}
    with pytest.raises(RunError, match="no query has an answer"):
        score(Predictions("grounding", none, protocol, table.coverage))


def test_the_prior_covers_as_many_training_answers_as_it_can(tmp_path: Path) -> None:
    path = world(tmp_path, 3)
    spans = [(0, 2), (0, 2), (0, 2), (5, 7), (5, 7), (3, 4)]
    rows = [
        Sample(id=str(n), path="v0.mp4", captions=("when?",), segments=(Segment(start=a, end=b, label=0),))
        for n, (a, b) in enumerate(spans)
    ]
    write_manifest(path, rows, ["answer"])
    queries = read(path)
    length = queries.features.videos[0].duration
    told = compute_prior(queries)
    assert told["usual_length"] == 2.0
    np.testing.assert_allclose(np.asarray(told["prior"])[:3] * length, [[0, 2], [5, 7], [3, 4]], atol=1e-4)


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("grounding")
    run_recipe(recipe(world(folder / "world")), folder / "run", device="cpu")
    return folder


def test_it_learns_to_find_what_a_query_asks_for(learned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, output = learned / "world" / "queries.jsonl", learned / "found"
    weights = learned / "run" / "model.safetensors"
    settings = {"device": "cpu"}
    result = evaluate_task("grounding", weights, path, output, settings, split="test")
    figures, bounds = result["figures"], result["intervals"]
    assert figures["R1@0.5"] > 0.7
    assert bounds["R1@0.5_over_prior"][0] > 0.2
    assert max(figures[f"R1@0.3_{name}"] for name in ("whole", "centre", "prior")) < figures["R1@0.3"]
    assert "R1@0.5" in capsys.readouterr().out
    told = json.loads((output / "nlq.json").read_text())
    assert told["challenge"] == "ego4d_nlq_challenge"
    assert {len(row["predicted_times"]) for row in told["results"]} == {5}
    assert "When is it" in (output / "timelines.html").read_text()
    table = Predictions.load(output / "grounding.npz")
    assert (table["span"][:, 0] < table["span"][:, 1]).all()
    assert score_any(table)["figures"] == figures


def test_another_query_about_the_same_video_finds_another_part(learned: Path, tmp_path: Path) -> None:
    """The text is used: answers of exchanged queries are wrong."""
    path = world(tmp_path / "w")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for number in range(0, len(rows), 3):
        texts = [row["captions"] for row in rows[number : number + 3]]
        for row, text in zip(rows[number : number + 3], texts[1:] + texts[:1], strict=True):
            row["captions"] = text
    write_manifest(path, [Sample.model_validate(row) for row in rows], ["answer"])
    settings = {"device": "cpu", "features": path.parent / "features"}
    weights = learned / "run" / "model.safetensors"
    result = evaluate_task("grounding", weights, path, tmp_path / "found", settings, split="test")
    assert result["figures"]["R1@0.5"] < 0.3


def test_features_made_otherwise_are_refused(learned: Path, tmp_path: Path) -> None:
    path = world(tmp_path / "w", 3)
    index = path.parent / "features" / "index.json"
    content = json.loads(index.read_text())
    content["protocol"]["weights_sha256"] = "2"
    index.write_text(json.dumps(content))
    settings = {"device": "cpu", "features": index.parent}
    with pytest.raises(RunError, match="features with weights_sha256"):
        evaluate_task("grounding", learned / "run" / "model.safetensors", path, tmp_path / "o", settings)


def test_queries_without_answers_get_predictions_all_the_same(learned: Path, tmp_path: Path) -> None:
    path = world(tmp_path / "w", 3)
    write_manifest(path, [Sample(id="q", path="v0.mp4", captions=("When is it singing?",))], ["answer"])
    settings = {"device": "cpu", "features": path.parent / "features"}
    with pytest.raises(RunError, match="no query has an answer"):
        evaluate_task("grounding", learned / "run" / "model.safetensors", path, tmp_path / "o", settings)
    (row,) = json.loads((tmp_path / "o" / "nlq.json").read_text())["results"]
    assert (row["clip_uid"], row["annotation_uid"], row["query_idx"]) == ("v0", "q", 0)


def test_a_wrong_width_is_told_and_a_dry_run_trains_nothing(tmp_path: Path) -> None:
    path = world(tmp_path)
    assert "first batch" in describe(recipe(path), device="cpu")
    wrong = {"name": "grounder", "overrides": {"input_width": 5, "width": 16, "heads": 2, "max_length": 32}}
    with pytest.raises(RecipeError, match=r"model\.overrides\.input_width=4"):
        describe(recipe(path, model=wrong), device="cpu")
