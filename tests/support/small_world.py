"""A small sample world and models of the four stages that are small enough to learn it in a test."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import nn

from internvideo.data.batch import Batch
from internvideo.data.loader import Loader, LoaderSettings
from internvideo.data.manifest import read_manifest
from internvideo.data.sampling import SegmentMiddle
from internvideo.data.tokenizer import Tokenizer
from internvideo.data.transforms import TrainTransform
from internvideo.models.caption_decoder import CaptionDecoderConfig
from internvideo.models.clip import CLIPConfig, CLIPModel, TextConfig
from internvideo.models.cross_model import CrossModelConfig, InteractionConfig, build_cross_model
from internvideo.models.heads import PairScoringMultipleChoice, VideoQuestionAnswering
from internvideo.models.uniformerv2 import UniFormerV2, UniFormerV2Config
from internvideo.models.video_language import VideoLanguage, VideoLanguageConfig
from internvideo.models.videomae import VideoMAEClassifier, VideoMAEConfig, VideoMAEPretrain
from internvideo.sample_world.generate import WorldSettings, generate
from internvideo.tasks.question_answering.data import question_tokens
from internvideo.training.optimizer import make_optimizer, set_learning_rate
from internvideo.training.settings import OptimizerSettings

SIDE, FRAMES, WORDS = 32, 4, 32
CLASSES = ("moving left to right", "moving right to left")
MASKED = VideoMAEConfig(
    image_size=SIDE, patch_size=8, frames=FRAMES, width=48, depth=3, heads=2, decoder_width=24, decoder_depth=1,
    decoder_heads=2, init_scale=1.0,
)  # fmt: skip
VISION = UniFormerV2Config(
    image_size=SIDE, patch_size=8, frames=FRAMES, width=48, depth=3, heads=2, global_layers=(1, 2), num_classes=0,
    head_dropout=0.0, mlp_dropout=0.0,
)  # fmt: skip
TEXT = TextConfig(width=32, heads=2, layers=2, context_length=WORDS)
LANGUAGE = VideoLanguageConfig(
    VISION,
    TEXT,
    joint_width=24,
    caption=CaptionDecoderConfig(width=32, heads=2, vision_width=48, layers=1, num_queries=4),
)


def masked_classifier() -> VideoMAEClassifier:
    torch.manual_seed(0)
    return VideoMAEClassifier(replace(MASKED, num_classes=len(CLASSES)))


def multimodal_classifier() -> UniFormerV2:
    torch.manual_seed(0)
    return UniFormerV2(replace(VISION, num_classes=len(CLASSES)))


def pretraining_model() -> VideoMAEPretrain:
    torch.manual_seed(0)
    return VideoMAEPretrain(MASKED)


def language_model() -> VideoLanguage:
    torch.manual_seed(0)
    return VideoLanguage(LANGUAGE)


def image_text_model() -> CLIPModel:
    torch.manual_seed(0)
    return CLIPModel(CLIPConfig(SIDE, 8, 48, 3, 2, replace(TEXT, mask_embedding=False), joint_width=24))


def answering_model() -> VideoQuestionAnswering:
    torch.manual_seed(0)
    return VideoQuestionAnswering(LANGUAGE, len(CLASSES), dropout=0.0)


def choosing_model() -> PairScoringMultipleChoice:
    torch.manual_seed(0)
    return PairScoringMultipleChoice(LANGUAGE, dropout=0.0)


def cross_model() -> nn.Module:
    torch.manual_seed(0)
    classes = len(CLASSES)
    cross = CrossModelConfig(head_dropout=0.0)
    return build_cross_model(
        InteractionConfig(replace(MASKED, num_classes=classes), replace(VISION, num_classes=classes), cross)
    )


@cache
def world() -> Path:
    """The train manifest of 42 clips of 32 px; made once for all processes."""
    folder = made_once("world")
    settings = WorldSettings(
        clips=60, size=SIDE, frames=12, difficulty=0.0, long_videos=0, zero_shot_clips=1, actions=CLASSES
    )
    with FileLock(folder.with_suffix(".lock")):
        return generate(folder, settings, workers=1, progress=False)["train"]


def made_once(name: str) -> Path:
    """A place that all processes of a session of tests share (tests/conftest.py)."""
    return Path(os.environ["INTERNVIDEO_TEST_FILES"]) / name


@cache
def batch(count: int = 40, *, single_frame: bool = False) -> Batch:
    """Clips, labels and first captions of the train split."""
    settings = LoaderSettings(batch_size=count, shuffle=False, single_frame=single_frame)
    loader = Loader(
        read_manifest(world()),
        SegmentMiddle(frames=FRAMES),
        TrainTransform(size=SIDE, crop="center", flip=False),
        settings,
        tokenizer=Tokenizer(context_length=WORDS),
        caption="first",
    )
    return next(loader.epoch(0))


def choices(count: int = 24) -> Batch:
    """The clips with a question, five colours in another order for every clip, and the number of the right one."""
    rows, clips = {row.id: row for row in read_manifest(world()).rows}, batch(count)
    colours = sorted({row.attributes["colour"] for row in rows.values()})
    texts, right = [], []
    for place, name in enumerate(clips.ids):
        rng, own = np.random.RandomState(place), rows[name].attributes["colour"]
        others = rng.permutation([colour for colour in colours if colour != own])[:4]
        order = rng.permutation([own, *others]).tolist()
        texts += [f"what colour is it? {colour}" for colour in order]
        right.append(order.index(own))
    tokens = question_tokens(texts, WORDS).view(count, 5, -1)
    return replace(clips, text_ids=tokens, labels=torch.tensor(right))


def learn(stage: nn.Module, clips: Batch, steps: int, rate: float = 2e-3) -> list[float]:
    """Losses of so many steps on one batch."""
    optimizer = make_optimizer(stage.train(), OptimizerSettings(base_lr=rate, weight_decay=0.0))
    set_learning_rate(optimizer, rate)
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = stage(clips, generator)["loss"]
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(loss.item())
    return losses


def small_recipe(stage: str, **changes: Mapping[str, object]) -> dict[str, Any]:
    """Plain settings of a short run of one stage; `changes` go into the sections of their name.

    The sections `loader`, `augment` and `sampling` lie in `data`; "supervised_multimodal" is the other encoder's.
    """
    masked: dict[str, Any] = {
        "image_size": SIDE,
        "patch_size": 8,
        "frames": FRAMES,
        "width": 48,
        "depth": 3,
        "heads": 2,
    }
    decoder = {"decoder_width": 24, "decoder_depth": 1, "decoder_heads": 2}
    vision = {**masked, "global_layers": [1, 2]}
    text = {"width": 32, "heads": 2, "layers": 2, "context": WORDS}
    caption = {"width": 32, "heads": 2, "vision_width": 48, "layers": 1, "queries": 4}
    models: dict[str, tuple[str, dict[str, Any]]] = {
        "masked": ("videomae-s-pretrain", {**masked, **decoder}),
        "multimodal": (
            "internvideo-mm-b16-caption",
            {"vision": vision, "text": text, "joint_width": 24, "caption": caption},
        ),
        "retrieval": ("internvideo-mm-b16", {"vision": vision, "text": text, "joint_width": 24}),
        "supervised": ("videomae-s-classifier", masked),
        "open_set": ("videomae-s-classifier", masked),
        "supervised_multimodal": ("uniformerv2-b16", vision),
        "interaction": ("interaction-b", {"masked": masked, "multimodal": vision}),
        "question_answering": (
            "internvideo-mm-b16-vqa",
            {"model": {"vision": vision, "text": text, "caption": caption}},
        ),
        "multiple_choice": ("internvideo-mm-b16-choice", {"vision": vision, "text": text, "caption": caption}),
    }
    name, overrides = models[stage]
    tree: dict[str, Any] = {
        "stage": stage.removesuffix("_multimodal"),
        "model": {"name": name, "overrides": overrides},
        "settings": {"temporal_stride": 1} if stage == "interaction" else {},
        "init": {},
        "data": {
            "train": str(world()),
            "sampling": {"kind": "segment_middle", "frames": FRAMES},
            "augment": {"size": SIDE, "crop": "center"},
            "loader": {"batch_size": 8},
        },
        "optimizer": {"base_lr": 1e-3},
        "schedule": {"steps": 6},
        "loop": {"checkpoint_every": 2, "log_every": 2},
    }
    for section, values in changes.items():
        place = tree["data"][section] if section in ("loader", "augment", "sampling") else tree[section]
        for key, value in values.items():
            if isinstance(value, dict):
                place[key].update(value)
            else:
                place[key] = value
    return tree
