"""Choose the thresholds of trained predictors for a stated target instead of typing them in.

The filter is judged by what it does: for each threshold it decodes held-out prompts, and the fastest threshold is chosen whose upper
confidence bound of the loss against one token a step meets the target (training/risk.py). All of its measurements are kept as the curve
that `aggressiveness` moves along. The other two predictors are judged on the recorded states.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from learn2pd.errors import UserError
from learn2pd.predictors.networks import PredictorNetwork
from learn2pd.predictors.questions import make_batch
from learn2pd.predictors.saving import Predictor, Setting
from learn2pd.statistics.bounds import Trial, fastest_within, needed, upper_bound, upper_bound_of_share
from learn2pd.training.fit import PredictorData, StateStream, predictor_metrics

END_ODDS = (
    12.0,
    11.0,
    10.0,
    9.0,
    8.0,
    7.0,
    6.0,
    5.0,
    4.0,
    3.0,
    2.0,
)  # log-odds of the thresholds tried for the end of text
MARGIN_ODDS = 1.0  # log-odds that it stays above the surest false stop among the training prompts


@dataclass(frozen=True)
class Measured:
    """Held-out prompts decoded with one threshold, [N] each."""

    agreement: np.ndarray[
        Any, Any
    ]  # share of the reference answer's tokens, its end-of-text included, that are the same
    drop: np.ndarray[Any, Any] | None  # correct with one token a step minus correct now; None where nothing can judge
    tokens: np.ndarray[Any, Any]  # of the answers
    forwards: np.ndarray[Any, Any]


def allowed_loss(target_agreement: float | None, max_accuracy_drop: float | None) -> float:
    """Raises UserError unless exactly one of the two is set."""
    if (target_agreement is None) == (max_accuracy_drop is None):
        raise UserError(
            f"calibrate.target_agreement={target_agreement}, calibrate.max_accuracy_drop={max_accuracy_drop}: "
            "set one of them and leave the other null"
        )
    return max_accuracy_drop if max_accuracy_drop is not None else round(1 - float(target_agreement or 0), 9)


def check_enough(
    prompts: int, target_agreement: float | None, max_accuracy_drop: float | None, confidence: float
) -> None:
    """Raises UserError where even without any loss so few validation prompts could not show the target."""
    count = needed(allowed_loss(target_agreement, max_accuracy_drop), 1 - confidence)
    if prompts < count:
        target = (
            f"target_agreement={target_agreement}"
            if max_accuracy_drop is None
            else f"max_accuracy_drop={max_accuracy_drop}"
        )
        raise UserError(
            f"calibrate.{target} with calibrate.confidence={confidence} needs at least {count} validation prompts, there are {prompts}: "
            "set data.validation_prompts, allow more, or ask for less confidence"
        )


def calibrate_filter(
    predictor: Predictor,
    measure: Callable[[Predictor], Measured],
    thresholds: Sequence[float],
    *,
    target_agreement: float | None,
    max_accuracy_drop: float | None,
    confidence: float,
) -> tuple[Predictor, bool]:
    """The predictor with the fastest threshold that keeps to the target, its curve, and whether any threshold does; if none, the strictest is set.

    Args:
        measure: decodes the held-out prompts with a predictor.
        thresholds: from the strictest; all of them are measured.
        target_agreement, max_accuracy_drop: exactly one of them; what may be lost on average over prompts.
        confidence: of the bound, 0 to 1.

    Raises:
        UserError: not exactly one target, prompts that nothing can judge, or too few of them for target and confidence.
    """
    target_loss = allowed_loss(target_agreement, max_accuracy_drop)
    ordered = sorted(set(thresholds), reverse=True)
    found: dict[float, Measured] = {}

    def losses(threshold: float) -> np.ndarray[Any, Any]:
        if threshold not in found:
            found[threshold] = measure(replace(predictor, threshold=threshold))
        result = found[threshold]
        if max_accuracy_drop is None:
            return 1 - result.agreement
        if result.drop is None:
            raise UserError(
                "calibrate.max_accuracy_drop: no checker judges these prompts; set calibrate.target_agreement instead"
            )
        return result.drop

    choice = fastest_within(ordered, losses, target_loss, 1 - confidence)
    tried = {trial.setting: trial for trial in choice.tried}
    for threshold in ordered[len(choice.tried) :]:
        tried[threshold] = Trial(
            threshold, float(losses(threshold).mean()), upper_bound(losses(threshold), 1 - confidence)
        )
    curve = tuple(_setting(threshold, found[threshold], tried[threshold].bound) for threshold in ordered)
    return replace(predictor, threshold=ordered[choice.fastest or 0], curve=curve), choice.fastest is not None


def _setting(threshold: float, measured: Measured, bound: float) -> Setting:
    return Setting(
        threshold=threshold,
        tokens_per_forward=float(measured.tokens.sum() / measured.forwards.sum()),
        agreement=float(measured.agreement.mean()),
        accuracy_drop=None if measured.drop is None else float(measured.drop.mean()),
        loss_bound=bound,
    )


@torch.inference_mode()
def probabilities(network: PredictorNetwork, stream: StateStream) -> tuple[Tensor, Tensor]:
    """The network's probability and the label at every judged position of recorded states, [M] each."""
    found = [(network(*batch.seen).sigmoid()[batch.judged], batch.label[batch.judged].long()) for batch in stream]
    return torch.cat([probability for probability, _ in found]), torch.cat([label for _, label in found])


def metrics_at(probability: Tensor, label: Tensor, threshold: float) -> dict[str, float]:
    """Every metric of `predictor_metrics` at a threshold, with `false_commit_rate` in place of specificity."""
    metrics = predictor_metrics(threshold)
    metrics.update(probability, label)
    figures = {name: float(value) for name, value in metrics.compute().items()}
    figures["false_commit_rate"] = 1 - figures.pop("specificity")
    return figures


@torch.inference_mode()
def surest_false_stops(network: PredictorNetwork, data: PredictorData, split: str) -> Tensor:
    """[N] for every prompt of a split the highest probability, over its recorded states, at a masked position that the answer still needs.

    Positions with a committed token of the answer behind them are left out, as the stop rule never ends a row there.
    """
    worst: dict[int, float] = {}
    for columns in data.stream(split, batch_rows=256).states(("prompt",)):
        batch = make_batch(columns, data.question, network)
        probability = network(*batch.seen).sigmoid()
        position = torch.arange(probability.shape[1])
        written = batch.valid & ~columns["masked"] & (position < columns["length"][:, None])
        last = torch.where(written, position, -1).amax(1, keepdim=True)
        needed = columns["masked"] & (position < columns["length"][:, None]) & (position > last)
        highest = torch.where(needed, probability, 0.0).amax(1)
        for prompt, value in zip(columns["prompt"].tolist(), highest.tolist(), strict=True):
            worst[prompt] = max(worst.get(prompt, 0.0), value)
    return torch.tensor([worst[prompt] for prompt in sorted(worst)])


def calibrate_end(
    predictor: Predictor, data: PredictorData, false_stops: float, confidence: float
) -> tuple[Predictor, dict[str, float]]:
    """The end-of-text predictor with the least threshold that cuts few enough answers short, and what can be said of others.

    Thresholds are tried on the states of the validation prompts from the strictest down, so that the bound of the chosen one holds. It is
    never less than a margin above the surest false stop in the states of the training prompts.

    Raises:
        UserError: even the strictest cuts too many validation prompts short, or they are too few to show `false_stops` with that confidence.
    """
    held_out = surest_false_stops(predictor.network, data, "validation").double().numpy()
    thresholds = torch.tensor(END_ODDS, dtype=torch.float64).sigmoid().tolist()
    choice = fastest_within(
        thresholds, lambda threshold: held_out > threshold, false_stops, 1 - confidence, upper_bound_of_share
    )
    if choice.fastest is None:
        seen = choice.tried[0]
        raise UserError(
            f"calibrate.false_stops={false_stops}: the strictest threshold cuts {seen.mean:.1%} of {len(held_out)} validation prompts short, up to "
            f"{seen.bound:.1%} with calibrate.confidence={confidence}; record more prompts (data.train_prompts, data.validation_prompts)"
        )
    surest = surest_false_stops(predictor.network, data, "train").max()
    threshold = max(thresholds[choice.fastest], float((surest.double().logit(1e-7) + MARGIN_ODDS).sigmoid()))
    bound = upper_bound_of_share((held_out > threshold).astype(float), 1 - confidence)
    return replace(predictor, threshold=threshold), {
        "threshold": threshold,
        "false_stops_bound": bound,
        "prompts": float(len(held_out)),
    }


def calibrate_boundary(
    predictor: Predictor, data: PredictorData, false_stops: float, confidence: float
) -> tuple[Predictor, dict[str, float]]:
    """The boundary predictor with the threshold of the best F1 on the states of validation prompts; nothing is promised of it."""
    probability, label = probabilities(predictor.network, data.stream("validation", batch_rows=4096))
    order = probability.argsort(descending=True)
    right = label[order].cumsum(0).double()
    f1 = 2 * right / (torch.arange(1, len(right) + 1) + label.sum())
    best = int(f1.argmax())
    below = float(probability[order[best + 1]]) if best + 1 < len(order) else 0.0
    threshold = (float(probability[order[best]]) + below) / 2
    return replace(predictor, threshold=threshold), {"threshold": threshold, "f1": float(f1[best])} | metrics_at(
        probability, label, threshold
    )


Calibration = Callable[[Predictor, PredictorData, float, float], tuple[Predictor, dict[str, float]]]
CALIBRATIONS: dict[str, Calibration] = {
    "end_of_text": calibrate_end,
    "boundary": calibrate_boundary,
}  # those that need no decode
