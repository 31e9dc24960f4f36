"""Read many damaged files of one kind in a process of its own, and report as JSON; `test_untrusted_fuzz.py` starts it.

    python fuzz_untrusted.py KINDS WORK FIRST COUNT     variants number FIRST, FIRST + 1 ... of each of KIND,KIND

A variant depends on its number alone: one that fails is made again with its number and COUNT 1, and stays in WORK.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import re
import resource
import signal
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from goldens_folder import GOLDENS
from mutations import VALUES, changed, damaged, json_text

from internvideo import load, untrusted, untrusted_arrays
from internvideo.data.manifest import read_manifest
from internvideo.data.shards import read_shards
from internvideo.datasets.catalog import BENCHMARKS
from internvideo.datasets.reading import AnnotationSource
from internvideo.errors import InternVideoError
from internvideo.inference.video_model import VideoModel
from internvideo.model_table import create_model
from internvideo.pipeline import load_trained
from internvideo.recipe import read_recipe, shipped_recipes
from internvideo.storage import read_safetensors, write_safetensors
from internvideo.tasks.temporal_localization import data as feature_sequences
from internvideo.weights.fetch import sha256_of

SECONDS = 5.0
"""Of processor time: an input that takes longer is a hang, and the process ends by SIGVTALRM."""
GROWTH = 300 * 1024
"""KiB that one input may take above what was there."""

# --- kinds -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """Files of one kind: `prepare` writes the whole ones into a folder, `spoil` damages them, `read` reads them.

    `read` raises InternVideoError, or tells how many of several files it refused.
    """

    prepare: Callable[[Path], Any]
    spoil: Callable[[Path, Any, random.Random], None]
    read: Callable[[Path], int]


def _seeds(files: dict[str, bytes]) -> Callable[[Path], dict[str, bytes]]:
    def prepare(folder: Path) -> dict[str, bytes]:
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        return files

    return prepare


def spoil_bytes(folder: Path, files: dict[str, bytes], rng: random.Random) -> None:
    """Write all files, one of them damaged: as values where it is JSON, else as bytes."""
    at_fault = rng.choice(sorted(files))
    for name, content in files.items():
        if name == at_fault:
            content = spoiled(name, content, rng)
        (folder / name).write_bytes(content)


def spoiled(name: str, content: bytes, rng: random.Random) -> bytes:
    """A damaged copy of a file by its ending; a packed one inside or outside of its packing."""
    if name.endswith(".gz") and rng.random() < 0.7:
        return gzip.compress(spoiled(name[:-3], gzip.decompress(content), rng), 1)
    if name.endswith(".json") and rng.random() < 0.6:
        return json_text(changed(json.loads(content), rng)).encode()
    if name.endswith(".jsonl") and rng.random() < 0.6:
        lines = content.decode().splitlines()
        at = rng.randrange(len(lines))
        lines[at] = json_text(changed(json.loads(lines[at]), rng))
        return "\n".join(lines).encode()
    if name.endswith(".csv") and rng.random() < 0.4:
        cells = [line.split(",") for line in content.decode().splitlines()]
        row = rng.choice(cells)
        row[rng.randrange(len(row))] = str(rng.choice(VALUES))
        return "\n".join(map(",".join, cells)).encode("utf-8", "replace")
    if name.endswith(".yaml") and rng.random() < 0.6:
        return json_text(changed(untrusted.parse_yaml(content.decode()), rng)).encode()  # JSON is YAML
    return damaged(content, rng)


def _npy(values: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, values)
    return stream.getvalue()


def _npz(**arrays: Any) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, values in arrays.items():
            archive.writestr(f"{name}.npy", _npy(values))
    return stream.getvalue()


def _tar(files: dict[str, bytes], form: int) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=form) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


LONG = f"{'l' * 90}/{'m' * 90}"
SAMPLES = {"0.jpg": b"x" * 40, "0.txt": b"a dog", "1.png": b"y" * 600, "1.json": b'{"caption": "a cat", "n": [1]}',
           "a/2.mp4": b"z", "a/2.txt": "Vögelchen".encode(), f"{LONG}.jpg": b"x", f"{LONG}.txt": b"long"}  # fmt: skip
TARS = {f"{form}.tar": _tar(SAMPLES, form) for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)}


def read_tar(folder: Path) -> int:
    shards = read_shards(str(folder), folder / "index")
    for row in shards.rows:
        shards.rows.read_medium(row)
    return 0


def spoil_tar(folder: Path, files: dict[str, bytes], rng: random.Random) -> None:
    """A damaged shard, or the index of whole ones."""
    index = folder / "index"
    if rng.random() < 0.3:
        if not index.exists() or len(list(index.iterdir())) != len(files):
            _seeds(files)(folder)
            read_shards(str(folder), index)
        kept = rng.choice(sorted(index.iterdir()))
        kept.write_bytes(spoiled(kept.name, kept.read_bytes(), rng))
        return
    for path in index.glob("*"):
        path.unlink()
    spoil_bytes(folder, files, rng)


ROWS = [
    {"id": "a", "path": "x.mp4", "label": 3, "captions": ["one", "two"], "split": "train", "group": "g"},
    {"id": "b", "path": "y.mp4", "span": [0.5, 2], "attributes": {"stride": "2"},
     "segments": [{"start": 0, "end": 1.5, "label": 2}], "qa": [{"question": "who", "answer": "I", "type": "w"}]},
    {"id": "c", "path": "z.mp4", "boxes": [{"time": 1, "x1": 0, "y1": 0, "x2": 0.5, "y2": 1, "labels": [0, 1]}],
     "choices": {"options": ["a", "b"], "answer": 1}},
]  # fmt: skip
MANIFESTS = {
    "m.jsonl": "\n".join(map(json.dumps, ROWS)).encode(),
    "m.classes.txt": b"jump\nrun\nsit\nwalk\n",
    "n.jsonl": b'{"id": "a", "path": "x.mp4", "label": "run"}\n{"id": "b", "path": "y.mp4", "label": "007"}',
    "c.csv": b'path,label,start,end,caption,split,speed\nx.mp4,run,0,1.5,"a, b",train,3\ny.mp4,7,1,2,c,test,4\n',
    "t.tsv": b"path\tlabel\nx.mp4\t3\ny.mp4\t0\n",
    "l.txt": b"x y.mp4 0\nz.avi 4\nfolder/a.mkv 2\n",
    "w.list": b"x.mp4,run\ny.mp4,sit down\n",
}


def read_manifests(folder: Path) -> int:
    names = ("m.jsonl", "n.jsonl", "c.csv", "t.tsv", "l.txt", "w.list")
    return sum(refused(lambda name=name: read_manifest(folder / name).fingerprint) for name in names)


def refused(read: Callable[[], object], mistake: type[Exception] = InternVideoError) -> bool:
    """Read; whether it was refused, so that the files after it are read all the same."""
    try:
        read()
    except mistake as error:
        check_told(error)
        return True
    return False


def check_told(error: Exception) -> None:
    if isinstance(error, InternVideoError):
        assert "\n" not in str(error)
        assert len(str(error)) <= 500
    assert str(error)


FEATURES = {
    "index.json": json.dumps({
        "protocol": {"fps": 25, "stride": 4, "window": 16}, "classes": ["jump", "run"], "database": {
            "v": {"duration": 10.0, "subset": "train", "annotations": [{"segment": [0, 4.5], "label": "run"}]},
            "w": {"duration": 3, "subset": "test", "fps": 30, "stride": 2, "window": 8, "annotations": []}},
    }).encode(),
    "v.npy": _npy(np.ones((60, 4), np.float32)), "w.npy": _npy(np.ones((40, 4), np.float16)),
}  # fmt: skip


def read_features(folder: Path) -> int:
    found = feature_sequences.read_feature_set(folder)
    settings = feature_sequences.FeatureSettings()
    for video in found.videos:
        feature_sequences.actions_in_steps(video, feature_sequences.read_sequence(video, settings), settings)
    assert len(found.fingerprint) == 16
    return 0


ANNOTATIONS = {
    "r2r_ce": "r2r_vlnce", "activitynet": "activitynet_v1_3", "ava": "ava_v2_2", "msrvtt_full": "msrvtt",
    "ego4d_mq": "ego4d_mq", "kinetics400": "kinetics400",
}  # fmt: skip


def prepare_annotations(folder: Path) -> dict[str, bytes]:
    source = GOLDENS / "tasks" / "annotations"
    files = {f"{name}/{path.name}": path.read_bytes() for name, place in ANNOTATIONS.items()
             for path in sorted((source / place).iterdir())}  # fmt: skip
    return _seeds(files)(folder)


def spoil_annotations(folder: Path, files: dict[str, bytes], rng: random.Random) -> None:
    name = rng.choice(sorted(ANNOTATIONS))
    own = {path: content for path, content in files.items() if path.startswith(f"{name}/")}
    spoil_bytes(folder, own, rng)
    (folder / "asked").write_text(name)


def read_annotations(folder: Path) -> int:
    name = (folder / "asked").read_text()
    BENCHMARKS[name].read(AnnotationSource(folder / name))
    return 0


SMALL = {"image_size": 32, "patch_size": 16, "frames": 4, "width": 24, "depth": 1, "heads": 2}


def prepare_weights(folder: Path) -> Any:
    del folder
    state = create_model("videomae-s-classifier", {**SMALL, "num_classes": 2}).state_dict()
    recipe = read_recipe("sample/supervised_masked").resolved()
    recipe["model"] = {"name": "videomae-s-classifier", "overrides": SMALL}
    recipe["data"]["sampling"]["frames"] = 4
    return state, {"recipe": recipe, "classes": ["run", "sit"]}


def spoil_weights(folder: Path, whole: Any, rng: random.Random) -> None:
    """Another recipe or other class names inside, or damaged bytes of header and numbers."""
    state, told = whole
    path = folder / "model.safetensors"
    kind = rng.random()
    inside = dict(told)
    if kind < 0.7:
        name = rng.choice(("recipe", "recipe", "recipe", "classes"))
        part = rng.choice((None, "model", "data"))
        if name == "classes" or part is None:
            inside[name] = changed(inside[name], rng)
        else:
            inside[name] = {**inside[name], part: changed(inside[name][part], rng)}
    texts = {name: json_text(value) for name, value in inside.items()}
    if 0.7 <= kind < 0.8:
        name = rng.choice(sorted(texts))
        texts[name] = damaged(texts[name].encode(), rng).decode("utf-8", "replace")
    write_safetensors(path, state, texts)
    if kind >= 0.8:
        path.write_bytes(damaged(path.read_bytes(), rng))


def read_weights(folder: Path) -> int:
    path = folder / "model.safetensors"
    return refused(lambda: load(path, device="cpu")) + refused(lambda: load_trained(path, device="cpu"))


def prepare_hub(folder: Path) -> Any:
    load(
        "videomae-s-classifier", weights="random", overrides={**SMALL, "num_classes": 2}, device="cpu"
    ).save_pretrained(folder / "hub")
    config = json.loads((folder / "hub" / "config.json").read_text())
    state, _ = read_safetensors(folder / "hub" / "model.safetensors")
    return config, state


def spoil_hub(folder: Path, whole: Any, rng: random.Random) -> None:
    """A changed config.json, at times in its sizes alone, with which the weights may agree by settings and hash."""
    config, state = whole
    sizes_alone = {**config, "overrides": changed(config["overrides"], rng)}
    place, made = folder / "hub", sizes_alone if rng.random() < 0.3 else changed(config, rng)
    agrees = isinstance(made, dict) and isinstance(config["files"], dict) and rng.random() < 0.7
    if agrees:
        made |= {"files": config["files"], "library_name": "internvideo"}
        inside = {name: value for name, value in made.items() if name not in ("files", "library_name")}
        write_safetensors(place / "model.safetensors", state, {"internvideo": json_text(inside)})
        made["files"] = {"model.safetensors": {"sha256": sha256_of(place / "model.safetensors")}}
    text = json_text(made).encode()
    (place / "config.json").write_bytes(text if agrees or rng.random() < 0.5 else damaged(text, rng))


def read_hub(folder: Path) -> int:
    place = folder / "hub"
    return refused(lambda: load(place / "model.safetensors", device="cpu")) + refused(
        lambda: VideoModel.from_pretrained(place, device="cpu")
    )


def read_plain(folder: Path) -> int:
    """By the parsers alone, which raise ValueError; their callers make an InternVideoError of it."""
    readers: tuple[tuple[str, Callable[[Path], object]], ...] = (
        ("x.json", untrusted.read_json), ("x.json.gz", untrusted.read_json), ("x.yaml", untrusted.read_yaml),
        ("x.npy", untrusted_arrays.read_npy), ("x.npz", untrusted_arrays.read_npz),
    )  # fmt: skip
    return sum(refused(lambda name=name, read=read: read(folder / name), ValueError) for name, read in readers)


_YAML = "a: &a {n: 1, t: [1.5, true, ~, 2001-01-01, 0x1F, 1:30]}\nb: {<<: *a, s: 'x'}\nc: |\n  text\nd: !!set {x, y}\n"
_TREE = {"a": [1, -2.5, None, True, "é"], "b": {"c": {"d": [[], {}]}}, "n": 10**15}
PLAIN = {
    "x.json": json.dumps(_TREE).encode(), "x.json.gz": gzip.compress(json.dumps(_TREE).encode() * 1),
    "x.yaml": _YAML.encode(), "x.npy": _npy(np.arange(12.0).reshape(3, 4)),
    "x.npz": _npz(a=np.arange(4), b=np.array(["x", "yé"]), c=np.zeros((0, 2))),
}  # fmt: skip


def prepare_recipes(folder: Path) -> dict[str, bytes]:
    names = ("sample/masked", "sample/supervised_masked", "sample/multimodal", "sample/temporal_localization")
    shipped = shipped_recipes()
    return _seeds({f"{name.partition('/')[2]}.yaml": shipped[name].read_bytes() for name in names if name in shipped})(
        folder
    )


def read_recipes(folder: Path) -> int:
    return sum(refused(lambda path=path: read_recipe(path).resolved()) for path in sorted(folder.glob("*.yaml")))


KINDS = {
    "parsers": Kind(_seeds(PLAIN), spoil_bytes, read_plain),
    "recipes": Kind(prepare_recipes, spoil_bytes, read_recipes),
    "weights": Kind(prepare_weights, spoil_weights, read_weights),
    "hub": Kind(prepare_hub, spoil_hub, read_hub),
    "shards": Kind(_seeds(TARS), spoil_tar, read_tar),
    "manifests": Kind(_seeds(MANIFESTS), spoil_bytes, read_manifests),
    "features": Kind(_seeds(FEATURES), spoil_bytes, read_features),
    "annotations": Kind(prepare_annotations, spoil_annotations, read_annotations),
}


# --- the search ------------------------------------------------------------------------------------------------------


def memory(name: str) -> int:
    """VmRSS or VmHWM of this process, KiB."""
    told = Path("/proc/self/status").read_text()
    return int(re.findall(rf"{name}:\s+(\d+)", told)[0])


def main(kind: str, work: Path, first: int, count: int) -> dict[str, object]:
    """Read, and tell what came out."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    chosen, problems, given, slowest, largest = KINDS[kind], [], 0, (0.0, -1), (0, -1)
    whole = chosen.prepare(work)
    handles = len(os.listdir("/proc/self/fd"))
    for number in range(first, first + count):
        chosen.spoil(work, whole, random.Random(f"{kind} {number}"))
        (work / "number").write_text(str(number))
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        before, began = memory("VmRSS"), time.process_time()
        signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
        try:
            given += not chosen.read(work)
        except InternVideoError as error:
            check_told(error)
        except Exception as error:  # what the search is for
            problems.append(f"{number}: {error!r}"[:500])
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        slowest = max(slowest, (time.process_time() - began, number))
        largest = max(largest, (memory("VmHWM") - before, number))
        if len(os.listdir("/proc/self/fd")) != handles:
            problems.append(f"{number}: a file stays open")
            handles = len(os.listdir("/proc/self/fd"))
    return {"given": given, "refused": count - given, "slowest": slowest, "largest": largest, "problems": problems}


if __name__ == "__main__":
    _, kinds, work, first, count = sys.argv
    told = {}
    for kind in kinds.split(","):
        (Path(work) / kind).mkdir(exist_ok=True)
        told[kind] = main(kind, Path(work) / kind, int(first), int(count))
    print(json.dumps(told))
