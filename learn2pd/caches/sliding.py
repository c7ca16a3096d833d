"""What caches of sliding windows remember of a run."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass
class SlidingMemory:
    lead: int
    start: Tensor  # [B] long, start of the last window
    since: Tensor  # [B] long, tokens committed since everything was last recomputed, -1 before
