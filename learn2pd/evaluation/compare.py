"""Decode the same prompts with every method and stop rule, judge the answers, and put all in one table.

Definitions (docs/glossary.md has them all): a *forward* is one model call a row took part in; *tokens per forward* counts answer tokens
before the first end-of-text, over all forwards; *agreement* is the share of the positions of the one-token-a-step answer under the same
stop rule, its end-of-text included, that hold the same token. Intervals are 95% percentile bootstraps over prompts, the same resamples for
every method.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from learn2pd.decoding.api import decode
from learn2pd.decoding.caches import Cache
from learn2pd.decoding.proposals import Sampling
from learn2pd.decoding.schedulers import Scheduler
from learn2pd.decoding.stops import StopRule
from learn2pd.evaluation.tasks import Checker
from learn2pd.models.loading import Model
from learn2pd.policies.base import Policy
from learn2pd.prompts import Prompt
from learn2pd.types import DecodeResult

PER_PROMPT = ("tokens", "lengths", "forwards", "auxiliary_forwards", "failed", "committed_at")  # what an outcome takes from a decode result


@dataclass(frozen=True)
class Outcome:
    """One method, stop rule and task: a value a prompt."""

    method: str
    family: str  # methods that differ in the value of one option only share it
    scheduler: str
    policy: str
    cache: str
    stop: str
    task: str
    correct: list[bool | None]  # None where nothing can judge
    reasons: list[str]
    tokens: list[list[int]]
    lengths: list[int]
    forwards: list[int]
    auxiliary_forwards: list[int]
    failed: list[bool]
    committed_at: list[list[int]]
    wall_s: float
    model_s: float


def group_by_task(prompts: Sequence[Prompt]) -> dict[str, list[Prompt]]:
    """Prompts by the task that judges them, `prompts` where none does."""
    groups: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        groups.setdefault(prompt.task or "prompts", []).append(prompt)
    return groups


def run_method(
    model: Model,
    prompts: Sequence[Prompt],
    checkers: Mapping[str, Checker],
    *,
    method: str,
    family: str,
    task: str,
    policy: Policy,
    scheduler: Scheduler,
    cache: Cache,
    stop: StopRule,
    gen_length: int,
    batch_size: int,
    sampling: Sampling,
    seed: int,
    progress: tqdm[Any] | None = None,
) -> Outcome:
    """Decode the prompts of one task and judge them; the checking is not part of the wall time."""
    result = decode(
        model, [prompt.text for prompt in prompts], policy=policy, scheduler=scheduler, cache=cache, stop=stop, gen_length=gen_length,
        batch_size=batch_size, sampling=sampling, seed=seed, progress=progress.update if progress is not None else None,
    )  # fmt: skip
    verdicts = [checkers[prompt.task].check(prompt.facts, text) if prompt.task else None for prompt, text in zip(prompts, result.texts, strict=True)]
    return Outcome(
        method=method,
        family=family,
        scheduler=scheduler.name,
        policy=policy.name,
        cache=cache.name,
        stop=stop.name,
        task=task,
        correct=[verdict.correct if verdict else None for verdict in verdicts],
        reasons=[verdict.reason if verdict else "" for verdict in verdicts],
        **_plain(result),
    )


def _plain(result: DecodeResult) -> dict[str, Any]:
    lists = {name: getattr(result, name).tolist() for name in PER_PROMPT}
    return lists | {"wall_s": result.wall_s, "model_s": result.model_s}


def cached(path: Path, key: str, produce: Any) -> Outcome:
    """An outcome from an interrupted comparison where `key` (what it depends on) is the same, else a new one, saved."""
    if path.is_file():
        try:
            stored = json.loads(path.read_text())
            if stored["key"] == key:
                return Outcome(**stored["outcome"])
        except (ValueError, KeyError, TypeError):
            pass  # half written or of another version: produced again
    outcome: Outcome = produce()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps({"key": key, "outcome": asdict(outcome)}))
    os.replace(partial, path)
    return outcome


def merge(outcomes: Sequence[Outcome]) -> Outcome:
    """The outcomes of one method and stop rule over all tasks, as task `all`."""
    first = asdict(outcomes[0])
    for name in ("correct", "reasons", *PER_PROMPT):
        first[name] = [entry for outcome in outcomes for entry in getattr(outcome, name)]
    first |= {"task": "all", "wall_s": sum(outcome.wall_s for outcome in outcomes), "model_s": sum(outcome.model_s for outcome in outcomes)}
    return Outcome(**first)


def agreement(tokens: Tensor, reference: Tensor, reference_lengths: Tensor) -> Tensor:
    """[N] float64 of tokens and reference [N, G] and the reference's answer lengths [N]."""
    counted = torch.arange(reference.shape[1]) <= reference_lengths[:, None]  # one more: the end-of-text
    return ((tokens == reference) & counted).sum(1).double() / counted.sum(1)


class Bootstrap:
    """95% percentile intervals over prompts; the same resamples for every statistic of as many prompts."""

    def __init__(self, samples: int, seed: int) -> None:
        self.samples, self.seed = samples, seed

    def interval(self, statistic: Any, *columns: np.ndarray[Any, Any]) -> list[float]:
        """Args: statistic, a function of the columns [..., N] that reduces the last axis."""
        count = len(columns[0])
        places = np.random.default_rng(self.seed).integers(0, count, (self.samples, count))
        values = statistic(*(column[places] for column in columns))
        return [round(float(edge), 4) for edge in np.quantile(values, (0.025, 0.975))]


def mean(values: np.ndarray[Any, Any]) -> Any:
    return values.mean(-1)


def ratio(upper: np.ndarray[Any, Any], lower: np.ndarray[Any, Any]) -> Any:
    return upper.sum(-1) / lower.sum(-1)


def build_rows(outcomes: Sequence[Outcome], bootstrap: Bootstrap) -> list[dict[str, Any]]:
    """The table: a row per method, stop rule and task.

    Agreement and speedups compare with the first `fixed` method under the same stop rule, speedups with the suffix `_threshold` with the
    first `threshold` method under the same stop rule; they are null where the comparison lacks that method,
    and the ratio of tokens per forward where that method's answers are empty.
    """
    rows = []
    for outcome in outcomes:
        same = [other for other in outcomes if (other.task, other.stop) == (outcome.task, outcome.stop)]
        fixed = next((other for other in same if other.policy == "fixed"), None)
        threshold = next((other for other in same if other.policy == "threshold"), None)
        rows.append(_row(outcome, fixed, threshold, bootstrap))
    return rows


def _row(outcome: Outcome, fixed: Outcome | None, threshold: Outcome | None, bootstrap: Bootstrap) -> dict[str, Any]:
    lengths, forwards = np.array(outcome.lengths, float), np.array(outcome.forwards, float)
    judged = np.array([correct for correct in outcome.correct if correct is not None], float)
    row: dict[str, Any] = {name: getattr(outcome, name) for name in ("method", "family", "scheduler", "policy", "cache", "stop", "task")} | {
        "prompts": len(lengths)
    }
    row["accuracy"] = float(judged.mean()) if len(judged) else None
    row["accuracy_interval"] = bootstrap.interval(mean, judged) if len(judged) else None
    row["agreement"] = row["agreement_interval"] = None
    if fixed is not None:
        share = agreement(torch.tensor(outcome.tokens), torch.tensor(fixed.tokens), torch.tensor(fixed.lengths)).numpy()
        row["agreement"], row["agreement_interval"] = float(share.mean()), bootstrap.interval(mean, share)
    row |= {
        "forwards_mean": float(forwards.mean()),
        "forwards_interval": bootstrap.interval(mean, forwards),
        "auxiliary_forwards_mean": float(np.mean(outcome.auxiliary_forwards)),
        "failed": sum(outcome.failed),
        "answer_tokens_mean": float(lengths.mean()),
        "tokens_per_forward": float(ratio(lengths, forwards)),
        "tokens_per_forward_interval": bootstrap.interval(ratio, lengths, forwards),
        "tokens_per_second": float(lengths.sum() / outcome.wall_s),
        "wall_seconds": outcome.wall_s,
        "model_seconds": outcome.model_s,
    }
    for suffix, base in (("", fixed), ("_threshold", threshold)):
        row[f"speedup_forwards{suffix}"] = float(ratio(np.array(base.forwards, float), forwards)) if base else None
        row[f"speedup_wall{suffix}"] = base.wall_s / outcome.wall_s if base else None
    row["tokens_per_forward_ratio_threshold"] = row["tokens_per_forward_ratio_threshold_interval"] = None
    if threshold and sum(threshold.lengths):
        columns = (lengths, forwards, np.array(threshold.lengths, float), np.array(threshold.forwards, float))
        compared = lambda a, b, c, d: ratio(a, b) / ratio(c, d)  # noqa: E731
        row["tokens_per_forward_ratio_threshold"] = float(compared(*columns))
        with np.errstate(divide="ignore", invalid="ignore"):  # a resample may hold empty answers only
            interval = bootstrap.interval(compared, *columns)
        row["tokens_per_forward_ratio_threshold_interval"] = interval if np.isfinite(interval).all() else None
    return row
