"""The one door: a name, a folder, a file or an address in, a model with everything around it out."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from internvideo import untrusted
from internvideo.data.preprocessing import Preprocessing
from internvideo.errors import RecipeError, WeightsError
from internvideo.inference import hub_folder
from internvideo.inference.clip_size import at_clip_size
from internvideo.inference.families import overrides_of, published_preprocessing, video_encoder
from internvideo.inference.video_model import Precision, VideoModel
from internvideo.model_table import MODELS, create_model
from internvideo.models.skip_init import check_all_loaded, skip_init
from internvideo.pipeline import Trained, load_trained
from internvideo.recipe import choose_device
from internvideo.storage import read_metadata
from internvideo.tasks.protocol import weights_hash
from internvideo.weights import foreign_folder
from internvideo.weights.fetch import check_ending, fetch, is_remote
from internvideo.weights.licenses import licence_of
from internvideo.weights.published_classes import published_classes
from internvideo.weights.state import load_part, load_pretrained

RANDOM = "random"
WAYS = 'weights=PATH, "hf://ORGANISATION/REPOSITORY/FILE", "https://...safetensors" or "random"'
HEADS = r"(.*\.)?(head|proj\.linear)\.|fuse\."


@dataclass(frozen=True)
class Wish:
    """What the caller asked for."""

    name: str | None
    new_classes: int | None
    device: str
    precision: Precision
    overrides: Mapping[str, object]
    frames: int | None
    image_size: int | None


def load(
    name_or_path: str | Path,
    *,
    weights: str | Path | None = None,
    new_classes: int | None = None,
    device: str = "auto",
    precision: Precision = "float32",
    overrides: Mapping[str, object] | None = None,
    frames: int | None = None,
    image_size: int | None = None,
    classes: str | Sequence[str] | None = None,
) -> VideoModel:
    """Open a model.

    Args:
        name_or_path: a name of `internvideo list models` (then with `weights`), or the model itself: a folder of
            `save_pretrained` or of a run, a .safetensors file of ours or of a published model (recognised by its
            keys), "hf://ORGANISATION/REPOSITORY[/FILE][@REVISION]", "https://...safetensors[#sha256=HEX]".
        weights: file, folder or address as above, or "random" for an untrained model.
        new_classes: a fresh, untrained head for so many classes; everything else from the weights.
        device: auto, cpu, cuda, cuda:N. precision: float32, bfloat16 or float16; answers are float32 always.
        overrides: settings of the model that its weights do not tell (`model_table.create_model`).
        frames, image_size: clips of another size than the weights were made for, where the model allows it.
        classes: names of the classifier's classes, or a list of `data.published_classes`; by default what the file
            tells, else numbers.

    Raises:
        WeightsError: not there, damaged, of another model, or not safe to open.
        RecipeError: no such model, device, precision or setting.
    """
    text = str(name_or_path)
    name = text if isinstance(name_or_path, str) and text in MODELS else None
    wish = Wish(name, new_classes, device, precision, dict(overrides or {}), frames, image_size)
    if new_classes is not None and new_classes < 1:
        raise RecipeError("new_classes", str(new_classes), "1 or more")
    choose_device(device)  # told before anything is downloaded
    if name is None and weights is not None:
        raise RecipeError("model", f"no model '{text}'", "a name of `internvideo list models`", _near(text))
    source = text if weights is None else str(weights)
    if name is not None and weights is None:
        raise WeightsError(f"model {name}", "no weights given", WAYS)
    if weights == RANDOM:
        return _random(wish, text)
    place = fetch(source) if is_remote(source) else _here(source)
    if not place.exists():
        allowed = "the name of a model, a folder, a .safetensors file or an address"
        raise WeightsError(source, "no such file or folder", allowed, _near(source))
    model = _open(place, wish)
    if classes is not None:
        model.classes = _named(classes, model)
    if is_remote(source):
        model.metadata["source"] = re.sub(r"[?#].*", "", source)
    return model


def _named(classes: str | Sequence[str], model: VideoModel) -> tuple[str, ...]:
    """Names for the classes of a model. Raises RecipeError where they are not as many, or not different."""
    names = published_classes(classes) if isinstance(classes, str) else tuple(classes)
    if len(names) != len(model.classes) or len(set(names)) != len(names):
        found = f"{len(names)} names, {len(set(names))} of them different"
        raise RecipeError("classes", found, f"{len(model.classes)}, as its head has classes")
    return names


def _here(source: str) -> Path:
    """A path of this machine; "~" is the user's folder, where there is such a user."""
    try:
        return Path(source).expanduser()
    except RuntimeError:
        return Path(source)


def _near(name: str) -> str:
    close = difflib.get_close_matches(name, MODELS, n=1)
    return f"did you mean '{close[0]}'?" if close else ""


def _random(wish: Wish, name: str) -> VideoModel:
    settings = dict(wish.overrides)
    if wish.new_classes is not None:
        settings = _with_classes(name, settings, wish.new_classes)
    for key, value in (("frames", wish.frames), ("image_size", wish.image_size)):
        if value is not None:
            raise RecipeError(key, str(value), "overrides, for an untrained model")
    module = create_model(name, settings)
    return _finished(name, module, wish, {"source": RANDOM, "layout": "untrained", "trained": "no"})


def _open(place: Path, wish: Wish) -> VideoModel:
    """A folder or a file of this machine."""
    if place.is_dir():
        if _is_ours(place):
            return _from_hub_folder(place, wish)
        place = foreign_folder.weights_in(place)
    if place.name in foreign_folder.NO_TENSORS:
        return _from_published(place, wish)
    check_ending(place.name, str(place))
    metadata = read_metadata(place)
    if hub_folder.KEY in metadata:
        beside = place.name == hub_folder.WEIGHTS and _is_ours(place.parent)
        return _from_hub_folder(place.parent if beside else place, wish)
    if "recipe" in metadata and "classes" in metadata:
        return _from_run(place, wish)
    return _from_published(place, wish)


def _is_ours(folder: Path) -> bool:
    """Whether a folder has a config.json of `save_pretrained`."""
    try:
        config = untrusted.read_json(folder / hub_folder.CONFIG, untrusted.MOST_SETTINGS)
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("library_name") == hub_folder.KEY


def _check_name(found: str, wish: Wish, where: Path) -> None:
    if wish.name is not None and wish.name != found:
        raise WeightsError(
            where, f"these are weights of '{found}'", wish.name, f"load('{found}', ...) or leave the name"
        )


def _refuse_changes(wish: Wish, where: Path) -> None:
    if wish.overrides:
        raise RecipeError(where, "overrides", "for published weights: this file has its settings")


def _from_hub_folder(place: Path, wish: Wish) -> VideoModel:
    _refuse_changes(wish, place)
    if place.is_dir():
        model = hub_folder.read(place, VideoModel, device=wish.device, precision=wish.precision)
    else:
        model = hub_folder.read_alone(place, VideoModel, device=wish.device, precision=wish.precision)
    if wish.new_classes is None:
        _check_name(model.name, wish, place)
        if wish.frames is None and wish.image_size is None:
            return model
    name, classes, trained = model.name, model.classes, model.module.float()
    module, clips = at_clip_size(name, trained, model.preprocessing, wish.frames, wish.image_size, place)
    licences: dict[str, str] = {
        key: model.metadata[key] for key in ("licence", "licence_stated") if key in model.metadata
    }
    told: dict[str, str] = {"source": str(place), "layout": "internvideo hub", **licences}
    if wish.new_classes is not None:
        name, module = _with_new_head(name, module, wish, place)
        classes, told["head"] = (), "untrained"
    return _finished(name, module, wish, told, preprocessing=clips, classes=classes, frame_step=model.frame_step)


def _from_run(place: Path, wish: Wish) -> VideoModel:
    """Weights of our own training."""
    _refuse_changes(wish, place)
    with skip_init():
        trained: Trained = load_trained(place, device="cpu")
    check_all_loaded(trained.model, place)
    name, module, classes = trained.recipe.model.name, trained.model, trained.classes
    whole = video_encoder(module, name).takes_frame_step
    clips = Preprocessing.of_recipe(trained.recipe, whole=whole)
    module, clips = at_clip_size(name, module, clips, wish.frames, wish.image_size, place)
    told = {"source": str(place), "layout": "internvideo training", "stage": trained.recipe.stage}
    if wish.new_classes is None:
        _check_name(name, wish, place)
    else:
        name, module = _with_new_head(name, module, wish, place)
        classes, told["head"] = (), "untrained"
    return _finished(
        name,
        module,
        wish,
        told,
        preprocessing=clips,
        classes=classes if video_encoder(module, name).num_classes else (),
        frame_step=getattr(trained.recipe.settings, "frame_step", 1) if whole else 1,
    )


def _from_published(place: Path, wish: Wish) -> VideoModel:
    """Weights of a published layout, recognised by their keys, with what the files beside them tell."""
    from internvideo.weights import layouts

    found = foreign_folder.read(place)
    layout = found.layout
    if wish.name is not None and not _becomes_classifier(layout.model, wish):
        layout = layouts.as_model(layout, wish.name, place)
    with skip_init() if wish.new_classes is None else nullcontext():  # a fresh head is drawn
        module = layouts.load_layout(
            layout,
            found.state,
            place,
            wish.new_classes,
            frames=wish.frames,
            image_size=wish.image_size,
            overrides=layouts.merged(found.settings(), wish.overrides),
        )
    check_all_loaded(module, place)
    name = layout.model
    if wish.new_classes is not None:
        name = name.replace("-pretrain", "-classifier")
    if wish.name not in (None, name):
        raise WeightsError(place, f"these are weights of '{layout.model}'", str(wish.name))
    told = {"source": str(place), "layout": layout.name, **licence_of(layout.name), **found.told}
    if layout.left_out:
        told["left_out"] = f"{len(layout.left_out)} tensors of no part of the model"
    if "source_sha256" in found.metadata:
        told["converted_from_sha256"] = found.metadata["source_sha256"]
    if wish.new_classes is not None:
        told["head"] = "untrained"
    classes = found.classes if wish.new_classes is None else ()
    usual = published_preprocessing(video_encoder(module, name))
    return _finished(name, module, wish, told, preprocessing=found.preprocessing(usual), classes=classes)


def _becomes_classifier(model: str, wish: Wish) -> bool:
    """Pretraining weights that are asked for as a classifier with a fresh head."""
    return wish.new_classes is not None and model.replace("-pretrain", "-classifier") == wish.name


def _finished(
    name: str,
    module: nn.Module,
    wish: Wish,
    told: Mapping[str, str],
    *,
    preprocessing: Preprocessing | None = None,
    classes: tuple[str, ...] = (),
    frame_step: int | None = None,
) -> VideoModel:
    """The model around a filled module."""
    if frame_step is None:
        frame_step = video_encoder(module, name).default_frame_step
    return VideoModel(
        name,
        module,
        preprocessing=preprocessing,
        classes=classes,
        metadata={"licence": "unknown", **told, "weights_sha256": weights_hash(module)},
        device=choose_device(wish.device),
        precision=wish.precision,
        frame_step=frame_step,
    )


def _with_new_head(name: str, module: nn.Module, wish: Wish, where: Path) -> tuple[str, nn.Module]:
    """The same model, or a classifier from pretraining weights, with a fresh head of `new_classes` classes.

    Raises:
        WeightsError: the model has no classifier, or is not the one asked for.
    """
    assert wish.new_classes is not None
    settings = overrides_of(name, module)
    if name.endswith("-pretrain"):
        kept = {key: value for key, value in settings.items() if not key.startswith("decoder_")}
        name = name.replace("-pretrain", "-classifier")
        _check_name(name, wish, where)
        classifier = create_model(name, {**kept, "classes": wish.new_classes})
        load_pretrained(classifier, module.state_dict(), where)
        return name, classifier
    _check_name(name, wish, where)
    fresh = create_model(name, _with_classes(name, settings, wish.new_classes))
    load_part(fresh, module.state_dict(), fresh=HEADS, where=where)
    return name, fresh


def _with_classes(name: str, settings: dict[str, object], classes: int) -> dict[str, object]:
    """Overrides with another number of classes. Raises RecipeError for a model without a classifier."""
    if name.startswith("interaction-"):
        parts = {}
        for part in ("masked", "multimodal"):
            inner = settings.get(part, {})
            parts[part] = {**(inner if isinstance(inner, Mapping) else {}), "classes": classes}
        return {**settings, **parts}
    if not hasattr(MODELS[name].config, "classes") or name.endswith("-pretrain"):
        raise RecipeError(f"model {name}", "has no classifier", "no new_classes")
    return {**settings, "classes": classes}
