"""Every stored quantity of every reference model, and the facts stored beside them: one test each.

The folder decides what is tested: whatever JSON lies in GOLDENS/models is a case. An unknown kind of case, a stored
quantity that nothing computes, a missing or unused weight is a failure. Tolerances: GOLDENS/models/README.md.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import pytest
import torch
from _pytest.mark.structures import ParameterSet
from goldens_folder import GOLDENS
from parity_families import family_of
from parity_families.case import Case, Family, Value
from parity_families.facts import FACTS, fact_of

from internvideo.weights.state import reference_names

pytestmark = pytest.mark.parity

FOLDER = GOLDENS / "models"
FILES = sorted(FOLDER.glob("*.json"))
if not FILES:
    raise FileNotFoundError(f"no reference models in {FOLDER}")
CONTENT = {path.stem: json.loads(path.read_text()) for path in FILES}
CASES = {path.stem: Case(path) for path in FILES if "model" in CONTENT[path.stem]}

GRADIENT_TOLERANCE, LOSS_TOLERANCE, ZERO = 1e-7, 1e-5, 1e-10
CHECKED_HERE = ("n_params", "least_sensitive", "float32_weights")


def family(case: Case) -> Family:
    found = family_of(case)
    assert found is not None, f"{case.name}: unknown kind of model {case.info['model']!r}"
    return found


@cache
def computed(name: str, dtype: torch.dtype, perturbed: str = "") -> Mapping[str, Value]:
    case = Case(CASES[name].path, perturbed)
    values = family(case).compute(case, dtype)
    return {key: value.detach() if isinstance(value, torch.Tensor) else value for key, value in values.items()}


def is_gradient(quantity: str) -> bool:
    return "grad" in quantity


def precisions(case: Case, quantity: str) -> list[str]:
    """A quantity in double precision is compared with both runs, but gradients are only promised for the exact one."""
    if quantity in CHECKED_HERE:
        return []
    if is_gradient(quantity):
        return ["float64"]
    tensor64 = case.info["io"].get(quantity, [""])[0] == "float64"
    return ["float64", "float32"] if tensor64 or quantity.endswith("64") else ["float32"]


def named(*values: str) -> ParameterSet:
    return pytest.param(*values, id="::".join(values))


def quantities() -> list[ParameterSet]:
    found = []
    for name, case in CASES.items():
        kind = family_of(case)
        if kind is not None:  # the others fail in test_the_kind_of_model_is_known
            for quantity in case.quantities(kind):
                found += [named(name, quantity, dtype) for dtype in precisions(case, quantity)]
    return found


def size(stored: object) -> float:
    """How far a float64 tensor exceeds the size of outputs ("of order 1 to 5") that the float32 tolerance is meant for.

    Only tensors inside the models do (one reaches 68): there float32 itself resolves no more than 1e-5.
    """
    exact = isinstance(stored, torch.Tensor) and stored.dtype == torch.float64
    return max(1.0, float(stored.abs().max()) / 5) if exact else 1.0  # type: ignore[attr-defined]  # a tensor then


def close(ours: object, stored: object, absolute: float, relative: float = 0.0) -> None:
    found, expected = torch.as_tensor(ours), torch.as_tensor(stored)
    assert found.shape == expected.shape, f"{tuple(found.shape)} for {tuple(expected.shape)}"
    difference = (found.double() - expected.double()).abs()
    allowed = absolute + relative * expected.double().abs()
    assert bool((difference <= allowed).all()), f"off by {difference.max():.3g}, allowed {allowed.min():.3g}"


@pytest.mark.parametrize(("name", "quantity", "dtype"), quantities())
def test_stored_quantity(name: str, quantity: str, dtype: str) -> None:
    case = CASES[name]
    kind = family(case)
    values = computed(name, getattr(torch, dtype))
    assert quantity in values, f"nothing computes {quantity}; computed: {', '.join(values)}"
    ours, stored = values[quantity], case.stored(quantity)
    if isinstance(stored, dict):
        assert isinstance(ours, Mapping)
        assert set(ours) == set(stored), f"parameters {sorted(set(ours) ^ set(stored))}"
        for parameter, norm in stored.items():
            if abs(norm) < ZERO:
                assert ours[parameter] < ZERO, parameter
            else:
                assert ours[parameter] == pytest.approx(norm, rel=GRADIENT_TOLERANCE), parameter
    elif isinstance(stored, list | torch.Tensor):
        close(ours, stored, kind.tolerance64 if dtype == "float64" else kind.tolerance32 * size(stored))
    elif "fp32_vs_fp64" in quantity:  # how far the published float32 run was off: we must do as well as allowed
        assert isinstance(ours, float)
        assert ours <= kind.tolerance32
    elif is_gradient(quantity):
        close(ours, stored, ZERO, GRADIENT_TOLERANCE)
    else:
        close(ours, stored, 0.0, kind.tolerance64 if dtype == "float64" else LOSS_TOLERANCE)


@pytest.mark.parametrize("name", CASES)
def test_the_kind_of_model_is_known(name: str) -> None:
    family(CASES[name])


@pytest.mark.parametrize("name", CASES)
def test_weights_load_completely(name: str) -> None:
    """`load_reference` stops at a missing, unused, mis-shaped or non-finite tensor."""
    case = CASES[name]
    model = family(case).build(case)
    assert not model.training
    if "n_params" in case.info:
        # Counted over the published state dict, buffers included; constants are not in ours.
        assert sum(value.numel() for value in case.stored_weights.values()) == case.info["n_params"]
        constant = {key for key, names in reference_names(model, case.stored_weights).items() if not names}
        published = sum(value.numel() for key, value in case.stored_weights.items() if key not in constant)
        assert sum(value.numel() for value in model.state_dict().values()) == published


@pytest.mark.parametrize("name", CASES)
def test_files_hold_what_the_json_says(name: str) -> None:
    case = CASES[name]
    table = {key: [str(value.dtype).removeprefix("torch."), list(value.shape)] for key, value in case.io.items()}
    assert table == case.info["io"]
    full = {key for key, value in case.stored_weights.items() if value.dtype == torch.float32}
    assert full == set(case.info.get("float32_weights", []))


def sensitive() -> list[ParameterSet]:
    return [named(name, entry[0]) for name, case in CASES.items() for entry in case.info.get("least_sensitive", [])]


@pytest.mark.parametrize(("name", "parameter"), sensitive())
def test_a_wrong_weight_would_be_noticed(name: str, parameter: str) -> None:
    """Even the tensors that the output depends on least cannot be wrong without an output leaving its tolerance."""
    case = CASES[name]
    kind = family(case)
    values = computed(name, torch.float64, parameter)
    outputs = [key for key in case.info["io"] if key not in kind.inputs and key in values and not is_gradient(key)]
    off = [float((torch.as_tensor(values[key]).double() - case.io[key].double()).abs().max()) for key in outputs]
    assert max(off) > kind.tolerance32


def test_every_file_belongs_to_a_case() -> None:
    expected = {f"{stem}.json" for stem in CONTENT} | {"README.md"}
    for name in CASES:
        expected |= {f"{name}.weights.safetensors", f"{name}.io.safetensors"}
    for stem, content in CONTENT.items():
        if "tensors" in content:
            expected.add(f"{stem}.safetensors")
    found = {path.name for path in FOLDER.iterdir()}
    assert found - expected == set(), "files that no test reads"
    assert expected - found <= {"README.md"}, "files missing"


def facts() -> list[ParameterSet]:
    found = []
    for stem, content in CONTENT.items():
        kind = None if stem in CASES else fact_of(content)
        if kind is not None and isinstance(FACTS[kind], dict):
            found += [named(stem, check) for check in FACTS[kind]]
    return found


# A folder of other cases need not have facts; what is in it and is no case is a failure of its own above.
@pytest.mark.parametrize(("stem", "check"), facts() or [("", "")])
def test_stored_fact(stem: str, check: str) -> None:
    if not stem:
        assert facts() == []
        return
    kind = fact_of(CONTENT[stem])
    assert kind is not None
    checks = FACTS[kind]
    assert isinstance(checks, dict)
    checks[check](CONTENT[stem])


@pytest.mark.parametrize("stem", [stem for stem in CONTENT if stem not in CASES])
def test_the_kind_of_fact_is_known(stem: str) -> None:
    """A JSON without a model is a table of facts: checked here, or in the test of the part that it is about."""
    kind = fact_of(CONTENT[stem])
    assert kind is not None, f"{stem}: nothing reads a file with {sorted(CONTENT[stem])}"
    if FACTS[kind] is None:
        others = [path for path in Path(__file__).parent.rglob("test_*.py") if path != Path(__file__)]
        texts = [path.read_text() for path in others]
        assert any(stem in text and "mark.parity" in text for text in texts), f"no parity test reads {stem}"
