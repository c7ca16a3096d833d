"""Every kind of predictor by its name."""

from __future__ import annotations

from collections.abc import Callable

from learn2pd.predictors.boundary import StepEnd
from learn2pd.predictors.end_of_text import Ended
from learn2pd.predictors.filter import Final
from learn2pd.predictors.networks import PredictorNetwork
from learn2pd.predictors.questions import Question

QUESTIONS: dict[str, type[Question]] = {"filter": Final, "end_of_text": Ended, "boundary": StepEnd}
# kinds that a run trains only where it is asked to, with their untrained networks; the filter's is configured
BESIDE_THE_FILTER: dict[str, Callable[[], PredictorNetwork]] = {
    "end_of_text": Ended.network,
    "boundary": StepEnd.network,
}
