"""Table of published layouts: identifying keys, candidate models and key mapping of each.

- *VideoMAE pretraining* (InternVideo, original VideoMAE): `encoder.`, `decoder.`, `mask_token`.
- *VideoMAE classifier* (InternVideo, original VideoMAE): `patch_embed`, `blocks`, `fc_norm` or `norm`, `head`; the
  backbone may have the prefix `encoder.` or `backbone.`. Without `head` it is an encoder alone.
- *transformers VideoMAE* pretraining and classifier, *transformers CLIP*: see `weights.transformers_names`.
- *UniFormerV2*: `transformer.dec`, `transformer.proj`; local blocks under `lmhra1`, `lmhra2`; no `balance` when frozen.
- *InternVideo-MM*: `clip.visual_proj` and so on; keys without the prefix `clip.` are ignored, except those of a caption
  decoder with a vocabulary layer (Multi-Modalities-Pretraining). *InternVideo-MM question answering* and *multiple
  choice*: with caption decoder and head.
- *InternVideo2*: `patch_embed`, `clip_projector`, alone or under `vision_encoder.`; other keys are ignored.
- *ViCLIP*: `vision_encoder.`, `text_encoder.`, `temp`. *CLIP*: OpenAI's names. *Caption decoder*: alone.

Source: the files that the releases load (docs/sources.md).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from internvideo.weights import layout_sizes
from internvideo.weights import transformers_names as hugging_face
from internvideo.weights.layout_sizes import Shapes

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Family:
    """One layout. A file has the first layout of `FAMILIES` that fits.

    Attributes:
        name: display name; variants of one layout share it.
        anchors: keys that identify the layout, without prefixes of training programs.
        models: candidate models, keys of BACKBONES.
        sizes: (shapes under published names, config of a candidate) -> config of the file.
        published: renames the keys of the file to those that `weights.TABLES` reads.
        prefixes: prefixes of the keys that are read, others are ignored; () to read all keys.
        video: path of the settings of the video tower in the config.
        frames: whether the video tower has a number of frames.
        head: regular expression of our names of the last layer of the classifier; "" for a model without classes.
        outputs: name of the model setting for the number of outputs of the head.
        masked: whether it is a VideoMAE, whose position table covers time and space.
        computed: whether fixed positions are computed for the requested clip size; otherwise they are resized.
        without_decoder: the layout without its caption decoder, to load only the towers; None if it has no decoder.
        kernel: key of a patch kernel that must have five dimensions (those of image models have four); "" for none.
    """

    name: str
    anchors: tuple[str, ...]
    models: tuple[str, ...]
    sizes: Callable[[Shapes, Any], Any]
    published: Callable[[State], dict[str, Tensor]] = dict
    prefixes: tuple[str, ...] = ()
    video: tuple[str, ...] = ()
    frames: bool = True
    head: str = ""
    outputs: str = "num_classes"
    masked: bool = False
    computed: bool = False
    kernel: str = ""
    without_decoder: Family | None = None

    def fits(self, state: State) -> bool:
        """Return whether the keys are those of this layout."""
        return all(key in state for key in self.anchors) and (not self.kernel or state[self.kernel].dim() == 5)

    def read(self, state: State) -> tuple[dict[str, Tensor], tuple[str, ...]]:
        """Return the state dict under published names, and the keys that are ignored."""
        used = {key: value for key, value in state.items() if not self.prefixes or key.startswith(self.prefixes)}
        return self.published(used), tuple(key for key in state if key not in used)


def _remove_prefix(prefix: str) -> Callable[[State], dict[str, Tensor]]:
    return lambda state: {key.removeprefix(prefix): value for key, value in state.items()}


def _videomae_family(
    what: str,
    name: str,
    anchors: tuple[str, ...],
    published: Callable[[State], dict[str, Tensor]] = dict,
    *,
    biased: bool = False,
) -> Family:
    """Make a row of VideoMAE.

    Args:
        what: "pretrain" or "classifier". anchors: the key of the patch kernel first.
        biased: the layout always has query and value biases (transformers).
    """
    pretrain = what == "pretrain"
    sizes = layout_sizes.videomae_pretrain if pretrain else layout_sizes.videomae_classifier
    return Family(
        name=name,
        anchors=anchors,
        models=tuple(f"videomae-{size}-{what}" for size in ("b", "l", "h", "s", "g14", "g16", "G14")),
        sizes=(lambda shapes, base: layout_sizes.of_transformers(shapes, sizes(shapes, base))) if biased else sizes,
        published=published,
        head="" if pretrain else r"head\..*",
        masked=True,
        computed=biased,
        kernel=anchors[0],
    )


def _internvideo_mm_family(prefix: str, caption: bool) -> Family:
    """Make a row of InternVideo-MM with the prefix `clip.` of the released files, or without prefix."""
    decoder = ("caption_decoder.",) if caption else ()
    vocabulary_layer = tuple(f"{part}predictor.4.weight" for part in decoder)
    suffix = "-caption" if caption else ""
    return Family(
        name="InternVideo-MM with a caption decoder" if caption else "InternVideo-MM",
        anchors=(
            f"{prefix}visual.transformer.temporal_cls_token",
            f"{prefix}token_embedding.weight",
            *vocabulary_layer,
        ),
        models=(f"internvideo-mm-l14{suffix}", f"internvideo-mm-b16{suffix}"),
        sizes=layout_sizes.video_language,
        published=_remove_prefix(prefix),
        prefixes=(prefix, *decoder) if prefix else (),
        video=("vision",),
        without_decoder=_internvideo_mm_family(prefix, caption=False) if prefix and caption else None,
    )


_ANSWERING = ("clip.", "caption_decoder.", "vqa_classifier.", "rank_output.")
_CLIP = ("clip-b32", "clip-b16", "clip-l14", "clip-l14-336")
_TRANSFORMERS = "embeddings.patch_embeddings.projection.weight"
_INTERNVIDEO2 = ("patch_embed.", "cls_token", "pos_embed", "blocks.", "clip_projector.")
_PRETRAIN_KEYS = ("encoder_to_decoder.weight", "mask_token")

FAMILIES: tuple[Family, ...] = (
    _videomae_family(
        "pretrain",
        "transformers VideoMAE pretraining",
        (f"videomae.{_TRANSFORMERS}", *_PRETRAIN_KEYS),
        hugging_face.published_pretraining,
        biased=True,
    ),
    *(
        _videomae_family(
            "classifier",
            "transformers VideoMAE classifier",
            (f"{prefix}{_TRANSFORMERS}", f"{prefix}encoder.layer.0.layernorm_before.weight"),
            hugging_face.published_classifier,
            biased=True,
        )
        for prefix in ("videomae.", "")
    ),
    Family(
        name="transformers CLIP",
        anchors=("vision_model.embeddings.class_embedding", "text_model.embeddings.token_embedding.weight"),
        models=_CLIP,
        sizes=layout_sizes.clip,
        published=hugging_face.published_clip,
        frames=False,
    ),
    *(
        Family(
            name="transformers V-JEPA 2",
            anchors=tuple(
                f"{prefix}encoder.{key}"
                for key in ("embeddings.patch_embeddings.proj.weight", "layer.0.attention.query.weight")
            ),
            models=("vjepa2-l",),
            sizes=layout_sizes.vjepa2,
            published=_remove_prefix(prefix),
            prefixes=(f"{prefix}encoder.",),
        )
        for prefix in ("vjepa2.", "")  # of VJEPA2ForVideoClassification, whose pooler and classifier are left out
    ),
    *(
        Family(
            name="transformers SigLIP",
            anchors=(f"{prefix}head.probe", f"{prefix}embeddings.patch_embedding.weight"),
            models=("siglip-b16", "siglip-l16", "siglip-so400m-14"),
            sizes=layout_sizes.siglip,
            published=hugging_face.published_siglip,
            prefixes=prefixes,
            frames=False,
        )
        for prefix, prefixes in (("vision_model.", ("vision_model.",)), ("", ()))
    ),
    *(
        Family(
            name="InternVideo2",
            anchors=(f"{prefix}patch_embed.proj.weight", f"{prefix}clip_projector.cross_attn.q.weight"),
            models=tuple(f"internvideo2-{size}" for size in ("1b", "6b", "l14", "b14")),
            sizes=layout_sizes.internvideo2,
            published=_remove_prefix(prefix),
            prefixes=(*(f"{prefix}{part}" for part in _INTERNVIDEO2), "vision_align."),
            kernel=f"{prefix}patch_embed.proj.weight",
        )
        for prefix in ("vision_encoder.", "")
    ),
    _videomae_family("pretrain", "VideoMAE pretraining", ("encoder.patch_embed.proj.weight", *_PRETRAIN_KEYS)),
    *(
        _videomae_family(
            "classifier",
            "VideoMAE classifier",
            (f"{prefix}patch_embed.proj.weight", f"{prefix}blocks.0.mlp.fc1.weight"),
            _remove_prefix(prefix),
        )
        for prefix in ("encoder.", "")
    ),
    Family(
        name="InternVideo-MM question answering",
        anchors=("clip.visual.transformer.temporal_cls_token", "vqa_classifier.5.weight"),
        models=("internvideo-mm-l14-vqa", "internvideo-mm-b16-vqa"),
        sizes=layout_sizes.question_answering,
        prefixes=_ANSWERING,
        video=("model", "vision"),
        head=r"head\.5\..*",
        outputs="num_answers",
    ),
    Family(
        name="InternVideo-MM multiple choice",
        anchors=("clip.visual.transformer.temporal_cls_token", "rank_output.5.weight"),
        models=("internvideo-mm-l14-choice", "internvideo-mm-b16-choice"),
        sizes=layout_sizes.multiple_choice,
        prefixes=_ANSWERING,
        video=("vision",),
    ),
    *(_internvideo_mm_family(prefix, caption) for prefix in ("clip.", "") for caption in (True, False)),
    Family(
        name="ViCLIP",
        anchors=("vision_encoder.conv1.weight", "text_encoder.token_embedding.weight"),
        models=("viclip-l14", "viclip-b16"),
        sizes=layout_sizes.viclip,
    ),
    Family(
        name="CLIP",
        anchors=("visual.conv1.weight", "visual.proj", "token_embedding.weight"),
        models=_CLIP,
        sizes=layout_sizes.clip,
        frames=False,
    ),
    Family(
        name="UniFormerV2",
        anchors=("conv1.weight", "transformer.temporal_cls_token"),
        models=(
            "uniformerv2-b16",
            "uniformerv2-l14",
            "uniformerv2-l14-336",
            "uniformerv2-b16-ssv2",
            "uniformerv2-l14-ssv2",
        ),
        sizes=layout_sizes.uniformerv2,
        head=r"proj\.linear\..*",
    ),
    Family(
        name="caption decoder",
        anchors=("visual_queries", "multimodal_layers.0.0.fn.fused_attn_ff_proj.weight"),
        models=("caption-decoder-l14", "caption-decoder-b16"),
        sizes=layout_sizes.caption_decoder,
        frames=False,
    ),
)
"""Known layouts, the most specific first."""


UNSUPPORTED: tuple[tuple[str, str], ...] = (
    ("SigLIP as open_clip writes it", r"logit_bias"),
    ("X-CLIP", r"mit\.position_embedding|prompts_(visual_|generator).*"),
    (
        "TimeSformer",
        r"(timesformer\.)?encoder\.layer\.0\.temporal_attention\..*|(model\.)?blocks\.0\.temporal_attn\..*",
    ),
    ("ViViT", r"(vivit\.)?embeddings\.patch_embeddings\.projection\.weight"),
    ("EVA-CLIP", r"visual\.blocks\.0\.attn\.q_proj\.weight"),
    ("CLIP with a ResNet", r"visual\.layer1\.0\.conv1\.weight"),
    (
        "a text-image model with a text tower of its own (open_clip's CustomTextCLIP)",
        r"visual\..*trunk\..*|text\.transformer\..*",
    ),
    (
        "CLIP's image tower alone: its text tower is missing",
        r"(vision_model\.)?embeddings\.class_embedding|visual\.class_embedding",
    ),
    ("CLIP's text tower alone", r"(text_model\.)?embeddings\.token_embedding\.weight"),
    (
        "InternVideo2-CLIP, only its changes to another file (merge them: internvideo convert STAGE2 --add THIS)",
        r"vision_encoder\.clip_projector\..*",
    ),
    ("MViT", r"blocks\.0\.attn\.(pool|norm)_q\..*"),
    ("Video Swin", r"(backbone\.)?layers\.0\.blocks\.0\.attn\.relative_position_bias_table"),
    ("SlowFast", r"s1\.pathway0_stem\..*"),
    ("an image transformer", r"(encoder\.)?(cls_token|patch_embed\.proj\.weight)"),
)
"""Well-known models that cannot be read: (name, regular expression of a key); the first that matches decides."""


def unsupported_model(state: State) -> str:
    """Return the name of the well-known unsupported model that has such keys, "" for none."""
    return next((name for name, key in UNSUPPORTED if any(re.fullmatch(key, known) for known in state)), "")
