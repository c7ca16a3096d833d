"""A trained network over the windows of a step."""

from __future__ import annotations

from torch import Tensor

from learn2pd.predictors.features import cut, observe
from learn2pd.predictors.saving import Predictor
from learn2pd.tensors import canvas_view
from learn2pd.types import DecodeState, Prediction, Window


def probability(predictor: Predictor, state: DecodeState, prediction: Prediction, window: Window, width: int) -> Tensor:
    """[B, G] the predictor's probability inside each row's window, 0 elsewhere."""
    columns = observe(state, prediction, None, predictor.contract.eot_ids, predictor.contract.delimiter_ids)
    view = cut(columns, window, width, predictor.network.sees_committed)
    network = predictor.network.to(state.tokens.device)
    return canvas_view(network.probability(view), window, state.gen_length)
