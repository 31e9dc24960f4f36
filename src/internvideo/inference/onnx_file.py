"""Write ONNX files from an exported program, run them with ONNX Runtime, and quantize weights to 8 bits.

The three packages belong to the extra `internvideo[export]`; only this module imports them, on first use.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from internvideo.errors import RecipeError
from internvideo.extras import EXTRAS

MAX_PROTOBUF_BYTES = 2**31 - 2**20
"""Maximum total size of the weights in one protobuf file (2 GiB), minus 1 MiB for the graph."""


def package_versions() -> dict[str, str]:
    """Return {package: version} of the extra."""
    return {name: version(name) for name in EXTRAS["export"].modules}


@contextmanager
def _silence_exporters() -> Iterator[None]:
    """Silence the warnings of the exporters; `export` compares the outputs afterwards."""
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
    """Write a program with one input and one output; weights above `MAX_PROTOBUF_BYTES` bytes go to PATH.data.

    Raises:
        RecipeError: the exporter does not support the opset, or the opset lacks an operation.
    """
    with _silence_exporters():
        try:
            onnx_program = torch.onnx.export(
                program,
                input_names=[input_name],
                output_names=[output_name],
                dynamic_shapes=(dict(axes),),
                opset_version=opset,
                dynamo=True,
                optimize=True,  # the default after torch 2.6: transposed weights are folded, and can be quantized
                verbose=False,
            )
        except Exception as error:  # the exporter raises many types of exceptions
            setting = "format onnx" if opset is None else f"opset {opset}"
            raise RecipeError(setting, first_line(error), "", "try another --opset") from error
        assert onnx_program is not None
        actual_opset = onnx_program.model.opset_imports[""]
        if opset not in (None, actual_opset):  # it silently falls back to its lowest opset
            raise RecipeError("opset", str(opset), "", f"the exporter wrote {actual_opset}")
        _mend_shapes(onnx_program.model.graph, axes)
        size = sum(tensor.numel() * tensor.element_size() for tensor in program.state_dict.values())
        onnx_program.save(path, external_data=size > MAX_PROTOBUF_BYTES)


def _mend_shapes(graph: Any, axes: Mapping[int, str]) -> None:
    """Name the dynamic axes, which torch 2.6 names after example sizes, and leave the shapes of weights to the weights.

    ONNX Runtime 1.20 transposes weights when it quantizes them, and then stumbles over shapes that stand beside them.
    """
    for weight in graph.initializers.values():
        weight.shape = None
    shape = graph.inputs[0].shape
    names = {shape[axis].value: name for axis, name in axes.items()}
    values = [*graph.inputs, *graph.outputs, *(value for node in graph for value in node.outputs)]
    for value in values:
        for axis, size in enumerate(value.shape or ()):
            if not isinstance(size, int) and names.get(size.value, size.value) != size.value:
                value.shape[axis] = names[size.value]


def first_line(error: Exception) -> str:
    """Return the first line of an error message, or the type of the exception if it has no message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def create_session(path: Path) -> Callable[[Tensor], Tensor]:
    """Return a function of one tensor that runs the file in ONNX Runtime on the CPU, with as many threads as torch.

    Raises:
        RecipeError: this version of ONNX Runtime cannot open it.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no common base class
        found = f"ONNX Runtime {version('onnxruntime')} does not open it: {first_line(error)}"
        raise RecipeError(path.name, found, "", "try a lower --opset") from error
    name = session.get_inputs()[0].name
    return lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0])


def quantize(source: Path, target: Path) -> None:
    """Quantize the weights of all matrix products to 8 bits, one scale per column, and activations dynamically."""
    with _silence_exporters():
        from onnxruntime.quantization import QuantType, quantize_dynamic

        has_external_data = source.with_name(source.name + ".data").exists()
        # The default also quantizes convolutions, embeddings and opset 23's Attention, which ONNX Runtime then rejects.
        quantize_dynamic(
            source,
            target,
            op_types_to_quantize=["MatMul", "Gemm"],
            weight_type=QuantType.QInt8,
            per_channel=True,
            use_external_data_format=has_external_data,
        )
