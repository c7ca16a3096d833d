"""Who watches a run: an observer gets every step, and may ask for more proposals than the method needs."""

from __future__ import annotations

from collections.abc import Callable

from learn2pd.types import Step


class Observer:
    """Watches a run; this one does nothing.

    Attributes:
        needs: extras of the prediction that it reads, as for a role.
        scores_committed: True asks for proposals at committed positions of the window too.
        looks_ahead: True asks for proposals at every masked position, not only in the window.
    """

    needs: frozenset[str] = frozenset()
    scores_committed: bool = False
    looks_ahead: bool = False

    def observe(self, step: Step) -> None:
        """Called once a step, after the commit."""


class CallbackObserver(Observer):
    """Hands every step to a function."""

    def __init__(self, on_step: Callable[[Step], object]) -> None:
        self.on_step = on_step

    def observe(self, step: Step) -> None:
        self.on_step(step)
