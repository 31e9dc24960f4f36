"""Save and load a model as a folder for model hubs: config.json, model.safetensors, README.md (the model card).

config.json has the SHA-256 of model.safetensors, and the metadata of the weights repeats the settings of config.json;
if the two files do not match, the folder is refused. modules.json and config_sentence_transformers.json make the folder
loadable by the sentence-transformers library (`inference.sentence_module`).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from internvideo import untrusted
from internvideo.data.preprocessing import Preprocessing
from internvideo.errors import RecipeError, WeightsError, unwritable
from internvideo.inference.families import Precision
from internvideo.model_table import MODELS, create_model
from internvideo.models.declared import limit_model_size
from internvideo.models.skip_init import check_all_loaded, skip_init
from internvideo.storage import write_text
from internvideo.tasks.protocol import weights_hash
from internvideo.weights.fetch import is_remote, sha256_of
from internvideo.weights.layouts import flatten_overrides
from internvideo.weights.state import FORMAT_VERSION, check_version, load_state, read_model, save_model

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
SENTENCE_TRANSFORMERS = {
    "modules.json": [{"idx": 0, "name": "0", "path": "", "type": "internvideo.inference.sentence_module.VideoModule"}],
    "config_sentence_transformers.json": {"model_type": "SentenceTransformer", "similarity_fn_name": "cosine"},
}
"""File name -> content for sentence-transformers."""
SETTINGS_KEY = "internvideo"
"""Metadata key of the weights under which the settings are saved."""


class Savable(Protocol):
    """The attributes of a `VideoModel` that are saved."""

    name: str
    preprocessing: Preprocessing
    class_names: tuple[str, ...]
    metadata: dict[str, str]
    precision: Precision

    @property
    def module(self) -> nn.Module:
        """The module that `create_model` built."""

    @property
    def config(self) -> dict[str, object]:
        """The settings from which the model can be built again, as JSON values."""

    @property
    def capabilities(self) -> frozenset[str]:
        """Supported operations."""

    @property
    def embed_dim(self) -> int:
        """Dimension of an embedding."""


def save(model: Savable, folder: Path) -> Path:
    """Write the files of a model; other files of the folder are not changed.

    The files are written to a temporary folder first, so that a full disk changes nothing. config.json is moved last,
    because a folder without it is not read.

    Raises:
        RunError: the folder cannot be written.
    """
    metadata = metadata_to_save(model)
    settings = {"format_version": FORMAT_VERSION, **model.config, "metadata": metadata}
    with atomic_folder(folder, (WEIGHTS, CARD, *SENTENCE_TRANSFORMERS, CONFIG)) as partial:
        save_model(
            partial / WEIGHTS, model.module, {SETTINGS_KEY: json.dumps(settings, sort_keys=True), "format": "pt"}
        )
        digest = sha256_of(partial / WEIGHTS)
        files = {WEIGHTS: {"sha256": digest, "bytes": (partial / WEIGHTS).stat().st_size}}
        write_text(partial / CARD, model_card(model, digest, metadata))
        config = {"library_name": "internvideo", **settings, "files": files}
        for name, content in {**SENTENCE_TRANSFORMERS, CONFIG: config}.items():
            write_text(partial / name, json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
    return folder


def metadata_to_save(model: Savable) -> dict[str, str]:
    """Return the provenance of the weights, without local paths."""
    metadata = {**model.metadata, "weights_sha256": weights_hash(model.module), "precision": model.precision}
    metadata.pop("file_sha256", None)  # of the file that it was read from
    if not is_remote(source := metadata.get("source", "")):
        metadata["source"] = Path(source).name
    return metadata


@contextmanager
def atomic_folder(target: Path, names: Sequence[str]) -> Iterator[Path]:
    """Yield a temporary folder whose files are moved to `target` at the end, in the order of `names`.

    Raises:
        RunError: a full disk, or a folder that cannot be written; existing files are kept.
    """
    folder = Path(os.path.realpath(target))  # resolved, so that the temporary folder is on the same disk
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        yield partial
        if folder.exists():
            for name in names:
                (partial / name).replace(folder / name)
        else:
            partial.rename(folder)
    except OSError as error:
        raise unwritable(target, error, "free space or choose another folder") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def load_folder(folder: Path) -> dict[str, Any]:
    """Read a folder that `save` wrote; return the arguments of `VideoModel` but device and precision.

    Raises:
        WeightsError: files are missing, were changed, or are of a later version.
    """
    config = read_config(folder)
    weights = folder / WEIGHTS
    if not weights.is_file():
        raise WeightsError(weights, "no such file", "the weights that config.json describes", "copy the whole folder")
    saved, actual = _saved_sha256(config), sha256_of(weights)
    expected = "the files as they were saved together"
    if saved != actual:
        found = f"SHA-256 {actual[:16]}..., config.json says {saved[:16] or 'nothing'}"
        raise WeightsError(weights, found, expected, "changed or damaged: copy the folder again")
    state, metadata = read_model(weights)
    settings = {name: value for name, value in config.items() if name not in ("files", "library_name")}
    if _settings_of_weights(metadata, weights) != settings:
        found, hint = "differs from the settings inside model.safetensors", "changed by hand: save the model again"
        raise WeightsError(folder / CONFIG, found, expected, hint)
    return _build_arguments(settings, state, folder, file_sha256=actual)


def load_weights_file(path: Path) -> dict[str, Any]:
    """Read model.safetensors without config.json, with the settings in its metadata; otherwise as `load_folder`.

    Raises:
        WeightsError: there are no settings, or they are of a later version.
    """
    state, metadata = read_model(path)
    return _build_arguments(_settings_of_weights(metadata, path), state, path)


def _saved_sha256(config: Mapping[str, Any]) -> str:
    try:
        return str(config["files"][WEIGHTS]["sha256"])
    except (KeyError, TypeError):
        return ""


def _settings_of_weights(metadata: Mapping[str, str], where: Path) -> dict[str, Any]:
    """Parse the settings in the metadata of weights. Raises WeightsError."""
    try:
        settings = untrusted.parse_json(metadata[SETTINGS_KEY])
    except (KeyError, ValueError) as error:
        raise WeightsError(where, "has no settings in its metadata", "model.safetensors of save_pretrained") from error
    return settings if isinstance(settings, dict) else {}


def read_config(folder: Path) -> dict[str, Any]:
    """Read config.json of a folder that `save` wrote. Raises WeightsError."""
    path = folder / CONFIG
    if not path.is_file():
        raise WeightsError(folder, f"has no {CONFIG}", "a folder of save_pretrained")
    try:
        config = untrusted.read_json(path, untrusted.MAX_SETTINGS_BYTES)
    except (OSError, ValueError) as error:
        raise WeightsError(path, f"cannot be read: {error}", "JSON") from error
    if not isinstance(config, dict) or config.get("library_name") != "internvideo":
        found = config.get("model_type", "unknown") if isinstance(config, dict) else "unknown"
        raise WeightsError(
            path, f"is of another library (model type '{found}')", "a folder of save_pretrained",
            "name its .safetensors file itself: published layouts are recognized by their keys",
        )  # fmt: skip
    return config


def _build_arguments(
    settings: Mapping[str, Any], state: dict[str, Any], where: Path, **extra_metadata: str
) -> dict[str, Any]:
    check_version(settings.get("format_version", settings.get("format")), where)
    name = settings.get("model")
    if not isinstance(name, str) or name not in MODELS:
        raise WeightsError(where, f"unknown model {name!r}", ", ".join(MODELS), "update internvideo")
    try:
        with skip_init(), limit_model_size(state):
            module = create_model(name, settings["overrides"])
        arguments: dict[str, Any] = {
            "name": name,
            "module": module,
            "preprocessing": Preprocessing.from_json(settings["preprocessing"]),
            "class_names": tuple(str(name) for name in settings["classes"]),
            "metadata": {str(key): str(value) for key, value in settings["metadata"].items()},
            "temporal_stride": int(settings.get("frame_step", 1)),
        }
    except (RecipeError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise WeightsError(where, f"settings that do not fit: {error}", hint="update internvideo") from error
    load_state(module, state, where=where)
    check_all_loaded(module, where)
    arguments["metadata"] |= {"source": str(where), "layout": "internvideo hub", **extra_metadata}
    return arguments


def model_card(
    model: Savable, file_sha256: str, metadata: Mapping[str, str], architecture: str = "", notes: Sequence[str] = ()
) -> str:
    """Return the text of the model card: description, usage, protocol, license and hashes.

    Args:
        model: the saved model. file_sha256: of model.safetensors. metadata: of `metadata_to_save`.
        architecture: transformers class that loads the folder, "" for our own layout.
        notes: differences of transformers' computation.
    """
    license_name = metadata.get("licence", "unknown")
    preprocessing = model.preprocessing
    parameters = sum(parameter.numel() for parameter in model.module.parameters()) / 1e6
    examples = {
        "video": 'model.encode_video("clip.mp4")  # one L2-normalized vector',
        "text": 'model.similarity("clip.mp4", ["a dog runs", "a man cooks"])',
        "classify": 'model.classify("clip.mp4"' + (")" if model.class_names else ', ["running", "cooking"])'),
        "caption": 'model.caption("clip.mp4")',
    }
    usage_lines = [line for what, line in examples.items() if what in model.capabilities]
    names, num_more = ", ".join(model.class_names[:20]), len(model.class_names) - 20
    class_list = f"{names} and {num_more} more" if num_more > 0 else names
    frames = f"{preprocessing.frames} frames by the rule '{preprocessing.sampler}'" + (
        f", stride {preprocessing.stride}" if preprocessing.stride else ""
    )
    if preprocessing.single_frame:
        frames = "the middle frame"
    description = MODELS[model.name].description
    size, backend = preprocessing.size, preprocessing.resize_backend
    resize_note = "resized to a square" if not preprocessing.keep_aspect else "scaled by the short side, center crop"
    lines = [
        *_front_matter(model, license_name, architecture),
        "",
        f"# {metadata.get('title', model.name)}",
        "",
        f"{description[:1].upper()}{description[1:]}: `{model.name}`, "
        f"{parameters:.1f} M parameters{_size_note(model)}. It can: {', '.join(sorted(model.capabilities))}.",
        "",
        "## Use",
        "",
        "```python",
        "import internvideo",
        "",
        'model = internvideo.load("FOLDER_OR_hf://ORGANISATION/REPOSITORY")',
        *usage_lines,
        "```",
        "",
        *([f"transformers reads the folder too, as `{architecture}`. Differences:"] if architecture else []),
        *([f"- {note}" for note in notes or ("nothing",)] + [""] if architecture else []),
        "## Protocol",
        "",
        f"- frames: {frames}",
        f"- pixels: {size} x {size}, {resize_note} (resize {preprocessing.resize or size}, {backend})",
        f"- embedding: {model.embed_dim} numbers",
        *([f"- classes: {class_list}"] if class_list else []),
        "",
        "## Origin and licence",
        "",
        f"- licence of the weights: {license_name}"
        + (f" ({stated})" if (stated := metadata.get("licence_stated")) else ""),
        *(f"- {key}: {value}" for key, value in sorted(metadata.items()) if key not in _NOT_LISTED),
        "",
        "## Hashes",
        "",
        f"- model.safetensors, SHA-256 of the file: `{file_sha256}`",
        f"- SHA-256 of the tensors: `{metadata['weights_sha256']}`",
    ]
    return "\n".join(lines) + "\n"


def _front_matter(model: Savable, license_name: str, architecture: str) -> list[str]:
    """Return the lines of the YAML front matter, by which the hub shows and filters models."""
    from huggingface_hub import ModelCardData

    capabilities = model.capabilities
    task = "video-classification" if "classify" in capabilities and model.class_names else "feature-extraction"
    libraries = ["transformers"] if architecture else ["sentence-transformers"]
    data = ModelCardData(
        library_name="transformers" if architecture else "internvideo",
        license=_license_id(license_name),
        pipeline_tag="video-text-to-text" if "caption" in capabilities else task,
        tags=["video", "internvideo", *libraries, *(["video-text-retrieval"] if "text" in capabilities else [])],
    )
    return ["---", *data.to_yaml().splitlines(), "---"]


def _size_note(model: Savable) -> str:
    """Return a note on how the sizes of a model differ from the published ones of that name, "" if they do not."""
    overrides = model.config["overrides"]
    assert isinstance(overrides, Mapping)
    names = ("width", "depth", "layers", "heads", "patch_size", "tubelet", "image_size", "frames")
    sizes = [
        f"{path} {value}" for path, value in flatten_overrides(overrides).items() if path.rpartition(".")[2] in names
    ]
    return f", but of another size: {', '.join(sizes)}" if sizes else ""


_NOT_LISTED = ("licence", "licence_stated", "title", "weights_sha256", "file_sha256")


def _license_id(license_name: str) -> str:
    """Return the identifier of a license on model hubs, "other" for an unknown one."""
    known = license_name.lower().replace(" ", "-")
    return known if known in ("apache-2.0", "mit", "cc-by-4.0", "cc-by-nc-4.0", "bsd-3-clause", "unknown") else "other"


def model_hash(model: Savable) -> str:
    """Return the SHA-256 of the weights of a model, 64 hex digits."""
    return model.metadata.get("weights_sha256") or weights_hash(model.module)
