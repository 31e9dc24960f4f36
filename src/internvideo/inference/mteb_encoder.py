"""Adapter to mteb, the embedding benchmark: `mteb.evaluate(MTEBEncoder(load(...)), tasks)`.

Videos are read by the reader and preprocessing of this package, so mteb needs no decoder and the measured embeddings
are those of `VideoModel.encode_video`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from internvideo.extras import require
from internvideo.inference.sentence_module import video_source
from internvideo.inference.video_model import VideoModel


class MTEBEncoder:
    """An encoder in the sense of mteb (`mteb.models.EncoderProtocol`).

    Args:
        model: with a text tower for tasks with texts. name: ORGANISATION/NAME in the results of mteb.

    The embedding of a row with text and video is the normalized mean of both L2-normalized vectors.

    Raises:
        ExtraError: mteb is not installed.
    """

    def __init__(self, model: VideoModel, name: str = "") -> None:
        require("mteb", "MTEBEncoder")
        self.model = model
        self.mteb_model_meta = self._meta(name or f"internvideo/{model.name}")

    def _meta(self, name: str) -> Any:
        from mteb.models.model_meta import ModelMeta

        dual = self.model.module.as_dual_encoder
        return ModelMeta(
            loader=None,
            name=name,
            revision=self.model.metadata.get("weights_sha256", "")[:40] or "untrained",
            release_date=None,
            languages=["eng-Latn"],
            n_parameters=sum(parameter.numel() for parameter in self.model.module.parameters()),
            memory_usage_mb=None,
            max_tokens=None if dual is None else dual.config.text.context_length,
            embed_dim=self.model.embed_dim,
            license=None,
            open_weights=True,
            public_training_code=None,
            public_training_data=None,
            framework=["PyTorch"],
            similarity_fn_name="cosine",
            use_instructions=False,
            training_datasets=None,
            modalities=["video"] if dual is None else ["text", "video"],
        )

    def encode(self, inputs: Any, **settings: Any) -> NDArray[np.float32]:
        """Encode the rows of mteb's data loader to L2-normalized embeddings (n, E). Raises VideoError."""
        with TemporaryDirectory() as folder:
            vectors = [self._embed(row) for row in _rows(inputs, Path(folder))]
        return np.stack(vectors) if vectors else np.zeros((0, self.model.embed_dim), dtype=np.float32)

    def _embed(self, row: Mapping[str, Any]) -> NDArray[np.float32]:
        vectors: list[Tensor] = []
        if row.get("text") is not None and "text" in self.model.capabilities:
            vectors.append(self.model.encode_text(str(row["text"]) if str(row["text"]).strip() else "."))
        if row.get("video") is not None:
            vectors.append(self.model.encode_video([video_source(row["video"])]))
        mean = torch.cat(vectors).mean(dim=0, keepdim=True)
        vector: NDArray[np.float32] = torch.nn.functional.normalize(mean, dim=1)[0].numpy()
        return vector

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Compute the cosines (n, m) of embeddings (n, E) or (E,) and (m, E) or (E,)."""
        return self.model.similarity(*self._rows(embeddings1, embeddings2))

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Compute the pairwise cosines (n,) of embeddings (n, E) or (E,)."""
        return torch.nn.functional.cosine_similarity(*self._rows(embeddings1, embeddings2))

    def _rows(self, *embeddings: Any) -> tuple[Tensor, Tensor]:
        first, second = (torch.as_tensor(part).reshape(-1, self.model.embed_dim) for part in embeddings)
        return first, second


def _rows(inputs: Any, folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a data loader with videos as paths; videos stored as bytes are written to `folder`."""
    data = inputs.dataset
    if "video" in getattr(data, "features", {}):
        from datasets import Video

        data = data.cast_column("video", Video(decode=False))
    for index, row in enumerate(data):
        video = row.get("video")
        if isinstance(video, Mapping) and video.get("bytes") is not None:
            path = folder / f"{index}-{hashlib.sha256(video['bytes']).hexdigest()[:8]}.mp4"
            path.write_bytes(video["bytes"])
            row = {**row, "video": path}
        elif isinstance(video, Mapping) and video.get("path"):
            row = {**row, "video": video["path"]}
        yield row
