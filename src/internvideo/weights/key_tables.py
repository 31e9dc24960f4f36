"""Tables of published parameter names and ours, of the multimodal and external encoders.

Source: published checkpoints (keys), uniformerv2_model.py (CLIP names), multi-modalities-downstream (buffers of the
caption decoder).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from internvideo.errors import WeightsError
from internvideo.models.caption_decoder import CaptionDecoder
from internvideo.models.clip import CLIPModel
from internvideo.models.external.internvideo2 import InternVideo2
from internvideo.models.external.siglip import SigLIP
from internvideo.models.external.vjepa2 import VJEPA2
from internvideo.models.heads import PairScoringMultipleChoice, VideoQuestionAnswering, ZeroShotMultipleChoice
from internvideo.models.uniformerv2 import UniFormerV2
from internvideo.models.viclip import ViCLIP
from internvideo.models.video_language import VideoLanguage
from internvideo.weights.key_rules import Rule, WeightTable, flatten_kernel, same

_WB = r"(weight|bias)"


def _split_key_value(tensor: Tensor, model: nn.Module) -> tuple[Tensor, ...]:
    """Split one projection [key; value] in two."""
    return tensor.chunk(2)


def _frame_kernel(tensor: Tensor, model: nn.Module) -> tuple[Tensor, ...]:
    """Convert an image kernel (D, 3, p, p) to (D, 3, 1, p, p); a video kernel is unchanged."""
    return (tensor.unsqueeze(2) if tensor.dim() == 4 else tensor,)


def _drop_zero_shift(tensor: Tensor, model: nn.Module) -> tuple[Tensor, ...]:
    """Drop the shift of a norm, which our norm does not have. Raises WeightsError if it is not zero."""
    if bool(tensor.count_nonzero()):
        raise WeightsError("norm.beta", "not zero", "zeros", "take another checkpoint")
    return ()


def _drop_rotary_frequencies(tensor: Tensor, model: nn.Module) -> tuple[Tensor, ...]:
    """Drop the rotary frequencies, which our model computes. Raises WeightsError if they are not 10000^(-2i/d)."""
    head = 2 * len(tensor)
    expected = 1.0 / 10000 ** (torch.arange(0, head, 2, device=tensor.device).float() / head)
    if not torch.allclose(tensor.float(), expected, rtol=1e-3, atol=1e-6):
        hint = "not a checkpoint of this decoder"
        raise WeightsError("rotary_emb.inv_freq", "other frequencies", "10000^(-2i/d)", hint)
    return ()


def _layer_rules(official: str, ours: str) -> tuple[Rule, ...]:
    """Return the rules of CLIP's layers; the prefix `official` has one group, the index of the layer."""
    leaves = (
        (rf"attn\.in_proj_{_WB}", "attn.qkv"),
        (rf"attn\.out_proj\.{_WB}", "attn.proj"),
        (rf"mlp\.c_fc\.{_WB}", "mlp.fc1"),
        (rf"mlp\.c_proj\.{_WB}", "mlp.fc2"),
        (rf"ln_1\.{_WB}", "norm1"),
        (rf"ln_2\.{_WB}", "norm2"),
        (rf"ln_3\.{_WB}", "norm_context"),
    )
    return tuple(Rule(rf"{official}\.{leaf}", (rf"{ours}.\1.{name}.\2",)) for leaf, name in leaves)


def _stem_rules(official: str, ours: str) -> tuple[Rule, ...]:
    return (
        Rule(rf"{official}conv1\.weight", (rf"{ours}stem.conv.weight",), _frame_kernel),
        Rule(rf"{official}(class_embedding|positional_embedding)", (rf"{ours}stem.\1",)),
        Rule(rf"{official}ln_pre\.{_WB}", (rf"{ours}stem.norm.\1",)),
        *_layer_rules(rf"{official}transformer\.resblocks\.(\d+)", f"{ours}blocks"),
    )


def _uniformer_rules(official: str, ours: str) -> tuple[Rule, ...]:
    local = rf"{official}transformer\.resblocks\.(\d+)\.lmhra([12])\.pos_embed"
    return (
        *_stem_rules(official, ours),
        Rule(rf"{official}transformer\.temporal_cls_token", (f"{ours}query",)),
        Rule(rf"{official}transformer\.balance", (f"{ours}balance",)),
        Rule(rf"{official}transformer\.dpe\.(\d+)\.{_WB}", (rf"{ours}global_blocks.\1.position.\2",)),
        *(
            Rule(rule.official, (rule.ours[0].replace(r".\1.", r".\1.block.", 1),))
            for rule in _layer_rules(rf"{official}transformer\.dec\.(\d+)", f"{ours}global_blocks")
        ),
        Rule(rf"{official}transformer\.proj\.0\.{_WB}", (rf"{ours}proj.norm.\1",)),
        Rule(rf"{official}transformer\.proj\.2\.{_WB}", (rf"{ours}proj.linear.\1",)),
        Rule(
            rf"{local}\.0\.(weight|bias|running_mean|running_var|num_batches_tracked)",
            (rf"{ours}local\2.\1.norm.\3",),
        ),
        *(
            Rule(rf"{local}\.{index}\.{_WB}", (rf"{ours}local\2.\1.{name}.\3",))
            for index, name in ((1, "reduce"), (2, "temporal"), (3, "expand"))
        ),
    )


def _text_rules(official: str, ours: str) -> tuple[Rule, ...]:
    return (
        Rule(rf"{official}token_embedding\.weight", (f"{ours}token_embedding.weight",)),
        Rule(rf"{official}positional_embedding", (f"{ours}positional_embedding",)),
        Rule(rf"{official}ln_final\.{_WB}", (rf"{ours}norm.\1",)),
        Rule(rf"{official}text_projection", (f"{ours}projection",)),
        Rule(rf"{official}text_mask_embedding", (f"{ours}mask_embedding",)),
        *_layer_rules(rf"{official}transformer\.resblocks\.(\d+)", f"{ours}blocks"),
    )


def _video_language_rules(official: str, ours: str) -> tuple[Rule, ...]:
    return (
        *_uniformer_rules(rf"{official}visual\.", f"{ours}visual."),
        Rule(rf"{official}visual_ln_post\.{_WB}", (rf"{ours}visual_norm.\1",)),
        Rule(rf"{official}visual_proj", (f"{ours}visual_projection",)),
        Rule(rf"{official}logit_scale", (f"{ours}logit_scale",)),
        *_text_rules(official, f"{ours}text."),
    )


def _attention_rules(official: str, ours: str) -> tuple[Rule, ...]:
    """Return the rules of the caption decoder's multi-query attention; `ours` may refer to groups of `official`."""
    return (
        Rule(rf"{official}to_q\.weight", (f"{ours}q.weight",)),
        Rule(rf"{official}to_kv\.weight", (f"{ours}k.weight", f"{ours}v.weight"), _split_key_value),
        Rule(rf"{official}to_out\.weight", (f"{ours}out.weight",)),
    )


def _caption_rules(official: str, ours: str) -> tuple[Rule, ...]:
    text_layer = rf"{official}multimodal_layers\.(\d+)\.0\.fn\."
    cross_layer = rf"{official}multimodal_layers\.(\d+)\.1\.fn\."
    return (
        Rule(rf"{official}.*\.beta", (), _drop_zero_shift),
        Rule(rf"{official}.*\.inv_freq", (), _drop_rotary_frequencies),
        Rule(rf"{official}visual_queries", (f"{ours}queries",)),
        Rule(rf"{official}visual_attn_pooler\.norm\.gamma", (f"{ours}query_norm.weight",)),
        Rule(rf"{official}visual_attn_pooler\.context_norm\.gamma", (f"{ours}context_norm.weight",)),
        *_attention_rules(rf"{official}visual_attn_pooler\.", f"{ours}pooler."),
        Rule(rf"{official}visual_pooler_norm\.{_WB}", (rf"{ours}pooled_norm.\1",)),
        Rule(rf"{official}text_norm\.{_WB}", (rf"{ours}text_norm.\1",)),
        Rule(rf"{text_layer}norm\.gamma", (rf"{ours}layers.\1.words.norm.weight",)),
        Rule(rf"{text_layer}fused_attn_ff_proj\.weight", (rf"{ours}layers.\1.words.fused.weight",)),
        Rule(rf"{text_layer}attn_out\.weight", (rf"{ours}layers.\1.words.attn_out.weight",)),
        Rule(rf"{text_layer}ff_out\.1\.weight", (rf"{ours}layers.\1.words.ff_out.weight",)),
        Rule(rf"{cross_layer}norm\.gamma", (rf"{ours}layers.\1.visual.norm.weight",)),
        *_attention_rules(cross_layer, rf"{ours}layers.\1.visual.attn."),
        Rule(rf"{cross_layer}ff\.0\.weight", (rf"{ours}layers.\1.visual.fc1.weight",)),
        Rule(rf"{cross_layer}ff\.2\.weight", (rf"{ours}layers.\1.visual.fc2.weight",)),
        Rule(rf"{official}predictor\.(\d)\.{_WB}", (rf"{ours}predictor.\1.\2",)),
    )


CLIP = WeightTable(
    family="CLIP",
    rules=(
        *_stem_rules(r"visual\.", "visual."),
        Rule(rf"visual\.ln_post\.{_WB}", (r"visual.norm.\1",)),
        Rule(r"visual\.proj", ("visual.projection",)),
        Rule("logit_scale", ("logit_scale",)),
        *_text_rules("", "text."),
    ),
    ignored=("input_resolution", "context_length", "vocab_size"),
)

UNIFORMERV2 = WeightTable(family="UniFormerV2", rules=_uniformer_rules("", ""))

VIDEO_LANGUAGE = WeightTable(
    family="InternVideo-MM",
    rules=(*_caption_rules(r"caption_decoder\.", "caption_decoder."), *_video_language_rules("", "")),
)

CAPTION_DECODER = WeightTable(family="caption decoder", rules=_caption_rules("", ""))

ANSWERING = WeightTable(
    family="multimodal downstream model",
    rules=(
        *_video_language_rules(r"clip\.", "model."),
        *_caption_rules(r"caption_decoder\.", "model.caption_decoder."),
        Rule(rf"(?:vqa_classifier|rank_output)\.(\d)\.{_WB}", (r"head.\1.\2",)),
    ),
)

VICLIP = WeightTable(
    family="ViCLIP",
    rules=(
        *_stem_rules(r"vision_encoder\.", "visual."),
        Rule(r"vision_encoder\.temporal_positional_embedding", ("visual.time_embedding",)),
        Rule(rf"vision_encoder\.ln_post\.{_WB}", (r"visual.norm.\1",)),
        Rule(r"vision_encoder\.proj", ("visual.projection",)),
        Rule("temp", ("temperature",)),
        *_text_rules(r"text_encoder\.", "text."),
    ),
)

VJEPA2_ENCODER = WeightTable(
    family="V-JEPA 2",
    rules=(
        Rule(r"encoder\.embeddings\.patch_embeddings\.proj\.weight", ("patch_embed.proj.weight",), flatten_kernel),
        Rule(r"encoder\.embeddings\.patch_embeddings\.proj\.bias", ("patch_embed.proj.bias",)),
        Rule(rf"encoder\.layer\.(\d+)\.attention\.(query|key|value|proj)\.{_WB}", (r"blocks.\1.attn.\2.\3",)),
        Rule(rf"encoder\.layer\.(\d+)\.(norm[12]|mlp\.fc[12])\.{_WB}", (r"blocks.\1.\2.\3",)),
        Rule(rf"encoder\.layernorm\.{_WB}", (r"norm.\1",)),
    ),
)

SIGLIP = WeightTable(
    family="SigLIP",
    rules=(
        Rule(r"embeddings\.patch_embedding\.weight", ("patch_embed.proj.weight",), flatten_kernel),
        Rule(r"embeddings\.patch_embedding\.bias", ("patch_embed.proj.bias",)),
        Rule(r"embeddings\.position_embedding\.weight", ("positional_embedding",)),
        *_layer_rules(r"transformer\.resblocks\.(\d+)", "blocks"),
        Rule(rf"post_layernorm\.{_WB}", (r"norm.\1",)),
        Rule(r"head\.probe", ("pool.probe",)),
        Rule(rf"head\.attention\.in_proj_{_WB}", (r"pool.attn.qkv.\1",)),
        Rule(rf"head\.attention\.out_proj\.{_WB}", (r"pool.attn.proj.\1",)),
        Rule(rf"head\.layernorm\.{_WB}", (r"pool.norm.\1",)),
        Rule(rf"head\.mlp\.(fc[12])\.{_WB}", (r"pool.mlp.\1.\2",)),
    ),
)

INTERNVIDEO2 = WeightTable(
    family="InternVideo2",
    rules=(
        Rule(r"patch_embed\.proj\.weight", ("patch_embed.proj.weight",), flatten_kernel),
        same(r"patch_embed\.proj\.bias|cls_token|pos_embed"),
        Rule(r"blocks\.(\d+)\.ls([12])\.gamma", (r"blocks.\1.gamma_\2",)),
        same(rf"blocks\.\d+\.(norm[12]\.weight|attn\.(qkv|[qk]_norm)\.weight|attn\.proj\.{_WB}|mlp\.fc[12]\.{_WB})"),
        Rule(rf"clip_projector\.norm1_([qkv])\.{_WB}", (r"pool.norm_\1.\2",)),
        Rule(r"clip_projector\.cross_attn\.([qkv])\.weight", (r"pool.\1.weight",)),
        Rule(r"clip_projector\.cross_attn\.([qkv])_bias", (r"pool.\1.bias",)),
        Rule(rf"clip_projector\.cross_attn\.proj\.{_WB}", (r"pool.proj.\1",)),
        Rule(rf"vision_align\.([01])\.{_WB}", (r"align.\1.\2",)),
    ),
)

MULTIMODAL_TABLES: dict[type[nn.Module], WeightTable] = {
    CLIPModel: CLIP,
    UniFormerV2: UNIFORMERV2,
    VideoLanguage: VIDEO_LANGUAGE,
    CaptionDecoder: CAPTION_DECODER,
    VideoQuestionAnswering: ANSWERING,
    PairScoringMultipleChoice: ANSWERING,
    ZeroShotMultipleChoice: ANSWERING,
    ViCLIP: VICLIP,
    VJEPA2: VJEPA2_ENCODER,
    SigLIP: SIGLIP,
    InternVideo2: INTERNVIDEO2,
}
"""Model class -> table; part of `weights.state.TABLES`."""
