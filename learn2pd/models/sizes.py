"""The memory that a run needs, computed from config.json alone: weights, keys and values, and activations.

The network is built without values, on torch's device `meta`, and a forward of the wanted shape runs through it there.
So the same code serves every family, one of the user's own included.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from learn2pd.loop.proposals import SCORE_VALUES
from learn2pd.models.network import DiffusionNetwork
from learn2pd.models.quantisation import saved_bytes
from learn2pd.tensors import widened


@dataclass(frozen=True)
class Sizes:
    """The memory of a run, in bytes.

    Attributes:
        weights: The weights of the network.
        kept: The keys and values of the whole batch, which a run with a cache keeps.
        activations: The most that a forward over all columns holds at one time, logits included.
    """

    weights: int
    kept: int
    activations: int

    @property
    def whole(self) -> int:
        """The three together."""
        return self.weights + self.kept + self.activations

    def __str__(self) -> str:
        parts = {"weights": self.weights, "keys and values": self.kept, "activations": self.activations}
        return ", ".join(f"{name} {bytes_text(size)}" for name, size in parts.items())


def bytes_text(count: int) -> str:
    """Word a number of bytes, rounded up to MiB below a GiB."""
    return f"{math.ceil(count / 2**20):,} MiB" if count < 2**30 else f"{count / 2**30:.1f} GiB"


def sizes_of(network: DiffusionNetwork, rows: int, columns: int, quantization: str | None = None) -> Sizes:
    """Compute the memory of a run.

    Args:
        network: A network on the device `meta`, in the type of the run.
        rows: The rows that are decoded together.
        columns: The tokens of the longest prompt and of the canvas together.
        quantization: The kind of the quantised weights; None for plain ones.
    """
    saved = 0 if quantization is None else saved_bytes(network, quantization)
    store = network.new_store(rows, columns)
    *_, heads, width = store.keys[0].shape
    return Sizes(
        sum(tensor.nbytes for tensor in network.state_dict().values()) - saved,
        2 * len(store.keys) * rows * columns * heads * width * store.keys[0].element_size(),
        _activations(network, rows, columns),
    )


def _activations(network: DiffusionNetwork, rows: int, columns: int) -> int:
    network.join_experts()
    ids = torch.zeros(rows, columns, dtype=torch.long, device="meta")
    scored = min(rows * columns, max(1, SCORE_VALUES // network.config.vocab_size))
    with torch.inference_mode(), _Shapes(), LiveBytes() as live:
        seen = None
        if network.causal_block is not None:
            seen = torch.ones(rows, columns, columns, dtype=torch.bool, device="meta")
        hidden = network.hidden(ids, attention_mask=seen)
        logits = widened(network.score(hidden.flatten(0, 1)[:scored]))
        (logits - logits[:, :1]).exp_()
    return live.most


class _Shapes(TorchFunctionMode):
    """Computes the shapes of two fused calls which on the device `meta` work otherwise than on a real device."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if func is functional.scaled_dot_product_attention:
            return torch.empty_like(args[0])
        if "grouped_mm" in func.__name__:  # the public function calls a private one of nearly this name
            return args[0].new_empty(len(args[0]), args[1].shape[-1])
        return func(*args, **(kwargs or {}))


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that are made while it is active.

    Attributes:
        most: The most bytes that were alive at one time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.most = 0
        self._alive: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {tensor.untyped_storage()._cdata for tensor in args if isinstance(tensor, Tensor)}
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in given:
                storage = tensor.untyped_storage()
                self._alive[StorageWeakRef(storage)] = storage.nbytes()
        self._alive = {storage: size for storage, size in self._alive.items() if not storage.expired()}
        self.most = max(self.most, sum(self._alive.values()))
        return result
