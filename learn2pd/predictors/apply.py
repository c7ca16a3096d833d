"""The functions by which a component asks a trained network during a run."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from learn2pd.errors import UserError
from learn2pd.predictors.features import EXTRAS, cut, observe, observe_committed
from learn2pd.predictors.hidden import NEEDED, TOP_NEEDED, in_window, top_in_window
from learn2pd.predictors.networks import LengthFree, PredictorNetwork
from learn2pd.predictors.saving import Contract, Predictor
from learn2pd.tensors import canvas_view
from learn2pd.types import DecodeState, ModelSpec, Prediction, RowMemory, Window

if TYPE_CHECKING:
    from learn2pd.method import Method


@dataclass(frozen=True)
class NetworkMemory(RowMemory):
    """The memory of a component that asks a network.

    Attributes:
        network: The network on the device of the run. It is the same for all rows.
    """

    network: PredictorNetwork


def on_device(predictor: Predictor, state: DecodeState) -> NetworkMemory:
    """Return the predictor's network on the device of a run. The predictor itself is not moved.

    Args:
        predictor: The trained predictor.
        state: The state before the first step.
    """
    device = state.tokens.device
    network = predictor.network
    return NetworkMemory(network if next(network.parameters()).device == device else copy.deepcopy(network).to(device))


def needs_of(predictor: Predictor) -> frozenset[str]:
    """Return the extras of the prediction that the network reads.

    Args:
        predictor: The trained predictor.
    """
    network = predictor.network
    asked = ((NEEDED, network.hidden_states > 0), (TOP_NEEDED, network.overlap))
    return frozenset(network.channels) & frozenset(EXTRAS) | {name for name, wanted in asked if wanted}


def check_contract(predictor: Predictor, spec: ModelSpec, method: Method) -> None:
    """Refuse a run for which the predictor was not trained.

    Args:
        predictor: The trained predictor.
        spec: The facts about the model of the run.
        method: The method of the run.

    Raises:
        UserError: The run differs from the predictor's contract; the message names both values.
    """
    predictor.contract.check(spec, method.scheduler.block_length, method.scheduler.alignment)
    check_hidden_states(predictor, spec)


def check_hidden_states(predictor: Predictor, spec: ModelSpec) -> None:
    """Refuse another model where the predictor reads the model's hidden states.

    Args:
        predictor: The trained predictor.
        spec: The facts about the model of the run.

    Raises:
        UserError: The predictor was trained for another model; the message names both.
    """
    contract = predictor.contract
    if predictor.network.hidden_states and contract.model_fingerprint != spec.fingerprint:
        raise UserError(
            f"the policy reads hidden states of {contract.model} ({contract.model_fingerprint}), this run has "
            f"{spec.name} ({spec.fingerprint}): use a policy that was trained for this model"
        )


def probability(
    network: PredictorNetwork,
    contract: Contract,
    state: DecodeState,
    prediction: Prediction,
    window: Window,
    width: int,
    committed: bool = False,
) -> Tensor:
    """Ask the network about a window.

    Args:
        network: The network, on the device of the run.
        contract: The contract of its predictor, which holds the ids that end answers and steps.
        state: The state before the commit.
        prediction: The proposals of this step.
        window: The window of each row.
        width: At least the length of the longest window, in tokens.
        committed: True also describes the committed tokens to the network.

    Returns:
        [B, G] float32, the probability of "yes" inside each row's window, 0 elsewhere.
    """
    columns = observe(state, prediction, contract.eot_ids, contract.delimiter_ids)
    if committed:
        columns |= observe_committed(state, prediction)
    if isinstance(network, LengthFree) and network.hidden_states:
        columns["hidden"] = in_window(network.hidden_map, prediction, window, width)
    if network.overlap:
        columns["top_ids"], columns["top_shares"] = top_in_window(prediction, window, width)
    view = cut(columns, window, width, network.sees_committed)
    return canvas_view(network.probability(view), window, state.gen_length)
