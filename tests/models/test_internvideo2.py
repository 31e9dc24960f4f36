"""InternVideo2's video encoder: equal to a plain computation of what is published, from the file to the vector."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from internvideo import load
from internvideo.errors import WeightsError
from internvideo.storage import write_safetensors
from internvideo.weights.convert import convert
from internvideo.weights.layouts import require_layout

WIDTH, DEPTH, HEADS, POOL_HEADS, FRAMES, SIDE, PATCH, HIDDEN, JOINT, ALIGN = 96, 3, 6, 16, 8, 28, 14, 130, 24, 10
SIZES = {"heads": HEADS, "pool_heads": POOL_HEADS}


def published(*, align: bool = False) -> dict[str, Tensor]:
    """A random state dict under the names of internvideo2_clip_vision.py."""
    shapes: dict[str, tuple[int, ...]] = {
        "patch_embed.proj.weight": (WIDTH, 3, 1, PATCH, PATCH), "patch_embed.proj.bias": (WIDTH,),
        "cls_token": (1, 1, WIDTH), "pos_embed": (1, 1 + FRAMES * (SIDE // PATCH) ** 2, WIDTH),
    }  # fmt: skip
    for layer in range(DEPTH):
        shapes |= {
            f"blocks.{layer}.{name}": shape
            for name, shape in {
                "norm1.weight": (WIDTH,), "norm2.weight": (WIDTH,), "ls1.gamma": (WIDTH,), "ls2.gamma": (WIDTH,),
                "attn.qkv.weight": (3 * WIDTH, WIDTH), "attn.q_norm.weight": (WIDTH,), "attn.k_norm.weight": (WIDTH,),
                "attn.proj.weight": (WIDTH, WIDTH), "attn.proj.bias": (WIDTH,),
                "mlp.fc1.weight": (HIDDEN, WIDTH), "mlp.fc1.bias": (HIDDEN,),
                "mlp.fc2.weight": (WIDTH, HIDDEN), "mlp.fc2.bias": (WIDTH,),
            }.items()
        }  # fmt: skip
    pool = "clip_projector."
    for part in "qkv":
        shapes |= {f"{pool}norm1_{part}.weight": (WIDTH,), f"{pool}norm1_{part}.bias": (WIDTH,)}
        shapes |= {f"{pool}cross_attn.{part}.weight": (WIDTH, WIDTH), f"{pool}cross_attn.{part}_bias": (WIDTH,)}
    shapes |= {f"{pool}cross_attn.proj.weight": (JOINT, WIDTH), f"{pool}cross_attn.proj.bias": (JOINT,)}
    generator = torch.Generator().manual_seed(0)
    state = {name: 0.2 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    state = {f"vision_encoder.{name}": value for name, value in state.items()}
    if align:
        for name, shape in {
            "0.weight": (JOINT,),
            "0.bias": (JOINT,),
            "1.weight": (ALIGN, JOINT),
            "1.bias": (ALIGN,),
        }.items():
            state[f"vision_align.{name}"] = torch.randn(shape, generator=generator)
    return state


def rms(x: np.ndarray[Any, Any], weight: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return weight * x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)


def layer_norm(x: np.ndarray[Any, Any], weight: Any, bias: Any) -> np.ndarray[Any, Any]:
    x = x - x.mean(-1, keepdims=True)
    return weight * x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) + bias


def attention(query: Any, key: Any, value: Any, heads: int) -> np.ndarray[Any, Any]:
    """One clip, head by head: (n, D), (N, D), (N, D) -> (n, D)."""
    size, parts = query.shape[1] // heads, []
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        scores = np.exp(query[:, part] @ key[:, part].T / np.sqrt(size))
        parts.append(scores / scores.sum(-1, keepdims=True) @ value[:, part])
    return np.concatenate(parts, axis=1)


def reference(
    state: dict[str, Tensor], clip: np.ndarray[Any, Any]
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Tokens and vector of one normalized clip (3, T, S, S), in NumPy, as arXiv 2403.15377 and its code state them."""
    w = {name.removeprefix("vision_encoder."): value.double().numpy() for name, value in state.items()}
    kernel, side = w["patch_embed.proj.weight"], SIDE // PATCH
    rows = [
        (kernel[:, :, 0] * clip[None, :, t, y : y + PATCH, x : x + PATCH]).sum((1, 2, 3)) + w["patch_embed.proj.bias"]
        for t in range(clip.shape[1]) for y in range(0, side * PATCH, PATCH) for x in range(0, side * PATCH, PATCH)
    ]  # fmt: skip
    x = np.concatenate([w["cls_token"][0], np.stack(rows)]) + w["pos_embed"][0]
    for layer in range(DEPTH):
        b = {
            name.removeprefix(f"blocks.{layer}."): value
            for name, value in w.items()
            if name.startswith(f"blocks.{layer}.")
        }
        query, key, value = np.split(rms(x, b["norm1.weight"]) @ b["attn.qkv.weight"].T, 3, axis=1)
        y = attention(rms(query, b["attn.q_norm.weight"]), rms(key, b["attn.k_norm.weight"]), value, HEADS)
        x = x + b["ls1.gamma"] * (y @ b["attn.proj.weight"].T + b["attn.proj.bias"])
        hidden = rms(x, b["norm2.weight"]) @ b["mlp.fc1.weight"].T + b["mlp.fc1.bias"]
        hidden = hidden / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (hidden + 0.044715 * hidden**3)))
        x = x + b["ls2.gamma"] * (hidden @ b["mlp.fc2.weight"].T + b["mlp.fc2.bias"])
    p = {name.removeprefix("clip_projector."): value for name, value in w.items() if name.startswith("clip_projector.")}
    of = {"q": x.mean(0, keepdims=True), "k": x, "v": x}
    parts = (
        layer_norm(of[n], p[f"norm1_{n}.weight"], p[f"norm1_{n}.bias"]) @ p[f"cross_attn.{n}.weight"].T
        + p[f"cross_attn.{n}_bias"]
        for n in "qkv"
    )
    vector = attention(*parts, POOL_HEADS)[0] @ p["cross_attn.proj.weight"].T + p["cross_attn.proj.bias"]
    if "vision_align.1.weight" in w:
        normed = layer_norm(vector, w["vision_align.0.weight"], w["vision_align.0.bias"])
        vector = w["vision_align.1.weight"] @ normed + w["vision_align.1.bias"]
    return x, vector


@pytest.mark.parametrize("align", [False, True], ids=["1b", "small"])
@torch.no_grad()
def test_tokens_and_vector_equal_a_plain_computation(align: bool, tmp_path: Path) -> None:
    state = published(align=align)
    others = {"text_encoder.transformer.x": torch.zeros(2), "temp": torch.ones(()), "text_proj.bias": torch.zeros(2)}
    others |= {f"vision_encoder.{name}": torch.zeros(3) for name in ("clip_decoder.0.norm.bias", "clip_pos_embed")}
    write_safetensors(tmp_path / "a.safetensors", {**state, **others})
    model = load(tmp_path / "a.safetensors", device="cpu", overrides=SIZES)
    assert model.name.startswith("internvideo2-")
    assert model.metadata["left_out"].startswith(f"{len(others)} tensors")
    video = torch.randn(2, 3, FRAMES, SIDE, SIDE, generator=torch.Generator().manual_seed(1)).double()
    module: Any = model.module.double()
    tokens, vectors = module.tokens(video), module.features(video)
    assert vectors.shape == (2, model.embed_dim) == (2, ALIGN if align else JOINT)
    for clip, token, vector in zip(video.numpy(), tokens.numpy(), vectors.numpy(), strict=True):
        x, wanted = reference(state, clip)
        assert np.abs(token - x).max() < 1e-9 * np.abs(x).max()
        assert np.abs(vector - wanted).max() < 1e-9 * np.abs(wanted).max()
    again: Any = load(model.save_pretrained(tmp_path / "own"), device="cpu").module
    assert torch.equal(again.double().features(video), vectors)


def test_another_number_of_frames_takes_interpolated_positions(tmp_path: Path) -> None:
    state = {name.removeprefix("vision_encoder."): value for name, value in published().items()}  # the tower alone
    write_safetensors(tmp_path / "a.safetensors", state)
    model = load(tmp_path / "a.safetensors", device="cpu", overrides=SIZES, frames=16)
    own: Tensor = model.module.get_parameter("pos_embed")[0].detach()
    assert own.shape == (1 + 16 * 4, WIDTH)
    assert torch.equal(own[0], state["pos_embed"][0, 0])
    old, new = state["pos_embed"][0, 1:].view(FRAMES, 4, WIDTH), own[1:].view(16, 4, WIDTH)
    torch.testing.assert_close(new[3], 0.75 * old[1] + 0.25 * old[2])  # (3 + 0.5) / 2 - 0.5 = 1.25 old steps
    frames = torch.randint(0, 255, (9, 40, 50, 3), dtype=torch.uint8)
    assert model.encode_video([frames.numpy()]).shape == (1, JOINT)
    assert (model.preprocessing.frames, model.preprocessing.sampler) == (16, "segment_middle")


def test_the_published_sizes_are_recognized(tmp_path: Path) -> None:
    """Positions of stage 2 (4 frames) and of CLIP (8 frames), at 224 px."""
    for name, width, depth, align, frames in (
        ("1b", 1408, 40, 0, 4),
        ("6b", 3200, 48, 0, 4),
        ("l14", 1024, 24, 512, 8),
    ):
        shapes = {
            "patch_embed.proj.weight": (width, 3, 1, 14, 14), "pos_embed": (1, 1 + frames * 256, width),
            "blocks.0.mlp.fc1.weight": (int(width * 48 / 11) if name == "1b" else 4 * width, width),
            f"blocks.{depth - 1}.norm1.weight": (width,), "clip_projector.cross_attn.q.weight": (width, width),
            "clip_projector.cross_attn.proj.weight": (768, width),
        }  # fmt: skip
        state = {f"vision_encoder.{key}": torch.empty(shape, device="meta") for key, shape in shapes.items()}
        if align:
            state["vision_align.1.weight"] = torch.empty(align, 768, device="meta")
        found = require_layout(state)
        assert (found.model, found.unknown) == (f"internvideo2-{name}", ())
        assert found.overrides == ({"frames": 4} if frames == 4 else {})


def test_a_part_trained_anew_is_added_to_the_rest(tmp_path: Path) -> None:
    state = published()
    part = {name: value + 1 for name, value in state.items() if ".clip_projector." in name} | {"temp": torch.ones(())}
    write_safetensors(tmp_path / "stage2.safetensors", state)
    write_safetensors(tmp_path / "clip.safetensors", part)
    with pytest.raises(WeightsError, match="--add"):
        load(tmp_path / "clip.safetensors", device="cpu")
    clip = tmp_path / "clip.safetensors"
    with pytest.raises(WeightsError, match="would be replaced"):
        convert(tmp_path / "stage2.safetensors", tmp_path / "." / "clip.safetensors", add=clip)
    both = convert(tmp_path / "stage2.safetensors", tmp_path / "both.safetensors", add=clip)
    assert both.tensors == len(state) + 1
    module: Any = load(both.output, device="cpu", overrides=SIZES).module
    assert torch.equal(module.pool.proj.bias, part["vision_encoder.clip_projector.cross_attn.proj.bias"])
    assert torch.equal(module.blocks[0].mlp.fc1.bias, state["vision_encoder.blocks.0.mlp.fc1.bias"])
    write_safetensors(tmp_path / "other.safetensors", {"vision_encoder.cls_token": torch.zeros(3)})
    for other, text in (("other", "mis-shaped"), ("none", "shares no tensor name")):
        write_safetensors(tmp_path / "none.safetensors", {"x": torch.zeros(3)})
        with pytest.raises(WeightsError, match=text):
            convert(tmp_path / "stage2.safetensors", tmp_path / "b.safetensors", add=tmp_path / f"{other}.safetensors")
