"""The house: who may import whom, one mechanism in one home, files that fit on a few screens, a fast import."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "internvideo"
FILES = sorted(PACKAGE.rglob("*.py"))

GROUND = (
    "distributed",
    "errors",
    "extras",
    "storage",
    "system",
    "terminal",
    "untrusted",
    "untrusted_arrays",
    "untrusted_pickle",
)
BELOW: dict[str, tuple[str, ...]] = {
    "errors": (),
    "terminal": ("errors",),
    "extras": ("errors",),
    "system": (),
    "distributed": ("errors",),
    "untrusted": ("errors",),
    "untrusted_arrays": ("errors", "untrusted"),
    "untrusted_pickle": (),
    "storage": ("errors", "system", "terminal", "untrusted", "untrusted_arrays"),
    "plots": GROUND,
    "metrics": (),
    "objectives": (),
    "video": GROUND,
    "data": ("video", *GROUND),
    "datasets": ("data", "video", *GROUND),
    "sample_world": ("data", "video", *GROUND),
    "models": GROUND,
    "weights": ("models", "data", "video", *GROUND),
    "training": ("weights", "models", "objectives", "data", "video", "datasets.class_names", *GROUND),
}
BELOW["pretraining"] = ("training", *BELOW["training"])
BELOW["tasks"] = ("pretraining", "datasets", "sample_world", "metrics", "plots", *BELOW["pretraining"])
BELOW["model_table"] = ("tasks", *BELOW["tasks"])
BELOW["recipe"] = ("tasks", *BELOW["tasks"])
BELOW["inference"] = ("recipe", "model_table", *BELOW["recipe"])
BELOW["features"] = ("inference", *BELOW["inference"])
BELOW["probing"] = ("features", *BELOW["features"])
BELOW["search"] = ("probing", *BELOW["probing"])
"""Package -> what it may import of the others. Those above (apps, cli, single files beside them) may import all."""

UPPER_ROOMS: dict[str, tuple[str, ...]] = {"apps": ("cli",)}
"""Package -> what it must not import; everything else it may."""

HOMES: dict[str, dict[str, str]] = {
    "scaled_dot_product_attention": {"models/attention.py": "the attention"},
    "backward": {
        "training/step.py": "the step",
        "training/memory.py": "a step without values",
        "apps/dry_run.py": "the dry run shows one forward and backward without an optimizer step",
    },
    "av.open": {
        "video/opening.py": "the decoder",
        "video/live.py": "pipes, cameras and addresses",
        "video/writer.py": "the encoder",
    },
    "print": {},
    "typer.echo": {"terminal.py": "what is printed"},
    "Console": {},
    "yaml.safe_load": {},
    "yaml.YAML": {},
    "csv.reader": {"untrusted.py": "rows of cells"},
    "csv.DictReader": {},
    "json.load": {},
    "json.loads": {"weights/unpickle.py": "what its parent process tells it; it imports the standard library alone"},
    "json.JSONDecoder": {
        "untrusted.py": "JSON",
        "datasets/reading.py": "the lines of a list that was parsed before, for a message",
    },
    "gzip.open": {},
    "gzip.decompress": {"data/tokenizer.py": "the vocabulary of the package"},
    "gzip.GzipFile": {"untrusted.py": "packed annotations"},
    "np.load": {},
    "np.fromfile": {},
    "np.memmap": {"search/segments.py": "vectors of a collection, whose shape its database tells"},
    "np.genfromtxt": {},
    "np.loadtxt": {},
    "zipfile.ZipFile": {"untrusted_arrays.py": ".npz", "weights/torch_archive.py": "checkpoints, without rights"},
    "tarfile.open": {"data/shard_files.py": "shards", "data/packing/pack.py": "shards that are written"},
    "save_file": {"storage.py": "weights out"},
    "safe_open": {"storage.py": "weights in"},
}
"""A call -> the files that may make it, and what for."""

FORBIDDEN_CALLS = ("torch.save", "torch.load", "torch.jit.load", "pickle.load", "pickle.loads", "pickle.Unpickler")
FORBIDDEN_CALLS += ("yaml.load", "eval", "exec", "cv2.VideoCapture")


@functools.cache
def parsed(source: str) -> list[ast.AST]:
    """All nodes of a file."""
    return list(ast.walk(ast.parse(source)))


@functools.cache
def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def room_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else path.stem


def imported(source: str) -> Iterator[str]:
    """Dotted names of all modules that a file imports, wherever in it; `from a import b` gives a.b."""
    for node in parsed(source):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def wrong_imports(room: str, source: str) -> list[str]:
    """What a file of a room imports against the table."""
    names = list(imported(source))
    own = [name.removeprefix("internvideo.") for name in names if name.startswith("internvideo.")]
    own = [name for name in own if name != "__version__"]
    if room not in BELOW:
        banned = () if room in ("cli", "__main__") else UPPER_ROOMS.get(room, ("cli",))
        return [name for name in own if name.split(".")[0] in banned]
    allowed = (room, *BELOW[room])
    wrong = [name for name in own if not any(f"{name}.".startswith(f"{place}.") for place in allowed)]
    if room == "metrics":
        others = {name.split(".")[0] for name in names} - {"internvideo", "numpy"}
        wrong += sorted(others - sys.stdlib_module_names)
    return wrong


def modules() -> dict[str, str]:
    """Dotted name below the package -> source."""
    names = {path: ".".join(path.relative_to(PACKAGE).with_suffix("").parts) for path in FILES}
    return {name.removesuffix("__init__").rstrip("."): text_of(path) for path, name in names.items()}


def circles(sources: dict[str, str]) -> list[str]:
    """Modules that import each other in a circle, imports inside functions included."""

    def module_of(name: str) -> str:
        while name and name not in sources:
            name = name.rpartition(".")[0]
        return name

    needs = {
        name: {module_of(other.removeprefix("internvideo.")) for other in imported(text) if "internvideo." in other}
        - {name, ""}
        for name, text in sources.items()
    }
    while ready := [name for name, rest in needs.items() if not rest]:
        needs = {name: rest - set(ready) for name, rest in needs.items() if name not in ready}
    while spare := set(needs) - set().union(*needs.values()):  # what only leads into a circle
        needs = {name: rest for name, rest in needs.items() if name not in spare}
    return sorted(needs)


@functools.cache
def calls(source: str) -> list[str]:
    return [ast.unparse(node.func) for node in parsed(source) if isinstance(node, ast.Call)]


def is_call(found: str, name: str) -> bool:
    """`name` as it is, or as the last part of a longer one ("loss.backward"); a builtin only as it is."""
    return found == name or (name not in ("eval", "exec", "print") and found.endswith(f".{name}"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_follow_the_table(path: Path) -> None:
    assert wrong_imports(room_of(path), text_of(path)) == []


def test_every_room_is_in_the_table() -> None:
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert folders <= {*BELOW, *UPPER_ROOMS, "cli"}
    assert set(BELOW) <= folders | {path.stem for path in PACKAGE.glob("*.py")}


def test_no_folder_holds_more_than_about_twenty_files() -> None:
    counts = {str(path.parent.relative_to(PACKAGE)): 0 for path in FILES}
    for path in FILES:
        counts[str(path.parent.relative_to(PACKAGE))] += path.name != "__init__.py"
    assert {name: count for name, count in counts.items() if count > 23} == {}


def test_models_are_asked_what_they_can_not_of_which_class_they_are() -> None:
    """Classes of models in `isinstance`: the few places that tell two kinds of a task's models apart."""
    kinds = ("Module", "Encoder", "Classifier", "Backbone", "Network")
    trees = {path: parsed(text_of(path)) for path in FILES}
    models = {
        node.name
        for path, tree in trees.items()
        if path.parent.name == "models" or path.name == "model.py"
        for node in tree
        if isinstance(node, ast.ClassDef) and any(ast.unparse(base).endswith(kinds) for base in node.bases)
    } - {"Normalize", "Block"}
    asking = {
        str(path.relative_to(PACKAGE))
        for path, tree in trees.items()
        for node in tree
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "isinstance" and len(node.args) == 2
        if models & {part.id for part in ast.walk(node.args[1]) if isinstance(part, ast.Name)}
    }
    assert models >= {"VideoMAEClassifier", "ActionDetector", "TCANet", "VideoLanguage"}
    assert len(asking) <= 5, asking


def test_no_module_imports_in_a_circle() -> None:
    assert circles(modules()) == []


def test_circles_are_seen_wherever_the_import_stands() -> None:
    one, two = "def f():\n    from internvideo.two import g\n", "from internvideo import one\n"
    assert circles({"one": one, "two": two, "three": "from internvideo.one import f\n", "four": ""}) == ["one", "two"]


def test_the_file_tree_is_the_one_in_the_page() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "file_tree.py", "--check"], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("room", "source", "wrong"),
    [
        ("models", "from internvideo.objectives.masking import tube_mask", ["objectives.masking.tube_mask"]),
        ("models", "def f():\n    from internvideo import data", ["data"]),
        ("training", "from internvideo.pretraining.masked import MaskedStage", ["pretraining.masked.MaskedStage"]),
        ("training", "from internvideo.data.batch import Batch", []),
        ("objectives", "import internvideo.tasks.table", ["tasks.table"]),
        ("tasks", "from internvideo.inference import loading", ["inference.loading"]),
        ("video", "from internvideo.data.sample import Sample", ["data.sample.Sample"]),
        ("metrics", "import numpy as np, json, torch", ["torch"]),
        ("pipeline", "from internvideo.cli.main import main", ["cli.main.main"]),
        ("pipeline", "from internvideo.training import loop", []),
    ],
)
def test_the_table_catches_a_wrong_import(room: str, source: str, wrong: list[str]) -> None:
    assert wrong_imports(room, source) == wrong


@pytest.mark.parametrize("name", HOMES)
def test_one_mechanism_has_one_home(name: str) -> None:
    found = {
        str(path.relative_to(PACKAGE)) for path in FILES if any(is_call(call, name) for call in calls(text_of(path)))
    }
    assert found == set(HOMES[name])


@pytest.mark.parametrize("name", FORBIDDEN_CALLS)
def test_what_nobody_calls(name: str) -> None:
    assert [path for path in FILES if any(is_call(call, name) for call in calls(text_of(path)))] == []


def test_calls_are_seen_wherever_they_stand() -> None:
    found = calls("def f():\n    (a / b).backward()\n    model.eval()\n    F.scaled_dot_product_attention(q, k, v)")
    assert is_call(found[0], "backward")
    assert not any(is_call(call, "eval") for call in found)
    assert any(is_call(call, "scaled_dot_product_attention") for call in found)


def test_files_stay_below_400_lines() -> None:
    files = [*FILES, *ROOT.glob("tests/**/*.py"), *ROOT.glob("benchmarks/*.py"), *ROOT.glob("examples/*.py")]
    long = {str(path.relative_to(ROOT)): n for path in files if (n := len(path.read_text().splitlines())) > 400}
    assert long == {}


@pytest.mark.parametrize("name", ["internvideo", "internvideo.cli.main"])
def test_the_package_and_its_help_import_neither_torch_nor_numpy(name: str) -> None:
    program = f"import sys, {name}; print(sorted({{'torch', 'numpy', 'av', 'transformers'}} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT / "src", check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"


def test_public_names_come_from_their_homes() -> None:
    import internvideo

    assert set(internvideo._MODULES) | {"__version__"} == set(internvideo.__all__) == set(dir(internvideo))
    for name, home in internvideo._MODULES.items():
        assert getattr(internvideo, name) is getattr(sys.modules[home], name)
        assert home.startswith("internvideo.")
    with pytest.raises(AttributeError, match="no attribute 'no_such_name'"):
        _ = internvideo.no_such_name
    assert internvideo.list_models().keys() >= {"videomae-s-pretrain", "uniformerv2-b16"}


def test_public_names_and_their_types_agree() -> None:
    """What type checkers see (the imports under TYPE_CHECKING) is what runs (the table)."""
    import internvideo

    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen == internvideo._MODULES
    assert f'version = "{internvideo.__version__}"' in (ROOT / "pyproject.toml").read_text()


def test_sources_are_public() -> None:
    """No reader has the specification that the repository was built from; docs/sources.md names what counts."""
    private = re.compile(
        r"\bspec/|\b(models|tasks|dependencies)\.md,? [A-Z0-9s]|\b[Ss]pec [A-Z0-9]"
        r"|[(,;: ][A-I]\.\d[),.:;]"  # a section alone, "(G.4)"
    )
    places = [*ROOT.glob("src/**/*.py"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("recipes/**/*.yaml")]
    places += [*ROOT.glob("benchmarks/*"), *ROOT.glob("examples/*.py"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    cited = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in places
        if path.is_file()
        for line in path.read_text(encoding="utf-8").splitlines()
        if private.search(line)
    ]
    assert cited == []
    known = (ROOT / "docs" / "sources.md").read_text(encoding="utf-8")
    named = re.compile(r"(?:Source: |\()([a-z_0-9]+\.py)\b")
    ours = {path.name for folder in ("src", "tests", "scripts", "benchmarks") for path in (ROOT / folder).rglob("*.py")}
    for path in ROOT.glob("src/**/*.py"):
        for name in named.findall(path.read_text(encoding="utf-8")):
            assert name in ours or name in known, (path.name, name)
