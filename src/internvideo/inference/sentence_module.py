"""Module for the sentence-transformers library (6.0 or later), with which it loads our folders.

`SentenceTransformer(FOLDER, trust_remote_code=True)` loads folders of `save_pretrained`; the library requires the
argument before it imports another package. `SentenceTransformer(modules=[VideoModule(model)])` does not need it.
This file does not import the library, which calls the methods below.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from internvideo.data.preprocessing import Span, VideoSource
from internvideo.errors import RecipeError
from internvideo.inference.encoder import is_video
from internvideo.inference.loading import load
from internvideo.inference.video_model import VideoModel


class VideoModule(nn.Module):
    """Map videos and texts to embeddings, with the interface of a sentence-transformers module.

    Args:
        model: with a text tower to encode texts too.

    A video is a path, frames (T, H, W, 3) or (T, 3, H, W) uint8, a list of images, or {"array": frames}.
    """

    save_in_root = True
    forward_kwargs: frozenset[str] = frozenset()

    def __init__(self, model: VideoModel) -> None:
        super().__init__()
        self.model = model
        self.encoder = model.module

    @property
    def modalities(self) -> list[str]:
        """Supported modalities."""
        return ["text", "video"] if "text" in self.model.capabilities else ["video"]

    @property
    def max_seq_length(self) -> int:
        """Maximum number of tokens of a text; 0 without a text tower."""
        dual = self.encoder.as_dual_encoder
        return dual.config.text.context_length if dual is not None else 0

    def get_embedding_dimension(self) -> int:
        """Return the embedding dimension E."""
        return self.model.embed_dim

    get_sentence_embedding_dimension = get_embedding_dimension

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **settings: Any) -> dict[str, Any]:
        """Preprocess texts to {"input_ids": (B, L)} or videos to {"clips": (B, 3, T, S, S)}; one kind per call.

        Raises:
            VideoError: a video that cannot be read. RecipeError: texts for a model without a text tower.
        """
        if all(isinstance(item, str) and not is_video(item) for item in inputs):
            tokenizer = self.model.text_tokenizer()
            return {"input_ids": tokenizer.encode([f"{prompt or ''}{text}" for text in inputs])}
        clips = [next(iter(self.model.preprocessing.read(video_source(item)))) for item in inputs]
        return {"clips": torch.stack(clips)}

    def forward(self, features: dict[str, Any], **settings: Any) -> dict[str, Any]:
        """Add the embeddings (B, E) float32, not L2-normalized, as "sentence_embedding"."""
        if "clips" in features:
            vectors = self.encoder.features(self.encoder.prepare(features["clips"], self.model.temporal_stride))
        else:
            dual = self.encoder.as_dual_encoder
            assert dual is not None  # preprocess has rejected texts
            vectors = dual.encode_text(features["input_ids"])
        return {**features, "sentence_embedding": vectors.float()}

    def save(self, output_path: str, *, safe_serialization: bool = True, **settings: Any) -> None:
        """Write the folder, as `VideoModel.save_pretrained`."""
        self.model.save_pretrained(output_path)

    @classmethod
    def load(
        cls, model_name_or_path: str, subfolder: str = "", revision: str | None = None, **settings: Any
    ) -> VideoModule:
        """Read a local folder, or a repository of the hub. Raises WeightsError as `internvideo.load`."""
        local = Path(model_name_or_path, subfolder)
        suffix = f"@{revision}" if revision else ""
        return cls(load(local if local.exists() else f"hf://{model_name_or_path}{suffix}", device="cpu"))


def video_source(item: Any) -> VideoSource:
    """Convert a video as passed by sentence-transformers or mteb to an input of `Preprocessing.read`.

    Raises:
        RecipeError: frames of another shape or type.
    """
    if isinstance(item, Mapping):
        item = item.get("video", item.get("array", item))
        return video_source(item) if not isinstance(item, Mapping) else video_source(item["array"])
    if isinstance(item, str | Path | Span):
        return item
    if isinstance(item, list | tuple):
        item = np.stack([np.asarray(frame) for frame in item])
    frames = item if isinstance(item, Tensor) else torch.from_numpy(np.ascontiguousarray(item))
    if frames.ndim == 4 and frames.shape[1] == 3 and frames.shape[-1] != 3:
        frames = frames.permute(0, 2, 3, 1)
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != torch.uint8:
        found = f"frames of shape {tuple(frames.shape)}, {str(frames.dtype).removeprefix('torch.')}"
        raise RecipeError("video", found, "(T, H, W, 3) or (T, 3, H, W) uint8")
    return frames.contiguous().numpy()
