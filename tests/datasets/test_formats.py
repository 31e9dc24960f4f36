"""Annotation files of the action data sets, and every way in which they can be wrong."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from goldens_folder import SAMPLES

from internvideo.datasets import activitynet, ava, clip_sets, kinetics, something
from internvideo.datasets.annotations import Annotations
from internvideo.datasets.catalog import BENCHMARKS
from internvideo.datasets.reading import AnnotationSource, line_of, list_lines
from internvideo.errors import ManifestError

FILES = SAMPLES / "tasks" / "annotations"
Read = Callable[[AnnotationSource], Annotations]


def given(read: Read, *names: str) -> Annotations:
    return read(AnnotationSource(FILES.joinpath(*names)))


def written(folder: Path, files: dict[str, str]) -> AnnotationSource:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(text.encode("utf-8", "surrogateescape"))
    return AnnotationSource(folder)


@pytest.mark.parametrize("count", [400, 600, 700])
def test_kinetics_csv(count: int) -> None:
    made = given(BENCHMARKS[f"kinetics{count}"].read, f"kinetics{count}", f"kinetics-{count}_val.csv")
    assert made.classes == ("abseiling", "air drumming", "answering questions", "applauding", "archery")
    rows = made.splits["val"]
    assert [row.label for row in rows] == [0, 1, 2, 3, 4]
    start = {400: "75YX8XM5mSL_000231_000241", 600: "nECJ9InoRJJ_000183_000193", 700: "c4lVgnwamSi_000044_000054"}
    assert (rows[0].id, rows[0].path, rows[0].split) == (start[count], f"{start[count]}.mp4", "val")
    assert made.names[rows[0].path] == (start[count], start[count][:11])


@pytest.mark.parametrize("count", [400, 600, 700])
@pytest.mark.parametrize("kind", ["comma", "space"])
def test_kinetics_lists(count: int, kind: str) -> None:
    made = given(BENCHMARKS[f"kinetics{count}"].read, f"kinetics{count}", f"val_{kind}_list.csv")
    assert len(made.classes) == count
    assert [row.label for row in made.splits["val"]] == [0, 1, 2, 3, 4]
    assert all(row.path.endswith(".mp4") for row in made.splits["val"])


def test_a_list_beside_a_csv_of_the_same_split_is_passed_over_and_told() -> None:
    made = given(kinetics.read_400, "kinetics400")
    assert len(made.splits["val"]) == 5
    assert sum("skipped" in note for note in made.notes) == 2


def test_zero_shot_list() -> None:
    made = given(kinetics.read_zero_shot, "zero_shot_k400")
    assert next((row.path, row.label) for row in made.splits["test"]) == ("test/yeIv1Vc1PJM.mp4", 266)


def test_kinetics710_list() -> None:
    made = given(kinetics.read_710, "kinetics710")
    assert [row.label for row in made.splits["train"]] == [242, 563, 554, 574, 51, 251]
    assert len(made.classes) == 710


def kinetics_csv(*rows: tuple[str, str, int, str]) -> str:
    lines = [f"{label},{video},{start},{start + 10},{split}" for label, video, start, split in rows]
    return "\n".join(["label,youtube_id,time_start,time_end,split", *lines]) + "\n"


def three_sets(folder: Path) -> AnnotationSource:
    return written(folder, {
        "kinetics400/train.csv": kinetics_csv(
            ("Tai Chi", "aaa", 1, "train"), ("yoga", "bbb", 2, "train"), ("yoga", "eee", 5, "train")
        ),
        "kinetics400/val.csv": kinetics_csv(("yoga", "ccc", 3, "val")),
        "kinetics600/train.csv": kinetics_csv(("tai chi", "aaa", 1, "train"), ("zumba", "ccc", 9, "train")),
        "kinetics600/test.csv": kinetics_csv(("zumba", "bbb", 2, "test")),
        "kinetics700/train.csv": kinetics_csv(("tai chi", "ddd", 1, "train"), ("zumba", "fff", 9, "train")),
        "kinetics700/val.csv": kinetics_csv(("zumba", "ggg", 1, "validate"), ("tai chi", "hhh", 1, "validate")),
    })  # fmt: skip


def test_kinetics710_merge_drops_what_any_test_has(tmp_path: Path) -> None:
    made = kinetics.read_710(three_sets(tmp_path))
    assert made.classes == ("tai chi", "yoga", "zumba")  # one class whatever its capitals
    assert [(row.id, row.label) for row in made.splits["train"]] == [
        ("k700/ddd_000001_000011", 0), ("k700/fff_000009_000019", 2), ("k600/aaa_000001_000011", 0),
        ("k400/eee_000005_000015", 1),
    ]  # fmt: skip
    assert [row.id for row in made.splits["val"]] == [
        "k700/ggg_000001_000011", "k700/hhh_000001_000011", "k400/ccc_000003_000013",
    ]  # fmt: skip
    assert made.lists["dropped"] == [
        ("kinetics600", "train", "ccc_000009_000019", "in the val set of kinetics400"),
        ("kinetics400", "train", "aaa_000001_000011", "in the train set of kinetics600"),
        ("kinetics400", "train", "bbb_000002_000012", "in the test set of kinetics600"),
    ]
    assert made.notes[1:] == [
        "1 training clips dropped because a val set has their video",
        "1 training clips dropped because a test set has their video",
        "1 training clips dropped that a larger set has",
    ]


def test_kinetics710_follows_the_published_class_maps(tmp_path: Path) -> None:
    three_sets(tmp_path)
    maps = {400: '{"0": 618, "1": 117}', 600: '{"0": 618, "1": 3}', 700: '{"0": 618, "1": 3}'}
    files = {f"label_map_k{count}_to_710.json": text for count, text in maps.items()}
    made = kinetics.read_710(written(tmp_path, files))
    assert (len(made.classes), made.classes[618], made.classes[117], made.classes[3]) == (
        710,
        "tai chi",
        "yoga",
        "zumba",
    )
    assert [row.label for row in made.splits["train"]] == [618, 3, 618, 117]
    written(tmp_path, {"label_map_k700_to_710.json": '{"0": 618}'})
    with pytest.raises(ManifestError, match=r"nothing for class 1 \(zumba\)"):
        kinetics.read_710(AnnotationSource(tmp_path))


def test_something_something() -> None:
    first = given(something.read_v1, "something_v1")
    assert first.classes[0] == "Holding something"
    assert [(row.id, row.label) for row in first.splits["val"]] == [
        ("59729", 0), ("26694", 0), ("46753", 3), ("20281", 0), ("47619", 1),
    ]  # fmt: skip
    frames = given(something.read_v1, "something_v1", "frame_list.txt")
    assert next((row.id, row.label, row.attributes["frames"]) for row in frames.splits["val"]) == ("18322", 106, "62")
    second = given(something.read_v2, "something_v2")
    assert [row.label for row in second.splits["val"]] == [0, 1, 2, 3]
    assert second.splits["val"][2].captions == ("covering a mug with a cloth",)
    assert [row.label for row in second.splits["test"]] == [None, None, None]


def test_segments_of_the_common_form() -> None:
    made = given(activitynet.read_activitynet, "activitynet_v1_3")
    (row,) = made.splits["train"]
    assert (row.id, row.label, row.attributes["duration"]) == ("OntjiYjeYfZ", 0, "209.39")
    assert [(part.start, part.end, part.label) for part in row.segments] == [(1.75, 27.13, 0)]
    assert made.splits["test"][0].segments == ()
    hacs = given(activitynet.read_hacs_segments, "hacs")
    assert hacs.notes == ["1 segments end more than 1 s after their video (kept)"]
    thumos = given(activitynet.read_thumos14, "thumos14", "thumos14.json")
    assert [[part.label for part in row.segments] for row in thumos.splits["test"]] == [[5, 6], [4, 7]]
    raw = given(activitynet.read_thumos14, "thumos14", "raw_class_file_Billiards_val.txt")
    assert [(row.id, row.segments[0].start, row.label) for row in raw.splits["val"]] == [
        ("video_validation_0000051", 11.1, 2), ("video_validation_0000053", 3.3, 2),
    ]  # fmt: skip
    fine = given(activitynet.read_fineaction, "fineaction")
    assert fine.classes == ("spray", "wipe")
    assert fine.splits["train"][0].path == "v_00000001.mp4"
    assert fine.splits["train"][0].label == 1  # 3.88 s of wiping against 2.34 s of spraying


def test_class_order_follows_consistent_label_ids(tmp_path: Path) -> None:
    one = '"%s": {"subset": "training", "annotations": [{"label": "%s", "label_id": %d, "segment": [0, 1]}]}'
    text = '{{"database": {{{}, {}}}}}'.format(one % ("a", "zebra", 0), one % ("b", "ape", 1))
    assert activitynet.read_fineaction(written(tmp_path, {"gt.json": text})).classes == ("zebra", "ape")


def test_hacs_clips_keep_negatives_apart() -> None:
    made = given(activitynet.read_hacs_clips, "hacs")
    assert {split: [row.label for row in rows] for split, rows in made.splits.items()} == {
        "train": [0], "train_negative": [None], "val": [1], "test": [None],
    }  # fmt: skip
    assert made.splits["train"][0].span == (8.5, 113.0)


def test_sets_of_short_clips() -> None:
    hmdb = given(clip_sets.read_hmdb51, "hmdb51")
    assert {split: len(rows) for split, rows in hmdb.splits.items()} == {"train1": 3, "test1": 1}
    ucf = given(clip_sets.read_ucf101, "ucf101")
    assert [(row.path, row.label) for row in ucf.splits["train1"]][1] == ("Archery/v_Archery_g09_c02.avi", 2)
    assert ucf.splits["train1"][1].group == "Archery/v_Archery_g09"
    moments = given(clip_sets.read_moments, "mit_v2")
    assert moments.classes == ("adult+female+singing", "aiming", "applauding")
    listed = given(clip_sets.read_moments, "mit_v2", "mit_val_list_videos.txt")
    assert [row.label for row in listed.splits["val"]] == [0, 1, 2]


def test_open_set_rows_of_unknown_classes_have_no_label() -> None:
    made = given(clip_sets.read_open_hmdb)
    assert {split: len(rows) for split, rows in made.splits.items()} == {"train": 2, "test": 1, "unknown": 1}
    (row,) = made.splits["unknown"]
    assert (row.label, row.attributes["class"]) == (None, "cartwheel")
    assert len(given(clip_sets.read_open_moments).splits["unknown"]) == 3


def test_ava() -> None:
    made = given(ava.read_ava, "ava_v2_2")
    (row,) = made.splits["val"]  # 0903 is on the list of exclusions
    assert row.id == "RNy7P4Bw8el_0902"
    assert [(box.labels, box.actor, box.time) for box in row.boxes] == [((11, 16, 78), 0, 902.0), ((79,), 1, 902.0)]
    assert (len(made.classes), made.classes[11]) == (80, "stand")
    assert len(made.vocabularies["scored_classes"]) == 6
    kinetic = given(ava.read_ava_kinetics, "ava_kinetics")
    assert [row.attributes["timestamp"] for row in kinetic.splits["val"]] == ["121.281427", "100.091743"]
    assert "1 clips without persons in kinetics_val_v1.0.csv left out" in kinetic.notes


def test_rows_of_ava_that_say_nothing_are_counted(tmp_path: Path) -> None:
    box = "v,0902,0.1,0.1,0.2,0.5"
    text = f"{box},1,0\n{box},1,0\nv,0902,0.1,0.1,0.1,0.5,1,0\n"
    made = ava.read_ava(written(tmp_path, {"ava_val_v2.2.csv": text}))
    assert [box.labels for row in made.splits["val"] for box in row.boxes] == [(0,)]
    assert [note.split()[0] for note in made.notes[-2:]] == ["1", "1"]


def test_ava_of_the_released_json() -> None:
    made = given(ava.read_ava, "ava_v2_2", "ava_val_v2.2_min.json")
    (box,) = made.splits["val"][0].boxes
    assert (box.x1, box.y1, box.x2, box.y2) == pytest.approx((20 / 640, 40.5 / 360, 200.2 / 640, 340.5 / 360))
    assert box.labels == (11, 16, 78)
    made = given(ava.read_ava_kinetics, "ava_kinetics", "kinetics_val_v1.0.json")
    (box,) = made.splits["val"][0].boxes
    assert (box.x1, box.y1, box.x2, box.y2) == pytest.approx((0.1, 0.2, 0.4, 0.8))


def test_person_boxes() -> None:
    found = ava.read_person_boxes(FILES / "ava_v2_2" / "person_boxes.csv")
    assert [len(boxes) for boxes in found.values()] == [2, 1]
    assert found["RNy7P4Bw8el", 902.0][0] == (0.226, 0.183, 0.505, 0.996, 0.987654)
    path = FILES / "ava_v2_2" / "ava_val_det_person_bbox.json"
    (box,) = ava.read_person_boxes(path, {"RNy7P4Bw8el": (640, 360)})["RNy7P4Bw8el", 902.0]
    assert box == pytest.approx((21 / 640, 41 / 360, 199 / 640, 339 / 360, 0.981))
    with pytest.raises(ManifestError, match="size is known"):
        ava.read_person_boxes(path, {})


def test_lines_of_json() -> None:
    text = '{"a": [\n 1,\n {"b":\n "x,}\\"]"}], "c": 2\n}'
    assert line_of(text, ("a", 1, "b")) == 4
    assert line_of(text, ("a", 1, "missing")) == 3
    assert line_of(text, ("c",)) == 4
    assert list_lines('\n[\n{"a": 1},\n\n2, 3]') == [3, 5, 5]


COPIES: dict[str, tuple[str, Read]] = {
    "kinetics400/kinetics-400_val.csv": ("kinetics-400_val.csv", kinetics.read_400),
    "kinetics400/val_comma_list.csv": ("val_comma_list.csv", kinetics.read_400),
    "something_v1/something-something-v1-validation.csv": ("x-validation.csv", something.read_v1),
    "activitynet_v1_3/activity_net.v1-3.min.json": ("activity_net.json", activitynet.read_activitynet),
    "hacs/HACS_clips_v1.1.csv": ("HACS_clips.csv", activitynet.read_hacs_clips),
    "thumos14/raw_class_file_Billiards_val.txt": ("Billiards_val.txt", activitynet.read_thumos14),
    "hmdb51/cartwheel_test_split1.txt": ("cartwheel_test_split1.txt", clip_sets.read_hmdb51),
    "mit_v2/validationSet.csv": ("validationSet.csv", clip_sets.read_moments),
    "ava_v2_2/ava_val_v2.2.csv": ("ava_val_v2.2.csv", ava.read_ava),
}


@pytest.mark.parametrize("file", COPIES)
@pytest.mark.parametrize("change", ["byte order mark", "line ends"])
def test_byte_order_mark_and_line_ends_change_nothing(tmp_path: Path, file: str, change: str) -> None:
    name, read = COPIES[file]
    text = (FILES / file).read_bytes()
    shutil.copy(FILES / file, tmp_path / name)
    expected = read(AnnotationSource(tmp_path))
    changed = b"\xef\xbb\xbf" + text if change == "byte order mark" else text.replace(b"\n", b"\r\n")
    (tmp_path / name).write_bytes(changed)
    found = read(AnnotationSource(tmp_path))
    assert (found.classes, found.splits) == (expected.classes, expected.splits)


@pytest.mark.parametrize("file", COPIES)
@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xff\xfeab\x00c", b"a\x00b"])
def test_an_empty_file_and_one_that_is_no_text(tmp_path: Path, file: str, content: bytes) -> None:
    name, read = COPIES[file]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ManifestError, match=r"an empty file|not a UTF-8 text") as caught:
        read(AnnotationSource(tmp_path))
    assert str(tmp_path / name) in str(caught.value)


def test_no_annotation_file(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("x")
    for name, entry in BENCHMARKS.items():
        with pytest.raises(ManifestError, match=str(tmp_path)):
            entry.read(AnnotationSource(tmp_path))
        with pytest.raises(ManifestError, match=str(tmp_path)):
            entry.read(AnnotationSource(tmp_path / "absent" / name))
