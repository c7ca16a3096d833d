"""The filter: a tiny network says, per position of the window, whether the proposal is final (Learn2PD, arXiv 2509.25188).

Commit a masked position when sigmoid(logit) > threshold; where none is, the most confident one (the loop's rule). With the paper's network
(`mlp`: confidences of a block, committed positions too) the most confident one is committed in every step, as the paper does. The networks
`conv` and `transformer` see the channels of predictors/channels.py and work at any block length, window or schedule.

Deviations from the authors' code: none in the rule. A block shorter than the MLP's is padded with zeros on the right, as theirs.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from learn2pd.errors import UserError
from learn2pd.predictors.features import EXTRAS_OF_CHANNELS, Seen, cut, observe
from learn2pd.predictors.lora import with_adapter
from learn2pd.predictors.networks import PredictorNetwork
from learn2pd.predictors.saving import Predictor, load_predictor, save_predictor
from learn2pd.tensors import canvas_view, most_confident
from learn2pd.types import Commit, DecodeState, Prediction


def save_policy(policy: FilterPolicy, folder: str | Path) -> Path:
    """Write `policy.json` and `model.safetensors` into `folder`."""
    return save_predictor(policy.predictor, folder)


def load_policy(
    folder: str | Path,
    adapter: str | Path | None = None,
    threshold: float | None = None,
    aggressiveness: float | None = None,
) -> FilterPolicy:
    """Load a trained filter.

    Args:
        folder: what `save_policy` or a run wrote.
        adapter: folder of a LoRA adapter that was trained on this policy; it is merged, and brings its own threshold and curve.
        threshold: instead of the calibrated one.
        aggressiveness: instead of the calibrated threshold, the place on the calibrated curve, 0 (strictest) to 1 (boldest).

    Raises:
        UserError: the folder is missing, damaged or of another schema; the adapter is of another base; both a threshold and an
            aggressiveness, or one of the numbers out of range.
    """
    predictor = load_predictor(folder, "filter")
    if adapter is not None:
        predictor = with_adapter(predictor, adapter)
    if threshold is not None and aggressiveness is not None:
        raise UserError(f"threshold={threshold} and aggressiveness={aggressiveness} both choose the filter's threshold: give one of them")
    if aggressiveness is not None:
        predictor = predictor.at(aggressiveness)
    if threshold is not None:
        predictor = replace(predictor, threshold=threshold)
    try:
        return FilterPolicy(predictor)
    except ValueError as error:
        raise UserError(str(error)) from error


@dataclass
class Memory:
    """Of one run: the network where the model is, and the last proposals where a channel needs them."""

    network: PredictorNetwork
    before: Seen | None = None


class FilterPolicy:
    """Args: predictor, of kind filter: network, threshold on the network's probability, and what it was trained for."""

    name = "filter"

    def __init__(self, predictor: Predictor) -> None:
        if not 0 <= predictor.threshold <= 1:
            raise ValueError(f"filter threshold={predictor.threshold}: expected a probability from 0 to 1")
        self.predictor, self.contract, self.threshold = predictor, predictor.contract, predictor.threshold
        network = predictor.network.eval()
        self.needs = frozenset(EXTRAS_OF_CHANNELS[channel] for channel in network.channels if channel in EXTRAS_OF_CHANNELS)
        self.scores_committed: bool = network.sees_committed
        self.window_width: int | None = network.width

    def start(self, state: DecodeState) -> Memory:
        network = self.predictor.network
        device = state.tokens.device
        return Memory(network if device.type == "cpu" else copy.deepcopy(network).to(device))

    def select(self, prediction: Prediction, eligible: Tensor, state: DecodeState, memory: Memory) -> Commit:
        network, window = memory.network, state.window
        columns = observe(state, prediction, memory.before, self.contract.eot_ids, self.contract.delimiter_ids)
        if "unchanged" in network.channels:
            memory.before = Seen.of(state, prediction)
        width = network.width or int((window.stop - window.start).max())  # one wait for the device a step, as the loop's own
        view = cut(columns, window, width, network.sees_committed)
        probability = network.probability(view)  # [B, W]
        accepted = canvas_view(probability > self.threshold, window, state.gen_length) & eligible
        if not network.adds_surest:
            return Commit(accepted)
        surest = most_confident(prediction.confidence, eligible)
        return Commit(accepted | surest, forced=surest & ~accepted)
