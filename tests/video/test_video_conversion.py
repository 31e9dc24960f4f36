"""Marks of a picture that change its pixels: woven fields, high dynamic range, matrix and range."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from odd_video import Frames, decode_all, encode

from internvideo.data.preprocessing import Preprocessing
from internvideo.errors import VideoError
from internvideo.features.extract import ExtractSettings, extract
from internvideo.features.feature_folder import INDEX, find_items
from internvideo.features.window_sampling import WindowRule
from internvideo.inference.video_model import VideoModel
from internvideo.model_table import create_model
from internvideo.video import torchcodec_backend as video_torchcodec
from internvideo.video.conversion import Conversion, Converter, conversion_metadata
from internvideo.video.live import LiveVideo
from internvideo.video.pool import borrow
from internvideo.video.reader import Video, read_video_info
from internvideo.video.sequential import iter_frames
from internvideo.video.tone_map import PEAK, WHITE, pq_light, pq_signal, tone_mapped

X264 = {"qp": "0"}
FLAGS = {"flags": "+ildct+ilme"}
FINE = {"qmin": "2", "qmax": "2"}
# name, first field is the bottom one, encoder, pixel format, options
WOVEN: list[tuple[str, bool, str, str, dict[str, str]]] = [
    ("top.mp4", False, "libx264", "yuv444p", X264 | FLAGS),
    ("bottom.mkv", True, "libx264", "yuv444p", X264 | FLAGS | {"bf": "2"}),
    ("broadcast.ts", False, "libx264", "yuv420p10le", X264 | FLAGS),
    ("disc.mpg", False, "mpeg2video", "yuv420p", FLAGS | FINE),
    ("disc.mxf", True, "mpeg2video", "yuv420p", FLAGS | FINE),
    ("program.avi", True, "mpeg4", "yuv420p", FLAGS | FINE),
    ("camera.mov", False, "prores_ks", "yuv422p10le", {"flags": "+ildct"}),
]


def encode_fields(
    path: Path, fields: Frames, bottom_first: bool, codec: str, pixel_format: str, options: dict[str, str]
) -> Path:
    """Write of each two pictures the lines of one and of the other in turn, marked with the order of these fields."""
    frames = fields[::2].copy()
    second = slice(0 if bottom_first else 1, None, 2)
    frames[:, second] = fields[1::2, second]
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=25, options={"threads": "1", **options})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pixel_format
        stream.codec_context.gop_size = 4
        for number, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(format=pixel_format)
            picture.pts, picture.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(marked(picture, "bff" if bottom_first else "tff")))
        container.mux(stream.encode(None))
    return path


def marked(picture: av.VideoFrame, order: str) -> Any:
    """The picture with the mark of two woven fields in this order."""
    graph = av.filter.Graph()
    source = graph.add_buffer(
        width=picture.width, height=picture.height, format=picture.format, time_base=picture.time_base
    )
    graph.link_nodes(source, graph.add("setfield", order), graph.add("buffersink")).configure()
    graph.vpush(picture)
    return graph.vpull()


def waves(count: int, height: int = 64, width: int = 96) -> Frames:
    """(count, H, W, 3) smooth pictures that move sideways by 7 pixels each."""
    y, x = np.mgrid[:height, :width]
    return np.stack(
        [
            np.stack([128 + 90 * np.sin((x - 7 * i) / 9 + shift) * np.cos(y / 11) for shift in (0, 0.2, 0.4)], -1)
            for i in range(count)
        ]
    ).astype(np.uint8)


@pytest.mark.parametrize(("name", "bottom_first", "codec", "form", "options"), WOVEN, ids=[name for name, *_ in WOVEN])
def test_fields_are_undone(
    name: str, bottom_first: bool, codec: str, form: str, options: dict[str, str], tmp_path: Path
) -> None:
    """Every picture is that of its first field, come by as it may; times and numbers are plain decoding's."""
    fields = waves(40)
    path = encode_fields(tmp_path / name, fields, bottom_first, codec, form, options)
    plain, times = decode_all(path)
    with Video(path) as video, Video(path, deinterlace=False) as as_stored:
        info = video.info
        assert info.interlaced
        assert info.frames == len(plain) == 20
        np.testing.assert_allclose(info.times + info.start, times, atol=1e-6)
        whole = video.frames(range(20))
        for index in (7, 0, 19, 13):
            np.testing.assert_array_equal(video.frames([index])[0], whole[index])
        np.testing.assert_array_equal(list(iter_frames(video, range(1, 20, 3))), whole[1::3])
        np.testing.assert_array_equal(as_stored.frames(range(20)), plain)
    with LiveVideo(path) as live:
        np.testing.assert_array_equal([live.rgb(frame.frame) for frame in live], whole)
    wrong = np.abs(whole.astype(int) - fields[::2])[:, 2:-2].mean()
    before = np.abs(plain.astype(int) - fields[::2])[:, 2:-2].mean()
    assert before > 8
    assert wrong < 0.25 * before


def test_one_picture_gets_one_field(tmp_path: Path) -> None:
    """Nothing of the other field is left, in light and in color."""
    fields = np.full((8, 64, 64, 3), 40, np.uint8)
    fields[1::2] = (250, 30, 60)
    path = encode_fields(tmp_path / "a.mp4", fields, False, *WOVEN[0][2:])
    with Video(path) as video:
        assert np.abs(video.frames([2])[0].astype(int) - 40).max() <= 2
    with Video(path, short_side=32) as video:
        assert np.abs(video.frames([2])[0].astype(int) - 40).max() <= 2


def test_marks_count_picture_by_picture(tmp_path: Path) -> None:
    """In a broadcast that changes over, the pictures without fields stay as they are to the bit."""
    fields = waves(24)
    first = encode(tmp_path / "1.ts", fields[:12], options=X264, gop=4, fps=25)
    second = encode_fields(tmp_path / "2.ts", fields, False, "libx264", "yuv420p", X264 | FLAGS)
    path = tmp_path / "both.ts"
    path.write_bytes(first.read_bytes() + second.read_bytes())
    with Video(path) as video, Video(path, deinterlace=False) as as_stored:
        assert video.info.interlaced
        got, plain = video.frames(range(video.info.frames)), as_stored.frames(range(video.info.frames))
    changed = (got != plain).any((1, 2, 3))
    assert len(changed) == 24
    assert changed.tolist() == [False] * 12 + [True] * 12


def test_hevc_fields_are_pictures(tmp_path: Path) -> None:
    """There a mark stands for a single field: nothing is woven, and nothing may be lost."""
    path = encode(tmp_path / "a.mp4", waves(8), codec="libx265", options={"x265-params": "interlace=tff"})
    with av.open(str(path)) as container:
        assert all(picture.interlaced_frame for picture in container.decode(video=0))
    with Video(path) as video:
        assert not video.info.interlaced
        np.testing.assert_array_equal(video.frames(range(video.info.frames)), decode_all(path)[0])


def test_the_other_decoder_gets_no_fields(tmp_path: Path) -> None:
    for name, params, served in (("a.mp4", "tff=1", False), ("b.mp4", "bframes=0", True)):
        path = encode(tmp_path / name, waves(4), options={"x264-params": params})
        with Video(path, backend="pyav") as video:
            ask = video_torchcodec.is_supported
            assert ask("torchcodec", video._index, video._stream, Conversion()) == served
            assert ask("torchcodec", video._index, video._stream, Conversion(deinterlace=False))


def test_the_environment_chooses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = encode_fields(tmp_path / "a.mp4", waves(8), False, *WOVEN[0][2:])
    assert conversion_metadata() == {}
    with borrow(path) as video:
        filled = video.frames([1])
    monkeypatch.setenv("INTERNVIDEO_DEINTERLACE", "0")
    assert conversion_metadata() == {"deinterlace": False}
    with borrow(path) as video:
        np.testing.assert_array_equal(video.frames([1]), decode_all(path)[0][[1]])
        assert (video.frames([1]) != filled).any()
    monkeypatch.setenv("INTERNVIDEO_TONE_MAP", "yes")
    with pytest.raises(VideoError, match=r"INTERNVIDEO_TONE_MAP.*'yes'.*0, 1"):
        read_video_info(path)


# ------------------------------------------------------------------------------------------------ high dynamic range


def standard(light: float) -> float:
    """The 8-bit code of a gray of so many cd/m2 after tone mapping, worked out number by number."""

    def signal(value: float) -> float:
        power = (value / 10000) ** 0.1593017578125
        return float(((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375)

    def back(value: float) -> float:
        root = value ** (1 / 78.84375)
        return float(10000 * (max(root - 0.8359375, 0) / (18.8515625 - 18.6875 * root)) ** (1 / 0.1593017578125))

    highest = signal(1000)
    e, top = min(signal(light) / highest, 1), signal(100) / highest
    knee = 1.5 * top - 0.5
    if e >= knee:
        t = (e - knee) / (1 - knee)
        e = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (-2 * t**3 + 3 * t**2) * top
    return float(255 * min(back(e * highest) / 100, 1) ** (1 / 2.4))


def hlg_light(signal: float) -> float:
    """cd/m2 of a gray HLG signal on a display of 1000 cd/m2."""
    scene = signal**2 / 3 if signal <= 0.5 else (math.exp((signal - 0.55991073) / 0.17883277) + 0.28466892) / 12
    return float(1000 * scene**1.2)


def test_published_points() -> None:
    """BT.2408's reference white is 58 % of PQ, 75 % of HLG and 203 cd/m2; PQ's 100 cd/m2 are at 50.8 %."""
    assert float(pq_light(np.array(0.58))) == pytest.approx(203, rel=0.01)
    assert hlg_light(0.75) == pytest.approx(203, rel=0.01)
    assert float(pq_signal(np.array(100.0))) == pytest.approx(0.508, abs=5e-4)
    assert (WHITE, PEAK) == (100, 1000)


@pytest.mark.parametrize(
    ("kind", "number", "make"),
    [
        ("pq", "smpte2084", {"codec": "libx265", "name": "a.mp4"}),
        ("hlg", "arib-std-b67", {"codec": "libx265", "name": "a.mkv"}),
        ("pq", "smpte2084", {"codec": "libx264", "name": "b.mp4"}),
    ],
)
def test_gray_patches(kind: str, number: str, make: dict[str, str], tmp_path: Path) -> None:
    """Codes of the limited 10-bit range -> cd/m2 -> the curve -> 8 bits; off by default, to the bit."""
    levels = [64, 200, 350, 450, 520, 600, 688, 721, 800, 940]
    path = tmp_path / make["name"]
    params = f"colorprim=bt2020:transfer={number}:colormatrix=bt2020nc"
    options = {"x265-params": params + ":lossless=1:log-level=none"}
    if make["codec"] == "libx264":
        options = {"x264-params": params, "qp": "0"}
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(make["codec"], rate=10, options=options)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p10le"
        for level in levels:
            picture = av.VideoFrame(64, 64, "yuv420p10le")
            for plane, value in zip(picture.planes, (level, 512, 512), strict=True):
                np.frombuffer(memoryview(plane), np.uint16)[:] = value
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    with Video(path, tone_map=True) as video:
        assert video.info.hdr == kind
        frames = video.frames(range(len(levels))).astype(int)
    for frame, level in zip(frames, levels, strict=True):
        signal = (level - 64) / 876
        light = float(pq_light(np.array(signal))) if kind == "pq" else hlg_light(signal)
        assert np.abs(frame - standard(light)).max() <= 1.5, level
    plain = Video(path).frames(range(len(levels)))
    np.testing.assert_array_equal(plain, decode_all(path)[0])
    with Video(path, tone_map=True) as video:
        assert not video_torchcodec.is_supported("torchcodec", video._index, video._stream, Conversion(tone_map=True))


def test_colors_are_brought_over() -> None:
    """BT.709's red in BT.2020 at a level that the curve leaves alone is BT.709's red again."""
    red = np.array([0.6274, 0.0691, 0.0164])  # BT.2087, M1
    codes = np.rint(65535 * pq_signal(25 * red)).astype(np.uint16).reshape(1, 1, 3)
    got = tone_mapped(codes, "pq")[0, 0].astype(int)
    assert np.abs(got - [255 * 0.25 ** (1 / 2.4), 0, 0]).max() <= 3
    untouched = tone_mapped(codes, "pq", wide=False)[0, 0]
    assert np.abs(untouched - 255 * (0.25 * red) ** (1 / 2.4)).max() <= 1


def test_standard_range_is_left_alone(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", waves(3))
    with Video(path, tone_map=True) as video:
        assert video.info.hdr == ""
        np.testing.assert_array_equal(video.frames(range(3)), decode_all(path)[0])


def test_features_tell_the_marks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pq = "colorprim=bt2020:transfer=smpte2084:colormatrix=bt2020nc"
    (tmp_path / "v").mkdir()
    encode_fields(tmp_path / "v" / "fields.mp4", waves(16), False, "libx264", "yuv420p", X264 | FLAGS)
    encode(tmp_path / "v" / "high.mp4", waves(8), pixel_format="yuv420p10le", options={"x264-params": pq})
    encode(tmp_path / "v" / "plain.mp4", waves(8))
    torch.manual_seed(0)
    sizes = {"image_size": 16, "patch_size": 8, "frames": 4, "width": 8, "depth": 1, "heads": 2, "num_classes": 3}
    module = create_model("videomae-s-classifier", sizes)
    model = VideoModel("videomae-s-classifier", module, preprocessing=Preprocessing(4, 16))
    items, _ = find_items([tmp_path / "v"], recursive=False)
    found = []
    for name in ("as it is", "mapped"):
        extract(items, model, tmp_path / name, ExtractSettings(WindowRule(4, 4)), progress=False)
        index = json.loads((tmp_path / name / INDEX).read_text())
        told = {Path(entry["path"]).stem: entry.get("marks") for entry in index["database"].values()}
        assert told == {"fields": ["interlaced"], "high": ["pq"], "plain": None}
        assert index["protocol"].get("tone_map") == (True if name == "mapped" else None)
        found.append({path.stem: np.load(path) for path in (tmp_path / name).glob("*.npy")})
        monkeypatch.setenv("INTERNVIDEO_TONE_MAP", "1")
    assert [stem for stem in found[0] if (found[0][stem] != found[1][stem]).any()] == ["high"]


# ---------------------------------------------------------------------------------------------------- matrix and range

MATRICES = {
    "bt709": (0.2126, 0.0722),
    "smpte170m": (0.299, 0.114),
    "bt470bg": (0.299, 0.114),
    "bt2020nc": (0.2627, 0.0593),
    "smpte240m": (0.212, 0.087),
    "fcc": (0.30, 0.11),
    "undef": (0.299, 0.114),
}
POINTS = [
    (16, 128, 128),
    (235, 128, 128),
    (126, 128, 128),
    (81, 90, 240),
    (145, 54, 34),
    (41, 240, 110),
    (120, 100, 150),
]


@pytest.mark.parametrize("depth", [8, 10])
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("matrix", MATRICES)
def test_matrix_and_range(matrix: str, full: bool, depth: int, tmp_path: Path) -> None:
    """What the stream declares is what is computed, to three levels (FFmpeg's quick arithmetic)."""
    red, blue = MATRICES[matrix]
    form, unit = ("yuv420p", 1) if depth == 8 else ("yuv420p10le", 4)
    path = tmp_path / "a.mp4"
    params = f"colormatrix={matrix}:fullrange={'on' if full else 'off'}"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=10, options={"x264-params": params, "qp": "0"})
        stream.width, stream.height, stream.pix_fmt = 64, 64, form
        for point in POINTS:
            picture = av.VideoFrame(64, 64, form)
            for plane, value in zip(picture.planes, point, strict=True):
                np.frombuffer(memoryview(plane), np.uint8 if depth == 8 else np.uint16)[:] = value * unit
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    y, u, v = np.array(POINTS, np.float64).T * unit
    top = 256 * unit - 1
    y, u, v = (
        (y / top, (u - 128 * unit) / top, (v - 128 * unit) / top)
        if full
        else ((y - 16 * unit) / (219 * unit), (u - 128 * unit) / (224 * unit), (v - 128 * unit) / (224 * unit))
    )
    r, b = y + 2 * (1 - red) * v, y + 2 * (1 - blue) * u
    expected = 255 * np.clip(np.stack([r, (y - red * r - blue * b) / (1 - red - blue), b], -1), 0, 1)
    with Video(path) as video:
        frames = video.frames(range(len(POINTS)))
    assert np.abs(frames[:, 32, 32] - expected).max() < 3.2


@pytest.mark.parametrize("number", [8, 10, 14])
def test_other_matrices_are_refused(number: int) -> None:
    """YCgCo, BT.2020 with constant luminance, ICtCp: named, never taken for another one."""
    picture = av.VideoFrame(64, 64, "yuv420p")
    picture.colorspace = number
    with pytest.raises(ValueError, match=f"matrix {number} of ITU-T H.273, yuv420p"):
        Converter().write(picture, np.empty((64, 64, 3), np.uint8))
