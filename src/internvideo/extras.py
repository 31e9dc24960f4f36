"""Import optional packages, or name the pip command of the extra (`internvideo[...]`) that installs them."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

from internvideo.errors import InternVideoError


@dataclass(frozen=True)
class Extra:
    """An extra of the package.

    Attributes:
        modules: what code imports of it.
        purpose: what it is for.
    """

    modules: tuple[str, ...]
    purpose: str


EXTRAS: dict[str, Extra] = {
    "plots": Extra(("matplotlib",), "pictures beside the metrics: confusion, timelines, boxes"),
    "report": Extra(("jinja2", "markupsafe", "matplotlib", "sklearn", "psutil"), "`internvideo demo` and its report"),
    "fit": Extra(("sklearn", "scipy", "threadpoolctl"), "classifiers of your own classes, open-set tests"),
    "navigation": Extra(("scipy",), "houses to walk in"),
    "miniworld": Extra(("miniworld", "pyglet"), "houses rendered by OpenGL"),
    "captions": Extra(("pycocoevalcap", "nltk"), "CIDEr, BLEU, ROUGE and METEOR of captions"),
    "persons": Extra(("transformers",), "a person detector"),
    "parquet": Extra(("pyarrow",), "manifests as .parquet or .arrow tables, tables of vectors as .parquet"),
    "lance": Extra(("lance", "pyarrow"), "tables of vectors as .lance"),
    "ray": Extra(("ray", "pyarrow"), "embed, extract, index, classify and localize on a Ray cluster"),
    "cloud": Extra(("fsspec",), "shards on other machines"),
    "track": Extra(("tensorboard",), "curves of a training run in TensorBoard"),
    "torchcodec": Extra(("torchcodec",), "a second decoder"),
    "mteb": Extra(("mteb", "datasets"), "the benchmark of embeddings"),
    "search": Extra(("fastapi", "uvicorn", "python_multipart", "mcp"), "the search page, its API, tools for agents"),
    "ann": Extra(("faiss",), "approximate indexes of large collections"),
    "export": Extra(("onnx", "onnxscript", "onnxruntime"), "models as ONNX files"),
}
"""Extra of pyproject.toml -> what it installs. Another table there would be a second home: tests compare the two."""


class ExtraError(InternVideoError):
    """A feature needs packages of an extra that is not installed."""


def pip_install(extra: str) -> str:
    """Return the command that installs an extra."""
    return f"pip install 'internvideo[{extra}]'"


def missing(extra: str) -> tuple[str, ...]:
    """List the modules of an extra that are not installed."""
    return tuple(name for name in EXTRAS[extra].modules if find_spec(name) is None)


def require(extra: str, where: object) -> None:
    """Check that an extra is installed.

    Args:
        extra: a key of `EXTRAS`.
        where: the feature that needs it, such as "internvideo fit".

    Raises ExtraError: one of its packages is not installed.
    """
    if lacking := missing(extra):
        verb = "is" if len(lacking) == 1 else "are"
        raise ExtraError(where, f"needs {', '.join(lacking)}, which {verb} not installed", "", pip_install(extra))
