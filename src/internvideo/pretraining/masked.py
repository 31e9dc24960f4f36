"""Stage 1: masked video modeling: mask 90 % of the tubelets and reconstruct their pixels.

Source: paper 3.1.1; engine_for_pretraining.py, masking_generator.py, modeling_pretrain.py, mae.py.
"""

from __future__ import annotations

from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor

from internvideo import distributed
from internvideo.data.batch import Batch
from internvideo.data.settings import ClipData, Settings
from internvideo.models.videomae import VideoMAEPretrain
from internvideo.objectives.masking import MaskKind, num_masked_tokens, sample_mask
from internvideo.objectives.reconstruction import pixel_targets, reconstruction_loss, unpatchify
from internvideo.training.clip_job import clip_job
from internvideo.training.recipe import Job, Recipe, Stage, StageSpec


class MaskedSettings(Settings):
    """Settings of mask and targets.

    Attributes:
        mask: kind of mask, see `objectives.masking`: "tube" (the same positions at every time; paper), "random",
            "progressive" or "center".
        ratio: fraction of masked tokens.
        normalize_targets: targets with mean 0 and standard deviation 1 per tubelet and channel.
    """

    mask: MaskKind = "tube"
    ratio: float = Field(0.9, gt=0.0, lt=1.0)
    normalize_targets: bool = True


class MaskedStage(Stage[VideoMAEPretrain, MaskedSettings]):
    """VideoMAE pretraining: clip -> {"loss": mean squared error over the masked tubelets}.

    Attributes:
        same_draws: the generators of all processes have the same seed, so that the mask of a clip does not depend on
            the number of processes (`distributed.draw_rows`).

    Raises:
        ValueError: the mask would cover no token of this model's clips, or all of them.
    """

    same_draws = True

    def __init__(self, model: VideoMAEPretrain, settings: MaskedSettings) -> None:
        super().__init__(model, settings)
        if not 0 < self.num_masked < model.config.num_tokens:
            raise ValueError(f"the {settings.mask} mask covers {self.num_masked} of {model.config.num_tokens} tokens")

    @property
    def num_masked(self) -> int:
        """M, masked tokens per clip, computed from the settings: counting them in a mask would sync the device."""
        return num_masked_tokens(self.settings.mask, self.model.config.grid, self.settings.ratio)

    def sample_mask(self, num_clips: int, generator: torch.Generator) -> Tensor:
        """Sample a mask (B, N) on the generator's device, True = masked, `masked` in every row."""
        grid = self.model.config.grid
        return sample_mask(self.settings.mask, num_clips, grid, self.settings.ratio, generator, generator.device)

    def targets(self, video: Tensor, mask: Tensor) -> Tensor:
        """uint8 (B, 3, T, S, S) and mask (B, N) -> (B, M, P) float32 pixels of the masked tubelets."""
        sizes = self.model.config.tubelet, self.model.config.patch_size
        return pixel_targets(video, mask, *sizes, normalize=self.settings.normalize_targets, num_masked=self.num_masked)

    def forward(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Compute the loss of one batch; the mask is sampled with `generator` on the batch's device."""
        mask = distributed.draw_rows(lambda num_clips: self.sample_mask(num_clips, generator), len(batch))
        predicted = self.model(self.model.normalize(batch.video), mask, self.model.config.num_tokens - self.num_masked)
        return {"loss": reconstruction_loss(predicted, self.targets(batch.video, mask))}

    @torch.no_grad()
    def reconstruct(self, video: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return uint8 clips (B, 3, T, S, S) with masked tubelets in gray, and clips with these reconstructed.

        Predictions of normalized targets are scaled with the mean and standard deviation of the true tubelet. Visible
        tubelets are those of the input.
        """
        config, mask = self.model.config, self.sample_mask(len(video), generator)
        predicted = self.model(self.model.normalize(video), mask, config.num_tokens - self.num_masked).float()
        all_tokens = torch.ones(len(video), config.num_tokens, dtype=torch.bool, device=video.device)
        sizes = config.tubelet, config.patch_size
        pixels = pixel_targets(video, all_tokens, *sizes, normalize=False, num_masked=config.num_tokens)
        if self.settings.normalize_targets:
            shape = (*predicted.shape[:2], predicted.shape[2] // 3, 3)
            variance, mean = torch.var_mean(pixels[mask].reshape(shape), dim=2, correction=1, keepdim=True)
            predicted = (predicted.reshape(shape) * (variance.sqrt() + 1e-6) + mean).flatten(2)
        masked, reconstructed = pixels.clone(), pixels.clone()
        masked[mask] = 0.5
        reconstructed[mask] = predicted.flatten(0, 1)
        videos = [unpatchify(tokens, config.grid, *sizes).clamp(0, 1) for tokens in (masked, reconstructed)]
        masked_clips, reconstructed_clips = [(clips * 255).round().to(torch.uint8) for clips in videos]
        return masked_clips, reconstructed_clips


def build(recipe: Recipe, skipped: Path | None) -> Job:
    """Build the job of a recipe. Raises as `clip_job`."""
    settings = recipe.settings_as(MaskedSettings)
    return clip_job(recipe, skipped, lambda model: MaskedStage(model, settings), settings_key="settings.ratio")


STAGE = StageSpec(
    name="masked",
    about="reconstruct the masked tubes, 90 % in the paper (VideoMAE)",
    settings=MaskedSettings,
    data=ClipData,
    stage=MaskedStage,
    models=(VideoMAEPretrain,),
    build=build,
)
