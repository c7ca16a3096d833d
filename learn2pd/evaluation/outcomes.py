"""What one method made of the prompts of one task: decoded, judged, and kept on disk so that an interrupted comparison goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from tqdm.auto import tqdm

from learn2pd.data.prompts import Prompt, encoded
from learn2pd.data.tasks import Checker
from learn2pd.decoding import decode
from learn2pd.method import Method
from learn2pd.models.loading import Model
from learn2pd.types import Sampling

DECODED = {  # what an outcome takes from a decode result: a value, or a canvas, a prompt
    "tokens": np.int32,
    "committed_at": np.int32,
    "lengths": np.int32,
    "forwards": np.int32,
    "columns": np.int64,
    "auxiliary_forwards": np.int32,
    "revoked": np.int32,
    "edited": np.int32,
    "failed": np.bool_,
}
ARRAYS = ("correct", *DECODED)


@dataclass(frozen=True)
class Labels:
    """Where an outcome belongs."""

    method: str
    family: str  # methods that differ in the value of one option only share it
    setting: str  # that value, "" where nothing was swept
    group: str | None  # families that differ in the seed of their training only share it
    scheduler: str
    policy: str
    cache: str
    stop: str
    task: str
    mark: str  # `reference`: one token a step; `baseline`: what speed-ups are also held against; `oracle`; or nothing
    kind: str  # `oracle` where the answer was known beforehand, `learned` where a component was trained, else `training-free`


@dataclass(frozen=True, eq=False)
class Outcome:
    """One method, stop rule and task, N prompts on a canvas of G."""

    labels: Labels
    correct: NDArray[np.float32]  # [N] 1 right, 0 wrong, NaN where nothing can judge
    reasons: list[str]
    tokens: NDArray[np.int32]  # [N, G]
    committed_at: NDArray[np.int32]  # [N, G] step of the commit, -1 where none
    lengths: NDArray[np.int32]  # [N] answer tokens
    forwards: NDArray[np.int32]  # [N]
    columns: NDArray[np.int64]  # [N] computed in those forwards
    auxiliary_forwards: NDArray[np.int32]  # [N]
    revoked: NDArray[np.int32]  # [N] commits that were taken back
    edited: NDArray[np.int32]  # [N] committed tokens that were overwritten
    failed: NDArray[np.bool_]  # [N]
    wall_s: float
    model_s: float
    counts: list[dict[str, int]] = field(
        default_factory=list
    )  # of the verdicts: how near each answer comes, where the checker says so


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
    labels: Labels,
    method: Method,
    *,
    gen_length: int,
    batch_size: int,
    sampling: Sampling,
    seed: int,
    progress: tqdm[Any] | None = None,
) -> Outcome:
    """Decode the prompts of one task and judge them; the checking is not part of the wall time."""
    result = decode(
        model, encoded(model, prompts), method, gen_length=gen_length,
        batch_size=batch_size, sampling=sampling, seed=seed, progress=progress.update if progress is not None else None,
    )  # fmt: skip
    verdicts = [
        checkers[prompt.task].check(prompt.facts, text) if prompt.task else None
        for prompt, text in zip(prompts, result.texts, strict=True)
    ]
    arrays: dict[str, Any] = {name: getattr(result, name).numpy().astype(kind) for name, kind in DECODED.items()}
    return Outcome(
        labels=labels,
        correct=np.array([verdict.correct if verdict else np.nan for verdict in verdicts], np.float32),
        reasons=[verdict.reason if verdict else "" for verdict in verdicts],
        counts=[verdict.counts if verdict else {} for verdict in verdicts],
        wall_s=result.wall_s,
        model_s=result.model_s,
        **arrays,
    )


def cached(path: Path, key: str, labels: Labels, produce: Callable[[], Outcome]) -> Outcome:
    """An outcome from an interrupted comparison where `key` (what it depends on) is the same, else a new one, saved.

    The names in `labels` are no part of it: a method may be renamed, or put into a group, without decoding it again.
    """
    try:
        with safe_open(path, "np") as stored:
            described = stored.metadata()
            if described["key"] == key:
                return Outcome(
                    labels=labels,
                    **json.loads(described["plain"]),
                    **{name: stored.get_tensor(name) for name in ARRAYS},
                )
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        pass  # not there, half written, or of another version: produced again
    outcome = produce()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    plain = {"reasons": outcome.reasons, "counts": outcome.counts, "wall_s": outcome.wall_s, "model_s": outcome.model_s}
    save_file({name: getattr(outcome, name) for name in ARRAYS}, partial, {"key": key, "plain": json.dumps(plain)})
    os.replace(partial, path)
    return outcome


def merge(outcomes: Sequence[Outcome]) -> Outcome:
    """The outcomes of one method and stop rule over all tasks, as task `all`."""
    arrays: dict[str, Any] = {name: np.concatenate([getattr(outcome, name) for outcome in outcomes]) for name in ARRAYS}
    return Outcome(
        labels=replace(outcomes[0].labels, task="all"),
        reasons=[reason for outcome in outcomes for reason in outcome.reasons],
        counts=[counts for outcome in outcomes for counts in outcome.counts],
        wall_s=sum(outcome.wall_s for outcome in outcomes),
        model_s=sum(outcome.model_s for outcome in outcomes),
        **arrays,
    )
