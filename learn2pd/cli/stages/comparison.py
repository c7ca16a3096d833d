"""The stage `compare`: it decodes the test prompts with every method and stop rule, and writes tables and plots.

A run has one length of the canvas. For another length, run the stage again with another decode.gen_length and another
output_dir; the policies stay the same.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from learn2pd.cli.config import RunConfig
from learn2pd.cli.stages.comparison_outcomes import compare_outcomes
from learn2pd.cli.stages.components import checkers_of, model_of, usable_prompts
from learn2pd.data.prompts import prompts_digest
from learn2pd.evaluation import plots as report
from learn2pd.evaluation import tables
from learn2pd.evaluation.autoregressive import autoregressive_rows
from learn2pd.evaluation.compare import build_rows, measure, score_rows
from learn2pd.evaluation.curves import compare_families
from learn2pd.evaluation.outcomes import Outcome
from learn2pd.files import write_json
from learn2pd.models.loading import Model
from learn2pd.statistics.bootstrap import Bootstrap

log = logging.getLogger(__name__)


def stage_compare(config: RunConfig, output: Path) -> dict[str, Any]:
    """Compare all methods and stop rules on the test prompts.

    Outputs: compare.json, compare.md and plots in the output_dir.

    Args:
        config: the configuration.
        output: the output_dir of the run.

    Returns:
        The numbers of rows and of prompts.

    Raises:
        UserError: a method or a stop rule cannot be built.
    """
    model = model_of(config)
    prompts = [prompt for prompt in usable_prompts(config, model) if prompt.split == "test"]
    checkers = checkers_of(config, prompts)
    outcomes = compare_outcomes(config, output, model, prompts, checkers)
    bootstrap = Bootstrap(config.compare.bootstrap_samples, config.seed)
    fields = measure(outcomes, bootstrap)
    comparison: dict[str, Any] = {
        "meta": {
            "model": model.spec.name,
            "model_fingerprint": model.spec.fingerprint,
            "prompts": len(prompts),
            "prompts_digest": prompts_digest(prompts),
            "seed": config.seed,
            "gen_length": config.decode.gen_length,
            "block_length": config.decode.block_length,
            "batch_size": config.decode.rows_together,
            "bootstrap_samples": config.compare.bootstrap_samples,
            "accuracy_margin": config.compare.accuracy_margin,
            "device": str(model.adapter.device),
            "threads": torch.get_num_threads(),
            "dtype": config.model.dtype,
        },
        "rows": build_rows(fields),
        "scores": score_rows(outcomes, checkers, bootstrap),
        "autoregressive": autoregressive_rows(outcomes),
        **compare_families(fields, config.compare.accuracy_margin),
    }
    write_json(output / "compare.json", comparison)
    (output / "compare.md").write_text(tables.markdown(comparison), encoding="utf-8")
    plots = output / "plots"
    plots.mkdir(exist_ok=True)
    report.plot_tradeoff(comparison, plots / "tradeoff.png", config.compare.accuracy_margin)
    # With only one task, the rows of the task `all` are the same as those of that task.
    if len({row["task"] for row in comparison["rows"]}) > 2:
        report.plot_tradeoff(comparison, plots / "tradeoff_tasks.png", config.compare.accuracy_margin, by_task=True)
    if comparison["fastest"]:
        report.plot_fastest(comparison, plots / "fastest.png", config.compare.accuracy_margin)
    _plot_one_answer(model, outcomes, plots / "commit_steps.png")
    log.info("comparison over all tasks:\n%s\n\nall tables: %s", tables.summary(comparison), output / "compare.md")
    return {"rows": len(comparison["rows"]), "prompts": len(prompts)}


def _plot_one_answer(model: Model, outcomes: list[Outcome], path: Path) -> None:
    """Draw the heat map of the prompt whose answer has the median length, under the first stop rule."""
    shown = [
        outcome
        for outcome in outcomes
        if outcome.labels.task == "all"
        and outcome.labels.stop == outcomes[0].labels.stop
        and not outcome.labels.model  # its tokens may be those of another tokenizer
    ]
    prompt = int(shown[0].lengths.argsort(kind="stable")[len(shown[0].lengths) // 2])
    lines = []
    for outcome in shown:
        length = min(int(outcome.lengths[prompt]) + 1, 64)
        texts = list(map(model.token_text, outcome.tokens[prompt][:length].tolist()))
        tokens = [text if text.isprintable() else ascii(text)[1:-1] for text in texts]
        lines.append((outcome.labels.method, tokens, outcome.committed_at[prompt][:length].tolist()))
    report.plot_commit_steps(lines, "Forward at which each position of one answer was committed", path)
