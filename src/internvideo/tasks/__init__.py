"""Tables of the tasks of the paper's section 4.3 and of Ego4D, and of their stages and models.

A new task is a row of TASKS: STAGES, MODELS and the options of `internvideo evaluate` are derived from it.
"""

from __future__ import annotations

from internvideo.models.entry import ModelEntry
from internvideo.models.factory import BACKBONES
from internvideo.pretraining import interaction, masked, multimodal, supervised
from internvideo.tasks.anticipation.spec import SPEC as ANTICIPATION
from internvideo.tasks.captioning.spec import SPEC as CAPTIONING
from internvideo.tasks.future_hands.spec import SPEC as HANDS
from internvideo.tasks.grounding.spec import SPEC as GROUNDING
from internvideo.tasks.multiple_choice.spec import SPEC as MULTIPLE_CHOICE
from internvideo.tasks.navigation.spec import SPEC as NAVIGATION
from internvideo.tasks.open_set.spec import SPEC as OPEN_SET
from internvideo.tasks.question_answering.spec import SPEC as QUESTION_ANSWERING
from internvideo.tasks.recognition.spec import SPEC as RECOGNITION
from internvideo.tasks.refinement.spec import SPEC as REFINEMENT
from internvideo.tasks.retrieval.spec import SPEC as RETRIEVAL
from internvideo.tasks.spatio_temporal_localization.spec import SPEC as SPATIO_TEMPORAL_LOCALIZATION
from internvideo.tasks.state_change.spec import SPEC as STATE_CHANGE
from internvideo.tasks.task import TaskSpec
from internvideo.tasks.temporal_localization.spec import SPEC as TEMPORAL_LOCALIZATION
from internvideo.tasks.verb_noun.spec import SPEC as VERB_NOUN
from internvideo.tasks.zero_shot.spec import SPEC as ZERO_SHOT
from internvideo.training.recipe import Catalog, StageSpec

TASKS: tuple[TaskSpec, ...] = (
    RECOGNITION,
    OPEN_SET,
    ZERO_SHOT,
    RETRIEVAL,
    TEMPORAL_LOCALIZATION,
    REFINEMENT,
    GROUNDING,
    SPATIO_TEMPORAL_LOCALIZATION,
    VERB_NOUN,
    ANTICIPATION,
    STATE_CHANGE,
    HANDS,
    MULTIPLE_CHOICE,
    CAPTIONING,
    NAVIGATION,
    QUESTION_ANSWERING,
)

PRETRAINING: tuple[StageSpec, ...] = (masked.STAGE, multimodal.STAGE, supervised.STAGE, interaction.STAGE)
"""The stages of the paper's section 3."""

STAGES: dict[str, StageSpec] = {
    stage.name: stage for stage in (*PRETRAINING, *(stage for task in TASKS for stage in task.stages))
}
"""Name -> stage, for all stages that a recipe can train."""

MODELS: dict[str, ModelEntry] = {**BACKBONES, **{name: row for task in TASKS for name, row in task.models.items()}}
"""Name -> model size, for the backbones and the models of tasks."""

CATALOG = Catalog(STAGES, MODELS, {task.name: task.data for task in TASKS if task.data is not None})
"""The stages, models and evaluation data that recipes can refer to."""


def get_task(name: str) -> TaskSpec | None:
    """Return the task with this name, None if there is none."""
    return next((task for task in TASKS if task.name == name), None)
