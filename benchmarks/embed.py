"""Embeddings per second: the package's encoders against plain implementations and `transformers`, in turns.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/embed.py [--model b16 l14 videomae] [--rounds 5] [--batch 1] [--threads 1]
        [--device cpu] [--window 2.0]

*plain* is the same model written below from the same equations as a straightforward program has them: softmax(q k^T) v
with the matrix of weights, x * sigmoid(1.702 x), a Conv3d for the patches. For the masked encoder `transformers` is a
second peer, with each of its attentions ("eager", "sdpa"). All hold the same weights, start from the same uint8 clips
in the layout that each wants, and must give the same output (asserted before timing). On CUDA all run in bfloat16
autocast. Medians over rounds; who begins changes with every round.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from internvideo.model_table import create_model
from internvideo.models.uniformerv2 import UniFormerV2Config
from internvideo.models.video_language import VideoLanguage
from internvideo.models.videomae import EPS, VideoMAEClassifier, VideoMAEConfig
from train_step import commit, timed

SEED = 0
Encoder = Callable[[Tensor], Tensor]


def plain_normalise(video: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Uint8 (B, 3, T, S, S) -> float."""
    center, spread = (torch.tensor(v, device=video.device)[None, :, None, None, None] for v in (mean, std))
    return (video.float() / 255 - center) / spread


class PlainAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def split(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:2], self.heads, -1).transpose(1, 2)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        if context is None:
            query, key, value = self.qkv(x).chunk(3, dim=-1)
        else:
            width, (weight, bias) = x.shape[-1], (self.qkv.weight, self.qkv.bias)
            query = nn.functional.linear(x, weight[:width], bias[:width])
            key, value = nn.functional.linear(context, weight[width:], bias[width:]).chunk(2, dim=-1)
        query, key, value = self.split(query), self.split(key), self.split(value)
        weights = (query * self.scale @ key.transpose(-2, -1)).softmax(dim=-1)
        return self.proj((weights @ value).transpose(1, 2).reshape(x.shape))  # type: ignore[no-any-return]


class PlainFeedForward(nn.Module):
    def __init__(self, width: int, hidden: int, gelu: bool) -> None:
        super().__init__()
        self.fc1, self.fc2, self.gelu = nn.Linear(width, hidden), nn.Linear(hidden, width), gelu

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        return self.fc2(nn.functional.gelu(x) if self.gelu else x * torch.sigmoid(1.702 * x))  # type: ignore[no-any-return]


class PlainBlock(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int, *, eps: float, gelu: bool, context: bool = False) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=eps), nn.LayerNorm(width, eps=eps)
        self.norm_context = nn.LayerNorm(width, eps=eps) if context else None
        self.attn, self.mlp = PlainAttention(width, heads), PlainFeedForward(width, hidden, gelu)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        x = x + self.attn(self.norm1(x), self.norm_context(context) if self.norm_context else None)
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class PlainTower(nn.Module):
    """The multimodal video tower: uint8 (B, 3, T, S, S) -> (B, D)."""

    def __init__(self, config: UniFormerV2Config, joint: int, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.config, self.mean, self.std = config, mean, std
        width, heads, patch = config.width, config.heads, config.patch_size
        self.conv = nn.Conv3d(3, width, (1, patch, patch), (1, patch, patch), bias=False)
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.positional_embedding = nn.Parameter(torch.zeros(1 + (config.image_size // patch) ** 2, width))
        self.norm, self.visual_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.blocks = nn.ModuleList(
            PlainBlock(width, heads, 4 * width, eps=1e-5, gelu=False) for _ in range(config.depth)
        )
        self.query, self.balance = nn.Parameter(torch.zeros(1, 1, width)), nn.Parameter(torch.zeros(width))
        self.global_blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "position": nn.Conv3d(width, width, 3, padding=1, groups=width),
                    "block": PlainBlock(
                        width, heads, int(config.mlp_ratio * width), eps=1e-5, gelu=False, context=True
                    ),
                }
            )
            for _ in config.global_layers
        )
        self.visual_projection = nn.Parameter(torch.zeros(width, joint))

    def forward(self, clips: Tensor) -> Tensor:
        x = self.conv(plain_normalise(clips, self.mean, self.std))
        batch, width, frames, rows, columns = x.shape
        x = x.permute(0, 2, 3, 4, 1).reshape(batch * frames, rows * columns, width)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], dim=1) + self.positional_embedding
        x, query, stage = self.norm(x), self.query.expand(batch, -1, -1), 0
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number in self.config.global_layers:
                part = self.global_blocks[stage]
                grid = x[:, 1:].reshape(batch, frames, rows, columns, width).permute(0, 4, 1, 2, 3)
                patches = (grid + part["position"](grid)).permute(0, 2, 3, 4, 1).reshape(len(x), -1, width)  # type: ignore[index]
                tokens = torch.cat([x[:, :1], patches], dim=1).reshape(batch, -1, width)
                query, stage = part["block"](query, tokens), stage + 1  # type: ignore[index]
        share = self.balance.sigmoid()
        mean = x[:, 0].reshape(batch, frames, width).mean(dim=1)
        return self.visual_norm((1 - share) * query[:, 0] + share * mean) @ self.visual_projection  # type: ignore[no-any-return]


class PlainMasked(nn.Module):
    """The masked encoder as a classifier: uint8 (B, 3, T, S, S) -> logits (B, C)."""

    def __init__(self, config: VideoMAEConfig, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        width, size = config.width, (config.tubelet, config.patch_size, config.patch_size)
        self.mean, self.std = mean, std
        self.conv = nn.Conv3d(3, width, kernel_size=size, stride=size)
        self.register_buffer("positions", torch.zeros(1, config.num_tokens, width))
        self.blocks = nn.ModuleList(
            PlainBlock(width, config.heads, int(width * config.mlp_ratio), eps=EPS, gelu=True)
            for _ in range(config.depth)
        )
        self.fc_norm, self.head = nn.LayerNorm(width, eps=EPS), nn.Linear(width, config.num_classes)

    def forward(self, clips: Tensor) -> Tensor:
        x = self.conv(plain_normalise(clips, self.mean, self.std)).flatten(2).transpose(1, 2) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.head(self.fc_norm(x.mean(dim=1)))  # type: ignore[no-any-return]


def constants(model: VideoLanguage | VideoMAEClassifier) -> tuple[tuple[float, ...], tuple[float, ...]]:
    normalize = model.normalize
    return tuple(normalize.mean.flatten().tolist()), tuple(normalize.std.flatten().tolist())


def plain_tower(ours: VideoLanguage) -> PlainTower:
    plain = PlainTower(ours.config.vision, ours.config.joint_width, *constants(ours))
    state = {
        name.removeprefix("visual.").removeprefix("stem."): value
        for name, value in ours.state_dict().items()
        if name.startswith("visual")
    }
    plain.load_state_dict(state)
    return plain


def plain_masked(ours: VideoMAEClassifier) -> PlainMasked:
    plain = PlainMasked(ours.config, *constants(ours))
    state: dict[str, Tensor] = {"positions": ours.pos_embed}
    for name, value in ours.state_dict().items():
        if name.endswith("q_bias"):
            other = ours.state_dict()[name.replace("q_bias", "v_bias")]
            state[name.replace("q_bias", "qkv.bias")] = torch.cat([value, torch.zeros_like(value), other])
        elif name == "patch_embed.proj.weight":
            state["conv.weight"] = value.view_as(plain.conv.weight)
        elif not name.endswith("v_bias"):
            state[name.replace("patch_embed.proj", "conv")] = value
    plain.load_state_dict(state)
    return plain


def hugging_face_state(ours: VideoMAEClassifier, shapes: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our weights under the names of `transformers`."""
    renames = {
        "patch_embed.proj.": "videomae.embeddings.patch_embeddings.projection.",
        "blocks.": "videomae.encoder.layer.",
        ".norm1.": ".layernorm_before.",
        ".norm2.": ".layernorm_after.",
        ".attn.proj.": ".attention.output.dense.",
        ".attn.q_bias": ".attention.attention.query.bias",
        ".attn.v_bias": ".attention.attention.value.bias",
        ".mlp.fc1.": ".intermediate.dense.",
        ".mlp.fc2.": ".output.dense.",
        "head.": "classifier.",
    }
    state: dict[str, Tensor] = {}
    for name, value in ours.state_dict().items():
        for old, new in renames.items():
            name = name.replace(old, new)
        if name.endswith(".attn.qkv.weight"):
            for part, kind in zip(value.chunk(3), ("query", "key", "value"), strict=True):
                state[name.replace("attn.qkv", f"attention.attention.{kind}")] = part
        else:
            state[name] = value.view_as(shapes[name])
    return state


def hugging_face(ours: VideoMAEClassifier, attention: str) -> nn.Module:
    """`transformers`' classifier with our weights."""
    import transformers

    config = ours.config
    settings = transformers.VideoMAEConfig(  # type: ignore[call-arg]  # it takes those of its base too
        image_size=config.image_size, patch_size=config.patch_size, num_frames=config.frames,
        tubelet_size=config.tubelet, hidden_size=config.width, num_hidden_layers=config.depth,
        num_attention_heads=config.heads, intermediate_size=int(config.width * config.mlp_ratio),
        layer_norm_eps=EPS, num_labels=config.num_classes, attn_implementation=attention,
    )  # fmt: skip
    peer: nn.Module = transformers.VideoMAEForVideoClassification(settings)
    peer.load_state_dict(hugging_face_state(ours, peer.state_dict()))
    return peer


def randomise(model: nn.Module) -> None:
    """Every parameter of the video side drawn anew: zeros at the start (query, output maps) would hide mistakes."""
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = parameter.shape[1] ** -0.5 if parameter.dim() == 2 else 0.1
            parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)


def multimodal_encoders(name: str, device: torch.device) -> tuple[dict[str, Encoder], int, int]:
    """Our tower and the plain one; frames; side."""
    ours = create_model(name)
    assert isinstance(ours, VideoLanguage)
    randomise(ours.visual)
    ours.eval().to(device)
    plain = plain_tower(ours).eval().to(device)
    vision = ours.config.vision
    return (
        {"ours": lambda clips: ours.encode_video(ours.normalize(clips)), "plain": plain},
        vision.frames,
        vision.image_size,
    )


def masked_encoders(device: torch.device) -> tuple[dict[str, Encoder], int, int]:
    """Our masked encoder with a head, the plain one, and `transformers` with each of its attentions."""
    ours = create_model("videomae-b-classifier")
    assert isinstance(ours, VideoMAEClassifier)
    randomise(ours)
    ours.eval().to(device)
    mean, std = constants(ours)
    found: dict[str, Encoder] = {
        "ours": lambda clips: ours(ours.normalize(clips)),
        "plain": plain_masked(ours).eval().to(device),
    }

    def peer(model: nn.Module) -> Encoder:
        return lambda clips: model(plain_normalise(clips, mean, std).transpose(1, 2)).logits

    for attention in ("eager", "sdpa"):
        found[f"transformers {attention}"] = peer(hugging_face(ours, attention).eval().to(device))
    return found, ours.config.frames, ours.config.image_size


def check(outputs: Mapping[str, Tensor], device: torch.device) -> None:
    """All outputs equal ours, or AssertionError."""
    tolerance = 1e-4 if device.type == "cpu" else 5e-2
    scale = outputs["ours"].float().abs().max().item()
    for name, output in outputs.items():
        error = (output.float() - outputs["ours"].float()).abs().max().item()
        assert error <= tolerance * scale, f"{name}: {error} of {scale}"


def measure(
    encoders: Mapping[str, Encoder], clips: Tensor, rounds: int, exact: tuple[str, ...] = ()
) -> dict[str, list[tuple[float, float]]]:
    """Wall-clock and CPU seconds of every encoder, in turns; the check before (all, or `exact`) is the warm-up."""
    device = clips.device
    autocast = torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda")
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in encoders}
    with torch.inference_mode(), autocast:
        outputs = {name: encode(clips) for name, encode in encoders.items()}
        check({name: outputs[name] for name in exact or outputs}, device)
        for number in range(rounds):
            for name in sorted(encoders, reverse=bool(number % 2)):
                times[name].append(timed(lambda encode=encoders[name]: encode(clips), device))  # type: ignore[misc]
    return times


def rows(model: str, times: Mapping[str, list[tuple[float, float]]], batch: int, window: float) -> None:
    """Print one line an encoder; rates and ratios are of CPU seconds (all cores'), on CUDA the device's."""
    column = 0 if torch.cuda.is_available() and model.endswith("cuda") else 1
    median = {name: [statistics.median(t[i] for t in taken) for i in (0, 1)] for name, taken in times.items()}
    for name, (wall, cpu) in median.items():
        ratios = [peer[column] / own[column] for peer, own in zip(times[name], times["ours"], strict=True)]
        spread, rate = f"{min(ratios):.2f} to {max(ratios):.2f}", batch / (wall, cpu)[column]
        ratio = f"**{median[name][column] / median['ours'][column]:.2f}x**"
        cells = (model, name, f"{wall:.3f}", f"{cpu:.3f}", f"{rate:.3f}", f"{window * rate:.2f}", ratio)
        print(f"| {' | '.join(cells)} | {spread} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", nargs="+", choices=["b16", "l14", "videomae"], default=["b16", "videomae"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--window", type=float, default=2.0, help="seconds of video that one embedding stands for")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(SEED)
    device = torch.device(options.device)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    print(
        f"torch {torch.__version__}, {where}, {options.threads} threads, OMP_WAIT_POLICY "
        f"{os.environ.get('OMP_WAIT_POLICY', 'unset')}, commit {commit()}, batch {options.batch}, "
        f"{options.rounds} rounds, one embedding per {options.window} s of video\n"
    )
    print("| model | implementation | wall s | CPU s | embeddings/s | x real time | time over ours | range |")
    print("|---|---|---|---|---|---|---|---|")
    for name in options.model:
        if name == "videomae":
            encoders, frames, side = masked_encoders(device)
        else:
            encoders, frames, side = multimodal_encoders(f"internvideo-mm-{name}", device)
        clips = torch.randint(0, 256, (options.batch, 3, frames, side, side), dtype=torch.uint8, device=device)
        times = measure(encoders, clips, options.rounds)
        rows(f"{name}, {frames} frames, {device.type}", times, options.batch, options.window)


if __name__ == "__main__":
    main()
