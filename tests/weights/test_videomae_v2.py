"""VideoMAE V2's giant (arXiv 2303.16727): its names and proportions, numbers of a random model of transformers."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from internvideo import load
from internvideo.models.factory import BACKBONES, configure
from internvideo.storage import write_safetensors
from internvideo.weights.layouts import recognize

transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # theirs is untyped

WIDTH, HIDDEN, DEPTH = 88, 384, 2
"""Feed-forwards of 48/11 of the width, as the giant's 6144 of 1408."""


NAMES = (
    (r"embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
    (r"encoder\.layer\.(\d+)\.attention\.attention\.(q|v)(?:uery|alue)\.bias", r"blocks.\1.attn.\2_bias"),
    (r"encoder\.layer\.(\d+)\.attention\.output\.dense", r"blocks.\1.attn.proj"),
    (r"encoder\.layer\.(\d+)\.intermediate\.dense", r"blocks.\1.mlp.fc1"),
    (r"encoder\.layer\.(\d+)\.output\.dense", r"blocks.\1.mlp.fc2"),
    (r"encoder\.layer\.(\d+)\.layernorm_before", r"blocks.\1.norm1"),
    (r"encoder\.layer\.(\d+)\.layernorm_after", r"blocks.\1.norm2"),
    ("classifier", "head"),
)


def published(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the names of github.com/OpenGVLab/VideoMAEv2."""
    found: dict[str, Tensor] = {}
    for layer in range(DEPTH):
        parts = [f"encoder.layer.{layer}.attention.attention.{name}.weight" for name in ("query", "key", "value")]
        found[f"blocks.{layer}.attn.qkv.weight"] = torch.cat([theirs.pop(part) for part in parts])
    for key, value in theirs.items():
        for pattern, name in NAMES:
            key = re.sub(pattern, name, key)
        found[key] = value
    return found


@pytest.mark.parametrize("prefix", ["model.", ""])
@torch.no_grad()
def test_the_giants_layout_gives_equal_logits(prefix: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.VideoMAEConfig(
        image_size=28, patch_size=14, num_frames=4, hidden_size=WIDTH, intermediate_size=HIDDEN,
        num_hidden_layers=DEPTH, num_attention_heads=4, num_labels=5, layer_norm_eps=1e-6, use_mean_pooling=True,
    )  # fmt: skip
    theirs: Any = transformers.VideoMAEForVideoClassification(config).eval().double()
    for parameter in theirs.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    theirs.fc_norm.eps = 1e-6  # fixed at 1e-5 in their code
    state = {key.removeprefix("videomae."): value for key, value in theirs.state_dict().items()}
    write_safetensors(tmp_path / "model.safetensors", {prefix + key: value for key, value in published(state).items()})
    sizes = {"img_size": 28, "patch_size": 14, "num_frames": 4, "embed_dim": WIDTH, "depth": DEPTH, "num_heads": 4}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "VideoMAEv2_giant", "model_config": sizes}))
    ours = load(tmp_path, device="cpu")  # of a small width, so the nearest published size is another one
    video = torch.randn(2, 3, 4, 28, 28, dtype=torch.float64)
    found = ours.module.double().logits(video)  # type: ignore[operator]  # of a classifier
    assert (found - theirs(video.transpose(1, 2)).logits).abs().max() < 1e-5  # positions are float32 in ours


@pytest.mark.parametrize(("patch", "name"), [(14, "videomae-g14-classifier"), (16, "videomae-g16-classifier")])
def test_the_published_shapes_are_the_giants(patch: int, name: str) -> None:
    width, hidden = 1408, 6144
    each = {
        "norm1.weight": (width,), "norm1.bias": (width,), "norm2.weight": (width,), "norm2.bias": (width,),
        "attn.qkv.weight": (3 * width, width), "attn.q_bias": (width,), "attn.v_bias": (width,),
        "attn.proj.weight": (width, width), "attn.proj.bias": (width,), "mlp.fc1.weight": (hidden, width),
        "mlp.fc1.bias": (hidden,), "mlp.fc2.weight": (width, hidden), "mlp.fc2.bias": (width,),
    }  # fmt: skip
    shapes: dict[str, tuple[int, ...]] = {f"blocks.{n}.{key}": shape for n in range(40) for key, shape in each.items()}
    shapes |= {"patch_embed.proj.weight": (width, 3, 2, patch, patch), "patch_embed.proj.bias": (width,)}
    shapes |= {"fc_norm.weight": (width,), "fc_norm.bias": (width,), "head.weight": (710, width), "head.bias": (710,)}
    layout = recognize({key: torch.empty(shape, device="meta") for key, shape in shapes.items()})
    assert layout is not None
    assert (layout.model, layout.unknown) == (name, ())
    found, wanted = configure(layout.model, layout.overrides), BACKBONES[name].config
    assert (found.depth, found.heads, found.width) == (wanted.depth, wanted.heads, wanted.width)
    assert int(found.width * found.mlp_ratio) == hidden
