"""The tasks on real files, the real loader, tokenizer and models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from internvideo import evaluation
from internvideo.data.loader import EvalLoader, LoaderSettings
from internvideo.data.manifest import Manifest
from internvideo.data.sample import Choice, Sample
from internvideo.data.sampling import Sparse
from internvideo.data.tokenizer import Tokenizer
from internvideo.data.transforms import EvalTransform
from internvideo.models.clip import TextConfig
from internvideo.models.uniformerv2 import UniFormerV2Config
from internvideo.models.video_language import VideoLanguage, VideoLanguageConfig
from internvideo.models.videomae import VideoMAEClassifier, VideoMAEConfig
from internvideo.tasks.multiple_choice import predict as multiple_choice
from internvideo.tasks.protocol import ClipInputs, clip_protocol
from internvideo.tasks.recognition import predict as recognition
from internvideo.tasks.retrieval import predict as retrieval
from internvideo.tasks.table import Predictions
from internvideo.tasks.zero_shot import predict as zero_shot
from internvideo.video.writer import write_video

CPU = torch.device("cpu")
SAMPLER, TRANSFORM = Sparse(frames=4, num_clips=2), EvalTransform(size=32, num_crops=3)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folder = tmp_path_factory.mktemp("clips")
    rng = np.random.default_rng(0)
    rows = []
    for i in range(5):
        write_video(folder / f"{i}.mp4", rng.integers(0, 256, size=(12, 48, 64, 3), dtype=np.uint8), 10)
        choice = Choice(options=("a thing falls", "a thing rises", "nothing"), answer=i % 3)
        rows.append(Sample(id=f"v{i}", path=f"{i}.mp4", label=i % 3, captions=(f"clip number {i}",), choices=choice))
    (folder / "3.mp4").write_bytes(b"torn" * 50)
    return Manifest(tuple(rows), ("falling", "rising", "still"), folder, folder / "clips.jsonl")


def loader(manifest: Manifest) -> EvalLoader:
    return EvalLoader(manifest, SAMPLER, TRANSFORM, LoaderSettings(batch_size=4))


def towers() -> VideoLanguage:
    torch.manual_seed(0)
    vision = UniFormerV2Config(
        image_size=32, patch_size=16, frames=4, width=16, depth=2, heads=2, num_classes=0, global_layers=(1,)
    )
    return VideoLanguage(VideoLanguageConfig(vision, TextConfig(width=16, heads=2, layers=1), joint_width=8))


def test_recognition_from_files_to_figures(manifest: Manifest, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = VideoMAEConfig(image_size=32, patch_size=16, frames=4, width=32, depth=2, heads=2, num_classes=3)
    model = VideoMAEClassifier(config)
    clips = clip_protocol(SAMPLER, TRANSFORM)
    inputs = ClipInputs(model, loader(manifest), manifest, clips, CPU, "videomae")
    table = recognition.predict(inputs, recognition.classifier_scorer(model))
    result = evaluation.score(Predictions.load(table.save(tmp_path / "table.npz")))
    assert table["ids"].tolist() == ["v0", "v1", "v2", "v4"]
    assert table["logits:logits"].shape == (24, 3)
    assert result["coverage"]["read"] == 4
    assert [lost["id"] for lost in result["coverage"]["unreadable"]] == ["v3"]
    assert result["protocol"]["views"] * result["protocol"]["crops"] == 6
    assert {"top1", "mean_class", "top1_one_view"} <= set(result["figures"])


@pytest.mark.parametrize("task", [zero_shot, retrieval, multiple_choice], ids=lambda task: str(task.NAME))
def test_language_tasks_from_files_to_figures(task: object, manifest: Manifest, tmp_path: Path) -> None:
    clips = clip_protocol(SAMPLER, TRANSFORM)
    inputs = ClipInputs(towers(), loader(manifest), manifest, clips, CPU)
    table: Predictions = task.predict(inputs, Tokenizer())  # type: ignore[attr-defined]  # a module
    result = evaluation.score(Predictions.load(table.save(tmp_path / "table.npz")))
    assert result["task"] == task.NAME  # type: ignore[attr-defined]  # a module
    assert table["ids"].tolist() == ["v0", "v1", "v2", "v4"]
    assert result["coverage"]["asked"] == 5
    assert set(result["intervals"]) == set(result["figures"])
    assert len(result["protocol"]["weights_sha256"]) == 64
