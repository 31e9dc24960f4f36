"""Checkpoints to safetensors: every layout that torch writes gives the tensors that went in."""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import types
from collections import OrderedDict, defaultdict
from pathlib import Path

import in_process
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from internvideo import __version__
from internvideo.cli.convert import convert as command
from internvideo.errors import RunError, WeightsError
from internvideo.storage import read_metadata, read_safetensors, write_safetensors
from internvideo.weights.convert import convert

SOURCE = Path(__file__).parents[2] / "src"


def every_kind(newest: bool = True) -> dict[str, Tensor]:
    """Tensors of every type and layout that checkpoints have; `newest`: also types that the older format lacks."""
    torch.manual_seed(0)
    base = torch.randn(6, 8)
    found = {
        "float": torch.randn(3, 4),
        "half": torch.randn(5).half(),
        "brain": torch.randn(2, 3).bfloat16(),
        "double": torch.randn(3).double(),
        "complex": torch.randn(3, dtype=torch.complex64),
        "bool": torch.tensor([True, False, True]),
        **{f"int{n}": torch.tensor([-3, n]).to(getattr(torch, f"int{n}")) for n in (8, 16, 32, 64)},
        "uint8": torch.arange(5, dtype=torch.uint8),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "whole": base,
        "columns": base[:, 2:5],
        "every_second": base[::2, 1::3],
        "transposed": torch.randn(4, 6).half().t(),
        "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "expanded": torch.randn(3, 1).expand(3, 4),
        "one_wide": torch.randn(5, 1, 2).as_strided((5, 1, 2), (2, 77, 1)),
        "parameter": nn.Parameter(torch.randn(2, 2)),
        "Namen mit Ä": torch.ones(1),
    }
    if newest:
        found |= {
            "float8": torch.randn(4).to(torch.float8_e4m3fn),
            "uint16": torch.tensor([1, 65535], dtype=torch.uint16),
        }
    return found


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        assert found[name].shape == value.shape, name
        one, other = (tensor.detach().contiguous().reshape(-1).view(torch.uint8) for tensor in (found[name], value))
        assert torch.equal(one, other), name


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
def test_every_kind_of_tensor_comes_through_bit_for_bit(tmp_path: Path, new: bool) -> None:
    state = every_kind(newest=new)
    torch.save(state, tmp_path / "c.pth", _use_new_zipfile_serialization=new)
    found = convert(tmp_path / "c.pth")
    assert found.output == tmp_path / "c.safetensors"
    assert found.layout == ("zip" if new else "legacy")
    assert (found.tensors, found.parameters) == (len(state), sum(t.numel() for t in state.values()))
    assert found.dropped == []
    assert_same(read_safetensors(found.output)[0], state)


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
def test_to_float32_by_request(tmp_path: Path, new: bool) -> None:
    state = every_kind(newest=False)
    state["many"] = torch.randn(70_000).half()
    state["special"] = torch.tensor([float("inf"), -float("inf"), 0.0, -0.0, 6e-8, 65504.0]).half()
    state["special_brain"] = torch.tensor([float("inf"), -1e38, 1e-40]).bfloat16()
    torch.save(state, tmp_path / "c.pth", _use_new_zipfile_serialization=new)
    convert(tmp_path / "c.pth", tmp_path / "wide.safetensors", float32=True)
    wide = {name: value.float() if value.is_floating_point() else value for name, value in state.items()}
    assert_same(read_safetensors(tmp_path / "wide.safetensors")[0], wide)


@pytest.mark.parametrize(
    "path", ["model", "module", "state_dict", "model_state", "model_state_dict", "model_state.model", ""]
)
def test_wrappings_are_opened(tmp_path: Path, path: str) -> None:
    state = OrderedDict(nn.Linear(2, 3).state_dict())
    content: object = state
    for key in reversed(path.split(".") if path else []):
        content = {key: content, "epoch": 3, "args": argparse.Namespace(lr=1e-3, betas=(0.9, 0.95))}
    torch.save(content, tmp_path / "c.pth")
    found = convert(tmp_path / "c.pth")
    assert_same(read_safetensors(found.output)[0], dict(state))
    inner = ["model_state.epoch", "model_state.args"] if "." in path else []
    assert found.dropped == (["epoch", "args", *inner] if path else [])


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
def test_every_pickle_protocol_is_read(tmp_path: Path, new: bool, protocol: int) -> None:
    state = {"w": torch.ones(2), "p": nn.Parameter(torch.zeros(3))}
    torch.save(state, tmp_path / "c.pth", pickle_protocol=protocol, _use_new_zipfile_serialization=new)
    assert_same(read_safetensors(convert(tmp_path / "c.pth").output)[0], state)


def test_what_trainers_put_beside_the_weights_is_dropped_by_name(tmp_path: Path) -> None:
    model = nn.Linear(4, 2)
    moments = {"step": torch.tensor(3.0), "exp_avg": torch.ones(2, 4), "exp_avg_sq": torch.ones(2, 4)}
    content = {
        "module": model.state_dict(),
        "optimizer": {"state": {0: moments}, "param_groups": [{"lr": 0.1, "betas": (0.9, 0.95), "params": [0]}]},
        "lr_scheduler": {"best": np.float64(3.5), "last": [1, 2.5, None, True, 10**30], "t": (1, "x", b"y")},
        "param_shapes": OrderedDict(w=torch.Size([2, 4])),
        "sparse_tensor_module_names": {"a"},
        "history": defaultdict(list, loss=[np.arange(3)]),
        "device": torch.device("cpu"),
        "dtype": torch.float16,
        "folder": Path("runs"),
        "global_steps": 7,
        "ds_config": {"fp16": {"enabled": True}},
    }
    torch.save(content, tmp_path / "mp_rank_00_model_states.pt")
    found = convert(tmp_path / "mp_rank_00_model_states.pt", tmp_path / "out" / "w.safetensors")
    assert found.dropped == [name for name in content if name != "module"]
    assert_same(read_safetensors(found.output)[0], model.state_dict())


def test_a_lightning_checkpoint_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its callbacks are classes as keys, its settings a dictionary of its own class."""
    for parent in ("pytorch_lightning", "pytorch_lightning.utilities", "pytorch_lightning.callbacks"):
        monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))
    parsing = types.ModuleType("pytorch_lightning.utilities.parsing")
    callbacks = types.ModuleType("pytorch_lightning.callbacks.model_checkpoint")
    for module, name, base in ((parsing, "AttributeDict", dict), (callbacks, "ModelCheckpoint", object)):
        setattr(module, name, type(name, (base,), {"__module__": module.__name__}))
        monkeypatch.setitem(sys.modules, module.__name__, module)
    content = {
        "epoch": 3,
        "state_dict": {"clip.w": torch.ones(2)},
        "callbacks": {callbacks.ModelCheckpoint: {"best": torch.tensor(0.5)}},
        "hyper_parameters": parsing.AttributeDict(lr=1e-3),
    }
    torch.save(content, tmp_path / "c.ckpt")
    found = convert(tmp_path / "c.ckpt")
    assert found.dropped == ["epoch", "callbacks", "hyper_parameters"]
    assert_same(read_safetensors(found.output)[0], {"clip.w": torch.ones(2)})


def test_values_among_the_tensors_are_dropped_by_name(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2), "version": 3, "ema": {"w": torch.zeros(2)}, 5: torch.ones(1)}, tmp_path / "c.pth")
    found = convert(tmp_path / "c.pth")
    assert found.dropped == ["version", "ema", "5"]
    assert list(read_safetensors(found.output)[0]) == ["w"]


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, picture: Tensor) -> Tensor:
        return self.norm(self.conv(picture))


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(Inner(), Inner())
        self.scale = nn.Parameter(torch.ones([]).half())
        self.register_buffer("context_length", torch.tensor(77))
        self.size = 5

    def forward(self, picture: Tensor) -> Tensor:
        return self.layers(picture) * self.scale


@pytest.mark.parametrize("how", ["script", "trace"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # TorchScript itself
def test_a_torchscript_archive_gives_its_state_dict(tmp_path: Path, how: str) -> None:
    model = Outer().eval()
    scripted = torch.jit.script(model) if how == "script" else torch.jit.trace(model, torch.ones(1, 3, 4, 4))
    scripted.save(str(tmp_path / "ViT.pt"))
    found = convert(tmp_path / "ViT.pt")
    assert found.layout == "torchscript"
    assert_same(read_safetensors(found.output)[0], model.state_dict())
    assert any(name.startswith("__torch__.") for name in found.globals)


def test_the_manifest_tells_what_was_done(tmp_path: Path) -> None:
    torch.save({"model": {"w": torch.ones(2).half(), "b": torch.ones(3)}, "epoch": 1}, tmp_path / "c.pth")
    convert(tmp_path / "c.pth", tmp_path / "o.safetensors")
    told = json.loads((tmp_path / "o.json").read_text())
    hashes = {n: hashlib.sha256((tmp_path / n).read_bytes()).hexdigest() for n in ("c.pth", "o.safetensors")}
    assert (told["source_sha256"], told["output_sha256"]) == (hashes["c.pth"], hashes["o.safetensors"])
    assert told["source"] == str(tmp_path / "c.pth")
    assert (told["tensors"], told["parameters"], told["dtypes"]) == (2, 5, {"F16": 1, "F32": 1})
    assert told["dropped"] == ["epoch"]
    assert "torch.HalfStorage" in told["globals"]
    assert told["program"] == f"internvideo {__version__}"
    assert told["date"].endswith("+00:00")
    assert read_metadata(tmp_path / "o.safetensors") == {
        "format": "pt", "source": "c.pth", "source_sha256": hashes["c.pth"]
    }  # fmt: skip
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.pth", "o.json", "o.safetensors"]


def test_the_same_file_gives_the_same_bytes(tmp_path: Path) -> None:
    torch.save(every_kind(), tmp_path / "c.pth")
    first = convert(tmp_path / "c.pth", tmp_path / "1.safetensors")
    assert convert(tmp_path / "c.pth", tmp_path / "2.safetensors").output_sha256 == first.output_sha256


def test_large_tensors_are_streamed(tmp_path: Path) -> None:
    state = {"w": torch.randn(28_000_000), "v": torch.randn(4)}
    torch.save(state, tmp_path / "c.pth")
    found = convert(tmp_path / "c.pth", memory_gb=0.1)  # less than the tensor takes
    assert_same(read_safetensors(found.output)[0], state)


def test_the_command_says_what_it_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"model": {"w": torch.ones(1000, 2)}, **{f"x{n}": n for n in range(12)}}, tmp_path / "c.pth")
    command(tmp_path / "c.pth")
    assert capsys.readouterr().out.splitlines() == [
        f"{tmp_path}/c.safetensors: 1 tensors (1 F32), 2,000 numbers",
        "dropped: x0, x1, x2, x3, x4, x5, x6, x7 and 4 more",
        f"manifest: {tmp_path}/c.json",
    ]


def test_safetensors_need_no_conversion(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "w.safetensors", {"a": torch.ones(1)})
    with pytest.raises(WeightsError, match="nothing to convert"):
        convert(tmp_path / "w.safetensors", tmp_path / "o.safetensors")
    (tmp_path / "w.safetensors").rename(tmp_path / "w.bin")
    with pytest.raises(WeightsError, match="not a torch checkpoint"):
        convert(tmp_path / "w.bin")
    torch.save({"a": torch.ones(1)}, tmp_path / "pickle.safetensors")
    with pytest.raises(WeightsError, match="pickle"):
        convert(tmp_path / "pickle.safetensors", tmp_path / "o.safetensors")
    assert not (tmp_path / "o.safetensors").exists()


def test_an_output_of_another_kind_or_place_is_told(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "c.pth")
    with pytest.raises(WeightsError, match=r"expected: \.safetensors"):
        convert(tmp_path / "c.pth", tmp_path / "o.pth")
    with pytest.raises(RunError, match="cannot be written"):
        convert(tmp_path / "c.pth", tmp_path / "c.pth" / "o.safetensors")


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"a": torch.ones(100_000)}, tmp_path / "c.pth")
    whole = json.dumps

    def less(value: dict[str, object], indent: int | None = None) -> str:
        """The process may write less than it has to, as on a full disk."""
        return whole({**value, **({"max_output_bytes": 1000} if "max_output_bytes" in value else {})}, indent=indent)

    monkeypatch.setattr(json, "dumps", less)
    with pytest.raises(RunError, match="cannot be written: File too large"):
        convert(tmp_path / "c.pth")
    assert [path.name for path in tmp_path.iterdir()] == ["c.pth"]


LIMITED = """
import sys; sys.path.append(sys.argv[1])
import os, resource
from internvideo.weights import unpickle
foreign = {name.split(".")[0] for name in sys.modules} - set(sys.stdlib_module_names) - {"__main__", "internvideo"}
import socket
unpickle.limit_process(10**9, 9, 1000)
def fails(action):
    try:
        action()
    except (OSError, MemoryError):
        return True
    return False
print([sorted(foreign), fails(lambda: open("/dev/null")), fails(socket.socket), fails(lambda: bytearray(2 * 10**9)),
       fails(lambda: os.dup(1)), fails(os.pipe), resource.getrlimit(resource.RLIMIT_CORE),
       resource.getrlimit(resource.RLIMIT_NPROC), sorted(os.environ)[:1]])
"""


def test_the_process_has_no_rights_and_loads_the_standard_library_alone() -> None:
    words = [sys.executable, "-I", "-S", "-c", LIMITED, SOURCE]
    done = subprocess.run(words, capture_output=True, text=True, env={}, timeout=60, check=True)
    assert done.stdout.strip().startswith("[[], True, True, True, True, True, (0, 0), (0, 0), ")


def test_from_the_shell(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2)}, tmp_path / "c.pth")
    words = ["convert", "c.pth", "-o", "o.safetensors"]
    done = in_process.command(*words, cwd=tmp_path)
    assert (done.code, done.err) == (0, "")
    assert done.out == "o.safetensors: 1 tensors (1 F32), 2 numbers\nmanifest: o.json\n"
    (tmp_path / "bad.pth").write_bytes(b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00echo\x85R.")
    refused = in_process.command("convert", "bad.pth", cwd=tmp_path)
    assert refused.out == ""
    assert refused.mistake().startswith("internvideo: bad.pth: the pickle asks for os.system; nothing was run;")


def test_the_manifest_never_replaces_another_file(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "model.pth")
    notes = tmp_path / "model.json"
    for text in ('{"my": "notes"}', "no JSON", "[]"):
        notes.write_text(text)
        with pytest.raises(WeightsError, match=r"model\.json: would be overwritten by the manifest"):
            convert(tmp_path / "model.pth")
        assert notes.read_text() == text
        assert not (tmp_path / "model.safetensors").exists()
    notes.unlink()
    assert convert(tmp_path / "model.pth") == convert(tmp_path / "model.pth")  # its own is no hindrance
