"""Stage 2: video-language learning. Contrastive loss of clips and captions, and captioning loss.

Captions that occur several times in a batch need no special treatment. The published loss counts only the clip's own
caption as positive, ViCLIP's all equal captions with equal weights; as equal captions have equal features, both have
the same gradients. Only the minimum differs: the mean logarithm of the captions' counts instead of zero.

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
from internvideo.pretraining.gradient_cache import ChunkSettings, encode_chunked
from internvideo.training.clip_job import clip_job, clip_loader
from internvideo.training.loop import BatchSource
from internvideo.training.model_setup import setting_errors
from internvideo.training.recipe import Job, Recipe, Stage, StageSpec
from internvideo.training.vocabulary_subset import logit_indices, reset_masked_bias, train_subset, used_token_ids


class MultimodalSettings(ChunkSettings):
    """Weights and memory limits of the two losses.

    Attributes:
        contrastive_weight, caption_weight: the loss is the weighted sum (1 and 1 in the released code).
        max_captioned_clips: compute the captioning loss only of the first clips of a process's batch, because the
            logits of a clip are as large as the vocabulary. The loss is the mean over the tokens of all processes.
        vocabulary: "occurring" embeds, predicts and trains only the token ids of the training captions; the others stay
            unchanged and are never generated. It saves most of a small model's step; the released code trains all.
    """

    contrastive_weight: float = Field(1.0, ge=0.0)
    caption_weight: float = Field(1.0, ge=0.0)
    max_captioned_clips: int | None = Field(None, ge=1)
    caption_chunk_size: int | None = Field(
        None, ge=1, description="tokens whose logits are computed at a time; the loss stays the same; all by default"
    )
    vocabulary: Literal["all", "occurring"] = "all"


class MultimodalStage(Stage[VideoLanguage, MultimodalSettings]):
    """Contrastive and captioning losses of a batch of captioned clips (or images: T = 1).

    Args:
        model: the video-language model; without a caption decoder `caption_weight` must be 0.
        settings: weights of the losses.
        divisor: see `Stage`; of the number of caption tokens.
    """

    def __init__(self, model: VideoLanguage, settings: MultimodalSettings, divisor: Divisor = at_least_one) -> None:
        super().__init__(model, settings, divisor)
        if settings.caption_weight > 0 and model.caption_decoder is None:
            raise ValueError("caption_weight > 0 needs a model with a caption decoder")
        if settings.caption_weight == 0 and model.caption_decoder is not None:  # it would have no gradient
            model.caption_decoder.requires_grad_(False)
        reset_masked_bias(model)
        if model.text.mask_embedding is not None:  # only masked language modelling reads it
            model.text.mask_embedding.requires_grad_(False)

    def forward(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Compute {"loss", "contrastive", "caption"} of a batch with `text_ids`."""
        self.model.clamp_logit_scale()
        max_captioned = self.settings.max_captioned_clips if self.settings.caption_weight > 0 else 0
        caption_chunk_size = self.settings.caption_chunk_size

        def encode(video: Tensor, ids: Tensor, frame_mask: Tensor | None, start: int) -> tuple[Tensor, ...]:
            num_captioned = len(ids) if max_captioned is None else min(max(max_captioned - start, 0), len(ids))
            video = self.model.normalize(video)
            encoded = self.model(
                video, ids, max_captioned_clips=num_captioned, frame_mask=frame_mask, predict=not caption_chunk_size
            )
            if encoded.caption_logits is None and encoded.caption_features is None:
                return encoded.video, encoded.text
            padding, targets = after_end(ids[:num_captioned]), logit_indices(self.model, ids[:num_captioned])
            if encoded.caption_features is not None and caption_chunk_size:
                predict = self.model.predict_tokens
                loss = chunked_caption_loss(encoded.caption_features, predict, targets, caption_chunk_size, padding)
            elif encoded.caption_logits is not None:
                loss = caption_loss(encoded.caption_logits, targets, padding)
            return encoded.video, encoded.text, loss, (~padding[:, 1:]).sum()

        chunks = encode_chunked(encode, batch, self.settings.encode_chunk_size)
        video, text = (torch.cat([chunk[index] for chunk in chunks]) for index in (0, 1))
        contrastive = global_contrastive(video, text, self.model.scale, self.settings.similarity_chunk_size)
        losses = {"contrastive": contrastive, "loss": self.settings.contrastive_weight * contrastive}
        captioning = [chunk[2:] for chunk in chunks if len(chunk) > 2]
        if captioning:
            means, counts = (torch.stack(column).to(contrastive) for column in zip(*captioning, strict=True))
            losses["caption"] = (means * (counts / self.divisor(counts.sum()))).sum()
            losses["loss"] = losses["loss"] + self.settings.caption_weight * losses["caption"]
        return losses


class MultimodalData(CaptionedClipData):
    """Captioned clips, and optionally captioned images."""

    image_manifest: Path | None = Field(
        None, description="manifest of captioned images or videos; every second batch is then of single frames of these"
    )
    image_shards: str | None = Field(
        None, description="captioned images in tar shards instead: a folder, or a URL like s3://x/{00000..00099}.tar"
    )
    shard_index: Path | None = Field(None, description="folder for the index of the shards' contents")
    image_batch_size: int | None = Field(None, ge=1, description="images per batch; by default data.loader.batch_size")


def build(recipe: Recipe, skipped: Path | None) -> Job:
    """Build the job of a recipe. Raises as `clip_job`."""
    settings, data = recipe.settings_as(MultimodalSettings), recipe.data_as(MultimodalData)

    def loader(manifest: Manifest, model: VideoLanguage) -> BatchSource:
        tokenizer = Tokenizer(context_length=model.config.text.context_length)
        if settings.vocabulary == "occurring":
            train_subset(model, used_token_ids(_iterate_captions(recipe, manifest, data), tokenizer.context_length))
        return _add_image_batches(clip_loader(recipe, manifest, skipped, tokenizer), data, skipped, tokenizer)

    job = clip_job(
        recipe,
        skipped,
        lambda model: MultimodalStage(model, settings, divisor=distributed.divisor),
        make_loader=loader,
        captions=data.captions,
        settings_key="settings.caption_weight",
    )
    if isinstance(job.loader, AlternatingLoader):
        return replace(job, data_fingerprints={"image_rows": job.loader.images.samples.fingerprint})
    return job


def _iterate_captions(recipe: Recipe, manifest: Manifest, data: MultimodalData) -> Iterator[str]:
    """Yield all captions of a run. Raises RecipeError with image shards, which are not read in advance, or with EMA."""
    if data.image_shards is not None:
        raise RecipeError("settings.vocabulary", "occurring, with captions in data.image_shards", "all")
    if recipe.loop.ema_decay is not None:
        raise RecipeError("settings.vocabulary", "occurring, with loop.ema_decay", "all, or no averages")
    for rows in (manifest, None if data.image_manifest is None else read_manifest(data.image_manifest)):
        for row in () if rows is None else rows.rows:
            yield from row.captions


def _add_image_batches(videos: Loader, data: MultimodalData, skipped: Path | None, tokenizer: Tokenizer) -> BatchSource:
    """Alternate batches of clips and of images if the recipe has images. Raises RecipeError, ManifestError."""
    if data.image_shards is None and data.image_manifest is None:
        return videos
    sampler = data.sampling.build()
    with setting_errors("data.augment"):
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
    name="multimodal",
    about="match clips and captions, generate captions (UniFormerV2 on CLIP)",
    settings=MultimodalSettings,
    data=MultimodalData,
    stage=MultimodalStage,
    models=(VideoLanguage,),
    build=build,
)
