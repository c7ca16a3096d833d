"""Calibration: the thresholds of trained predictors follow from a stated target instead of being typed in.

The filter is judged by its decodes. It decodes held-out prompts with each threshold, and calibration selects the
fastest threshold whose upper confidence bound of the loss against one token a step meets the target
(statistics/bounds.py). The measurements of all thresholds are kept as the curve that `aggressiveness` moves along. The
filter and the predictor `keep` are also calibrated together, by decodes. The predictors of the end of text and of
boundaries are judged on the recorded states.
"""

from __future__ import annotations

import functools
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
from learn2pd.statistics.bounds import fastest_within, needed, upper_bound, upper_bound_of_share
from learn2pd.training.fit import PredictorData, StateStream, predictor_metrics

# log-odds of the thresholds that are tried for the end of text
END_ODDS = (12.0, 11.0, 10.0, 9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0)
# log-odds that this threshold stays above the surest false stop among the training prompts
MARGIN_ODDS = 1.0
NO_CHECKER = "calibrate.max_accuracy_drop: no checker judges these prompts; set calibrate.target_agreement instead"


@dataclass(frozen=True)
class DecodedValidation:
    """Figures of held-out prompts that were decoded with one threshold, each [N]."""

    # share of the reference answer's positions, its end-of-text included, that hold the same token
    agreement: np.ndarray[Any, Any]
    # verdict (0 or 1) with one token a step minus verdict now; None where no checker judges the prompts
    drop: np.ndarray[Any, Any] | None
    tokens: np.ndarray[Any, Any]  # numbers of answer tokens
    forwards: np.ndarray[Any, Any]  # numbers of forwards


def allowed_loss(target_agreement: float | None, max_accuracy_drop: float | None) -> float:
    """Return the loss that a target allows.

    Args:
        target_agreement: least expected agreement with one token a step, or None.
        max_accuracy_drop: largest expected drop of the accuracy, or None.

    Returns:
        The allowed loss, as a share of the prompts or of their tokens.

    Raises:
        UserError: both targets are set, or neither of them is.
    """
    if (target_agreement is None) == (max_accuracy_drop is None):
        raise UserError(
            f"calibrate.target_agreement={target_agreement}, calibrate.max_accuracy_drop={max_accuracy_drop}: "
            "set one of them and leave the other null"
        )
    if max_accuracy_drop is not None:
        return max_accuracy_drop
    return round(1 - float(target_agreement or 0), 9)


def check_enough(
    prompts: int, target_agreement: float | None, max_accuracy_drop: float | None, confidence: float
) -> None:
    """Check that there are enough validation prompts to show the target.

    Args:
        prompts: number of validation prompts.
        target_agreement: least expected agreement with one token a step, or None.
        max_accuracy_drop: largest expected drop of the accuracy, or None.
        confidence: confidence of the bound, above 0 and below 1.

    Raises:
        UserError: so few prompts could not show the target even if none of them lost anything.
    """
    count = needed(allowed_loss(target_agreement, max_accuracy_drop), 1 - confidence)
    if prompts < count:
        target = (
            f"target_agreement={target_agreement}"
            if max_accuracy_drop is None
            else f"max_accuracy_drop={max_accuracy_drop}"
        )
        raise UserError(
            f"calibrate.{target} with calibrate.confidence={confidence} needs at least {count} validation prompts, "
            f"there are {prompts}: set data.validation_prompts, allow more, or ask for less confidence"
        )


def calibrate_filter(
    predictor: Predictor,
    measure: Callable[[Predictor], DecodedValidation],
    thresholds: Sequence[float],
    *,
    target_agreement: float | None,
    max_accuracy_drop: float | None,
    confidence: float,
) -> tuple[Predictor, bool]:
    """Set the filter's threshold to the fastest one that keeps to the target.

    Where no threshold keeps to the target, the strictest one is set.

    Args:
        predictor: the trained filter.
        measure: decodes the held-out prompts with a filter.
        thresholds: the thresholds, in any order; all of them are measured.
        target_agreement: least expected agreement with one token a step, or None.
        max_accuracy_drop: largest expected drop of the accuracy, or None. Exactly one of the two targets must be set.
        confidence: confidence of the bound, above 0 and below 1.

    Returns:
        The filter with its threshold and its curve, and whether any threshold keeps to the target.

    Raises:
        UserError: the targets are not exactly one, no checker judges the prompts, or the prompts are too few for the
            target and the confidence.
    """
    target_loss = allowed_loss(target_agreement, max_accuracy_drop)
    curve, fastest = _chain(
        lambda threshold: measure(replace(predictor, threshold=threshold)),
        thresholds,
        max_accuracy_drop is not None,
        target_loss,
        1 - confidence,
    )
    return replace(predictor, threshold=curve[fastest or 0].threshold, curve=curve), fastest is not None


@dataclass(frozen=True)
class Pair:
    """The thresholds of the filter and of the predictor `keep` that were calibrated together.

    Attributes:
        threshold: the filter's threshold.
        take_back: the threshold of `keep`.
        met: whether any pair keeps to the target.
        curves: the measured settings of the filter's thresholds, by the threshold of `keep`.
    """

    threshold: float
    take_back: float
    met: bool
    curves: dict[float, tuple[Setting, ...]]

    @property
    def curve(self) -> tuple[Setting, ...]:
        """The settings with the selected threshold of `keep`."""
        return self.curves[self.take_back]


def calibrate_pair(
    measure: Callable[[float, float], DecodedValidation],
    thresholds: Sequence[float],
    take_back: Sequence[float],
    *,
    target_agreement: float | None,
    max_accuracy_drop: float | None,
    confidence: float,
) -> Pair:
    """Select the fastest pair of thresholds that keeps to the target.

    For each threshold of `keep`, the filter's thresholds are tried from the strictest to the fastest, up to the first
    one that fails. The error probability is shared out equally among these sequences, so that with the stated
    confidence no pair that passed loses more than the target, and any of them may be selected (Learn then Test,
    arXiv 2110.01052). Where no pair passes, the strictest threshold of the filter is set with the first one of `keep`.

    Args:
        measure: decodes the held-out prompts with a threshold of the filter and one of `keep`.
        thresholds: the filter's thresholds, in any order; all of them are measured.
        take_back: the thresholds of `keep`, fixed before the prompts are decoded.
        target_agreement: as for `calibrate_filter`.
        max_accuracy_drop: as for `calibrate_filter`.
        confidence: confidence of the bounds together, above 0 and below 1.

    Returns:
        The pair.

    Raises:
        UserError: as for `calibrate_filter`.
    """
    target_loss = allowed_loss(target_agreement, max_accuracy_drop)
    curves: dict[float, tuple[Setting, ...]] = {}
    passed: list[tuple[float, float, float]] = []  # tokens per forward, threshold of the filter, threshold of `keep`
    for back in take_back:
        curves[back], fastest = _chain(
            functools.partial(_swapped, measure, back),
            thresholds,
            max_accuracy_drop is not None,
            target_loss,
            (1 - confidence) / len(take_back),
        )
        passing = curves[back][: 0 if fastest is None else fastest + 1]
        passed += [(setting.tokens_per_forward or 0, setting.threshold, back) for setting in passing]
    if passed:
        _, threshold, back = max(passed)
        return Pair(threshold, back, True, curves)
    return Pair(max(thresholds), take_back[0], False, curves)


def _swapped(measure: Callable[[float, float], DecodedValidation], back: float, threshold: float) -> DecodedValidation:
    return measure(threshold, back)


def _chain(
    measure: Callable[[float], DecodedValidation],
    thresholds: Sequence[float],
    of_accuracy: bool,
    target_loss: float,
    delta: float,
) -> tuple[tuple[Setting, ...], int | None]:
    """Try thresholds from the strictest to the fastest, and measure those behind the first failure too.

    Args:
        measure: decodes the held-out prompts with a threshold.
        thresholds: the thresholds, in any order.
        of_accuracy: True limits the accuracy that is lost, False the agreement.
        target_loss: the expected loss that is allowed.
        delta: probability with which the selected threshold may lose more.

    Returns:
        The settings from the strictest to the fastest, and the number of the fastest one that keeps to the target.

    Raises:
        UserError: no checker judges the prompts, or they are too few.
    """
    ordered = sorted(set(thresholds), reverse=True)
    decoded: dict[float, DecodedValidation] = {}

    def losses(threshold: float) -> np.ndarray[Any, Any]:
        if threshold not in decoded:
            decoded[threshold] = measure(threshold)
        result = decoded[threshold]
        if not of_accuracy:
            return 1 - result.agreement
        if result.drop is None:
            raise UserError(NO_CHECKER)
        return result.drop

    choice = fastest_within(ordered, losses, target_loss, delta)
    bounds = {trial.setting: trial.bound for trial in choice.tried}
    bounds |= {threshold: upper_bound(losses(threshold), delta) for threshold in ordered[len(choice.tried) :]}
    return tuple(_setting(threshold, decoded[threshold], bounds[threshold]) for threshold in ordered), choice.fastest


def _setting(threshold: float, measured: DecodedValidation, bound: float) -> Setting:
    return Setting(
        threshold=threshold,
        tokens_per_forward=float(measured.tokens.sum() / measured.forwards.sum()),
        agreement=float(measured.agreement.mean()),
        accuracy_drop=None if measured.drop is None else float(measured.drop.mean()),
        loss_bound=bound,
    )


@torch.inference_mode()
def probabilities(network: PredictorNetwork, stream: StateStream) -> tuple[Tensor, Tensor]:
    """Compute the network's probabilities on recorded states.

    Args:
        network: the trained network.
        stream: batches of recorded states.

    Returns:
        The probability and the label at every judged position, [M] each.
    """
    parts = [(network(*batch.seen).sigmoid()[batch.judged], batch.label[batch.judged].long()) for batch in stream]
    return torch.cat([probability for probability, _ in parts]), torch.cat([label for _, label in parts])


def metrics_at(probability: Tensor, label: Tensor, threshold: float) -> dict[str, float]:
    """Compute every metric of `predictor_metrics` at a threshold.

    Args:
        probability: [M] float, from 0 to 1.
        label: [M] long, 0 or 1.
        threshold: probability from which on the answer is yes.

    Returns:
        The metrics by name; `false_commit_rate` (1 - specificity) takes the place of specificity.
    """
    metrics = predictor_metrics(threshold)
    metrics.update(probability, label)
    figures = {name: float(value) for name, value in metrics.compute().items()}
    figures["false_commit_rate"] = 1 - figures.pop("specificity")
    return figures


@torch.inference_mode()
def surest_false_stops(network: PredictorNetwork, data: PredictorData, split: str) -> Tensor:
    """Find how sure the end-of-text predictor is at its worst mistake, for each prompt.

    A mistake is a high probability at a masked position that the answer still needs. A position with a committed token
    of the answer behind it does not count, since the stop rule never ends a row at such a position.

    Args:
        network: the trained network.
        data: the recordings.
        split: `train` or `validation`.

    Returns:
        [N] the highest probability of a mistake over the recorded states of each prompt.
    """
    worst: dict[int, float] = {}
    for columns in data.stream(split, batch_rows=256).states(("prompt",)):
        batch = make_batch(columns, data.question, network)
        probability = network(*batch.seen).sigmoid()
        position = torch.arange(probability.shape[1])
        written = batch.valid & ~columns["masked"] & (position < columns["length"][:, None])
        last = torch.where(written, position, -1).amax(1, keepdim=True)
        still_needed = columns["masked"] & (position < columns["length"][:, None]) & (position > last)
        highest = torch.where(still_needed, probability, 0.0).amax(1)
        for prompt, value in zip(columns["prompt"].tolist(), highest.tolist(), strict=True):
            worst[prompt] = max(worst.get(prompt, 0.0), value)
    return torch.tensor([worst[prompt] for prompt in sorted(worst)])


def calibrate_end(
    predictor: Predictor, data: PredictorData, false_stops: float, confidence: float
) -> tuple[Predictor, dict[str, float]]:
    """Set the end-of-text predictor's threshold to the least one that cuts few enough answers short.

    The thresholds are tried on the states of the validation prompts, from the strictest one downwards, so that the
    bound of the selected threshold holds. The threshold also stays at least a margin above the surest false stop in the
    states of the training prompts.

    Args:
        predictor: the trained end-of-text predictor.
        data: the recordings.
        false_stops: the share of answers that may be cut short, above 0 and below 1.
        confidence: confidence of the bound, above 0 and below 1.

    Returns:
        The predictor with its threshold, and its figures.

    Raises:
        UserError: even the strictest threshold cuts too many validation prompts short, or the prompts are too few to
            show `false_stops` with that confidence.
    """
    held_out = surest_false_stops(predictor.network, data, "validation").double().numpy()
    thresholds = torch.tensor(END_ODDS, dtype=torch.float64).sigmoid().tolist()
    choice = fastest_within(
        thresholds, lambda threshold: held_out > threshold, false_stops, 1 - confidence, upper_bound_of_share
    )
    if choice.fastest is None:
        seen = choice.tried[0]
        raise UserError(
            f"calibrate.false_stops={false_stops}: the strictest threshold cuts {seen.mean:.1%} of {len(held_out)} "
            f"validation prompts short, up to {seen.bound:.1%} with calibrate.confidence={confidence}; "
            "record more prompts (data.train_prompts, data.validation_prompts)"
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
    """Set the boundary predictor's threshold to the one with the best F1 on the states of the validation prompts.

    This threshold comes with no guarantee.

    Args:
        predictor: the trained boundary predictor.
        data: the recordings.
        false_stops: not used; every calibration takes the same arguments.
        confidence: not used.

    Returns:
        The predictor with its threshold, and its figures.
    """
    probability, label = probabilities(predictor.network, data.stream("validation", batch_rows=4096))
    order = probability.argsort(descending=True)
    values = torch.cat([probability[order], probability.new_zeros(1)])
    right = label[order].cumsum(0).double()
    f1 = 2 * right / (torch.arange(1, len(right) + 1) + label.sum())
    # A threshold accepts all positions of equal probability or none of them.
    f1 = torch.where(values[:-1] > values[1:], f1, 0.0)
    best = int(f1.argmax())
    middle = (values[best] + values[best + 1]) / 2
    # Between neighbouring numbers there is none, and the middle may be rounded to the upper one.
    threshold = float(torch.where(middle < values[best], middle, values[best + 1]))
    return replace(predictor, threshold=threshold), {"threshold": threshold, "f1": float(f1[best])} | metrics_at(
        probability, label, threshold
    )


Calibration = Callable[[Predictor, PredictorData, float, float], tuple[Predictor, dict[str, float]]]
# the kinds of predictor that are calibrated without a decode
CALIBRATIONS: dict[str, Calibration] = {
    "end_of_text": calibrate_end,
    "boundary": calibrate_boundary,
}
