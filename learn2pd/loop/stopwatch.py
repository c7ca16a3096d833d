"""A stopwatch that adds up the seconds of the parts of a run."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterator

import torch

PARTS = ("forward", "score", "policy")  # the rest of a run is bookkeeping


class Stopwatch:
    """Adds up seconds by part. Work that waits in the device's queue counts to the part that queued it.

    Args:
        device: The device of the run.

    Attributes:
        seconds: The seconds of each part so far.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = defaultdict(float)

    @contextlib.contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Count the time inside a `with` block.

        Args:
            part: One of `PARTS`.
        """
        started = self._now()
        try:
            yield
        finally:
            self.seconds[part] += self._now() - started

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()
