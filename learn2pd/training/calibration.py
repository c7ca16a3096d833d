"""Choose a filter's threshold for a stated target instead of typing one in.

The target is an agreement: of the proposals the filter accepts on recorded validation states (masked positions of the answer, padding
left out), the share that equals the final output. The chosen threshold is the lowest one that meets the target, hence the fastest.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from learn2pd.policies.filter import FilterNetwork
from learn2pd.training.filter import FilterRows, filter_metrics


@dataclass(frozen=True)
class Calibration:
    threshold: float
    agreement: float  # reached on the validation states
    accepted: int  # proposals accepted there
    met: bool  # False: no threshold meets the target, this is the strictest that accepts anything
    curve: list[tuple[float, float, float]]  # threshold, agreement, share of the right proposals accepted


@torch.inference_mode()
def probabilities(network: FilterNetwork, rows: FilterRows) -> tuple[Tensor, Tensor]:
    """The filter's probability and the label of every masked position of the answer, [M] each."""
    return network(rows.confidence).sigmoid()[rows.answer], rows.label[rows.answer].long()


def calibrate(probability: Tensor, label: Tensor, target_agreement: float, points: int = 200) -> Calibration:
    """Find the threshold.

    Args:
        probability: [M] float; label: [M] 0 or 1.
        target_agreement: 0 to 1.
        points: size of the reported curve.
    """
    order = probability.argsort(descending=True)
    sorted_probability, right = probability[order], label[order].double()
    accepted = torch.arange(1, len(right) + 1, dtype=torch.float64)
    agreement = right.cumsum(0) / accepted  # [M] if everything down to this one is accepted
    last_of_ties = torch.ones(len(right), dtype=torch.bool)
    last_of_ties[:-1] = sorted_probability[:-1] != sorted_probability[1:]
    places = last_of_ties.nonzero()[:, 0]
    meeting = (agreement[places] >= target_agreement).nonzero()[:, 0]
    count = int(meeting[-1]) + 1 if len(meeting) else 0
    chosen = int(places[max(count - 1, 0)])
    below = float(sorted_probability[chosen + 1]) if chosen + 1 < len(right) else 0.0
    shown = places[torch.linspace(0, len(places) - 1, min(points, len(places))).long()]
    recall = right.cumsum(0) / right.sum().clamp_min(1)
    curve = [(float(sorted_probability[i]), float(agreement[i]), float(recall[i])) for i in shown.tolist()]
    # strictly greater accepts: halfway to the next lower probability keeps the choice stable against rounding
    threshold = (float(sorted_probability[chosen]) + below) / 2
    return Calibration(threshold, float(agreement[chosen]), chosen + 1, count > 0, curve)


def metrics_at(probability: Tensor, label: Tensor, threshold: float) -> dict[str, float]:
    """Every metric of `filter_metrics` at a threshold, with `false_commit_rate` in place of specificity."""
    metrics = filter_metrics(threshold)
    metrics.update(probability, label)
    figures = {name: float(value) for name, value in metrics.compute().items()}
    figures["false_commit_rate"] = 1 - figures.pop("specificity")
    return figures
