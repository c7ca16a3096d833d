"""The filter (Learn2PD, arXiv 2509.25188): a tiny network says at each position whether the proposal is final.

The rule: the policy commits every eligible position with

    sigmoid(logit) > threshold,

where the logit is the network's output at the position. Where it commits none, the loop adds the most confident
position. The paper's network (`mlp`) sees the confidences of a block, those of committed positions included. With it,
every step also commits the most confident position, as in the paper. The networks `conv` and `transformer` see the
channels of predictors/features.py, and work with any block length, window or scheduler.

Deviations from the authors' code: none in the rule. As in their code, a block that is shorter than the MLP's is padded
with zeros on the right.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from learn2pd.predictors.apply import NetworkMemory, check_contract, needs_of, on_device, probability
from learn2pd.predictors.saving import Predictor
from learn2pd.roles import Policy
from learn2pd.tensors import most_confident
from learn2pd.types import Commit, DecodeState, ModelSpec, Prediction

if TYPE_CHECKING:
    from learn2pd.method import Method


class Acceptance(Policy):
    """The filter's rule, which needs no library beside torch.

    Args:
        predictor: A predictor of the kind `filter`. It holds the network, the threshold on the network's probability,
            and the contract of its training.

    Raises:
        ValueError: The threshold is not a number from 0 to 1.
    """

    name = "filter"
    learned = True

    def __init__(self, predictor: Predictor) -> None:
        if not 0 <= predictor.threshold <= 1:
            raise ValueError(f"filter threshold={predictor.threshold}: expected a probability from 0 to 1")
        self.predictor = predictor
        self.needs = needs_of(predictor)
        self.scores_committed = predictor.network.sees_committed
        self.window_width = predictor.network.width

    @property
    def threshold(self) -> float:
        """The threshold on the network's probability."""
        return self.predictor.threshold

    def check(self, spec: ModelSpec, method: Method) -> None:
        super().check(spec, method)
        check_contract(self.predictor, spec, method)

    def start(self, state: DecodeState, spec: ModelSpec) -> NetworkMemory:
        return on_device(self.predictor, state)

    def accepts(self, final: Tensor, state: DecodeState) -> Tensor:
        """Say at which positions the network accepts the proposal.

        Args:
            final: [B, G] float32, the probability that the proposal is final.
            state: The state before the commit.

        Returns:
            [B, G] bool.
        """
        return final > self.threshold

    def probability(self, prediction: Prediction, state: DecodeState, memory: NetworkMemory) -> Tensor:
        """Return the probability that the proposal is final, [B, G] float32, 0 outside the window.

        Args:
            prediction: The proposals.
            state: The state before the commit.
            memory: What `start` returned.
        """
        network = memory.network
        width = network.width or state.window.width
        return probability(network, self.predictor.contract, state, prediction, state.window, width)

    def select(self, prediction: Prediction, eligible: Tensor, state: DecodeState, memory: NetworkMemory) -> Commit:
        accepted = self.accepts(self.probability(prediction, state, memory), state) & eligible
        if not memory.network.adds_surest:
            return Commit(accepted)
        surest = most_confident(prediction.confidence, eligible)
        return Commit(accepted | surest, forced=surest & ~accepted)
