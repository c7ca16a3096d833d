"""A recording on many GPUs, simulated by discrete events (`pip install "learn2pd[plan]"`).

    python benchmarks/simulate.py [run=FOLDER] [prompts=1000000] [gpus=64] [gpus_per_node=8] [batch=16] [shard=32]
                                  [forward_s=0.05] [lost_hours=200] [restart_s=300] [slow_share=0.05] [slow_factor=2]
                                  [disk_mb_s=1000] [seed=0] [seeds=3]

The GPUs take the next shard that nobody has, as the processes of a recording do. A batch takes as many calls as its
longest answer, in both passes, and a call takes `forward_s`. Each node is lost after a time that is drawn from an
exponential distribution with the mean `lost_hours` (0 loses none). It loses the shards at which its GPUs are, and comes
back after `restart_s`. A GPU is slow with the chance `slow_share`, and then takes `slow_factor` times as long.

With `run`, the forwards of the prompts and the bytes of a prompt are those of a finished run, and so is the time of a
call where `forward_s=0`. Without it, answers are drawn as geometric lengths, which is an assumption. The same seed
gives the same figures.
"""

from __future__ import annotations

import random
import statistics
import sys
from collections import Counter, deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import simpy

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.arguments import options_of
from learn2pd.files import read_json
from learn2pd.recording.reading import Recording

FILES = 3  # of a shard, without its lock
ASSUMED_BYTES = 100_000  # of a prompt's tables, where no run is given
ASSUMED_MEAN, ASSUMED_MOST = 120, 256  # forwards of a pass, where no run is given
PARTS = ("useful", "lost", "down", "idle")


@dataclass(frozen=True)
class Cluster:
    """The GPUs, and what goes wrong with them.

    Attributes:
        gpus: The number of GPUs.
        per_node: The number of GPUs that are lost together.
        lost_s: The mean time until a node is lost, in seconds; 0 loses none.
        restart_s: The time until a lost node works again.
        slow_share: The share of slow GPUs.
        slow_factor: How many times as long a slow GPU takes.
    """

    gpus: int
    per_node: int = 8
    lost_s: float = 0.0
    restart_s: float = 0.0
    slow_share: float = 0.0
    slow_factor: float = 1.0


@dataclass(frozen=True)
class Outcome:
    """What a simulated recording took.

    Attributes:
        elapsed_s: The time until the last shard was done.
        spent_s: The GPU seconds of each of `PARTS`.
        losses: The nodes that were lost.
        made: How often each shard was finished, by its number.
        tail_s: The time from the first GPU without work to the end.
    """

    elapsed_s: float
    spent_s: dict[str, float]
    losses: int
    made: Counter[int]
    tail_s: float

    def share(self, part: str) -> float:
        """The share of all GPU time that went into a part."""
        return self.spent_s[part] / sum(self.spent_s.values())


class Simulation:
    """One recording on a cluster.

    Args:
        cluster: The cluster.
        shards_s: The seconds that each shard takes on a GPU that is not slow.
        seed: The seed of losses and of slow GPUs.
    """

    def __init__(self, cluster: Cluster, shards_s: Sequence[float], seed: int) -> None:
        self.cluster = cluster
        self.shards_s = shards_s
        self.rng = random.Random(seed)
        self.env = simpy.Environment()
        self.pending = deque(range(len(shards_s)))
        self.returned = self.env.event()  # a lost shard is there to be made again
        self.finished = self.env.event()
        self.made: Counter[int] = Counter()
        self.spent = dict.fromkeys(PARTS, 0.0)
        self.state = [("idle", 0.0)] * cluster.gpus
        self.losses = 0
        self.first_idle_s: float | None = None

    def run(self) -> Outcome:
        """Simulate until the last shard is done."""
        slow = [self.rng.random() < self.cluster.slow_share for _ in range(self.cluster.gpus)]
        factors = [self.cluster.slow_factor if is_slow else 1.0 for is_slow in slow]
        crew = [self.env.process(self._gpu(number, factor)) for number, factor in enumerate(factors)]
        if self.cluster.lost_s:
            for first in range(0, self.cluster.gpus, self.cluster.per_node):
                self.env.process(self._losses(crew[first : first + self.cluster.per_node]))
        self.env.run(until=self.finished)
        for number in range(self.cluster.gpus):
            self._enter(number, "idle")
        tail_s = self.env.now - (self.env.now if self.first_idle_s is None else self.first_idle_s)
        return Outcome(self.env.now, self.spent, self.losses, self.made, tail_s)

    def _enter(self, number: int, state: str) -> None:
        """Book the time of a GPU's last state, and begin another."""
        before, since = self.state[number]
        self.spent[before] += self.env.now - since
        self.state[number] = (state, self.env.now)

    def _gpu(self, number: int, factor: float) -> Generator[Any, Any, None]:
        while True:
            try:
                if self.pending:
                    yield from self._make(number, factor)
                else:
                    self._enter(number, "idle")
                    if self.first_idle_s is None:
                        self.first_idle_s = self.env.now
                    yield self.returned
            except simpy.Interrupt:
                yield from self._restart(number)

    def _make(self, number: int, factor: float) -> Generator[Any, Any, None]:
        shard = self.pending.popleft()
        self._enter(number, "useful")
        try:
            yield self.env.timeout(self.shards_s[shard] * factor)
        except simpy.Interrupt:
            self.state[number] = ("lost", self.state[number][1])
            self.pending.appendleft(shard)
            self.returned.succeed()
            self.returned = self.env.event()
            raise
        self.made[shard] += 1
        if len(self.made) == len(self.shards_s):
            self.finished.succeed()

    def _restart(self, number: int) -> Generator[Any, Any, None]:
        self._enter(number, "down")
        while True:
            try:
                yield self.env.timeout(self.cluster.restart_s)
                return
            except simpy.Interrupt:  # it is lost again while it comes back
                continue

    def _losses(self, node: Sequence[simpy.Process]) -> Generator[Any, Any, None]:
        while True:
            yield self.env.timeout(self.rng.expovariate(1 / self.cluster.lost_s))
            self.losses += 1
            for gpu in node:
                gpu.interrupt()


def shard_seconds(
    forwards: Sequence[tuple[int, int]], prompts: int, shard: int, batch: int, forward_s: float, seed: int
) -> list[float]:
    """The seconds of each shard of prompts whose forwards are drawn from known ones.

    Args:
        forwards: The forwards of both passes, of known prompts.
        prompts: The number of prompts.
        shard: The number of prompts in a shard.
        batch: The number of prompts that are decoded together.
        forward_s: The seconds of a call.
        seed: The seed of the draws.
    """
    rng = random.Random(seed)

    def batches(size: int) -> Iterator[float]:
        for first in range(0, size, batch):
            rows = rng.choices(forwards, k=min(batch, size - first))
            yield forward_s * (max(one for one, _ in rows) + max(other for _, other in rows))

    return [sum(batches(min(shard, prompts - first))) for first in range(0, prompts, shard)]


def measured(run: Path) -> tuple[list[tuple[int, int]], float, float]:
    """The forwards of each prompt of a run, the bytes of a prompt, and the seconds of a call.

    Args:
        run: The output_dir of the run.
    """
    recording = Recording.load(run / "records")
    references = recording.references
    forwards = list(zip(references["forwards"], references["oracle_forwards"], strict=True))
    disk_bytes = sum(path.stat().st_size for path in (run / "records").iterdir()) / len(forwards)
    figures = (read_json(run / "metrics.json") or {})["record"]
    described = recording.description
    size, batch = int(described["shard_prompts"]), int(described["config"]["decode"]["batch_size"])
    calls = 0
    for first in range(0, len(forwards), size):
        for start in range(first, min(first + size, len(forwards)), batch):
            rows = forwards[start : min(start + batch, first + size)]
            calls += max(one for one, _ in rows) + max(other for _, other in rows)
    return forwards, disk_bytes, figures["seconds"] * figures["processes"] / calls


def assumed(seed: int) -> list[tuple[int, int]]:
    """Forwards of prompts where nothing is measured: geometric lengths; the oracle takes a third."""
    rng = random.Random(seed)
    lengths = [min(ASSUMED_MOST, 1 + int(rng.expovariate(1 / ASSUMED_MEAN))) for _ in range(2000)]
    return [(length, 1 + length // 3) for length in lengths]


def main(arguments: list[str]) -> None:
    """Simulate with several seeds, and print the figures with their range."""
    defaults = {"run": "", "prompts": "1000000", "gpus": "64", "gpus_per_node": "8", "batch": "16", "shard": "32"}
    defaults |= {"forward_s": "0.05", "lost_hours": "200", "restart_s": "300", "slow_share": "0.05"}
    options = options_of(arguments, defaults | {"slow_factor": "2", "disk_mb_s": "1000", "seed": "0", "seeds": "3"})
    seed, prompts, shard = (int(options[name]) for name in ("seed", "prompts", "shard"))
    forward_s = float(options["forward_s"])
    if options["run"]:
        forwards, prompt_bytes, call_s = measured(Path(options["run"]))
        forward_s = forward_s or call_s
    else:
        forwards, prompt_bytes = assumed(seed), float(ASSUMED_BYTES)
    cluster = Cluster(
        gpus=int(options["gpus"]),
        per_node=int(options["gpus_per_node"]),
        lost_s=float(options["lost_hours"]) * 3600,
        restart_s=float(options["restart_s"]),
        slow_share=float(options["slow_share"]),
        slow_factor=float(options["slow_factor"]),
    )
    outcomes, floors = [], []
    for number in range(seed, seed + int(options["seeds"])):
        shards_s = shard_seconds(forwards, prompts, shard, int(options["batch"]), forward_s, number)
        outcomes.append(Simulation(cluster, shards_s, number).run())
        floors.append(sum(shards_s) / cluster.gpus / 3600)
    print(f"{prompts:,} prompts, {cluster.gpus} GPUs, {forward_s:.4g} s a call, seeds {seed} to {number}")
    show("hours, without losses and slow GPUs", floors)
    show("hours", [outcome.elapsed_s / 3600 for outcome in outcomes])
    for part in PARTS:
        show(f"{part}, share of GPU time", [outcome.share(part) for outcome in outcomes])
    show("nodes lost", [float(outcome.losses) for outcome in outcomes])
    show("last shards, minutes", [outcome.tail_s / 60 for outcome in outcomes])
    print(f"{'disk, GB':36} {prompts * prompt_bytes / 1e9:,.1f} in {FILES * -(-prompts // shard):,} files")
    writes = [prompts * prompt_bytes / 1e6 / outcome.elapsed_s for outcome in outcomes]
    show("written, MB a second", writes)
    full = float(options["disk_mb_s"]) / max(writes) * cluster.gpus
    print(f"{'GPUs at which writing is the limit':36} {full:,.0f} at {options['disk_mb_s']} MB a second")


def show(name: str, values: Sequence[float]) -> None:
    """Print the median and the range of a figure over the seeds."""
    print(f"{name:36} {statistics.median(values):.4g} ({min(values):.4g} to {max(values):.4g})")


if __name__ == "__main__":
    main(sys.argv[1:])
