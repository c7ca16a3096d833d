"""The filter: a tiny network says, per position of the window, whether the proposal is final (Learn2PD, arXiv 2509.25188).

Commit a masked position when sigmoid(logit) > threshold; where none is, the most confident one (the loop's rule). With the paper's network
(`mlp`: confidences of a block, committed positions too) the most confident one is committed in every step, as the paper does. The networks
`conv` and `transformer` see the channels of signals/channels.py and work at any block length, window or schedule.

Deviations from the authors' code: none in the rule. A block shorter than the MLP's is padded with zeros on the right, as theirs.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

from torch import Tensor

from learn2pd.policies.base import most_confident
from learn2pd.signals.channels import EXTRAS_OF_CHANNELS, Seen, canvas_view, cut, observe
from learn2pd.signals.networks import SignalNetwork
from learn2pd.signals.storage import Signal
from learn2pd.types import Commit, DecodeState, Prediction


@dataclass
class Memory:
    """Of one run: the network where the model is, and the last proposals where a channel needs them."""

    network: SignalNetwork
    before: Seen | None = None


class FilterPolicy:
    """Args: signal, of kind filter: network, threshold on the network's probability, and what it was trained for."""

    name = "filter"

    def __init__(self, signal: Signal) -> None:
        if not 0 <= signal.threshold <= 1:
            raise ValueError(f"filter threshold={signal.threshold}: expected a probability from 0 to 1")
        self.signal, self.contract, self.threshold = signal, signal.contract, signal.threshold
        network = signal.network.eval()
        self.needs = frozenset(EXTRAS_OF_CHANNELS[channel] for channel in network.channels if channel in EXTRAS_OF_CHANNELS)
        self.scores_committed: bool = network.sees_committed
        self.window_width: int | None = network.width

    def start(self, state: DecodeState) -> Memory:
        network = self.signal.network
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
