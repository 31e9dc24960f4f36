"""The doctor: every check has its line, what is missing is told with its remedy, nothing needs a network."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import in_process
import psutil
import pytest
import torch

from internvideo.apps import doctor
from internvideo.apps.doctor import Check, examine
from internvideo.errors import VideoError
from internvideo.extras import missing


def test_everything_is_looked_at(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "hub" / "model").mkdir(parents=True)
    (tmp_path / "hub" / "model" / "weights").write_bytes(bytes(2**20))
    checks = {check.name: check for check in examine(0.0)}
    expected = {"internvideo", "device", "memory", "threads", "decoder", "Hugging Face cache"}
    assert checks.keys() >= expected | set(doctor.EXTRAS) | set(doctor.READERS)
    assert torch.__version__ in checks["internvideo"].found
    assert "H.264" in checks["decoder"].found
    assert str(tmp_path / "hub") in checks["Hugging Face cache"].found
    assert not any(check.state == "broken" for check in checks.values())
    for check in checks.values():
        assert "\n" not in check.line()
        assert check.state in ("ok", "advice", "absent")
        assert check.advice or check.state == "ok", check.name
    for name in doctor.EXTRAS:
        assert (checks[name].state == "absent") == bool(missing(name)), checks[name].found
        assert "?" not in checks[name].found


@pytest.mark.parametrize("error", [ModuleNotFoundError("x"), RuntimeError("libavutil.so: not found\nmore"), OSError()])
def test_an_extra_that_is_absent_or_does_not_load(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(name: str) -> Any:
        raise error

    monkeypatch.setattr(importlib, "import_module", fail)
    check = doctor._check_extra("parquet")
    assert check.state == ("absent" if isinstance(error, ModuleNotFoundError) else "advice")
    assert "pip install 'internvideo[parquet]'" in check.advice
    assert "pyarrow" in check.found
    assert "more" not in check.found


@pytest.mark.parametrize(
    ("cores", "threads", "policy", "told"),
    [
        (2, 8, "PASSIVE", "OMP_NUM_THREADS=2"),
        (8, 2, "PASSIVE", "OMP_NUM_THREADS=8 uses all cores"),
        (4, 4, "", "OMP_WAIT_POLICY=PASSIVE"),
        (4, 4, "passive", ""),
    ],
)
def test_threads(monkeypatch: pytest.MonkeyPatch, cores: int, threads: int, policy: str, told: str) -> None:
    monkeypatch.setattr(doctor, "cores", lambda: cores)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setenv("OMP_WAIT_POLICY", policy)
    check = doctor._check_threads()
    assert told in check.advice
    assert (check.state == "ok") == (not told)


def test_a_graphics_card_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    card = SimpleNamespace(name="A card", total_memory=80 * 2**30)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: card)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    assert doctor._check_device() == Check(
        "device", "ok", "A card with 80 GB, A card with 80 GB", "--precision bfloat16 is faster"
    )


def test_scarce_memory_and_disks_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=8e9, available=1e9))
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda place: SimpleNamespace(free=1e8))
    assert doctor._check_memory().state == "advice"
    assert "HF_HOME" in doctor._check_cache().advice
    assert all("--workers 0" in check.advice for check in doctor._check_shared_memory())


def test_a_decoder_that_does_not_work_ends_with_code_2(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(path: Path) -> int:
        raise VideoError(path, "cannot be read")

    monkeypatch.setattr(doctor, "READERS", {"reading": (broken, "frames")})
    ended = in_process.command("doctor", "--seconds", "0", "--json")
    assert ended.code == 2
    rows = [json.loads(line) for line in ended.out.splitlines()]
    (row,) = (row for row in rows if row["name"] == "reading")
    assert row["state"] == "broken"
    assert "pip install" in row["advice"]


def test_a_missing_encoder_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> int:
        raise VideoError("clip.mp4", "no such encoder here")

    monkeypatch.setattr(doctor, "write_video", broken)
    (check,) = doctor.reading_speeds(0.0)
    assert (check.name, check.state) == ("reading", "broken")


def test_decoders_that_are_not_there_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "DECODERS", {"H.264": "h264", "Imagined": "no_such_codec"})
    check = doctor._check_decoders()
    assert check.state == "advice"
    assert "decodes H.264, not Imagined" in check.found


def test_slow_reading_is_told() -> None:
    check = doctor._measure_speed("reading", "a clip", lambda path: 1, Path(), "frames", 0.0)
    assert check.state in ("ok", "advice")
    assert "x real time" in check.found


def test_the_second_decoder_is_loaded_and_not_only_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("INTERNVIDEO_DECODER", raising=False)
    fine = Check("torchcodec", "ok", "torchcodec 0.13; a second decoder")
    monkeypatch.setattr(doctor, "_check_extra", lambda extra: fine)
    monkeypatch.setattr(doctor.video_torchcodec, "torchcodec_class", lambda: object)
    check = doctor._check_torchcodec("torchcodec")
    assert (check.state, check.found.startswith("torchcodec 0.13; it loads")) == ("ok", True)
    monkeypatch.setattr(doctor.video_torchcodec, "torchcodec_class", lambda: "Could not load libtorchcodec")
    check = doctor._check_torchcodec("torchcodec")
    assert check.state == "advice"
    assert "does not load: Could not load libtorchcodec" in check.found
    assert "FFmpeg" in check.advice
    monkeypatch.setenv("INTERNVIDEO_DECODER", "torchcodec")
    check = doctor._check_torchcodec("torchcodec")
    assert (check.state, check.advice) == ("broken", "unset INTERNVIDEO_DECODER")
    monkeypatch.setenv("INTERNVIDEO_DECODER", "ffmpeg")
    monkeypatch.setattr(doctor, "_check_extra", lambda extra: Check(extra, "absent", "torchcodec is not installed"))
    assert doctor._check_torchcodec("torchcodec").state == "broken"
    monkeypatch.delenv("INTERNVIDEO_DECODER")
    assert doctor._check_torchcodec("torchcodec").state == "absent"
