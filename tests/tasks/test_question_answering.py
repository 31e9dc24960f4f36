"""Question answering: vocabulary, batches, initial weights, and from a recipe to figures on the small world."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import in_process
import numpy as np
import pytest
import small_world
import torch
from goldens_folder import GOLDENS
from small_world import FRAMES, LANGUAGE, SIDE, small_recipe
from task_world import CPU, Source
from torch import Tensor

from internvideo.apps.ask import Answerer
from internvideo.data.loader import Loader, LoaderSettings
from internvideo.data.manifest import Manifest, read_manifest
from internvideo.data.sample import QA, Sample
from internvideo.data.sampling import SegmentMiddle
from internvideo.data.tokenizer import Tokenizer
from internvideo.data.transforms import TrainTransform
from internvideo.datasets.questions import read_answers
from internvideo.errors import InternVideoError, ManifestError, RecipeError, TextError, WeightsError
from internvideo.evaluation import evaluate_task
from internvideo.inference.loading import load
from internvideo.metrics.classification import IGNORE_INDEX
from internvideo.models.heads import EncodedVideo, VideoQuestionAnswering
from internvideo.pipeline import load_trained, run_recipe
from internvideo.recipe import build_recipe
from internvideo.storage import write_safetensors
from internvideo.tasks.protocol import ClipInputs, ClipProtocol
from internvideo.tasks.question_answering import predict as answering
from internvideo.tasks.question_answering.data import (
    QuestionLoader,
    QuestionSettings,
    answer_vocabulary,
    most_frequent_answers,
    one_question_per_row,
    question_tokens,
    question_type,
)
from internvideo.tasks.question_answering.stage import AnsweringSettings, AnsweringStage
from internvideo.tasks.table import Predictions
from internvideo.weights.initialize import initialize
from internvideo.weights.state import save_model


def rows(*questions: tuple[tuple[str, str], ...]) -> Manifest:
    """A manifest of videos that are asked these (question, answer) pairs."""
    made = tuple(
        Sample(id=f"clip{i}", path=f"{i}.mp4", qa=tuple(QA(question=q, answer=a) for q, a in pairs))
        for i, pairs in enumerate(questions)
    )
    return Manifest(made, (), Path("/nowhere"), Path("/nowhere/clips.jsonl"))


ASKED = rows(
    (("what is it doing?", "run"), ("Who?", "man"), ("what else?", "run")),
    (("who?", "man"),),
    (("what?", "sit"), ("who?", "cat")),
)


# --- data ---


def test_answers_are_the_most_frequent_of_training_or_those_of_a_file(tmp_path: Path) -> None:
    assert answer_vocabulary(ASKED, QuestionSettings(max_answers=3)) == ("run", "man", "sit")
    (tmp_path / "set.txt").write_text("cat\nman\n")
    (tmp_path / "ans2label.json").write_text('{"man": 1, "cat": 0}')
    for name in ("set.txt", "ans2label.json"):
        assert answer_vocabulary(ASKED, QuestionSettings(answers=tmp_path / name)) == ("cat", "man")
    (tmp_path / "rows.jsonl").write_text('{"id": "a", "path": "a.mp4", "qa": [{"question": "q", "answer": "x"}]}')
    (tmp_path / "answers.txt").write_text("x\ny\n")
    assert answer_vocabulary(read_manifest(tmp_path / "rows.jsonl"), QuestionSettings()) == ("x", "y")
    (tmp_path / "ans2label.json").write_text('{"man": 1, "cat": 1}')
    with pytest.raises(ManifestError, match="0, 1, 2"):
        read_answers(tmp_path / "ans2label.json")
    with pytest.raises(ManifestError, match="1 different answers; expected: 2 or more"):
        answer_vocabulary(rows((("q", "x"),)), QuestionSettings())
    with pytest.raises(ManifestError, match="1 of 2 rows have no question, first 'clip1'"):
        answer_vocabulary(rows((("q", "x"),), ()), QuestionSettings())


def test_the_type_of_a_question_is_told_or_its_first_word() -> None:
    assert [question_type(pair) for pair in ASKED.rows[0].qa] == ["what", "who", "what"]
    assert question_type(QA(question="what is red?", answer="a", type="object")) == "object"
    assert most_frequent_answers(ASKED.rows) == {"": "run", "what": "run", "who": "man"}


def test_a_row_for_every_question() -> None:
    single = one_question_per_row(ASKED)
    assert [row.id for row in single.rows] == ["clip0?0", "clip0?1", "clip0?2", "clip1?0", "clip2?0", "clip2?1"]
    assert single.rows[5].path == "2.mp4"
    assert single.rows[5].qa == (ASKED.rows[2].qa[1],)


def test_tokens_are_as_short_as_the_longest_and_leave_the_last_place_free() -> None:
    whole = Tokenizer(context_length=16).encode(["who is it?", "who?"])
    tokens = question_tokens(["who is it?", "who?"], 16)
    assert tokens.shape == (2, 7)
    assert torch.equal(tokens, whole[:, :7])
    long = question_tokens(["word " * 40], 16)
    assert long.shape == (1, 16)
    assert long[0, 14:].tolist() == [Tokenizer.end, 0]
    with pytest.raises(TextError, match="at most 15"):
        question_tokens(["word " * 40], 16, truncate=False)


def loader(questions_per_clip: int = 1, repeated_augmentation: int = 1) -> QuestionLoader:
    manifest = read_manifest(small_world.world())
    settings = LoaderSettings(batch_size=4, repeated_augmentation=repeated_augmentation)
    clips = Loader(manifest, SegmentMiddle(frames=FRAMES), TrainTransform(size=SIDE, crop="center"), settings)
    return QuestionLoader(clips, ["red", "circle"], 16, questions_per_clip)


def test_batches_resume_and_ask_every_question_equally_often() -> None:
    source = loader(repeated_augmentation=2)
    whole = list(source.epoch(1))
    rest = list(loader(repeated_augmentation=2).epoch(1, 3))
    for old, new in zip(whole[3:], rest, strict=True):
        assert old.ids == new.ids
        assert torch.equal(old.text_ids, new.text_ids)  # type: ignore[arg-type]  # both are there
        assert torch.equal(old.labels, new.labels)  # type: ignore[arg-type]  # both are there
    manifest = source.loader.manifest
    row = manifest.rows[5]
    asked = [source._select_question(row.id, turn).question for turn in range(12)]
    assert sorted(asked[:6]) == sorted(asked[6:]) == sorted(pair.question for pair in row.qa)
    assert asked[:6] != asked[6:]


def test_labels_are_the_answers_of_the_questions_and_unknown_ones_are_left_out() -> None:
    pairs = {(p.question, row.id): p.answer for row in read_manifest(small_world.world()).rows for p in row.qa}
    batch = next(loader(questions_per_clip=3).epoch(0))
    assert batch.text_ids is not None
    assert batch.labels is not None
    assert batch.text_ids.shape[:2] == batch.labels.shape == (4, 3)
    table = {
        (name, tuple(Tokenizer(context_length=15).encode([question])[0].tolist())): answer
        for (question, name), answer in pairs.items()
    }
    for name, ids, labels in zip(batch.ids, batch.text_ids, batch.labels, strict=True):
        for row, label in zip(ids, labels.tolist(), strict=True):
            key = tuple(row.tolist()[:-1]) + (0,) * (15 - len(row) + 1)
            assert label == {"red": 0, "circle": 1}.get(table[name, key], IGNORE_INDEX)
    with pytest.raises(ValueError, match="questions_per_clip"):
        QuestionSettings(questions_per_clip=2)


# --- model ---


def test_questions_about_a_video_share_one_look() -> None:
    model = small_world.answering_model().eval()
    video = model.normalize(small_world.batch(2).video)
    tokens = question_tokens(["who?", "what is it doing there?", "where?", "which?"], small_world.WORDS).view(2, 2, -1)
    together = model(video, tokens)
    assert together.shape == (2, 2, 2)
    for k in range(2):
        torch.testing.assert_close(together[:, k], model(video, tokens[:, k]))
    padded = torch.nn.functional.pad(tokens, (0, 5))
    torch.testing.assert_close(model(video, padded), together)


def test_a_network_without_eyes_answers_all_videos_alike_and_learns_by_words_alone() -> None:
    torch.manual_seed(0)
    model = VideoQuestionAnswering(LANGUAGE, 2, use_video=False)
    stage = AnsweringStage(model, AnsweringSettings()).eval()
    clips = small_world.batch(4)
    tokens = question_tokens(["who?"] * 4, small_world.WORDS)
    scores = model(model.normalize(clips.video), tokens)
    assert torch.equal(scores, scores[:1].expand(4, -1))
    loss = stage(replace(clips, text_ids=tokens), torch.Generator())["loss"]
    torch.autograd.backward(loss)
    learning = {name for name, parameter in stage.named_parameters() if parameter.requires_grad}
    assert not any("visual." in name.replace("layers.0.visual.", "") for name in learning)
    assert all(parameter.grad is not None for name, parameter in stage.named_parameters() if name in learning)


@pytest.mark.parametrize("layers", [2, 3])
def test_the_head_has_as_many_layers_as_asked(layers: int) -> None:
    model = VideoQuestionAnswering(LANGUAGE, 5, layers=layers)
    assert sum(isinstance(part, torch.nn.Linear) for part in model.head) == layers
    assert model(model.normalize(small_world.batch(2).video), torch.tensor([[1, 9, 0]] * 2)).shape == (2, 5)
    with pytest.raises(ValueError, match="2 or more"):
        VideoQuestionAnswering(LANGUAGE, 5, layers=1)


def test_it_starts_from_a_video_language_model_without_its_ways_out(tmp_path: Path) -> None:
    language = small_world.language_model()
    save_model(tmp_path / "language.safetensors", language)
    model = VideoQuestionAnswering(LANGUAGE, 5)
    head = model.head[1].weight.clone()  # type: ignore[operator]  # a linear map
    initialize(model, {"weights": tmp_path / "language.safetensors"})
    state = language.state_dict()
    left = {name for name in state if f"model.{name}" not in model.state_dict()}
    assert left == {
        "visual_projection",
        "text.projection",
        *(name for name in state if name.startswith("caption_decoder.predictor.")),
    }
    for name in state.keys() - left:
        assert torch.equal(model.state_dict()[f"model.{name}"], state[name]), name
    assert torch.equal(model.head[1].weight, head)  # type: ignore[arg-type]  # as above
    del state["visual.query"]
    write_safetensors(tmp_path / "less.safetensors", state, {})
    with pytest.raises(WeightsError, match=r"model\.visual\.query"):
        initialize(model, {"weights": tmp_path / "less.safetensors"})


# --- task ---


class Knowing(torch.nn.Module):
    """Says answer (number of the video + words of the question) % 3; counts its looks."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.model = SimpleNamespace(config=SimpleNamespace(text=SimpleNamespace(context_length=16)))
        self.use_video, self.looks = True, 0

    def normalize(self, video: Tensor) -> Tensor:
        return video.float()

    def encode_video(self, video: Tensor) -> EncodedVideo:
        self.looks += len(video)
        number = video.mean(dim=(1, 2, 3, 4), keepdim=False)[:, None]
        return EncodedVideo(number, number)

    def forward_head(self, seen: EncodedVideo, tokens: Tensor) -> Any:
        words = (tokens != 0).sum(dim=1)
        wanted = (seen.features.round().long()[0, 0] + words) % 3
        return SimpleNamespace(logits=6.0 * torch.nn.functional.one_hot(wanted, 3).float())


def test_both_accuracies_types_and_the_prior_stand_side_by_side() -> None:
    manifest = rows((("who?", "a"), ("what a thing?", "zzz")), (("who?", "c"),), (("who?", "b"), ("where?", "b")))
    clips = ClipProtocol(frames=2, size=4, num_clips=2)
    model = Knowing()
    source = Source(manifest, clips, unreadable=[])
    prior = {"": "b", "who": "a"}
    inputs = ClipInputs(model, source, manifest, clips, CPU)
    table = answering.predict(inputs, ["b", "a", "c"], commonest=prior)  # type: ignore[arg-type]  # a stand-in
    assert model.looks == 6
    # "who?" has 4 ids: answers (video + 4) % 3 = 1, 2, 0 of b, a, c
    assert table["answers"][table["top"][:, 0]].tolist() == ["a", "b", "c", "b", "b"]
    assert table["label"].tolist() == [1, -100, 2, 0, 0]
    assert table["rank"].tolist() == [0, -1, 0, 0, 0]
    result = answering.score(table)
    expected = {
        "accuracy": 4 / 5,
        "accuracy_in_vocabulary": 1.0,
        "answerable": 4 / 5,
        "accuracy_who": 1.0,
        "accuracy_what": 0.0,
        "accuracy_where": 1.0,
        "accuracy_commonest": 2 / 5,
        "accuracy_commonest_in_vocabulary": 2 / 4,
    }
    assert {name: result["figures"][name] for name in expected} == pytest.approx(expected)
    assert set(result["intervals"]) == set(result["figures"])


def test_the_accuracies_are_the_published_evaluators() -> None:
    stored = np.load(GOLDENS / "tasks/classification/classification.npz")
    logits, labels = stored["vqa_logits"], stored["vqa_labels"]
    expected = json.loads((GOLDENS / "tasks/classification/expected.json").read_text("utf-8"))["vqa"]
    n = len(labels)
    arrays = {
        "label": labels,
        "rank": answering._ranks(logits, labels),
        "video": np.arange(n),
        "type": np.array(["what"] * n),
    }
    figures = answering.score(Predictions("question_answering", arrays, {}, {}))["figures"]
    assert figures["accuracy"] == pytest.approx(expected["accuracy_over_all_questions"])
    assert figures["accuracy_in_vocabulary"] == pytest.approx(expected["accuracy_known_answers_only"])


# --- from a recipe to answers ---


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = small_recipe("question_answering")
    recipe["data"]["questions"] = {"epoch_over": "video", "questions_per_clip": 3}
    return run_recipe(build_recipe(recipe), tmp_path_factory.mktemp("question_answering"), device="cpu")


def test_a_run_and_its_evaluation(weights: Path, tmp_path: Path) -> None:
    trained = load_trained(weights, device="cpu")
    asked = {pair.answer for row in read_manifest(small_world.world()).rows for pair in row.qa}
    assert set(trained.classes) == asked
    assert trained.extra_metadata["commonest"]["shape"] in asked
    manifest = small_world.world().with_name("test.jsonl")
    result = evaluate_task("question_answering", weights, manifest, tmp_path, {"device": "cpu", "batch_size": 3})
    assert {"accuracy", "accuracy_in_vocabulary", "accuracy_commonest", "answerable"} <= set(result["figures"])
    table = Predictions.load(tmp_path / "question_answering.npz")
    row = next(row for row in read_manifest(manifest).rows if row.id == table["ids"][1])
    answerer = Answerer(load(weights, device="cpu"))
    found = answerer(read_manifest(manifest).video_path(row), [pair.question for pair in row.qa])
    where = np.flatnonzero(table["video"] == 1)
    for said, top, share in zip(found, table["top"][where], table["top_probability"][where], strict=True):
        assert list(said) == table["answers"][top].tolist()
        np.testing.assert_allclose(list(said.values()), share, atol=1e-5)


def test_every_question_may_have_its_own_clip(tmp_path: Path) -> None:
    recipe = build_recipe(small_recipe("question_answering", schedule={"steps": 1}, model={"overrides": {"layers": 3}}))
    assert load_trained(run_recipe(recipe, tmp_path, device="cpu"), device="cpu").model.head[5].in_features > 0  # type: ignore[union-attr,index]  # a head


def test_ask(weights: Path) -> None:
    manifest = read_manifest(small_world.world())
    video = manifest.video_path(manifest.rows[0])
    done = in_process.command(
        "ask", video, "Which shape is it?", "Where?", "-m", weights, "--top", "2", "--device", "cpu", "--json"
    )
    assert done.code == 0, done.err
    first, second = map(json.loads, done.out.splitlines())
    assert (first["question"], len(first["answers"]), second["question"]) == ("Which shape is it?", 2, "Where?")
    refused = in_process.command("ask", video, "Who?", " ", "-m", weights, "--device", "cpu")
    assert "question 2: is blank" in refused.mistake()


def test_what_cannot_be_asked(weights: Path, tmp_path: Path) -> None:
    model = load(weights, device="cpu")
    assert model.capabilities == {"video", "answer"}
    with pytest.raises(RecipeError, match="cannot classify"):
        model.classify([])
    answerer = Answerer(model)
    for wrong, told in ([], "none"), (["who? " * 60], "question 1: .*at most 31"):
        with pytest.raises(TextError, match=told):
            answerer.check(wrong)
    (tmp_path / "two.txt").write_text("a\nb\n")
    with pytest.raises(InternVideoError, match=r"2 answers; expected: \d+, the outputs"):
        Answerer(model, tmp_path / "two.txt")
    with pytest.raises(RecipeError, match="has no head for answers"):
        Answerer(load("internvideo-mm-b16", weights="random", overrides=small_towers(), device="cpu"))
    setattr(model.module, "use_video", False)  # noqa: B010  # a plain attribute, unknown to nn.Module's types
    with pytest.raises(RecipeError, match="questions alone"):
        Answerer(model)


def small_towers() -> dict[str, object]:
    overrides = dict(small_recipe("multimodal")["model"]["overrides"])
    del overrides["caption"]
    return overrides
