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
        name_or_path, weights, device, precision: as `internvideo.load`; or a `VideoModel` that is already open.

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
        """Where the model runs."""
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
        """Vectors of videos and texts, in the order given; they may be mixed.

        Args:
            inputs: one or several of: a path, a `Span`, uint8 frames (T, H, W, 3), or a text. A string is a video
                when it names an existing file or ends like a video file, else a text.
            prompt_name: None; there are no named prompts. prompt: stands before each text.
            batch_size: clips at once.
            show_progress_bar: on the error stream.
            convert_to_numpy: a float32 array (n, E), or (E,) for one item; otherwise a list of tensors (E,).
            convert_to_tensor: a tensor (n, E) or (E,) instead.
            normalize_embeddings: to length one. truncate_dim: the first so many numbers of each vector.

        Raises:
            VideoError: a video that cannot be read. RecipeError: a text, but the model has no text tower; a named
                prompt, or numbers that the vectors do not have.
        """
        if prompt_name is not None:
            raise RecipeError("prompt_name", repr(prompt_name), "None", "give the prompt itself")
        if truncate_dim is not None and not 1 <= truncate_dim <= self.model.embed_dim:
            raise RecipeError("truncate_dim", str(truncate_dim), f"1 to {self.model.embed_dim}")
        alone = isinstance(inputs, str | Path | Span) or (isinstance(inputs, np.ndarray | Tensor) and inputs.ndim == 4)
        items: list[Item] = [inputs] if alone else list(inputs)  # type: ignore[arg-type,list-item]  # told apart above
        found = torch.empty(len(items), self.model.embed_dim)
        texts = [place for place, item in enumerate(items) if isinstance(item, str) and not is_video(item)]
        videos = sorted(set(range(len(items))) - set(texts))
        with tqdm(total=len(items), desc="encode", unit="item", disable=not show_progress_bar) as bar:
            if texts:
                found[texts] = self.model.encode_text(
                    [(prompt or "") + str(items[place]) for place in texts], normalize=False
                )
                bar.update(len(texts))
            for start in range(0, len(videos), batch_size):
                group = videos[start : start + batch_size]
                sources: list[VideoSource] = [items[place] for place in group]
                found[group] = self.model.encode_video(sources, batch_size=batch_size, normalize=False)
                bar.update(len(group))
        found = found[:, :truncate_dim]
        if normalize_embeddings:
            found = torch.nn.functional.normalize(found, dim=1)
        if convert_to_tensor:
            return found[0] if alone else found
        if convert_to_numpy:
            array = found.numpy()
            return array[0] if alone else array
        return found[0] if alone else list(found)

    def encode_query(self, inputs: Item | Sequence[Item], *given: Any, **settings: Any) -> Any:
        """Encode what is searched for, as `encode`: queries and documents share one space here."""
        return self.encode(inputs, *given, **settings)

    def encode_document(self, inputs: Item | Sequence[Item], *given: Any, **settings: Any) -> Any:
        """Encode what is searched through, as `encode`."""
        return self.encode(inputs, *given, **settings)

    def similarity(self, a: Vectors, b: Vectors) -> Tensor:
        """Cosines (n, m) of vectors (n, E) or (E,) and (m, E) or (E,)."""
        return _unit(a) @ _unit(b).T

    def similarity_pairwise(self, a: Vectors, b: Vectors) -> Tensor:
        """Cosines (n,) of the rows of vectors (n, E) or (E,) and (n, E) or (E,)."""
        return (_unit(a) * _unit(b)).sum(dim=1)

    @property
    def similarity_fn_name(self) -> str:
        """Name of the measure of `similarity`."""
        return "cosine"

    @property
    def modalities(self) -> list[str]:
        """What it encodes."""
        return ["video", "image", *(["text"] if "text" in self.model.capabilities else [])]

    def supports(self, modality: str | tuple[str, ...]) -> bool:
        """Whether it encodes a modality; several at once it does not join."""
        return modality in self.modalities

    def get_embedding_dimension(self) -> int:
        """E."""
        return self.model.embed_dim

    def get_sentence_embedding_dimension(self) -> int:
        """E."""
        return self.model.embed_dim


def _unit(vectors: Vectors) -> Tensor:
    """(n, E) of length one from vectors (n, E) or (E,), or a list of vectors."""
    parts = [torch.as_tensor(part) for part in vectors] if isinstance(vectors, list) else None
    rows = torch.as_tensor(vectors) if parts is None else torch.stack(parts)
    return torch.nn.functional.normalize(rows.float().reshape(-1, rows.shape[-1]), dim=1)


def is_video(text: str) -> bool:
    """Whether a string means a video: an existing file, or a name that ends like one."""
    if "\n" in text or "\0" in text or len(text) > 4096:
        return False
    if text.lower().endswith(tuple(VIDEO_EXTENSIONS)):
        return True
    try:
        return Path(text).is_file()
    except OSError:  # longer than a file name can be
        return False
