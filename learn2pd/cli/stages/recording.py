"""The stage `record`, and the recordings of rounds.

The stage records the oracle's states of every train and validation prompt. A round records the states that a trained
policy leads into.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers

from learn2pd import __version__
from learn2pd.caches.causal_block import exact_cache_for
from learn2pd.cli.config import RunConfig, identity, leaves
from learn2pd.cli.stages.components import checkers_of, model_of, usable_prompts
from learn2pd.cli.stages.run_folder import read_metrics
from learn2pd.data.prompts import Prompt
from learn2pd.method import Method
from learn2pd.models.delimiters import newline_ids
from learn2pd.models.loading import Model, read_skeleton
from learn2pd.models.sizes import bytes_text, sizes_of
from learn2pd.predictors.filter import FilterPolicy
from learn2pd.recording.estimate import estimate, plan
from learn2pd.recording.processes import Processes
from learn2pd.recording.reading import Recording
from learn2pd.recording.recorder import free_tables, oracle_tables, record, rollout_tables
from learn2pd.recording.schema import RECORDING, describe_recording, open_recording
from learn2pd.recording.writing import Tables
from learn2pd.schedulers.blocks import alignment_of, blocks_for
from learn2pd.stops.eot import EotStop
from learn2pd.types import CONFIDENCE


def processes_of(config: RunConfig) -> Processes:
    """Return the processes that record together.

    Args:
        config: the configuration.

    Raises:
        UserError: a number of processes is not allowed.
    """
    return Processes(config.record.devices, config.record.num_nodes, config.record.strategy)


def recorded_prompts(config: RunConfig, model: Model) -> list[Prompt]:
    """Return the train and validation prompts.

    The test prompts are checked together with them, so that a test prompt that does not fit is reported before hours of
    recording and not after them.

    Args:
        config: the configuration.
        model: the model.

    Raises:
        UserError: the model cannot take a prompt of any split.
    """
    return [prompt for prompt in usable_prompts(config, model) if prompt.split != "test"]


def check_recording(config: RunConfig, output: Path) -> None:
    """Check, before anything is changed, that the recording in the output_dir is that of this configuration.

    Args:
        config: the configuration.
        output: the output_dir of the run.

    Raises:
        UserError: the recording was made with something else; the message names each difference.
    """
    folder = output / "records"
    if (folder / RECORDING).exists():
        model = model_of(config)
        open_recording(folder, _described(config, model, recorded_prompts(config, model)))


def facts_of(config: RunConfig, described: dict[str, Any]) -> dict[str, Any]:
    """Return what must be the same in all processes that record together, by name.

    Args:
        config: the configuration.
        described: the description of the recording.
    """
    releases = {"learn2pd": __version__, "torch": torch.__version__, "transformers": transformers.__version__}
    together = {"train.together": config.train.together}
    return (
        releases
        | leaves(identity(config))
        | together
        | {name: described[name] for name in described if name != "config"}
    )


def placed(config: RunConfig, processes: Processes) -> RunConfig:
    """Return the configuration with the GPU of this process, where each process of a node has its own.

    Args:
        config: the configuration.
        processes: the processes of the run.
    """
    if processes.local_rank and config.model.device == "auto" and torch.cuda.is_available():
        return replace(config, model=replace(config.model, device=f"cuda:{processes.local_rank}"))
    return config


def meet(config: RunConfig, output: Path, processes: Processes) -> None:
    """Let the processes of a run meet, unless they have met.

    Args:
        config: the configuration, the same in all processes but for the device.
        output: the output_dir of the run.
        processes: the processes of the run.

    Raises:
        UserError: the processes do not fit together.
    """
    model = model_of(config)
    described = _described(config, model, recorded_prompts(config, model))
    processes.meet(facts_of(config, described), output, stay=config.train.together)


def stage_record(config: RunConfig, output: Path, processes: Processes) -> dict[str, Any] | None:
    """Record the references and the oracle's states of every train and validation prompt.

    Every process of a run calls this function. The output is output_dir/records.

    Args:
        config: the configuration.
        output: the output_dir of the run.
        processes: the processes that record together.

    Returns:
        The figures of the recording; None in a process that only helps, and where the recording was already complete
        and reported.

    Raises:
        UserError: the recording cannot be made or continued.
    """
    config = placed(config, processes)
    model = model_of(config)
    prompts = recorded_prompts(config, model)
    threads = torch.get_num_threads()
    meet(config, output, processes)
    if config.threads:
        torch.set_num_threads(config.threads)
    folder = output / "records"
    produce = functools.partial(
        oracle_tables,
        gen_length=config.decode.gen_length,
        block_length=config.decode.block_length,
        batch_size=config.decode.rows,
        delimiter_ids=newline_ids(model.tokenizer),
        given=config.decode.given or None,
    )
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


def record_round(
    config: RunConfig, output: Path, number: int, policy: FilterPolicy, processes: Processes
) -> dict[str, Any]:
    """Record the states that a policy meets when it decodes the recorded prompts, with the labels of their references.

    The output is output_dir/rounds/NUMBER.

    Args:
        config: the configuration.
        output: the output_dir of the run.
        number: number of the round, from 1.
        policy: the trained policy.
        processes: the processes that record together, all of which call this function; one, or connected ones.

    Returns:
        The figures of the recording.
    """
    model = model_of(config)
    recording = Recording.load(output / "records")
    prompts = recorded_prompts(config, model)
    folder = output / "rounds" / str(number)
    method = Method(policy, blocks_for(model.spec, config.decode.block_length), exact_cache_for(model.spec))

    def produce(model: Model, prompts: Sequence[Prompt]) -> Tables:
        references = recording.references_of([prompt.id for prompt in prompts])
        return rollout_tables(
            model,
            prompts,
            references,
            method,
            batch_size=config.decode.rows,
            delimiter_ids=recording.manifest["delimiter_ids"],
            given=config.decode.given or None,
        )

    decoded_by = {
        "round": number,
        "policy_fingerprint": policy.predictor.weights_fingerprint,
        "threshold": policy.threshold,
    }
    open_recording(folder, _described(config, model, prompts, **decoded_by))
    figures = record(
        model, prompts, folder, produce, shard_prompts=config.record.shard_prompts, leads=processes.rank == 0
    )
    processes.wait()  # the first process has written the manifest
    return {"record_seconds": figures["seconds"]} | summary(Recording.load(folder))


def record_free(
    config: RunConfig, output: Path, number: int, policy: FilterPolicy, processes: Processes
) -> dict[str, Any]:
    """Record the states that a policy leads into when it decodes the recorded prompts and nobody corrects it.

    The output is output_dir/rounds/keep-NUMBER.

    Args:
        config: the configuration.
        output: the output_dir of the run.
        number: number of the round, from 1.
        policy: the policy, which takes back.
        processes: the processes that record together, as for `record_round`.

    Returns:
        The figures of the recording.
    """
    model = model_of(config)
    recording = Recording.load(output / "records")
    prompts = recorded_prompts(config, model)
    checkers = checkers_of(config, prompts)
    folder = output / "rounds" / f"keep-{number}"
    method = Method(policy, blocks_for(model.spec, config.decode.block_length), stop=EotStop(config.decode.stop_floor))

    def judge(prompts: Sequence[Prompt], texts: Sequence[str]) -> list[bool]:
        return [
            prompt.task is not None and bool(checkers[prompt.task].check(prompt.facts, text).correct)
            for prompt, text in zip(prompts, texts, strict=True)
        ]

    def produce(model: Model, prompts: Sequence[Prompt]) -> Tables:
        return free_tables(
            model,
            prompts,
            recording.references_of([prompt.id for prompt in prompts]),
            method,
            judge,
            batch_size=config.decode.rows,
            delimiter_ids=recording.manifest["delimiter_ids"],
            given=config.decode.given or None,
        )

    decoded_by = {
        "committed": True,
        "round": number,
        "policy_fingerprint": policy.fingerprint,
        "threshold": policy.threshold,
    }
    open_recording(folder, _described(config, model, prompts, **decoded_by))
    figures = record(
        model, prompts, folder, produce, shard_prompts=config.record.shard_prompts, leads=processes.rank == 0
    )
    processes.wait()  # the first process has written the manifest
    return {"record_seconds": figures["seconds"]} | summary(Recording.load(folder))


def summary(recording: Recording) -> dict[str, Any]:
    """Return the sizes of a finished recording, and the mean numbers of forwards of a prompt."""
    references = recording.references.with_format("numpy")
    return {
        "prompts": len(references),
        "rows": len(recording.states),
        "reference_forwards_mean": float(references["forwards"][:].mean()),
        "oracle_forwards_mean": float(references["oracle_forwards"][:].mean()),
    }


def dry_run(config: RunConfig) -> str:
    """Word the cost of the stage `record`. Nothing is written.

    Args:
        config: the configuration.
    """
    model = model_of(config)
    prompts = recorded_prompts(config, model)
    longest = max(len(model.encode(prompt.content)) for prompt in prompts)
    network = read_skeleton(config.model.path, model.adapter.network.dtype, config.model.revision, config.model.family)
    sizes = sizes_of(network, config.decode.rows, longest + config.decode.gen_length, config.model.quantization)
    options: dict[str, Any] = {
        "gen_length": config.decode.gen_length,
        "block_length": config.decode.block_length,
        "batch_size": config.decode.rows,
        "shard_prompts": config.record.shard_prompts,
    }
    devices = planned_devices(config)
    lines = [
        f"memory:   at most {bytes_text(sizes.whole)}: {sizes}",
        estimate(model, [prompt.text for prompt in prompts], **options, processes=devices),
    ]
    if config.plan.sample_prompts:
        expected = plan(
            model,
            prompts,
            **options,
            delimiter_ids=newline_ids(model.tokenizer),
            sample=config.plan.sample_prompts,
            devices=devices,
        )
        lines.append(expected.words(config.plan.price_per_hour))
    return "\n".join(lines)


def planned_devices(config: RunConfig) -> int:
    """Return the number of devices of the run that is planned.

    Args:
        config: the configuration.
    """
    nodes, each = config.plan.nodes, config.plan.gpus_per_node
    if not nodes and not each:
        return processes_of(config).count
    return (nodes or config.record.num_nodes) * (each or Processes(config.record.devices).count)


def _described(config: RunConfig, model: Model, prompts: Sequence[Prompt], **more: Any) -> dict[str, Any]:
    return describe_recording(
        model,
        prompts,
        gen_length=config.decode.gen_length,
        block_length=config.decode.block_length,
        alignment=alignment_of(model.spec),
        confidence=CONFIDENCE,
        delimiter_ids=newline_ids(model.tokenizer),
        shard_prompts=config.record.shard_prompts,
        seed=config.seed,
        config=identity(config),
        **more,
    )
