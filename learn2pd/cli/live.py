"""A view of the canvas of one prompt in a terminal, as the canvas fills in."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.text import Text

from learn2pd.loop.observing import Observer
from learn2pd.models.loading import Model
from learn2pd.types import Step

SECONDS_A_STEP = 0.08  # the least number of seconds that a step stays on the screen


class LiveCanvas(Observer):
    """Shows masked positions as dots, and highlights the tokens that the last step committed.

    The canvas is shown within a `with` block.

    Args:
        model: the model, whose tokenizer decodes the tokens.
        shown: with False, the observer does nothing.
    """

    def __init__(self, model: Model, shown: bool) -> None:
        self.model = model
        self.live = Live(console=Console(stderr=True), auto_refresh=False, transient=True) if shown else None

    def __enter__(self) -> LiveCanvas:
        if self.live:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:
            self.live.stop()

    def observe(self, step: Step) -> None:
        """Show the canvas after a step."""
        if not self.live:
            return
        state = step.state
        commit = step.commit
        text = Text(f"forward {int(state.forwards[0])}\n", style="bold")
        stop = int(state.window.stop[0])  # later blocks hold nothing but masks and are not shown
        rows = (step.after.canvas, commit.mask, step.after.masked)
        for token, new, masked in zip(*(values[0, :stop].tolist() for values in rows), strict=True):
            if masked:
                text.append("·", style="dim")
            else:
                text.append(self.model.token_text(token), style="bold green" if new else "")
        self.live.update(text, refresh=True)
        time.sleep(SECONDS_A_STEP)
