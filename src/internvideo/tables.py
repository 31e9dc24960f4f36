"""The tables STAGES, TASKS and SAMPLERS: all there is to see; nothing registers itself (MODELS: model_table.py)."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import BaseModel
from torch import nn

from internvideo.data import sampling
from internvideo.models.clip import Clip
from internvideo.models.cross_model import CrossModel
from internvideo.models.heads import PairScoringMultipleChoice, VideoQuestionAnswering
from internvideo.models.uniformerv2 import UniFormerV2
from internvideo.models.video_language import VideoLanguage
from internvideo.models.videomae import VideoMAEClassifier, VideoMAEPretrain
from internvideo.pretraining.interaction import InteractionSettings, InteractionStage
from internvideo.pretraining.masked import MaskedSettings, MaskedStage
from internvideo.pretraining.multimodal import MultimodalSettings, MultimodalStage
from internvideo.pretraining.supervised import SupervisedSettings, SupervisedStage
from internvideo.tasks.anticipation.model import Anticipator
from internvideo.tasks.anticipation.stage import AnticipationSettings, AnticipationStage
from internvideo.tasks.grounding.model import Grounder
from internvideo.tasks.grounding.stage import GroundingSettings, GroundingStage
from internvideo.tasks.hands.stage import HandsSettings, HandsStage
from internvideo.tasks.navigation.model import Navigator
from internvideo.tasks.navigation.stage import NavigationSettings, NavigationStage
from internvideo.tasks.navigation.waypoint_stage import WaypointSettings, WaypointStage
from internvideo.tasks.open_set.stage import OpenSetSettings, OpenSetStage
from internvideo.tasks.question_answering.stage import AnsweringSettings, AnsweringStage
from internvideo.tasks.refinement.model import TCANet
from internvideo.tasks.refinement.stage import RefinementSettings, RefinementStage
from internvideo.tasks.retrieval.stage import RetrievalSettings, RetrievalStage
from internvideo.tasks.spatiotemporal.model import ActionDetector
from internvideo.tasks.spatiotemporal.stage import RegionSettings, RegionStage
from internvideo.tasks.temporal_localization.model import ActionFormer
from internvideo.tasks.temporal_localization.stage import LocalisationSettings, LocalisationStage
from internvideo.tasks.verb_noun.stage import VerbNounSettings, VerbNounStage


@dataclass(frozen=True)
class StageEntry:
    """One stage: its settings, the stage class and what models it trains.

    `reads` are the settings below `data` that count for it, whole sections or single ones; `train` and `loader` count
    for all. `heads` are the parts of the model that have one output a class ("" is the model itself): they get the
    number of classes of the data in their setting `outputs`. What a stage learns from is built by its row in
    `stage_builders.py`.
    """

    about: str
    settings: type[BaseModel]
    stage: type[nn.Module]
    trains: tuple[type[nn.Module], ...]
    reads: tuple[str, ...]
    heads: tuple[str, ...] = ()
    outputs: str = "classes"


def _augment(*names: str) -> tuple[str, ...]:
    return tuple(f"augment.{name}" for name in names)


_ROWS = ("split", "also")
_TESTED = _augment("size", "bicubic", "test_style", "test_resize")
_TRAINED = _augment("crop", "squash", "minimum_area", "aspect", "flip", "rand_augment", "erasing")
_LEARNED = (*_ROWS, "sampling", *_TESTED, *_TRAINED)
_CLIPS = (*_LEARNED, "augment.as_tested")
_MIXED = _augment("mixup", "cutmix", "mix_probability", "mix_switch", "mix_smoothing")
_IMAGES = ("images", "image_shards", "shard_index", "image_batch_size")
_KEY_FRAMES = (*_ROWS, "sampling", *_TESTED, "augment.flip", "key_frames")
_WORDS = ("split", "world.kind", "world.opener", "world.scenes", "world.words")

STAGES: dict[str, StageEntry] = {
    "masked": StageEntry(
        "rebuild the hidden tubes, 90 % in the paper (VideoMAE)",
        MaskedSettings,
        MaskedStage,
        (VideoMAEPretrain,),
        reads=_CLIPS,
    ),
    "multimodal": StageEntry(
        "match clips and captions, write captions (UniFormerV2 on CLIP)",
        MultimodalSettings,
        MultimodalStage,
        (VideoLanguage,),
        reads=(*_CLIPS, "captions", *_IMAGES),
    ),
    "retrieval": StageEntry(
        "fine-tune for text-video retrieval; clips of one frame a second, any number of them",
        RetrievalSettings,
        RetrievalStage,
        (VideoLanguage, Clip),
        reads=(*_CLIPS, "captions"),
    ),
    "supervised": StageEntry(
        "learn action labels, one encoder at a time",
        SupervisedSettings,
        SupervisedStage,
        (VideoMAEClassifier, UniFormerV2),
        reads=(*_CLIPS, *_MIXED),
        heads=("",),
    ),
    "open_set": StageEntry(
        "evidential learning: a classifier that tells what it does not know",
        OpenSetSettings,
        OpenSetStage,
        (VideoMAEClassifier, UniFormerV2),
        reads=_CLIPS,
        heads=("",),
    ),
    "localisation": StageEntry(
        "find actions in time, on features of `internvideo extract` (ActionFormer)",
        LocalisationSettings,
        LocalisationStage,
        (ActionFormer,),
        reads=("split", "features"),
        heads=("",),
    ),
    "grounding": StageEntry(
        "find in time what a query asks for, on the same features (VSLNet, Ego4D)",
        GroundingSettings,
        GroundingStage,
        (Grounder,),
        reads=("split", "features", "queries"),
        heads=("",),
        outputs="vocabulary",
    ),
    "refinement": StageEntry(
        "move the ends of a detector's segments and judge them, on the same features (TCANet)",
        RefinementSettings,
        RefinementStage,
        (TCANet,),
        reads=("split", "features", "proposals"),
    ),
    "regions": StageEntry(
        "tell what each person in a box does, at key frames (AVA)",
        RegionSettings,
        RegionStage,
        (ActionDetector,),
        reads=_KEY_FRAMES,
        heads=("",),
    ),
    "answering": StageEntry(
        "answer questions about videos with one of the frequent answers",
        AnsweringSettings,
        AnsweringStage,
        (VideoQuestionAnswering,),
        reads=(*_LEARNED, "questions"),
        heads=("",),
        outputs="answers",
    ),
    "multiple_choice": StageEntry(
        "choose among a few texts about a video, a question before each or none (TGIF-QA's five-way form)",
        AnsweringSettings,
        AnsweringStage,
        (PairScoringMultipleChoice,),
        reads=_LEARNED,
    ),
    "anticipation": StageEntry(
        "tell what will be done to objects in boxes, and when (Ego4D)",
        AnticipationSettings,
        AnticipationStage,
        (Anticipator,),
        reads=_KEY_FRAMES,
        heads=("",),
    ),
    "verb_noun": StageEntry(
        "learn verbs and nouns of first-person clips: two classifiers on one encoder",
        VerbNounSettings,
        VerbNounStage,
        (VideoMAEClassifier, UniFormerV2),
        reads=(*_LEARNED, *_MIXED),
        heads=("",),
    ),
    "hands": StageEntry(
        "tell where both hands will be, from the clip before (Ego4D)",
        HandsSettings,
        HandsStage,
        (VideoMAEClassifier, UniFormerV2),
        reads=(*_LEARNED, *_MIXED, "hands"),
        heads=("",),
    ),
    "waypoints": StageEntry(
        "an agent's eyes: where one can walk to, what stands there, what moves (embedded world)",
        WaypointSettings,
        WaypointStage,
        (Navigator,),
        reads=("split", "world"),
    ),
    "navigation": StageEntry(
        "follow instructions through houses, by imitation with scheduled sampling (VLN-CE)",
        NavigationSettings,
        NavigationStage,
        (Navigator,),
        reads=_WORDS,
    ),
    "interaction": StageEntry(
        "cross-model attention between the two frozen encoders, learned fusion of their scores",
        InteractionSettings,
        InteractionStage,
        (CrossModel,),
        reads=_CLIPS,
        heads=("masked", "multimodal"),
    ),
}

TASKS: dict[str, str] = {
    "recognition": "top-1, top-5 and mean class accuracy of a classifier over views",
    "open_set": "which class, how unsure, and unknown or not: evidential and five other methods",
    "zero_shot": "recognition from class names alone, 16 prompt templates",
    "retrieval": "text to video and video to text: raw, dual softmax and, with a bank, query-bank normalised",
    "localisation": "when which action happens: mAP over tIoU thresholds, recall",
    "refinement": "a detector's segments with better ends: mAP before and after",
    "grounding": "which part of a video answers a query: R@1 and R@5 at tIoU 0.3 and 0.5 beside baselines",
    "spatio_temporal": "what every person at a key frame does: frame mAP at IoU 0.5",
    "verb_noun": "verbs and nouns of clips: top-1 and top-5 of each",
    "anticipation": "what will be touched next, how and when: top-5 mAP",
    "state_change": "which object changes its state: COCO AP",
    "future_hands": "where hands will be at five moments: mean displacement in pixels",
    "multiple_choice": "which of the texts fits the clip",
    "captioning": "a sentence for the clip: CIDEr, BLEU-4, ROUGE-L, METEOR without synonyms",
    "navigation": "walks that follow instructions: NE, PL, SR, OSR, SPL, nDTW beside baselines",
    "answering": "questions about the clip: accuracy over all, and over those that can be answered",
}

SAMPLERS: dict[str, type[sampling.FrameSampler]] = {
    "dense": sampling.Dense,
    "dense_pretrain": sampling.DensePretrain,
    "dense_loop": sampling.DenseLoop,
    "sparse": sampling.Sparse,
    "sparse_two_view": sampling.SparseTwoView,
    "segment_middle": sampling.SegmentMiddle,
    "linspace": sampling.Linspace,
    "one_per_second": sampling.OnePerSecond,
}
