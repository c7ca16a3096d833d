"""The kinds of predictors by name."""

from __future__ import annotations

from collections.abc import Callable

from learn2pd.predictors.boundary import StepEnd
from learn2pd.predictors.end_of_text import Ended
from learn2pd.predictors.filter import Final
from learn2pd.predictors.keep import Holds
from learn2pd.predictors.networks import PredictorNetwork
from learn2pd.predictors.questions import Question

QUESTIONS: dict[str, type[Question]] = {"filter": Final, "end_of_text": Ended, "boundary": StepEnd, "keep": Holds}
# The kinds that a run trains beside the filter if the user asks for them, each with the function that makes its
# untrained network. The user configures the network of the filter.
BESIDE_THE_FILTER: dict[str, Callable[[], PredictorNetwork]] = {
    "end_of_text": Ended.network,
    "boundary": StepEnd.network,
    "keep": Holds.network,
}
