"""What is wrong with an annotation file is told in one line: file, line, field."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from internvideo.datasets import activitynet, ava, clip_sets, kinetics, something
from internvideo.datasets.annotations import Annotations
from internvideo.datasets.reading import AnnotationSource
from internvideo.errors import ManifestError

Read = Callable[[AnnotationSource], Annotations]
HEADER = "label,youtube_id,time_start,time_end,split\n"
HACS = "classname,youtube_id,subset,start,end,label\n"


def segments(*parts: str) -> str:
    """A file of the common form: the annotations stand in line 5."""
    return '{{"database": {{\n "v": {{\n  "subset": "training",\n  "annotations":\n   [{}]}}}}}}'.format(
        ",\n".join(parts)
    )


def one(label: str = '"a"', segment: str = "[1, 2]") -> str:
    return f'{{"label": {label}, "segment": {segment}}}'


CASES: dict[str, tuple[Read, dict[str, str], str]] = {
    "missing column": (
        kinetics.read_400,
        {"val.csv": "label,youtube_id,time_start,split\na,b,1,val\n"},
        "val.csv:1 time_end: no such column",
    ),
    "too few cells": (kinetics.read_400, {"val.csv": HEADER + "a,b,1,11,val\na,b,1\n"}, "val.csv:3: 3 cells"),
    "a cell left empty": (kinetics.read_400, {"val.csv": HEADER + "a,,1,11,val\n"}, "val.csv:2 youtube_id: missing"),
    "wrong type": (kinetics.read_400, {"val.csv": HEADER + "a,b,one,11,val\n"}, "val.csv:2 time_start: "),
    "no number": (kinetics.read_400, {"val.csv": HEADER + "a,b,nan,11,val\n"}, "val.csv:2 time_start: "),
    "reversed times": (kinetics.read_400, {"val.csv": HEADER + "a,b,11,1,val\n"}, "val.csv:2 time_end: "),
    "negative time": (kinetics.read_400, {"val.csv": HEADER + "a,b,-1,9,val\n"}, "val.csv:2 time_start: "),
    "unknown split": (kinetics.read_400, {"val.csv": HEADER + "a,b,1,11,dev\n"}, "val.csv:2 split: "),
    "a clip twice": (
        kinetics.read_400,
        {"val.csv": HEADER + "a,b,1,11,val\na,b,1,11,val\n"},
        "val.csv:3 id: 'b_000001_000011'",
    ),
    "a class that training lacks": (
        kinetics.read_400,
        {"train.csv": HEADER + "yoga,b,1,11,train\n", "val.csv": HEADER + "yogi,c,1,11,val\n"},
        "val.csv:2 label: unknown class 'yogi' (did you mean 'yoga'?)",
    ),
    "too many classes": (
        kinetics.read_400,
        {"val.csv": HEADER + "".join(f"c{n},b{n},1,11,val\n" for n in range(401))},
        "val.csv: 401 class",
    ),
    "quotes that do not close": (kinetics.read_400, {"val.csv": HEADER + '"a,b,1,11,val\n'}, "val.csv:2: not csv"),
    "a label beyond the classes": (
        kinetics.read_400,
        {"val_list.txt": "a.mp4 0\nb.mp4 400\n"},
        "val_list.txt:2 label: unknown class 400",
    ),
    "a negative label": (kinetics.read_400, {"val_list.txt": "a.mp4 -1\n"}, "val_list.txt:1 label: unknown class -1"),
    "a line without label": (kinetics.read_400, {"val_list.txt": "a.mp4\n"}, "val_list.txt:1 label: "),
    "a label that is no number": (kinetics.read_400, {"val_list.txt": "a.mp4 yoga\n"}, "val_list.txt:1 label: 'yoga'"),
    "a path twice": (kinetics.read_400, {"val_list.txt": "a.mp4 1\na.mp4 2\n"}, "val_list.txt:2 id: 'a.mp4'"),
    "a class name twice": (
        kinetics.read_400,
        {"val_list.txt": "a.mp4 1\n", "classes.txt": "x\ny\nx\n"},
        "classes.txt:3 label",
    ),
    "an unknown template": (
        something.read_v1,
        {"labels.csv": "Holding something\n", "x-validation.csv": "1;Holding something\n2;Holding\n"},
        "x-validation.csv:2 label: unknown class 'Holding'",
    ),
    "an unknown template in JSON": (
        something.read_v2,
        {
            "labels.json": '{"Up": "0"}',
            "validation.json": '[{"id": "1",\n "template": "Up"},\n{"id": "2", "template": "Down"}]',
        },
        "validation.json:3 template: unknown class 'Down'",
    ),
    "no template": (
        something.read_v2,
        {"labels.json": '{"Up": "0"}', "train.json": '[{"id": "1"}]'},
        "train.json:1 template: missing",
    ),
    "an index that is no number": (
        something.read_v2,
        {"labels.json": '{\n"Up": "zero"}', "train.json": '[{"id": "1"}]'},
        "labels.json:2 Up: ",
    ),
    "an id of the wrong type": (
        something.read_v2,
        {"labels.json": '{"Up": "0"}', "train.json": '[\n{"id": 5, "template": "Up"}]'},
        "train.json:2 0.id: ",
    ),
    "no JSON": (activitynet.read_activitynet, {"a.json": '{"database":\n {,}}'}, "a.json:2: not JSON"),
    "a list in place of an object": (
        activitynet.read_activitynet,
        {"a.json": "[]"},
        "a.json:1: []; expected: an object {...}",
    ),
    "null in place of a list": (
        activitynet.read_activitynet,
        {"a.json": '{"database": {"v": {"subset": "training",\n"annotations": null}}}'},
        "a.json:2 database.v.annotations: null; expected: a list [...]",
    ),
    "a segment of three numbers": (
        activitynet.read_activitynet,
        {"a.json": segments(one(segment="[1, 2, 3]"))},
        "a.json:5 database.v.annotations.0.segment: [1, 2, 3]; expected: at most 2 of them",
    ),
    "no database": (activitynet.read_activitynet, {"a.json": '{"version": 1}'}, "a.json:1 database: missing"),
    "a reversed segment": (
        activitynet.read_activitynet,
        {"a.json": segments(one(), one(segment="[5, 2]"), one(segment="[6, 2]"))},  # of three more than half
        "a.json:6 database.v.annotations.1.segment: [5, 2]",
    ),
    "a negative segment": (
        activitynet.read_activitynet,
        {"a.json": segments(one(segment="[-1, 2]"))},
        "a.json:5 database.v.annotations.0.segment: ",
    ),
    "a segment of one number": (
        activitynet.read_activitynet,
        {"a.json": segments(one(segment="[1]"))},
        "a.json:5 database.v.annotations.0.segment.1: missing",
    ),
    "a segment of texts": (
        activitynet.read_activitynet,
        {"a.json": segments(one(segment='["x", 2]'))},
        "a.json:5 database.v.annotations.0.segment.0: ",
    ),
    "a label of the wrong type": (
        activitynet.read_activitynet,
        {"a.json": segments(one(label="7"))},
        "a.json:5 database.v.annotations.0.label: ",
    ),
    "a video twice": (
        activitynet.read_activitynet,
        {"a.json": '{"database": {\n"v": {"subset": "training"},\n"v": {"subset": "testing"}}}'},
        "a.json:3 database.v: duplicate key, first in line 2",
    ),
    "a number of thousands of digits": (
        activitynet.read_activitynet,
        {"a.json": '{"database": ' + "9" * 5000 + "}"},
        "a.json:1: a number of thousands of digits",
    ),
    "lists in lists": (activitynet.read_activitynet, {"a.json": "[" * 200_000}, "a.json:1: "),
    "a video whose name no file can have": (
        activitynet.read_activitynet,
        {"a.json": '{"database": {\n"v\\u0000": {"subset": "training"}}}'},
        "a.json:2 database.v",
    ),
    "an unknown subset": (
        activitynet.read_activitynet,
        {"a.json": '{"database": {\n"v": {\n"subset": "dev"}}}'},
        "a.json:3 database.v.subset: ",
    ),
    "an unknown class of THUMOS": (
        activitynet.read_thumos14,
        {"thumos14.json": segments(one(label='"Biliards"'))},
        "thumos14.json:2 database.v label: unknown class 'Biliards' (did you mean 'Billiards'?)",
    ),
    "a reversed segment of text": (
        activitynet.read_thumos14,
        {"Billiards_val.txt": "v 1 2\nv 3 1\nv 4 1\n"},
        "Billiards_val.txt:2 segment: ",
    ),
    "a text line too short": (
        activitynet.read_thumos14,
        {"Billiards_val.txt": "v 1\n"},
        "Billiards_val.txt:1 segment: ",
    ),
    "a HACS label of 2": (
        activitynet.read_hacs_clips,
        {"clips.csv": HACS + "A,b,training,1,3,2\n"},
        "clips.csv:2 label: ",
    ),
    "a reversed HACS clip": (
        activitynet.read_hacs_clips,
        {"clips.csv": HACS + "A,b,training,3,1,1\n"},
        "clips.csv:2 end: ",
    ),
    "a split code of 3": (
        clip_sets.read_hmdb51,
        {"wave_test_split1.txt": "a.avi 1\nb.avi 3\n"},
        "split1.txt:2 split: ",
    ),
    "a fourth split of HMDB51": (
        clip_sets.read_hmdb51,
        {"wave_test_split1.txt": "a.avi 1\n", "wave_test_split4.txt": "a.avi 1\n"},
        "wave_test_split4.txt: split 4; expected: 1, 2 or 3",
    ),
    "a fourth split of UCF101": (
        clip_sets.read_ucf101,
        {"classInd.txt": "1 A\n", "testlist04.txt": "A/a.avi\n"},
        "testlist04.txt: split 4; expected: 1, 2 or 3",
    ),
    "a class that the folder is not": (
        clip_sets.read_ucf101,
        {"classInd.txt": "1 A\n2 B\n", "trainlist01.txt": "A/v_A_g01_c01.avi 2\n"},
        "trainlist01.txt:1 label: '2' for A",
    ),
    "a class index with a gap": (
        clip_sets.read_ucf101,
        {"classInd.txt": "1 A\n3 B\n", "trainlist01.txt": "A/a.avi 1\n"},
        "classInd.txt:2 label: ",
    ),
    "an unknown folder": (
        clip_sets.read_ucf101,
        {"classInd.txt": "1 A\n", "testlist01.txt": "C/a.avi\n"},
        "testlist01.txt:1 path: unknown class 'C'",
    ),
    "an unknown moment": (
        clip_sets.read_moments,
        {"moments_categories.txt": "aiming,0\n", "validationSet.csv": "a.mp4,aming,1,0\n"},
        "validationSet.csv:1 label: unknown class 'aming' (did you mean 'aiming'?)",
    ),
    "a box outside": (ava.read_ava, {"ava_val_v2.2.csv": "v,0902,0.1,0.1,1.2,0.5,1,0\n"}, "ava_val_v2.2.csv:1 x2: "),
    "a reversed box": (
        ava.read_ava,
        {"ava_val_v2.2.csv": "v,0902,0.5,0.1,0.2,0.5,1,0\n"},
        "ava_val_v2.2.csv:1 x2: a box from",
    ),
    "half a box": (ava.read_ava, {"ava_val_v2.2.csv": "v,0902,0.5,0.1,,,1,0\n"}, "ava_val_v2.2.csv:1 x1: "),
    "an action of 81": (
        ava.read_ava,
        {"ava_val_v2.2.csv": "v,0902,0.1,0.1,0.2,0.5,81,0\n"},
        "ava_val_v2.2.csv:1 action_id: ",
    ),
    "an action of 0": (
        ava.read_ava,
        {"ava_val_v2.2.csv": "v,0902,0.1,0.1,0.2,0.5,0,0\n"},
        "ava_val_v2.2.csv:1 action: ",
    ),
    "a box without action": (
        ava.read_ava,
        {"ava_val_v2.2.csv": "v,0902,0.1,0.1,0.2,0.5,,0\n"},
        "ava_val_v2.2.csv:1 action_id: missing",
    ),
    "seven columns": (ava.read_ava, {"ava_val_v2.2.csv": "v,0902,0.1,0.1,0.2,0.5,1\n"}, "ava_val_v2.2.csv:1: 7 cells"),
    "a label map with an id twice": (
        ava.read_ava,
        {"ava.pbtxt": 'item {\n name: "a"\n id: 1\n}\nitem {\n name: "b"\n id: 1\n}\n'},
        "ava.pbtxt:5 id: 1 a second",
    ),
    "a label map without names": (ava.read_ava, {"ava.pbtxt": "item {\n id: 1\n}\n"}, "ava.pbtxt:1 name: missing"),
    "an image that is not there": (
        ava.read_ava,
        {
            "ava_val_min.json": json.dumps(
                {"images": [], "annotations": [{"image_id": "x", "bbox": [0, 0, 1, 1], "action_ids": [1]}]}, indent=0
            )
        },
        "ava_val_min.json:5 annotations.0.image_id: no image 'x'",
    ),
    "a file too many": (
        activitynet.read_hacs_clips,
        {"a/clips.csv": HACS, "b/clips.csv": HACS},
        "2 files could be meant",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_mistake_is_told_with_file_line_and_field(tmp_path: Path, name: str) -> None:
    read, files, told = CASES[name]
    for file, text in files.items():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(text, encoding="utf-8")
    with pytest.raises(ManifestError) as caught:
        read(AnnotationSource(tmp_path))
    line = str(caught.value)
    assert told in line
    assert line.startswith(str(tmp_path))
    assert "\n" not in line
