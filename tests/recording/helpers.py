"""A small recording, made whole or by several processes."""

from __future__ import annotations

import functools
from pathlib import Path

from learn2pd.data.prompts import task_prompts
from learn2pd.models.delimiters import newline_ids
from learn2pd.recording.recorder import oracle_tables, record
from learn2pd.recording.schema import describe_recording, open_recording
from learn2pd.registry import GENERATED_TASKS, build_task
from learn2pd.types import CONFIDENCE

GEN, BLOCK, SHARD, BATCH = 24, 16, 3, 2  # the last block is shorter


def some_prompts(train=5, validation=3):
    """Prompts of all built-in tasks."""
    return task_prompts(
        [build_task(name) for name in GENERATED_TASKS], {"train": train, "validation": validation}, seed=0
    )


def described(model, prompts, gen_length=GEN, block_length=BLOCK, shard_prompts=SHARD, **more):
    """The description of a recording of these prompts."""
    return describe_recording(
        model,
        prompts,
        gen_length=gen_length,
        block_length=block_length,
        alignment="prompt",
        confidence=CONFIDENCE,
        delimiter_ids=newline_ids(model.tokenizer),
        shard_prompts=shard_prompts,
        seed=0,
        config={},
        **more,
    )


def oracle_producer(model, gen_length=GEN, block_length=BLOCK):
    """A function that makes the oracle's tables of some prompts."""
    delimiters = newline_ids(model.tokenizer)
    return functools.partial(
        oracle_tables, gen_length=gen_length, block_length=block_length, batch_size=BATCH, delimiter_ids=delimiters
    )


MADE: dict[tuple, object] = {}  # the tables that `remembered` has made


def remembered(model, gen_length=GEN, block_length=BLOCK):
    """As `oracle_producer`, but the same prompts are decoded once in a process: for tests of what becomes of tables."""
    produce = oracle_producer(model, gen_length, block_length)

    def of(model, prompts):
        key = (model.spec.fingerprint, gen_length, block_length, *((prompt.id, prompt.text) for prompt in prompts))
        if key not in MADE:
            MADE[key] = produce(model, prompts)
        return MADE[key]

    return of


def make(
    model,
    prompts,
    folder: Path,
    *,
    produce=None,
    leads=True,
    shard_prompts=SHARD,
    gen_length=GEN,
    block_length=BLOCK,
    exchange=None,
    **more,
):
    """Record in this process, as one of several that may be at it."""
    open_recording(folder, described(model, prompts, gen_length, block_length, shard_prompts, **more))
    produce = produce or remembered(model, gen_length, block_length)
    return record(model, prompts, folder, produce, shard_prompts=shard_prompts, leads=leads, exchange=exchange)


def files(folder: Path) -> dict[str, bytes]:
    """Everything in a folder, by name."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
