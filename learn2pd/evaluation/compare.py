"""The table of all methods and stop rules.

Definitions (docs/glossary.md has all of them): A *forward* is one call of the model that a row took part in. *Tokens
per forward* is the number of answer tokens before the first end-of-text, divided by the number of all forwards; a token
that was taken back and written again counts once. *Effective* tokens per forward also subtract every token that was
taken back or overwritten.
*Agreement* is the share of positions at which a method's answer holds the same token as the answer with one token a
step under the same stop rule; the positions are those of the latter answer, with its end-of-text. Intervals are 95%
percentile bootstraps over prompts (statistics/bootstrap.py).
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

COLUMNS = 9  # sums over the prompts that the statistics of a method are made of


@dataclass(frozen=True, eq=False)
class MethodStatistics:
    """An outcome of a method with its statistics, each [1 + R]."""

    outcome: Outcome
    accuracy: Values | None  # None where no checker judges the answers
    agreement: Values | None  # None where the field has no decode of one token a step
    forwards: Values  # mean over the prompts
    tokens_per_forward: Values
    effective_tokens_per_forward: Values  # each token that was taken back or overwritten is subtracted
    nats_per_token: Values | None  # None where the likelihood is not computed
    joint_commit_nats_per_token: Values | None

    @property
    def labels(self) -> Labels:
        """The labels of the outcome."""
        return self.outcome.labels

    @property
    def kind(self) -> str:
        """The kind of the method: `oracle`, `learned`, `training-free` or `autoregressive`."""
        return self.labels.kind

    @property
    def second_model(self) -> bool:
        """Whether the method also ran forwards of another model."""
        return bool(self.outcome.auxiliary_forwards.any())


def first_marked(mark: str, field: Sequence[MethodStatistics]) -> MethodStatistics | None:
    """Return the first method of a field that has a mark, or None where no method has it.

    Args:
        mark: `reference`, `baseline`, `oracle` or `target`.
        field: methods that are compared with each other.
    """
    return next((entry for entry in field if entry.labels.mark == mark), None)


def agreement(tokens: NDArray[Any], reference: NDArray[Any], reference_lengths: NDArray[Any]) -> NDArray[np.float64]:
    """Compute the agreement of answers with reference answers.

    Args:
        tokens: [N, G] tokens of the answers.
        reference: [N, G] tokens of the reference answers.
        reference_lengths: [N] numbers of answer tokens of the reference, without the end-of-text.

    Returns:
        [N] float, from 0 to 1.
    """
    counted = np.arange(reference.shape[1]) <= reference_lengths[:, None]  # <=: the end-of-text counts too
    share: NDArray[np.float64] = ((tokens == reference) & counted).sum(1) / counted.sum(1)
    return share


def measure(outcomes: Sequence[Outcome], bootstrap: Bootstrap) -> list[list[MethodStatistics]]:
    """Compute the statistics of every outcome.

    A *field* is a list of methods that are compared with each other: they have the same stop rule and the same task.
    Agreement is measured against the first method of a field that is marked as `reference` (policy `fixed`).

    Args:
        outcomes: the outcomes of all methods, stop rules and tasks.
        bootstrap: draws the resamples.

    Returns:
        The fields.
    """
    fields: dict[tuple[str, str], list[Outcome]] = {}
    for outcome in outcomes:
        fields.setdefault((outcome.labels.stop, outcome.labels.task), []).append(outcome)
    return [_statistics(field, bootstrap) for field in fields.values()]


def _statistics(field: Sequence[Outcome], bootstrap: Bootstrap) -> list[MethodStatistics]:
    columns = []
    for outcome in field:
        reference = reference_of(outcome.labels, field)
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
            outcome.lengths - outcome.revoked - outcome.edited,
            *_likelihood_columns(outcome),
        ]
    sums = bootstrap.sums(np.stack(columns, axis=1))  # [1 + R, COLUMNS for each method]
    statistics = []
    for number, outcome in enumerate(field):
        of_method = sums[:, COLUMNS * number : COLUMNS * (number + 1)].T
        correct, judged, agreed, tokens, forwards, effective, own_order, joint, counted = of_method
        with np.errstate(invalid="ignore"):  # no prompt of a resample may have been judged
            accuracy = correct / judged if judged[0] else None
        mean_agreement = None if reference_of(outcome.labels, field) is None else agreed / len(outcome.lengths)
        mean_forwards = forwards / len(outcome.lengths)
        statistics.append(
            MethodStatistics(
                outcome,
                accuracy,
                mean_agreement,
                mean_forwards,
                tokens / forwards,
                np.maximum(effective, 0) / forwards,
                None if outcome.likelihood is None else -own_order / counted,
                None if outcome.likelihood is None else (joint - own_order) / counted,
            )
        )
    return statistics


def reference_of(labels: Labels, field: Sequence[Outcome]) -> Outcome | None:
    """Return the outcome whose answers a method's answers are compared with; None where the field has none.

    For a method of the dLLM it is one token a step, for a method of an autoregressive model plain decoding of the same
    model.

    Args:
        labels: the labels of the method.
        field: outcomes that are compared with each other.
    """
    mark = "target" if labels.model else "reference"
    same = (other for other in field if (other.labels.mark, other.labels.model) == (mark, labels.model))
    return next(same, None)


def _likelihood_columns(outcome: Outcome) -> Sequence[NDArray[Any]]:
    """Return the log-likelihoods by the policy's own order and by its joint commits, and the tokens that they count."""
    if outcome.likelihood is None:
        return [np.zeros(len(outcome.lengths))] * 3
    return [outcome.likelihood.own_order, outcome.likelihood.joint, outcome.likelihood.counted]


def build_rows(fields: Sequence[Sequence[MethodStatistics]]) -> list[dict[str, Any]]:
    """Build the table: a row for each method, stop rule and task.

    Agreement and speedups compare a method with the first `fixed` method of its field. Speedups with the suffix
    `_threshold` compare it with the first `threshold` method of its field. These columns are null where the field lacks
    that method; the ratio of tokens per forward is also null where that method's answers are empty. The column
    `cut_short` compares a method's answers with those that the same method gives under the stop rule `none`; it is null
    where `none` is not in the comparison. A method of an autoregressive model is compared with plain decoding of the
    same model, and its columns with that suffix are null.

    Args:
        fields: the fields that `measure` returns.

    Returns:
        The rows, plain data for compare.json.
    """
    whole = {
        (entry.labels.method, entry.labels.task): entry.outcome
        for field in fields
        for entry in field
        if entry.labels.stop == "none"
    }
    return [
        _row(entry, _reference(entry, field), None if entry.labels.model else first_marked("baseline", field))
        | {"cut_short": _cut_short(entry, whole)}
        for field in fields
        for entry in field
    ]


def _reference(entry: MethodStatistics, field: Sequence[MethodStatistics]) -> MethodStatistics | None:
    outcome = reference_of(entry.labels, [other.outcome for other in field])
    return next((other for other in field if other.outcome is outcome), None)


def cut_short(
    tokens: NDArray[Any], lengths: NDArray[Any], whole: NDArray[Any], whole_lengths: NDArray[Any]
) -> NDArray[np.bool_]:
    """Find the answers that are a proper beginning of a longer, whole answer.

    Args:
        tokens: [N, G] tokens of the answers.
        lengths: [N] numbers of answer tokens.
        whole: [N, G] tokens of the whole answers.
        whole_lengths: [N] numbers of answer tokens of the whole answers.

    Returns:
        [N] bool, True where the answer was cut short.
    """
    behind = np.arange(tokens.shape[1]) >= lengths[:, None]
    shortened: NDArray[np.bool_] = ((tokens == whole) | behind).all(1) & (lengths < whole_lengths)
    return shortened


def _cut_short(entry: MethodStatistics, whole: dict[tuple[str, str], Outcome]) -> int | None:
    other = whole.get((entry.labels.method, entry.labels.task))
    if other is None:
        return None
    return int(cut_short(entry.outcome.tokens, entry.outcome.lengths, other.tokens, other.lengths).sum())


def _row(entry: MethodStatistics, fixed: MethodStatistics | None, threshold: MethodStatistics | None) -> dict[str, Any]:
    outcome = entry.outcome
    row = asdict(entry.labels) | {"second_model": entry.second_model, "prompts": len(outcome.lengths)}
    row |= _described("accuracy", entry.accuracy) | _described("agreement", entry.agreement)
    row |= {
        "forwards_mean": point(entry.forwards),
        "forwards_interval": interval(entry.forwards),
        "columns_per_forward": float(outcome.columns.sum() / outcome.forwards.sum()),
        "revoked_mean": float(outcome.revoked.mean()),
        "edited_mean": float(outcome.edited.mean()),
        "flip_flops_mean": float(outcome.flip_flops.mean()),
        "auxiliary_forwards_mean": float(outcome.auxiliary_forwards.mean()),
        "failed": int(outcome.failed.sum()),
        "answer_tokens_mean": float(outcome.lengths.mean()),
    }
    row |= _described("effective_tokens_per_forward", entry.effective_tokens_per_forward)
    row |= _described("nats_per_token", entry.nats_per_token)
    row |= _described("joint_commit_nats_per_token", entry.joint_commit_nats_per_token)
    row |= _described("tokens_per_forward", entry.tokens_per_forward) | {
        "tokens_per_second": float(outcome.lengths.sum() / outcome.wall_s),
        "wall_seconds": outcome.wall_s,
        "model_seconds": outcome.model_s,
    }
    for suffix, base in (("", fixed), ("_threshold", threshold)):
        row[f"speedup_forwards{suffix}"] = float(base.forwards[0] / entry.forwards[0]) if base else None
        row[f"speedup_wall{suffix}"] = base.outcome.wall_s / outcome.wall_s if base else None
    with np.errstate(divide="ignore", invalid="ignore"):  # all answers of a resample may be empty
        compared = entry.tokens_per_forward / threshold.tokens_per_forward if threshold else None
    return row | _described("tokens_per_forward_ratio_threshold", compared)


def score_rows(
    outcomes: Sequence[Outcome], checkers: Mapping[str, Checker], bootstrap: Bootstrap
) -> list[dict[str, Any]]:
    """Compute the scores of every outcome whose checker gives scores.

    Args:
        outcomes: the outcomes of all methods, stop rules and tasks.
        checkers: the checkers by the names of their tasks.
        bootstrap: draws the same resamples as for the table of methods.

    Returns:
        A row for each method, stop rule and task, which holds each score with its interval.
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
