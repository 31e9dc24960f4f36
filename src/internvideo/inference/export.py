"""Export a model with torch.export (.pt2) or to ONNX, and compare the file with the model.

The graph includes pixel normalization: its input are clips of the preprocessing, or token ids; its output is float32.
Shapes: B batch, T frames, S side, L tokens, E dimension of the features, C classes.
"""

from __future__ import annotations

import copy
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from internvideo.data.preprocessing import VideoSource
from internvideo.data.tokenizer import Tokenizer
from internvideo.errors import RecipeError, RunError, unwritable
from internvideo.extras import require
from internvideo.inference import onnx_file
from internvideo.inference.video_model import VideoModel
from internvideo.models.encoder import VideoEncoder
from internvideo.storage import atomic_path, write_text
from internvideo.weights.fetch import sha256_of

Format = Literal["torch", "onnx"]
What = Literal["video", "text", "classifier"]
SUFFIXES: dict[str, str] = {"torch": ".pt2", "onnx": ".onnx"}
SENTENCES = ("a person opens a door", "dog", "two people walk along a street at night while a red car turns left")
"""Texts on which an exported text graph is compared with the model."""


@dataclass(frozen=True)
class ExportSettings:
    """Settings of an export.

    Attributes:
        format: "torch" (torch.export, .pt2) or "onnx".
        what: "video" (clips to features, not L2-normalized), "text" (ids to features), "classifier" (clips to logits).
        batch: fixed B of the graph, None for a dynamic one.
        frames: T of the graph: "auto" (dynamic if the model allows it), "dynamic" (an error if not), or a number.
        opset: ONNX opset, None for the exporter's default.
        tolerance: maximum difference from the model, relative to the largest absolute value of its output.
        int8: also write a file with 8-bit weights (ONNX).
    """

    format: Format = "onnx"
    what: What = "video"
    batch: int | None = None
    frames: int | Literal["auto", "dynamic"] = "auto"
    opset: int | None = None
    tolerance: float = 1e-4
    int8: bool = False

    def __post_init__(self) -> None:
        for name, value, allowed in (("format", self.format, get_args(Format)), ("what", self.what, get_args(What))):
            if value not in allowed:
                raise RecipeError(name, repr(value), ", ".join(allowed))
        if self.batch is not None and self.batch < 1:
            raise RecipeError("batch", str(self.batch), "1 or more, or dynamic")
        if self.format != "onnx" and (self.int8 or self.opset is not None):
            raise RecipeError("int8" if self.int8 else "opset", f"with format {self.format}", "with --format onnx")
        if not self.tolerance > 0:
            raise RecipeError("tolerance", str(self.tolerance), "above 0")


@dataclass(frozen=True)
class Check:
    """Comparison of one output: input, its shape, maximum absolute difference, largest absolute value of the model."""

    input: str
    shape: tuple[int, ...]
    error: float
    largest: float

    @property
    def relative(self) -> float:
        """Maximum difference divided by the largest absolute value; infinity for NaN."""
        ratio = self.error / max(self.largest, 1e-12)
        return ratio if ratio == ratio else float("inf")


@dataclass(frozen=True)
class Export:
    """Exported files and their comparison with the model.

    Attributes:
        path, metadata: the model file and the JSON file that describes it.
        checks: all comparisons.
        int8, cosine: the file with 8-bit weights, and the minimum cosine of its outputs and the model's; or None.
    """

    path: Path
    metadata: Path
    checks: tuple[Check, ...]
    int8: Path | None = None
    cosine: float | None = None

    @property
    def worst(self) -> Check:
        """The comparison with the largest relative difference."""
        return max(self.checks, key=lambda check: check.relative)


ExportedFunction = Callable[[Any, Tensor, int], Tensor]
"""(module, input, temporal stride) -> output."""


def _features(encoder: VideoEncoder, clips: Tensor, temporal_stride: int) -> Tensor:
    return encoder.features(encoder.prepare(clips, temporal_stride))


def _logits(encoder: VideoEncoder, clips: Tensor, temporal_stride: int) -> Tensor:
    return encoder.logits(encoder.prepare(clips, temporal_stride))


def _encode_text(tower: Any, ids: Tensor, temporal_stride: int) -> Tensor:
    return cast(Tensor, tower(ids))


class Graph(nn.Module):
    """The exported module: (B, 3, T, S, S) -> (B, E) or (B, C), or ids (B, L) -> (B, E), float32.

    Raises:
        RecipeError: the model has no text tower or no classifier.
    """

    def __init__(self, model: VideoModel, what: What) -> None:
        super().__init__()
        towers = model.module.as_dual_encoder
        functions: dict[What, ExportedFunction] = {"video": _features}
        if towers is not None:
            functions["text"] = _encode_text
        if model.class_names and model.module.has_logits:
            functions["classifier"] = _logits
        if what not in functions:
            raise RecipeError("what", f"model {model.name} has no {what}", ", ".join(functions))
        self.run, self.step = functions[what], model.temporal_stride
        if what == "text" and towers is not None:
            self.module: nn.Module = towers.text
            return
        self.module = copy.copy(model.module)
        unused = ("text", "caption_decoder") if towers is not None else ()
        self.module._modules = {name: part for name, part in self.module._modules.items() if name not in unused}

    def forward(self, input: Tensor) -> Tensor:
        """See the class."""
        return self.run(self.module, input, self.step).float()


@dataclass(frozen=True)
class Plan:
    """Input and output of the graph.

    Attributes:
        name, output: names of input and output. example: input for tracing, with B >= 2 if B is dynamic.
        axes: dynamic axis of the input -> name. min_sizes: dynamic axis -> minimum size.
        samples: (name, input) of each comparison.
    """

    name: str
    output: str
    example: Tensor
    axes: dict[int, str]
    min_sizes: dict[int, int]
    samples: tuple[tuple[str, Tensor], ...]

    @property
    def shape(self) -> list[int | str]:
        """Size of each axis of the input, the name for a dynamic one."""
        return [self.axes.get(axis, size) for axis, size in enumerate(self.example.shape)]


def min_dynamic_frames(encoder: VideoEncoder) -> int | None:
    """Return the minimum number of frames of a model with variable clip length, None for a fixed length."""
    variable = [
        requirement
        for requirement in encoder.clip_needs
        if requirement.frames is None and requirement.max_frames is None
    ]
    min_frames = max((requirement.min_frames for requirement in variable), default=None)
    return min_frames if len(variable) == len(encoder.clip_needs) else None


def _make_plan(model: VideoModel, settings: ExportSettings, video: VideoSource | None) -> Plan:
    axes = {} if settings.batch else {0: "batch"}
    output = "logits" if settings.what == "classifier" else "features"
    if settings.what == "text":
        ids = Tokenizer(context_length=model.module.config.text.context_length).encode(SENTENCES)
        counts = [settings.batch] if settings.batch else [1, 3, 2]
        samples = tuple(("sentences", ids[torch.arange(count) % len(ids)]) for count in counts)
        return Plan("ids", output, samples[-1][1], axes, {}, samples)
    count, min_frames = _frames(model, settings)
    sizes = [(1, count), (3, count)]
    if min_frames:
        axes[2] = "frames"
        sizes = [(1, count), (2, max(min_frames, count // 2)), (3, min_frames), (1, count + 1)]
    generator, side = torch.Generator().manual_seed(0), model.preprocessing.size

    def random(batch: int, frames: int) -> Tensor:
        clips = torch.randint(0, 256, (batch, 3, frames, side, side), dtype=torch.uint8, generator=generator)
        return clips.float() if model.preprocessing.resize_backend == "torch" else clips

    clips = [("random", random(*size)) for size in dict.fromkeys((settings.batch or b, t) for b, t in sizes)]
    if video is not None:
        clip = next(iter(model.read(video)))
        clips.append(("video", clip.expand(settings.batch or 1, -1, -1, -1, -1).contiguous()))
    example = random(settings.batch or 2, max(count, min_frames + 1))  # a size of one would be taken as fixed
    return Plan("clips", output, example, axes, {2: min_frames} if min_frames else {}, tuple(clips))


def _frames(model: VideoModel, settings: ExportSettings) -> tuple[int, int]:
    """Return T, and the minimum for a dynamic T (0 if T is fixed). Raises RecipeError: an unsupported T."""
    frames, min_frames, default = settings.frames, min_dynamic_frames(model.module), model.preprocessing.frames
    if min_frames is None and frames not in ("auto", default):
        raise RecipeError("frames", str(frames), str(default), f"model {model.name} takes clips of one length")
    if isinstance(frames, str):
        return default, min_frames or 0
    if frames < (min_frames or 1):
        raise RecipeError("frames", str(frames), f"{min_frames} or more")
    return frames, 0


def _program(graph: Graph, plan: Plan) -> torch.export.ExportedProgram:
    dynamic_axes = {axis: torch.export.Dim(name, min=plan.min_sizes.get(axis, 1)) for axis, name in plan.axes.items()}
    try:
        return torch.export.export(graph, (plan.example,), dynamic_shapes={"input": dynamic_axes})
    except (RuntimeError, ValueError) as error:
        found = f"cannot be exported: {str(error).splitlines()[0]}"
        raise RunError("export", found, "", "try fixed --batch and --frames") from error


def compare(run: Callable[[Tensor], Tensor], plan: Plan, expected: list[Tensor]) -> tuple[Check, ...]:
    """Compare the outputs of a saved file with those of the model on every sample."""
    checks = []
    for (kind, sample), output in zip(plan.samples, expected, strict=True):
        actual = run(sample)
        error = float((actual - output).abs().max()) if actual.shape == output.shape else float("inf")
        checks.append(Check(kind, tuple(sample.shape), error, float(output.abs().max())))
    return tuple(checks)


def export(
    model: VideoModel,
    output: str | Path | None = None,
    settings: ExportSettings | None = None,
    *,
    video: VideoSource | None = None,
) -> Export:
    """Export a model, reload the file and compare it with the model; a JSON beside it describes inputs and outputs.

    Args:
        model: in float32, on the CPU.
        output: .pt2 or .onnx file; by default MODEL-WHAT in the current folder. Weights above 2 GB are written to a
            second file OUTPUT.data.
        settings: see `ExportSettings`.
        video: a video to compare on, besides random clips.

    Raises:
        RecipeError: settings that the model or the format does not support, or a missing package.
        RunError: the file differs by more than the tolerance (it is deleted), or cannot be written.
        VideoError: the video cannot be read.
    """
    settings = settings or ExportSettings()
    if settings.format == "onnx":
        require("export", "format onnx")
    if model.precision != "float32" or model.device.type != "cpu":
        raise RecipeError("model", f"{model.precision} on {model.device}", "float32 on cpu")
    final = Path(output or f"{model.name}-{settings.what}{SUFFIXES[settings.format]}")
    if final.suffix != SUFFIXES[settings.format]:
        raise RecipeError("output", str(final), f"a name that ends in {SUFFIXES[settings.format]}")
    graph = Graph(model, settings.what).eval()
    with torch.no_grad():
        plan = _make_plan(model, settings, video)
        program = _program(graph, plan)
        try:
            final.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=f".{final.stem}.", dir=final.parent) as folder:
                return _write(model, graph, plan, program, settings, Path(folder) / final.name, final)
        except OSError as error:
            raise unwritable(final, error, "choose another folder") from error


def _write(
    model: VideoModel,
    graph: Graph,
    plan: Plan,
    program: torch.export.ExportedProgram,
    settings: ExportSettings,
    temporary: Path,
    final: Path,
) -> Export:
    """Write the files to a temporary folder, compare the outputs, then move the files to `final`, the JSON last."""
    run: Callable[[Tensor], Tensor]
    if settings.format == "torch":
        torch.export.save(program, temporary)
        run = torch.export.load(temporary).module()
    else:
        onnx_file.write(program, temporary, plan.name, plan.output, plan.axes, settings.opset)
        run = onnx_file.create_session(temporary)
    expected = [graph(sample) for _, sample in plan.samples]
    checks = compare(run, plan, expected)
    worst = max(checks, key=lambda check: check.relative)
    if worst.relative > settings.tolerance:
        found = f"differs from the model by {worst.error:.3g} of {worst.largest:.3g} on {worst.input} {worst.shape}"
        raise RunError(final, f"{found}; nothing was written", f"at most {settings.tolerance:g} of the largest value")
    int8_path, cosine = None, None
    if settings.int8:
        int8_path = temporary.with_suffix(".int8.onnx")
        onnx_file.quantize(temporary, int8_path)
        output_pairs = zip(
            map(onnx_file.create_session(int8_path), (sample for _, sample in plan.samples)), expected, strict=True
        )
        cosine = min(float(nn.functional.cosine_similarity(a, b, dim=1).min()) for a, b in output_pairs)
    files = sorted(temporary.parent.iterdir(), key=lambda file: file.suffix != ".data")
    description = _describe(model, plan, settings, checks, cosine)
    description["files"] = [{"name": f.name, "bytes": f.stat().st_size, "sha256": sha256_of(f)} for f in files]
    for file in files:
        with atomic_path(final.parent / file.name) as temporary:
            shutil.move(file, temporary)
    metadata = final.with_name(final.name + ".json")
    write_text(metadata, json.dumps(description, indent=2) + "\n")
    return Export(final, metadata, checks, int8_path and final.parent / int8_path.name, cosine)


def _describe(
    model: VideoModel, plan: Plan, settings: ExportSettings, checks: tuple[Check, ...], cosine: float | None
) -> dict[str, Any]:
    text = settings.what == "text"
    width = len(model.class_names) if plan.output == "logits" else model.embed_dim
    shape = [plan.axes.get(0, len(plan.example)), width]
    return {
        "model": model.name,
        "format": settings.format,
        "what": settings.what,
        "input": {"name": plan.name, "type": str(plan.example.dtype).removeprefix("torch."), "shape": plan.shape},
        "output": {"name": plan.output, "type": "float32", "shape": shape, "normalised": False},
        "smallest": {plan.axes[axis]: count for axis, count in plan.min_sizes.items()},
        "preprocessing": {"words": plan.example.shape[1]} if text else model.preprocessing.to_json(),
        "classes": list(model.class_names) if settings.what == "classifier" else [],
        "weights": model.metadata,
        "tolerance": settings.tolerance,
        "largest_difference": max(check.relative for check in checks),
        "checks": [asdict(check) for check in checks],
        "int8_cosine": cosine,
        "made_with": {
            "torch": torch.__version__,
            **(onnx_file.package_versions() if settings.format == "onnx" else {}),
        },
    }
