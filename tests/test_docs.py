"""What the documents say is true: commands parse, files exist, links resolve, the README's program runs."""

import ast
import dataclasses
import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import in_process
import pytest
import torch
from typer.main import get_command

from internvideo.cli.evaluate import task_command
from internvideo.cli.main import app
from internvideo.data.loader import LoaderSettings
from internvideo.data.settings import MixAugment, SamplingSettings
from internvideo.recipe import read_recipe, shipped_recipes
from internvideo.storage import read_safetensors, write_safetensors
from internvideo.tasks import STAGES, TASKS
from internvideo.training.settings import LoopSettings, OptimizerSettings, ScheduleSettings

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "internvideo"
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "RESULTS.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
TEXTS = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in DOCUMENTS}
README = TEXTS["README.md"]
RECIPES = shipped_recipes()


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.S | re.M)


def shell_lines(text: str) -> Iterator[str]:
    for block in blocks(text, "(?:bash|sh)"):
        yield from (line.strip() for line in re.sub(r"\\\n\s*", "", block).splitlines() if line.strip())


def commands() -> Iterator[tuple[str, str]]:
    """(where, command line that starts with internvideo)."""
    for name, text in TEXTS.items():
        for line in shell_lines(text):
            start = re.search(r"(?:^|--no-python )(internvideo .*)", line)
            if start:
                yield name, start[1].split("  #")[0]
    for name, path in RECIPES.items():
        for line in path.read_text(encoding="utf-8").splitlines():
            told = r"(?:train|evaluate|extract|ensemble|score) |prepare \w+ --"
            start = re.match(rf"#.*?\b(internvideo (?:{told}).*)", line)
            if start:
                yield name, start[1]


COMMANDS = list(commands())
GROUP: Any = get_command(app)


@pytest.mark.parametrize(("where", "line"), COMMANDS, ids=[f"{where}-{n}" for n, (where, _) in enumerate(COMMANDS)])
def test_a_command_exists_with_its_options(where: str, line: str) -> None:
    name, *arguments = shlex.split(line)[1:]
    assert name in GROUP.commands, f"{where}: {line}"
    command = GROUP.commands[name]
    if name == "evaluate":  # its commands are the tasks
        name, *arguments = arguments
        command = command.get_command(None, name)
    context = command.make_context(name, list(arguments))  # an unknown option raises
    if name == "train":
        recipe = context.params["recipe"]
        read_recipe(ROOT / recipe if recipe.endswith(".yaml") else recipe, context.params["overrides"] or [])
    if name == "list":
        assert context.params["what"] in ("models", "stages", "tasks", "recipes", "benchmarks")


def test_commands_were_found() -> None:
    assert {line.split()[1] for _, line in COMMANDS} >= {"demo", "sample-world", "train", "evaluate", "score", "list"}


def test_a_wrong_option_would_be_noticed() -> None:
    with pytest.raises(Exception, match="No such option"):
        GROUP.commands["demo"].make_context("demo", ["--dta", "x"])


@pytest.mark.parametrize("name", RECIPES)
def test_changes_that_a_recipe_suggests_are_settings(name: str) -> None:
    comment = " ".join(line for line in RECIPES[name].read_text(encoding="utf-8").splitlines() if line.startswith("#"))
    for change in re.findall(r"\b(?:model|data|optimizer|schedule|loop|settings)\.[\w.]+=[\w./+-]*\w", comment):
        key, value = change.split("=")
        kept: Any = read_recipe(name, [change]).resolved()
        for part in key.split("."):
            kept = kept[part]
        assert str(kept).lower() == value.lower() or float(kept) == float(value), change


def test_the_glossary_has_each_word_once_and_names_what_exists() -> None:
    rows = re.findall(r"^\| \*\*(.+?)\*\* \| (.+) \|$", TEXTS["docs/glossary.md"], re.M)
    words = [word for word, _ in rows]
    assert len(words) == len(set(words))
    assert set(words) >= {
        "clip", "view", "frame", "step", "stage", "task", "token", "mask", "metric", "protocol", "tubelet", "key frame",
        "window", "weights", "checkpoint",
    }  # fmt: skip
    spoken = " ".join(meaning for _, meaning in rows)
    sources = "\n".join(path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py"))
    named = set(re.findall(r"`(\w+|loop\.\w+)`", spoken))
    assert not [name for name in named if not re.search(rf"\b{name.removeprefix('loop.')}\b", sources)]
    commands = [*GROUP.commands.values(), *map(task_command, TASKS)]
    options = {option for command in commands for parameter in command.params for option in parameter.opts}
    assert set(re.findall(r"`(--[\w-]+)`", spoken)) <= options
    assert all("docs/glossary.md" in TEXTS[name] for name in ("README.md", "CONTRIBUTING.md"))


@pytest.mark.parametrize("name", TEXTS)
def test_make_targets_exist(name: str) -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    used = set(re.findall(r"^make (\w+)", "\n".join(shell_lines(TEXTS[name])), re.M))
    used |= set(re.findall(r"`make (\w+)", TEXTS[name]))
    assert used <= targets


@pytest.mark.parametrize("name", TEXTS)
def test_links_resolve(name: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", TEXTS[name]):
        if not target.startswith(("http://", "https://")):
            assert ((ROOT / name).parent / target.split("#")[0]).exists(), target


def named_files(text: str) -> set[str]:
    """Paths in code spans and in the comments of shell blocks, but for what a run writes."""
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.S | re.M))
    paths = {span for span in spans if re.fullmatch(r"[\w.-]+(/[\w.-]+)*(/|\.(py|md|yaml|toml|j2))", span)}
    return {path for path in paths if not path.startswith(("runs/", "."))} - {"utils.py"}


@pytest.mark.parametrize("name", TEXTS)
def test_named_files_exist(name: str) -> None:
    places = (ROOT, PACKAGE, (ROOT / name).parent)
    missing = [path for path in named_files(TEXTS[name]) if not any((place / path).exists() for place in places)]
    assert not missing


def test_named_recipes_exist() -> None:
    for name, text in TEXTS.items():
        for recipe in re.findall(r"\b((?:paper|sample|benchmarks)/\w+)\b(?!/|\.py|\.md)", text):
            known = recipe in RECIPES or any(other.startswith(recipe) for other in RECIPES)
            assert known, f"{name}: {recipe}"


def test_every_setting_is_explained() -> None:
    text = TEXTS["docs/recipes.md"]
    first_error = set(re.findall(r"`([\w.]+)`", text))
    groups: dict[str, Any] = {
        "data.": {name for stage in STAGES.values() for name in stage.data.model_fields}
        - {"sampling", "augment", "loader"},
        "data.sampling.": SamplingSettings.model_fields,
        "data.augment.": MixAugment.model_fields,
        "data.loader.": [field.name for field in dataclasses.fields(LoaderSettings)],
        "optimizer.": OptimizerSettings.model_fields,
        "schedule.": ScheduleSettings.model_fields,
        "loop.": LoopSettings.model_fields,
    }
    for prefix, names in groups.items():
        assert {prefix + name for name in names} <= first_error, prefix
    of_stages = {f"settings.{name}" for entry in STAGES.values() for name in entry.settings.model_fields}
    settings = {name for name in first_error if name.startswith("settings.")}
    assert settings == of_stages


PROGRAMS = {name: blocks(text, "python") for name, text in TEXTS.items()}
PROGRAMS |= {path.name: [path.read_text(encoding="utf-8")] for path in sorted((ROOT / "examples").glob("*.py"))}


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_parse_and_their_imports_exist(name: str) -> None:
    for program in PROGRAMS[name]:
        for node in ast.walk(ast.parse(program)):
            if isinstance(node, ast.ImportFrom) and node.module:
                module = importlib.import_module(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names)


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) < 150


def test_the_example_is_the_readme_s() -> None:
    _, block = blocks(README, "python")
    example = (ROOT / "examples" / "train_and_evaluate.py").read_text(encoding="utf-8")
    assert example.endswith(block)
    assert len([line for line in block.split("__main__", 1)[1].splitlines() if line.strip()]) <= 10


def test_the_readme_s_program_runs(tmp_path: Path) -> None:
    _, block = blocks(README, "python")
    assert "clips=200)" in block
    smaller = block.replace("clips=200)", "clips=60, long_videos=1), workers=1")
    (tmp_path / "program.py").write_text(smaller, encoding="utf-8")
    done = in_process.program(tmp_path / "program.py", cwd=tmp_path)
    assert done.code == 0, done.err
    assert "top1" in done.out
    assert (tmp_path / "runs/first/recognition.npz").is_file()
    named = {name for text in TEXTS.values() for name in re.findall(r"runs/world/(\w+(?:\.\w+)*)", text)}
    assert {"clips", "train.jsonl"} <= named
    assert [name for name in named if not (tmp_path / "runs/world" / name).exists()] == []


@pytest.mark.parametrize("head", ["head", "proj.linear"])
def test_a_head_is_cut_to_other_classes(tmp_path: Path, head: str) -> None:
    weight, bias = torch.arange(12.0).view(4, 3), torch.arange(4.0)
    write_safetensors(
        tmp_path / "old.safetensors",
        {f"{head}.weight": weight, f"{head}.bias": bias, "body": torch.ones(2)},
        {"classes": '["a", "b", "c", "d"]', "recipe": "{}"},
    )
    (tmp_path / "classes.txt").write_text("d\nb\n", encoding="utf-8")
    script = ROOT / "examples" / "keep_classes.py"
    done = in_process.program(script, "old.safetensors", "classes.txt", "new.safetensors", cwd=tmp_path)
    assert done.code == 0, done.err
    state, metadata = read_safetensors(tmp_path / "new.safetensors")
    assert torch.equal(state[f"{head}.weight"], weight[[3, 1]])
    assert torch.equal(state[f"{head}.bias"], bias[[3, 1]])
    assert metadata["classes"] == '["d", "b"]'
    (tmp_path / "classes.txt").write_text("d\nx\n", encoding="utf-8")
    refused = in_process.program(script, "old.safetensors", "classes.txt", "other.safetensors", cwd=tmp_path)
    assert refused.code == 2
    assert "'x'" in refused.err
    assert not (tmp_path / "other.safetensors").exists()
    done = in_process.program(script, "old.safetensors", "classes.txt", "other.safetensors", "--fresh", cwd=tmp_path)
    assert done.code == 0
    state, _ = read_safetensors(tmp_path / "other.safetensors")
    assert torch.equal(state[f"{head}.weight"][0], weight[3])
    assert state[f"{head}.weight"][1].abs().max() < 0.2
