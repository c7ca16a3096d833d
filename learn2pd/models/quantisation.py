"""Quantised weights: the matrices of the layers are held in 8 or 4 bits and multiplied in the type of the model.

A checkpoint is quantised while it is loaded; a checkpoint that was saved quantised is not read. The embedding, the
head, the norms and the routers of experts stay as they are. `int8` is the weight-only scheme of torchao, with a scale
for each row of a matrix. `nf4` is the 4-bit type of bitsandbytes, with a scale of 8 bits for every 64 values. A
matrix whose rows do not divide into 64 values stays as it is, since bitsandbytes loses its values on a CPU.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from learn2pd.errors import UserError
from learn2pd.models.experts import MixtureOfExperts
from learn2pd.models.neighbours import cause, told_in_one_line
from learn2pd.models.network import DiffusionNetwork
from learn2pd.models.spreading import devices_of_layers

KEY = "quantization"
KINDS = {"int8": "torchao", "nf4": "bitsandbytes"}  # what each kind needs
VALUES_BY_SCALE = 64  # of nf4


def check_quantization(kind: str | None) -> None:
    """Refuse a kind that is not known, or whose package is not installed.

    Args:
        kind: A name in `KINDS`, or None.

    Raises:
        UserError: The kind is refused; the message says what to install.
    """
    if kind is None:
        return
    if not isinstance(kind, str) or kind not in KINDS:
        raise UserError(f"{KEY}={kind!r}: expected one of {', '.join(KINDS)}, or None")
    package = KINDS[kind]
    try:
        importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise UserError(
            f'{KEY}={kind!r} needs the package {package}, which is not installed: pip install "learn2pd[{KEY}]"'
        ) from error
    except Exception as error:  # packages with compiled parts fail in many ways
        raise UserError(f"{KEY}={kind!r}: the package {package} cannot be imported ({cause(error)})") from error


def quantise(network: DiffusionNetwork, kind: str, devices: Sequence[torch.device]) -> None:
    """Quantise the matrices of the layers and bring the network to its devices.

    One matrix at a time goes to a device, so that no device ever holds the plain weights.

    Args:
        network: The network on the CPU; it is changed.
        kind: A name in `KINDS`.
        devices: The devices, which share the layers.

    Raises:
        UserError: The package refuses the weights or a device.
    """
    parts = network.parts()
    for layer, device in zip(parts.layers, devices_of_layers(network, devices), strict=True):
        with told_in_one_line(f"{KEY}={kind!r}: {KINDS[kind]} could not quantise the weights for {device}"):
            for matrix, holder, name in _matrices(layer, kind):
                made = _int8(matrix, device) if kind == "int8" else _nf4(matrix, device)
                setattr(holder, name, made)
            layer.to(device)
    for module in (parts.embedding, parts.norm, network.get_output_embeddings()):
        module.to(devices[0])


def saved_bytes(network: DiffusionNetwork, kind: str) -> int:
    """Compute by how many bytes quantised weights are smaller than the plain ones.

    Args:
        network: A network of any device with plain weights.
        kind: A name in `KINDS`.
    """
    saved = 0
    for matrix, _, _ in _matrices(network.parts().layers, kind):
        weight = matrix.weight
        taken = weight.numel() + matrix.out_features * weight.element_size()
        if kind == "nf4":
            taken = math.ceil(weight.numel() / 2) + math.ceil(weight.numel() / VALUES_BY_SCALE)
        saved += weight.nbytes - taken
    return saved


def _matrices(layers: nn.Module, kind: str) -> list[tuple[nn.Linear, nn.Module, str]]:
    """List the linear layers that are quantised, each with the module that holds it and its name there."""
    matrices = []
    for holder in layers.modules():
        for name, module in holder.named_children():
            routes = isinstance(holder, MixtureOfExperts) and name == "gate"
            if (
                type(module) is nn.Linear
                and not routes
                and not (kind == "nf4" and module.in_features % VALUES_BY_SCALE)
            ):
                matrices.append((module, holder, name))
    return matrices


def _int8(matrix: nn.Linear, device: torch.device) -> nn.Module:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(matrix, Int8WeightOnlyConfig(), filter_fn=lambda *_: True, device=device)
    return matrix


def _nf4(matrix: nn.Linear, device: torch.device) -> nn.Module:
    from bitsandbytes.nn import Linear4bit, Params4bit

    options: dict[str, Any] = {"compute_dtype": matrix.weight.dtype, "quant_type": "nf4", "device": "meta"}
    made = Linear4bit(matrix.in_features, matrix.out_features, bias=False, **options)
    made.weight = Params4bit(matrix.weight.data, requires_grad=False, quant_type="nf4")
    made.bias = matrix.bias
    return made.to(device)
