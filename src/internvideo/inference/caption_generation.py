"""A model's caption decoder with its way of writing: clips to sentences."""

from __future__ import annotations

import torch
from torch import Tensor

from internvideo.data.tokenizer import Tokenizer
from internvideo.errors import RecipeError
from internvideo.inference.families import seen
from internvideo.models.video_language import VideoLanguage


class CaptionWriter:
    """Writes a sentence for each clip.

    Args:
        model: one with a caption decoder, in evaluation mode. tokenizer: of its text tower.
        beams: 1 takes the likeliest word each time; more keep as many beginnings.
        nucleus: over 0, words are drawn from the likeliest that hold this share of the probability, from `seed`.
        max_length: most word pieces with start and end, 0 for the tower's context.

    Raises:
        RecipeError: settings out of range.
    """

    def __init__(
        self,
        model: VideoLanguage,
        tokenizer: Tokenizer,
        *,
        beams: int = 1,
        nucleus: float = 0.0,
        seed: int = 0,
        max_length: int = 0,
    ) -> None:
        context = model.config.text.context
        if beams < 1 or not (max_length == 0 or 2 <= max_length <= context):
            raise RecipeError("caption", f"beams {beams}, max_length {max_length}", f"beams >= 1, 0 or 2 to {context}")
        if not 0 <= nucleus <= 1 or (nucleus and beams > 1):
            raise RecipeError("caption", f"beams {beams}, nucleus {nucleus:g}", "a nucleus up to 1, and then one beam")
        self.model, self.tokenizer = model, tokenizer
        self.beams, self.nucleus, self.max_length = beams, nucleus, max_length
        self.draws = torch.Generator().manual_seed(seed)

    def __call__(self, clips: Tensor) -> list[str]:
        """Clips (B, 3, T, S, S) as the model's preprocessing makes them, on its device -> B sentences."""
        ids = self.model.generate(
            seen(self.model, clips),
            start=self.tokenizer.start,
            end=self.tokenizer.end,
            max_length=self.max_length,
            beams=self.beams,
            nucleus=self.nucleus,
            generator=self.draws,
        )
        return [self.tokenizer.decode(row, special=False) for row in ids.cpu()]
