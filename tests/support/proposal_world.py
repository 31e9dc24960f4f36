"""A folder of features, and segments proposed for them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

CLASSES = ("jump", "run")
STEP = 0.5  # seconds between features: stride 4 at 8 fps


def world(folder: Path, videos: int = 24, *, labels: bool = True) -> Path:
    """Features that say when an action is going on; `proposals.json` has its segments, their ends off, and others."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    database, results = {}, {}
    for number in range(videos):
        length = int(rng.integers(30, 40))
        values, found, proposed, at = 0.05 * rng.standard_normal((length, 4)), [], [], int(rng.integers(1, 4))
        while at + 8 < length:
            size, label = int(rng.integers(4, 8)), int(rng.integers(2))
            values[at : at + size, label] += 1
            span = np.asarray([at * STEP, (at + size) * STEP])
            found.append({"label": CLASSES[label], "segment": span.tolist()})
            for _ in range(4):
                off = rng.uniform(-0.3, 0.3, 2) * (span[1] - span[0])
                row = {"segment": (span + off).clip(0).tolist(), "score": float(rng.uniform(0.2, 1))}
                proposed.append({**row, "label": CLASSES[label]} if labels else row)
            at += size + int(rng.integers(3, 6))
        for _ in range(4):
            start = float(rng.uniform(0, length * STEP - 4))
            row = {"segment": [start, start + float(rng.uniform(1, 4))], "score": float(rng.uniform(0.2, 1))}
            proposed.append({**row, "label": CLASSES[int(rng.integers(2))]} if labels else row)
        np.save(folder / f"v{number}.npy", values.astype(np.float32))
        entry = {"fps": 8.0, "duration": length * STEP, "annotations": found}
        database[f"v{number}"] = {"subset": "test" if number % 6 == 5 else "train", **entry}
        results[f"v{number}"] = proposed
    protocol = {"model": "m", "weights_sha256": "1", "layer": "pooled", "window": 4, "stride": 4, "fps": None}
    text = {"protocol": protocol, "classes": list(CLASSES), "database": database}
    (folder / "index.json").write_text(json.dumps(text))
    told = {"version": "1.3", "results": results, "external_data": {"model": "d", "weights_sha256": "2"}}
    (folder / "proposals.json").write_text(json.dumps(told))
    return folder
