"""Annotation files of retrieval, question answering and multiple choice, and what can be wrong with them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from goldens_folder import SAMPLES

from internvideo.datasets import captions, questions
from internvideo.datasets.annotations import Annotations
from internvideo.datasets.prepare import prepare, read_pickle
from internvideo.datasets.reading import AnnotationSource
from internvideo.errors import ManifestError

FILES = SAMPLES / "tasks" / "annotations"
Read = Callable[[AnnotationSource], Annotations]


def given(read: Read, name: str) -> Annotations:
    return read(AnnotationSource(FILES / name, unpickle=read_pickle))


def test_msrvtt() -> None:
    made = given(captions.read_msrvtt, "msrvtt")
    assert [(row.id, row.captions) for row in made.splits["train"]] == [
        ("video0", ("a paper boat floats down a stream", "someone paints")),
        ("video1", ("a man is singing",)),
        ("video2", ("two people cook",)),
    ]
    assert [row.path for row in made.splits["test"]] == ["video9770.mp4", "video9771.mp4", "video7020.mp4"]
    assert made.splits["test"][1].captions == ("two children fly a kite, on a beach",)
    full = given(captions.read_msrvtt_full, "msrvtt")
    assert full.splits == {"train": made.splits["train"]}


def test_msvd_from_the_pickle_and_from_json(tmp_path: Path) -> None:
    made = given(captions.read_msvd, "msvd")
    assert {split: [row.id for row in rows] for split, rows in made.splits.items()} == {
        "train": ["IhVqSPAkueu_10_46"],
        "val": ["J6EzXRnwCUZ_26_55"],
        "test": ["ESxPzWrQhfq_3_42"],
    }
    assert made.splits["test"][0].captions == ("a cat is chasing a laser dot", "a kitten jumps")
    assert made.names["ESxPzWrQhfq_3_42.avi"] == ("ESxPzWrQhfq_3_42", "vid3")
    shutil.copytree(FILES / "msvd", tmp_path / "msvd", ignore=shutil.ignore_patterns("*.pkl"))
    assert captions.read_msvd(AnnotationSource(tmp_path / "msvd")).splits == made.splits
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "vid3.avi").touch()
    done = prepare("msvd", FILES / "msvd", tmp_path / "out", videos=tmp_path / "videos")
    assert (done.splits["test"].present, done.splits["train"].missing) == (1, 1)


def test_lsmdc() -> None:
    made = given(captions.read_lsmdc, "lsmdc")
    assert {split: len(rows) for split, rows in made.splits.items()} == {"train": 1, "test": 2}
    row = made.splits["test"][1]
    assert row.path == "9002_Other_Film/9002_Other_Film_00.01.21.399-00.01.23.997.avi"
    assert (row.captions, row.attributes["end_extracted"]) == (("A tram stops.",), "00:01:24.997")


def test_paragraphs() -> None:
    made = given(captions.read_activitynet_captions, "activitynet_captions")
    (row,) = made.splits["val"]
    assert row.captions == ("A person unrolls a carpet. They brush the carpet. They roll it up again.",)
    assert made.notes == ["1 videos of val_ids.json have no sentences"]
    (row,) = given(captions.read_didemo, "didemo").splits["test"]
    assert (row.captions, row.span) == (("the kite leaves the frame a bicycle passes by",), (0.0, 31.0))


def test_vatex(tmp_path: Path) -> None:
    (row,) = given(captions.read_vatex, "vatex").splits["test"]
    assert row.captions[9] == "english caption number 9"
    shutil.copy(FILES / "vatex" / "vatex_validation_v1.0.json", tmp_path)
    assert list(captions.read_vatex(AnnotationSource(tmp_path)).splits) == ["val"]


def test_questions() -> None:
    made = given(questions.read_msrvtt_qa, "msrvtt_qa")
    assert [[pair.answer for pair in row.qa] for row in made.splits["val"]] == [["sofa", "chess"]]
    assert made.splits["test"][0].id == made.splits["val"][0].id == "video6513"
    assert made.vocabularies["answers"] == ("man", "woman", "sofa", "chess")
    assert made.notes == ["1 test questions have an answer outside the vocabulary"]
    made = given(questions.read_msvd_qa, "msvd_qa")
    (row,) = made.splits["test"]
    assert (row.id, len(row.qa), made.names[row.path]) == ("vid1301", 2, ("vid1301", "IhVqSPAkueu_10_46"))
    made = given(questions.read_tgif_qa, "tgif_qa")
    assert [row.qa[0].answer for row in made.splits["test"]] == ["red", "two"]
    (row,) = given(questions.read_tgif_choice, "tgif_qa").splits["test"]
    assert row.choices is not None
    assert (row.choices.answer, row.attributes["kind"]) == (4, "action")


def test_tgif_as_first_released(tmp_path: Path) -> None:
    shutil.copy(FILES / "tgif_qa" / "Test_frameqa_question.csv", tmp_path)
    (row,) = questions.read_tgif_qa(AnnotationSource(tmp_path)).splits["test"]
    assert row.qa[0].question == "what is the color of the dress ?"


def test_answers_without_a_list_are_the_most_frequent_of_training(tmp_path: Path) -> None:
    asked = [f'{{"question": "q", "answer": "{answer}", "video_id": "v{n}"}}' for n, answer in enumerate("abbcb")]
    (tmp_path / "qa_train.jsonl").write_text("\n".join(asked))
    made = questions.read_msrvtt_qa(AnnotationSource(tmp_path))
    assert made.vocabularies["answers"] == ("b", "a", "c")


def test_answers_that_a_listed_set_lacks_are_told(tmp_path: Path) -> None:
    (tmp_path / "msvd_test_qa_encode.json").write_text('[{"question": "q", "answer": "c", "video_id": 1}]')
    (tmp_path / "msvd_answer_set.txt").write_text("a\nb\n")
    made = questions.read_msvd_qa(AnnotationSource(tmp_path))
    assert made.notes == ["1 test questions have an answer outside the vocabulary"]


def test_multiple_choice() -> None:
    made = given(questions.read_msrvtt_choice, "msrvtt_mc")
    assert [row.choices and row.choices.answer for row in made.splits["test"]] == [3, 0, 4]
    made = given(questions.read_lsmdc_choice, "lsmdc_mc")  # one clip three times, answers counted from 1
    assert [row.choices and row.choices.answer for row in made.splits["test"]] == [1, 4, 2]
    assert len({row.path for row in made.splits["test"]}) == 1


CLOCK = "00:00:01.000\t00:00:02.000\t00:00:00.000\t00:00:03.000"
CASES: dict[str, tuple[Read, dict[str, str], str]] = {
    "a training video without sentences": (
        captions.read_msrvtt,
        {"MSRVTT_train.9k.csv": "video_id\nvideo7\n", "MSRVTT_data.json": '{"sentences": []}'},
        "train.9k.csv:2 video_id: no sentence for 'video7'",
    ),
    "a blank sentence": (
        captions.read_msrvtt,
        {"MSRVTT_JSFUSION_test.csv": 'video_id,sentence\nv1,a\nv2," "\n'},
        "test.csv:3 sentence: missing",
    ),
    "a test video twice": (
        captions.read_msrvtt,
        {"MSRVTT_JSFUSION_test.csv": "video_id,sentence\nv1,a\nv1,b\n"},
        "test.csv:3 id: 'v1'",
    ),
    "no column": (
        captions.read_msrvtt,
        {"MSRVTT_JSFUSION_test.csv": "video_id,text\nv1,a\n"},
        "test.csv:1 sentence: no",
    ),
    "a sentence of the wrong type": (
        captions.read_msrvtt_full,
        {"MSRVTT_data.json": '{"sentences": [{"video_id": "a",\n"caption": 5}]}'},
        "data.json:2 sentences.0.caption: ",
    ),
    "a listed video without captions": (
        captions.read_msvd,
        {"test_list.txt": "a\nb\n", "raw-captions.json": '{"a": [["x"]]}'},
        "test_list.txt:2 id: no captions for 'b'",
    ),
    "a listed video twice": (
        captions.read_msvd,
        {"test_list.txt": "a\na\n", "raw-captions.json": '{"a": [["x"]]}'},
        "test_list.txt:2 id: 'a'",
    ),
    "words that are none": (
        captions.read_msvd,
        {"test_list.txt": "a\n", "raw-captions.json": '{"a": [[\n1]]}'},
        "raw-captions.json:2 a.0.0: ",
    ),
    "a column too few": (captions.read_lsmdc, {"LSMDC16_annos_val.csv": f"c\t{CLOCK}\n"}, "val.csv:1: 5 cells"),
    "a time that is none": (
        captions.read_lsmdc,
        {"LSMDC16_annos_val.csv": f"c\t{CLOCK.replace('02.000', 'x')}\tA.\n"},
        "val.csv:1 end_aligned: ",
    ),
    "more sentences than times": (
        captions.read_activitynet_captions,
        {"val_1.json": '{"v": {"duration": 9, "timestamps": [[0, 1]],\n"sentences": ["a", "b"]}}'},
        "val_1.json:2 v.sentences: 2 sentences for 1 times",
    ),
    "a negative time": (
        captions.read_activitynet_captions,
        {"val_1.json": '{"v": {"duration": 9,\n"timestamps": [[-1, 1]], "sentences": ["a"]}}'},
        "val_1.json:2 v.timestamps.0.0: ",
    ),
    "a listed video without description": (
        captions.read_didemo,
        {"test_data.json": '[{"description": "a", "video": "v"}]', "test_list.txt": "v\nw\n"},
        "test_list.txt:2 id: no sentence for 'w'",
    ),
    "no English": (
        captions.read_vatex,
        {"validation.json": '[{"videoID": "v", "enCap": ["a"]},\n{"videoID": "w"}]'},
        "validation.json:2 1.enCap: missing",
    ),
    "a question without answer": (
        questions.read_msrvtt_qa,
        {"test.jsonl": '{"question": "q", "answer": "a", "video_id": "v"}\n{"question": "q", "video_id": "v"}\n'},
        "test.jsonl:2 answer: missing",
    ),
    "a line that is no JSON": (questions.read_msrvtt_choice, {"mc.jsonl": "{}x\n"}, "mc.jsonl:1: not JSON"),
    "an answer beyond the options": (
        questions.read_msrvtt_choice,
        {"mc.jsonl": '{"clip_name": "c", "options": ["a", "b"], "answer": 2}'},
        "mc.jsonl:1 answer: 2 of 2 options",
    ),
    "an answer of 0 where they count from 1": (
        questions.read_lsmdc_choice,
        {"multiple_choice.csv": f"c\t{CLOCK}\ta\tb\tc\td\te\t0\n"},
        "multiple_choice.csv:1 answer: ",
    ),
    "an answer twice": (
        questions.read_msvd_qa,
        {"test_qa.json": '[{"question": "q", "answer": "a", "video_id": 1}]', "answer_set.txt": "x\nx\n"},
        "answer_set.txt:2 label: 'x'",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_mistake_is_told_with_file_line_and_field(tmp_path: Path, name: str) -> None:
    read, files, told = CASES[name]
    for file, text in files.items():
        (tmp_path / file).write_text(text, encoding="utf-8")
    with pytest.raises(ManifestError) as caught:
        read(AnnotationSource(tmp_path))
    assert told in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path))


def test_captions_in_a_pickle_of_something_else(tmp_path: Path) -> None:
    shutil.copytree(FILES / "msvd", tmp_path / "msvd")
    source = AnnotationSource(tmp_path / "msvd", unpickle=lambda path: {"a": [["x"], "y"]})
    with pytest.raises(ManifestError, match=r"raw-captions\.pkl a\.1: no list of words"):
        captions.read_msvd(source)
