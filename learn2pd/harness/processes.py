"""The processes that evaluate together, as torchrun starts them. lm-eval deals the questions out to them."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, distributed

from learn2pd.errors import UserError, first_line


def join() -> None:
    """Join the other processes, where torchrun has started this one and nobody has joined them yet.

    Raises:
        UserError: The other processes cannot be reached.
    """
    if not distributed.is_available() or not distributed.is_torchelastic_launched() or distributed.is_initialized():
        return
    try:
        distributed.init_process_group("gloo")
    except (RuntimeError, ValueError) as error:
        raise UserError(f"the processes of torchrun do not find each other ({first_line(error)})") from error


def leave() -> None:
    """Leave the other processes."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def place() -> tuple[int, int]:
    """Return the number of this process, and the number of processes."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def device() -> str:
    """Return the device of this process: each process of a node has a GPU of its own, where there are GPUs."""
    if place()[1] == 1 or not torch.cuda.is_available():
        return "auto"
    return f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}"


def all_gather(tensor: Tensor) -> Tensor:
    """Return the numbers of all processes, in their order.

    Args:
        tensor: The numbers of this process.
    """
    mine = tensor.cpu().reshape(-1)
    if place()[1] == 1:
        return mine
    parts = [torch.zeros_like(mine) for _ in range(place()[1])]
    distributed.all_gather(parts, mine)
    return torch.cat(parts)


def gather_object(value: Any, target: int) -> list[Any] | None:
    """Send a value to one process.

    Args:
        value: The value of this process.
        target: The number of the process that gets all values.

    Returns:
        The values in the order of the processes, in the process `target`; None in the others.
    """
    rank, count = place()
    if count == 1:
        return [value]
    values: list[Any] | None = [None] * count if rank == target else None
    distributed.gather_object(value, values, dst=target)
    return values


def barrier() -> None:
    """Wait for the other processes."""
    if place()[1] > 1:
        distributed.barrier()
