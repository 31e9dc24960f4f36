"""The lean core and the extras: what needs none works without all of them; what needs one tells the pip command."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

from internvideo import extras
from internvideo.extras import EXTRAS, ExtraError

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
DECLARED: dict[str, list[str]] = PROJECT["optional-dependencies"]
MODULES = {"scikit-learn": "sklearn", "python-multipart": "python_multipart", "faiss-cpu": "faiss", "pylance": "lance"}


def names(lines: list[str]) -> list[str]:
    return [re.split(r"[\[<>=!~ ;]", line)[0] for line in lines]


def test_the_core_is_lean() -> None:
    assert len(PROJECT["dependencies"]) <= 10


@pytest.mark.parametrize(("package", "through"), [("rich", "typer"), ("tqdm", "huggingface_hub")])
def test_a_package_that_comes_with_another_does_come(package: str, through: str) -> None:
    assert through in names(PROJECT["dependencies"])
    needed = [line for line in metadata.requires(through) or [] if "extra ==" not in line]
    assert package in names(needed)


def test_the_table_of_extras_is_that_of_the_project() -> None:
    assert set(EXTRAS) == set(DECLARED) - {"all", "dev", "docs"}
    for name, extra in EXTRAS.items():
        assert [MODULES.get(package, package) for package in names(DECLARED[name])] == list(extra.modules)


def test_all_is_all_and_dev_has_what_the_tests_need() -> None:
    (everything,) = DECLARED["all"]
    assert set(everything[len("internvideo[") : -1].split(",")) == set(EXTRAS)
    (own,) = (line for line in DECLARED["dev"] if line.startswith("internvideo["))
    inside = own[len("internvideo[") : -1].split(",")
    assert set(EXTRAS) - set(inside) == {"torchcodec", "miniworld"}  # their tests skip


def block(monkeypatch: pytest.MonkeyPatch, extra: str) -> None:
    for module in EXTRAS[extra].modules:
        monkeypatch.setitem(sys.modules, module, None)


@pytest.mark.parametrize("extra", EXTRAS)
def test_a_missing_extra_is_one_line_with_the_command(extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    block(monkeypatch, extra)
    with pytest.raises(ExtraError) as caught:
        extras.require(extra, "this")
    line = str(caught.value)
    assert line.startswith("this: needs ")
    assert line.endswith(f"pip install 'internvideo[{extra}]'")
    assert "\n" not in line
    assert all(module in line for module in EXTRAS[extra].modules)


def _fit(folder: Path) -> None:
    from internvideo.cli.fit import fit

    fit(folder, "nothing")


def _demo(folder: Path) -> None:
    from internvideo.apps.demo import run_demo

    run_demo(folder / "demo")


def _export(folder: Path) -> None:
    from internvideo.inference.export import export
    from internvideo.inference.loading import load

    small = {"width": 32, "depth": 1, "heads": 2}
    export(load("videomae-s-classifier", weights="random", overrides=small), folder / "model.onnx")


def _parquet(folder: Path) -> None:
    from internvideo.features.vector_files import check_output

    check_output(folder / "vectors.parquet")


def _cloud(folder: Path) -> None:
    from internvideo.data.shard_files import read_shard

    read_shard("s3://bucket/0.tar")


def _navigation(folder: Path) -> None:
    from internvideo.tasks.navigation.world.free_space import FreeSpace

    FreeSpace(np.zeros((1, 4)), (0.0, 0.0, 9.0, 9.0), 0.1)


def _persons(folder: Path) -> None:
    import torch

    from internvideo.apps.persons import PersonDetector

    PersonDetector("nothing", torch.device("cpu"))


def _captions(folder: Path) -> None:
    from internvideo.tasks.captioning.predict import compute_caption_metrics

    compute_caption_metrics({"1": ["a dog"]}, {"1": ["a dog"]})


def _track(folder: Path) -> None:
    from internvideo.training.logging import _event_writer

    _event_writer(folder, 0)


@pytest.mark.parametrize(
    ("extra", "use"),
    [
        ("fit", _fit),
        ("report", _demo),
        ("export", _export),
        ("parquet", _parquet),
        ("cloud", _cloud),
        ("navigation", _navigation),
        ("persons", _persons),
        ("captions", _captions),
        ("track", _track),
    ],
)
def test_what_needs_an_extra_tells_it_before_any_work(
    extra: str, use: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    block(monkeypatch, extra)
    with pytest.raises(ExtraError, match=rf"pip install 'internvideo\[{extra}\]'"):
        use(tmp_path)
    assert not any(tmp_path.iterdir())


def test_a_picture_without_matplotlib_is_told_and_does_not_end_a_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from internvideo.plots.charts import confusion_matrix
    from internvideo.plots.style import write_plot

    block(monkeypatch, "plots")
    write_plot(tmp_path / "confusion.svg", lambda: confusion_matrix(np.eye(2, dtype=int), ["a", "b"]))
    assert not any(tmp_path.iterdir())
    assert capsys.readouterr().err == (
        "confusion.svg is not written: plots: needs matplotlib, which is not installed; "
        "pip install 'internvideo[plots]'\n"
    )


LEAN = """
import json, pkgutil, sys
from importlib import import_module
from pathlib import Path
for name in json.loads(sys.argv[1]):
    sys.modules[name] = None
import internvideo
for module in pkgutil.walk_packages(internvideo.__path__, "internvideo."):
    # The last three are nothing without their extra, which is asked for before they are imported.
    if not module.name.endswith(("__main__", "search.server", "search.mcp", "tables.checks")):
        import_module(module.name)
import numpy as np
from internvideo.video.writer import write_video
folder = Path(sys.argv[2])
frames = np.random.default_rng(0).integers(0, 255, (20, 64, 64, 3), dtype=np.uint8)
write_video(folder / "clip.mp4", frames, 10)
small = {"width": 32, "depth": 1, "heads": 2, "num_classes": 3, "image_size": 32}
model = internvideo.load("videomae-s-classifier", weights="random", overrides=small)
print(model.encode_video(folder / "clip.mp4").shape, len(model.classify(folder / "clip.mp4")[0]))
"""


def test_loading_embedding_and_classifying_need_no_extra(tmp_path: Path) -> None:
    # torch itself imports these where they are there, and asks for jinja2 and fsspec by name.
    torchs = {"jinja2", "markupsafe", "fsspec"}
    blocked = sorted({module for extra in EXTRAS.values() for module in extra.modules} - torchs)
    told = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(LEAN), json.dumps(blocked), str(tmp_path)],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert told.returncode == 0, told.stderr[-2000:]
    assert told.stdout.split() == ["torch.Size([1,", "32])", "3"]
