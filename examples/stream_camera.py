"""Answer while a video comes in: a camera, a pipe (-), or a file played at its own speed.

    python examples/stream_camera.py MODEL camera "a hand waves, an empty room"
    ffmpeg -i rtsp://... -f mpegts - | python examples/stream_camera.py MODEL - "a car, a person, nothing"

When the model is slower than the source, late windows are dropped and counted.
"""

import argparse

from internvideo import load
from internvideo.apps.streaming import stream
from internvideo.errors import InternVideoError


def main() -> None:
    """Read the arguments, follow the source, print each answer and at the end the latency."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("source", help="camera, camera:1, a device file, a named pipe, - or a video file")
    parser.add_argument("labels", help="at least two, with commas between")
    parser.add_argument("--weights", help="of a model that is given by its name")
    parser.add_argument("--window-seconds", type=float, default=2.0, help="length of a window")
    parser.add_argument("--stride-seconds", type=float, default=1.0, help="from one window to the next")
    given = parser.parse_args()
    labels = [label.strip() for label in given.labels.split(",") if label.strip()]
    try:
        model = load(given.model, weights=given.weights)
        running = stream(
            given.source,
            model,
            window_seconds=given.window_seconds,
            stride_seconds=given.stride_seconds,
            on=labels,
            live=True,
        )
        for moment in running:
            assert isinstance(moment.value, dict)  # shares by label, since there are labels
            label, share = next(iter(moment.value.items()))
            print(f"{moment.time:8.1f} s  {label} {share:.2f}  ({moment.latency * 1000:.0f} ms)", flush=True)
    except InternVideoError as error:
        parser.exit(2, f"{error}\n")
    except KeyboardInterrupt:
        print("stopped")
    print(f"latency p50 {running.percentile(50) * 1000:.0f} ms, p95 {running.percentile(95) * 1000:.0f} ms", end=", ")
    print(f"{running.dropped} windows dropped")


if __name__ == "__main__":
    main()
