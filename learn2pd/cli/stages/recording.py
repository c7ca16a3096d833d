"""Record: the oracle's states of every train and validation prompt, and in rounds those that a policy leads into."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from learn2pd.cli.config import RunConfig, identity
from learn2pd.cli.stages.components import model_of, usable_prompts
from learn2pd.cli.stages.run_folder import read_metrics
from learn2pd.data.prompts import Prompt
from learn2pd.models.delimiters import newline_ids
from learn2pd.models.loading import Model
from learn2pd.predictors.filter import FilterPolicy
from learn2pd.recording.estimate import estimate
from learn2pd.recording.processes import Processes
from learn2pd.recording.reading import Recording
from learn2pd.recording.recorder import oracle_tables, record, rollout_tables
from learn2pd.recording.schema import describe_recording, open_recording
from learn2pd.recording.writing import Tables
from learn2pd.schedulers.blocks import BlocksScheduler
from learn2pd.types import CONFIDENCE


def processes_of(config: RunConfig) -> Processes:
    """Raises UserError for numbers that make no sense."""
    return Processes(config.record.devices, config.record.num_nodes, config.record.strategy)


def recorded_prompts(config: RunConfig, model: Model) -> list[Prompt]:
    """The train and validation prompts; test prompts are checked with them, since hours later they must fit too.

    Raises:
        UserError: one that the model does not take, of any split.
    """
    return [prompt for prompt in usable_prompts(config, model) if prompt.split != "test"]


def stage_record(config: RunConfig, output: Path) -> dict[str, Any] | None:
    """Reference and oracle states of every train and validation prompt -> output_dir/records, in every process of a run."""
    processes, threads = processes_of(config), torch.get_num_threads()
    processes.meet()
    if config.threads:
        torch.set_num_threads(config.threads)
    if processes.local_rank and config.model.device == "auto" and torch.cuda.is_available():
        config = replace(config, model=replace(config.model, device=f"cuda:{processes.local_rank}"))
    model = model_of(config)
    prompts, folder = recorded_prompts(config, model), output / "records"
    produce = functools.partial(
        oracle_tables, gen_length=config.decode.gen_length, block_length=config.decode.block_length, batch_size=config.decode.batch_size,
        delimiter_ids=newline_ids(model.tokenizer),
    )  # fmt: skip
    open_recording(folder, _described(config, model, prompts))
    figures = record(
        model, prompts, folder, produce, shard_prompts=config.record.shard_prompts, leads=processes.rank == 0
    )
    torch.set_num_threads(threads)
    if processes.rank:
        return None
    recording = Recording.load(folder)
    if "record" in read_metrics(output) and not figures["prompts_recorded_now"]:
        return None
    return figures | {"processes": processes.count} | summary(recording)


def record_round(config: RunConfig, output: Path, number: int, policy: FilterPolicy) -> dict[str, Any]:
    """The states that a policy meets when it decodes the recorded prompts, with their reference labels -> output_dir/rounds/NUMBER."""
    model, recording = model_of(config), Recording.load(output / "records")
    prompts, folder = recorded_prompts(config, model), output / "rounds" / str(number)
    scheduler = BlocksScheduler(config.decode.block_length)

    def produce(model: Model, prompts: Sequence[Prompt]) -> Tables:
        references = recording.references_of([prompt.id for prompt in prompts])
        return rollout_tables(
            model,
            prompts,
            references,
            policy,
            scheduler,
            batch_size=config.decode.batch_size,
            delimiter_ids=recording.manifest["delimiter_ids"],
        )

    by = {"round": number, "policy_fingerprint": policy.predictor.fingerprint, "threshold": policy.threshold}
    open_recording(folder, _described(config, model, prompts, **by))
    figures = record(model, prompts, folder, produce, shard_prompts=config.record.shard_prompts)
    return {"record_seconds": figures["seconds"]} | summary(Recording.load(folder))


def summary(recording: Recording) -> dict[str, Any]:
    """Sizes of a finished recording, and forwards a prompt."""
    references = recording.references.with_format("numpy")
    return {
        "prompts": len(references),
        "rows": len(recording.states),
        "reference_forwards_mean": float(references["forwards"][:].mean()),
        "oracle_forwards_mean": float(references["oracle_forwards"][:].mean()),
    }


def dry_run(config: RunConfig) -> str:
    """What the stage `record` would cost, in words. Nothing is written."""
    model = model_of(config)
    prompts = recorded_prompts(config, model)
    return estimate(
        model, [prompt.text for prompt in prompts], gen_length=config.decode.gen_length, block_length=config.decode.block_length,
        batch_size=config.decode.batch_size, shard_prompts=config.record.shard_prompts, processes=processes_of(config).count,
    )  # fmt: skip


def _described(config: RunConfig, model: Model, prompts: Sequence[Prompt], **more: Any) -> dict[str, Any]:
    return describe_recording(
        model, prompts, gen_length=config.decode.gen_length, block_length=config.decode.block_length, alignment="prompt",
        confidence=CONFIDENCE, delimiter_ids=newline_ids(model.tokenizer), shard_prompts=config.record.shard_prompts, seed=config.seed,
        config=identity(config), **more,
    )  # fmt: skip
