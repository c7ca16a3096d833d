"""Observers of a run: an observer gets every step, and may ask for more proposals than the method needs."""

from __future__ import annotations

from collections.abc import Callable

from learn2pd.types import Step


class Observer:
    """The base class of all observers. Its own `observe` does nothing.

    An observer changes no answer, with one exception: at a temperature above 0, the noise of a row is drawn in the
    order of its scored positions, so that an observer that asks for more positions makes a run draw other samples.

    Attributes:
        needs: The extras of the prediction that the observer reads, as for a role.
        scores_committed: True asks the model for proposals at the committed positions of the window too.
        looks_ahead: True asks the model for proposals at every masked position, and not only in the window.
    """

    needs: frozenset[str] = frozenset()
    scores_committed: bool = False
    looks_ahead: bool = False

    def observe(self, step: Step) -> None:
        """Receive a step. The loop calls this method in every step, after the commit.

        Args:
            step: The states before and after the commit, the prediction and the commit.
        """


class CallbackObserver(Observer):
    """An observer that hands every step to a function.

    Args:
        on_step: The function. Its result is ignored.
    """

    def __init__(self, on_step: Callable[[Step], object]) -> None:
        self.on_step = on_step

    def observe(self, step: Step) -> None:
        self.on_step(step)
