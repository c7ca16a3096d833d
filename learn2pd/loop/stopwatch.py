"""Where the time of a run goes."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterator

import torch

PARTS = ("forward", "score", "policy")  # the rest of a run is bookkeeping


class Stopwatch:
    """Seconds by part. Queued device work counts to the part that queued it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = defaultdict(float)

    @contextlib.contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        started = self._now()
        try:
            yield
        finally:
            self.seconds[part] += self._now() - started

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()
