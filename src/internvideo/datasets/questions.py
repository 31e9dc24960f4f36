"""Questions about videos: MSRVTT-QA, MSVD-QA, TGIF-QA; and a choice of sentences: MSR-VTT, LSMDC.

Source: multi-modalities-downstream.

A row of question answering is a video with all its questions. The vocabulary "answers" holds the answers that a model
may give; an answer outside it stays as it is, and the task counts it as not answerable.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

from pydantic import Field

from internvideo.data.sample import QA, Choice, Sample, Sentence
from internvideo.datasets.annotations import Annotations, read_names
from internvideo.datasets.captions import Film, mapping
from internvideo.datasets.reading import AnnotationSource, Name, Record, csv_records, json_records, read_json, split_of
from internvideo.errors import ManifestError

Asked = tuple[str, str, Sentence, Sentence, str]
"""Where, the video, question, answer, type of the question ("" where it is not told)."""
_OPTIONS = tuple(f"option{number}" for number in range(1, 6))


class _Original(Record):
    question: Sentence
    answer: Sentence
    video_id: Annotated[int, Field(ge=0)]


class _OneAQuestion(Record):
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
    answer: Annotated[int, Field(ge=0)]


class _ClipChoice(Record):
    clip_name: Name
    options: tuple[Sentence, ...] = Field(min_length=2)
    answer: Annotated[int, Field(ge=0)]


class _FilmChoice(Film):
    option1: Sentence
    option2: Sentence
    option3: Sentence
    option4: Sentence
    option5: Sentence
    answer: Annotated[int, Field(ge=1, le=5)]


def _gather(made: Annotations, split: str, asked: Iterable[Asked], extension: str, second: dict[str, str]) -> None:
    """A row for each video, in the order in which the videos are first asked about."""
    found: dict[str, tuple[str, list[QA]]] = {}
    for where, video, question, answer, kind in asked:
        found.setdefault(video, (where, []))[1].append(QA(question=question, answer=answer, type=kind or None))
    for video, (where, pairs) in found.items():
        names = (video, *([second[video]] if video in second else ()))
        made.add(split, Sample(id=video, path=f"{video}{extension}", qa=tuple(pairs), split=split), where, *names)


def frequent_answers(rows: Iterable[Sample], max_answers: int) -> tuple[str, ...]:
    """The `max_answers` most frequent answers, of equally frequent ones those first met first."""
    counts = Counter(pair.answer for row in rows for pair in row.qa)
    return tuple(answer for answer, _ in counts.most_common(max_answers))


def read_answers(path: Path) -> tuple[str, ...]:
    """Answers in the order of their numbers: one a line (`answer_set.txt`), or JSON (`ans2label.json`).

    Raises:
        ManifestError: no such file, another form, an answer twice, numbers that are not 0, 1, 2, ...
    """
    if path.suffix != ".json":
        return read_names(path)
    table = read_json(path, dict[str, Annotated[int, Field(ge=0)]])
    if sorted(table.values()) != list(range(len(table))):
        raise ManifestError(path, "the numbers of the answers are not 0, 1, 2, ...", "each once")
    return tuple(sorted(table, key=table.__getitem__))


def _answers(made: Annotations, path: Path | None, *, size: int) -> None:
    """The vocabulary of a file answer -> number, else the most frequent answers of training (ties by their order)."""
    if path is not None:
        made.vocabularies["answers"] = read_answers(path)
    elif "train" in made.splits:
        made.vocabularies["answers"] = frequent_answers(made.splits["train"], size)
        made.notes.append(f"the answers are the {len(made.vocabularies['answers']):,} most frequent of training")
    else:
        made.notes.append("neither a list of answers nor training questions: no vocabulary of answers")
        return
    known = set(made.vocabularies["answers"])
    unseen = sum(pair.answer not in known for row in made.splits.get("test", ()) for pair in row.qa)
    made.note(unseen, "test questions have an answer that no model can give")


def read_msrvtt_qa(source: AnnotationSource) -> Annotations:
    """MSRVTT-QA: JSON lines `*_train.jsonl` and so on with `video_id` "videoN", or the original `train_qa.json` with
    `video_id` N; `*ans2label.json` or the 1,500 most frequent training answers.

    Raises:
        ManifestError: no such file, a malformed question.
    """
    made = Annotations()
    for path in source.find(r"(train|val|test)\.jsonl$"):
        asked = (
            (f"{path}:{line}", row.video_id, row.question, row.answer, row.answer_type)
            for line, row in json_records(path, _OneAQuestion)
        )
        _gather(made, split_of(path) or "", asked, ".mp4", {})
    passed = []
    for path in source.find(r"(train|val|test)_qa\.json$"):
        split = split_of(Path(path.name.removesuffix("_qa.json"))) or ""
        if split in made.splits:
            passed.append(path.name)
            continue
        original = (
            (f"{path}:{line}", f"video{row.video_id}", row.question, row.answer, "")
            for line, row in json_records(path, _Original)
        )
        _gather(made, split, original, ".mp4", {})
    made.notes += [f"{name} passed over: a .jsonl file has that split" for name in passed]
    if not made.splits:
        raise ManifestError(source.path, "no annotation file of MSRVTT-QA", "msrvtt_qa_test.jsonl or test_qa.json")
    _answers(made, source.maybe(r"ans2label\.json$"), size=1500)
    return made


def read_msvd_qa(source: AnnotationSource) -> Annotations:
    """MSVD-QA: `msvd_train_qa_encode.json` and so on; `*answer_set.txt`, one a line; `*youtube_mapping.txt` gives the
    names of the videos (`ID vidN`).

    Raises:
        ManifestError: no such file, a malformed question, an answer twice in the set.
    """
    made = Annotations()
    second = {short: name for name, short in mapping(source).items()}
    for path in source.find(r"(train|val|test)_qa[^/]*\.json$"):
        asked = (
            (f"{path}:{line}", f"vid{row.video_id}", row.question, row.answer, "")
            for line, row in json_records(path, _Original)
        )
        _gather(made, split_of(path) or "", asked, ".avi", second)
    if not made.splits:
        raise ManifestError(source.path, "no annotation file of MSVD-QA", "msvd_test_qa_encode.json and so on")
    _answers(made, source.maybe(r"answer_set\.txt$"), size=1000)
    return made


def read_tgif_qa(source: AnnotationSource) -> Annotations:
    """TGIF-QA FrameQA: JSON lines `frameqa_train.jsonl`, `frameqa_test.jsonl`, or the tab-separated
    `Train_frameqa_question.csv`; `*ans2label.json` or the 1,540 most frequent training answers.

    Raises:
        ManifestError: no such file, a malformed question.
    """
    made = Annotations()
    for path in source.find(r"frameqa[^/]*\.jsonl$"):
        rows = json_records(path, _Gif)
        _gather(made, split_of(path) or "test", _gifs(path, rows), ".gif", {})
    for path in source.find(r"frameqa_question\.csv$"):
        if (split_of(path) or "test") not in made.splits:
            _gather(
                made,
                split_of(path) or "test",
                _gifs(path, csv_records(path, _Gif, delimiter="\t", quoted=False)),
                ".gif",
                {},
            )
    if not made.splits:
        raise ManifestError(source.path, "no annotation file of TGIF FrameQA", "frameqa_test.jsonl")
    _answers(made, source.maybe(r"frameqa[^/]*ans2label\.json$"), size=1540)
    return made


def _gifs(path: Path, rows: Iterable[tuple[int, _Gif]]) -> Iterable[Asked]:
    return ((f"{path}:{line}", row.gif_name, row.question, row.answer, row.answer_type) for line, row in rows)


def read_tgif_choice(source: AnnotationSource) -> Annotations:
    """The five-way questions of TGIF-QA about actions and transitions, which the paper does not report.

    A row a question; its options stand behind the question in `choices`, the question is the attribute "question".

    Raises:
        ManifestError: no such file, a malformed question, an answer beyond the options.
    """
    made = Annotations()
    for path in source.find(r"(action|transition)[^/]*\.jsonl$"):
        kind = "action" if "action" in path.name.lower() else "transition"
        for line, row in json_records(path, _GifChoice):
            where = f"{path}:{line}"
            sample = Sample(
                id=f"{kind}{line}", path=f"{row.gif_name}.gif", choices=_choice(row.options, row.answer, where),
                split=split_of(path) or "test", attributes={"question": row.question, "kind": kind},
            )  # fmt: skip
            made.add(sample.split or "test", sample, where, row.gif_name)
    if not made.splits:
        raise ManifestError(source.path, "no annotation file of TGIF-QA's choices", "action_test.jsonl")
    return made


def _choice(options: tuple[str, ...], answer: int, where: str) -> Choice:
    if answer >= len(options):
        raise ManifestError(f"{where} answer", f"{answer} of {len(options)} options", f"0 to {len(options) - 1}")
    return Choice(options=options, answer=answer)


def read_msrvtt_choice(source: AnnotationSource) -> Annotations:
    """MSR-VTT multiple choice: JSON lines `{clip_name, options, answer}`, answers from 0; a row a clip.

    Raises:
        ManifestError: no such file, a malformed line, an answer beyond the options, a clip twice.
    """
    path, made = source.one(r"mc[^/]*\.jsonl$", "msrvtt_mc_test.jsonl"), Annotations()
    for line, row in json_records(path, _ClipChoice):
        where = f"{path}:{line}"
        choices = _choice(row.options, row.answer, where)
        sample = Sample(id=row.clip_name, path=f"{row.clip_name}.mp4", choices=choices, split="test")
        made.add("test", sample, where, row.clip_name)
    return made


def read_lsmdc_choice(source: AnnotationSource) -> Annotations:
    """LSMDC multiple choice: tab-separated, eleven columns without header: clip, four times, five options, 1 to 5.

    A clip may be asked about several times; a row is a question, named by clip and line.

    Raises:
        ManifestError: no such file, a malformed row.
    """
    path, made = source.one(r"multiple_choice[^/]*\.csv$", "LSMDC16_multiple_choice_test_randomized.csv"), Annotations()
    times = ("start_aligned", "end_aligned", "start_extracted", "end_extracted")
    columns = ("clip", *times, *_OPTIONS, "answer")
    for line, row in csv_records(path, _FilmChoice, columns=columns, delimiter="\t", quoted=False):
        options = tuple(str(getattr(row, name)) for name in _OPTIONS)
        choices = Choice(options=options, answer=row.answer - 1)
        sample = Sample(id=f"{row.clip}#{line}", path=row.path, choices=choices, split="test")
        made.add("test", sample, f"{path}:{line}", row.clip)
    return made
