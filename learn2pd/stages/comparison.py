"""Compare: every method and stop rule on the test prompts, in one table and three plots."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from learn2pd.config import MethodConfig, RunConfig, as_dict
from learn2pd.errors import UserError
from learn2pd.evaluation import report
from learn2pd.evaluation.compare import Bootstrap, Outcome, build_rows, cached, group_by_task, merge, run_method
from learn2pd.evaluation.tasks import build_checkers
from learn2pd.models.loading import Model
from learn2pd.prompts import Prompt, prompts_digest
from learn2pd.registry import build
from learn2pd.stages.output import write_json
from learn2pd.stages.parts import check_prompts, components_of, model_of, prompts_of, sampling_of

log = logging.getLogger(__name__)


def stage_compare(config: RunConfig, output: Path) -> dict[str, Any]:
    """Every method and stop rule on the test prompts -> output_dir/compare.json, compare.md, plots."""
    if not config.compare.methods:
        raise UserError("compare.methods is empty: list at least one method with name and policy")
    if not config.compare.stops:
        raise UserError("compare.stops is empty: list at least one stop rule, such as eot")
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
        UserError: a sweep that is not one option with a list of values, or two methods of one name.
    """
    found = []
    for method in methods:
        if not method.sweep:
            found.append((method.name, method))
            continue
        values = next(iter(method.sweep.values()))
        if len(method.sweep) != 1 or not isinstance(values, list) or not values:
            raise UserError(f"compare.methods: sweep={method.sweep!r} of {method.name!r}: expected one option with a list of values")
        (option,) = method.sweep
        for value in values:
            chosen = dataclasses.replace(method, name=f"{method.name} {value}", options=method.options | {option: value}, sweep={})
            found.append((method.name, chosen))
    names = [method.name for _, method in found]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UserError(f"compare.methods: two methods are called {twice[0]!r}: give each a name of its own")
    return found


def _compare_outcomes(config: RunConfig, output: Path, model: Model, prompts: list[Prompt]) -> list[Outcome]:
    decoding, checkers = config.decode, build_checkers(config.data.run_generated_code)
    groups = group_by_task(prompts)
    folder = Path(config.compare.policy) if config.compare.policy else output / "policy"
    methods = expand_sweeps(config.compare.methods)
    if any(method.policy == "oracle" for _, method in methods) and methods[0][1].policy != "fixed":
        raise UserError("compare.methods: 'oracle' needs a method with policy 'fixed' at the head of the list, whose answers it knows")
    runs = [  # all of them built before the first one runs: a mistake in the last line must not cost an hour
        (stop, family, method, components_of(config, model, folder, method, stop)) for stop in config.compare.stops for family, method in methods
    ]
    references: dict[tuple[str, str], torch.Tensor] = {}  # by stop rule and task
    found: list[Outcome] = []
    with tqdm(total=len(runs) * len(prompts), desc="compare", unit="prompt", dynamic_ncols=True) as bar:
        for stop, family, method, components in runs:
            parts = []
            for task, group in groups.items():
                if method.policy == "oracle":
                    components = components | {"policy": build("policy", "oracle", method.options, {"reference": references[stop, task]})}
                produce = functools.partial(
                    run_method, model, group, checkers, method=method.name, family=family, task=task, **components, progress=bar,
                    gen_length=decoding.gen_length, batch_size=decoding.batch_size, sampling=sampling_of(config), seed=config.seed,
                )  # fmt: skip
                slug = "-".join("".join(c if c.isalnum() else "_" for c in part) for part in (method.name, stop, task))
                before = bar.n
                outcome = cached(output / "compare" / f"{slug[:150]}.json", _outcome_key(model, group, method, folder, config, stop), produce)
                bar.update(len(group) - (bar.n - before))
                parts.append(outcome)
                if method.policy == "fixed":
                    references.setdefault((stop, task), torch.tensor(outcome.tokens))
            found += [*parts, merge(parts)]
    return found


def _outcome_key(model: Model, prompts: list[Prompt], method: MethodConfig, folder: Path, config: RunConfig, stop: str) -> str:
    """Everything an outcome depends on, hashed."""
    folders = [folder] if method.policy == "filter" else []
    folders += [Path(value) for value in method.options.values() if isinstance(value, str)]  # of a verifier, or of another filter
    parts = [model.spec.fingerprint, prompts_digest(prompts), dataclasses.asdict(method), as_dict(config)["decode"], config.seed, stop]
    digest = hashlib.sha256(json.dumps(parts).encode())
    for path in (path for kept in folders for pattern in ("*.safetensors", "policy.json") for path in sorted(kept.glob(pattern))):
        digest.update(path.read_bytes())
    return digest.hexdigest()


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
