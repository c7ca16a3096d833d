"""The processes that record together: started by torchrun, by a cluster's scheduler, or by Lightning Fabric, which runs the script again.

They meet once, when the first of them is ready to record. From then on nothing but the recording's folder is between them, so that one that
is lost takes nobody with it (though torchrun and Fabric end the others, which lose a shard each at most).
"""

from __future__ import annotations

import os

import torch
from lightning.fabric import Fabric

from learn2pd.errors import UserError


class Processes:
    """Args: devices, processes on a node, "auto" is one a GPU; num_nodes; strategy, how Fabric starts them. torchrun's own numbers go first."""

    def __init__(self, devices: int | str = 1, num_nodes: int = 1, strategy: str = "auto") -> None:
        if torch.distributed.is_available() and torch.distributed.is_torchelastic_launched():
            count = int(os.environ["LOCAL_WORLD_SIZE"])
            num_nodes = int(os.environ["WORLD_SIZE"]) // count
        elif devices == "auto":
            count = max(1, torch.cuda.device_count())
        elif isinstance(devices, int) and devices >= 1:
            count = devices
        else:
            raise UserError(f"record.devices={devices!r}: expected auto or a number of processes, at least 1")
        self.count, self.fabric = count * num_nodes, None
        if self.count > 1:  # nothing is computed through Fabric: each process puts its model where it belongs by itself
            kind = "ddp" if strategy == "auto" else strategy
            try:
                self.fabric = Fabric(accelerator="cpu", devices=count, num_nodes=num_nodes, strategy=kind)
            except ValueError as error:
                raise UserError(
                    f"record.strategy={strategy!r}, record.devices={devices!r}: {str(error).splitlines()[0]}"
                ) from error

    @property
    def rank(self) -> int:
        """Of this process among all."""
        return self.fabric.global_rank if self.fabric else 0

    @property
    def local_rank(self) -> int:
        """Of this process on its node."""
        return self.fabric.local_rank if self.fabric else 0

    def meet(self) -> None:
        """Start the other processes if nobody has, and wait until all are here. Fabric shares the CPU's cores out among those of a node."""
        if self.fabric is not None:
            self.fabric.launch()
            self.fabric.barrier()
            torch.distributed.destroy_process_group()
