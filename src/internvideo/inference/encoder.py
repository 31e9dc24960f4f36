"""Define InternVideoEncoder: encode videos and texts with the interface of the sentence-transformers library.

Retrieval tools that take such an encoder can search videos with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from internvideo.data.lists import VIDEO_EXTENSIONS
from internvideo.data.preprocessing import Span, VideoSource
from internvideo.errors import RecipeError
from internvideo.inference.loading import load
from internvideo.inference.video_model import Precision, VideoModel

Item = str | Path | Span | NDArray[np.uint8] | Tensor
Vectors = Tensor | NDArray[Any] | list[Tensor] | list[NDArray[Any]]


class InternVideoEncoder:
    """Encode videos and texts into one space.

    Args:
        name_or_path: as in `internvideo.load`, or a loaded `VideoModel`.
        weights: as in `internvideo.load`, as are device and precision.

    Raises:
        WeightsError, RecipeError: as `internvideo.load`.
    """

    def __init__(
        self,
        name_or_path: str | Path | VideoModel,
        *,
        weights: str | Path | None = None,
        device: str = "auto",
        precision: Precision = "float32",
    ) -> None:
        if isinstance(name_or_path, VideoModel):
            self.model = name_or_path
        else:
            self.model = load(name_or_path, weights=weights, device=device, precision=precision)

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return self.model.device

    def encode(
        self,
        inputs: Item | Sequence[Item],
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 8,
        show_progress_bar: bool | None = False,
        *,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
    ) -> Any:
        """Encode videos and texts, which may be mixed, in the order given.

        Args:
            inputs: one or several of: a path, a `Span`, uint8 frames (T, H, W, 3), or a text. A string is a video
                if it names an existing file or has the suffix of a video, otherwise a text.
            prompt_name: must be None; there are no named prompts. prompt: prefix of each text.
            batch_size: clips per batch. show_progress_bar: on stderr.
            convert_to_numpy: a float32 array (n, E), or (E,) for one item; otherwise a list of tensors (E,).
            convert_to_tensor: a tensor (n, E) or (E,) instead.
            normalize_embeddings: L2-normalize. truncate_dim: number of leading dimensions to keep.

        Raises:
            VideoError: a video that cannot be read. RecipeError: a text for a model without a text tower, a named
                prompt, or a dimension out of range.
        """
        if prompt_name is not None:
            raise RecipeError("prompt_name", repr(prompt_name), "None", "give the prompt itself")
        if truncate_dim is not None and not 1 <= truncate_dim <= self.model.embed_dim:
            raise RecipeError("truncate_dim", str(truncate_dim), f"1 to {self.model.embed_dim}")
        single = isinstance(inputs, str | Path | Span) or (isinstance(inputs, np.ndarray | Tensor) and inputs.ndim == 4)
        items: list[Item] = [inputs] if single else list(inputs)  # type: ignore[arg-type,list-item]  # checked above
        vectors = torch.empty(len(items), self.model.embed_dim)
        texts = [index for index, item in enumerate(items) if isinstance(item, str) and not is_video(item)]
        videos = sorted(set(range(len(items))) - set(texts))
        with tqdm(total=len(items), desc="encode", unit="item", disable=not show_progress_bar) as bar:
            if texts:
                prompted_texts = [(prompt or "") + str(items[index]) for index in texts]
                vectors[texts] = self.model.encode_text(prompted_texts, normalize=False)
                bar.update(len(texts))
            for start in range(0, len(videos), batch_size):
                group = videos[start : start + batch_size]
                sources: list[VideoSource] = [items[index] for index in group]
                vectors[group] = self.model.encode_video(sources, batch_size=batch_size, normalize=False)
                bar.update(len(group))
        vectors = vectors[:, :truncate_dim]
        if normalize_embeddings:
            vectors = torch.nn.functional.normalize(vectors, dim=1)
        result = vectors if convert_to_tensor else vectors.numpy() if convert_to_numpy else list(vectors)
        return result[0] if single else result

    def encode_query(self, inputs: Item | Sequence[Item], *args: Any, **settings: Any) -> Any:
        """Encode queries with `encode`: queries and documents share one space."""
        return self.encode(inputs, *args, **settings)

    def encode_document(self, inputs: Item | Sequence[Item], *args: Any, **settings: Any) -> Any:
        """Encode documents with `encode`."""
        return self.encode(inputs, *args, **settings)

    def similarity(self, a: Vectors, b: Vectors) -> Tensor:
        """Compute the cosines (n, m) of vectors (n, E) or (E,) and (m, E) or (E,)."""
        return _l2_normalize(a) @ _l2_normalize(b).T

    def similarity_pairwise(self, a: Vectors, b: Vectors) -> Tensor:
        """Compute the cosines (n,) of corresponding rows of vectors (n, E) or (E,) and (n, E) or (E,)."""
        return (_l2_normalize(a) * _l2_normalize(b)).sum(dim=1)

    @property
    def similarity_fn_name(self) -> str:
        """Name of the similarity function."""
        return "cosine"

    @property
    def modalities(self) -> list[str]:
        """Supported modalities."""
        return ["video", "image", *(["text"] if "text" in self.model.capabilities else [])]

    def supports(self, modality: str | tuple[str, ...]) -> bool:
        """Return whether a modality is supported; combinations (tuples) are not."""
        return modality in self.modalities

    def get_embedding_dimension(self) -> int:
        """Return E."""
        return self.model.embed_dim

    get_sentence_embedding_dimension = get_embedding_dimension


def _l2_normalize(vectors: Vectors) -> Tensor:
    """L2-normalize vectors (n, E) or (E,), or a list of vectors -> (n, E)."""
    rows = torch.stack([*map(torch.as_tensor, vectors)]) if isinstance(vectors, list) else torch.as_tensor(vectors)
    return torch.nn.functional.normalize(rows.float().reshape(-1, rows.shape[-1]), dim=1)


def is_video(text: str) -> bool:
    """Return whether a string is the path of a video: an existing file, or a name with the suffix of a video."""
    if "\n" in text or "\0" in text or len(text) > 4096:
        return False
    if text.lower().endswith(tuple(VIDEO_EXTENSIONS)):
        return True
    try:
        return Path(text).is_file()
    except OSError:  # longer than a file name may be
        return False
