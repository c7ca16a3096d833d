"""A stopwatch that adds up the seconds of the parts of a run."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping

import torch

PARTS = ("forward", "score", "policy")  # the rest of a run is bookkeeping


class Stopwatch:
    """Adds up seconds by part.

    On a CUDA device the seconds are those between two marks in the device's queue, so that taking the time never waits
    for the device. Only reading `seconds` does.

    Args:
        device: The device of the run.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._seconds: dict[str, float] = defaultdict(float)
        self._marks: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @property
    def seconds(self) -> Mapping[str, float]:
        """The seconds of each part so far."""
        if self._marks:
            self._marks[-1][2].synchronize()
            self._count_passed()
        return self._seconds

    @contextlib.contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Count the time inside a `with` block.

        Args:
            part: One of `PARTS`.
        """
        if self.device.type == "cuda":
            self._count_passed()
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record(torch.cuda.current_stream(self.device))
            try:
                yield
            finally:
                last.record(torch.cuda.current_stream(self.device))
                self._marks.append((part, first, last))
            return
        started = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[part] += time.perf_counter() - started

    def _count_passed(self) -> None:
        """Add up the parts whose last mark the device has passed."""
        passed = 0
        for part, first, last in self._marks:
            if not last.query():
                break
            self._seconds[part] += first.elapsed_time(last) / 1000
            passed += 1
        del self._marks[:passed]
