"""Queries to moments: the peak and its edges, filters, thresholds and their coverage, lists, clips, labels."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import in_process
import numpy as np
import odd_video
import pytest
import use_world
from PIL import Image

from internvideo.data.preprocessing import Span
from internvideo.errors import RecipeError, VideoError
from internvideo.probing.fit import FitSettings, fit
from internvideo.probing.probe import Probe
from internvideo.search.calibration import NullDistribution, calibrate, null_maxima, parse_level
from internvideo.search.collection import Collection
from internvideo.search.moments import MomentSettings, find_moments
from internvideo.search.null_texts import NUM_TEXTS, generic_texts
from internvideo.search.query import Example, Query, parse_example
from internvideo.search.reading import scale_spans
from internvideo.search.where import parse
from internvideo.video.reader import Video, read_video_info


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A collection of six clips of 3 s; do not change it."""
    place = tmp_path_factory.mktemp("search")
    clips = Path(shutil.copytree(use_world.clips(6), place / "clips"))
    (clips / "deep").mkdir()
    (clips / "5.mp4").rename(clips / "deep" / "5.mp4")
    with Collection.create(place / "c", use_world.language(), scales=(1.0, 2.0)) as collection:
        collection.add([clips])
        collection.store.records.set_fact("encoder", {"source": str(use_world.language_folder())})
    return place


@pytest.fixture
def collection(folder: Path) -> Iterator[Collection]:
    with Collection.open(folder / "c", use_world.language()) as opened:
        yield opened


# ------------------------------------------------------------------------------------------------------------ moments


def windows(duration: float, scales: tuple[float, ...] = (2.0, 8.0, 30.0)) -> np.ndarray:
    return np.array(scale_spans(0.0, duration, scales, 0.5))


def test_each_span_is_a_window_once() -> None:
    assert scale_spans(0, 3, (2, 8, 30), 0.5) == [(0, 2, 2), (1, 3, 2), (0, 3, 8)]
    assert scale_spans(0, 1.5, (2, 8), 0.5) == [(0, 1.5, 2)]
    assert {scale for *_, scale in scale_spans(5, 65, (2, 8, 30), 0.5)} == {2, 8, 30}


@pytest.mark.parametrize(("start", "end"), [(10.0, 13.0), (20.0, 32.0), (0.0, 4.0), (55.0, 60.0)])
def test_a_moment_is_found_with_its_edges(start: float, end: float) -> None:
    """Scores that are the share of a window that lies in the event, as of a perfect model."""
    spans = windows(60.0)
    share = np.clip(np.minimum(spans[:, 1], end) - np.maximum(spans[:, 0], start), 0, None) / (
        spans[:, 1] - spans[:, 0]
    )
    first, *_ = find_moments(spans, share)
    overlap = (min(first.end, end) - max(first.start, start)) / (max(first.end, end) - min(first.start, start))
    assert overlap >= 0.7, (first, start, end)
    single = spans[share.argmax()]
    alone = (min(single[1], end) - max(single[0], start)) / (max(single[1], end) - min(single[0], start))
    assert overlap > alone or overlap > 0.9


def test_two_events_are_two_moments_and_none_overlaps_another() -> None:
    spans = windows(60.0)
    # Every window of 8 and 30 s has a center somewhere else, so the events lie where all scales have one.
    near = [np.exp(-((spans[:, :2].mean(axis=1) - at) ** 2) / 40) for at in (15.0, 45.0)]
    found = find_moments(spans, near[0] + 0.8 * near[1], MomentSettings(max_overlap=0.0))
    assert [round((span.start + span.end) / 2) for span in found[:2]] == pytest.approx([15, 45], abs=1)
    ordered = sorted(found, key=lambda span: span.start)
    assert all(one.end <= other.start for one, other in pairwise(ordered))


@pytest.mark.parametrize("seed", range(5))
def test_moments_lie_in_their_video(seed: int) -> None:
    draw = np.random.default_rng(seed)
    spans = windows(draw.uniform(0.5, 100))
    for scores in (draw.standard_normal(len(spans)), np.zeros(len(spans))):
        found = find_moments(spans, scores)
        assert found, "at least one"
        assert all(0 <= span.start < span.end <= spans[:, 1].max() for span in found)
        assert all(one.peak >= other.peak for one, other in pairwise(found))
    assert find_moments(spans[:0], np.zeros(0)) == []


# ------------------------------------------------------------------------------------------------------------- search


def test_the_best_moment_is_the_numpy_best(collection: Collection) -> None:
    snapshot = collection.store.snapshot()
    for text in ("a red circle falls", "two dogs", "x"):
        answer = collection.search(text, top=5)
        vector = use_world.language().encode_text(text).numpy()[0]
        cosines = snapshot.vectors(slice(None)) @ vector
        best = int(cosines.argmax())
        assert answer.moments[0].score == pytest.approx(float(cosines[best]), abs=1e-5)
        assert answer.moments[0].path == snapshot.videos[snapshot.video_index[best]].path
        scores = [moment.score for moment in answer.moments]
        assert scores == sorted(scores, reverse=True)
        assert answer.windows == len(cosines)
        assert len({(moment.path, moment.start) for moment in answer.moments}) == len(answer.moments) == 5


def test_several_queries_at_once_are_answered_as_each_alone(collection: Collection, folder: Path) -> None:
    clip = Query(examples=(Example(str(folder / "clips" / "2.mp4")),))
    texts = [
        "a red circle falls",
        "two dogs",
        "a red circle falls",
        Query("x", templates=("{}", "a video of {}")),
        clip,
    ]
    for limits in ({"top": 3}, {"top": 2, "where": 'name = "1.mp4"', "threshold": 0.5}):
        together = collection.search_many(texts, **limits)
        assert len(together) == len(texts)
        for text, answer in zip(texts, together, strict=True):
            alone = collection.search(text, **limits)
            for mine, other in zip(answer.moments + answer.nearest, alone.moments + alone.nearest, strict=True):
                assert (mine.path, mine.start, mine.end, mine.p_value) == (
                    other.path, other.start, other.end, other.p_value,
                )  # fmt: skip
                assert mine.score == pytest.approx(other.score, abs=1e-5)
    assert collection.search_many([]) == []


def test_a_clip_finds_itself_and_a_picture_its_video(collection: Collection, folder: Path) -> None:
    path = str(folder / "clips" / "2.mp4")
    answer = collection.search("", like=[Example(path, 1.5)], top=1)
    assert answer.moments[0].path == path
    assert answer.moments[0].score == pytest.approx(1, abs=1e-4)
    with Video(path) as video:
        Image.fromarray(video.frames([20])[0]).save(folder / "frame.png")
    picture = collection.encode(Query(examples=(Example(str(folder / "frame.png")),)))
    assert float(picture @ collection.encode(Query(examples=(Example(path),)))) > 0.8
    both = collection.encode(Query("a dog", (Example(path),)))
    parts = [collection.encode(Query("a dog")), collection.encode(Query(examples=(Example(path),)))]
    np.testing.assert_allclose(both, sum(parts) / np.linalg.norm(sum(parts)), atol=1e-6)


def test_templates_are_averaged(collection: Collection) -> None:
    made = collection.encode(Query("a dog", templates=("{}", "a video of {}")))
    mean = use_world.language().encode_text(["a dog", "a video of a dog"]).numpy().mean(axis=0)
    np.testing.assert_allclose(made, mean / np.linalg.norm(mean), atol=1e-6)


def test_times_behind_a_file(folder: Path) -> None:
    path = str(folder / "clips" / "2.mp4")
    assert parse_example(path) == Example(path)
    assert parse_example(f"{path}@1.5") == Example(path, 1.5)
    assert parse_example(f"{path}@1:02:03.5") == Example(path, 3723.5)
    assert parse_example("me@home.mp4") == Example("me@home.mp4")
    with pytest.raises(RecipeError, match="after @"):
        parse_example(f"{path}@soon")


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda c: c.search(""), "query: empty"),
        (lambda c: c.search("x" * 1001), "1001 characters"),
        (lambda c: c.search("x", top=0), "top: 0"),
        (lambda c: c.search("x", templates=("no place",)), "sentences with one"),
        (lambda c: c.search("x", threshold=1e-6), "or more with 500 null queries"),
        (lambda c: c.search("", like=[Example("absent.mp4")]), "absent.mp4"),
        (lambda c: c.search("", like=[Example(c.videos[0].path, 99.0)]), "no frame at 99 s"),
        (lambda c: c.search("x", like=[Example(c.videos[0].path)], threshold=0.05), "no null distribution"),
    ],
)
def test_mistakes_are_told(collection: Collection, call: object, told: str) -> None:
    with pytest.raises((RecipeError, VideoError), match=told):
        call(collection)  # type: ignore[operator]  # one of those above


# ------------------------------------------------------------------------------------------------------------ filters


@pytest.mark.parametrize(
    ("expression", "names"),
    [
        ('name = "2.mp4"', "2"),
        ("name in ('0.mp4', \"3.mp4\")", "03"),
        ('folder ~ "DEEP" or name = "1.mp4"', "15"),
        ('not (folder ~ "deep" or name != "4.mp4")', "4"),
        ('path !~ "deep" and duration > 2.9 and fps >= 15 and width < 1000', "01234"),
        ('modified > "2001-01-01" and modified < "2100-01-01 10:00"', "012345"),
        ("start >= 1 and end <= 2 and name == '0.mp4'", "0"),
        ("duration > 1e", None),
        ("duration > 100", ""),
    ],
)
def test_filters(collection: Collection, expression: str, names: str | None) -> None:
    if names is None:
        with pytest.raises(RecipeError):
            collection.search("a dog", where=expression)
        return
    answer = collection.search("a dog", where=expression, top=50)
    assert {Path(moment.path).stem for moment in answer.moments} == set(names)
    assert answer.nothing_fits == (not names)
    if "start" in expression:
        assert answer.windows == 1


@pytest.mark.parametrize(
    "expression",
    [
        "nothing", "name", "name =", "name = 3", "duration = 'x'", "duration ~ 3", "color = 'red'", "(name = 'x'",
        "name = 'x' name = 'y'", "name in 'x'", "name in ('x'", "name in ()", "not", "and", "name = 'x' and",
        "'", "\"x",
        "__import__('os')", "name = 'x'; DROP TABLE videos", "duration > 1 -- comment", "modified > 'yesterday'",
        "(" * 400 + "duration > 1", "not " * 400 + "duration > 1", "\0", "name=💥",
        "name = 'x' or " * 400 + "name = 'x'",
    ],
)  # fmt: skip
def test_what_is_no_filter_is_refused(expression: str) -> None:
    with pytest.raises(RecipeError, match="where: "):
        parse(expression)


# -------------------------------------------------------------------------------------------------------- calibration


def test_p_values_are_exact_ranks() -> None:
    null = NullDistribution(np.arange(1.0, 100.0))
    assert [null.p_value(score) for score in (0, 99.5, 99, 50)] == pytest.approx([1, 0.01, 0.02, 0.51])
    null.check_level(0.01)
    with pytest.raises(RecipeError, match=r"1\.000% or more with 99 null queries"):
        null.check_level(0.009)
    assert parse_level("1%") == parse_level("0.01") == 0.01
    for wrong in ("0", "100%", "x", "-1%", "nan", "1e9"):
        with pytest.raises(RecipeError, match="threshold"):
            parse_level(wrong)


def test_generic_texts_are_different_sentences_and_always_the_same() -> None:
    assert len(set(generic_texts())) == NUM_TEXTS
    assert generic_texts(2) == ["a dog takes off a hat at a wedding", "a baby cuts vegetables in a theater"]


@pytest.mark.parametrize("kind", ["text", "clip"])
@pytest.mark.parametrize("level", [0.01, 0.05])
def test_the_threshold_holds_on_held_out_queries(collection: Collection, kind: str, level: float) -> None:
    """The measured rate of false matches lies within its 95 % interval around what is promised (or below it)."""
    snapshot, draw = collection.store.snapshot(), np.random.default_rng(0)
    if kind == "text":
        maxima = null_maxima(snapshot, use_world.language().encode_text(generic_texts(1000)).numpy())
    else:
        vectors = draw.standard_normal((1000, 24)).astype(np.float32)
        maxima = null_maxima(snapshot, vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    rates = []
    for _ in range(200):
        order = draw.permutation(1000)
        null = NullDistribution(np.sort(maxima[order[:199]]))
        rates.append(np.mean([null.p_value(score) <= level for score in maxima[order[199:]]]))
    # Mean over the splits: at most the level; not below it by more than the steps of the p-value allow.
    margin = 1.96 * np.std(rates) / np.sqrt(len(rates)) + 1e-3
    assert level - 1 / 200 - margin <= np.mean(rates) <= level + margin


def test_nothing_fits_is_an_answer(collection: Collection, folder: Path) -> None:
    text = "a red circle falls"
    plain = collection.search(text, top=3)
    assert plain.moments[0].p_value is not None
    strict = collection.search(text, top=3, threshold=1 / 501)
    if plain.moments[0].p_value > 1 / 501:
        assert strict.nothing_fits
        assert strict.nearest == plain.moments
    loose = collection.search(text, top=3, threshold=0.999)
    assert [moment.p_value <= 0.999 for moment in loose.moments] == [True] * len(loose.moments)
    own = collection.search("", like=[Example(str(folder / "clips" / "0.mp4"), 1.5)], threshold=0.9)
    assert own.moments, "a clip of the collection fits itself"


def test_null_texts_of_one_s_own_stay(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "c", tmp_path / "c")
    with Collection.open(tmp_path / "c", use_world.language()) as collection:
        with pytest.raises(RecipeError, match="20 or more"):
            calibrate(collection.store, collection.model, ["x"])
        texts = [f"a thing of kind {number}" for number in range(150)]
        collection.add([folder / "clips"], null_texts=texts)
        assert collection.facts()["null_queries"]["text"] == 150
        calibrate(collection.store, collection.model)
        assert collection.null["text"].count == 150


# ------------------------------------------------------------------------------------- labels, duplicates, odd clips


def test_labels_of_one_s_own_classifier_filter(folder: Path, tmp_path: Path) -> None:
    for number in range(6):
        place = tmp_path / "classes" / ("ab"[number % 2])
        place.mkdir(parents=True, exist_ok=True)
        odd_video.encode(place / f"{number}.mp4", odd_video.moving_frames(20, seed=50 + number), fps=15)
    model = use_world.language()
    fitted = fit(tmp_path / "classes", model, tmp_path / "fit", FitSettings(folds=2, accept_known=0.9))
    shutil.copytree(folder / "c", tmp_path / "c")
    with Collection.open(tmp_path / "c", model) as collection:
        with pytest.raises(RecipeError, match="no classifier has been applied"):
            collection.search("x", where='label = "a"')
        assert collection.label(fitted.file) == 6
        assert collection.label(fitted.file) == 0, "only new videos"
        snapshot = collection.store.snapshot()
        spans = [Span(video.path, *snapshot.windows[row, :2]) for i, video in enumerate(snapshot.videos)
                 for row in range(snapshot.rows(i).start, snapshot.rows(i).stop)]  # fmt: skip
        expected = [next(iter(answer)) for answer in Probe.load(fitted.file).classify(model, spans)]
        for label in ("a", "b", "unknown"):
            mask = collection.mask(f'label = "{label}"')
            assert mask is not None
            assert mask.tolist() == [name == label for name in expected]
            others = collection.mask(f'label != "{label}"')
            assert others is not None
            assert (~mask).tolist() == others.tolist()
        moment = collection.search("x", top=1).moments[0]
        assert set(moment.labels) <= {"a", "b", "unknown"}
        assert moment.labels
        assert collection.facts()["labels"] == ["a", "b", "unknown"]
    with pytest.raises(Exception, match="fitted on features"):
        Collection.create(tmp_path / "d", use_world.classifier()).label(fitted.file)


def test_near_duplicates_and_odd_windows(folder: Path, tmp_path: Path) -> None:
    clips = tmp_path / "clips"
    shutil.copytree(folder / "clips", clips)
    shutil.copy(clips / "3.mp4", clips / "copy of 3.mp4")
    with Collection.create(tmp_path / "c", use_world.language(), scales=(1.0,)) as collection:
        collection.add([clips])
        best = collection.near_duplicates(least=0.99999)
        assert {Path(best[0].one[0]).name, Path(best[0].other[0]).name} == {"3.mp4", "copy of 3.mp4"}
        odd = collection.odd_windows(top=3)
        assert [pair.score for pair in odd] == sorted(pair.score for pair in odd)
        assert "3.mp4" not in {Path(pair.one[0]).name for pair in odd}
        snapshot = collection.store.snapshot()
        vectors, owner = snapshot.vectors(slice(None)), snapshot.video_index
        cosines = np.where(owner[:, None] == owner[None], -2, vectors @ vectors.T).max(axis=1)
        assert odd[0].score == pytest.approx(float(cosines.min()), abs=1e-6)


# ------------------------------------------------------------------------------------------------------ command line


def test_the_command(folder: Path, tmp_path: Path) -> None:
    run = ("search", folder / "c")
    done = in_process.command(*run, "a red circle falls", "--top", 3)
    assert done.code == 0, done.err
    assert len(done.out.splitlines()) == 3
    assert "  p = " in done.out
    done = in_process.command(*run, "a dog", "--json", "--top", 2, "--threshold", "0.2%")
    answer = json.loads(done.out)
    assert answer["threshold"] == 0.002
    assert answer["nothing_fits"] == (not answer["moments"])
    text = in_process.command(*run, "a dog", "--threshold", "0.2%").out
    assert text.startswith("nothing fits at 0.20%") == answer["nothing_fits"]
    path = folder / "clips" / "2.mp4"
    words = ("--like", f"{path}@1", "--top", 1, "--where", 'name ~ "2"', "--save-top", 1, "-o", tmp_path / "out")
    done = in_process.command(*run, *words, "--export", tmp_path / "m.edl")
    assert done.code == 0, done.err
    (clip,) = (tmp_path / "out").iterdir()
    assert f"clip: {clip}" in done.out
    assert read_video_info(clip).frames > 0
    assert "FROM CLIP NAME" in (tmp_path / "m.edl").read_text()
    assert "looks like" in in_process.command(*run, "--duplicates").out + " looks like"
    odd = in_process.command(*run, "--odd", "--json", "--top", 2).out.splitlines()
    assert len([json.loads(line) for line in odd]) == 2
    assert "query: empty" in in_process.command(*run).mistake()
    assert "threshold" in in_process.command(*run, "x", "--threshold", "2").mistake()
    assert "where" in in_process.command(*run, "x", "--where", "huh").mistake()
    assert "ends in" in in_process.command(*run, "x", "--export", "a.txt").mistake()
    assert "is not a collection" in in_process.command("search", tmp_path, "x").mistake()
    assert "no window passes" in in_process.command(*run, "x", "--where", "duration > 99").out
