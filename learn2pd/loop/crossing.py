"""Values that cross between the host and the device: many tensors in one copy.

The loop decides on the host which rows and columns a forward computes, and everything else runs on the device. Each
read of a value of the device waits until the device has come so far. So a step reads once, at its end, and reads all
that it needs together (`run.py`). Copies to the device do not wait.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

HOST = torch.device("cpu")


def crossed(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Copy tensors from one device to another one in a single transfer.

    A copy to the host waits for the device, once. A copy to the device does not wait.

    Args:
        tensors: Tensors of one device, none of them without a dimension.
        device: The other device.

    Returns:
        The copies in the same order; the tensors themselves where they are on the device already.
    """
    if all(tensor.device == device for tensor in tensors):
        return list(tensors)
    # the widest types first, so that every tensor begins at a multiple of its own width
    order = sorted(range(len(tensors)), key=lambda number: -tensors[number].element_size())
    pieces = [tensors[number].contiguous().flatten().view(torch.uint8) for number in order]
    packed = torch.cat(pieces)
    if device.type == "cuda":
        packed = packed.pin_memory()
    packed = packed.to(device, non_blocking=device != HOST)
    copies = list(tensors)
    for number, piece in zip(order, packed.split([len(piece) for piece in pieces]), strict=True):
        copies[number] = piece.view(tensors[number].dtype).view(tensors[number].shape)
    return copies


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor of the host to a device without waiting for the device.

    Args:
        tensor: The tensor.
        device: The device.
    """
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
