"""The parity tests themselves: another folder is taken as it comes, and nothing in it is skipped."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forked
import pytest
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.parity

TESTS = Path(__file__).parent
SOURCE = TESTS / "goldens" / "models" / "mae_finetune_firsttoken.json"


def add_case(folder: Path, name: str, change: Callable[[dict[str, Any]], None] = lambda info: None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    info = json.loads(SOURCE.read_text())
    change(info)
    (folder / f"{name}.json").write_text(json.dumps(info))
    for part in ("weights", "io"):
        shutil.copyfile(SOURCE.with_suffix(f".{part}.safetensors"), folder / f"{name}.{part}.safetensors")


def parity(folder: Path) -> str:
    """The output of the tests on a folder of goldens."""
    os.environ["INTERNVIDEO_GOLDENS"] = str(folder)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        pytest.main(["-q", "-p", "no:cacheprovider", str(TESTS / "test_parity_models.py")])
    return out.getvalue()


def run(folder: Path) -> tuple[set[str], str]:
    """Names of the failed tests, and the output."""
    output = forked.fork(parity, folder).told()  # the folder is read when the tests are collected: a fresh process
    return set(re.findall(r"^FAILED \S+::(test_\S+)", output, re.MULTILINE)), output


def test_nothing_stored_is_passed_over(tmp_path: Path) -> None:
    models = tmp_path / "models"
    add_case(models, "sound")
    add_case(models, "unknown", lambda info: info.update(model="Perceiver"))
    add_case(models, "unread", lambda info: info.update(entropy64=0.5, extra={"norm": 1.0}))
    add_case(models, "wrong", lambda info: info.update(ce_loss64=info["ce_loss64"] * (1 + 1e-6)))
    add_case(models, "missing")
    weights = load_file(models / "missing.weights.safetensors")
    key = next(iter(weights))
    save_file({k: v for k, v in weights.items() if k != key}, models / "missing.weights.safetensors")
    add_case(models, "unused")
    save_file(weights | {"spare": weights[key].clone()}, models / "unused.weights.safetensors")
    (models / "facts.json").write_text(json.dumps({"fact": 1}))
    (models / "orphan.io.safetensors").write_bytes(b"")

    failed, output = run(tmp_path)
    assert not [name for name in failed if "[sound" in name], output
    expected = {
        "test_the_kind_of_model_is_known[unknown]",
        "test_stored_quantity[unread::entropy64::float64]",
        "test_stored_quantity[unread::extra.norm::float32]",
        "test_stored_quantity[wrong::ce_loss64::float64]",
        "test_weights_load_completely[missing]",
        "test_weights_load_completely[unused]",
        "test_the_kind_of_fact_is_known[facts]",
        "test_every_file_belongs_to_a_case",
    }
    assert expected <= failed, output
    assert not [name for name in failed if "[wrong" in name and "ce_loss64::float64" not in name]


@pytest.mark.parametrize("made", [True, False])
def test_a_folder_without_models_is_a_failure(tmp_path: Path, made: bool) -> None:
    if made:
        (tmp_path / "goldens" / "models").mkdir(parents=True)
    failed, output = run(tmp_path / "goldens")
    assert not failed
    assert "FileNotFoundError" in output
    assert "passed" not in output


def test_goldens_without_cases_fail(pytestconfig: pytest.Config) -> None:
    """A test over no case would be skipped, and nobody would see it."""
    assert pytestconfig.getini("empty_parameter_set_mark") == "fail_at_collect"
