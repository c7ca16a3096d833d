"""A trained network at work in a run: on which device it is, what it needs, what it says of a window."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from learn2pd.predictors.features import EXTRAS, cut, observe
from learn2pd.predictors.networks import PredictorNetwork
from learn2pd.predictors.saving import Contract, Predictor
from learn2pd.tensors import canvas_view
from learn2pd.types import DecodeState, ModelSpec, Prediction, RowMemory, Window

if TYPE_CHECKING:
    from learn2pd.method import Method


@dataclass(frozen=True)
class NetworkMemory(RowMemory):
    """The network where the model is; the same for all rows."""

    network: PredictorNetwork


def on_device(predictor: Predictor, state: DecodeState) -> NetworkMemory:
    """The predictor's network on the device of a run; its own network stays where it is."""
    device = state.tokens.device
    network = predictor.network
    return NetworkMemory(network if next(network.parameters()).device == device else copy.deepcopy(network).to(device))


def needs_of(predictor: Predictor) -> frozenset[str]:
    """What the network must be able to see of a prediction."""
    return frozenset(predictor.network.channels) & frozenset(EXTRAS)


def check_contract(predictor: Predictor, spec: ModelSpec, method: Method) -> None:
    """Raises UserError where a run differs from what the predictor was trained for."""
    predictor.contract.check(spec, method.scheduler.block_length, method.scheduler.alignment)


def probability(
    network: PredictorNetwork,
    contract: Contract,
    state: DecodeState,
    prediction: Prediction,
    window: Window,
    width: int,
) -> Tensor:
    """[B, G] the network's probability inside each row's window, 0 elsewhere. `width` is at least that of the longest window."""
    columns = observe(state, prediction, contract.eot_ids, contract.delimiter_ids)
    view = cut(columns, window, width, network.sees_committed)
    return canvas_view(network.probability(view), window, state.gen_length)
