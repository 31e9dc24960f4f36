"""Check the installation, the hardware and the decoding speed, with one line of advice for each."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import av
import numpy as np
import torch
from huggingface_hub.constants import HF_HUB_CACHE
from numpy.typing import NDArray

from internvideo import __version__
from internvideo.errors import InternVideoError
from internvideo.extras import EXTRAS, missing, pip_install
from internvideo.system import cores
from internvideo.video import torchcodec_backend as video_torchcodec
from internvideo.video.reader import Video
from internvideo.video.sequential import iter_frames
from internvideo.video.writer import write_video

State = Literal["ok", "advice", "absent", "broken"]

DECODERS = {"H.264": "h264", "HEVC": "hevc", "AV1": "libdav1d", "VP9": "vp9", "MPEG-4": "mpeg4"}
WIDTH, HEIGHT, FPS, FRAMES = 640, 360, 30, 90
GB = 2**30


@dataclass(frozen=True)
class Check:
    """The result of one check.

    Attributes:
        name: what was checked.
        state: "ok"; "advice": works but can be improved; "absent": an extra is not installed; "broken".
        found: version, size or speed. advice: what to do, "" if nothing.
    """

    name: str
    state: State
    found: str
    advice: str = ""

    def line(self) -> str:
        """Format the result as one line of text."""
        return f"{self.state:<7} {self.name}: {self.found}" + (f" -> {self.advice}" if self.advice else "")


def examine(seconds: float = 1.0) -> Iterator[Check]:
    """Run all checks.

    Args:
        seconds: duration of each measurement of decoding speed.
    """
    python = f"Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    libraries = f"NumPy {np.__version__}, torch {torch.__version__}"
    yield Check("internvideo", "ok", f"{__version__}, {python}, {libraries}")
    yield _check_device()
    yield _check_memory()
    yield _check_threads()
    yield from _check_shared_memory()
    yield _check_decoders()
    yield from reading_speeds(seconds)
    yield _check_cache()
    for extra in EXTRAS:
        yield _check_torchcodec(extra) if extra == "torchcodec" else _check_extra(extra)


def _check_device() -> Check:
    if torch.cuda.is_available():
        devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        summary = ", ".join(f"{device.name} with {device.total_memory / GB:.0f} GB" for device in devices)
        bfloat16 = torch.cuda.is_bf16_supported()
        advice = "--precision bfloat16 is faster" if bfloat16 else "--precision float16 is faster"
        return Check("device", "ok", summary, advice)
    capability = torch.backends.cpu.get_cpu_capability()
    summary = f"CPU only ({capability}), {cores()} cores for this process"
    if shutil.which("nvidia-smi"):
        return Check("device", "advice", summary, "there is an NVIDIA driver: install torch with CUDA, see pytorch.org")
    if capability == "DEFAULT":
        return Check("device", "advice", summary, "torch uses no vector instructions here; expect it to be slow")
    if getattr(torch.cpu, "_is_amx_tile_supported", bool)():
        return Check("device", "ok", f"{summary}, AMX", "loop.precision=bfloat16 and --precision bfloat16 are faster")
    return Check("device", "ok", summary)


def _check_memory() -> Check:
    if "psutil" in missing("report"):
        return Check("memory", "absent", "psutil is not installed: free memory unknown", pip_install("report"))
    import psutil

    memory = psutil.virtual_memory()
    summary = f"{memory.total / GB:.1f} GB, {memory.available / GB:.1f} GB free"
    if memory.available < 4 * GB:
        return Check("memory", "advice", summary, "large models need 4 GB or more: end other programs")
    return Check("memory", "ok", summary)


def _check_threads() -> Check:
    count, threads = cores(), torch.get_num_threads()
    policy = os.environ.get("OMP_WAIT_POLICY", "")
    summary = f"torch computes with {threads} threads on {count} cores, OMP_WAIT_POLICY {policy or 'not set'}"
    advice = ""
    if threads > count:
        advice = f"more threads than cores slow it down: export OMP_NUM_THREADS={count}"
    elif threads < count:
        advice = f"export OMP_NUM_THREADS={count} uses all cores; leave it when others need them"
    elif policy.upper() != "PASSIVE":
        advice = "in programs of your own export OMP_WAIT_POLICY=PASSIVE when the cores are shared"
    return Check("threads", "advice" if advice else "ok", summary, advice)


def _check_shared_memory() -> Iterator[Check]:
    path = Path("/dev/shm")
    if not path.is_dir():
        return
    free = shutil.disk_usage(path).free
    is_low = free < GB
    advice = "processes that decode pass clips through it: give the container --shm-size 4g or use --workers 0"
    yield Check("shared memory", "advice" if is_low else "ok", f"{free / GB:.1f} GB free", advice if is_low else "")


def _check_decoders() -> Check:
    present = [name for name, codec in DECODERS.items() if codec in av.codecs_available]
    absent = [name for name in DECODERS if name not in present]
    summary = f"PyAV {av.__version__} (FFmpeg {av.ffmpeg_version_info}) decodes {', '.join(present)}"
    if absent:
        advice = "pip install --force-reinstall av gives a build that has them"
        return Check("decoder", "advice", f"{summary}, not {', '.join(absent)}", advice)
    return Check("decoder", "ok", summary)


# ------------------------------------------------------------------------------------------------------------ speed


def sample_frames(frames: int = FRAMES) -> Iterator[NDArray[np.uint8]]:
    """Yield frames (H, W, 3) of a moving coarse texture, about as hard to decode as a movie with little motion."""
    texture = np.random.RandomState(0).randint(0, 256, (HEIGHT // 8, WIDTH // 8, 3)).astype(np.uint8)
    frame = texture.repeat(8, 0).repeat(8, 1)
    for index in range(frames):
        yield np.roll(frame, (index, 2 * index), (0, 1))


def _read_all_frames(path: Path) -> int:
    with Video(path) as video:
        return sum(1 for _ in iter_frames(video, np.arange(video.info.frames)))


def _read_clip(path: Path) -> int:
    with Video(path) as video:
        return len(video.frames(np.linspace(0, video.info.frames - 1, 8).round().astype(np.int64)))


READERS: dict[str, tuple[Callable[[Path], int], str]] = {
    "reading, every frame": (_read_all_frames, "frames"),
    "reading, 8 frames of a file": (_read_clip, "clips"),
}
"""Name -> (function that reads a file and returns the number of frames, unit)."""


def reading_speeds(seconds: float) -> Iterator[Check]:
    """Measure each way of decoding a generated video for `seconds`, with one thread."""
    summary = f"{WIDTH}x{HEIGHT} H.264"
    with tempfile.TemporaryDirectory(prefix="internvideo-doctor-") as folder:
        path = Path(folder) / "clip.mp4"
        try:
            write_video(path, sample_frames(), FPS, gop=30)
        except InternVideoError as error:
            yield Check("reading", "broken", str(error), "pip install --force-reinstall av")
            return
        for name, (read, unit) in READERS.items():
            try:
                yield _measure_speed(name, summary, read, path, unit, seconds)
            except InternVideoError as error:
                yield Check(name, "broken", str(error), "pip install --force-reinstall av")


def _measure_speed(
    name: str, summary: str, read: Callable[[Path], int], path: Path, unit: str, seconds: float
) -> Check:
    read(path)  # warm-up
    frames, files, start_time = 0, 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start_time) < seconds or not files:
        frames, files = frames + read(path), files + 1
    if unit == "clips":
        speed = f"{files / elapsed:.0f} clips/s of {summary}, one process"
        return Check(name, "ok", speed, "--workers N decodes in N of them")
    rate = frames / elapsed
    advice = "barely real time: other programs may use the cores" if rate < 2 * FPS else ""
    speed = f"{rate:.0f} frames/s of {summary}, {rate / FPS:.1f}x real time, one thread"
    return Check(name, "advice" if advice else "ok", speed, advice)


# ------------------------------------------------------------------------------------------------------- disk, extras


def _check_cache() -> Check:
    path = Path(HF_HUB_CACHE)
    size = sum(_size(os.path.join(folder, name)) for folder, _, names in os.walk(path) for name in names)
    existing = next((folder for folder in (path, *path.parents) if folder.is_dir()), Path("/"))
    free = shutil.disk_usage(existing).free
    summary = f"{size / GB:.1f} GB in {path}, {free / GB:.1f} GB free on that disk"
    is_low = free < 5 * GB
    advice = "weights of large models take gigabytes: move it with HF_HOME"
    return Check("Hugging Face cache", "advice" if is_low else "ok", summary, advice if is_low else "")


def _size(path: str) -> int:
    try:
        return os.lstat(path).st_size
    except OSError:  # another program has just removed it
        return 0


def _check_torchcodec(extra: str) -> Check:
    """Check that torchcodec is installed and finds an FFmpeg that it can load."""
    found, backend = _check_extra(extra), os.environ.get(video_torchcodec.ENVIRONMENT, "auto")
    if found.state != "absent" and isinstance(reason := video_torchcodec.torchcodec_class(), str):
        advice = "install an FFmpeg that it finds, or do without: PyAV reads everything"
        found = Check(extra, "advice", f"torchcodec is installed and does not load: {reason[:120]}", advice)
    if backend not in video_torchcodec.BACKENDS or (backend == "torchcodec" and found.state != "ok"):
        summary = f"{video_torchcodec.ENVIRONMENT} is '{backend}', and no video can be read: {found.found}"
        return Check(extra, "broken", summary, f"unset {video_torchcodec.ENVIRONMENT}")
    if found.state == "ok":
        summary = "it loads; videos are read with it where it is no slower and gives the same frames, else with PyAV"
        return Check(extra, "ok", f"{found.found.partition(';')[0]}; {summary}")
    return found


def _check_extra(extra: str) -> Check:
    purpose, install, versions = EXTRAS[extra].purpose, pip_install(extra), []
    for module in EXTRAS[extra].modules:
        try:
            importlib.import_module(module)
            versions.append(f"{module} {_version(module)}")
        except ModuleNotFoundError:
            return Check(extra, "absent", f"{module} is not installed; {purpose}", install)
        except Exception as error:  # a library that is there but does not load may raise anything
            reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
            return Check(extra, "advice", f"{module} does not load: {reason}", f"{install}, or do without: {purpose}")
    return Check(extra, "ok", f"{', '.join(versions)}; {purpose}")


def _version(module: str) -> str:
    """Return the version of the distribution that a module comes from, "?" where it was not installed as one."""
    names = _distributions().get(module)
    return importlib.metadata.version(names[0]) if names else "?"


@cache
def _distributions() -> Mapping[str, list[str]]:
    """Map modules to distributions, whose names may differ: faiss is from faiss-cpu."""
    return importlib.metadata.packages_distributions()
