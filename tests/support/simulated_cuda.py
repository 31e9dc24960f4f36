"""A CUDA device made of the CPU: real values in tensors labeled cuda:0, CUDA's autocast, what the host waits for.

Inside `simulated_cuda()` an operation that mixes devices fails as on a GPU, and one that would make the host wait for
the device is listed: reading a value, results whose shape depends on values, copies that block. Nothing of CUDA is
needed.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

CUDA = torch.device("cuda", 0)
aten = torch.ops.aten
VALUE_READ = {aten._local_scalar_dense.default, aten.item.default, aten.is_nonzero.default, aten.equal.default}
SHAPE_OF_VALUES = {
    aten.nonzero.default,
    aten.masked_select.default,
    aten.unique_consecutive.default,
    aten._unique2.default,
    aten.bincount.default,
}
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}


class CudaTensor(Tensor):
    """A CPU tensor that says that it is on cuda:0, and is dispatched as if it were."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> CudaTensor:
        """Label a tensor."""
        made: CudaTensor = Tensor._make_subclass(  # type: ignore[attr-defined]  # torch does not declare it
            cls, inner.detach(), inner.requires_grad, device_for_backend_keys=CUDA
        )
        made.inner = inner.detach()
        return made

    def __repr__(self) -> str:  # type: ignore[override]  # without values, which would be read
        """Shape and type."""
        return f"CudaTensor({tuple(self.shape)}, {self.dtype})"

    @property
    def device(self) -> torch.device:  # type: ignore[override]  # an attribute of the class above
        """cuda:0."""
        return CUDA

    def to_host(self, what: str) -> Tensor:
        """The values, for which the host waits."""
        _WAITS[-1].found.append(what)
        return self.inner

    def cpu(self, *_: Any, **__: Any) -> Tensor:
        """A copy on the host."""
        return self.to_host("cpu()").clone()

    def numpy(self, *_: Any, **__: Any) -> Any:
        """As a GPU's tensor."""
        raise TypeError("a tensor of cuda:0 has no numpy()")

    def tolist(self) -> Any:
        """The values."""
        return self.to_host("tolist()").tolist()

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Let `to` see the labels: below, torch takes the tensors for those of the CPU that they are."""
        if func is Tensor.to:
            return _to(*args, **(kwargs or {}))
        if func is Tensor.new_tensor:
            return _tensor(args[1], device=CUDA, dtype=args[0].dtype)
        _BESIDE.append(func)
        try:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        finally:
            _BESIDE.pop()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation on the values."""
        return _run(func, args, kwargs or {})


def _to(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """`Tensor.to` where the tensor or its model is labelled."""
    if args and isinstance(args[0], Tensor):
        args = (args[0].device, args[0].dtype, *args[1:])
    device = next((value for value in (*args, kwargs.get("device")) if isinstance(value, str | torch.device)), None)
    with torch._C.DisableTorchFunctionSubclass():
        if isinstance(tensor, CudaTensor) and device is not None and torch.device(device).type == "cpu":
            return tensor.to_host("to(cpu)").to(*args, **kwargs)
        return tensor.to(*args, **kwargs)


_TENSOR = torch.tensor


def _tensor(data: Any, *, device: Any = None, **kwargs: Any) -> Tensor:
    """`torch.tensor`, which copies from the host and waits for it."""
    made = _TENSOR(data, **kwargs)
    if device is None or torch.device(device).type == "cpu":
        return made
    _WAITS[-1].found.append("tensor()")
    return CudaTensor(made)


class CudaGenerator(torch.Generator):
    """A generator that says that it draws on cuda:0."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]  # an attribute of the class above
        """cuda:0."""
        return CUDA


@dataclass
class Waits:
    """What made the host wait for the device, in order."""

    found: list[str] = field(default_factory=list)


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


_WAITS: list[Waits] = []
_BESIDE: list[Any] = []
"""Functions that run now on labeled tensors: what is made inside of them lies beside those."""


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    flat, _ = tree_flatten((args, kwargs))
    ours = [value for value in flat if isinstance(value, CudaTensor)]
    plain = [value for value in flat if isinstance(value, Tensor) and not isinstance(value, CudaTensor)]
    # Below Python, operations name the CPU for what is made beside a labeled tensor: it is labeled too.
    asked = None if ours else kwargs.get("device")
    made = not ours and not plain and "device" in {told.name for told in func._schema.arguments}
    to_cuda = (asked is not None and torch.device(asked).type == "cuda") or bool(made and _BESIDE)
    if ours or to_cuda:
        _count(func, args, kwargs, ours, plain)
    if ours and func not in INDEXING and func not in (aten.copy_.default, aten._to_copy.default):
        wrong = [value for value in plain if value.dim()]
        if wrong:
            raise RuntimeError(f"{func}: tensors of cuda:0 and of the CPU, {tuple(wrong[0].shape)}")
    if kwargs.get("device") is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    inner_args, inner_kwargs = tree_map(lambda x: x.inner if isinstance(x, CudaTensor) else x, (args, kwargs))
    result = func(*inner_args, **inner_kwargs)
    written = [value for value, told in zip(args, func._schema.arguments, strict=False) if told.is_write]
    written += [kwargs[told.name] for told in func._schema.arguments if told.is_write and told.name in kwargs]
    if written and len(func._schema.returns) == 1 and isinstance(result, Tensor):
        return written[0]
    if to_cuda or ours:
        return tree_map(lambda x: CudaTensor(x) if type(x) is Tensor else x, result)
    return result


def _count(func: Any, args: Any, kwargs: dict[str, Any], ours: list[CudaTensor], plain: list[Tensor]) -> None:
    """List an operation that the host waits for."""
    name = str(func)
    if func in VALUE_READ or func in SHAPE_OF_VALUES:
        waits = True
    elif func is aten.repeat_interleave.Tensor:
        waits = kwargs.get("output_size") is None
    elif func in INDEXING:
        waits = any(
            isinstance(index, Tensor)
            and (index.dtype in (torch.bool, torch.uint8) or not isinstance(index, CudaTensor))
            for index in args[1]
        )
    elif func is aten._to_copy.default:
        waits = not ours and not kwargs.get("non_blocking", False)
    else:
        waits = func is aten.copy_.default and bool(plain) and not (len(args) > 2 and args[2])
    if waits:
        _WAITS[-1].found.append(name)


def autocast_lists() -> dict[str, list[Any]]:
    """CUDA's autocast: operations by what is done to their arguments, as torch's own header lists them."""
    header = (Path(torch.__file__).parent / "include/ATen/autocast_mode.h").read_text()
    found: dict[str, list[Any]] = {}
    for kind in ("LOWER_PRECISION_FP", "FP32", "FP32_SET_OPT_DTYPE", "PROMOTE"):
        text = re.search(rf"#define AT_FORALL_{kind}\(_\)(.*?)\n\n", header, re.DOTALL)
        assert text is not None, kind
        names = re.findall(r"_\((\w+)(?:, (\w+))?\)", text[1])
        found[kind] = [getattr(getattr(aten, name), overload or "default") for name, overload in names]
    return found


def _cast(kind: str, operation: Any, *args: Any, **kwargs: Any) -> Any:
    """Run an operation as CUDA's autocast does."""
    low = torch.get_autocast_dtype("cuda")
    flat, _ = tree_flatten((args, kwargs))
    types = {x.dtype for x in flat if isinstance(x, CudaTensor) and x.dtype in (low, torch.float32)}
    wanted = low if kind == "LOWER_PRECISION_FP" else torch.float32
    if kind == "FP32_SET_OPT_DTYPE":
        if types == {low} and kwargs.get("dtype") is None:
            kwargs = {**kwargs, "dtype": torch.float32}
    elif kind != "PROMOTE" or len(types) > 1:
        convert = partial(_converted, types=types, wanted=wanted)
        args, kwargs = tree_map(convert, (args, kwargs))
    with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCUDA)):  # type: ignore[attr-defined]  # torch does not declare them
        return operation(*args, **kwargs)


def _converted(x: Any, types: set[torch.dtype], wanted: torch.dtype) -> Any:
    return x.to(wanted) if isinstance(x, CudaTensor) and x.dtype in types else x


def to_simulated(module: nn.Module) -> nn.Module:
    """Move a module's parameters and buffers, in place."""
    for child in module.modules():
        for name, parameter in child._parameters.items():
            if parameter is not None:
                child._parameters[name] = nn.Parameter(CudaTensor(parameter.data), parameter.requires_grad)
        for name, buffer in child._buffers.items():
            if buffer is not None:
                child._buffers[name] = CudaTensor(buffer)
    return module


@contextmanager
def simulated_cuda() -> Iterator[Waits]:
    """Let there be one CUDA device; yields what the host waits for."""
    waits = Waits()
    _WAITS.append(waits)
    kernels = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch tells that its own kernels are replaced
        for kind, operations in autocast_lists().items():
            for operation in operations:
                kernels.impl(operation, partial(_cast, kind, operation), "AutocastCUDA")
    with (
        mock.patch("torch.tensor", _tensor),
        mock.patch("torch.cuda._lazy_init", return_value=None),
        mock.patch("torch.cuda.is_available", return_value=True),
        mock.patch("torch.cuda.is_bf16_supported", return_value=True),
        mock.patch("torch.cuda.amp.common.amp_definitely_not_available", return_value=False),
        _Mode(),
    ):
        try:
            yield waits
        finally:
            kernels._destroy()
            _WAITS.pop()
