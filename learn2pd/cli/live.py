"""Show the canvas of one prompt filling in, in a terminal."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.text import Text

from learn2pd.models.loading import Model
from learn2pd.types import Commit, DecodeState, Prediction

SECONDS_A_STEP = 0.08  # the least time a step stays on the screen


class LiveCanvas:
    """A loop recorder: masks as dots, tokens of this step highlighted. With `shown=False` it does nothing."""

    needs: frozenset[str] = frozenset()
    scores_committed, looks_ahead = False, False

    def __init__(self, model: Model, shown: bool) -> None:
        self.model = model
        self.live = Live(console=Console(stderr=True), auto_refresh=False, transient=True) if shown else None

    def __enter__(self) -> LiveCanvas:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.live:
            self.live.stop()

    def record(self, state: DecodeState, prediction: Prediction, commit: Commit) -> None:
        if not self.live:
            return
        written = prediction.tokens if commit.tokens is None else commit.tokens
        text = Text(f"forward {int(state.forwards[0])}\n", style="bold")
        stop = int(state.window.stop[0])  # later blocks are all masks: not worth the screen
        for token, now, masked, new in zip(
            state.canvas[0, :stop].tolist(), commit.mask[0, :stop].tolist(), state.masked[0, :stop].tolist(), written[0, :stop].tolist(), strict=True
        ):
            if masked and not now:
                text.append("·", style="dim")
            else:
                text.append(self.model.tokenizer.decode([new if now else token]), style="bold green" if now else "")
        self.live.update(text, refresh=True)
        time.sleep(SECONDS_A_STEP)
