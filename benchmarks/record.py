"""Labels a second while recording.

    python benchmarks/record.py [model=FOLDER] [gen_length=256] [prompts=128] [obvious_prompts=3] [batch=16] [threads=0]

The obvious recorder below writes the method down. It takes one prompt at a time, decodes the whole canvas with one
token a step, and then with the oracle, and it takes the logits of every position in float64. A label is a masked
position of the window at a step of the oracle.

After that one process is compared with two on the same shards, with one thread each. This comparison means something
only where each process has a core of its own. Everything printed is measured in this run.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.arguments import options_of
from learn2pd import load_model
from learn2pd.data.prompts import Prompt, task_prompts
from learn2pd.models.delimiters import newline_ids
from learn2pd.models.loading import Model
from learn2pd.recording.reading import Recording
from learn2pd.recording.recorder import oracle_tables, record
from learn2pd.recording.schema import describe_recording, open_recording
from learn2pd.registry import GENERATED_TASKS, build_task
from learn2pd.types import CONFIDENCE
from tests.reference.decoding import decode_blocks, even_quota
from tests.reference.network import full_proposals

BLOCK = 32
EMBEDDED = Path(__file__).resolve().parents[1] / "checkpoints" / "tiny-llada"
Row = tuple[list[float], list[bool], list[bool]]  # confidences, masked, label: of a block at a step


def obvious_recorder(network: Any, prompt: list[int], gen_length: int, mask_id: int) -> list[Row]:
    """Record one prompt in two passes, as one would write it down.

    Args:
        network: The network of the model.
        prompt: The token ids of the prompt.
        gen_length: The number of tokens of the canvas.
        mask_id: The id of the mask token.
    """
    reference, _, _ = decode_blocks(network, prompt, gen_length, BLOCK, mask_id, even_quota(BLOCK))
    canvas = [mask_id] * gen_length
    masked = [True] * gen_length
    rows = []
    for start in range(0, gen_length, BLOCK):
        block = range(start, min(start + BLOCK, gen_length))
        while any(masked[position] for position in block):
            proposals = full_proposals(network, prompt + canvas, mask_id)[len(prompt) :]
            label = [proposals[position][0] == reference[position] for position in block]
            rows.append(
                ([proposals[position][1] for position in block], [masked[position] for position in block], label)
            )
            taken = [position for position, right in zip(block, label, strict=True) if right and masked[position]]
            for position in taken or block:
                canvas[position] = reference[position]
                masked[position] = False
    return rows


def record_all(
    model: Model, prompts: Sequence[Prompt], folder: Path, gen_length: int, batch: int, leads: bool = True
) -> None:
    """Record prompts with this repository's recorder.

    Args:
        model: The model.
        prompts: The prompts.
        folder: The folder of the recording.
        gen_length: The number of tokens of the canvas.
        batch: The number of prompts that are decoded together, and of those in a shard.
        leads: True for one of the processes, which finishes the recording.
    """
    delimiters = newline_ids(model.tokenizer)
    described = describe_recording(
        model,
        prompts,
        gen_length=gen_length,
        block_length=BLOCK,
        alignment="prompt",
        confidence=CONFIDENCE,
        delimiter_ids=delimiters,
        shard_prompts=batch,
        seed=0,
        config={},
    )
    open_recording(folder, described)
    produce = functools.partial(
        oracle_tables, gen_length=gen_length, block_length=BLOCK, batch_size=batch, delimiter_ids=delimiters
    )
    record(model, prompts, folder, produce, shard_prompts=batch, leads=leads)


def labels_of(recording: Recording) -> int:
    """The number of labels in a recording."""
    total = 0
    for shard in range(len(recording)):
        columns = recording.columns(shard, ["masked", "start", "stop"], "train")
        position = torch.arange(recording.gen_length)
        inside = (position >= columns["start"][:, None]) & (position < columns["stop"][:, None])
        total += int((columns["masked"] & inside).sum())
    return total


def some_prompts(count: int) -> list[Prompt]:
    """Training prompts of all built-in tasks."""
    return task_prompts([build_task(name) for name in GENERATED_TASKS], {"train": count}, seed=0)


def worker(options: dict[str, str], folder: Path, leads: bool) -> None:
    """Record as one of several processes once the folder has a file `go`, and print when the work began and ended.

    Args:
        options: The options of the benchmark.
        folder: The folder that the processes share.
        leads: True for the process that finishes the recording.
    """
    model = load_model(options["model"])
    prompts = some_prompts(int(options["prompts"]))
    full_proposals(model.adapter.network, [1, 2, 3], model.spec.mask_id)
    print("ready", flush=True)
    while not (folder / "go").exists():
        time.sleep(0.001)
    began = time.monotonic()
    record_all(model, prompts, folder / "records", int(options["gen_length"]), int(options["batch"]), leads)
    print(began, time.monotonic(), flush=True)


def seconds_of(options: dict[str, str], processes: int, folder: Path) -> float:
    """The wall-clock seconds of a recording by several processes of one thread each, from the first step to the last.

    Args:
        options: The options of the benchmark.
        processes: The number of processes.
        folder: The folder that the processes share.
    """
    command = [
        sys.executable,
        __file__,
        *(f"{key}={value}" for key, value in options.items()),
        "threads=1",
        f"worker={folder}",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    crew = [
        subprocess.Popen(
            [*command, f"leads={number == 0}"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for number in range(processes)
    ]
    for process in crew:
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            sys.exit("a process failed to start")
    (folder / "go").touch()
    times = [[float(part) for part in process.communicate()[0].split()] for process in crew]
    return max(end for _, end in times) - min(began for began, _ in times)


def main(arguments: list[str]) -> None:
    """Measure, or work as one of the processes that are measured."""
    options = {"model": str(EMBEDDED), "gen_length": "256", "prompts": "128", "obvious_prompts": "3", "batch": "16"}
    options |= {"threads": "0", "worker": "", "leads": "True"}
    options = options_of(arguments, options)
    folder, leads = options.pop("worker"), options.pop("leads") == "True"
    if folder:
        worker(options, Path(folder), leads)
    else:
        del options["threads"]
        compare(options)


def compare(options: dict[str, str]) -> None:
    """Measure the obvious recorder, this repository's, and one process against two, and print the figures.

    Args:
        options: The options of the benchmark.
    """
    gen_length = int(options["gen_length"])
    batch = int(options["batch"])
    model = load_model(options["model"])
    prompts = some_prompts(int(options["prompts"]))
    count = int(options["obvious_prompts"])
    some = prompts[:: max(1, len(prompts) // count)][:count]  # spread over all tasks
    threads = torch.get_num_threads()
    print(f"{model.spec.name}, canvas {gen_length}, batch {batch}, {threads} threads, {model.adapter.device}")
    network: Any = model.adapter.network
    full_proposals(network, [1, 2, 3], model.spec.mask_id)
    started = time.perf_counter()
    rows = [
        row
        for prompt in some
        for row in obvious_recorder(network, model.encode(prompt.text), gen_length, model.spec.mask_id)
    ]
    obvious_s = time.perf_counter() - started
    obvious_labels = sum(sum(masked) for _, masked, _ in rows)
    report("obvious recorder, batch 1", len(some), obvious_labels, obvious_s)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        started = time.perf_counter()
        record_all(model, prompts, root / "ours", gen_length, batch)
        ours_s = time.perf_counter() - started
        labels = labels_of(Recording.load(root / "ours"))
        report(f"this repository, batch {batch}", len(prompts), labels, ours_s)
        by_labels = labels / ours_s * obvious_s / obvious_labels
        by_prompts = len(prompts) / ours_s * obvious_s / len(some)
        print(f"ratio: {by_labels:.1f} by labels, {by_prompts:.1f} by prompts (bar: 8)")
        took = []
        for processes in (1, 2):
            (root / str(processes)).mkdir()
            took.append(seconds_of(options, processes, root / str(processes)))
            report(f"{processes} process, one thread each", len(prompts), labels, took[-1])
        print(f"ratio: {took[0] / took[1]:.2f} (bar: 1.7, where each process has a core of its own)")


def report(name: str, prompts: int, labels: int, seconds: float) -> None:
    """Print one line of figures."""
    print(f"{name:32} {prompts:4} prompts {labels:8} labels {seconds:8.2f} s {labels / seconds:10.1f} labels/s")


if __name__ == "__main__":
    main(sys.argv[1:])
