"""The stages of a run: record, train, calibrate, compare (and pretrain, for the embedded dLLM). Each goes on where it stopped.

This is the edge of the package: here a configuration becomes components with flat arguments, and their results become files in
output_dir. A stage leaves its figures in metrics.json; a stage that is complete there is not run again.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
import os
import shutil
import time
from pathlib import Path
from typing import Any

import lightning
import torch
from tqdm.auto import tqdm

from learn2pd.config import MethodConfig, RunConfig, as_dict, differences, identity
from learn2pd.decoding.api import encode_checked
from learn2pd.decoding.proposals import Sampling
from learn2pd.errors import UserError
from learn2pd.evaluation import report
from learn2pd.evaluation.compare import Bootstrap, Outcome, build_rows, cached, group_by_task, merge, run_method
from learn2pd.evaluation.tasks import build_checkers, build_task
from learn2pd.models.loading import Model, load_model
from learn2pd.policies.export import PolicyContract, TrainedFilter, save_policy
from learn2pd.policies.filter import FilterNetwork
from learn2pd.prompts import Prompt, field_prompts, hub_records, jsonl_records, prompts_digest, task_prompts
from learn2pd.recording.reading import load_recording
from learn2pd.recording.recorder import manifest, open_recording, record
from learn2pd.registry import build
from learn2pd.training.calibration import calibrate, metrics_at, probabilities
from learn2pd.training.checkpoint_io import SafetensorsCheckpointIO
from learn2pd.training.filter import FilterData, answer_positions, filter_rows, train_filter

log = logging.getLogger(__name__)
RUN_FILE, METRICS_FILE = "run.json", "metrics.json"
OUTPUTS = (RUN_FILE, METRICS_FILE, "records", "train", "policy", "compare", "compare.json", "compare.md", "plots", "pretrain")


def run_stages(config: RunConfig, only: str | None = None) -> None:
    """Run the stages of a configuration, or only one of them, in its output_dir.

    Raises:
        UserError: anything the user can mend.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    lightning.seed_everything(config.seed, verbose=False)
    output = open_output(config)
    for stage in [only] if only else config.stages:
        started = time.perf_counter()
        log.info("stage %s", stage)
        figures = STAGE_FUNCTIONS[stage](config, output)
        if figures is not None:
            write_metrics(output, stage, figures | {"stage_seconds": round(time.perf_counter() - started, 2)})


def open_output(config: RunConfig) -> Path:
    """Create output_dir, or make sure that what is there belongs to this configuration.

    Raises:
        UserError: it belongs to another; names what differs.
    """
    output, described = Path(config.output_dir), identity(config)
    if config.overwrite:
        for name in OUTPUTS:
            target = output / name
            shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)
    path = output / RUN_FILE
    if path.is_file() and not config.resume:
        changed = differences(json.loads(path.read_text()), described)
        if changed:
            shown = "; ".join(changed[:4]) + ("; ..." if len(changed) > 4 else "")
            raise UserError(
                f"output_dir={config.output_dir} holds a run of another configuration ({shown}): choose another, or set resume=true or overwrite=true"
            )
    try:
        output.mkdir(parents=True, exist_ok=True)
        write_json(path, described)
    except OSError as error:
        raise UserError(f"output_dir={config.output_dir}: cannot be written ({error.strerror})") from error
    return output


def write_json(path: Path, value: Any) -> None:
    """Whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value, indent=2) + "\n")
    os.replace(partial, path)


def read_metrics(output: Path) -> dict[str, Any]:
    path = output / METRICS_FILE
    return dict(json.loads(path.read_text())) if path.is_file() else {}


def write_metrics(output: Path, stage: str, figures: dict[str, Any]) -> None:
    write_json(output / METRICS_FILE, read_metrics(output) | {stage: figures})


# ---- what several stages need


@functools.lru_cache(maxsize=2)
def _model(path: str, dtype: str, device: str, revision: str | None) -> Model:
    return load_model(path, dtype, device, revision)


def model_of(config: RunConfig) -> Model:
    """The dLLM, loaded once a process."""
    return _model(**dataclasses.asdict(config.model))


def prompts_of(config: RunConfig) -> list[Prompt]:
    """Every prompt of a run, all splits."""
    data = config.data
    counts = {"train": data.train_prompts, "validation": data.validation_prompts, "test": data.test_prompts}
    if data.source == "tasks":
        return task_prompts(data.tasks, counts, config.seed)
    if not data.path:
        raise UserError(
            f"data.path is not set: data.source={data.source} needs {'a file' if data.source == 'jsonl' else 'the name of a hub data set'}"
        )
    if data.source == "jsonl":
        records, complaints = jsonl_records(data.path)
    else:
        records, complaints = hub_records(data.path, data.subset, data.hub_split), []
    return field_prompts(records, complaints, data.prompt_field, data.answer_field, counts, config.seed)


def check_prompts(model: Model, prompts: list[Prompt], gen_length: int) -> None:
    """Raises UserError for the first prompt that is empty or too long, before any time is spent on the others."""
    for prompt in prompts:
        encode_checked(model, prompt.text, prompt.id, gen_length)


def provided_to(config: RunConfig, model: Model, folder: Path) -> dict[str, Any]:
    """What components get without being told: see registry.py."""
    length = config.decode.block_length
    return {
        "folder": folder, "block_length": length, "refresh_tokens": length, "floor": config.decode.stop_floor, "tokenizer": model.tokenizer,
    }  # fmt: skip


def sampling_of(config: RunConfig) -> Sampling:
    """Raises UserError for values that make no sense."""
    try:
        return Sampling(config.decode.temperature, config.decode.top_p, config.decode.top_k)
    except ValueError as error:
        raise UserError(f"decode.{error}") from error


def network_of(config: RunConfig) -> FilterNetwork:
    return FilterNetwork(config.decode.block_length, config.filter.hidden)


# ---- the stages


def stage_record(config: RunConfig, output: Path) -> dict[str, Any] | None:
    """Reference and oracle trajectory of every train and validation prompt -> output_dir/records."""
    model, decoding = model_of(config), config.decode
    prompts = [prompt for prompt in prompts_of(config) if prompt.split != "test"]
    check_prompts(model, prompts, decoding.gen_length)
    folder = output / "records"
    described = manifest(model, prompts, decoding.gen_length, decoding.block_length, config.record.shard_prompts, config.seed, as_dict(config))
    open_recording(folder, described)
    figures = record(
        model, prompts, folder, gen_length=decoding.gen_length, block_length=decoding.block_length,
        batch_size=decoding.batch_size, shard_prompts=config.record.shard_prompts,
    )  # fmt: skip
    rows, references, _ = load_recording(folder)
    if "record" in read_metrics(output) and not figures["prompts_recorded_now"]:
        return None
    return figures | {
        "prompts": len(references),
        "rows": len(rows),
        "reference_forwards_mean": float(sum(references["forwards"]) / len(references)),
        "oracle_forwards_mean": float(sum(references["oracle_forwards"]) / len(references)),
    }


def stage_train(config: RunConfig, output: Path) -> dict[str, Any] | None:
    """Train the filter on the recording -> output_dir/train."""
    if "train" in read_metrics(output):
        log.info("already trained: %s", output / "train")
        return None
    rows, _, _ = load_recording(output / "records")
    train, validation = filter_rows(rows, "train"), filter_rows(rows, "validation")
    options, network = config.filter, network_of(config)
    figures = train_filter(
        network, FilterData(train, validation, options.batch_rows, config.seed), output / "train",
        learning_rate=options.learning_rate, weight_decay=options.weight_decay, loss_on=options.loss_on,
        max_epochs=options.max_epochs, patience_epochs=options.patience_epochs,
    )  # fmt: skip
    return figures | {"train_rows": len(train.label), "validation_rows": len(validation.label)}


def stage_calibrate(config: RunConfig, output: Path) -> dict[str, Any]:
    """Choose the threshold and export -> output_dir/policy, plots/reliability.png."""
    checkpoint = output / "train" / "best.safetensors"
    if "train" not in read_metrics(output) or not checkpoint.is_file():
        raise UserError(f"{checkpoint.parent}: no finished training; run the stage 'train' first")
    rows, references, recorded = load_recording(output / "records")
    network = network_of(config)
    state = SafetensorsCheckpointIO().load_checkpoint(checkpoint)["state_dict"]
    network.load_state_dict({name.removeprefix("network."): tensor for name, tensor in state.items()})
    states = filter_rows(rows, "validation")
    states = states._replace(masked=states.masked & answer_positions(rows, references, "validation"))
    probability, label = probabilities(network, states)
    target = config.calibrate.target_agreement
    chosen = calibrate(probability, label, target)
    if not chosen.met:
        log.warning("no threshold reaches calibrate.target_agreement=%g on validation prompts; the strictest reaches %.4f", target, chosen.agreement)
    figures = {
        "target_agreement": target,
        "target_met": chosen.met,
        "threshold": chosen.threshold,
        "agreement": chosen.agreement,
        "accepted": chosen.accepted,
        "masked_positions": len(label),
        **metrics_at(probability, label, chosen.threshold),
    }
    contract = PolicyContract(
        block_length=recorded["block_length"],
        alignment=recorded["alignment"],
        mask_id=recorded["mask_id"],
        vocab_size=recorded["vocab_size"],
        confidence=recorded["confidence"],
        model=recorded["model"],
        model_fingerprint=recorded["model_fingerprint"],
    )
    save_policy(TrainedFilter(network, chosen.threshold, contract, figures), output / "policy")
    bins = report.reliability(probability.numpy(), label.numpy())
    (output / "plots").mkdir(exist_ok=True)
    report.plot_reliability(bins, chosen.threshold, output / "plots" / "reliability.png")
    return figures | {"reliability": bins, "curve": chosen.curve}


def stage_compare(config: RunConfig, output: Path) -> dict[str, Any]:
    """Every method and stop rule on the test prompts -> output_dir/compare.json, compare.md, plots."""
    if not config.compare.methods:
        raise UserError("compare.methods is empty: list at least one method with name and policy")
    model = model_of(config)
    prompts = [prompt for prompt in prompts_of(config) if prompt.split == "test"]
    check_prompts(model, prompts, config.decode.gen_length)
    outcomes = _compare_outcomes(config, output, model, prompts)
    rows = build_rows(outcomes, Bootstrap(config.compare.bootstrap_samples, config.seed))
    meta = {
        "model": model.spec.name,
        "model_fingerprint": model.spec.fingerprint,
        "prompts": len(prompts),
        "prompts_digest": prompts_digest(prompts),
        "seed": config.seed,
        "gen_length": config.decode.gen_length,
        "block_length": config.decode.block_length,
        "batch_size": config.decode.batch_size,
        "bootstrap_samples": config.compare.bootstrap_samples,
        "device": str(model.adapter.device),
        "threads": torch.get_num_threads(),
        "dtype": config.model.dtype,
    }
    write_json(output / "compare.json", {"meta": meta, "rows": rows})
    table = report.markdown(rows, meta)
    (output / "compare.md").write_text(table)
    plots = output / "plots"
    plots.mkdir(exist_ok=True)
    report.plot_tradeoff(rows, plots / "tradeoff.png")
    _plot_one_answer(model, outcomes, plots / "commit_steps.png")
    overall = "\n".join(line for line in table.splitlines() if line.startswith(("| all", "| task", "|---")))
    log.info("comparison over all tasks:\n%s\nwhole table: %s", overall, output / "compare.md")
    return {"rows": len(rows), "prompts": len(prompts)}


def expand_sweeps(methods: list[MethodConfig]) -> list[tuple[str, MethodConfig]]:
    """Every method with the family it belongs to; one with a sweep becomes a method a value.

    Raises:
        UserError: a sweep that is not one option with a list of values.
    """
    found = []
    for method in methods:
        if not method.sweep:
            found.append((method.name, method))
            continue
        if len(method.sweep) != 1 or not isinstance(next(iter(method.sweep.values())), list):
            raise UserError(
                f"compare.methods: sweep={method.sweep!r} of {method.name!r}: expected one option with a list, as {{threshold: [0.8, 0.9]}}"
            )
        ((option, values),) = method.sweep.items()
        for value in values:
            chosen = dataclasses.replace(method, name=f"{method.name} {value}", options=method.options | {option: value}, sweep={})
            found.append((method.name, chosen))
    return found


def _compare_outcomes(config: RunConfig, output: Path, model: Model, prompts: list[Prompt]) -> list[Outcome]:
    decoding, checkers = config.decode, build_checkers(config.data.run_generated_code)
    groups = group_by_task(prompts)
    folder = Path(config.compare.policy) if config.compare.policy else output / "policy"
    references: dict[tuple[str, str], torch.Tensor] = {}  # by stop rule and task
    found: list[Outcome] = []
    combinations = [(stop, *method) for stop in config.compare.stops for method in expand_sweeps(config.compare.methods)]
    with tqdm(total=len(combinations) * len(prompts), desc="compare", unit="prompt", dynamic_ncols=True) as bar:
        for stop_name, family, method in combinations:
            parts = []
            for task, group in groups.items():
                if method.policy == "oracle" and (stop_name, task) not in references:
                    raise UserError("compare.methods: 'oracle' needs a method with policy 'fixed' before it, whose answers it knows")
                provided = provided_to(config, model, folder) | {"reference": references.get((stop_name, task))}
                components = {
                    "policy": build("policy", method.policy, method.options, provided),
                    "scheduler": build("scheduler", method.scheduler, method.scheduler_options, provided),
                    "cache": build("cache", method.cache, method.cache_options, provided),
                    "stop": build("stop", stop_name, {}, provided),
                }
                produce = functools.partial(
                    run_method, model, group, checkers, method=method.name, family=family, task=task, **components, progress=bar,
                    gen_length=decoding.gen_length, batch_size=decoding.batch_size, sampling=sampling_of(config), seed=config.seed,
                )  # fmt: skip
                slug = "-".join("".join(c if c.isalnum() else "_" for c in part) for part in (method.name, stop_name, task))
                before = bar.n
                outcome = cached(output / "compare" / f"{slug}.json", _outcome_key(model, group, method, folder, config, stop_name), produce)
                bar.update(len(group) - (bar.n - before))
                parts.append(outcome)
                if method.policy == "fixed":
                    references.setdefault((stop_name, task), torch.tensor(outcome.tokens))
            found += [*parts, merge(parts)]
    return found


def _outcome_key(model: Model, prompts: list[Prompt], method: MethodConfig, folder: Path, config: RunConfig, stop: str) -> str:
    """Everything an outcome depends on, hashed."""
    reads_folder = method.policy == "filter" and folder.is_dir()
    weights = (folder / "model.safetensors").read_bytes() + (folder / "policy.json").read_bytes() if reads_folder else b""
    parts = [model.spec.fingerprint, prompts_digest(prompts), dataclasses.asdict(method), as_dict(config)["decode"], config.seed, stop]
    return hashlib.sha256(json.dumps(parts).encode() + weights).hexdigest()


def _plot_one_answer(model: Model, outcomes: list[Outcome], path: Path) -> None:
    """The heat map for the prompt whose answer has the median length, under the first stop rule."""
    shown = [outcome for outcome in outcomes if outcome.task == "all" and outcome.stop == outcomes[0].stop]
    lengths = shown[0].lengths
    prompt = sorted(range(len(lengths)), key=lengths.__getitem__)[len(lengths) // 2]
    lines = []
    for outcome in shown:
        length = min(outcome.lengths[prompt] + 1, 64)
        texts = [model.tokenizer.decode([token]) for token in outcome.tokens[prompt][:length]]
        tokens = [text if text.isprintable() else ascii(text)[1:-1] for text in texts]
        lines.append((outcome.method, tokens, outcome.committed_at[prompt][:length]))
    report.plot_commit_steps(lines, "Forward at which each position of one answer was committed", path)


def stage_pretrain(config: RunConfig, output: Path) -> dict[str, Any]:
    """Train an embedded model, the dLLM or the verifier, and export it in the hub's layout."""
    from learn2pd.training.pretraining import PRETRAININGS  # heavy, and only who trains the embedded models needs it

    tasks = [build_task(name) for name in config.data.tasks]
    export, folder = Path(config.pretrain.export_path), output / "pretrain"
    figures = PRETRAININGS[config.pretrain.kind](config.pretrain, tasks, folder, export, config.seed)
    logs = sorted((folder / "logs").glob("*/metrics.csv"), key=lambda path: path.stat().st_mtime)
    report.plot_losses(logs, export / "loss.png")
    return figures


STAGE_FUNCTIONS = {
    "pretrain": stage_pretrain,
    "record": stage_record,
    "train": stage_train,
    "calibrate": stage_calibrate,
    "compare": stage_compare,
}
