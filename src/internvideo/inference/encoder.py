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
from internvideo.inference.loading import load
from internvideo.inference.video_model import Precision, VideoModel

Item = str | Path | Span | NDArray[np.uint8] | Tensor


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
        sentences: Item | Sequence[Item],
        *,
        batch_size: int = 8,
        show_progress_bar: bool = False,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        normalize_embeddings: bool = False,
    ) -> Any:
        """Vectors of videos and texts, in the order given; they may be mixed.

        Args:
            sentences: one or several of: a path, a `Span`, uint8 frames (T, H, W, 3), or a text. A string is a video
                when it names an existing file or ends like a video file, else a text.
            batch_size: clips at once.
            show_progress_bar: on the error stream.
            convert_to_numpy: a float32 array (n, E), or (E,) for one item; otherwise a list of tensors (E,).
            convert_to_tensor: a tensor (n, E) or (E,) instead.
            normalize_embeddings: to length one.

        Raises:
            VideoError: a video that cannot be read. RecipeError: a text, but the model has no text tower.
        """
        alone = isinstance(sentences, str | Path | Span) or (
            isinstance(sentences, np.ndarray | Tensor) and sentences.ndim == 4
        )
        items: list[Item] = [sentences] if alone else list(sentences)  # type: ignore[arg-type,list-item]  # told apart above
        found = torch.empty(len(items), self.model.embed_dim)
        texts = [place for place, item in enumerate(items) if isinstance(item, str) and not is_video(item)]
        videos = sorted(set(range(len(items))) - set(texts))
        with tqdm(total=len(items), desc="encode", unit="item", disable=not show_progress_bar) as bar:
            if texts:
                found[texts] = self.model.encode_text([str(items[place]) for place in texts], normalize=False)
                bar.update(len(texts))
            for start in range(0, len(videos), batch_size):
                group = videos[start : start + batch_size]
                sources: list[VideoSource] = [items[place] for place in group]
                found[group] = self.model.encode_video(sources, batch_size=batch_size, normalize=False)
                bar.update(len(group))
        if normalize_embeddings:
            found = torch.nn.functional.normalize(found, dim=1)
        if convert_to_tensor:
            return found[0] if alone else found
        if convert_to_numpy:
            array = found.numpy()
            return array[0] if alone else array
        return found[0] if alone else list(found)

    def similarity(self, a: Tensor | NDArray[Any], b: Tensor | NDArray[Any]) -> Tensor:
        """Cosines (n, m) of vectors (n, E) or (E,) and (m, E) or (E,)."""
        left, right = (torch.as_tensor(part, dtype=torch.float32).reshape(-1, self.model.embed_dim) for part in (a, b))
        return self.model.similarity(left, right)

    def get_sentence_embedding_dimension(self) -> int:
        """E."""
        return self.model.embed_dim


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
