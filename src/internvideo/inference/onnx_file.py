"""ONNX files: written from an exported program, run with ONNX Runtime, made smaller with 8-bit weights.

The three packages belong to the extra `internvideo[export]`; they are imported here alone and only when asked for.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from internvideo.errors import RecipeError
from internvideo.extras import EXTRAS

LARGEST = 2**31 - 2**20
"""Bytes that one protobuf file holds, with room for the graph itself."""


def versions() -> dict[str, str]:
    """Package -> version."""
    return {name: version(name) for name in EXTRAS["export"].modules}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' remarks on themselves: what counts is compared afterwards."""
    loggers = [logging.getLogger(name) for name in ("", "torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def write(
    program: torch.export.ExportedProgram,
    path: Path,
    input_name: str,
    output_name: str,
    axes: Mapping[int, str],
    opset: int | None = None,
) -> None:
    """Write a program of one input and one output; weights beyond `LARGEST` bytes into PATH.data beside it.

    Raises:
        RecipeError: the exporter does not know the opset, or an operation has no place in it.
    """
    with _quiet():
        try:
            made = torch.onnx.export(
                program,
                input_names=[input_name],
                output_names=[output_name],
                dynamic_shapes=(dict(axes),),
                opset_version=opset,
                dynamo=True,
                verbose=False,
            )
        except Exception as error:  # the exporter raises many kinds, its own and others'
            where = "format onnx" if opset is None else f"opset {opset}"
            raise RecipeError(where, first_line(error), "", "try another --opset") from error
        assert made is not None
        got = made.model.opset_imports[""]
        if opset not in (None, got):  # it keeps to its lowest set without a word
            raise RecipeError("opset", str(opset), "", f"the exporter made {got}")
        size = sum(tensor.numel() * tensor.element_size() for tensor in program.state_dict.values())
        made.save(path, external_data=size > LARGEST)


def first_line(error: Exception) -> str:
    """What an error of another library says, in one short line; its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def runner(path: Path) -> Callable[[Tensor], Tensor]:
    """The file in ONNX Runtime on the CPU, as a function of one tensor, with as many threads as torch.

    Raises:
        RecipeError: this ONNX Runtime does not open it.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its kinds of errors have no common name
        found = f"ONNX Runtime {version('onnxruntime')} does not open it: {first_line(error)}"
        raise RecipeError(path.name, found, "", "try a lower --opset") from error
    name = session.get_inputs()[0].name
    return lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0])


def quantise(source: Path, target: Path) -> None:
    """Weights of all matrix products in 8 bits, one scale a column; activations when they are met."""
    with _quiet():
        from onnxruntime.quantization import QuantType, quantize_dynamic

        big = source.with_name(source.name + ".data").exists()
        # By default also convolutions, embeddings and opset 23's Attention, which its own runtime then refuses.
        quantize_dynamic(
            source,
            target,
            op_types_to_quantize=["MatMul", "Gemm"],
            weight_type=QuantType.QInt8,
            per_channel=True,
            use_external_data_format=big,
        )
