"""Outcomes: the prompts of one task, decoded with one method and judged.

Outcomes are kept on disk, so that an interrupted comparison can continue without decoding them again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from learn2pd.autoregressive.timing import Drafting, joined
from learn2pd.data.prompts import Prompt, encoded
from learn2pd.data.tasks import Checker
from learn2pd.decoding import decode
from learn2pd.files import whole_file
from learn2pd.method import Method
from learn2pd.models.loading import Model
from learn2pd.types import DecodeResult, Sampling

DECODED = {  # arrays that an outcome takes from a decode result, with a value or a canvas for each prompt
    "tokens": np.int32,
    "committed_at": np.int32,
    "lengths": np.int32,
    "forwards": np.int32,
    "columns": np.int64,
    "auxiliary_forwards": np.int32,
    "revoked": np.int32,
    "edited": np.int32,
    "flip_flops": np.int32,
    "failed": np.bool_,
}
ARRAYS = ("correct", *DECODED)
LIKELIHOODS = ("own_order", "joint", "counted")


@dataclass(frozen=True)
class Labels:
    """The place of an outcome in a comparison: its method, stop rule, task and groups."""

    method: str
    family: str  # shared by methods that differ only in the value of one option
    setting: str  # the value of that option, "" where no option was swept
    group: str | None  # shared by families that differ only in the seed of their training
    scheduler: str
    policy: str
    cache: str
    stop: str
    task: str
    # `reference` (one token a step), `baseline` (speedups are also computed against it), `oracle`, `target` (plain
    # decoding of an autoregressive model), or ""
    mark: str
    # `oracle` (it knows the answer beforehand), `learned` (a component was trained), `training-free`, or
    # `autoregressive`
    kind: str
    model: str = ""  # the autoregressive model that decodes, "" for the dLLM of the comparison


@dataclass(frozen=True, eq=False)
class Likelihood:
    """The log-likelihoods of N answers under the model, in nats (evaluation/likelihood.py)."""

    own_order: NDArray[np.float64]  # [N] one position at a time, in the order of the commits
    joint: NDArray[np.float64]  # [N] as the steps of the policy took them
    counted: NDArray[np.int64]  # [N] tokens that count


@dataclass(frozen=True, eq=False)
class Outcome:
    """The results of one method and stop rule on one task, for N prompts on a canvas of G positions."""

    labels: Labels
    correct: NDArray[np.float32]  # [N] 1 right, 0 wrong, NaN where no checker judges
    reasons: list[str]
    tokens: NDArray[np.int32]  # [N, G]
    committed_at: NDArray[np.int32]  # [N, G] step of the commit, -1 where the position was not committed
    lengths: NDArray[np.int32]  # [N] answer tokens
    forwards: NDArray[np.int32]  # [N]
    columns: NDArray[np.int64]  # [N] positions that were computed in those forwards
    auxiliary_forwards: NDArray[np.int32]  # [N] forwards of another model
    revoked: NDArray[np.int32]  # [N] commits that were taken back
    edited: NDArray[np.int32]  # [N] committed tokens that were overwritten
    flip_flops: NDArray[np.int32]  # [N] commits that wrote again what was last taken back there
    failed: NDArray[np.bool_]  # [N]
    wall_s: float
    model_s: float
    # how near each answer comes to the right one, where the checker counts that
    counts: list[dict[str, int]] = field(default_factory=list)
    drafting: Drafting | None = None  # what the draft of an autoregressive method did
    likelihood: Likelihood | None = None  # None where the comparison does not ask for it


def group_by_task(prompts: Sequence[Prompt]) -> dict[str, list[Prompt]]:
    """Group prompts by the task that judges them; prompts without a task form the group `prompts`."""
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
    given: Sequence[Any] | None = None,
    progress: Callable[[int], object] | None = None,
) -> Outcome:
    """Decode the prompts of one task and judge the answers.

    The time for judging is not part of the wall time.

    Args:
        model: the model that decodes.
        prompts: the prompts of the task.
        checkers: the checkers by the names of their tasks.
        labels: the labels of the outcome.
        method: the method, with its stop rule.
        gen_length: length of the canvas, in tokens.
        batch_size: rows that are decoded together.
        sampling: temperature and filters of the proposals.
        seed: seed of the sampling.
        given: the parts of the answers that stand from the start, as for `decode`.
        progress: a function that receives the number of prompts of each finished batch.

    Returns:
        The outcome.
    """
    result = decode(
        model,
        encoded(model, prompts),
        method,
        gen_length=gen_length,
        batch_size=batch_size,
        sampling=sampling,
        seed=seed,
        given=given,
        progress=progress,
    )
    return judged(result, prompts, checkers, labels)


def judged(
    result: DecodeResult, prompts: Sequence[Prompt], checkers: Mapping[str, Checker], labels: Labels, **more: Any
) -> Outcome:
    """Judge the answers of a decode.

    Args:
        result: the answers, in the order of the prompts.
        prompts: the prompts of the task.
        checkers: the checkers by the names of their tasks.
        labels: the labels of the outcome.
        **more: further fields of the outcome.

    Returns:
        The outcome.
    """
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
        **more,
    )


def cached(path: Path, key: str, labels: Labels, produce: Callable[[], Outcome]) -> Outcome:
    """Return an outcome from the disk where it is still valid, else a new one, which is saved.

    The names in `labels` are not part of the key: a method may be renamed, or put into a group, without being decoded
    again.

    Args:
        path: the outcome's file.
        key: a digest of everything that the outcome depends on. A stored outcome is valid if it has the same key.
        labels: the labels of the outcome.
        produce: decodes and judges the prompts.

    Returns:
        The outcome.
    """
    stored = _stored(path, key, ARRAYS)
    if stored is not None:
        values, arrays = stored
        drafting = values.pop("drafting")
        return Outcome(labels=labels, drafting=None if drafting is None else Drafting(**drafting), **values, **arrays)
    outcome = produce()
    plain: dict[str, Any] = {
        "reasons": outcome.reasons,
        "counts": outcome.counts,
        "wall_s": outcome.wall_s,
        "model_s": outcome.model_s,
        "drafting": None if outcome.drafting is None else asdict(outcome.drafting),
    }
    _store(path, key, plain, {name: getattr(outcome, name) for name in ARRAYS})
    return outcome


def cached_likelihood(path: Path, key: str, produce: Callable[[], Likelihood]) -> Likelihood:
    """Return the likelihoods of an outcome from the disk where they are still valid, else new ones, which are saved.

    Args:
        path: the file of the likelihoods.
        key: the key of their outcome.
        produce: computes them.

    Returns:
        The likelihoods.
    """
    stored = _stored(path, key, LIKELIHOODS)
    if stored is not None:
        return Likelihood(**stored[1])
    computed = produce()
    _store(path, key, {}, {name: getattr(computed, name) for name in LIKELIHOODS})
    return computed


def _stored(path: Path, key: str, names: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Return the plain values and the arrays of a file that has this key; None where there is no such file."""
    try:
        with safe_open(path, "np") as stored:
            described = stored.metadata()
            if described["key"] == key:
                return json.loads(described["plain"]), {name: stored.get_tensor(name) for name in names}
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        pass  # the file is missing, half written or of another version, so it is made again
    return None


def _store(path: Path, key: str, plain: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as partial:
        save_file(arrays, partial, {"key": key, "plain": json.dumps(plain)})


def merge(outcomes: Sequence[Outcome]) -> Outcome:
    """Join the outcomes of one method and stop rule over all tasks into one outcome of the task `all`."""
    arrays: dict[str, Any] = {name: np.concatenate([getattr(outcome, name) for outcome in outcomes]) for name in ARRAYS}
    parts = [outcome.likelihood for outcome in outcomes if outcome.likelihood is not None]
    likelihood = (
        Likelihood(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in LIKELIHOODS})
        if len(parts) == len(outcomes)
        else None
    )
    return Outcome(
        labels=replace(outcomes[0].labels, task="all"),
        reasons=[reason for outcome in outcomes for reason in outcome.reasons],
        counts=[counts for outcome in outcomes for counts in outcome.counts],
        wall_s=sum(outcome.wall_s for outcome in outcomes),
        model_s=sum(outcome.model_s for outcome in outcomes),
        drafting=joined([outcome.drafting for outcome in outcomes if outcome.drafting]),
        likelihood=likelihood,
        **arrays,
    )
