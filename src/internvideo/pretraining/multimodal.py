"""Stage 2: video-language learning. Contrastive loss of clips and captions, and captioning loss.

Captions that occur several times in a batch need no handling: equal texts have equal features, and then the published
loss, which accepts only the own pair, has the gradients of the one that accepts equal captions with equal weights
(ViCLIP's). Its minimum is the mean logarithm of the captions' counts instead of zero.

Source: paper 3.1.2 and 4.2.1; Multi-Modalities-Pretraining, multi-modalities-downstream.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from internvideo import distributed
from internvideo.data.batch import Batch
from internvideo.data.loader import Loader
from internvideo.data.manifest import Manifest, read_manifest
from internvideo.data.mixture import AlternatingLoader
from internvideo.data.settings import CaptionedClipData
from internvideo.data.shards import ShardLoader, read_shards
from internvideo.data.tokenizer import Tokenizer
from internvideo.errors import RecipeError
from internvideo.models.video_language import VideoLanguage
from internvideo.objectives.captioning import after_end, caption_loss, chunked_caption_loss
from internvideo.objectives.classification import Divisor, at_least_one
from internvideo.pretraining.global_contrastive import global_contrastive
from internvideo.pretraining.gradient_cache import PartSettings, in_parts
from internvideo.training.clip_job import clip_job, clip_loader
from internvideo.training.loop import BatchSource
from internvideo.training.model_setup import setting
from internvideo.training.recipe import Job, Recipe, Stage, StageSpec
from internvideo.training.vocabulary_subset import rows_of, token_ids, train_subset, unmask


class MultimodalSettings(PartSettings):
    """Weights of the two losses (the released code sums them).

    Attributes:
        max_captioned_clips: limits captioning to the first clips of every batch of a process, because its logits are as
            large as the vocabulary. The mean is over the tokens of all processes.
        vocabulary: "occurring" embeds, predicts and trains only the token ids of the training captions; the others stay
            unchanged and are never generated. It saves most of a small model's step; the released code trains all.
    """

    contrastive_weight: float = Field(1.0, ge=0.0)
    caption_weight: float = Field(1.0, ge=0.0)
    max_captioned_clips: int | None = Field(None, ge=1)
    caption_chunk_size: int | None = Field(
        None, ge=1, description="words whose logits exist at a time, with the same loss and gradients; all by default"
    )
    vocabulary: Literal["all", "occurring"] = "all"


class MultimodalStage(Stage[VideoLanguage, MultimodalSettings]):
    """Contrastive and captioning losses of a batch of captioned clips (or images: T = 1).

    Args:
        model: the video-language model; without a caption decoder `caption_weight` must be 0.
        settings: the loss weights.
        divisor: of the number of tokens of this process.
    """

    def __init__(self, model: VideoLanguage, settings: MultimodalSettings, divisor: Divisor = at_least_one) -> None:
        super().__init__(model, settings, divisor)
        if settings.caption_weight > 0 and model.caption_decoder is None:
            raise ValueError("caption_weight > 0 needs a model with a caption decoder")
        if settings.caption_weight == 0 and model.caption_decoder is not None:  # it would have no gradient
            model.caption_decoder.requires_grad_(False)
        unmask(model)
        if model.text.mask_embedding is not None:  # only masked language modelling reads it
            model.text.mask_embedding.requires_grad_(False)

    def forward(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Compute {"loss", "contrastive", "caption"} of one batch with tokens."""
        self.model.clamp_logit_scale()
        limit = self.settings.max_captioned_clips if self.settings.caption_weight > 0 else 0
        chunk = self.settings.caption_chunk_size

        def encode(video: Tensor, tokens: Tensor, frame_mask: Tensor | None, start: int) -> tuple[Tensor, ...]:
            count = len(tokens) if limit is None else min(max(limit - start, 0), len(tokens))
            video = self.model.normalize(video)
            encoded = self.model(video, tokens, max_captioned_clips=count, frame_mask=frame_mask, predict=not chunk)
            if encoded.caption_logits is None and encoded.caption_features is None:
                return encoded.video, encoded.text
            padding, targets = after_end(tokens[:count]), rows_of(self.model, tokens[:count])
            if encoded.caption_features is not None and chunk:
                predict = self.model.predict_words
                loss = chunked_caption_loss(encoded.caption_features, predict, targets, chunk, padding)
            elif encoded.caption_logits is not None:
                loss = caption_loss(encoded.caption_logits, targets, padding)
            return encoded.video, encoded.text, loss, (~padding[:, 1:]).sum()

        parts = in_parts(encode, batch, self.settings.encode_chunk_size)
        video, text = (torch.cat([part[index] for part in parts]) for index in (0, 1))
        contrastive = global_contrastive(video, text, self.model.scale, self.settings.similarity_chunk_size)
        losses = {"contrastive": contrastive, "loss": self.settings.contrastive_weight * contrastive}
        captioned = [part[2:] for part in parts if len(part) > 2]
        if captioned:
            means, counts = (torch.stack(column).to(contrastive) for column in zip(*captioned, strict=True))
            losses["caption"] = (means * (counts / self.divisor(counts.sum()))).sum()
            losses["loss"] = losses["loss"] + self.settings.caption_weight * losses["caption"]
        return losses


class MultimodalData(CaptionedClipData):
    """Captioned clips, and optionally captioned images."""

    image_manifest: Path | None = Field(
        None, description="captioned images or videos; every second batch is then of single frames"
    )
    image_shards: str | None = Field(
        None, description="the same from tar shards: a folder, or an address like s3://x/{00000..00099}.tar"
    )
    shard_index: Path | None = Field(None, description="folder for the index of the shards' contents")
    image_batch_size: int | None = Field(None, ge=1, description="of the image batches; that of the videos by default")


def build(recipe: Recipe, skipped: Path | None) -> Job:
    """Build the job of a recipe. Raises as `clip_job`."""
    settings, data = recipe.settings_as(MultimodalSettings), recipe.data_as(MultimodalData)

    def loader(manifest: Manifest, model: VideoLanguage) -> BatchSource:
        tokenizer = Tokenizer(context_length=model.config.text.context)
        if settings.vocabulary == "occurring":
            train_subset(model, token_ids(_captions(recipe, manifest, data), tokenizer.context_length))
        return _with_images(clip_loader(recipe, manifest, skipped, tokenizer), data, skipped, tokenizer)

    job = clip_job(
        recipe,
        skipped,
        lambda model: MultimodalStage(model, settings, divisor=distributed.divisor),
        make_loader=loader,
        captions=data.captions,
        settings="settings.caption_weight",
    )
    if isinstance(job.loader, AlternatingLoader):
        return replace(job, facts={"image_rows": job.loader.images.sample_index.fingerprint})
    return job


def _captions(recipe: Recipe, manifest: Manifest, data: MultimodalData) -> Iterator[str]:
    """Yield all captions of a run. Raises RecipeError where they are unknown before training, or with averages."""
    if data.image_shards is not None:
        raise RecipeError("settings.vocabulary", "occurring, with captions in data.image_shards", "all")
    if recipe.loop.ema_decay is not None:
        raise RecipeError("settings.vocabulary", "occurring, with loop.ema_decay", "all, or no averages")
    for rows in (manifest, None if data.image_manifest is None else read_manifest(data.image_manifest)):
        for row in () if rows is None else rows.rows:
            yield from row.captions


def _with_images(videos: Loader, data: MultimodalData, skipped: Path | None, tokenizer: Tokenizer) -> BatchSource:
    """Alternate batches of clips and of images, if the recipe names images. Raises RecipeError, ManifestError."""
    if data.image_shards is None and data.image_manifest is None:
        return videos
    sampler = data.sampling.build()
    with setting("data.augment"):
        transform = data.augment.train_transform()
    images = replace(data.loader, single_frame=True, batch_size=data.image_batch_size or data.loader.batch_size)
    if data.image_shards is None:
        assert data.image_manifest is not None
        rows = read_manifest(data.image_manifest).with_notes_logged()
        return AlternatingLoader(videos, Loader(rows, sampler, transform, images, tokenizer=tokenizer, skipped=skipped))
    if data.image_manifest is not None:
        raise RecipeError("data.image_shards", "data.image_manifest is given too", "one of them")
    shards = read_shards(data.image_shards, data.shard_index)
    return AlternatingLoader(
        videos, ShardLoader(shards, sampler, transform, images, tokenizer=tokenizer, skipped=skipped)
    )


STAGE = StageSpec(
    "multimodal",
    "match clips and captions, generate captions (UniFormerV2 on CLIP)",
    MultimodalSettings,
    MultimodalData,
    MultimodalStage,
    (VideoLanguage,),
    build,
)
