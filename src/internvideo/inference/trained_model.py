"""Open weights of any kind as a trained model with a recipe, the input of `evaluate` and `mix`.

Weights of a run contain their recipe. For others (folders of `save_pretrained`, published, converted and transformers'
weights) a recipe for evaluation with the model's preprocessing is made.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from internvideo.data.preprocessing import Preprocessing
from internvideo.data.settings import ClipAugment, EvalAugment, SampledData, TrainAugment
from internvideo.errors import WeightsError
from internvideo.inference.loading import load
from internvideo.inference.video_model import VideoModel
from internvideo.storage import read_metadata
from internvideo.tasks import CATALOG
from internvideo.training.recipe import EvaluationRecipe, StageSpec
from internvideo.training.recipe_files import build_recipe
from internvideo.training.trained import Trained, load_trained
from internvideo.weights.fetch import is_remote


def open_trained(source: str | Path, *, device: str = "auto") -> Trained:
    """Open weights of any kind that `internvideo.load` opens, ready for evaluation.

    Raises:
        WeightsError: missing or corrupt weights, or a model that no stage trains.
    """
    path = Path(source).expanduser()
    file = path / "model.safetensors" if path.is_dir() else path
    if not is_remote(str(source)) and file.is_file() and file.suffix == ".safetensors":
        metadata = read_metadata(file)
        if "recipe" in metadata and "classes" in metadata:
            return load_trained(file, CATALOG, device=device)
    model = load(source, device=device)
    return Trained(model.module, test_recipe(model, source), model.class_names, clips=model.preprocessing)


def test_recipe(model: VideoModel, where: object) -> EvaluationRecipe:
    """Make a recipe for evaluation of the model's stage, with the model's preprocessing.

    Raises:
        WeightsError: no stage trains such a model.
    """
    stages = [stage for stage in CATALOG.stages.values() if issubclass(stage.data, SampledData)]
    fitting = [stage for stage in stages if isinstance(model.module, stage.models)]
    if not fitting:
        raise WeightsError(where, f"holds a {type(model.module).__name__}", "a model that a stage trains on clips")
    stage, rule = fitting[0], model.preprocessing
    stride = model.temporal_stride if model.temporal_stride > 1 else rule.temporal_stride
    settings = {"temporal_stride": stride} if stride > 1 and "temporal_stride" in stage.settings.model_fields else {}
    tree = {
        "about": f"test clips of {where}",
        "stage": stage.name,
        "model": {"name": model.name, "overrides": model.config["overrides"]},
        "settings": settings,
        "data": _data(stage, rule),
    }
    return build_recipe(tree, where, CATALOG)


def _data(stage: StageSpec, rule: Preprocessing) -> dict[str, Any]:
    kind: Any = stage.data.model_fields["augment"].annotation
    assert issubclass(kind, EvalAugment)
    augment: dict[str, Any] = {"size": rule.size, "test_resize": rule.resize}
    augment |= {"resize_backend": rule.resize_backend, "keep_aspect": rule.keep_aspect}
    if issubclass(kind, ClipAugment):
        augment["use_eval_transform"] = True
    elif issubclass(kind, TrainAugment):
        augment["crop"] = "center"
    return {
        "sampling": {"kind": rule.sampler, "frames": rule.sampled_frames or rule.frames, "stride": rule.stride},
        "augment": augment,
        "loader": {"batch_size": 1, "short_side": rule.short_side, "single_frame": rule.single_frame},
    }
