"""The report: its JSON keys, one self-contained page, escaping, pictures."""

from __future__ import annotations

import base64
import json
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from internvideo.plots import charts as figures
from internvideo.plots import report

NAMES = ["chance", "ridge", "single_frame", "masked_scratch", "masked", "multimodal", "ensemble", "interaction"]


def a_report(frames: int = 16, side: int = 32) -> report.ReportData:
    """A report of invented figures with every part in it."""
    rng = np.random.default_rng(0)

    def clip() -> Any:
        start = rng.integers(0, 200, size=3)
        ramp = np.arange(frames)[:, None, None, None] * 2 + np.arange(side)[None, :, None, None]
        return (np.clip(ramp + start, 0, 255) + np.zeros((1, 1, side, 1))).astype(np.uint8)

    original = clip()
    hidden = original.copy()
    hidden[:, ::2] = 128
    classes = [f"class {i} moves left" for i in range(24)]
    values = [0.04, 0.12, 0.21, 0.38, 0.61, 0.58, 0.67, 0.72]
    steps = list(range(0, 300, 3))
    return report.ReportData(
        title="InternVideo on the sample world",
        introduction="Four stages on small real video files; every figure is measured on held-out clips.",
        claims=[
            report.Claim("Pretraining helps the masked encoder.", "61.0 % with it, 38.0 % without", True),
            report.Claim("Interaction is above the ensemble.", "72.0 % against 67.0 %, difference 1 to 9", False),
            report.Claim("Retrieval is far above chance.", "not measured in the short profile", None),
        ],
        ablation=[
            report.AblationRow(name, v, v * 0.9, (v * 0.9, min(1.0, v * 1.1)), (v * 0.8, min(1.0, v)))
            for name, v in zip(NAMES, values, strict=True)
        ],
        zero_shot=report.ZeroShot(0.31, 0.29, 0.005, 0.35, 0.33, (0.25, 0.37), (0.24, 0.35)),
        reverse_clip=report.ReverseClip(0.93, (0.9, 0.96)),
        seconds=612.4,
        peak_memory_mb=1834.0,
        losses={
            name: report.LossCurve(steps, (np.exp(-np.array(steps) / 90) + 0.1 * rng.random(100)).tolist())
            for name in ("masked", "multimodal", "supervised", "interaction")
        },
        reconstructions=[report.Reconstruction(hidden, clip(), original, "rows: input, reconstruction, original")],
        retrievals=[
            report.RetrievalExample(
                "a red ball moves left over the grass",
                [report.RetrievedClip(clip(), i == 1, 0.8 - 0.1 * i, "a caption") for i in range(3)],
            )
        ],
        confusion=report.Confusion(rng.integers(0, 9, size=(24, 24)) + 30 * np.eye(24, dtype=int), classes),
        gates=report.Gates(steps, {f"cma {i} attention": np.tanh(np.array(steps) / 900 * i) for i in range(1, 5)}),
        protocol={"frames": 16, "views": 1, "crops": 1, "weights_sha256": "ab" * 32, "bootstrap": {"draws": 1000}},
        coverage={"asked": 480, "read": 479, "unreadable": [{"id": "x7", "path": "x7.mp4", "reason": "no frame"}]},
        next_steps=[report.NextStep("Your own videos:", "internvideo demo --data FOLDER")],
    )


class Tags(HTMLParser):
    """Collects tags with their attributes and checks that they close."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br", "link", "hr"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def page() -> str:
    return report.render(a_report())


def test_the_json_has_the_promised_keys(tmp_path: Path) -> None:
    written = report.write_report(tmp_path / "runs" / "demo", a_report())
    assert written == tmp_path / "runs" / "demo" / "report.html"
    stored = json.loads((written.parent / "report.json").read_text("utf-8"))
    assert [row["name"] for row in stored["ablation"]] == NAMES
    for row in stored["ablation"]:
        assert 0 <= row["top1"] <= 1
        assert 0 <= row["top1_time_directed"] <= 1
        assert row["interval"][0] <= row["top1"] <= row["interval"][1]
    assert {"t2v_r1", "v2t_r1", "chance"} <= set(stored["zero_shot"])
    assert stored["reverse_clip"]["accuracy"] == 0.93
    assert stored["seconds"] == 612.4
    assert stored["peak_memory_mb"] == 1834.0
    assert [claim["held"] for claim in stored["claims"]] == [True, False, None]
    assert stored["coverage"]["read"] == 479
    assert sorted(entry.name for entry in written.parent.iterdir()) == ["report.html", "report.json"]


def test_the_page_is_well_formed_and_loads_nothing(page: str) -> None:
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    names = [tag for tag, _ in tags.seen]
    assert names.count("svg") == 4
    assert names.count("img") == 4
    assert not {"script", "link", "iframe", "object"} & set(names)
    for tag, attributes in tags.seen:
        for key, value in attributes.items():
            if key == "src":
                assert str(value).startswith("data:image/png;base64,")
            if key in ("href", "xlink:href"):
                assert tag in ("use", "image")
                assert str(value).startswith(("#", "data:image/png;base64,"))
    assert "@import" not in page
    assert "url(http" not in page
    assert len(page) < 1_500_000


def test_the_page_tells_what_came_out(page: str) -> None:
    assert "Does not hold." in page
    assert "Not decided." in page
    assert "72.0 %" in page
    assert "0:10:12" in page
    assert "Videos read: 479 of 480" in page
    assert "Unreadable: x7 (x7.mp4): no frame" in page
    assert "internvideo demo --data FOLDER" in page


def test_text_from_files_cannot_become_markup() -> None:
    data = a_report()
    evil = "<script>alert(1)</script> $\\frac$ 中文"
    assert data.confusion is not None
    assert data.gates is not None
    data = replace(
        data,
        title=evil,
        claims=[report.Claim(evil, evil, True)],
        retrievals=[
            report.RetrievalExample(evil, [report.RetrievedClip(data.reconstructions[0].original, True, 0.1, evil)])
        ],
        confusion=report.Confusion(data.confusion.matrix, [evil] * 24),
        gates=report.Gates(data.gates.steps, {evil: data.gates.values["cma 1 attention"]}),
        losses={evil: data.losses["masked"]},
        protocol={evil: {"key": [evil]}},
    )
    page = report.render(data)
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "中文" in page


def test_charts_are_drawable_deterministic_and_follow_the_page(page: str) -> None:
    charts = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    for chart in charts:
        root = ET.fromstring(chart)
        assert "viewBox" in root.attrib
        assert "width" not in root.attrib
        assert "currentColor" in chart
        assert "#010203" not in chart
    assert page == report.render(a_report())


def test_a_run_with_little_in_it_still_gives_a_page(tmp_path: Path) -> None:
    bare = report.ReportData("bare", [report.AblationRow(name, None) for name in NAMES], 1.0, 2.0)
    page = report.write_report(tmp_path, bare).read_text("utf-8")
    assert "not measured" in page
    assert "time-directed" not in page
    stored = json.loads((tmp_path / "report.json").read_text("utf-8"))
    assert stored["ablation"][0]["top1"] is None
    assert stored["zero_shot"] is None


def test_wrong_rows_and_impossible_figures_are_refused() -> None:
    data = a_report()
    with pytest.raises(ValueError, match="it needs chance, ridge, single_frame"):
        replace(data, ablation=data.ablation[1:])
    with pytest.raises(ValueError, match="interaction top1 is 72"):
        replace(data, ablation=[*data.ablation[:-1], report.AblationRow("interaction", 72.0)])
    with pytest.raises(ValueError, match="reverse_clip is nan"):
        replace(data, reverse_clip=report.ReverseClip(float("nan")))


def test_frames_keep_their_pixels() -> None:
    rng = np.random.default_rng(1)
    clips = [rng.integers(0, 256, size=(12, 6, 5, 3), dtype=np.uint8) for _ in range(3)]
    uri = figures.reconstruction_strip(*clips, max_frames=4)
    picture = imread(_decoded(uri))
    assert picture.shape[:2] == (3 * 8 - 2, 4 * 7 - 2)
    back = np.round(picture[..., :3] * 255).astype(np.uint8)
    np.testing.assert_array_equal(back[8:14, 0:5], clips[1][0])
    np.testing.assert_array_equal(back[16:22, 21:26], clips[2][11])
    with pytest.raises(ValueError, match="one shape"):
        figures.strip([clips[0], clips[1][:3]])
    with pytest.raises(ValueError, match="uint8"):
        figures.png(np.zeros((3, 3, 3)))  # type: ignore[arg-type]  # the wrong type is the test


def _decoded(uri: str) -> Any:
    import io

    return io.BytesIO(base64.b64decode(uri.split(",", 1)[1]))


def test_numpy_values_in_the_protocol_become_plain(tmp_path: Path) -> None:
    rows = [report.AblationRow(name, None) for name in NAMES]
    data = report.ReportData(
        "bare", rows, 1.0, 2.0, protocol={"frames": np.int64(8), "path": Path("a/b"), "size": np.array([1, 2])}
    )
    report.write_report(tmp_path, data)
    assert json.loads((tmp_path / "report.json").read_text("utf-8"))["protocol"] == {
        "frames": 8,
        "path": "a/b",
        "size": [1, 2],
    }


def test_a_caption_without_words_is_not_taken_for_the_sentence_below_it() -> None:
    data = a_report()
    clip = data.retrievals[0].found[0].frames
    page = report.render(replace(data, written=[report.GeneratedCaption(clip, [], "a red ball")]))
    assert "(wrote no word)</b><br>a red ball" in page


def test_nothing_empty_is_drawn(page: str) -> None:
    data = a_report()
    assert data.confusion is not None
    assert data.gates is not None
    empty = replace(
        data,
        losses={"masked": report.LossCurve([], [])},
        confusion=report.Confusion(np.zeros_like(data.confusion.matrix), data.confusion.classes),
        gates=report.Gates([20], {name: [0.1] for name in data.gates.values}),  # one point draws no line
    )
    without = report.render(empty)
    for title in ("Loss of each stage", "Which classes are confused", "Gates of the interaction"):
        assert title in page
        assert title not in without
