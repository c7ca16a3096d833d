"""A device that is no CPU, for machines that have no other one.

A tensor of the device says that it is on `meta`, and holds its values in a tensor of the CPU. Every operation computes
on the CPU, so that answers are real. What a real device would refuse, the mixing of its tensors with tensors of the
host, is refused. Whatever makes the host wait for a CUDA device is noted: values that are read, results whose shape
depends on values, and copies that block.
"""

from __future__ import annotations

import copy
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from learn2pd.types import RowMemory

aten = torch.ops.aten
DEVICE = torch.device("meta")
# their results have a shape that depends on values, or they read values
READS = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.bincount.default,
    aten.equal.default,
    aten._unique2.default,
    aten.unique_consecutive.default,
    aten.repeat_interleave.Tensor,
    aten.is_nonzero.default,
}
INDEXED = {
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
    aten._unsafe_index.Tensor,
}


class DeviceTensor(Tensor):
    """A tensor of the device.

    Attributes:
        held: Its values, on the CPU.
    """

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> DeviceTensor:
        tensor: DeviceTensor = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, held.shape, strides=held.stride(), dtype=held.dtype, device=DEVICE
        )
        tensor.held = held
        return tensor

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} on a tensor of the device outside of `Device`")

    def tolist(self) -> Any:
        return self.cpu().tolist()  # torch refuses to do it for a class of one's own

    def __repr__(self) -> str:  # type: ignore[override]
        return f"DeviceTensor({self.held!r})"


class Device(TorchDispatchMode):
    """The device. While it is active, `meta` means it.

    Attributes:
        waits: Where the host waited for the device, one text each.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        # a tensor without a value is made on `meta` itself by `torch.tensor([], device=...)`
        args = _mapped(lambda leaf: _empty(leaf) if _is_empty(leaf) else leaf, args)
        tensors = _tensors([args, kwargs])
        on_device = [isinstance(tensor, DeviceTensor) for tensor in tensors]
        target = kwargs.get("device")
        made_there = target is not None and torch.device(target).type == DEVICE.type
        if made_there:
            kwargs["device"] = torch.device("cpu")
        if func in (aten._to_copy.default, aten.copy_.default):
            return self._copy(func, args, kwargs, target)
        mixed = any(on_device) and any(
            not mine and tensor.ndim for mine, tensor in zip(on_device, tensors, strict=True)
        )
        if mixed:
            raise RuntimeError(f"{func}: tensors of the host and of the device")
        if any(on_device):
            masked = func in INDEXED and any(index is not None and index.dtype == torch.bool for index in args[1])
            if func in READS or masked:
                self._wait(str(func))
        return self._computed(func, args, kwargs, to_device=any(on_device) or made_there)

    def _copy(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any], target: Any) -> Any:
        """Copy to another type or device. A copy that does not block is one that is told so, to the device."""
        if func is aten.copy_.default:
            here, source = (isinstance(tensor, DeviceTensor) for tensor in args[:2])
            blocks = here != source and not (here and (kwargs.get("non_blocking") or args[2:] == (True,)))
            if blocks and args[1].ndim:
                self._wait("a copy")
            return self._computed(func, args, kwargs, to_device=here)
        source = isinstance(args[0], DeviceTensor)
        to_device = source if target is None else torch.device(target).type == DEVICE.type
        if source != to_device and not (to_device and kwargs.get("non_blocking")):
            self._wait("a copy to the device" if to_device else "a copy to the host")
        return self._computed(func, args, kwargs, to_device=to_device)

    def _computed(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any], to_device: bool) -> Any:
        args, kwargs = _mapped(lambda leaf: leaf.held if isinstance(leaf, DeviceTensor) else leaf, (args, kwargs))
        result = func(*args, **kwargs)
        return _mapped(lambda leaf: DeviceTensor(leaf) if to_device and isinstance(leaf, Tensor) else leaf, result)

    def _wait(self, what: str) -> None:
        frames = [
            frame
            for frame in traceback.extract_stack()
            if "/learn2pd/" in frame.filename and "tests" not in frame.filename
        ]
        last = frames[-1] if frames else traceback.extract_stack()[0]
        self.waits.append(f"{what}: {last.filename.rpartition('/learn2pd/')[2]}:{last.lineno} {last.line}")


def _mapped(function: Callable[[Any], Any], value: Any) -> Any:
    """A value with every leaf of its tuples, lists and dicts replaced. Torch's own function is many times slower."""
    if type(value) in (tuple, list):
        return type(value)([_mapped(function, part) for part in value])
    if type(value) is dict:
        return {name: _mapped(function, part) for name, part in value.items()}
    return function(value)


def _tensors(value: Any) -> list[Tensor]:
    """All tensors in a value of tuples, lists and dicts."""
    if isinstance(value, Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, tuple | list) else ()
    return [tensor for part in parts for tensor in _tensors(part)]


def _is_empty(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and not isinstance(leaf, DeviceTensor) and leaf.is_meta and not leaf.numel()


def _empty(leaf: Tensor) -> DeviceTensor:
    return DeviceTensor(torch.empty(leaf.shape, dtype=leaf.dtype))


def moved(module: nn.Module) -> Any:
    """A copy of a network on the device. The device must be active."""
    return copy.deepcopy(module).to(DEVICE)


def on_the_device(value: Any) -> Any:
    """A tensor, or a value of `learn2pd.types` with its tensors, on the device."""
    if isinstance(value, Tensor):
        return DeviceTensor(value)
    if isinstance(value, RowMemory):
        return replace(value, **{name: on_the_device(part) for name, part in vars(value).items()})
    return value


def held(value: Any) -> Any:
    """The reverse of `on_the_device`, without a wait."""
    if isinstance(value, DeviceTensor):
        return value.held
    if isinstance(value, RowMemory):
        return replace(value, **{name: held(part) for name, part in vars(value).items()})
    return value
