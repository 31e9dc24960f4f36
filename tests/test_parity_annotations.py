"""Annotation files of any folder in the stored layout, read a second time in the plainest way: the same rows.

Nothing of a stored value is written here, so that another folder passes unchanged; test_formats*.py know the values of
the repository's own samples.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from annotation_files import cells, json_lines, lines, loaded, of, table
from goldens_folder import GOLDENS

from internvideo.datasets import captions, ego4d, ego4d_objects, navigation, questions
from internvideo.datasets.annotations import Annotations
from internvideo.datasets.catalog import BENCHMARKS
from internvideo.datasets.prepare import read_pickle
from internvideo.datasets.reading import AnnotationSource

pytestmark = pytest.mark.parity

FILES = GOLDENS / "tasks" / "annotations"
Splits = dict[str, list[Any]]

ACTIONS: dict[str, tuple[str, ...]] = {
    "activitynet_v1_3": ("activitynet", "activitynet_segments"),
    "ava_kinetics": ("ava_kinetics",),
    "ava_v2_2": ("ava",),
    "fineaction": ("fineaction",),
    "hacs": ("hacs", "hacs_segments"),
    "hmdb51": ("hmdb51",),
    "kinetics400": ("kinetics400",),
    "kinetics600": ("kinetics600",),
    "kinetics700": ("kinetics700",),
    "kinetics710": (),
    "mit_v2": (),
    "something_v1": ("something_v1",),
    "something_v2": ("something_v2",),
    "thumos14": ("thumos14",),
    "ucf101": (),
    "zero_shot_k400": ("zero_shot_k400",),
}
"""Folders of the action data sets, and the benchmarks that read each (values: tests/datasets/test_formats.py)."""


def asked(rows: Iterable[Any], video: Callable[[Any], str]) -> list[Any]:
    """A row a video, in the order of its first question."""
    grouped: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
    for row in rows:
        grouped[video(row)].append((row["question"], row["answer"]))
    return list(grouped.items())


def written(made: Annotations) -> Splits:
    return {split: [(row.id, list(row.captions)) for row in rows] for split, rows in made.splits.items()}


def answered(made: Annotations) -> Splits:
    return {
        split: [(row.id, [(pair.question, pair.answer) for pair in row.qa]) for row in rows]
        for split, rows in made.splits.items()
    }


def chosen(made: Annotations) -> Splits:
    return {
        split: [(Path(row.path).stem, list(row.choices.options), row.choices.answer) for row in rows if row.choices]
        for split, rows in made.splits.items()
    }


# --- the second reading: what a folder holds -------------------------------------------------------------------------


def sentences(folder: Path) -> dict[str, list[str]]:
    found: defaultdict[str, list[str]] = defaultdict(list)
    for row in loaded(folder / "MSRVTT_data.json")["sentences"]:
        found[row["video_id"]].append(row["caption"])
    return found


def msrvtt(folder: Path) -> Splits:
    told = sentences(folder)
    train = [row["video_id"] for row in table(folder / "MSRVTT_train.9k.csv")]
    test = table(folder / "MSRVTT_JSFUSION_test.csv")
    return {
        "train": [(name, told[name]) for name in train],
        "test": [(row["video_id"], [row["sentence"]]) for row in test],
    }


def msrvtt_full(folder: Path) -> Splits:
    told, splits = sentences(folder), defaultdict(list)
    for row in loaded(folder / "MSRVTT_data.json")["videos"]:
        split = {"validate": "val"}.get(row["split"], row["split"])
        splits[split].append((row["video_id"], told[row["video_id"]]))
    return splits


def msvd(folder: Path) -> Splits:
    told = loaded(folder / "raw-captions_as_json.json")  # the reader takes the pickle beside it
    return {
        split: [(name, [" ".join(words) for words in told[name]]) for name in lines(path)]
        for split, path in of(folder, "_list.txt").items()
    }


def lsmdc(folder: Path) -> Splits:
    kinds = {"train": "*annos_training*", "val": "*annos_val*", "test": "*challenge_1000*"}
    return {
        split: [(row[0], [row[5]]) for path in folder.glob(kind) for row in cells(path)]
        for split, kind in kinds.items()
        if list(folder.glob(kind))
    }


def activitynet_captions(folder: Path) -> Splits:
    files = {"train": folder / "train.json", "val": folder / "val_1.json"}
    return {
        split: [(name, [" ".join(text.strip() for text in row["sentences"])]) for name, row in loaded(path).items()]
        for split, path in files.items()
        if path.is_file()
    }


def didemo(folder: Path) -> Splits:
    made: Splits = {}
    for split, path in of(folder, "_data.json").items():
        joined: defaultdict[str, list[str]] = defaultdict(list)
        for row in loaded(path):
            joined[row["video"]].append(row["description"])
        made[split] = [(name, [" ".join(joined[name])]) for name in lines(folder / f"{split}_list.txt")]
    return made


def vatex(folder: Path) -> Splits:
    told = {row["videoID"]: row["enCap"] for row in loaded(folder / "vatex_validation_v1.0.json")}
    test = lines(folder / "test_list.txt")
    made = {"test": test, "val": [name for name in told if name not in test]}
    return {split: [(name, told[name]) for name in names] for split, names in made.items() if names}


def msrvtt_qa(folder: Path) -> Splits:
    made = {
        split: asked(loaded(path), lambda row: f"video{row['video_id']}")
        for split, path in of(folder, "_qa.json").items()
    }
    return made | {
        split: asked(json_lines(path), lambda row: str(row["video_id"])) for split, path in of(folder, ".jsonl").items()
    }


def msvd_qa(folder: Path) -> Splits:
    return {
        split: asked(loaded(path), lambda row: f"vid{row['video_id']}")
        for split, path in of(folder, "_qa_encode.json").items()
    }


def tgif_qa(folder: Path) -> Splits:
    (path,) = folder.glob("frameqa_*.jsonl")
    return {"test": asked(json_lines(path), lambda row: str(row["gif_name"]))}


def tgif_choice(folder: Path) -> Splits:
    rows = json_lines(folder / "action_test.jsonl")
    return {"test": [(row["gif_name"], row["options"], row["answer"]) for row in rows]}


def msrvtt_mc(folder: Path) -> Splits:
    (path,) = folder.glob("*.jsonl")
    return {"test": [(row["clip_name"], row["options"], row["answer"]) for row in json_lines(path)]}


def lsmdc_mc(folder: Path) -> Splits:
    (path,) = folder.glob("*.csv")
    return {"test": [(row[0], row[5:10], int(row[10]) - 1) for row in cells(path)]}


def r2r(folder: Path) -> Splits:
    made = {}
    for path in sorted(folder.glob("*[!t].json.gz")):
        split = path.name.removesuffix(".json.gz")
        walked = loaded(folder / f"{split}_gt.json.gz")
        made[split] = [
            (
                str(row["episode_id"]), row["scene_id"], row["instruction"]["instruction_text"].strip(),
                row["start_position"], row["start_rotation"], row["goals"][0]["position"], row["reference_path"],
                walked[str(row["episode_id"])]["locations"], walked[str(row["episode_id"])]["actions"],
            )
            for row in loaded(path)["episodes"]
        ]  # fmt: skip
    return made


def told_episodes(made: Annotations) -> Splits:
    names = ("start_position", "start_rotation", "goal", "reference_path", "locations", "actions")
    return {
        split: [
            (row.id, row.path, row.captions[0], *(json.loads(row.attributes[name]) for name in names)) for row in rows
        ]
        for split, rows in made.splits.items()
    }


def clips(path: Path, field: str) -> Iterable[tuple[str, list[Any]]]:
    for video in loaded(path)["videos"]:
        for clip in video["clips"]:
            yield clip["clip_uid"], [row for note in clip["annotations"] for row in note[field]]


def moments(folder: Path) -> Splits:
    return {
        split: [
            (name, [(row["label"], row["start_time"], row["end_time"]) for row in rows if row["primary"]])
            for name, rows in clips(path, "labels")
        ]
        for split, path in of(folder, ".json").items()
    }


def told_moments(made: Annotations) -> Splits:
    return {
        split: [(row.id, [(made.classes[part.label], part.start, part.end) for part in row.segments]) for row in rows]
        for split, rows in made.splits.items()
    }


def anticipation(folder: Path) -> Splits:
    made = {}
    for split, path in of(folder, ".json").items():
        content = loaded(path)
        sizes = {
            name: (row["frame_width"], row["frame_height"]) for name, row in content["info"]["video_metadata"].items()
        }
        made[split] = [
            (row["uid"], row["clip_uid"], row["clip_frame"], [
                ([value / sizes[row["video_id"]][n % 2] for n, value in enumerate(thing["box"])],
                 thing["noun_category_id"], thing["verb_category_id"], thing["time_to_contact"])
                for thing in row["objects"]
            ])
            for row in content["annotations"]
        ]  # fmt: skip
    return made


def told_anticipation(made: Annotations) -> Splits:
    def things(row: Any) -> list[Any]:
        numbers = (row.attributes.get(name, "").split() for name in ("verbs", "times_to_contact"))
        return [
            ([box.x1, box.y1, box.x2, box.y2], box.labels[0], int(verb), float(time))
            for box, verb, time in zip(row.boxes, *numbers, strict=True)
        ]

    return {
        split: [(row.id, Path(row.path).stem, int(row.attributes["frame"]), things(row)) for row in rows]
        for split, rows in made.splits.items()
    }


def hands(folder: Path) -> Splits:
    return {
        split: [
            (clip["clip_uid"], {
                name: {
                    "frame": moment.get("clip_frame", moment["frame"]),
                    **{hand: at for box in moment["boxes"] for hand, at in box.items()},
                }
                for name, moment in contact.items() if isinstance(moment, dict) and "boxes" in moment
            })
            for clip in loaded(path)["clips"] for contact in clip["frames"]
        ]
        for split, path in of(folder, ".json").items()
    }  # fmt: skip


def told_hands(made: Annotations) -> Splits:
    return {
        split: [(Path(row.path).stem, json.loads(row.attributes["hands"])) for row in rows]
        for split, rows in made.splits.items()
    }


def state_change(folder: Path) -> Splits:
    made = {}
    for split, path in of(folder, ".json").items():
        content, boxes = loaded(path), defaultdict(list)
        for row in content["annotations"]:
            boxes[row["image_id"]].append(row["bbox"])
        made[split] = [(str(row["id"]), row["file_name"], boxes[row["id"]]) for row in content["images"]]
    return made


def told_state_change(made: Annotations) -> Splits:
    def corners(row: Any) -> list[list[float]]:
        width, height = (int(side) for side in row.attributes["size"].split("x"))
        return [
            [box.x1 * width, box.y1 * height, (box.x2 - box.x1) * width, (box.y2 - box.y1) * height]
            for box in row.boxes
        ]

    return {split: [(row.id, row.path, corners(row)) for row in rows] for split, rows in made.splits.items()}


Case = tuple[Callable[[AnnotationSource], Annotations], Callable[[Path], Splits], Callable[[Annotations], Splits]]
CASES: dict[str, list[Case]] = {
    "msrvtt": [(captions.read_msrvtt, msrvtt, written), (captions.read_msrvtt_full, msrvtt_full, written)],
    "msvd": [(captions.read_msvd, msvd, written)],
    "lsmdc": [(captions.read_lsmdc, lsmdc, written)],
    "activitynet_captions": [(captions.read_activitynet_captions, activitynet_captions, written)],
    "didemo": [(captions.read_didemo, didemo, written)],
    "vatex": [(captions.read_vatex, vatex, written)],
    "msrvtt_qa": [(questions.read_msrvtt_qa, msrvtt_qa, answered)],
    "msvd_qa": [(questions.read_msvd_qa, msvd_qa, answered)],
    "tgif_qa": [(questions.read_tgif_qa, tgif_qa, answered), (questions.read_tgif_choice, tgif_choice, chosen)],
    "msrvtt_mc": [(questions.read_msrvtt_choice, msrvtt_mc, chosen)],
    "lsmdc_mc": [(questions.read_lsmdc_choice, lsmdc_mc, chosen)],
    "r2r_vlnce": [(navigation.read_r2r, r2r, told_episodes)],
    "ego4d_mq": [(ego4d.read_moments, moments, told_moments)],
    "ego4d_sta": [(ego4d.read_anticipation, anticipation, told_anticipation)],
    "ego4d_fhp": [(ego4d.read_hands, hands, told_hands)],
    "ego4d_scod": [(ego4d_objects.read_state_change, state_change, told_state_change)],
}


def near(value: Any) -> Any:
    """Numbers to nine digits; lists and tuples are alike."""
    if isinstance(value, dict):
        return {key: near(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [near(part) for part in value]
    return round(float(value), 9) if isinstance(value, int | float) else value


FOLDERS = sorted(path.name for path in FILES.iterdir())


def kind_of(name: str) -> str:
    """`msrvtt` of `msrvtt` and of `msrvtt_second`; "" of a folder that nobody reads."""
    fits = [known for known in (*CASES, *ACTIONS) if name == known or name.startswith(f"{known}_")]
    return max(fits, key=len, default="")


@pytest.mark.parametrize("name", [name for name in FOLDERS if kind_of(name) not in ACTIONS])
def test_a_second_reading_of_the_files_gives_the_same_rows(name: str) -> None:
    kind = kind_of(name)
    assert kind, f"no reader is known for {FILES / name}"
    for read, again, told in CASES[kind]:
        made = told(read(AnnotationSource(FILES / name, unpickle=read_pickle)))
        expected = again(FILES / name)
        assert any(expected.values())
        assert near(made) == near(expected)


@pytest.mark.parametrize("name", [name for name in FOLDERS if kind_of(name) in ACTIONS])
def test_files_of_actions_are_read(name: str) -> None:
    readers = ACTIONS[kind_of(name)]
    for reader in readers:
        made = BENCHMARKS[reader].read(AnnotationSource(FILES / name, unpickle=read_pickle))
        assert any(made.splits.values()), reader


def test_every_kind_is_there() -> None:
    assert set(map(kind_of, FOLDERS)) >= set(CASES) | set(ACTIONS)
