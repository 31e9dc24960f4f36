"""Annotation files of Ego4D and R2R-CE, and what can be wrong with them."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from goldens_folder import GOLDENS, SAMPLES

from internvideo.datasets import ego4d, ego4d_objects, navigation
from internvideo.datasets.annotations import Annotations
from internvideo.datasets.reading import AnnotationSource
from internvideo.errors import ManifestError

FILES = SAMPLES / "tasks"
Read = Callable[[AnnotationSource], Annotations]


def given(read: Read, *names: str) -> Annotations:
    return read(AnnotationSource(FILES.joinpath(*names)))


def test_moments() -> None:
    made = given(ego4d.read_moments, "annotations", "ego4d_mq")
    (row,) = made.splits["val"]
    assert row.path == "a8d4aed2-5793-6857-98b3-7957842e2e21.mp4"
    assert [(part.start, part.end) for part in row.segments] == [(19.461, 47.834)]  # the other is not primary
    assert made.classes == ("use_phone",)
    assert made.notes == ["1 labels that are not primary or have no duration left out"]


@pytest.mark.parity
def test_language_queries_of_the_evaluator() -> None:
    path = GOLDENS / "tasks" / "ego4d_nlq" / "nlq_val.json"
    made = ego4d.read_queries(AnnotationSource(path))
    content = json.loads(path.read_text())
    queries = [
        query
        for video in content["videos"]
        for clip in video["clips"]
        for annotator in clip["annotations"]
        for query in annotator["language_queries"]
    ]
    assert len(made.splits["val"]) == len(queries)
    for row, query in zip(made.splits["val"], queries, strict=True):
        assert row.captions == (query["query"],)
        assert [(part.start, part.end) for part in row.segments] == [(query["clip_start_sec"], query["clip_end_sec"])]


def test_anticipation() -> None:
    made = given(ego4d.read_anticipation, "annotations", "ego4d_sta")
    (row,) = made.splits["val"]
    (box,) = row.boxes
    assert (box.x1, box.y1, box.x2, box.y2) == pytest.approx((10 / 1920, 20 / 1440, 110.5 / 1920, 220 / 1440))
    assert box.time == pytest.approx(33 / 30)
    frame = {"uid": "vid0_0054832", "frame": "33", "time": "1.1000", "size": "1920x1440"}
    assert row.attributes == {**frame, "verbs": "0", "times_to_contact": "0.767"}
    assert (made.classes, len(made.vocabularies["verbs"])) == (("apple",), 1)


def test_future_hands() -> None:
    made = given(ego4d.read_hands, "annotations", "ego4d_fhp")
    (row,) = made.splits["val"]
    told = json.loads(row.attributes["hands"])
    assert told["pre_30"] == {"frame": 115, "right_hand": [300.5, 212.0]}
    assert list(told) == ["pre_45", "pre_30", "pre_15", "pre_frame", "contact_frame"]
    assert row.attributes["uid"] == "7_99", "clip 7, the video frame before pre_45"


def test_hands_of_a_test_split_are_frames_of_the_clip(tmp_path: Path) -> None:
    moment = {"frame": 1900, "clip_frame": 100}
    clip = {"clip_id": 12, "clip_uid": "c", "video_uid": "v", "frames": [{"pre_45": moment}]}
    (tmp_path / "fho_hands_test_unannotated.json").write_text(json.dumps({"clips": [clip]}))
    (row,) = ego4d.read_hands(AnnotationSource(tmp_path)).splits["test"]
    assert json.loads(row.attributes["hands"]) == {"pre_45": {"frame": 100}}
    assert row.attributes["uid"] == "12_1899"


def test_state_change() -> None:
    made = given(ego4d_objects.read_state_change, "annotations", "ego4d_scod")
    (row,) = made.splits["val"]
    (box,) = row.boxes
    assert (box.x1, box.y1, box.x2, box.y2) == pytest.approx((100 / 1920, 200 / 1080, 400 / 1920, 350 / 1080))
    assert made.classes == ("object_of_change",)
    assert row.attributes == {"size": "1920x1080"}


def test_state_change_in_the_official_form() -> None:
    made = ego4d_objects.read_state_change(
        AnnotationSource(Path(__file__).parents[1] / "annotations" / "ego4d_scod_clips")
    )
    rows = made.splits["val"]
    clip, video = "f5f6cd21-8b80-58c6-83b1-4b4730ace2ca", "819c7f16-4416-9ddf-48ae-c468ec4cb739"
    assert [row.id for row in rows] == [f"{clip}_0_pre", f"{clip}_0_pnr", f"{clip}_0_post"]
    assert {(row.path, row.group) for row in rows} == {(f"{clip}.mp4", video)}
    assert [len(row.boxes) for row in rows] == [1, 1, 0], "boxes of hands and tools are none of the change"
    box = rows[1].boxes[0]
    assert (box.x1, box.y1) == pytest.approx((500.25 / 1920, 610 / 1440))
    assert (box.x2, box.y2) == pytest.approx((830.25 / 1920, 785.5 / 1440))
    assert (box.time, box.labels) == (75 / 30, (0,))
    assert rows[1].attributes == {
        "uid": f"{video}/405", "moment": "pnr", "noun": "knife_(knife,_machete)", "frame": "75", "time": "2.5000",
        "size": "1920x1440",
    }  # fmt: skip
    assert made.classes == ("object_of_change",)
    assert made.notes == ["1 frames without a box of the object of change"]


def test_two_changes_of_a_clip_and_a_test_split_without_boxes(tmp_path: Path) -> None:
    (tmp_path / "fho_scod_test_unannotated.json").write_text(scod(2, boxes=False))
    made = ego4d_objects.read_state_change(AnnotationSource(tmp_path))
    assert [row.id for row in made.splits["test"]] == [f"c_{n}_{at}" for n in (0, 1) for at in ("pre", "pnr", "post")]
    assert not any(row.boxes for row in made.splits["test"])


def test_the_official_form_goes_before_an_export_in_a_folder(tmp_path: Path) -> None:
    (tmp_path / "coco_annotations").mkdir()
    for split in ("train", "val", "trainval"):
        (tmp_path / "coco_annotations" / f"{split}.json").write_text(coco())
    made = ego4d_objects.read_state_change(AnnotationSource(tmp_path))
    assert {split: [row.path for row in rows] for split, rows in made.splits.items()} == {
        "train": ["a.jpg"],
        "val": ["a.jpg"],
    }
    (tmp_path / "fho_scod_val.json").write_text(scod())
    made = ego4d_objects.read_state_change(AnnotationSource(tmp_path))
    assert [row.path for row in made.splits["val"]] == ["c.mp4"] * 3


def test_episodes() -> None:
    made = given(navigation.read_r2r, "annotations", "r2r_vlnce")
    assert {split: len(rows) for split, rows in made.splits.items()} == {"val_unseen": 3}
    row = made.splits["val_unseen"][0]
    assert row.captions == ("Exit the study and turn left. Stop near the rug.",)
    assert json.loads(row.attributes["goal"]) == [0.43, 0.15, 5.174]
    assert json.loads(row.attributes["actions"])[-1] == 0
    assert len(json.loads(row.attributes["locations"])) == 12


STA = {"info": {"video_metadata": {"v": {"frame_width": 100, "frame_height": 100}}}}
STA |= {"verb_categories": [{"id": 0, "name": "cut"}], "noun_categories": [{"id": 0, "name": "apple"}]}
THING = {"box": [1, 1, 9, 9], "verb_category_id": 0, "noun_category_id": 0, "time_to_contact": 1}


def sta(video: str = "v", **changes: object) -> str:
    entry = {"uid": "u", "video_id": video, "frame": 1, "clip_uid": "c", "clip_frame": 1, "objects": [THING | changes]}
    return json.dumps(STA | {"annotations": [entry]})


def clips(**annotation: object) -> str:
    return json.dumps({"videos": [{"video_uid": "v", "clips": [{"clip_uid": "c", "annotations": [annotation]}]}]})


def scod(count: int = 1, *, boxes: bool = True, frame: dict[str, object] | None = None, **thing: object) -> str:
    box = {"object_type": "object_of_change", "bbox": {"x": 1, "y": 1, "width": 5, "height": 5}} | thing
    told: dict[str, object] = {"frame_number": 9, "clip_frame_number": 3, "width": 10, "height": 10}
    told |= {"bbox": [box]} if boxes else {}
    clip = {"video_uid": "v", "clip_uid": "c", "pre_frame": told | (frame or {}), "pnr_frame": told, "post_frame": told}
    return json.dumps({"clips": [clip] * count})


def coco(image: int = 1, category: int = 1, bbox: tuple[int, ...] = (1, 1, 5, 5)) -> str:
    images = [{"id": 1, "file_name": "a.jpg", "width": 10, "height": 10}]
    box = {"image_id": image, "category_id": category, "bbox": bbox}
    return json.dumps({"images": images, "annotations": [box], "categories": [{"id": 1, "name": "x"}]})


EPISODE = {
    "episode_id": 1,
    "trajectory_id": 1,
    "scene_id": "s.glb",
    "start_position": [0, 0, 0],
    "start_rotation": [0, 0, 0, 1],
    "instruction": {"instruction_text": "Go."},
}
REVERSED = {"start_time": 5, "end_time": 2, "label": "x"}

CASES: dict[str, tuple[Read, dict[str, str], str]] = {
    "a reversed moment": (
        ego4d.read_moments,
        {"moments_val.json": clips(labels=[REVERSED])},
        "json:1 videos.0.clips.0.annotations.0.labels.0.end_time: 2 before the start 5",
    ),
    "a moment without label": (
        ego4d.read_moments,
        {"moments_val.json": clips(labels=[{"start_time": 1, "end_time": 2}])},
        "labels.0.label: missing",
    ),
    "a reversed answer": (
        ego4d.read_queries,
        {"nlq_val.json": clips(language_queries=[{"clip_start_sec": 5, "clip_end_sec": 2, "query": "q"}])},
        "language_queries.0.clip_end_sec: 2 before",
    ),
    "an unknown noun": (
        ego4d.read_anticipation,
        {"fho_sta_val.json": sta(noun_category_id=1)},
        "noun_category_id: unknown",
    ),
    "an unknown verb": (
        ego4d.read_anticipation,
        {"fho_sta_val.json": sta(verb_category_id=1)},
        "verb_category_id: unknown",
    ),
    "a box outside": (
        ego4d.read_anticipation,
        {"fho_sta_val.json": sta(box=[1, 1, 101, 9])},
        "objects.0.box: a box that",
    ),
    "a reversed box": (
        ego4d.read_anticipation,
        {"fho_sta_val.json": sta(box=[9, 1, 1, 9])},
        "objects.0.box: a box from",
    ),
    "a video without size": (
        ego4d.read_anticipation,
        {"fho_sta_val.json": sta("w")},
        "annotations.0.video_id: no size",
    ),
    "other verbs in the second file": (
        ego4d.read_anticipation,
        {"fho_sta_train.json": sta(), "fho_sta_val.json": sta().replace('"cut"', '"take"')},
        "fho_sta_val.json:1 verb_categories: other verbs",
    ),
    "a third hand": (
        ego4d.read_hands,
        {
            "fho_hands_val.json": '{"clips": [{"clip_uid": "c", "video_uid": "v", "frames": [\n'
            '{"pre_45": {"frame": 1, "boxes": [{"third_hand": [1, 2]}]}}]}]}'
        },
        "json:2 clips.0.frames.0.pre_45.boxes: a hand ['third_hand']",
    ),
    "a change without a frame": (
        ego4d_objects.read_state_change,
        {"fho_scod_val.json": scod().replace("pnr_frame", "other")},
        "clips.0.pnr_frame: missing",
    ),
    "a key frame of no size": (
        ego4d_objects.read_state_change,
        {"fho_scod_val.json": scod(frame={"width": 0})},
        "clips.0.pre_frame.width: 0",
    ),
    "an object outside its frame": (
        ego4d_objects.read_state_change,
        {"fho_scod_val.json": scod(bbox={"x": 1, "y": 8, "width": 5, "height": 5})},
        "clips.0.pre_frame.bbox.0.bbox: a box that leaves",
    ),
    "an object without height": (
        ego4d_objects.read_state_change,
        {"fho_scod_val.json": scod(bbox={"x": 1, "y": 8, "width": 5, "height": 0})},
        "clips.0.pre_frame.bbox.0.bbox: a box from",
    ),
    "neither form": (
        ego4d_objects.read_state_change,
        {"fho_sta_val.json": sta()},
        "no annotation file of this track",
    ),
    "no such image": (
        ego4d_objects.read_state_change,
        {"val_coco.json": coco(image=2)},
        "annotations.0.image_id: no image 2",
    ),
    "no such class": (
        ego4d_objects.read_state_change,
        {"val_coco.json": coco(category=0)},
        "annotations.0.category_id: unknown",
    ),
    "a box outside the image": (
        ego4d_objects.read_state_change,
        {"val_coco.json": coco(bbox=(1, 1, 10, 5))},
        "annotations.0.bbox: a box that leaves",
    ),
    "no rotation": (
        navigation.read_r2r,
        {"test.json": json.dumps({"episodes": [EPISODE | {"start_rotation": [0, 0, 0]}]})},
        "test.json:1 episodes.0.start_rotation.3: missing",
    ),
    "an episode twice": (
        navigation.read_r2r,
        {"test.json": json.dumps({"episodes": [EPISODE, EPISODE]})},
        "episodes.1.episode_id id: '1'",
    ),
    "an episode without its path": (
        navigation.read_r2r,
        {
            "train.json": json.dumps({"episodes": [EPISODE]}),
            "train_gt.json": '{"2": {"locations": [[0, 0, 0]], "actions": [0]}}',
        },
        "episodes.0.episode_id: no entry for 1",
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


def test_a_damaged_gzip_file(tmp_path: Path) -> None:
    whole = gzip.compress(json.dumps({"episodes": [EPISODE]}).encode())
    (tmp_path / "test.json.gz").write_bytes(whole)
    assert len(navigation.read_r2r(AnnotationSource(tmp_path)).splits["test"]) == 1
    (tmp_path / "test.json.gz").write_bytes(whole[:-12])
    with pytest.raises(ManifestError, match=r"test\.json\.gz: cannot be read"):
        navigation.read_r2r(AnnotationSource(tmp_path))
