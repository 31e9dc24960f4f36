"""Import optional packages, or name the pip command of the extra (`internvideo[...]`) that installs them."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

from internvideo.errors import InternVideoError


@dataclass(frozen=True)
class Extra:
    """An extra of the package.

    Attributes:
        modules: modules of its packages that this package imports.
        purpose: what the extra is for.
    """

    modules: tuple[str, ...]
    purpose: str


EXTRAS: dict[str, Extra] = {
    "plots": Extra(("matplotlib",), "plots beside the metrics: confusion matrices, timelines, boxes"),
    "report": Extra(("jinja2", "markupsafe", "matplotlib", "sklearn", "psutil"), "`internvideo demo` and its report"),
    "fit": Extra(("sklearn", "scipy", "threadpoolctl"), "classifiers of your own classes, open-set tests"),
    "navigation": Extra(("scipy",), "houses in which navigation agents move"),
    "miniworld": Extra(("miniworld", "pyglet"), "the houses of navigation rendered by OpenGL"),
    "captions": Extra(("pycocoevalcap", "nltk"), "CIDEr, BLEU, ROUGE and METEOR of captions"),
    "persons": Extra(("transformers",), "person detection in key frames"),
    "parquet": Extra(("pyarrow",), "manifests as .parquet or .arrow tables, tables of vectors as .parquet"),
    "lance": Extra(("lance", "pyarrow"), "tables of vectors as .lance"),
    "ray": Extra(("ray", "pyarrow"), "embed, extract, index, classify and localize on a Ray cluster"),
    "cloud": Extra(("fsspec",), "videos and shards at URLs (s3://, gs://, hf:// ...)"),
    "track": Extra(("tensorboard",), "curves of a training run in TensorBoard"),
    "torchcodec": Extra(("torchcodec",), "decoding by TorchCodec instead of PyAV"),
    "mteb": Extra(("mteb", "datasets"), "evaluation by MTEB, the benchmark of embeddings"),
    "search": Extra(("fastapi", "uvicorn", "python_multipart", "mcp"), "the search page, its API, tools for agents"),
    "ann": Extra(("faiss",), "approximate indexes of large collections"),
    "postgres": Extra(("psycopg",), "collections whose vectors a PostgreSQL database keeps"),
    "export": Extra(("onnx", "onnxscript", "onnxruntime"), "models as ONNX files"),
}
"""Name of an extra in pyproject.toml -> its modules and purpose; a test compares the two lists."""


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
