"""The report page of a run: it is made from the files in the output_dir, at any time, also of an interrupted run.

Replays are the only part of the page that decodes. The last stage of a command that records, trains or compares leaves
them in replays.json.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError

from learn2pd import __version__
from learn2pd.cli.config import RunConfig
from learn2pd.cli.stages.comparison_methods import expand_sweeps, policy_folder
from learn2pd.cli.stages.components import given_of, method_of, model_of, sampling_of, usable_prompts
from learn2pd.cli.stages.run_folder import METRICS_FILE, REPLAY_FILE, REPORT_FILE, RUN_FILE, read_metrics
from learn2pd.cli.stages.training import contract_of, load_trained
from learn2pd.data.prompts import Prompt
from learn2pd.errors import UserError
from learn2pd.evaluation.outcomes import group_by_task
from learn2pd.evaluation.page import RunData, page
from learn2pd.evaluation.replay import replay
from learn2pd.files import read_json, write_json
from learn2pd.method import Method
from learn2pd.models.loading import Model
from learn2pd.policies.fixed import FixedPolicy
from learn2pd.policies.oracle import OraclePolicy
from learn2pd.predictors.filter import FilterPolicy, load_policy
from learn2pd.predictors.saving import Predictor
from learn2pd.progress import progress_bar
from learn2pd.recording.reading import Recording
from learn2pd.roles import Policy
from learn2pd.schedulers.blocks import blocks_for
from learn2pd.stops.eot import EotStop

log = logging.getLogger(__name__)
ONE_A_STEP = "one token a step"
Methods = dict[str, Method]
DAMAGES = (LookupError, TypeError, AttributeError, ValueError, ArithmeticError, TemplateError)  # from wrong figures


def write_report(output: Path) -> Path:
    """Write the report page of a run from its files.

    Args:
        output: the output_dir of the run.

    Returns:
        The file of the page.

    Raises:
        UserError: the folder holds no run, its files are damaged or of another version, or the page cannot be written.
    """
    described = read_json(output / RUN_FILE)
    if described is None or "name" not in described:
        state = "is damaged" if (output / RUN_FILE).exists() else "does not exist, so there is no run to report"
        raise UserError(f"{output / RUN_FILE} {state}: give config=NAME or output_dir=FOLDER of a run")
    metrics = read_metrics(output)
    comparison = read_json(output / "compare.json") or {}
    replays = (read_json(output / REPLAY_FILE) or {}).get("replays", [])
    missing = _missing(output, metrics, comparison, replays)
    html = _page_of(output, RunData(described["name"], __version__, described, metrics, comparison, replays, missing))
    target = output / REPORT_FILE
    try:
        target.write_text(html, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error.strerror})") from error
    return target


def _page_of(output: Path, run: RunData) -> str:
    """Return the page. A file whose figures the page cannot show is named."""
    try:
        return page(run)
    except DAMAGES as error:
        bare = replace(run, metrics={}, comparison={}, replays=())
        parts = {
            RUN_FILE: bare,
            METRICS_FILE: replace(bare, metrics=run.metrics),
            "compare.json": replace(bare, comparison=run.comparison),
            REPLAY_FILE: replace(bare, replays=run.replays),
        }
        damaged = next((file for file, part in parts.items() if not _can_be_shown(part)), RUN_FILE)
        raise UserError(
            f"{output / damaged} is damaged or of another version of learn2pd ({type(error).__name__}: {error}): "
            "delete it and run its stages again"
        ) from error


def _can_be_shown(run: RunData) -> bool:
    try:
        page(run)
    except DAMAGES:
        return False
    return True


def _missing(
    output: Path, metrics: Mapping[str, Any], comparison: Mapping[str, Any], replays: Sequence[Any]
) -> list[str]:
    """Word what the run has not made, or has begun only."""
    missing = []
    if "record" not in metrics and (output / "records").exists():
        shards = len(list((output / "records").glob("shard-*.json")))
        missing.append(
            f"The stage record is not finished; {shards} shards are recorded and kept. "
            "learn2pd record goes on where it stopped."
        )
    if "record" in metrics and "train" not in metrics:
        rounds = len(list((output / "train").glob("round-*/done.json")))
        missing.append(f"The stage train is not finished; {rounds} rounds are trained and kept.")
    if "train" in metrics and "calibrate" not in metrics:
        missing.append("The stage calibrate is not finished, so there is no policy with a threshold yet.")
    if not comparison:
        damaged = (output / "compare.json").exists()
        kept = len(list((output / "compare").glob("*.safetensors")))
        state = "compare.json is damaged; the stage compare writes it anew" if damaged else "There is no comparison"
        missing.append(f"{state}, so there is no curve and no table; {kept} decoded outcomes are kept.")
    if not replays:
        missing.append("There is no replay; the last stage of a command that records, trains or compares makes it.")
    return missing


def write_replays(config: RunConfig, output: Path, stage: str) -> None:
    """Decode one prompt of each task with a few methods and keep every step in replays.json.

    Args:
        config: the configuration.
        output: the output_dir of the run.
        stage: the stage that has finished.
    """
    model = model_of(config)
    split = {"record": "train", "compare": "test"}.get(stage, "validation")
    prompts = [prompt for prompt in usable_prompts(config, model) if prompt.split == split]
    groups = group_by_task(prompts)
    names = _compared(config, output) if stage == "compare" else []
    methods = (
        _methods_of_comparison(config, model, output, names)
        if stage == "compare"
        else _methods_of_training(config, model, output, stage)
    )
    pair = _pair(len(methods), stage == "compare")
    replays = []
    with progress_bar(len(groups), "replay", "task") as bar:
        for group in groups.values():
            prompt = _typical(model, group)
            kept = replay(
                model,
                prompt,
                methods,
                gen_length=config.decode.gen_length,
                sampling=sampling_of(config),
                seed=config.seed,
                given=given_of(config, 1),
            )
            replays.append(kept | {"pair": pair})
            bar.update()
    write_json(output / REPLAY_FILE, {"stage": stage, "replays": replays})


def _typical(model: Model, prompts: Sequence[Prompt]) -> Prompt:
    """Return the prompt whose number of tokens is the median."""
    return sorted(prompts, key=lambda prompt: len(model.encode(prompt.content)))[len(prompts) // 2]


def _pair(methods: int, compared: bool) -> list[int]:
    """Return the numbers of the two methods that the page shows first: of a comparison, the rule and the policy."""
    return [min(1, methods - 1), min(2, methods - 1)] if compared else [0, methods - 1]


def _methods_of_training(config: RunConfig, model: Model, output: Path, stage: str) -> Methods:
    """Return one token a step, and the oracle of the recording or the newest filter."""
    second: Policy
    if stage == "record":
        name, second = "oracle", OraclePolicy(torch.zeros(1, config.decode.gen_length, dtype=torch.long))
    elif stage == "train":
        recording = Recording.load(output / "records")
        network = load_trained(config, output, "filter", recording.description).network
        threshold = config.train.rollout_threshold
        second = FilterPolicy(Predictor("filter", network, threshold, contract_of(recording.description, network)))
        name = f"filter of round {config.train.rounds} at {threshold:g}"
    else:
        second = load_policy(output / ("policy" if stage == "calibrate" else "reinforced"))
        name = f"{stage}d filter at {second.threshold:g}"
    blocks = blocks_for(model.spec, config.decode.block_length)
    stop = EotStop(config.decode.stop_floor)
    return {ONE_A_STEP: Method(FixedPolicy(), blocks, stop=stop), name: Method(second, blocks, stop=stop)}


def _compared(config: RunConfig, output: Path) -> list[str]:
    """Return the names of the methods whose replays tell most.

    They are one token a step, the best rule, the best trained policy, the fastest one that takes back, and the oracle.
    """
    comparison = read_json(output / "compare.json") or {"rows": [], "fastest": []}
    rows = [row for row in comparison["rows"] if row["task"] == "all" and row["stop"] == config.compare.stops[0]]
    within = {line["method"] for line in comparison["fastest"] if line["task"] == "all"} - {None}

    def fastest(candidates: list[dict[str, Any]]) -> list[str]:
        """Return the fastest of the candidates within the margin; without one, the most accurate candidate."""
        inside = [row for row in candidates if row["method"] in within]
        best = max(
            inside or candidates,
            key=lambda row: row["tokens_per_forward"] if inside else row["accuracy"] or row["agreement"] or 0,
            default=None,
        )
        return [] if best is None else [best["method"]]

    names = [row["method"] for row in rows if row["mark"] == "reference"][:1]
    names += fastest([row for row in rows if row["kind"] == "training-free" and row["mark"] != "reference"])
    names += fastest([row for row in rows if row["kind"] == "learned"])
    names += fastest([row for row in rows if row["revoked_mean"] > 0])
    names += [row["method"] for row in rows if row["mark"] == "oracle"][:1]
    return list(dict.fromkeys(names))


def _methods_of_comparison(config: RunConfig, model: Model, output: Path, names: Sequence[str]) -> Methods:
    """Build the methods of these names, under the first stop rule."""
    folder = policy_folder(config, output)
    described = {method.name: method for _, method in expand_sweeps(config.compare.methods)}
    return {name: method_of(config, model, folder, described[name], config.compare.stops[0]) for name in names}
