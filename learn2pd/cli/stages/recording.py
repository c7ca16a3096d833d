"""The stage `record`, and the recordings of rounds.

The stage records the oracle's states of every train and validation prompt. A round records the states that a trained
policy leads into.
"""

from __future__ import annotations

import functools
import logging
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
from learn2pd.data.prompts import Prompt, facts_digest
from learn2pd.errors import UserError
from learn2pd.method import Method
from learn2pd.models.delimiters import newline_ids
from learn2pd.models.loading import Model
from learn2pd.models.sizes import bytes_text
from learn2pd.policies.fixed import FixedPolicy
from learn2pd.predictors.filter import FilterPolicy, load_policy
from learn2pd.predictors.hidden import hidden_map
from learn2pd.predictors.questions import CHECKED, TOP_TOKENS
from learn2pd.recording.exchange import Exchange
from learn2pd.recording.labels import Sample, labelled_tables
from learn2pd.recording.processes import Processes, SharedFolder
from learn2pd.recording.reading import Recording
from learn2pd.recording.recorder import Judge, WindowValues, free_tables, oracle_tables, record, rollout_tables
from learn2pd.recording.schema import RECORDING, describe_recording, open_recording, read_recording
from learn2pd.recording.writing import Tables
from learn2pd.schedulers.blocks import alignment_of, blocks_for
from learn2pd.stops.eot import EotStop
from learn2pd.types import CONFIDENCE

log = logging.getLogger(__name__)
# what tells one recording of states from others, and what it keeps of windows
DECODED_BY = ("round", "policy_fingerprint", "threshold", "hidden_states", "model_width", "top_tokens")
HIDDEN_BYTES = 2**20  # the most that the hidden states of a prompt may take on disk
TOP_BYTES = TOP_TOKENS * (4 + 2)  # of the most probable tokens of a position: an int32 and a float16 for each
HALF_BYTES = 2  # bytes of a number in float16
CONTINUED = ("continuation", *CHECKED)  # labels that are made by continuing recorded states


def processes_of(config: RunConfig) -> Processes:
    """Return the processes that record together.

    Args:
        config: the configuration.

    Raises:
        UserError: a number of processes is not allowed.
    """
    return Processes(config.record.devices, config.record.num_nodes, config.record.strategy)


def exchange_of(config: RunConfig, processes: Processes) -> Exchange | None:
    """Return the place through which nodes without a shared folder exchange shards; None where they have a folder.

    Args:
        config: the configuration.
        processes: the processes that record together.

    Raises:
        UserError: the place cannot be reached, or the run also shares what does not go through it.
    """
    url = config.record.exchange
    if url is None:
        return None
    for key, shared in (
        ("train.together=true", config.train.together),
        (f"record.labels={config.record.labels}", labels_oracle(config)),
    ):
        if shared:
            raise UserError(f"record.exchange={url}: {key} needs a folder that all nodes share; leave one of them out")
    return Exchange(url, processes.rank, processes.count)


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
        described = _described(config, model, recorded_prompts(config, model), **_windows_described(config, model))
        open_recording(folder, described)


def check_labels(config: RunConfig, prompts: Sequence[Prompt]) -> None:
    """Check, before anything is recorded, that the labels can be made.

    Args:
        config: the configuration.
        prompts: the prompts of all splits.

    Raises:
        UserError: the labels check answers, and a train or validation prompt has no checker; or they need rounds.
    """
    labels = config.record.labels
    if labels == "own_answer" and not config.train.rounds:
        raise UserError(
            "record.labels=own_answer labels the states of rounds, and train.rounds=0: set train.rounds to 1 or more, "
            "or record.labels=reference"
        )
    if labels not in ("own_answer", *CHECKED):
        return
    recorded = [prompt for prompt in prompts if prompt.split != "test"]
    unjudged = [prompt for prompt in recorded if not prompt.task]
    if unjudged and labels == "own_answer":
        log.warning(
            "record.labels=own_answer: %d of %d train and validation prompts have no checker, and keep the labels of "
            "the reference",
            len(unjudged),
            len(recorded),
        )
    elif unjudged:
        raise UserError(
            f"record.labels={labels} needs a checker, and {len(unjudged)} of {len(recorded)} train and validation "
            f"prompts have none, such as {unjudged[0].place}: name one with data.answer_field and data.task, or set "
            "record.labels=continuation"
        )


def check_hidden(config: RunConfig) -> None:
    """Check that the hidden states of a prompt do not take too much disk.

    Args:
        config: the configuration.

    Raises:
        UserError: they may take more than 1 MiB.
    """
    each = config.decode.gen_length * config.decode.block_length * HALF_BYTES
    if config.record.hidden_states * each > HIDDEN_BYTES:
        raise UserError(
            f"record.hidden_states={config.record.hidden_states} may take "
            f"{bytes_text(config.record.hidden_states * each)} of disk for a prompt, and at most "
            f"{bytes_text(HIDDEN_BYTES)} are allowed: take at most {HIDDEN_BYTES // each} with "
            f"decode.gen_length={config.decode.gen_length}"
        )


def windows_of(config: RunConfig, model: Model) -> WindowValues | None:
    """Return what a recording keeps of the windows beside one value for each position.

    Args:
        config: the configuration.
        model: the model.
    """
    numbers = config.record.hidden_states
    if not numbers and not config.record.top_tokens:
        return None
    projection = hidden_map(model_width(model), numbers) if numbers else None
    return WindowValues(config.decode.block_length, projection, config.record.top_tokens)


def model_width(model: Model) -> int:
    """Return the number of features of a hidden state of a model."""
    return int(model.adapter.network.get_output_embeddings().weight.shape[1])


def labels_oracle(config: RunConfig) -> bool:
    """Say whether the oracle's states get other labels than the reference.

    Only a filter without rounds, or a new one in its first round, is trained on them.

    Args:
        config: the configuration.
    """
    trains = config.train.start == "scratch" or not config.train.rounds
    return config.record.labels in CONTINUED and trains


def labels_folder(config: RunConfig, output: Path, number: int) -> Path:
    """Return the folder of the recording on which the filter is trained.

    Args:
        config: the configuration.
        output: the output_dir of the run.
        number: number of the round; 0 stands for the oracle's states.
    """
    if config.record.labels not in CONTINUED:
        return states_folder(output, number)
    if number:
        return output / "rounds" / f"{config.record.labels}-{number}"
    return output / "labels" / config.record.labels


def states_folder(output: Path, number: int) -> Path:
    """Return the folder of the recorded states of a round.

    Args:
        output: the output_dir of the run.
        number: number of the round; 0 stands for the oracle's states.
    """
    return output / "rounds" / str(number) if number else output / "records"


def record_labels(
    config: RunConfig, output: Path, number: int, policy: FilterPolicy | None = None, leads: bool = True
) -> dict[str, Any]:
    """Label recorded states by continuing them, as `record.labels` says.

    The output is output_dir/labels, and for the states of a round a folder in output_dir/rounds.

    Args:
        config: the configuration.
        output: the output_dir of the run.
        number: number of the round whose states are labelled; 0 stands for the oracle's states.
        policy: a trained policy. Where labels are checked, it continues, since it takes fewer forwards than one token a
            step.
        leads: as for `record`.

    Returns:
        The figures of the labels; empty where the states keep their labels.
    """
    if config.record.labels not in CONTINUED:
        return {}
    model = model_of(config)
    prompts = recorded_prompts(config, model)
    checked = config.record.labels in CHECKED
    states = states_folder(output, number)
    recording = Recording(states, read_recording(states))
    blocks = blocks_for(model.spec, config.decode.block_length)
    cache = exact_cache_for(model.spec)
    methods = [Method(FixedPolicy(), blocks, cache, EotStop(0.0))]
    continued_by = ["one token a step"]
    if checked and policy is not None:
        methods.insert(0, Method(policy, blocks, cache, EotStop(config.decode.stop_floor)))
        continued_by.insert(0, f"filter {policy.predictor.weights_fingerprint} at {policy.threshold:g}")
    if leads:
        log.info("labels %s, continued by %s", config.record.labels, ", where it is wrong by ".join(continued_by))
    produce = functools.partial(
        labelled_tables,
        recording=recording,
        methods=methods,
        judge=judge_of(config, prompts) if checked else None,
        sample=Sample(config.record.label_states, config.record.label_positions if checked else 0, config.seed),
        together=config.record.labels == "checked_together",
        batch_size=config.decode.rows_together,
        given=config.decode.given or None,
    )
    labelled_by = {
        "labels": config.record.labels,
        "label_states": config.record.label_states,
        **({"label_positions": config.record.label_positions} if checked else {}),
        "continued_by": continued_by,
        "stop_floor": config.decode.stop_floor,
        **(_checked_described(prompts) if checked else {}),
        **{name: recording.description[name] for name in DECODED_BY if name in recording.description},
    }
    folder = labels_folder(config, output, number)
    open_recording(folder, _described(config, model, prompts, **labelled_by))
    figures = record(model, prompts, folder, produce, shard_prompts=config.record.shard_prompts, leads=leads)
    if not leads:
        return {}
    labelled = Recording.load(folder)
    taken = labelled.references.with_format("numpy")["label_forwards"][:]
    return {
        "label_seconds": figures["seconds"],
        "label_rows": len(labelled.states),
        "label_forwards_mean": float(taken.mean()),
    }


def judge_of(config: RunConfig, prompts: Sequence[Prompt]) -> Judge:
    """Return the function that says which answers are right.

    Args:
        config: the configuration.
        prompts: the prompts whose checkers are needed.
    """
    checkers = checkers_of(config, prompts)

    def judge(prompts: Sequence[Prompt], texts: Sequence[str]) -> list[bool]:
        return [
            prompt.task is not None and bool(checkers[prompt.task].check(prompt.facts, text).correct)
            for prompt, text in zip(prompts, texts, strict=True)
        ]

    return judge


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


def meet(config: RunConfig, output: Path, processes: Processes) -> Exchange | None:
    """Let the processes of a run meet, unless they have met.

    Args:
        config: the configuration, the same in all processes but for the device.
        output: the output_dir of the run.
        processes: the processes of the run.

    Returns:
        The place through which they exchange shards; None where they share a folder.

    Raises:
        UserError: the processes do not fit together.
    """
    model = model_of(config)
    described = _described(config, model, recorded_prompts(config, model))
    exchange = exchange_of(config, processes)
    processes.meet(facts_of(config, described), exchange or SharedFolder(output), stay=config.train.together)
    return exchange


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
    exchange = meet(config, output, processes)
    if config.threads:
        torch.set_num_threads(config.threads)
    folder = output / "records"
    produce = functools.partial(
        oracle_tables,
        gen_length=config.decode.gen_length,
        block_length=config.decode.block_length,
        batch_size=config.decode.rows_together,
        delimiter_ids=newline_ids(model.tokenizer),
        given=config.decode.given or None,
        windows=windows_of(config, model),
    )
    open_recording(folder, _described(config, model, prompts, **_windows_described(config, model)))
    figures = record(
        model,
        prompts,
        folder,
        produce,
        shard_prompts=config.record.shard_prompts,
        leads=processes.rank == 0,
        exchange=exchange,
    )
    labels = {}
    if labels_oracle(config):
        labels = record_labels(config, output, 0, first_policy(config), leads=processes.rank == 0)
    torch.set_num_threads(threads)
    if processes.rank:
        return None
    recording = Recording.load(folder)
    if "record" in read_metrics(output) and not figures["prompts_recorded_now"]:
        return None
    return figures | {"processes": processes.count} | summary(recording) | labels


def first_policy(config: RunConfig) -> FilterPolicy | None:
    """Return the filter that the training begins with, at the threshold of its rollouts; None where it has none.

    Args:
        config: the configuration.
    """
    if config.train.start == "scratch" or config.policy is None:
        return None
    return load_policy(config.policy, threshold=config.train.rollout_threshold)


def record_round(
    config: RunConfig, output: Path, number: int, policy: FilterPolicy, processes: Processes
) -> dict[str, Any]:
    """Record the states that a policy meets when it decodes the recorded prompts, with the labels of their references.

    Unless `record.labels` is `reference`, the policy's own answers take the place of the references wherever a checker
    calls them right. The output is output_dir/rounds/NUMBER, and a folder beside it where the states are continued.

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
    folder = states_folder(output, number)
    method = Method(policy, blocks_for(model.spec, config.decode.block_length), exact_cache_for(model.spec))
    own = config.record.labels != "reference"
    if own:
        method = replace(method, stop=EotStop(config.decode.stop_floor))
    judge = judge_of(config, prompts) if own else None

    def produce(model: Model, prompts: Sequence[Prompt]) -> Tables:
        references = recording.references_of([prompt.id for prompt in prompts])
        return rollout_tables(
            model,
            prompts,
            references,
            method,
            batch_size=config.decode.rows_together,
            delimiter_ids=recording.description["delimiter_ids"],
            given=config.decode.given or None,
            judge=judge,
            windows=windows_of(config, model),
        )

    decoded_by = {
        "round": number,
        "policy_fingerprint": policy.predictor.weights_fingerprint,
        "threshold": policy.threshold,
        **({"options": config.train.rollout_options} if config.train.rollout_options else {}),
        **({"own_answers": True, **_checked_described(prompts)} if own else {}),
        **_windows_described(config, model),
    }
    open_recording(folder, _described(config, model, prompts, **decoded_by))
    leads = processes.rank == 0
    figures = record(model, prompts, folder, produce, shard_prompts=config.record.shard_prompts, leads=leads)
    labels = record_labels(config, output, number, policy, leads)
    processes.wait()  # the first process has written the manifests
    return {"record_seconds": figures["seconds"]} | summary(Recording.load(folder)) | labels


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
    judge = judge_of(config, prompts)
    folder = output / "rounds" / f"keep-{number}"
    method = Method(policy, blocks_for(model.spec, config.decode.block_length), stop=EotStop(config.decode.stop_floor))

    def produce(model: Model, prompts: Sequence[Prompt]) -> Tables:
        return free_tables(
            model,
            prompts,
            recording.references_of([prompt.id for prompt in prompts]),
            method,
            judge,
            batch_size=config.decode.rows_together,
            delimiter_ids=recording.description["delimiter_ids"],
            given=config.decode.given or None,
        )

    decoded_by = {
        "committed": True,
        "round": number,
        "policy_fingerprint": policy.fingerprint,
        "threshold": policy.threshold,
        **_checked_described(prompts),
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


def _windows_described(config: RunConfig, model: Model) -> dict[str, int]:
    """Return what recording.json says of the values that are kept of windows."""
    numbers = config.record.hidden_states
    hidden = {"hidden_states": numbers, "model_width": model_width(model)} if numbers else {}
    return hidden | ({"top_tokens": TOP_TOKENS} if config.record.top_tokens else {})


def _checked_described(prompts: Sequence[Prompt]) -> dict[str, str]:
    """Return what recording.json says of the checkers, in a recording that depends on their judgements."""
    return {"facts_digest": facts_digest(prompts)}


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
        # Where no part is given, the description is that of earlier releases, whose recordings stay valid.
        **({"given": config.decode.given} if config.decode.given else {}),
        **more,
    )
