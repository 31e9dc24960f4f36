"""Cut a part of a video file into a new file: packets are copied where the part begins at a key frame, otherwise
its pictures are encoded again; sound is copied, or left out if its codec is not in COPIED_SOUND."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from internvideo.errors import VideoError
from internvideo.video.opening import open_file, reason_of
from internvideo.video.reader import BUDGET, Video
from internvideo.video.sequential import iter_frames
from internvideo.video.writer import open_output, write_video

COPIED_VIDEO = {"h264", "hevc", "mpeg4", "av1", "vp9"}
COPIED_SOUND = {"aac", "mp3", "ac3", "eac3", "opus", "flac", "alac"}
"""Codecs that an .mp4 file may hold and players know."""


def cut(path: str | os.PathLike[str], target: Path, start: float, end: float) -> bool:
    """Write the frames with start <= time < end (seconds, to 1 ms) of a video to TARGET, an .mp4 file.

    Where the stored order of frames is not that of their times, copied packets may end a few frames later.

    Returns: Whether the packets were copied; False if the pictures were encoded again (H.264).

    Raises VideoError: the video cannot be read, has no frame there, or the file cannot be written.
    """
    source = os.fspath(path)
    with TemporaryDirectory(prefix="internvideo-") as folder:
        with Video(source) as video:
            info = video.info
            indices = np.flatnonzero((info.times >= start - 1e-3) & (info.times < end - 1e-3))
            if not len(indices):
                raise VideoError(source, f"no frame from {start:g} s to {end:g} s", f"0 to {info.duration:.3f} s")
            copied = info.codec in COPIED_VIDEO and int(indices[0]) in video.key_frames.tolist() and not info.rotation
            encoded = Path(folder) / "pictures.mp4"
            if not copied:
                rate = min(max(info.fps, 1.0), 120.0)
                write_video(encoded, _pictures(video, indices, rate), rate, crf=20)
        span = float(info.times[indices[0]]), end
        pictures = (source, span, info.start) if copied else (str(encoded), (0.0, np.inf), 0.0)
        muxed = Path(folder) / "muxed.mp4"
        try:
            _mux(muxed, pictures, (source, span, info.start))
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
            partial.write_bytes(muxed.read_bytes())
            partial.replace(target)
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise VideoError(target, f"cannot be written: {reason_of(error)}") from error
    return copied


def _pictures(video: Video, indices: NDArray[np.int64], rate: float) -> Iterator[NDArray[np.uint8]]:
    """Yield the frames, at a constant rate, with even sides."""
    times = video.info.times[indices]
    steps = np.arange(times[0], times[-1] + 1e-6, 1 / rate) + 1e-3
    wanted = indices[np.searchsorted(times, steps, side="right") - 1]
    counts = dict(zip(*np.unique(video.replace_damaged(wanted, skipped=True), return_counts=True), strict=True))
    for count, frame in zip(counts.values(), iter_frames(video, np.array(list(counts))), strict=True):
        for _ in range(count):
            yield frame[: len(frame) // 2 * 2, : frame.shape[1] // 2 * 2]


Source = tuple[str, tuple[float, float], float]
"""A file, the seconds of it to take, and the time stamp of its time 0 in seconds."""


def _mux(target: Path, pictures: Source, sound: Source) -> None:
    """Copy the packets of the pictures of one file and of the sound of another, from time 0 on."""
    with open_output(target) as output:
        video_input, video_stream = open_file(pictures[0], allow_urls=False, threads=1, seconds=BUDGET)
        audio_input, unused_video = open_file(sound[0], allow_urls=False, threads=1, seconds=BUDGET)
        with video_input, audio_input:
            audio_stream = next((s for s in audio_input.streams.audio if s.codec_context.name in COPIED_SOUND), None)
            output_video = output.add_stream_from_template(video_stream)
            output_audio = None if audio_stream is None else output.add_stream_from_template(audio_stream)
            _copy(video_input, video_stream, pictures, output, output_video)
            if audio_stream is not None:
                audio_stream.discard = av.stream.Discard.default
                unused_video.discard = av.stream.Discard.all
                _copy(audio_input, audio_stream, sound, output, output_audio)


def _copy(container: Any, stream: Any, source: Source, output: Any, output_stream: Any) -> None:
    _, (start, end), start_time = source
    base = float(stream.time_base)
    first = round((start + start_time) / base)
    if start > 0:
        container.seek(first, stream=stream, backward=True)
    for packet in container.demux(stream):
        if packet.dts is None or packet.pts is None or packet.pts < first - 1:
            continue
        if packet.dts * base - start_time >= end - 1e-3:
            break
        packet.pts, packet.dts, packet.stream = packet.pts - first, packet.dts - first, output_stream
        output.mux(packet)
