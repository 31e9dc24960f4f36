"""One step of masked pretraining: the package's stage against a plain implementation of the same model.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/train_step.py [--size s b] [--batch 2] [--rounds 5] [--threads 1]
        [--device cpu] [--optimizer]

The plain model is written below from the same equations as a straightforward program would have them: a Conv3d over
all tokens and then a boolean choice of the visible ones, explicit softmax(q k^T) v, targets normalized for all tokens
and then chosen, full decoder layers. Both hold the same weights and must give the same loss and gradient norm (asserted
before timing). The two take turns; the table gives medians over rounds of wall-clock and CPU seconds. The package's
step starts from the bytes that its loader delivers and draws its mask; the plain one is handed a normalized clip and
the mask. On CUDA both run under bfloat16 autocast.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from internvideo.data.batch import Batch
from internvideo.model_table import create_model
from internvideo.models.videomae import VideoMAEConfig, VideoMAEPretrain
from internvideo.pretraining.masked import MaskedSettings, MaskedStage

SEED = 0
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class PlainAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width))
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        bias = torch.cat([self.q_bias, torch.zeros_like(self.v_bias), self.v_bias])
        qkv = nn.functional.linear(x, self.qkv.weight, bias)
        query, key, value = qkv.reshape(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        weights = (query * self.scale @ key.transpose(-2, -1)).softmax(dim=-1)
        return self.proj((weights @ value).transpose(1, 2).reshape(batch, tokens, width))  # type: ignore[no-any-return]


class PlainFeedForward(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.act = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))  # type: ignore[no-any-return]


class PlainBlock(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn, self.mlp = PlainAttention(width, heads), PlainFeedForward(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


def plain_table(tokens: int, width: int) -> Tensor:
    """(1, N, D) float32 sin-cos positions."""
    channel = torch.arange(width, dtype=torch.float64)
    angle = torch.arange(tokens, dtype=torch.float64)[:, None] / 10000 ** (2 * (channel // 2) / width)
    return torch.where(channel % 2 == 0, angle.sin(), angle.cos()).float()[None]


class PlainPretrain(nn.Module):
    """The masked pretraining model: (B, 3, T, S, S), mask (B, N) -> (B, M, P)."""

    positions: Tensor
    decoder_positions: Tensor

    def __init__(self, config: VideoMAEConfig) -> None:
        super().__init__()
        width, narrow, size = config.width, config.decoder_width, (config.tubelet, config.patch_size, config.patch_size)
        self.patch_embed = nn.Conv3d(3, width, kernel_size=size, stride=size)
        self.blocks = nn.ModuleList(
            PlainBlock(width, config.heads, int(width * config.mlp_ratio)) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.encoder_to_decoder = nn.Linear(width, narrow, bias=False)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, narrow))
        self.decoder_blocks = nn.ModuleList(
            PlainBlock(narrow, config.decoder_heads, int(narrow * config.mlp_ratio))
            for _ in range(config.decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(narrow, eps=1e-6)
        self.head = nn.Linear(narrow, config.values_per_token)
        self.register_buffer("positions", plain_table(config.num_tokens, width), persistent=False)
        self.register_buffer("decoder_positions", plain_table(config.num_tokens, narrow), persistent=False)

    def forward(self, video: Tensor, mask: Tensor) -> Tensor:
        x = self.patch_embed(video).flatten(2).transpose(1, 2) + self.positions
        batch, _, width = x.shape
        x = x[~mask].reshape(batch, -1, width)
        for block in self.blocks:
            x = block(x)
        x = self.encoder_to_decoder(self.norm(x))
        narrow = x.shape[-1]
        positions = self.decoder_positions.expand(batch, -1, -1)
        visible, hidden = (positions[chosen].reshape(batch, -1, narrow) for chosen in (~mask, mask))
        x = torch.cat([x + visible, self.mask_token + hidden], dim=1)
        for block in self.decoder_blocks:
            x = block(x)
        return self.head(self.decoder_norm(x[:, -hidden.shape[1] :]))  # type: ignore[no-any-return]


@torch.no_grad()
def plain_targets(video: Tensor, mask: Tensor, tubelet: int, patch: int) -> Tensor:
    """Pixels of the hidden tokens: undo the input's normalization, normalize every token, choose. -> (B, M, P)."""
    mean, std = (torch.tensor(v, device=video.device)[None, :, None, None, None] for v in (MEAN, STD))
    pixels = video * std + mean
    batch, colours, frames, height, width = pixels.shape
    split = (batch, colours, frames // tubelet, tubelet, height // patch, patch, width // patch, patch)
    tokens = pixels.reshape(split).permute(0, 2, 4, 6, 3, 5, 7, 1).reshape(batch, mask.shape[1], -1, colours)
    center, spread = tokens.mean(dim=2, keepdim=True), tokens.var(dim=2, unbiased=True, keepdim=True).sqrt()
    tokens = ((tokens - center) / (spread + 1e-6)).flatten(2)
    return tokens[mask].reshape(batch, -1, tokens.shape[-1])


def copy_weights(plain: PlainPretrain, ours: VideoMAEPretrain) -> None:
    """Give the plain model the package's weights, every one of them."""
    state = {}
    for name, value in ours.state_dict().items():
        name = name.replace("encoder.patch_embed.proj.", "patch_embed.").replace("decoder.blocks.", "decoder_blocks.")
        name = name.replace("decoder.norm.", "decoder_norm.").replace("decoder.head.", "head.").removeprefix("encoder.")
        state[name] = value.view_as(plain.patch_embed.weight) if name == "patch_embed.weight" else value
    plain.load_state_dict(state)


class Pair:
    """The two steps over one batch of random clips."""

    def __init__(self, size: str, batch: int, device: torch.device, optimizer: bool) -> None:
        torch.manual_seed(SEED)
        ours = create_model(f"videomae-{size}-pretrain", {"decoder_depth": 4})
        if not isinstance(ours, VideoMAEPretrain):
            raise TypeError(type(ours))
        self.config = ours.config
        self.stage = MaskedStage(ours, MaskedSettings(ratio=0.9)).to(device)
        self.plain = PlainPretrain(ours.config).to(device)
        copy_weights(self.plain, ours)
        shape = (batch, 3, ours.config.frames, ours.config.image_size, ours.config.image_size)
        self.device = device
        self.batch = Batch(torch.randint(0, 256, shape, dtype=torch.uint8, device=device), tuple("x" * batch))
        mean, std = (torch.tensor(v, device=device)[None, :, None, None, None] for v in (MEAN, STD))
        self.video = (self.batch.video.float() / 255 - mean) / std
        self.mask = self.stage.sample_mask(batch, self.generator())
        self.optimisers = [torch.optim.AdamW(m.parameters(), 1e-6) for m in (self.stage, self.plain) if optimizer]

    def generator(self) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(SEED)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.device.type == "cuda")

    def _finish(self, loss: Tensor, model: nn.Module, number: int) -> Tensor:
        torch.autograd.backward(loss)
        if self.optimisers:
            self.optimisers[number].step()
        model.zero_grad(set_to_none=True)
        return loss.detach()

    def loss_ours(self) -> Tensor:
        with self._autocast():
            return self.stage(self.batch, self.generator())["loss"]  # type: ignore[no-any-return]

    def loss_plain(self) -> Tensor:
        target = plain_targets(self.video, self.mask, self.config.tubelet, self.config.patch_size)
        with self._autocast():
            predicted = self.plain(self.video, self.mask)
        return nn.functional.mse_loss(predicted.float(), target)

    def ours(self) -> Tensor:
        return self._finish(self.loss_ours(), self.stage, 0)

    def reference(self) -> Tensor:
        return self._finish(self.loss_plain(), self.plain, 1)

    def check(self) -> None:
        """Loss and gradient norms agree, or AssertionError."""
        seen = []
        for loss_of, model in ((self.loss_ours, self.stage), (self.loss_plain, self.plain)):
            loss = loss_of()
            torch.autograd.backward(loss)
            norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
            seen.append(torch.stack([loss.detach(), norm]))
            model.zero_grad(set_to_none=True)
        tolerance = 1e-5 if self.device.type == "cpu" else 1e-2
        torch.testing.assert_close(seen[0], seen[1], rtol=tolerance, atol=0)


def timed(step: Callable[[], Tensor], device: torch.device) -> tuple[float, float]:
    """Wall-clock (on CUDA the device's own) and CPU seconds of one step."""
    if device.type == "cuda":
        event: Callable[..., torch.cuda.Event] = torch.cuda.Event
        start, end = (event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        cpu = time.process_time()
        start.record()
        step()
        end.record()
        torch.cuda.synchronize(device)
        return start.elapsed_time(end) / 1000, time.process_time() - cpu
    wall, cpu = time.perf_counter(), time.process_time()
    step()
    return time.perf_counter() - wall, time.process_time() - cpu


def measure(pair: Pair, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Both steps in turns, after one of each that is not counted; who begins changes with every round."""
    steps = {"ours": pair.ours, "plain": pair.reference}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        for name in sorted(steps, reverse=bool(number % 2)):
            taken = timed(steps[name], pair.device)
            if number:
                times[name].append(taken)
    return times


def commit() -> str:
    """The short commit of this file's repository, with a + when files differ from it."""
    found = subprocess.run(
        ["git", "describe", "--always", "--dirty=+", "--exclude=*"],
        cwd=Path(__file__).parent, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return found.stdout.strip() or "unknown"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--size", nargs="+", choices=["s", "b"], default=["s", "b"])
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--optimizer", action="store_true", help="let an AdamW step follow each backward pass")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    print(
        f"torch {torch.__version__}, {where}, {options.threads} threads, OMP_WAIT_POLICY "
        f"{os.environ.get('OMP_WAIT_POLICY', 'unset')}, commit {commit()}, 16 x 224 x 224, mask 0.9, decoder depth 4, "
        f"batch {options.batch}, forward + backward{' + AdamW' if options.optimizer else ''}, {options.rounds} rounds\n"
    )
    print("| model | wall plain | wall ours | wall ratio | CPU plain | CPU ours | CPU ratio | range of the ratios |")
    print("|---|---|---|---|---|---|---|---|")
    for size in options.size:
        pair = Pair(size, options.batch, device, options.optimizer)
        pair.check()
        times = measure(pair, options.rounds)
        cells = []
        for column in (0, 1):
            plain, ours = (statistics.median(t[column] for t in times[name]) for name in ("plain", "ours"))
            cells.append(f"{plain:.3f} s | {ours:.3f} s | **{plain / ours:.2f}x**")
        ratios = [plain[1] / ours[1] for plain, ours in zip(times["plain"], times["ours"], strict=True)]
        spread = f"{min(ratios):.2f} to {max(ratios):.2f} (CPU)"
        print(f"| ViT-{size.upper()} | {' | '.join(cells)} | {spread} |", flush=True)


if __name__ == "__main__":
    main()
