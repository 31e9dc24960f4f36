"""Generate captions of clips with a model's caption decoder: greedy, beam search or nucleus sampling."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from internvideo.data.tokenizer import Tokenizer
from internvideo.errors import RecipeError
from internvideo.models.video_language import VideoLanguage


class CaptionGenerator:
    """Generate a caption for each clip.

    Args:
        model: with a caption decoder, in evaluation mode. tokenizer: of its text tower.
        num_beams: beam search with this many beams; 1 is greedy decoding.
        top_p: above 0: nucleus sampling with this probability mass, seeded by `seed`; `num_beams` must be 1.
        max_length: maximum tokens, start and end included; 0 for the context length of the text tower.

    Raises:
        RecipeError: settings out of range.
    """

    def __init__(
        self,
        model: VideoLanguage,
        tokenizer: Tokenizer,
        *,
        num_beams: int = 1,
        top_p: float = 0.0,
        seed: int = 0,
        max_length: int = 0,
    ) -> None:
        context = model.config.text.context_length
        if num_beams < 1 or not (max_length == 0 or 2 <= max_length <= context):
            expected = f"num_beams >= 1, max_length 0 or 2 to {context}"
            raise RecipeError("caption", f"num_beams {num_beams}, max_length {max_length}", expected)
        if not 0 <= top_p <= 1 or (top_p and num_beams > 1):
            found = f"num_beams {num_beams}, top_p {top_p:g}"
            raise RecipeError("caption", found, "top_p 0 to 1, and num_beams 1 with it")
        self.model, self.tokenizer = model, tokenizer
        self.num_beams, self.top_p, self.max_length = num_beams, top_p, max_length
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, clips: Tensor) -> list[str]:
        """Generate B captions for clips (B, 3, T, S, S) of the preprocessing, on the device of the model."""
        settings: dict[str, Any] = {"start": self.tokenizer.start, "end": self.tokenizer.end}
        settings |= {"max_length": self.max_length, "num_beams": self.num_beams}
        settings |= {"top_p": self.top_p, "generator": self.generator}
        ids = self.model.generate(self.model.prepare(clips), **settings)
        return [self.tokenizer.decode(row, special=False) for row in ids.cpu()]
