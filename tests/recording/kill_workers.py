"""Two processes record, and one of them is killed at a random moment, again and again.

    python -m tests.recording.kill_workers MODEL FOLDER SEED KILLS [exchange]

With `exchange`, each process has a folder of its own, and they share a URL; else they share a folder. Each process is a
fork of this one, which has the model loaded. So a start costs nothing and the kill comes while shards are made. Half of
the recordings repeat tables that are known beforehand, so that a kill often meets a write. Every folder that is
finished is compared, byte for byte, with one that a single process made. The times of the shards' entries are compared
too, because a shard that was finished once is not made again.
"""

from __future__ import annotations

import logging
import os
import random
import signal
import sys
import threading
import time
from pathlib import Path

import torch
from tqdm.auto import tqdm

from learn2pd.recording.exchange import Exchange
from tests.fixtures import load_wide
from tests.recording.helpers import files, make, oracle_producer, some_prompts

PROMPTS = (14, 6)
LONGEST_S = 200.0  # a process that takes longer hangs, also on a machine with much else to do


def start(model, prompts, folder: Path, produce, leads: bool, exchange: Exchange | None = None) -> int:
    """A process that records; its id."""
    child = os.fork()
    if child:
        return child
    try:
        tqdm.set_lock(
            threading.RLock()
        )  # a fork shares its parent's, which nobody gives back when its holder is killed
        make(model, prompts, folder, produce=produce, leads=leads, shard_prompts=1, exchange=exchange)
        os._exit(0)
    finally:
        os._exit(1)


def ended(child: int, deadline: float) -> int:
    """Wait; the exit code, negative for a signal."""
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    raise TimeoutError(f"process {child} hangs")


def lost(child: int, deadline: float) -> bool:
    """Kill a process, and say whether it was still at work."""
    os.kill(child, signal.SIGKILL)
    return ended(child, deadline) == -signal.SIGKILL


def entry_times(folder: Path) -> dict[str, int]:
    """The time of each shard's entry, by the name of its file."""
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("shard-*.json")}


def main(model_folder: str, folder: str, seed: str, kills: str, way: str = "folder") -> None:
    """Kill processes until `kills` of them were killed while they recorded, and compare every finished folder."""
    torch.set_num_threads(1)
    tqdm.monitor_interval = 0  # no thread: a fork would have its locks without it
    logging.disable(logging.WARNING)
    rng, root, left, recordings = random.Random(int(seed)), Path(folder), int(kills), 0
    partly = caught = 0
    model, prompts = load_wide(Path(model_folder)), some_prompts(*PROMPTS)
    real = oracle_producer(model)
    began = time.monotonic()
    known = {prompt.id: real(model, [prompt]) for prompt in prompts}
    took = {real: time.monotonic() - began}

    def replay(model, prompts):
        return known[prompts[0].id]

    def begin(rank: int, target: Path, produce) -> int:
        if way != "exchange":
            return start(model, prompts, target, produce, rank == 0)
        exchange = Exchange(f"file://{target}-exchange", rank, 2)
        own = target if rank == 0 else target.with_name(f"{target.name}-other")
        return start(model, prompts, own, produce, rank == 0, exchange)

    took[replay] = 0.3
    assert ended(start(model, prompts, root / "whole", replay, True), time.monotonic() + LONGEST_S) == 0
    expected = files(root / "whole")
    while left:
        target, produce = root / str(recordings), (real, replay)[recordings % 2]
        finished = False
        while not finished:
            before = entry_times(target)
            crew = {rank: begin(rank, target, produce) for rank in (0, 1)}
            deadline = time.monotonic() + LONGEST_S
            killed = left > 0
            if killed:
                left -= 1
                time.sleep(rng.uniform(0, took[produce] / 3))
                victim = rng.choice((0, 1))
                caught += lost(crew.pop(victim), deadline)
                # As torchrun does, the other one is lost too; or it does the whole work; or it meets the victim again.
                then = rng.choice(("all are lost", "one goes on", "one comes back"))
                if then == "all are lost":
                    lost(crew.pop(1 - victim), deadline)
                elif then == "one comes back":
                    crew[victim] = begin(victim, target, produce)
            codes = [ended(child, deadline) for child in crew.values()]
            assert not any(codes), f"a process failed: {codes}"
            assert {name: moment for name, moment in entry_times(target).items() if name in before} == before, (
                "a shard was made twice"
            )
            partly += 0 < len(entry_times(target)) < len(prompts)
            finished = files(target) == expected
            assert finished or killed, f"{target} differs from one made by a single process"
        recordings += 1
    told = f"{kills} kills, {caught} while a process recorded, {recordings} recordings, left in part {partly} times"
    sys.stdout.write(f"{told}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
