"""Load a VideoModel from a model name, a folder, a file or a URL: `internvideo.load`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from internvideo import untrusted
from internvideo.data.preprocessing import Preprocessing
from internvideo.distributed import choose_device
from internvideo.errors import RecipeError, WeightsError, suggestion
from internvideo.inference import hub_folder
from internvideo.inference.clip_size import at_clip_size
from internvideo.inference.families import overrides_of, published_preprocessing, video_encoder
from internvideo.inference.video_model import Precision, VideoModel
from internvideo.model_table import MODELS, create_model
from internvideo.models.skip_init import check_all_loaded, skip_init
from internvideo.storage import read_metadata
from internvideo.tasks import CATALOG
from internvideo.tasks.protocol import weights_hash
from internvideo.training.trained import Trained, load_trained
from internvideo.weights import foreign_folder, layouts
from internvideo.weights.fetch import fetch, is_remote, require_safetensors
from internvideo.weights.licenses import license_metadata
from internvideo.weights.published_classes import published_classes
from internvideo.weights.state import check_version, load_pretrained, load_weights_part

RANDOM = "random"
WEIGHT_SOURCES_HELP = 'weights=PATH, "hf://ORGANISATION/REPOSITORY/FILE", "https://...safetensors" or "random"'
HEAD_PARAM_PATTERN = r"(.*\.)?(head|proj\.linear)\.|fuse\."


@dataclass(frozen=True)
class LoadOptions:
    """Validated arguments of `load`."""

    name: str | None
    num_classes: int | None
    device: str
    precision: Precision
    overrides: Mapping[str, object]
    frames: int | None
    image_size: int | None


def load(
    name_or_path: str | Path,
    *,
    weights: str | Path | None = None,
    num_classes: int | None = None,
    device: str = "auto",
    precision: Precision = "float32",
    overrides: Mapping[str, object] | None = None,
    frames: int | None = None,
    image_size: int | None = None,
    class_names: str | Sequence[str] | None = None,
) -> VideoModel:
    """Load a model.

    Args:
        name_or_path: a name of `internvideo list models` (then with `weights`), or the model itself: a folder of
            `save_pretrained` or of a run, a .safetensors file of ours or of a published model (recognized by its
            keys), `hf://ORGANISATION/REPOSITORY[/FILE][@REVISION]`, `https://...safetensors[#sha256=HEX]`.
        weights: file, folder or URL as above, or "random" for an untrained model.
        num_classes: replaces the head with a randomly initialized one of this size; other layers are loaded.
        device: auto, cpu, cuda, cuda:N. precision: compute dtype: float32, bfloat16 or float16; outputs are float32.
        overrides: settings of the model that its weights do not determine (`model_table.create_model`).
        frames: frames of a clip, if other than the weights were trained for and the model allows it.
        image_size: side of a clip in pixels, likewise.
        class_names: names of the classes of the classifier, or the name of a list of `weights.published_classes`; by
            default those of the file, or "0", "1" ...

    Raises:
        WeightsError: no such weights, or weights that are corrupt, of another model, or not safe to open.
        RecipeError: no such model, device, precision or setting.
    """
    text = str(name_or_path)
    name = text if isinstance(name_or_path, str) and text in MODELS else None
    options = LoadOptions(name, num_classes, device, precision, dict(overrides or {}), frames, image_size)
    if num_classes is not None and num_classes < 1:
        raise RecipeError("num_classes", str(num_classes), "1 or more")
    choose_device(device)  # raises before anything is downloaded
    if name is None and weights is not None:
        expected = "a name of `internvideo list models`"
        raise RecipeError("model", f"no model '{text}'", expected, suggestion(text, MODELS))
    source = text if weights is None else str(weights)
    if name is not None and weights is None:
        raise WeightsError(f"model {name}", "no weights given", WEIGHT_SOURCES_HELP)
    if weights == RANDOM:
        return _load_random(options, text)
    path = fetch(source) if is_remote(source) else _local_path(source)
    if not path.exists():
        expected = "the name of a model, a folder, a .safetensors file or a URL"
        raise WeightsError(source, "no such file or folder", expected, suggestion(source, MODELS))
    model = _load_local(path, options)
    if class_names is not None:
        model.class_names = _check_class_names(class_names, model)
    if is_remote(source):
        model.metadata["source"] = re.sub(r"[?#].*", "", source)
    return model


def _check_class_names(class_names: str | Sequence[str], model: VideoModel) -> tuple[str, ...]:
    """Return the names of a model's classes. Raises RecipeError for a wrong number of names, or repeated ones."""
    names = published_classes(class_names) if isinstance(class_names, str) else tuple(class_names)
    if len(names) != len(model.class_names) or len(set(names)) != len(names):
        published = f"{len(names)} names, {len(set(names))} of them different"
        raise RecipeError("class_names", published, f"{len(model.class_names)} unique names, one per class of the head")
    return names


def _local_path(source: str) -> Path:
    """Expand "~" in a local path, if there is such a user."""
    try:
        return Path(source).expanduser()
    except RuntimeError:
        return Path(source)


def _load_random(options: LoadOptions, name: str) -> VideoModel:
    settings = dict(options.overrides)
    if options.num_classes is not None:
        settings = _with_classes(name, settings, options.num_classes)
    for key, value in (("frames", options.frames), ("image_size", options.image_size)):
        if value is not None:
            raise RecipeError(key, str(value), "overrides, for an untrained model")
    module = create_model(name, settings)
    return _build_video_model(name, module, options, {"source": RANDOM, "layout": "untrained", "trained": "no"})


def _load_local(path: Path, options: LoadOptions) -> VideoModel:
    """Load a local folder or file."""
    if path.is_dir():
        if _is_hub_folder(path):
            return _load_hub_folder(path, options)
        path = foreign_folder.find_weights_file(path)
    if path.name in foreign_folder.REFERENCE_FILES:
        return _load_published(path, options)
    require_safetensors(path.name, str(path))
    metadata = read_metadata(path)
    check_version(metadata.get("format_version", "1"), path)
    if hub_folder.SETTINGS_KEY in metadata:
        in_hub_folder = path.name == hub_folder.WEIGHTS and _is_hub_folder(path.parent)
        return _load_hub_folder(path.parent if in_hub_folder else path, options)
    if "recipe" in metadata and "classes" in metadata:
        return _load_run(path, options)
    return _load_published(path, options)


def _is_hub_folder(folder: Path) -> bool:
    """Return whether a folder has a config.json of `save_pretrained`."""
    config = untrusted.read_json_object(folder / hub_folder.CONFIG, untrusted.MAX_SETTINGS_BYTES)
    return config is not None and config.get("library_name") == hub_folder.SETTINGS_KEY


def _require_name(actual: str, options: LoadOptions, where: Path) -> None:
    if options.name is not None and options.name != actual:
        hint = f"load('{actual}', ...), or load(PATH) without a name"
        raise WeightsError(where, f"these are weights of '{actual}'", options.name, hint)


def _refuse_overrides(options: LoadOptions, where: Path) -> None:
    if options.overrides:
        raise RecipeError(where, "overrides", "none: this checkpoint already carries its config")


def _load_hub_folder(path: Path, options: LoadOptions) -> VideoModel:
    _refuse_overrides(options, path)
    arguments = hub_folder.load_folder(path) if path.is_dir() else hub_folder.load_weights_file(path)
    model = VideoModel(**arguments, device=choose_device(options.device), precision=options.precision)
    if options.num_classes is None:
        _require_name(model.name, options, path)
        if options.frames is None and options.image_size is None:
            return model
    name, class_names, trained = model.name, model.class_names, model.module.float()
    module, preprocessing = at_clip_size(name, trained, model.preprocessing, options.frames, options.image_size, path)
    metadata = {"source": str(path), "layout": "internvideo hub"}
    metadata |= {key: model.metadata[key] for key in ("licence", "licence_stated") if key in model.metadata}
    if options.num_classes is not None:
        name, module = _with_new_head(name, module, options, path)
        class_names, metadata["head"] = (), "untrained"
    return _build_video_model(name, module, options, metadata, preprocessing, class_names, model.temporal_stride)


def _load_run(path: Path, options: LoadOptions) -> VideoModel:
    """Load the weights of a run of `internvideo train`."""
    _refuse_overrides(options, path)
    with skip_init():
        trained: Trained = load_trained(path, CATALOG, device="cpu")
    check_all_loaded(trained.model, path)
    name, module, class_names = trained.recipe.model.name, trained.model, trained.classes
    stride = 1
    if video_encoder(module, name).takes_temporal_stride:
        stride = getattr(trained.recipe.settings, "temporal_stride", 1)
    if trained.clips is None:
        raise RecipeError("stage", f"'{trained.recipe.stage}' is not trained on clips", "weights of a stage that is")
    module, preprocessing = at_clip_size(name, module, trained.clips, options.frames, options.image_size, path)
    metadata = {"source": str(path), "layout": "internvideo training", "stage": trained.recipe.stage}
    if options.num_classes is None:
        _require_name(name, options, path)
    else:
        name, module = _with_new_head(name, module, options, path)
        class_names, metadata["head"] = (), "untrained"
    class_names = class_names if video_encoder(module, name).num_classes else ()
    return _build_video_model(name, module, options, metadata, preprocessing, class_names, stride)


def _load_published(path: Path, options: LoadOptions) -> VideoModel:
    """Load weights of a published layout, recognized by their keys, with the configs beside them."""
    published = foreign_folder.read(path)
    layout = published.layout
    if options.name is not None and not _becomes_classifier(layout.model, options):
        layout = layouts.as_model(layout, options.name, path)
    overrides = layouts.merge_overrides(published.settings(), options.overrides)
    size = {"frames": options.frames, "image_size": options.image_size}
    with skip_init() if options.num_classes is None else nullcontext():  # a new head is randomly initialized
        module = layouts.load_layout(layout, published.state, path, options.num_classes, **size, overrides=overrides)
    check_all_loaded(module, path)
    name = layout.model
    if options.num_classes is not None:
        name = name.replace("-pretrain", "-classifier")
    if options.name not in (None, name):
        raise WeightsError(path, f"these are weights of '{layout.model}'", str(options.name))
    metadata = {"source": str(path), "layout": layout.name, **license_metadata(layout.name), **published.published}
    if layout.ignored_keys:
        metadata["left_out"] = f"{len(layout.ignored_keys)} tensors of layers that the model does not have"
    if "source_sha256" in published.metadata:
        metadata["converted_from_sha256"] = published.metadata["source_sha256"]
    if options.num_classes is not None:
        metadata["head"] = "untrained"
    class_names = published.classes if options.num_classes is None else ()
    preprocessing = published.preprocessing(published_preprocessing(video_encoder(module, name)))
    return _build_video_model(name, module, options, metadata, preprocessing, class_names)


def _becomes_classifier(model: str, options: LoadOptions) -> bool:
    """Return whether pretraining weights are requested as a classifier with a new head."""
    return options.num_classes is not None and model.replace("-pretrain", "-classifier") == options.name


def _build_video_model(
    name: str,
    module: nn.Module,
    options: LoadOptions,
    metadata: Mapping[str, str],
    preprocessing: Preprocessing | None = None,
    class_names: tuple[str, ...] = (),
    temporal_stride: int | None = None,
) -> VideoModel:
    """Wrap a loaded module in a VideoModel."""
    return VideoModel(
        name,
        module,
        preprocessing=preprocessing,
        class_names=class_names,
        metadata={"licence": "unknown", **metadata, "weights_sha256": weights_hash(module)},
        device=choose_device(options.device),
        precision=options.precision,
        temporal_stride=temporal_stride or video_encoder(module, name).default_temporal_stride,
    )


def _with_new_head(name: str, module: nn.Module, options: LoadOptions, where: Path) -> tuple[str, nn.Module]:
    """Return name and module with a randomly initialized head; a pretraining model becomes a classifier.

    Raises:
        WeightsError: the model is not the requested one. RecipeError: it has no classifier.
    """
    assert options.num_classes is not None
    settings = overrides_of(name, module)
    if name.endswith("-pretrain"):
        settings = {key: value for key, value in settings.items() if not key.startswith("decoder_")}
        name = name.replace("-pretrain", "-classifier")
        _require_name(name, options, where)
        classifier = create_model(name, {**settings, "num_classes": options.num_classes})
        load_pretrained(classifier, module.state_dict(), where)
        return name, classifier
    _require_name(name, options, where)
    model_with_new_head = create_model(name, _with_classes(name, settings, options.num_classes))
    load_weights_part(model_with_new_head, module.state_dict(), newly_initialized=HEAD_PARAM_PATTERN, where=where)
    return name, model_with_new_head


def _with_classes(name: str, settings: dict[str, object], num_classes: int) -> dict[str, object]:
    """Return overrides with the number of classes. Raises RecipeError for a model without a classifier."""
    if name.startswith("interaction-"):
        classes = {"num_classes": num_classes}
        return layouts.merge_overrides(settings, {"masked": classes, "multimodal": classes})
    if not hasattr(MODELS[name].config, "num_classes") or name.endswith("-pretrain"):
        raise RecipeError(f"model {name}", "has no classifier", "no num_classes")
    return {**settings, "num_classes": num_classes}
