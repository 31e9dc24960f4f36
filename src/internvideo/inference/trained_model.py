"""Open weights of any kind as a trained model with a recipe, the input of `evaluate` and `mix`.

Weights of a run contain their recipe. For others (folders of `save_pretrained`, published, converted and transformers'
weights) an evaluation recipe is built from the preprocessing of the model.
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
    return Trained(model.module, make_test_recipe(model, source), model.class_names, clips=model.preprocessing)


def make_test_recipe(model: VideoModel, where: object) -> EvaluationRecipe:
    """Build an evaluation recipe of a stage that trains such models, with the preprocessing of the model.

    Raises:
        WeightsError: no stage trains such a model.
    """
    stages = [stage for stage in CATALOG.stages.values() if issubclass(stage.data, SampledData)]
    matching = [stage for stage in stages if isinstance(model.module, stage.models)]
    if not matching:
        raise WeightsError(where, f"holds a {type(model.module).__name__}", "a model that a stage trains on clips")
    stage, preprocessing = matching[0], model.preprocessing
    stride = model.temporal_stride if model.temporal_stride > 1 else preprocessing.temporal_stride
    settings = {"temporal_stride": stride} if stride > 1 and "temporal_stride" in stage.settings.model_fields else {}
    settings_tree = {
        "about": f"test clips of {where}",
        "stage": stage.name,
        "model": {"name": model.name, "overrides": model.config["overrides"]},
        "settings": settings,
        "data": _data(stage, preprocessing),
    }
    return build_recipe(settings_tree, where, CATALOG)


def _data(stage: StageSpec, preprocessing: Preprocessing) -> dict[str, Any]:
    augment_type: Any = stage.data.model_fields["augment"].annotation
    assert issubclass(augment_type, EvalAugment)
    augment: dict[str, Any] = {"size": preprocessing.size, "test_resize": preprocessing.resize}
    augment |= {"resize_backend": preprocessing.resize_backend, "keep_aspect": preprocessing.keep_aspect}
    if issubclass(augment_type, ClipAugment):
        augment["use_eval_transform"] = True
    elif issubclass(augment_type, TrainAugment):
        augment["crop"] = "center"
    return {
        "sampling": {
            "kind": preprocessing.sampler,
            "frames": preprocessing.sampled_frames or preprocessing.frames,
            "stride": preprocessing.stride,
        },
        "augment": augment,
        "loader": {"batch_size": 1, "short_side": preprocessing.short_side, "single_frame": preprocessing.single_frame},
    }
