"""`--dry-run`: what the stages of a run cost, said before any of it is spent. Nothing is written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from learn2pd.cli.config import RunConfig
from learn2pd.cli.stages.comparison_methods import expand_sweeps
from learn2pd.cli.stages.components import model_of, usable_prompts
from learn2pd.cli.stages.recording import HALF_BYTES, TOP_BYTES, labels_oracle, processes_of
from learn2pd.data.prompts import Prompt
from learn2pd.evaluation.outcomes import group_by_task
from learn2pd.models.delimiters import newline_ids
from learn2pd.models.loading import Model, read_skeleton
from learn2pd.models.sizes import bytes_text, sizes_of
from learn2pd.predictors.questions import CHECKED
from learn2pd.recording.estimate import LabelCost, estimate, estimate_comparison, plan
from learn2pd.recording.processes import Processes
from learn2pd.registry import AUTOREGRESSIVE


def dry_run(config: RunConfig, stages: Sequence[str]) -> str:
    """Word the cost of the stages `record` and `compare`, and name the others.

    Args:
        config: the configuration.
        stages: the stages that the command would run.

    Raises:
        UserError: the model cannot take a prompt.
    """
    model = model_of(config)
    prompts = usable_prompts(config, model)
    lines = [_memory(config, model, prompts)]
    if "record" in stages:
        lines += _recording(config, model, [prompt for prompt in prompts if prompt.split != "test"])
    if "compare" in stages:
        lines.append(_comparison(config, model, [prompt for prompt in prompts if prompt.split == "test"]))
    others = [stage for stage in stages if stage not in ("record", "compare")]
    if others:
        lines.append(f"not estimated: the cost of the stage{'s' if len(others) > 1 else ''} {' and '.join(others)}")
    return "\n".join(lines)


def _memory(config: RunConfig, model: Model, prompts: Sequence[Prompt]) -> str:
    longest = max(len(model.encode(prompt.content)) for prompt in prompts)
    network = read_skeleton(config.model.path, model.adapter.network.dtype, config.model.revision, config.model.family)
    sizes = sizes_of(
        network, config.decode.rows_together, longest + config.decode.gen_length, config.model.quantization
    )
    return f"memory:   at most {bytes_text(sizes.whole)}: {sizes}"


def _recording(config: RunConfig, model: Model, prompts: Sequence[Prompt]) -> list[str]:
    """Return the lines on the stage `record`, of the train and validation prompts."""
    options = _decoding(config) | {"shard_prompts": config.record.shard_prompts}
    devices = planned_devices(config)
    lines = [
        estimate(
            model,
            [prompt.text for prompt in prompts],
            **options,
            processes=devices,
            labels=label_cost(config),
            hidden_bytes=HALF_BYTES * config.record.hidden_states * config.decode.block_length,
            top_bytes=TOP_BYTES * config.decode.block_length if config.record.top_tokens else 0,
        )
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
    return lines


def _comparison(config: RunConfig, model: Model, prompts: Sequence[Prompt]) -> str:
    """Return the lines on the stage `compare`, of the test prompts."""
    methods = [method for _, method in expand_sweeps(config.compare.methods)]
    counted = sum(method.policy not in AUTOREGRESSIVE for method in methods)
    return estimate_comparison(
        model,
        [[prompt.text for prompt in group] for group in group_by_task(prompts).values()],
        **_decoding(config),
        methods=counted,
        stops=len(config.compare.stops),
        uncounted=len(methods) - counted,
    )


def _decoding(config: RunConfig) -> dict[str, Any]:
    return {
        "gen_length": config.decode.gen_length,
        "block_length": config.decode.block_length,
        "batch_size": config.decode.rows_together,
    }


def planned_devices(config: RunConfig) -> int:
    """Return the number of devices of the run that is planned.

    Args:
        config: the configuration.
    """
    nodes, each = config.plan.nodes, config.plan.gpus_per_node
    if not nodes and not each:
        return processes_of(config).count
    return (nodes or config.record.num_nodes) * (each or Processes(config.record.devices).count)


def label_cost(config: RunConfig) -> LabelCost | None:
    """Return what the labels of a run cost; None where they are those of the reference.

    Args:
        config: the configuration.
    """
    labels = config.record.labels
    if labels == "reference":
        return None
    if labels == "own_answer":
        return LabelCost(labels, config.train.rounds, "the filter of the round")
    if labels == "continuation":
        by = "one token a step"
    elif labels_oracle(config) and config.train.start == "scratch":
        by = "one token a step, and in rounds by the filter where its answer is right, which takes fewer forwards"
    else:
        by = "the filter where its answer is right, which takes fewer forwards, and elsewhere by one token a step"
    return LabelCost(
        labels,
        config.train.rounds + labels_oracle(config),
        by,
        config.record.label_states,
        config.record.label_positions if labels in CHECKED else None,
        1 if labels == "continuation" else 2,
    )
