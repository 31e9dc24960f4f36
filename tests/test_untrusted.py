"""What others wrote is parsed within limits: each input gives plain data or one line, at once and without memory."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from internvideo import untrusted
from internvideo.apps.mix import mix
from internvideo.data.manifest import read_manifest
from internvideo.data.shard_files import list_shards, read_shard
from internvideo.data.shards import read_shards
from internvideo.errors import InternVideoError, ManifestError, RecipeError, WeightsError, shown
from internvideo.model_table import create_model
from internvideo.models.declared import limit_model_size
from internvideo.pipeline import load_trained
from internvideo.recipe import read_recipe, shipped_recipes
from internvideo.storage import class_names, read_safetensors, write_safetensors
from internvideo.tasks.temporal_localization.data import read_feature_set
from internvideo.terminal import Screen, say
from internvideo.untrusted_arrays import read_npy, read_npz


@pytest.fixture
def _little_memory() -> Iterator[None]:
    """Whatever is refused here is refused before 300 MB of Python's and NumPy's memory are taken."""
    tracemalloc.start()
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 300e6


# --- parsers ---------------------------------------------------------------------------------------------------------

BOMB = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"a{n}: &a{n} [{','.join(9 * [f'*a{n - 1}'])}]\n" for n in range(1, 12)
)
JSON = {
    "deep": ("[" * 100_000 + "]" * 100_000, "deeply nested"),
    "deeper than others can walk": ('{"a":' * 70 + "1" + "}" * 70, "64 deep"),
    "digits": ("9" * 100_000, "digits"),
    "21 digits": ('{"label": 100000000000000000000}', "digits"),
    "infinite": ("[1e999]", "1e999"),
    "NaN": ('{"a": NaN}', "NaN"),
    "twice": ('{"a": 1, "a": 2}', "duplicate key 'a'"),
    "cut": ('{"a":', "Expecting"),
}
YAML = {
    "aliases": (BOMB, "20,000 values"),
    "an alias inside itself": ("a: &a [*a]", "20,000 values"),
    "deep": ("[" * 100_000, "64 deep"),
    "deep blocks": ("- " * 100_000, "64 deep"),
    "digits": ("a: " + "9" * 100_000, "digits"),
    "base 60": ("a: " + "1:" * 100_000 + "1", "digits"),
    "infinite": ("a: .inf", ".inf"),
    "overflow": ("a: 1.0e+999", r"1\.0e\+999"),
    "twice": ("a: 1\nb: 2\na: 3", "duplicate key 'a', line 3"),
    "an object": ("!!python/object:os.system x", "could not determine a constructor"),
    "no date": ("a: 2001-99-99", "month"),
    "no boolean": ("!!bool x", "x"),
    "a list as a key": ("? [1]\n: 2", "unhashable"),
    "many values": ("[" + "a," * 100_000 + "]", "20,000 values"),
    "long": ("a" * (untrusted.MAX_YAML_LENGTH + 1), "limit"),
    "NUL": ("a: \0", "special characters"),
}


@pytest.mark.usefixtures("_little_memory")
@pytest.mark.parametrize("name", JSON)
def test_json_within_limits(name: str) -> None:
    text, told = JSON[name]
    with pytest.raises(ValueError, match=told):
        untrusted.parse_json(text)


@pytest.mark.parametrize("name", YAML)
def test_yaml_within_limits(name: str) -> None:
    text, told = YAML[name]
    with pytest.raises(ValueError, match=told):
        untrusted.parse_yaml(text)


def test_what_is_ordinary_is_read_as_before() -> None:
    told = {"a": [1, -2.5, True, None, "ü", {"b": []}], "n": 2**63}
    assert untrusted.parse_json(json.dumps(told)) == told
    assert untrusted.parse_json("[NaN, -Infinity]", finite=False)[1] == float("-inf")
    text = "base: &b {lr: 1.0e-3, n: 0x10}\nother: {<<: *b, lr: 2}\nmany: [*b, *b]\nday: 2001-01-01"
    found = untrusted.parse_yaml(text)
    assert found["other"] == {"lr": 2, "n": 16}
    assert found["many"] == [found["base"], found["base"]]
    assert found["day"].year == 2001


def test_every_shipped_recipe_is_read() -> None:
    import yaml

    for path in shipped_recipes().values():
        assert untrusted.read_yaml(path) == yaml.safe_load(path.read_text())


@pytest.mark.usefixtures("_little_memory")
@pytest.mark.parametrize("make", ["pipe", "folder", "hole", "bomb", "cut", "binary", "absent"])
def test_files_that_are_none(tmp_path: Path, make: str) -> None:
    path = tmp_path / ("x.json.gz" if make in ("bomb", "cut") else "x.json")
    whole = gzip.compress(b" " * 300_000_000 if make == "bomb" else b"[1, 2, 3]")
    match make:
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "hole":
            with path.open("wb") as file:
                file.truncate(2**32)
        case "bomb":
            path.write_bytes(whole)
        case "cut":
            path.write_bytes(whole[:-9])
        case "binary":
            path.write_bytes(b"\xff\xfe")
    tracemalloc.reset_peak()  # of what the test itself made
    with pytest.raises((OSError, ValueError)):
        untrusted.read_json(path)


def test_devices_are_not_read() -> None:
    with pytest.raises(OSError, match="a pipe or device"):
        untrusted.read_text("/dev/zero")


def test_a_line_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(untrusted, "MAX_LINE_LENGTH", 100)
    assert list(untrusted.read_lines(io.StringIO("a\n" * 200))) == ["a\n"] * 200
    with pytest.raises(ValueError, match="a line of 100"):
        list(untrusted.read_lines(io.StringIO("a" * 200)))


# --- arrays ----------------------------------------------------------------------------------------------------------

FLOATS = np.arange(6.0).reshape(2, 3)
GOOD = [FLOATS, np.asfortranarray(FLOATS), np.zeros((0, 3)), np.array("é"), np.array(3), np.arange(3, dtype=">i4")]
GOOD += [np.array(["ab", "c"]), np.array([True]), np.zeros(2, np.float16), np.zeros(2, np.uint8)]


@pytest.mark.parametrize("number", range(len(GOOD)))
def test_arrays_are_read_as_numpy_reads_them(tmp_path: Path, number: int) -> None:
    np.save(tmp_path / "a.npy", GOOD[number])
    np.savez_compressed(tmp_path / "a.npz", x=GOOD[number])
    for found in (read_npy(tmp_path / "a.npy"), read_npz(tmp_path / "a.npz")["x"]):
        assert (found.dtype, found.shape) == (GOOD[number].dtype, GOOD[number].shape)
        assert np.array_equal(found, GOOD[number])
        assert found.flags.writeable


def npy(shape: str, dtype: str = "'<f8'") -> bytes:
    """A file of 64 bytes of numbers with this header."""
    header = f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}}}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + b"0" * 64


LIES = [npy(shape) for shape in ("(10000000000,)", "(7,)", "(9,)", "(-1,)", "(True,)", "(1.5,)", "'x'", "(8, 0, 9)")]
LIES += [npy(f"({'9' * 5000},)"), npy("(" * 3000), npy("(8,)", "'O'"), npy("(8,)", "[('a', '<f8')]"), npy("[", "'")]
LIES += [npy("(8,)", "'<U2'"), npy("(8,)", "'V8'"), npy("(8,)", "'<f1000000000'"), b"", b"\x93NUMPY", b"\x80\x04N."]
LIES += [b"\x93NUMPY\x02\x00\xff\xff\xff\xff", b"\x93NUMPY\x09\x00" + b"0" * 99]


@pytest.mark.usefixtures("_little_memory")
@pytest.mark.parametrize("number", range(len(LIES)))
def test_headers_that_lie(tmp_path: Path, number: int) -> None:
    (tmp_path / "a.npy").write_bytes(LIES[number])
    with pytest.raises(ValueError, match=r"\w"):
        read_npy(tmp_path / "a.npy")
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("a.npy", LIES[number])
    with pytest.raises(ValueError, match=r"\w"):
        read_npz(tmp_path / "a.npz")


@pytest.mark.usefixtures("_little_memory")
def test_an_archive_that_unpacks_to_gigabytes(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a.npy", "w") as file:
        for _ in range(200):
            file.write(bytes(2**20))
    with pytest.raises(ValueError, match="unpacks to more"):
        read_npz(tmp_path / "a.npz")


# --- declared and present --------------------------------------------------------------------------------------------

SMALL = {"image_size": 32, "patch_size": 8, "frames": 8, "width": 32, "depth": 2, "heads": 2, "num_classes": 3}


def weights_with(path: Path, **changes: object) -> Path:
    """Weights of a small run whose recipe declares other sizes."""
    model = create_model("videomae-s-classifier", SMALL)
    sizes = {name: value for name, value in SMALL.items() if name != "num_classes"}
    recipe = read_recipe("sample/supervised_masked").resolved()
    recipe["model"] = {"name": "videomae-s-classifier", "overrides": {**sizes, **changes}}
    recipe["data"]["sampling"]["frames"] = 8
    write_safetensors(path, model.state_dict(), {"recipe": json.dumps(recipe), "classes": '["a", "b", "c"]'})
    return path


def test_weights_with_their_own_sizes_load(tmp_path: Path) -> None:
    assert load_trained(weights_with(tmp_path / "m.safetensors"), device="cpu").classes == ("a", "b", "c")


@pytest.mark.parametrize(
    "changes",
    [
        {"depth": 1_000_000},
        {"depth": 1000},
        {"width": 2**20},
        {"width": 2**14},
        {"frames": 2**20},
        {"image_size": 2**20},
        {"image_size": 8192, "frames": 4096},
        {"width": 2**80},
        {"depth": -5},
        {"heads": 0},
        {"patch_size": 0},
        {"tubelet": 0},
        {"frames": 0},
    ],
    ids=str,
)
def test_settings_that_declare_more_than_there_is(tmp_path: Path, changes: dict[str, object]) -> None:
    with pytest.raises((RecipeError, WeightsError)):
        load_trained(weights_with(tmp_path / "m.safetensors", **changes), device="cpu")


def test_a_recipe_of_a_model_that_no_machine_holds() -> None:
    for changes in ({"width": 2**20, "heads": 1}, {"depth": 10**6}, {"width": 2**15, "heads": 1, "depth": 1000}):
        with pytest.raises(RecipeError, match=r"limit|memory"):
            create_model("videomae-b-classifier", changes)


def test_building_stops_at_the_first_parameter_too_many() -> None:
    built: list[torch.nn.Module] = []

    def build() -> None:
        built.extend(torch.nn.Linear(2, 2) for _ in range(1000))

    told = "a larger model than its 1 tensors of 4 elements"
    with pytest.raises(ValueError, match=told), limit_model_size({"a": torch.ones(4)}):
        build()
    assert len(built) < 300
    build()  # and no hook is left


@pytest.mark.parametrize("text", ["3", "[1]", '{"a": 1}', "[" * 9999, "[[]]", '"abc"', "nope"])
def test_classes_that_are_no_names(text: str) -> None:
    with pytest.raises(WeightsError, match="classes"):
        class_names({"classes": text}, "x")


@pytest.mark.parametrize("length", [0, 1, 2**40, 2**63, 99])
def test_a_header_that_is_longer_than_its_file(tmp_path: Path, length: int) -> None:
    (tmp_path / "m.safetensors").write_bytes(length.to_bytes(8, "little") + b'{"a": 1}')
    with pytest.raises(WeightsError, match="a header of"):
        read_safetensors(tmp_path / "m.safetensors")


# --- rows ------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_little_memory")
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("m.jsonl", '{"id": "a", "path": "x.mp4", "label": 10000000000}'),
        ("m.jsonl", '{"id": "a", "path": "x.mp4", "segments": [{"start": 0, "end": 1, "label": 9999999999}]}'),
        ("m.txt", "x.mp4 10000000000"),
        ("m.csv", "path,label\nx.mp4,10000000000"),
        ("m.csv", "path,label\nx.mp4," + "9" * 5000),
    ],
)
def test_a_label_of_ten_thousand_millions(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ManifestError, match="99999"):
        read_manifest(tmp_path / name)


@pytest.mark.usefixtures("_little_memory")
def test_the_same_in_an_index_of_features(tmp_path: Path) -> None:
    part = {"segment": [0, 1], "label": "x", "label_id": 10**10}
    content = {"protocol": {"fps": 25, "stride": 4, "window": 16}}
    content["database"] = {"v": {"duration": 10, "annotations": [part]}}
    (tmp_path / "index.json").write_text(json.dumps(content))
    with pytest.raises(ManifestError, match=r"database\.v\.annotations\.0\.label_id"):
        read_feature_set(tmp_path)


@pytest.mark.parametrize("read", [read_manifest, read_feature_set], ids=lambda read: read.__name__)
def test_a_pipe_blocks_nothing(tmp_path: Path, read: Callable[[Path], object]) -> None:
    os.mkfifo(tmp_path / "m.jsonl")
    with pytest.raises(ManifestError, match="a pipe or device"):
        read(tmp_path / "m.jsonl")


# --- shards ----------------------------------------------------------------------------------------------------------


def shard(path: Path, files: dict[str, bytes]) -> Path:
    """A tar file of these; names may have surrogates for bytes that are no UTF-8."""
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT, encoding="utf-8", errors="surrogateescape") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def test_one_sample_of_a_shard_is_at_fault(tmp_path: Path) -> None:
    deep = b'{"caption": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    files = {"0.jpg": b"x", "0.txt": b"fine", "1.jpg": b"x", "1.json": deep, "\udcff.jpg": b"x", "\udcff.txt": b"also"}
    shard(tmp_path / "0.tar", files)
    for _ in range(2):  # from the headers, then from the index of the first time
        rows = read_shards(str(tmp_path), tmp_path / "index").rows
        assert [row.captions for row in rows] == [("fine",), (), ("also",)]
        assert "deeply nested" in rows[1].attributes["fault"]
        assert rows[2].id == r"0/\udcff"


def test_an_index_of_a_shard_that_lies_is_made_again(tmp_path: Path) -> None:
    path = str(shard(tmp_path / "0.tar", {"0.jpg": b"x", "0.txt": b"fine"}))
    honest = read_shard(path, tmp_path / "index")
    (kept,) = (tmp_path / "index").iterdir()
    told = json.loads(kept.read_text())
    for first, count in ((-1, 5), (0, -1), (0, 10**18), (10**18, 1)):
        told["entries"][0][2:4] = first, count
        kept.write_text(json.dumps(told))
        assert read_shard(path, tmp_path / "index") == honest


def test_shards_without_end() -> None:
    for pattern in ("a_{0..999999999999}.tar", "a_{0..%s}.tar" % ("9" * 5000)):
        with pytest.raises(ManifestError, match="shard"):
            list_shards(pattern)


# --- what is told ----------------------------------------------------------------------------------------------------


def test_control_characters_are_shown_not_sent(capsys: pytest.CaptureFixture[str]) -> None:
    name = "\x1b[31mred\x07 \x9b2J \u202egnp.exe \udcff\r\ttab"
    say(f"a: {name}\nb")
    assert capsys.readouterr().out == "a: \\u001b[31mred\\u0007 \\u009b2J \\u202egnp.exe \\udcff\\u000d\ttab\nb\n"
    screen = io.StringIO()
    Screen(file=screen, width=200).print(f"[bold]{name}[/bold]")
    assert "\x1b" not in screen.getvalue()
    assert "\\u001b" in screen.getvalue()
    assert json.loads(shown(json.dumps(name, ensure_ascii=False))) == name  # JSON stays JSON


def test_messages_have_500_characters_at_the_most() -> None:
    for lengths in ((9, 9, 9, 9), (10**6, 9, 9, 9), (9, 10**6, 400, 9), (10**6,) * 4, (124, 124, 124, 124)):
        parts = [letter * length for letter, length in zip("abcd", lengths, strict=True)]
        error = InternVideoError(*parts)
        assert len(str(error)) <= 500
        assert all(letter in str(error) for letter in "abcd")
        assert error.found == parts[1]
    assert str(InternVideoError("a\x1b[2J", "b\nc", "", "d")) == "a\\u001b[2J: b c; d"


# --- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["batch_size", "workers", "repeated_augmentation", "prefetch", "short_side", "cache_megabytes"]
)
def test_settings_of_a_loader_that_no_machine_has(name: str) -> None:
    with pytest.raises(RecipeError, match=rf"data\.loader\.{name} is 10000000000[.0]*, [01] to \d+ are the limits"):
        read_recipe("sample/masked", [f"data.loader.{name}={10**10}"])
    for setting in ("data.features.tries", "data.features.resized"):
        with pytest.raises(RecipeError, match="less than or equal to 10"):
            read_recipe("sample/temporal_localization", [f"{setting}={10**10}"])


def test_a_link_to_itself_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").symlink_to(tmp_path / "m.safetensors")
    with pytest.raises(WeightsError, match="no such file"):
        mix([tmp_path / "m.safetensors"], tmp_path / "o.safetensors")
