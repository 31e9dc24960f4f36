"""Rules from the published parameter names of the navigation planner to ours. Source: goldens tasks/vln_planner."""

from __future__ import annotations

from internvideo.weights.key_rules import Rule, WeightTable

_WEIGHT_OR_BIAS = r"(weight|bias)"
_LEAVES = ((rf"linear\.{_WEIGHT_OR_BIAS}", "linear"), (rf"layer_norm\.{_WEIGHT_OR_BIAS}", "norm"))


def _projection(published: str, ours: str) -> tuple[Rule, ...]:
    return tuple(Rule(rf"{published}_{leaf}", (rf"{ours}.{name}.\1",)) for leaf, name in _LEAVES)


def _attention(published: str, inner: str, ours: str) -> tuple[Rule, ...]:
    """Rules of BERT's attention and the norm after it; `published` has one regex group, the layer's index."""
    layers = (("query", "q"), ("key", "k"), ("value", "v"))
    return (
        *(
            Rule(rf"{published}\.{inner}\.{name}\.{_WEIGHT_OR_BIAS}", (rf"{ours}.attn.{letter}.\2",))
            for name, letter in layers
        ),
        Rule(rf"{published}\.output\.dense\.{_WEIGHT_OR_BIAS}", (rf"{ours}.attn.out.\2",)),
        Rule(rf"{published}\.output\.LayerNorm\.{_WEIGHT_OR_BIAS}", (rf"{ours}.norm.\2",)),
    )


def _feed_forward(inner: str, outer: str, ours: str) -> tuple[Rule, ...]:
    return (
        Rule(rf"{inner}\.dense\.{_WEIGHT_OR_BIAS}", (rf"{ours}.mlp.fc1.\2",)),
        Rule(rf"{outer}\.dense\.{_WEIGHT_OR_BIAS}", (rf"{ours}.mlp.fc2.\2",)),
        Rule(rf"{outer}\.LayerNorm\.{_WEIGHT_OR_BIAS}", (rf"{ours}.norm.\2",)),
    )


def _layer(published: str, ours: str) -> tuple[Rule, ...]:
    layer = rf"{published}\.layer\.(\d+)"
    return (
        *_attention(rf"{layer}\.attention", "self", rf"{ours}.\1.attention"),
        *_feed_forward(rf"{layer}\.intermediate", rf"{layer}\.output", rf"{ours}.\1.feed"),
    )


_CROSS = r"encoder\.x_layers\.(\d+)"
_OURS = r"cross_layers.\1"

PLANNER = WeightTable(
    family="navigation planner",
    rules=(
        Rule(r"embeddings\.word_embeddings\.weight", ("words.word.weight",)),
        Rule(r"embeddings\.position_embeddings\.weight", ("words.position.weight",)),
        Rule(r"embeddings\.token_type_embeddings\.weight", ("words.token_type.weight",)),
        Rule(rf"embeddings\.LayerNorm\.{_WEIGHT_OR_BIAS}", (r"words.norm.\1",)),
        *_projection(r"img_embeddings\.img", "observation.rgb"),
        *_projection(r"img_embeddings\.dep", "observation.depth"),
        *_projection(r"img_embeddings\.ang", "observation.angle"),
        *_projection(r"img_embeddings\.dis", "observation.distance"),
        Rule(r"img_embeddings\.nav_type_embedding\.weight", ("observation.kind.weight",)),
        Rule(rf"img_embeddings\.layer_norm\.{_WEIGHT_OR_BIAS}", (r"observation.norm.\1",)),
        Rule(r"hist_embeddings\.cls_token", ("history.start",)),
        *_projection(r"hist_embeddings\.img", "history.rgb"),
        *_projection(r"hist_embeddings\.ang", "history.angle"),
        *_projection(r"hist_embeddings\.pano_img", "history.view_rgb"),
        *_projection(r"hist_embeddings\.pano_ang", "history.view_angle"),
        Rule(r"hist_embeddings\.position_embeddings\.weight", ("history.position.weight",)),
        Rule(r"hist_embeddings\.type_embedding\.weight", ("history.token_type.weight",)),
        Rule(rf"hist_embeddings\.layer_norm\.{_WEIGHT_OR_BIAS}", (r"history.norm.\1",)),
        *_layer(r"hist_embeddings\.pano_encoder", "history.layers"),
        *_layer(r"encoder", "text_layers"),
        *_attention(rf"{_CROSS}\.visual_attention", "att", f"{_OURS}.cross"),
        *_attention(rf"{_CROSS}\.lang_self_att", "self", f"{_OURS}.text"),
        *_attention(rf"{_CROSS}\.visn_self_att", "self", f"{_OURS}.vision"),
        *_feed_forward(rf"{_CROSS}\.lang_inter", rf"{_CROSS}\.lang_output", f"{_OURS}.text_feed"),
        *_feed_forward(rf"{_CROSS}\.visn_inter", rf"{_CROSS}\.visn_output", f"{_OURS}.vision_feed"),
        Rule(rf"next_action\.net\.0\.{_WEIGHT_OR_BIAS}", (r"action.0.\1",)),
        Rule(rf"next_action\.net\.2\.{_WEIGHT_OR_BIAS}", (r"action.2.\1",)),
        Rule(rf"next_action\.net\.4\.{_WEIGHT_OR_BIAS}", (r"action.4.\1",)),
    ),
)
