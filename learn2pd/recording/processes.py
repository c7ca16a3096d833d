"""The processes that record together, on one node or several.

They are started by torchrun, by a cluster's scheduler, or by Lightning Fabric, which runs the script again.

The processes meet one time, when all of them are ready to record. There they make sure that they do the same work: the
same releases, configuration, model and prompts, in a folder or at a URL that all of them see. From then on they share
nothing but that place, so the loss of one process does not harm the others. (torchrun and Fabric do end the other
processes of a node when one of them fails; each of those then loses at most one shard.)
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from lightning.fabric import Fabric
from torch import distributed

from learn2pd.errors import UserError, first_line

SEEN_WITHIN_S = 10.0  # a folder of the network may show a new file late
MEETING = ".meeting-"  # beginning of the name of the file by which the processes see that their place is the same
WATCH_S = 1.0  # between two looks at whether torchrun still runs
NAMED = 4  # differences that a message names


@dataclass(frozen=True)
class Report:
    """What a process tells the others when they meet.

    Attributes:
        host: The name of its node.
        facts: What must be the same in all processes, by name.
        stopped: Why it cannot record; empty where it can.
        mark: The name of a file that the first process has written to the folder.
    """

    host: str
    facts: Mapping[str, Any]
    stopped: str
    mark: str


class Place(Protocol):
    """Where the processes share what they record; its text names the key and the value."""

    def put(self, name: str) -> None:
        """Write a small file."""

    def has(self, name: str) -> bool:
        """Say whether a file is there now."""

    def remove(self, name: str) -> None:
        """Delete a file, if it is there."""


@dataclass(frozen=True)
class SharedFolder:
    """A folder that all processes see.

    Attributes:
        path: The output_dir of the run, which exists in the first process.
    """

    path: Path

    def put(self, name: str) -> None:
        (self.path / name).touch()

    def has(self, name: str) -> bool:
        return (self.path / name).exists()

    def remove(self, name: str) -> None:
        (self.path / name).unlink(missing_ok=True)

    def __str__(self) -> str:
        return f"output_dir={self.path}"


class Processes:
    """The processes of a run, with the place of this process among them.

    Under torchrun, the numbers that torchrun sets replace the arguments.

    Args:
        devices: processes on each node; "auto" starts one for each GPU.
        num_nodes: number of nodes.
        strategy: how Lightning Fabric starts the processes, in Fabric's words.

    Attributes:
        count: the number of all processes.
        rank: the number of this process among all processes, from 0.
        local_rank: the number of this process among those of its node, from 0.

    Raises:
        UserError: `devices` is neither "auto" nor a positive number, or Fabric does not accept the arguments together
            with the variables that a launcher has set.
    """

    def __init__(self, devices: int | str = 1, num_nodes: int = 1, strategy: str = "auto") -> None:
        self.fabric: Fabric | None = None
        self.rank = self.local_rank = 0
        self._met = False
        self._others_run = True  # the launcher starts all processes at once
        if distributed.is_available() and distributed.is_torchelastic_launched():
            self.count = _number("WORLD_SIZE", least=1)
            self.rank = _number("RANK")
            self.local_rank = _number("LOCAL_RANK")
            _end_with_launcher()
            return
        if devices == "auto":
            local = max(1, torch.cuda.device_count())
        elif isinstance(devices, int) and devices >= 1:
            local = devices
        else:
            raise UserError(f"record.devices={devices!r}: expected auto or a number of processes, at least 1")
        self.count = local * num_nodes
        if self.count == 1:
            return
        kind = "ddp" if strategy == "auto" else strategy
        try:  # Fabric only starts the processes; each process puts its model on its own device
            self.fabric = Fabric(accelerator="cpu", devices=local, num_nodes=num_nodes, strategy=kind)
            self.rank = self.fabric.global_rank  # reads the variables of the launcher
            self.local_rank = self.fabric.local_rank
            self._others_run = num_nodes > 1 or self.fabric.strategy.cluster_environment.creates_processes_externally
        except (ValueError, RuntimeError, LookupError, TypeError, AttributeError, OSError) as error:
            raise UserError(
                f"record.strategy={strategy!r}, record.devices={devices!r}, record.num_nodes={num_nodes}: "
                f"Lightning cannot start these processes here ({first_line(error)})"
            ) from error

    @classmethod
    def alone(cls) -> Processes:
        """Return this process by itself, whatever a launcher has started beside it."""
        processes = cls.__new__(cls)
        processes.fabric = None
        processes.count, processes.rank, processes.local_rank = 1, 0, 0
        processes._met = processes._others_run = False
        return processes

    def meet(self, facts: Mapping[str, Any], place: Place, stay: bool = False) -> None:
        """Start the other processes if nobody has started them, and wait until all of them are ready for the same work.

        Fabric divides the CPU's cores among the processes of a node.

        Args:
            facts: what must be the same in all processes, by name, plain data.
            place: where they share what they record.
            stay: the processes stay connected, until the run ends, since they also train together.

        Raises:
            UserError: another process has stopped, works with other facts or sees another place, or the processes do
                not find each other. All processes raise it.
        """
        if self.count == 1 or self._met:
            return
        mark = f"{MEETING}{uuid.uuid4().hex}" if self.rank == 0 else ""
        try:
            if mark:
                place.put(mark)
            self._join()
            reports = self._told_to_all(Report(socket.gethostname(), facts, "", mark))
            self._compare(reports)
            blind = self._told_to_all(not _appears(place, reports[0].mark))
            if any(blind):
                self._refuse_place(place, reports, blind.index(True))
        finally:
            if mark:
                place.remove(mark)
            if not stay:
                self.part()

    def first_says(self, value: Any) -> Any:
        """Return the value of the first process in all connected processes; all of them wait for it.

        Args:
            value: the value of this process, plain data.

        Raises:
            UserError: a process is lost.
        """
        if self.count == 1 or not distributed.is_initialized():
            return value
        values = [value]
        self._reached(lambda: distributed.broadcast_object_list(values))
        return values[0]

    def wait(self) -> None:
        """Wait until all connected processes have arrived.

        Raises:
            UserError: a process is lost.
        """
        if self.count > 1 and distributed.is_initialized():
            self._reached(distributed.barrier)

    def give_up(self, error: UserError) -> None:
        """Tell the processes that wait for this one why it does not come; after the meeting nobody waits.

        Args:
            error: why this process cannot record.
        """
        if self.count > 1 and self._others_run and not self._met:
            with contextlib.suppress(UserError):  # the others have stopped as well
                try:
                    self._join()
                    self._told_to_all(Report(socket.gethostname(), {}, str(error), ""))
                finally:
                    self.part()

    def _join(self) -> None:
        self._met = True
        if self.fabric is not None:
            self._reached(self.fabric.launch)
        else:
            self._reached(lambda: distributed.init_process_group("gloo"))

    def part(self) -> None:
        """Part from the other processes."""
        if distributed.is_initialized():
            distributed.destroy_process_group()

    def _told_to_all(self, value: Any) -> list[Any]:
        """Return the values of all processes, in their order."""
        values: list[Any] = [None] * self.count
        self._reached(lambda: distributed.all_gather_object(values, value))
        return values

    def _reached(self, action: Callable[[], Any]) -> None:
        try:
            action()
        except (RuntimeError, ValueError, OSError) as error:  # of torch, where a process is lost or its host unknown
            raise UserError(
                f"process {self.rank} of {self.count} on {socket.gethostname()}: the other processes cannot be reached "
                f"({first_line(error)}): start all of them again; finished work is kept"
            ) from error

    def _compare(self, reports: list[Report]) -> None:
        """Raise the same error in all processes, where one of them cannot do the work of the first."""
        for number, report in enumerate(reports):
            if report.stopped:
                raise UserError(f"process {number} on {report.host} has stopped: {report.stopped}")
        first = reports[0]
        for number, report in enumerate(reports):
            names = [*first.facts, *(name for name in report.facts if name not in first.facts)]
            changed = [
                f"{name} is {first.facts.get(name)!r} in process 0 on {first.host}, "
                f"{report.facts.get(name)!r} in process {number} on {report.host}"
                for name in names
                if first.facts.get(name) != report.facts.get(name)
            ]
            if changed:
                raise UserError(
                    f"{'; '.join(changed[:NAMED])}{'; ...' if len(changed) > NAMED else ''}: "
                    "all processes need the same releases, configuration, model and prompts"
                )

    def _refuse_place(self, place: Place, reports: list[Report], number: int) -> None:
        raise UserError(
            f"{place}: process {number} on {reports[number].host} does not see what process 0 on "
            f"{reports[0].host} has written there: give a folder that all nodes share, or a URL as record.exchange"
        )


def _end_with_launcher() -> None:
    """End this process soon after the torchrun that started it.

    A torchrun that is killed cannot end its workers. They would wait for the others for ever, or hold the shards that
    the next torchrun is to make. A thread looks, since the wait itself is torch's and cannot be interrupted.
    """
    launcher = os.getppid()

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(WATCH_S)
        sys.stderr.write(
            "error: torchrun, which started this process, is gone: start it again; finished work is kept\n"
        )
        sys.stderr.flush()
        os._exit(1)

    threading.Thread(target=watch, name="launcher", daemon=True).start()


def _appears(place: Place, name: str) -> bool:
    deadline = time.monotonic() + SEEN_WITHIN_S
    while not place.has(name):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _number(name: str, least: int = 0) -> int:
    """Return the number that torchrun has put into a variable of the environment."""
    text = os.environ.get(name, "")
    if not text.isdecimal() or int(text) < least:
        raise UserError(f"the variable {name}={text!r} of the environment: expected a number, as torchrun sets it")
    return int(text)
