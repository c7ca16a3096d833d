"""Every method and stop rule in one table.

Definitions (docs/glossary.md has them all): a *forward* is one model call a row took part in; *tokens per forward* counts answer tokens
before the first end-of-text, over all forwards; *agreement* is the share of the positions of the one-token-a-step answer under the same
stop rule, its end-of-text included, that hold the same token. Intervals are 95% percentile bootstraps over prompts (bootstrap.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learn2pd.data.tasks import Checker, ScoringChecker
from learn2pd.evaluation.outcomes import Labels, Outcome
from learn2pd.statistics.bootstrap import Bootstrap, Values, interval, point


@dataclass(frozen=True, eq=False)
class Measured:
    """An outcome with its statistics."""

    outcome: Outcome
    accuracy: Values | None  # None where nothing judges
    agreement: Values | None  # None without a one-token-a-step decode
    forwards: Values  # a prompt
    tokens_per_forward: Values

    @property
    def labels(self) -> Labels:
        return self.outcome.labels

    @property
    def kind(self) -> str:
        """`oracle`, `learned` or `training-free`."""
        return self.labels.kind

    @property
    def second_model(self) -> bool:
        """Whether another model's forwards went into it."""
        return bool(self.outcome.auxiliary_forwards.any())


def first_marked(mark: str, field: Sequence[Measured]) -> Measured | None:
    """The first method of a field that has a mark: `reference`, `baseline` or `oracle`."""
    return next((entry for entry in field if entry.labels.mark == mark), None)


def agreement(tokens: NDArray[Any], reference: NDArray[Any], reference_lengths: NDArray[Any]) -> NDArray[np.float64]:
    """[N] of tokens and reference [N, G] and the reference's answer lengths [N]."""
    counted = np.arange(reference.shape[1]) <= reference_lengths[:, None]  # one more: the end-of-text
    share: NDArray[np.float64] = ((tokens == reference) & counted).sum(1) / counted.sum(1)
    return share


def measure(outcomes: Sequence[Outcome], bootstrap: Bootstrap) -> list[list[Measured]]:
    """The statistics of every outcome, in *fields*: the methods that compare with each other, under one stop rule and on one task.

    Agreement is with the first `fixed` method of the field.
    """
    fields: dict[tuple[str, str], list[Outcome]] = {}
    for outcome in outcomes:
        fields.setdefault((outcome.labels.stop, outcome.labels.task), []).append(outcome)
    return [_measured(field, bootstrap) for field in fields.values()]


def _measured(field: Sequence[Outcome], bootstrap: Bootstrap) -> list[Measured]:
    reference = next((outcome for outcome in field if outcome.labels.mark == "reference"), None)
    columns = []
    for outcome in field:
        share = (
            np.zeros(len(outcome.lengths))
            if reference is None
            else agreement(outcome.tokens, reference.tokens, reference.lengths)
        )
        columns += [
            np.nan_to_num(outcome.correct),
            ~np.isnan(outcome.correct),
            share,
            outcome.lengths,
            outcome.forwards,
        ]
    sums = bootstrap.sums(np.stack(columns, axis=1))  # [1 + R, 5 a method]
    found = []
    for number, outcome in enumerate(field):
        correct, judged, agreed, tokens, forwards = sums[:, 5 * number : 5 * number + 5].T
        with np.errstate(invalid="ignore"):  # a resample may hold prompts that nothing judges only
            accuracy = correct / judged if judged[0] else None
        mean_agreement = None if reference is None else agreed / len(outcome.lengths)
        found.append(Measured(outcome, accuracy, mean_agreement, forwards / len(outcome.lengths), tokens / forwards))
    return found


def build_rows(fields: Sequence[Sequence[Measured]]) -> list[dict[str, Any]]:
    """The table: a row per method, stop rule and task.

    Agreement and speedups compare with the first `fixed` method under the same stop rule, speedups with the suffix `_threshold` with the
    first `threshold` method under the same stop rule; they are null where the comparison lacks that method,
    and the ratio of tokens per forward where that method's answers are empty. `cut_short` counts answers against the same method's under the
    stop rule `none`, null where that is not in the comparison.
    """
    whole = {
        (entry.labels.method, entry.labels.task): entry.outcome
        for field in fields
        for entry in field
        if entry.labels.stop == "none"
    }
    return [
        _row(entry, first_marked("reference", field), first_marked("baseline", field))
        | {"cut_short": _cut_short(entry, whole)}
        for field in fields
        for entry in field
    ]


def cut_short(
    tokens: NDArray[Any], lengths: NDArray[Any], whole: NDArray[Any], whole_lengths: NDArray[Any]
) -> NDArray[np.bool_]:
    """[N]: answers (tokens [N, G], lengths [N]) that are the beginning of a longer whole one."""
    behind = np.arange(tokens.shape[1]) >= lengths[:, None]
    shortened: NDArray[np.bool_] = ((tokens == whole) | behind).all(1) & (lengths < whole_lengths)
    return shortened


def _cut_short(entry: Measured, whole: dict[tuple[str, str], Outcome]) -> int | None:
    other = whole.get((entry.labels.method, entry.labels.task))
    if other is None:
        return None
    return int(cut_short(entry.outcome.tokens, entry.outcome.lengths, other.tokens, other.lengths).sum())


def _row(entry: Measured, fixed: Measured | None, threshold: Measured | None) -> dict[str, Any]:
    outcome = entry.outcome
    row = asdict(entry.labels) | {"second_model": entry.second_model, "prompts": len(outcome.lengths)}
    row |= _described("accuracy", entry.accuracy) | _described("agreement", entry.agreement)
    row |= {
        "forwards_mean": point(entry.forwards),
        "forwards_interval": interval(entry.forwards),
        "columns_per_forward": float(outcome.columns.sum() / outcome.forwards.sum()),
        "revoked_mean": float(outcome.revoked.mean()),
        "edited_mean": float(outcome.edited.mean()),
        "auxiliary_forwards_mean": float(outcome.auxiliary_forwards.mean()),
        "failed": int(outcome.failed.sum()),
        "answer_tokens_mean": float(outcome.lengths.mean()),
    }
    row |= _described("tokens_per_forward", entry.tokens_per_forward) | {
        "tokens_per_second": float(outcome.lengths.sum() / outcome.wall_s),
        "wall_seconds": outcome.wall_s,
        "model_seconds": outcome.model_s,
    }
    for suffix, base in (("", fixed), ("_threshold", threshold)):
        row[f"speedup_forwards{suffix}"] = float(base.forwards[0] / entry.forwards[0]) if base else None
        row[f"speedup_wall{suffix}"] = base.outcome.wall_s / outcome.wall_s if base else None
    with np.errstate(divide="ignore", invalid="ignore"):  # a resample may hold empty answers only
        compared = entry.tokens_per_forward / threshold.tokens_per_forward if threshold else None
    return row | _described("tokens_per_forward_ratio_threshold", compared)


def score_rows(
    outcomes: Sequence[Outcome], checkers: Mapping[str, Checker], bootstrap: Bootstrap
) -> list[dict[str, Any]]:
    """The scores of every outcome whose checker has some: a row per method, stop rule and task, each score with its interval.

    Args:
        outcomes: of all methods and tasks.
        checkers: by the name of the task.
        bootstrap: its resamples are those of the table of methods.
    """
    rows = []
    for outcome in outcomes:
        checker = checkers.get(outcome.labels.task)
        if not isinstance(checker, ScoringChecker) or not outcome.counts or not all(outcome.counts):
            continue
        names = list(outcome.counts[0])
        sums = bootstrap.sums(np.array([[counts[name] for name in names] for counts in outcome.counts]))
        totals = dict(zip(names, sums.T, strict=True))
        scores = checker.shares(totals, len(outcome.counts))
        rows.append(
            asdict(outcome.labels) | {"prompts": len(outcome.counts), "scores": list(scores)} | _all_described(scores)
        )
    return rows


def _all_described(scores: Mapping[str, Values]) -> dict[str, Any]:
    described: dict[str, Any] = {}
    for name, values in scores.items():
        described |= _described(name, values)
    return described


def _described(name: str, values: Values | None) -> dict[str, Any]:
    return {
        name: None if values is None else point(values),
        f"{name}_interval": None if values is None else interval(values),
    }
