"""The outcomes of autoregressive methods, and their table beside that of all methods.

A forward of an autoregressive model is another thing than one of the dLLM. So these methods are compared by forwards
with plain decoding of the same model alone, and with the dLLM's methods by accuracy and tokens per second.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from learn2pd.autoregressive.generation import generate
from learn2pd.autoregressive.methods import AutoregressiveMethod
from learn2pd.autoregressive.timing import STATED_RATIO, Drafting, measure_costs, modelled_seconds
from learn2pd.data.prompts import Prompt
from learn2pd.data.tasks import Checker
from learn2pd.evaluation.outcomes import Labels, Outcome, judged
from learn2pd.types import Sampling

KIND = "autoregressive"  # of the labels of every such outcome


def run_autoregressive(
    prompts: Sequence[Prompt],
    checkers: Mapping[str, Checker],
    labels: Labels,
    method: AutoregressiveMethod,
    *,
    gen_length: int,
    batch_size: int,
    sampling: Sampling,
    seed: int,
    progress: Callable[[int], object] | None = None,
) -> Outcome:
    """Decode the prompts of one task with an autoregressive method, judge the answers, and measure its forwards.

    Args:
        prompts: the prompts of the task.
        checkers: the checkers by the names of their tasks.
        labels: the labels of the outcome. Under the stop rule `none` the method goes on after the end-of-text.
        method: the method.
        gen_length: the most tokens of an answer.
        batch_size: rows that are decoded together.
        sampling: temperature and filters.
        seed: seed of the sampling.
        progress: a function that receives the number of prompts of each finished batch.

    Returns:
        The outcome.
    """
    result = generate(
        method,
        [prompt.content for prompt in prompts],
        gen_length=gen_length,
        batch_size=batch_size,
        sampling=sampling,
        seed=seed,
        stops=labels.stop != "none",
        progress=progress,
    )
    plain_s, target_s, draft_s = measure_costs(method)
    drafting = Drafting(
        accepted=result.accepted.tolist(),
        runs=result.draft_runs.tolist(),
        draft_length=method.draft_length,
        overlaps=method.overlaps,
        plain_s=plain_s,
        target_s=target_s,
        draft_s=draft_s,
    )
    return judged(result, prompts, checkers, labels, drafting=drafting)


def autoregressive_rows(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Build the table of the autoregressive methods: a row for each method, stop rule and task.

    The column `speedup_wall` is measured. The columns `speedup_modelled` and `speedup_stated` are modelled
    (autoregressive/timing.py): with the measured costs of the forwards, and where a forward of the target takes as long
    as `STATED_RATIO` forwards of the draft. All three compare with plain decoding of the same model, under the same
    stop rule and on the same task. They are null where plain decoding is not in the comparison.

    Args:
        outcomes: the outcomes of all methods.

    Returns:
        The rows, plain data for compare.json.
    """
    plain = {_field(outcome): outcome for outcome in reversed(outcomes) if outcome.labels.mark == "target"}
    return [
        _row(outcome, outcome.drafting, plain.get(_field(outcome)))
        for outcome in outcomes
        if outcome.drafting is not None
    ]


def _field(outcome: Outcome) -> tuple[str, str, str]:
    return outcome.labels.model, outcome.labels.stop, outcome.labels.task


def _row(outcome: Outcome, drafting: Drafting, plain: Outcome | None) -> dict[str, Any]:
    labels = outcome.labels
    forwards = int(outcome.forwards.sum())
    drafts = int(outcome.auxiliary_forwards.sum())
    overlaps = drafting.overlaps
    row: dict[str, Any] = {
        "method": labels.method,
        "model": labels.model,
        "stop": labels.stop,
        "task": labels.task,
        "draft_length": drafting.draft_length or None,
        "tokens_per_target_forward": float(outcome.lengths.sum() / forwards),
        "accepted_mean": drafting.accepted_mean,
        "draft_forwards_mean": drafts / len(outcome.lengths),
        "tokens_per_second": float(outcome.lengths.sum() / outcome.wall_s),
        "target_ms": 1000 * drafting.target_s,
        "draft_ms": 1000 * drafting.draft_s if drafting.draft_length else None,
        "speedup_wall": None,
        "speedup_modelled": None,
        "speedup_stated": None,
    }
    if plain is None:
        return row
    alone = int(plain.forwards.sum())
    measured = modelled_seconds(forwards, drafts, overlaps, drafting.target_s, drafting.draft_s)
    stated = modelled_seconds(forwards, drafts, overlaps, STATED_RATIO, 1)
    return row | {
        "speedup_wall": plain.wall_s / outcome.wall_s,
        "speedup_modelled": alone * drafting.plain_s / measured,
        "speedup_stated": alone * STATED_RATIO / stated,
    }
