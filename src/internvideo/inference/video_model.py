"""Define VideoModel: inference with a trained model and its preprocessing.

Shapes: n videos, B batch, T frames, S side, N tokens, D dimension of a token, E dimension of the features.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar, cast, get_args

import numpy as np
import torch
from torch import Tensor, nn

from internvideo.data.preprocessing import Preprocessing, Span, VideoSource, as_list
from internvideo.data.tokenizer import Tokenizer
from internvideo.distributed import choose_device
from internvideo.errors import RecipeError, TextError
from internvideo.inference import hub_folder
from internvideo.inference.caption_generation import CaptionGenerator
from internvideo.inference.families import Precision, overrides_of, published_preprocessing, video_encoder
from internvideo.inference.hub_model import HubModel
from internvideo.metrics.classification import merge_rows, softmax, zero_shot_probabilities
from internvideo.models.embeddings import Normalize
from internvideo.models.encoder import VideoEncoder
from internvideo.models.video_language import VideoLanguage
from internvideo.tasks.zero_shot.templates import ACTION_TEMPLATES, fill_templates

__all__ = ["Precision", "Span", "VideoModel", "VideoSource"]

Item = TypeVar("Item")

TEXT_BATCH_SIZE = 256
CLIP_VOCAB_SIZE = 49408
"""Size of CLIP's vocabulary, which our tokenizer uses."""


class VideoModel(HubModel):
    """A model in evaluation mode with its preprocessing; created by `internvideo.load`.

    Args:
        name: key of MODELS. module: built by `create_model(name)`.
        preprocessing: from videos to clips; by default the published one of the model.
        class_names: names of the classes of the classifier; by default their indices.
        metadata: provenance of the weights.
        device: of the module. precision: compute dtype; outputs are float32.
        temporal_stride: for a `CrossModel`: its multimodal encoder uses every `temporal_stride`-th frame of a clip.

    Attributes:
        name, module, preprocessing, class_names, metadata, device, precision, temporal_stride: as above; `class_names`
            is () without a classifier.

    Raises:
        RecipeError: a module that does not encode videos by itself, or a wrong number of class names.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        *,
        preprocessing: Preprocessing | None = None,
        class_names: Sequence[str] = (),
        metadata: dict[str, str] | None = None,
        device: torch.device | str = "cpu",
        precision: Precision = "float32",
        temporal_stride: int = 1,
    ) -> None:
        encoder = video_encoder(module, name)
        num_classes = encoder.num_classes
        names = tuple(class_names) or tuple(str(index) for index in range(num_classes))
        if len(names) != num_classes and num_classes:
            raise RecipeError(f"model {name}", f"{len(names)} class names for {num_classes} classes", str(num_classes))
        if precision not in get_args(Precision):
            raise RecipeError("precision", repr(precision), ", ".join(get_args(Precision)))
        self.name, self.temporal_stride, self.precision = name, temporal_stride, precision
        self.preprocessing = published_preprocessing(encoder) if preprocessing is None else preprocessing
        self.class_names = names if num_classes else ()
        self.metadata = dict(metadata or {})
        self.device = torch.device(device)
        self.module: VideoEncoder = _to_device_and_dtype(encoder, self.device, precision)
        self._dual_encoder = self.module.as_dual_encoder
        text = self._dual_encoder.config.text if self._dual_encoder else None
        self._tokenizer = Tokenizer(context_length=text.context_length) if text else None
        self._prompt_cache: tuple[tuple[tuple[str, ...], tuple[str, ...]], np.ndarray[Any, Any]] | None = None

    def __repr__(self) -> str:
        fields = f"capabilities={sorted(self.capabilities)}, embed_dim={self.embed_dim}, device={str(self.device)!r}"
        return f"VideoModel({self.name!r}, {fields})"

    # ------------------------------------------------------------------------------------------------ properties

    @property
    def capabilities(self) -> frozenset[str]:
        """Supported operations: "video", "text", "caption", "answer", "classify" (with its own classes or labels)."""
        capabilities = {"video"}
        if self._dual_encoder is not None:
            capabilities |= {"text", "classify"}
        if self.class_names:
            capabilities.add("classify" if self.module.has_logits else "answer")  # apps/ask.py asks
        if self.module.can_caption:
            capabilities.add("caption")
        return frozenset(capabilities)

    @property
    def embed_dim(self) -> int:
        """E, the dimension of the embeddings."""
        return self.module.embed_dim

    @property
    def scale(self) -> float:
        """Logit scale of video-text cosines, about 100. Raises RecipeError without a text tower."""
        return float(self._text()[0].scale.detach())

    @property
    def config(self) -> dict[str, object]:
        """All settings as JSON values, from which `from_pretrained` builds the model before it loads the weights."""
        stride: dict[str, object] = {"frame_step": self.temporal_stride} if self.temporal_stride != 1 else {}
        return {
            "model": self.name,
            "overrides": overrides_of(self.name, self.module),
            "preprocessing": self.preprocessing.to_json(),
            "classes": list(self.class_names),
            **stride,
        }

    def _unsupported(self, what: str, *, hint: str = "") -> RecipeError:
        return RecipeError(f"model {self.name}", f"cannot {what}", ", ".join(sorted(self.capabilities)), hint)

    def text_tokenizer(self) -> Tokenizer:
        """The tokenizer of the text tower. Raises RecipeError without one."""
        return self._text()[1]

    def _text(self) -> tuple[Any, Tokenizer]:
        if self._dual_encoder is None or self._tokenizer is None:
            raise self._unsupported("read texts", hint="take a model with a text tower, for example internvideo-mm-l14")
        vocabulary = self._dual_encoder.config.text.vocab_size
        if vocabulary < CLIP_VOCAB_SIZE:
            hint = f"its vocabulary has {vocabulary} tokens, CLIP's {CLIP_VOCAB_SIZE}: encode token ids instead"
            raise self._unsupported("read texts", hint=hint)
        return self._dual_encoder, self._tokenizer

    # ----------------------------------------------------------------------------------------------------- clips

    @contextmanager
    def _inference_mode(self) -> Iterator[None]:
        """Switch to evaluation mode without gradients; unlike in `torch.inference_mode`, outputs can be trained on."""
        self.module.eval()
        with torch.no_grad():
            yield

    def _prepare_input(self, clips: Tensor) -> Any:
        """Move clips to the device and prepare them for the model."""
        if clips.ndim != 5 or clips.shape[1] != 3:
            raise ValueError(f"clips are (B, 3, T, S, S), not {tuple(clips.shape)}")
        return self.module.prepare(clips.to(self.device), self.temporal_stride)

    def encode_clips(self, clips: Tensor) -> Tensor:
        """Encode clips to embeddings.

        Args:
            clips: (B, 3, T, S, S) output of `preprocessing`: uint8, or float in 0..255.

        Returns:
            (B, E) float32 on the CPU, not L2-normalized.
        """
        with self._inference_mode():
            return self.module.features(self._prepare_input(clips)).float().cpu()

    def tokens(self, clips: Tensor) -> Tensor:
        """Compute all tokens of the last layer (B, N, D) float32 on the CPU, of clips as in `encode_clips`."""
        with self._inference_mode():
            return self.module.tokens(self._prepare_input(clips)).float().cpu()

    def logits(self, clips: Tensor) -> Tensor:
        """Compute the classifier's logits (B, C) float32 on the CPU, of clips as in `encode_clips`.

        Raises:
            RecipeError: the model has no classifier.
        """
        if not self.module.has_logits or not self.class_names:
            hint = "give labels, or train a classifier on its embeddings"
            raise self._unsupported("score classes of its own", hint=hint)
        with self._inference_mode():
            return self.module.logits(self._prepare_input(clips)).float().cpu()

    def read(self, videos: VideoSource | Sequence[VideoSource], *, batch_size: int = 8) -> Iterator[Tensor]:
        """Yield clips, one per video, in batches of at most `batch_size`; each batch is decoded on demand.

        Raises:
            VideoError: a video that cannot be read.
        """
        for group, _ in self._batches(videos, 1, batch_size):
            yield group

    def _batches(
        self, videos: VideoSource | Sequence[VideoSource], num_clips: int, batch_size: int
    ) -> Iterator[tuple[Tensor, list[int]]]:
        """Yield (clips, index of the video of each clip) in batches."""
        if batch_size < 1:
            raise RecipeError("batch_size", str(batch_size), "1 or more")
        self.preprocessing.frame_sampler(num_clips)  # raises for a wrong number before decoding
        read, sources = self.preprocessing.read, as_list(videos)
        clips = ((clip, n) for n, video in enumerate(sources) for clip in read(video, num_clips=num_clips))
        for group in _batched(clips, batch_size):
            yield torch.stack([clip for clip, _ in group]), [n for _, n in group]

    # ------------------------------------------------------------------------------------------- videos and texts

    def encode_video(
        self, videos: VideoSource | Sequence[VideoSource], *, batch_size: int = 8, normalize: bool = True
    ) -> Tensor:
        """Encode videos to embeddings.

        Args:
            videos: one or several of: a path, a `Span` (path, start s, end s), uint8 frames (T, H, W, 3).
            batch_size: clips per batch.
            normalize: L2-normalize, so that the dot product of two embeddings is their cosine.

        Returns:
            (n, E) float32 on the CPU, in the order given; (0, E) for none.

        Raises:
            VideoError: a video that cannot be read.
        """
        parts = [self.encode_clips(clips) for clips in self.read(videos, batch_size=batch_size)]
        return _l2_normalize(torch.cat(parts) if parts else torch.empty(0, self.embed_dim), normalize)

    def encode_text(self, texts: str | Sequence[str], *, normalize: bool = True) -> Tensor:
        """Encode texts to embeddings in the space of the videos; long texts are truncated to the context length.

        Returns:
            (n, E) float32 on the CPU; (0, E) for none.

        Raises:
            RecipeError: the model has no text tower. TextError: not a string, or a blank one.
        """
        dual_encoder, tokenizer = self._text()
        lines = [texts] if isinstance(texts, str) else list(texts)
        for index, line in enumerate(lines):
            if not isinstance(line, str) or not line.strip():
                raise TextError(f"text {index}", "blank" if isinstance(line, str) else f"a {type(line).__name__}")
        with self._inference_mode():
            ids = (tokenizer.encode(group).to(self.device) for group in _batched(lines, TEXT_BATCH_SIZE))
            parts = [dual_encoder.encode_text(tokens).float().cpu() for tokens in ids]
        return _l2_normalize(torch.cat(parts) if parts else torch.empty(0, self.embed_dim), normalize)

    def similarity(
        self, video: Tensor | VideoSource | Sequence[VideoSource], text: Tensor | str | Sequence[str]
    ) -> Tensor:
        """Compute the cosines (n, m) of n videos and m texts; either may be given as embeddings (n, E)."""
        left = video if isinstance(video, Tensor) and video.ndim == 2 else self.encode_video(video)
        right = text if isinstance(text, Tensor) else self.encode_text(text)
        return _l2_normalize(left.float().cpu(), True) @ _l2_normalize(right.float().cpu(), True).T

    def classify(
        self,
        videos: VideoSource | Sequence[VideoSource],
        labels: Sequence[str] | None = None,
        *,
        templates: Sequence[str] = ACTION_TEMPLATES,
        num_clips: int = 1,
        batch_size: int = 8,
    ) -> list[dict[str, float]]:
        """Classify videos: probabilities of labels in descending order, one dictionary per video.

        Args:
            videos: as in `encode_video`.
            labels: at least two texts, for models with a text tower; None for a classifier, which has its own classes.
            templates: sentences with one "{}"; their softmax outputs are averaged (multi-modalities-downstream).
            num_clips: clips at different times of each video; their softmax outputs are averaged.
            batch_size: clips per batch.

        Raises:
            RecipeError: labels missing, repeated or given to a classifier, or more clips than the sampler supports.
            VideoError: a video that cannot be read.
        """
        names = self.label_names(labels)
        sources = as_list(videos)
        if not sources:
            return []
        rows, video_index = [], []
        for clips, video_indices in self._batches(sources, num_clips, batch_size):
            rows.append(self.probabilities(clips, labels, templates=templates))
            video_index.extend(video_indices)
        per_video = merge_rows(np.concatenate(rows), np.asarray(video_index, dtype=np.int64), len(sources))
        return [{names[i]: float(row[i]) for i in np.argsort(-row, kind="stable")} for row in per_video]

    def probabilities(
        self, clips: Tensor, labels: Sequence[str] | None = None, *, templates: Sequence[str] = ACTION_TEMPLATES
    ) -> np.ndarray[Any, Any]:
        """Compute probabilities (B, C) float64 of clips, in the order of labels or classes; otherwise as `classify`."""
        names = self.label_names(labels)
        if self._dual_encoder is None:
            return softmax(self.logits(clips).numpy().astype(np.float64))
        text = self._encode_prompts(names, tuple(templates))
        return zero_shot_probabilities(self.encode_clips(clips).numpy(), text, self.scale)

    def label_names(self, labels: Sequence[str] | None) -> tuple[str, ...]:
        """Return the labels from which `classify` chooses. Raises RecipeError as `classify`."""
        if self._dual_encoder is None:
            if not self.class_names or not self.module.has_logits:
                raise self._unsupported("classify", hint="train a classifier on its embeddings")
            if labels is not None:
                known = f"its own {len(self.class_names)} classes"
                raise RecipeError(f"model {self.name}", "labels for a classifier", known, "leave out labels")
            return self.class_names
        if labels is None or isinstance(labels, str) or len(labels) < 2:
            found = "none" if labels is None else repr(labels)
            raise RecipeError("labels", found, "a list of at least 2 texts: this model classifies only by texts")
        names = tuple(labels)
        if invalid := [name for name in names if not isinstance(name, str) or not name.strip()]:
            raise RecipeError("labels", repr(invalid[0]), "texts")
        if len(set(names)) != len(names):
            duplicate = next(name for name in names if names.count(name) > 1)
            raise RecipeError("labels", f"'{duplicate}' twice", "each label once")
        return names

    def _encode_prompts(self, labels: tuple[str, ...], templates: tuple[str, ...]) -> np.ndarray[Any, Any]:
        """Encode prompts (P, C, E); the last result is cached, because streams repeat their labels."""
        if self._prompt_cache is None or self._prompt_cache[0] != (labels, templates):
            try:
                texts = fill_templates(templates, labels)
            except ValueError as error:
                raise RecipeError("templates", str(error)) from error
            features = self.encode_text(texts).numpy().reshape(len(templates), len(labels), -1)
            self._prompt_cache = ((labels, templates), features)
        return self._prompt_cache[1]

    def caption(
        self,
        videos: VideoSource | Sequence[VideoSource],
        *,
        num_beams: int = 1,
        top_p: float = 0.0,
        seed: int = 0,
        max_length: int = 0,
        batch_size: int = 8,
    ) -> list[str]:
        """Generate a caption for every video.

        Args:
            videos: as in `encode_video`. batch_size: videos per batch.
            num_beams: of `CaptionGenerator`, which also explains the next three.
            top_p: likewise.
            seed: likewise.
            max_length: likewise.

        Raises:
            RecipeError: no caption decoder, or settings out of range. VideoError: a video that cannot be read.
        """
        generate = self.caption_generator(num_beams=num_beams, top_p=top_p, seed=seed, max_length=max_length)
        return [text for clips in self.read(videos, batch_size=batch_size) for text in generate(clips.to(self.device))]

    def caption_generator(
        self, *, num_beams: int = 1, top_p: float = 0.0, seed: int = 0, max_length: int = 0
    ) -> CaptionGenerator:
        """Return a generator of captions of clips on the device of this model, as in `caption`. Raises RecipeError."""
        if not self.module.can_caption:
            hint = "take a model with a caption decoder, internvideo-mm-l14-caption"
            raise self._unsupported("write captions", hint=hint)
        module, tokenizer = cast(VideoLanguage, self.module).eval(), self._text()[1]
        return CaptionGenerator(module, tokenizer, num_beams=num_beams, top_p=top_p, seed=seed, max_length=max_length)

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, device: str = "auto", precision: Precision = "float32"
    ) -> VideoModel:
        """Load a folder that `save_pretrained` wrote. Raises WeightsError if it was changed since."""
        return VideoModel(**hub_folder.load_folder(Path(folder)), device=choose_device(device), precision=precision)


def _to_device_and_dtype(module: VideoEncoder, device: torch.device, precision: Precision) -> VideoEncoder:
    """Move a module to a device and dtype; pixel normalization stays in float32."""
    float32_buffers = {part: (part.mean, part.std) for part in module.modules() if isinstance(part, Normalize)}
    module = module.to(device=device, dtype=getattr(torch, precision)).eval()
    for part, (mean, std) in float32_buffers.items():
        part.mean, part.std = mean.to(device), std.to(device)
    return module


def _batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yield lists of `size` items; the last may be shorter."""
    iterator = iter(items)
    while group := list(islice(iterator, size)):
        yield group


def _l2_normalize(features: Tensor, normalize: bool) -> Tensor:
    return nn.functional.normalize(features, dim=1) if normalize else features
