"""Read video question answering (MSRVTT-QA, MSVD-QA, TGIF-QA) and multiple choice (MSR-VTT, LSMDC).

Source: multi-modalities-downstream.

A row of question answering is a video with all its questions. The vocabulary "answers" lists the answers that a model
can give; rows keep answers outside it, and the task counts their questions as not answerable.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated

from pydantic import Field, NonNegativeInt

from internvideo.data.sample import QA, Choice, Sample, Sentence
from internvideo.datasets.annotations import Annotations, read_indexed_names, read_names
from internvideo.datasets.captions import LSMDC_TIMES, Film, mapping
from internvideo.datasets.reading import AnnotationSource, Name, Record, csv_records, json_records, split_in_name
from internvideo.errors import ManifestError

Question = tuple[str, str, Sentence, Sentence, str]
""""FILE:LINE", video, question, answer, type of the question ("" if the file gives none)."""
_OPTIONS = tuple(f"option{number}" for number in range(1, 6))


class _ReleasedQuestion(Record):
    question: Sentence
    answer: Sentence
    video_id: NonNegativeInt


class _JsonLineQuestion(Record):
    question: Sentence
    answer: Sentence
    video_id: Name
    answer_type: str = ""


class _Gif(Record):
    gif_name: Name
    question: Sentence
    answer: Sentence
    answer_type: str = ""


class _GifChoice(Record):
    gif_name: Name
    question: Sentence
    options: tuple[Sentence, ...] = Field(min_length=2)
    answer: NonNegativeInt


class _ClipChoice(Record):
    clip_name: Name
    options: tuple[Sentence, ...] = Field(min_length=2)
    answer: NonNegativeInt


class _FilmChoice(Film):
    option1: Sentence
    option2: Sentence
    option3: Sentence
    option4: Sentence
    option5: Sentence
    answer: Annotated[int, Field(ge=1, le=5)]


def _add_questions(
    annotations: Annotations, split: str, questions: Iterable[Question], extension: str,
    alternative_names: Mapping[str, str] | None = None,
) -> None:  # fmt: skip
    """Group questions into one row per video, in the order of the videos' first questions."""
    by_video: dict[str, tuple[str, list[QA]]] = {}
    for where, video, question, answer, kind in questions:
        by_video.setdefault(video, (where, []))[1].append(QA(question=question, answer=answer, type=kind or None))
    for video, (where, questions_) in by_video.items():
        names = [name for name in (video, (alternative_names or {}).get(video)) if name is not None]
        sample = Sample(id=video, path=f"{video}{extension}", qa=tuple(questions_), split=split)
        annotations.add(split, sample, where, *names)


def frequent_answers(rows: Iterable[Sample], max_answers: int) -> tuple[str, ...]:
    """Return the `max_answers` most frequent answers; ties in the order of first occurrence."""
    counts = Counter(pair.answer for row in rows for pair in row.qa)
    return tuple(answer for answer, _ in counts.most_common(max_answers))


def read_answers(path: Path) -> tuple[str, ...]:
    """Read answers in the order of their indices: one per line (`answer_set.txt`), or JSON (`ans2label.json`).

    Raises ManifestError: no such file, a malformed file, a duplicate answer, indices that are not 0, 1, 2, ...
    """
    return read_indexed_names(path) if path.suffix == ".json" else read_names(path)


def _set_answer_vocabulary(annotations: Annotations, path: Path | None, *, size: int) -> None:
    """Set the vocabulary of answers: those of a file, or else the `size` most frequent training answers."""
    if path is not None:
        annotations.vocabularies["answers"] = read_answers(path)
    elif "train" in annotations.splits:
        annotations.vocabularies["answers"] = frequent_answers(annotations.splits["train"], size)
        count = len(annotations.vocabularies["answers"])
        annotations.notes.append(f"the answers are the {count:,} most frequent of training")
    else:
        annotations.notes.append("no vocabulary of answers: there is neither a list of answers nor a training set")
        return
    vocabulary = set(annotations.vocabularies["answers"])
    num_outside = sum(pair.answer not in vocabulary for row in annotations.splits.get("test", ()) for pair in row.qa)
    annotations.note(num_outside, "test questions have an answer outside the vocabulary")


def read_msrvtt_qa(source: AnnotationSource) -> Annotations:
    """Read MSRVTT-QA: JSON lines `*_train.jsonl` and so on with `video_id` "videoN", or the original `train_qa.json`
    with `video_id` N; `*ans2label.json` or the 1,500 most frequent training answers.

    Raises ManifestError: no such file, a malformed question.
    """
    annotations = Annotations()
    for path in source.find(r"(train|val|test)\.jsonl$"):
        questions = (
            (where, row.video_id, row.question, row.answer, row.answer_type)
            for where, row in json_records(path, _JsonLineQuestion)
        )
        _add_questions(annotations, split_in_name(path) or "", questions, ".mp4")
    for path in source.find(r"(train|val|test)_qa\.json$"):
        split = split_in_name(Path(path.name.removesuffix("_qa.json"))) or ""
        if split in annotations.splits:
            annotations.notes.append(f"{path.name} skipped: a .jsonl file has that split")
        else:
            _add_questions(annotations, split, _released_questions(path, "video"), ".mp4")
    expected = "msrvtt_qa_test.jsonl or test_qa.json"
    annotations.ensure_rows(source.path, "no annotation file of MSRVTT-QA", expected)
    _set_answer_vocabulary(annotations, source.find_optional(r"ans2label\.json$"), size=1500)
    return annotations


def _released_questions(path: Path, prefix: str) -> Iterable[Question]:
    return (
        (where, f"{prefix}{row.video_id}", row.question, row.answer, "")
        for where, row in json_records(path, _ReleasedQuestion)
    )


def read_msvd_qa(source: AnnotationSource) -> Annotations:
    """Read MSVD-QA: `msvd_train_qa_encode.json` and so on; `*answer_set.txt`, one answer per line;
    `*youtube_mapping.txt` gives the names of the videos (`ID vidN`).

    Raises ManifestError: no such file, a malformed question, a duplicate answer in the set.
    """
    annotations = Annotations()
    alternative_names = {short: name for name, short in mapping(source).items()}
    for path in source.find(r"(train|val|test)_qa[^/]*\.json$"):
        _add_questions(
            annotations, split_in_name(path) or "", _released_questions(path, "vid"), ".avi", alternative_names
        )
    annotations.ensure_rows(source.path, "no annotation file of MSVD-QA", "msvd_test_qa_encode.json and so on")
    _set_answer_vocabulary(annotations, source.find_optional(r"answer_set\.txt$"), size=1000)
    return annotations


def read_tgif_qa(source: AnnotationSource) -> Annotations:
    """Read TGIF-QA FrameQA: JSON lines `frameqa_train.jsonl`, `frameqa_test.jsonl`, or the tab-separated
    `Train_frameqa_question.csv`; `*ans2label.json` or the 1,540 most frequent training answers.

    Raises ManifestError: no such file, a malformed question.
    """
    annotations = Annotations()
    for path in source.find(r"frameqa[^/]*\.jsonl$"):
        _add_questions(annotations, split_in_name(path) or "test", _gif_questions(json_records(path, _Gif)), ".gif")
    for path in source.find(r"frameqa_question\.csv$"):
        split, rows = split_in_name(path) or "test", csv_records(path, _Gif, delimiter="\t", quoted=False)
        if split not in annotations.splits:
            _add_questions(annotations, split, _gif_questions(rows), ".gif")
    annotations.ensure_rows(source.path, "no annotation file of TGIF FrameQA", "frameqa_test.jsonl")
    _set_answer_vocabulary(annotations, source.find_optional(r"frameqa[^/]*ans2label\.json$"), size=1540)
    return annotations


def _gif_questions(rows: Iterable[tuple[str, _Gif]]) -> Iterable[Question]:
    return ((where, row.gif_name, row.question, row.answer, row.answer_type) for where, row in rows)


def read_tgif_choice(source: AnnotationSource) -> Annotations:
    """Read the five-way questions of TGIF-QA about actions and transitions, which the paper does not report.

    One row per question: the options are in `choices`, the question is the attribute "question".
    Raises ManifestError: no such file, a malformed question, an answer index out of range.
    """
    annotations = Annotations()
    for path in source.find(r"(action|transition)[^/]*\.jsonl$"):
        kind = "action" if "action" in path.name.lower() else "transition"
        for where, row in json_records(path, _GifChoice):
            line = where.rpartition(":")[2]
            sample = Sample(
                id=f"{kind}{line}", path=f"{row.gif_name}.gif", choices=_choice(row.options, row.answer, where),
                split=split_in_name(path) or "test", attributes={"question": row.question, "kind": kind},
            )  # fmt: skip
            annotations.add(sample.split or "test", sample, where, row.gif_name)
    return annotations.ensure_rows(source.path, "no annotation file of TGIF-QA's choices", "action_test.jsonl")


def _choice(options: tuple[str, ...], answer: int, where: str) -> Choice:
    if answer >= len(options):
        raise ManifestError(f"{where} answer", f"{answer} of {len(options)} options", f"0 to {len(options) - 1}")
    return Choice(options=options, answer=answer)


def read_msrvtt_choice(source: AnnotationSource) -> Annotations:
    """Read MSR-VTT multiple choice: JSON lines `{clip_name, options, answer}`, answers from 0; one row per clip.

    Raises ManifestError: no such file, a malformed line, an answer index out of range, a duplicate clip.
    """
    path, annotations = source.find_one(r"mc[^/]*\.jsonl$", "msrvtt_mc_test.jsonl"), Annotations()
    for where, row in json_records(path, _ClipChoice):
        choices = _choice(row.options, row.answer, where)
        sample = Sample(id=row.clip_name, path=f"{row.clip_name}.mp4", choices=choices, split="test")
        annotations.add("test", sample, where, row.clip_name)
    return annotations


def read_lsmdc_choice(source: AnnotationSource) -> Annotations:
    """Read LSMDC multiple choice: tab-separated, no header: clip, four times, five options, answer (1 to 5).

    One row per question, with the id CLIP#LINE, because a clip may have several questions.
    Raises ManifestError: no such file, a malformed row.
    """
    path = source.find_one(r"multiple_choice[^/]*\.csv$", "LSMDC16_multiple_choice_test_randomized.csv")
    annotations, columns = Annotations(), ("clip", *LSMDC_TIMES, *_OPTIONS, "answer")
    for where, row in csv_records(path, _FilmChoice, columns=columns, delimiter="\t", quoted=False):
        options = tuple(str(getattr(row, name)) for name in _OPTIONS)
        choices = Choice(options=options, answer=row.answer - 1)
        sample = Sample(id=f"{row.clip}#{where.rpartition(':')[2]}", path=row.path, choices=choices, split="test")
        annotations.add("test", sample, where, row.clip)
    return annotations
