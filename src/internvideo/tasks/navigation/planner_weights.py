"""The published names of the navigation planner, as rules. Source: goldens tasks/vln_planner."""

from __future__ import annotations

from internvideo.weights.key_rules import Rule, WeightTable

_WB = r"(weight|bias)"
_LEAVES = ((rf"linear\.{_WB}", "linear"), (rf"layer_norm\.{_WB}", "norm"))


def _projection(official: str, ours: str) -> tuple[Rule, ...]:
    return tuple(Rule(rf"{official}_{leaf}", (rf"{ours}.{name}.\1",)) for leaf, name in _LEAVES)


def _attention(official: str, inner: str, ours: str) -> tuple[Rule, ...]:
    """BERT's attention and the norm after it; `official` holds one group, the layer's number."""
    parts = (("query", "q"), ("key", "k"), ("value", "v"))
    return (
        *(Rule(rf"{official}\.{inner}\.{name}\.{_WB}", (rf"{ours}.attn.{own}.\2",)) for name, own in parts),
        Rule(rf"{official}\.output\.dense\.{_WB}", (rf"{ours}.attn.out.\2",)),
        Rule(rf"{official}\.output\.LayerNorm\.{_WB}", (rf"{ours}.norm.\2",)),
    )


def _feed(inner: str, outer: str, ours: str) -> tuple[Rule, ...]:
    return (
        Rule(rf"{inner}\.dense\.{_WB}", (rf"{ours}.mlp.fc1.\2",)),
        Rule(rf"{outer}\.dense\.{_WB}", (rf"{ours}.mlp.fc2.\2",)),
        Rule(rf"{outer}\.LayerNorm\.{_WB}", (rf"{ours}.norm.\2",)),
    )


def _layer(official: str, ours: str) -> tuple[Rule, ...]:
    layer = rf"{official}\.layer\.(\d+)"
    return (
        *_attention(rf"{layer}\.attention", "self", rf"{ours}.\1.attention"),
        *_feed(rf"{layer}\.intermediate", rf"{layer}\.output", rf"{ours}.\1.feed"),
    )


_CROSS = r"encoder\.x_layers\.(\d+)"
_OURS = r"cross_layers.\1"

PLANNER = WeightTable(
    family="navigation planner",
    rules=(
        Rule(r"embeddings\.word_embeddings\.weight", ("words.word.weight",)),
        Rule(r"embeddings\.position_embeddings\.weight", ("words.position.weight",)),
        Rule(r"embeddings\.token_type_embeddings\.weight", ("words.token_type.weight",)),
        Rule(rf"embeddings\.LayerNorm\.{_WB}", (r"words.norm.\1",)),
        *_projection(r"img_embeddings\.img", "observation.rgb"),
        *_projection(r"img_embeddings\.dep", "observation.depth"),
        *_projection(r"img_embeddings\.ang", "observation.angle"),
        *_projection(r"img_embeddings\.dis", "observation.distance"),
        Rule(r"img_embeddings\.nav_type_embedding\.weight", ("observation.kind.weight",)),
        Rule(rf"img_embeddings\.layer_norm\.{_WB}", (r"observation.norm.\1",)),
        Rule(r"hist_embeddings\.cls_token", ("history.start",)),
        *_projection(r"hist_embeddings\.img", "history.rgb"),
        *_projection(r"hist_embeddings\.ang", "history.angle"),
        *_projection(r"hist_embeddings\.pano_img", "history.view_rgb"),
        *_projection(r"hist_embeddings\.pano_ang", "history.view_angle"),
        Rule(r"hist_embeddings\.position_embeddings\.weight", ("history.position.weight",)),
        Rule(r"hist_embeddings\.type_embedding\.weight", ("history.token_type.weight",)),
        Rule(rf"hist_embeddings\.layer_norm\.{_WB}", (r"history.norm.\1",)),
        *_layer(r"hist_embeddings\.pano_encoder", "history.layers"),
        *_layer(r"encoder", "text_layers"),
        *_attention(rf"{_CROSS}\.visual_attention", "att", f"{_OURS}.cross"),
        *_attention(rf"{_CROSS}\.lang_self_att", "self", f"{_OURS}.text"),
        *_attention(rf"{_CROSS}\.visn_self_att", "self", f"{_OURS}.vision"),
        *_feed(rf"{_CROSS}\.lang_inter", rf"{_CROSS}\.lang_output", f"{_OURS}.text_feed"),
        *_feed(rf"{_CROSS}\.visn_inter", rf"{_CROSS}\.visn_output", f"{_OURS}.vision_feed"),
        Rule(rf"next_action\.net\.0\.{_WB}", (r"action.0.\1",)),
        Rule(rf"next_action\.net\.2\.{_WB}", (r"action.2.\1",)),
        Rule(rf"next_action\.net\.4\.{_WB}", (r"action.4.\1",)),
    ),
)
