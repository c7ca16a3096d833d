"""Nodes of one machine: agents of torchrun, each a fork of this process, with a worker that is started as a command.

    python -m tests.recording.nodes refusals MODEL FOLDER
    python -m tests.recording.nodes exchange MODEL FOLDER
    python -m tests.recording.nodes losses MODEL FOLDER SEED LOSSES
    python -m tests.recording.nodes training MODEL FOLDER ROUNDS

A node is a process group of its own with an agent of torchrun, which has threads and so starts the node's worker anew
instead of forking. A node is lost by a SIGKILL of its whole group, which the worker follows. The answer is one JSON
object on standard output.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch.distributed.elastic.rendezvous import dynamic_rendezvous
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from tqdm.auto import tqdm

from learn2pd.cli import main as cli
from learn2pd.cli.stages import recording as stage
from learn2pd.files import read_json
from learn2pd.training.checkpoint_io import SafetensorsCheckpointIO
from tests.recording.helpers import files

LONGEST_S = 200.0  # a process that takes longer hangs, also on a machine with much else to do
ALONE_S = 10.0  # a node that has not met the lost one yet waits for it and makes no shard
SHARDS = 15
PR_SET_PDEATHSIG = 1  # of prctl: the signal that a process gets when its parent ends
HEARTBEAT_S = 1  # between two signs of life of an agent; after three that are missing its node counts as lost


def arguments(model: str, output: Path, *more: str) -> list[str]:
    """The arguments of a small recording, a shard a prompt."""
    small = ["data.train_prompts=9", "data.validation_prompts=6", "decode.gen_length=24", "record.shard_prompts=1"]
    plain = [
        "config=tiny_filter",
        "threads=1",
        "train.start=scratch",
        "train.rounds=0",
        "record.labels=reference",
        "train.predictors=[]",
    ]
    return [*plain, *small, "model.device=cpu", f"model.path={model}", f"output_dir={output}", *more]


def free_port() -> int:
    """A port of this machine that nobody uses."""
    with socket.socket() as place:
        place.bind(("localhost", 0))
        return place.getsockname()[1]


def forked(work: Callable[[], object], log: Path) -> int:
    """Start a process group that does the work and writes its standard error to a file; return its id."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.setsid()
        with log.open("ab", buffering=0) as file:
            os.dup2(file.fileno(), 2)
        tqdm.monitor_interval = 0
        sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
        code = int(work() or 0)
    finally:
        os._exit(code)


def ended(child: int, deadline: float) -> int:
    """Wait; the exit code, negative for a signal."""
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.killpg(child, signal.SIGKILL)
    raise TimeoutError(f"process {child} hangs")


def command(name: str, given: Sequence[str], change: Callable[[], None] | None = None) -> int:
    """Run a command of learn2pd and return its exit code."""
    if change:
        change()
    return cli.guarded(lambda: cli.run_command(name, given))


def ranked(rank: int, port: int, work: Callable[[], object]) -> Callable[[], object]:
    """The work as one of two processes, with the variables that torchrun sets."""

    def run() -> object:
        numbers = {"RANK": rank, "LOCAL_RANK": 0, "GROUP_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 1}
        numbers |= {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
        os.environ |= {key: str(value) for key, value in numbers.items()}
        return work()

    return run


def other_release() -> None:
    """This node has another release of the package."""
    stage.__version__ = "0.1.7"


def refusals(model: str, folder: str) -> dict[str, object]:
    """Exit codes and standard errors of two processes that do not fit together, by the name of what is wrong."""
    root = Path(folder)
    (root / "other").mkdir()
    lines = [json.dumps({"question": f"Add {n} and {n}.", "answer": "2"}) for n in range(30)]
    for name in ("one", "two"):
        (root / name).mkdir()
        (root / name / "prompts.jsonl").write_text("\n".join(lines if name == "one" else lines[1:]))

    def prompts_of(name: str) -> Callable[[], None]:
        return lambda: os.chdir(root / name)

    own_file = ["data.source=jsonl", "data.path=prompts.jsonl", "data.test_prompts=3"]
    cases: dict[str, tuple[list[str], list[str], Callable[[], None] | None, Callable[[], None] | None]] = {
        "a seed": ([], ["seed=1"], None, None),
        "two keys": ([], ["seed=1", "decode.gen_length=16"], None, None),
        "a release": ([], [], None, other_release),
        "a model": ([], [f"model.path={root / 'model-other'}"], None, None),
        "prompts": (own_file, own_file, prompts_of("one"), prompts_of("two")),
        "a folder": ([], [f"output_dir={root / 'other'}"], None, None),
        "a model that is missing": ([], ["model.path=nowhere"], None, None),
        "a first process that is refused": (["decode.gen_length=100000"], [], None, None),
    }
    answers: dict[str, object] = {}
    for number, (name, (first, second, change, other)) in enumerate(cases.items()):
        port = free_port()
        output = root / f"out-{number}"
        logs = [root / f"{number}.{rank}.log" for rank in (0, 1)]
        crew = []
        for rank, (more, own) in enumerate(((first, change), (second, other))):
            given = arguments(model, output, *more)

            def work(given: list[str] = given, own: Callable[[], None] | None = own) -> int:
                return command("record", given, own)

            crew.append(forked(ranked(rank, port, work), logs[rank]))
        deadline = time.monotonic() + LONGEST_S
        codes = [ended(child, deadline) for child in crew]
        left = sorted(path.name for path in output.glob("records/shard-*"))
        answers[name] = {"codes": codes, "errors": [log.read_text() for log in logs], "shards": left}
    return answers


def worker(parent: str, slow: str, name: str, *given: str) -> int:
    """Run a command as the worker of a node.

    Torch starts a worker in a process group of its own, which the kill of the node's group does not reach. The worker
    asks the system to be killed with its parent, so that it neither works on nor waits for others when its node is
    lost.

    Args:
        parent: The id of the process that started it.
        slow: The number of the process that records slowly, or `none`.
        name: The name of the command.
        given: Its arguments.
    """
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):
        return 1
    if os.environ["RANK"] == slow:
        decode = stage.oracle_tables
        stage.oracle_tables = lambda *taken, **more: (time.sleep(0.2), decode(*taken, **more))[1]
    return command(name, given)


def agent(port: int, given: Sequence[str]) -> int:
    """One node: an agent of torchrun with one worker, as `torchrun --nnodes=2 --nproc-per-node=1` starts it."""
    # For its log, torch looks through all imported modules several times in every step of a meeting. On a busy machine
    # that takes longer than a heartbeat, and then the heartbeats of one node keep the other one from joining for ever.
    dynamic_rendezvous.get_method_name = lambda: ""
    config = LaunchConfig(
        min_nodes=2,
        max_nodes=2,
        nproc_per_node=1,
        run_id="test",
        rdzv_backend="c10d",
        rdzv_endpoint=f"localhost:{port}",
        rdzv_configs={"keep_alive_interval": HEARTBEAT_S, "keep_alive_max_attempt": 3, "read_timeout": 5},
        max_restarts=100,
        monitor_interval=0.1,
    )
    elastic_launch(config, sys.executable)("-m", "tests.recording.nodes", "worker", str(os.getpid()), *given)
    return 0


def exchange(model: str, folder: str) -> dict[str, object]:
    """Two processes that share no folder, only a URL: their exit codes, and whether both made shards of one recording.

    The first one has all shards in the end, and the other one those that it made.
    """
    root, port = Path(folder), free_port()
    url = f"record.exchange=file://{root / 'exchange'}"
    given = [arguments(model, root / name, *more) for name, more in (("alone", []), ("0", [url]), ("1", [url]))]
    assert ended(forked(lambda: command("record", given[0]), root / "alone.log"), time.monotonic() + LONGEST_S) == 0
    crew = [
        forked(ranked(rank, port, lambda own=given[1 + rank]: command("record", own)), root / f"{rank}.log")
        for rank in (0, 1)
    ]
    codes = [ended(child, time.monotonic() + LONGEST_S) for child in crew]
    made = [shards(root / name) for name in ("0", "1")]
    return {"codes": codes, "equal": files_of(root / "0") == files_of(root / "alone"), "made": made}


class Crew:
    """Two nodes.

    The one that hosts torchrun's meeting place takes the other one with it. Then both are started again.
    """

    def __init__(self, given: Sequence[str], log: Path) -> None:
        self.given = given
        self.log = log
        self.nodes: list[int | None] = [None, None]
        self.tend()

    def start(self, number: int) -> None:
        """Start a node, or start it again."""
        self.nodes[number] = forked(lambda: agent(self.port, self.given), self.log)

    def lose(self, number: int) -> None:
        """Kill a node, the agent and its worker."""
        child, self.nodes[number] = self.nodes[number], None
        if child is not None:
            for kill in (os.killpg, os.kill):  # just after its start it has no group of its own yet
                with contextlib.suppress(ProcessLookupError):
                    kill(child, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(child, 0)

    def tend(self) -> None:
        """Start all nodes again, with a new meeting place, where one of them has ended."""
        if any(child is None or os.waitpid(child, os.WNOHANG)[0] for child in self.nodes):
            self.end()
            self.port = free_port()
            self.start(0)
            self.start(1)

    def end(self) -> None:
        """Kill what is left."""
        self.lose(0)
        self.lose(1)

    def reaches(self, output: Path, count: int, deadline: float) -> bool:
        """Wait until so many shards are done; False where the recording has fewer, or where nobody makes them."""
        while count < SHARDS and time.monotonic() < deadline:
            if shards(output) >= count:
                return True
            if any(child is not None and os.waitpid(child, os.WNOHANG)[0] for child in self.nodes):
                self.end()
                return False
            time.sleep(0.01)
        return False


def losses(model: str, folder: str, seed: str, count: str) -> dict[str, int]:
    """Lose one of two nodes at a random moment and bring it back, again and again, and compare every recording.

    After half of the losses the other node goes on alone for a while. In every recording one node or none is slow.
    """
    rng, root, left = random.Random(int(seed)), Path(folder), int(count)
    longest_s = LONGEST_S * (1 + left)
    alone = forked(lambda: command("record", arguments(model, root / "alone")), root / "alone.log")
    assert ended(alone, time.monotonic() + LONGEST_S) == 0
    expected = files_of(root / "alone")
    figures = {"recordings": 0, "equal": 0, "lost": 0, "slow": 0}
    while left or not figures["recordings"]:
        output = root / f"shared-{figures['recordings']}"
        slow = rng.choice(("none", "0", "1"))
        log = root / f"{output.name}.log"
        deadline = time.monotonic() + longest_s
        crew = Crew([slow, "record", *arguments(model, output)], log)
        while files_of(output) != expected and time.monotonic() < deadline:
            if left and crew.reaches(output, shards(output) + rng.choice((1, 2, 3)), deadline):
                time.sleep(rng.uniform(0, 0.1))
                victim = rng.choice((0, 1))
                crew.lose(victim)
                figures["lost"] += 1
                left -= 1
                if rng.random() < 0.5:
                    crew.reaches(output, shards(output) + 1, time.monotonic() + ALONE_S)
                crew.start(victim)
            crew.tend()
            time.sleep(0.02)
        crew.end()
        figures["slow"] += slow != "none"
        figures["equal"] += files_of(output) == expected
        figures["recordings"] += 1
    return figures


def training(model: str, folder: str, rounds: str) -> dict[str, object]:
    """Train by one process, and by two nodes of which one is lost after the first epoch and comes back."""
    root = Path(folder)
    own = [
        "stages=[record,train]",
        "train.together=true",
        f"train.rounds={rounds}",
        "train.max_epochs=3",
        "filter=conv",
    ]
    own += ["filter_options={hidden: 8}", "train.batch_rows=8", "train.loggers=[]", "data.train_prompts=6"]

    def given(output: Path) -> list[str]:
        replaced = {key.split("=")[0] for key in own}
        return [*(entry for entry in arguments(model, output) if entry.split("=")[0] not in replaced), *own]

    alone = forked(lambda: command("run", given(root / "alone")), root / "alone.log")
    assert ended(alone, time.monotonic() + LONGEST_S) == 0
    output = root / "shared"
    deadline = time.monotonic() + LONGEST_S
    crew = Crew(["none", "run", *given(output)], root / "shared.log")
    lost = 0
    while not trained(output) and time.monotonic() < deadline:
        if not lost and (output / "train" / "round-0" / "last.safetensors").exists():
            crew.lose(1)
            crew.start(1)
            lost += 1
        crew.tend()
        time.sleep(0.01)
    crew.end()
    figures: dict[str, object] = {"lost": lost, "alone": trained(root / "alone"), "shared": trained(output)}
    parts = [root / name / "train" / "round-0" / "best.safetensors" for name in ("alone", "shared")]
    one, other = (SafetensorsCheckpointIO().load_checkpoint(part)["state_dict"] for part in parts)
    figures["apart"] = max(float((one[name] - other[name]).abs().max()) for name in one)
    return figures


def trained(output: Path) -> dict[str, object]:
    """The figures of the stage train, where it is done."""
    return (read_json(output / "metrics.json") or {}).get("train", {})


def shards(output: Path) -> int:
    """The number of shards that are done."""
    return len(list((output / "records").glob("shard-*.json")))


def files_of(output: Path) -> dict[str, bytes]:
    """The files of a recording that somebody may be making; nothing where a file has just vanished."""
    with contextlib.suppress(FileNotFoundError):
        return files(output / "records")
    return {}


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "worker":
        sys.exit(worker(*sys.argv[2:]))
    action = {"refusals": refusals, "exchange": exchange, "losses": losses, "training": training}[sys.argv[1]]
    print(json.dumps(action(*sys.argv[2:])))  # noqa: T201
