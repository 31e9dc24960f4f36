"""Which of the state dicts of a checkpoint is converted: the model's own, the only one, or the one that is named."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from small_checkpoints import load, same, small
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from internvideo.cli.convert import convert as command
from internvideo.errors import WeightsError
from internvideo.storage import read_safetensors
from internvideo.weights.convert import convert
from internvideo.weights.layouts import load_layout, require_layout

A, B = ({"a": torch.full((2,), value)} for value in (1.0, 2.0))


def converted(content: Any, folder: Path, key: str = "") -> dict[str, Tensor]:
    torch.save(content, folder / "c.pth")
    return read_safetensors(convert(folder / "c.pth", key=key).output)[0]


def refused(content: Any, folder: Path, key: str = "") -> str:
    with pytest.raises(WeightsError) as error:
        converted(content, folder, key)
    assert "\n" not in str(error.value)
    assert not (folder / "c.safetensors").exists()
    return str(error.value)


@pytest.mark.parametrize(
    "name",
    ["model_ema", "ema", "net", "network", "params", "backbone", "params_ema", "state_dict_ema", "weights", "encoder"],
)
def test_the_only_state_dict_is_found_under_any_name(name: str, tmp_path: Path) -> None:
    moments = {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]}
    beside = {"epoch": 3, "optimizer": moments, "rng_states": {"cpu": torch.ones(2)}, "args": {"seed": torch.ones(1)}}
    assert torch.equal(converted({**beside, name: B}, tmp_path)["a"], B["a"])
    assert torch.equal(converted({"state": {name: OrderedDict(B)}, "step": 1}, tmp_path)["a"], B["a"])
    assert torch.equal(converted({name: {"state_dict": B}}, tmp_path)["a"], B["a"])


@pytest.mark.parametrize(
    "pair", [("model", "model_ema"), ("net", "ema"), ("params", "params_ema"), ("state_dict", "ema")]
)
def test_averaged_weights_are_taken_when_they_are_named(
    pair: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = {pair[1]: B, pair[0]: A}
    assert torch.equal(converted(content, tmp_path)["a"], A["a"])
    command(tmp_path / "c.pth")
    assert f"averaged weights stand beside them: --key {pair[1]}" in capsys.readouterr().out
    assert torch.equal(converted(content, tmp_path, key=pair[1])["a"], B["a"])
    assert convert(tmp_path / "c.pth", key=pair[1]).key == pair[1]


def test_several_state_dicts_are_a_choice(tmp_path: Path) -> None:
    content = {"student": A, "teacher": {"backbone": B}, "epoch": 3}
    assert "several state dicts: student, teacher" in refused(content, tmp_path)
    assert torch.equal(converted(content, tmp_path, key="teacher.backbone")["a"], B["a"])
    assert torch.equal(converted(content, tmp_path, key="teacher")["a"], B["a"])
    assert "names that hold tensors: student, teacher" in refused(content, _folder(tmp_path), key="student.ema")
    assert "--key" in refused({"backbone": A, "head": B}, tmp_path / "sub")


def _folder(folder: Path) -> Path:
    (folder / "sub").mkdir()
    return folder / "sub"


def test_a_key_may_be_what_stands_before_the_names(tmp_path: Path) -> None:
    state = {"model.a": A["a"], "ema_model.module.a": B["a"], "step": 7}
    assert list(converted({"state_dict": state}, tmp_path, key="state_dict.ema_model.module")) == ["a"]
    assert torch.equal(converted(state, tmp_path, key="ema_model.module")["a"], B["a"])
    assert "no tensors under other" in refused(state, _folder(tmp_path), key="other")


def test_a_key_with_dots_in_it(tmp_path: Path) -> None:
    assert torch.equal(converted({"a.b": {"c": B}, "a": A}, tmp_path, key="a.b.c")["a"], B["a"])


def test_shards_of_deepspeed_are_told(tmp_path: Path) -> None:
    flat = {"zero_stage": 2, "partition_count": 8, "single_partition_of_fp32_groups": [torch.ones(4)]}
    told = refused({"optimizer_state_dict": flat, "ds_version": "0.9"}, tmp_path)
    assert "one shard of DeepSpeed's optimizer" in told
    assert "zero_to_fp32.py" in told
    parts = {"module": {"w": torch.empty(0), "b": torch.empty(0)}, "param_shapes": [OrderedDict(w=torch.Size([2, 4]))]}
    assert "ZeRO stage 3" in refused(parts, tmp_path)
    whole = {"module": A, "param_shapes": [OrderedDict(a=torch.Size([2]))], "ds_version": "0.9"}
    assert torch.equal(converted(whole, tmp_path)["a"], A["a"])


def test_averages_without_names_are_told(tmp_path: Path) -> None:
    assert "shadow_params" in refused({"decay": 0.99, "shadow_params": [torch.ones(2)]}, tmp_path)


def test_parts_of_a_distributed_checkpoint_are_told(tmp_path: Path) -> None:
    (tmp_path / "__0_0.distcp").write_bytes(b"x")
    with pytest.raises(WeightsError, match="dcp_to_torch"):
        convert(tmp_path)


@pytest.mark.parametrize("name", ["classifier", "pretrain", "uniformerv2", "clip"])
def test_what_torch_averaged_loads(name: str, tmp_path: Path) -> None:
    """`swa_utils.AveragedModel` puts `module.` before the keys, and the number of averaged models beside them."""
    state, rest = small(name)
    averaged = AveragedModel(nn.Linear(1, 1)).state_dict()
    counter = averaged["n_averaged"]
    found = converted({"model": {"n_averaged": counter, **{f"module.{key}": v for key, v in state.items()}}}, tmp_path)
    layout = require_layout(found)
    assert "n_averaged" in layout.ignored_keys
    assert same(load_layout(layout, found, overrides=rest), load(name))
