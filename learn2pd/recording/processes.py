"""The processes that record together.

They are started by torchrun, by a cluster's scheduler, or by Lightning Fabric, which runs the script again.

The processes wait for each other one time, when the first of them is ready to record. From then on they share nothing
but the recording's folder, so the loss of one process does not harm the others. (torchrun and Fabric do end the other
processes when one is lost; each of those then loses at most one shard.)
"""

from __future__ import annotations

import os

import torch
from lightning.fabric import Fabric

from learn2pd.errors import UserError, first_line


class Processes:
    """The processes of a run, with the place of this process among them.

    Under torchrun, the numbers that torchrun sets replace the arguments.

    Args:
        devices: processes on each node; "auto" starts one for each GPU.
        num_nodes: number of nodes.
        strategy: how Lightning Fabric starts the processes, in Fabric's words.

    Raises:
        UserError: `devices` is neither "auto" nor a positive number, or Fabric does not accept the arguments together
            with the variables that a launcher has set.
    """

    def __init__(self, devices: int | str = 1, num_nodes: int = 1, strategy: str = "auto") -> None:
        if torch.distributed.is_available() and torch.distributed.is_torchelastic_launched():
            count = _counted("LOCAL_WORLD_SIZE")
            num_nodes = _counted("WORLD_SIZE") // count
        elif devices == "auto":
            count = max(1, torch.cuda.device_count())
        elif isinstance(devices, int) and devices >= 1:
            count = devices
        else:
            raise UserError(f"record.devices={devices!r}: expected auto or a number of processes, at least 1")
        self.count = count * num_nodes
        self.fabric = None
        if self.count > 1:  # Fabric only starts the processes; each process puts its model on its own device
            kind = "ddp" if strategy == "auto" else strategy
            try:
                self.fabric = Fabric(accelerator="cpu", devices=count, num_nodes=num_nodes, strategy=kind)
                self.fabric.global_rank  # noqa: B018  # reads the variables of the launcher
            except (ValueError, RuntimeError, LookupError, TypeError, AttributeError, OSError) as error:
                raise UserError(
                    f"record.strategy={strategy!r}, record.devices={devices!r}, record.num_nodes={num_nodes}: "
                    f"Lightning cannot start these processes here ({first_line(error)})"
                ) from error

    @property
    def rank(self) -> int:
        """The number of this process among all processes, from 0."""
        return self.fabric.global_rank if self.fabric else 0

    @property
    def local_rank(self) -> int:
        """The number of this process among those of its node, from 0."""
        return self.fabric.local_rank if self.fabric else 0

    def meet(self) -> None:
        """Start the other processes if nobody has started them, and wait until all of them have arrived.

        Fabric divides the CPU's cores among the processes of a node.
        """
        if self.fabric is not None:
            self.fabric.launch()
            self.fabric.barrier()
            torch.distributed.destroy_process_group()


def _counted(name: str) -> int:
    """Return the number of processes that torchrun has put into a variable of the environment."""
    text = os.environ.get(name, "")
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"the variable {name}={text!r} of the environment: expected a number, as torchrun sets it")
    return int(text)
