"""The time that an autoregressive method takes on two devices, as a model.

The model counts forwards alone: a forward of the target takes `target_s`, one of the draft `draft_s`. Plain and
speculative decoding add all of them up. In PEARL a round takes as long as the slower of one forward of the target and
of one draft, since each has a device of its own. Everything else, such as the way of tokens between devices, takes no
time. So the result is what two devices could reach at best, for one prompt at a time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from learn2pd.autoregressive.methods import AutoregressiveMethod
from learn2pd.autoregressive.model import CausalModel, Runner

STATED_RATIO = 5  # the target's forward takes as long as this many of the draft's, where no measurement is used
COLUMNS = 64  # tokens before those of a measured forward
REPETITIONS = 15  # the fastest of them counts, since other work on the machine only makes a forward slower


@dataclass(frozen=True)
class Drafting:
    """What the draft of a method did, and what the forwards cost.

    Attributes:
        accepted: The tokens of the draft that stand in each answer.
        runs: How often the draft began to write anew, for each prompt.
        draft_length: The tokens that the draft writes in a round, 0 without a draft.
        overlaps: Whether draft and target run at the same time.
        plain_s: The measured seconds of a forward of the target with one token of one row.
        target_s: The same with as many tokens as the method's target takes at once.
        draft_s: The measured seconds of a forward of the draft, 0 without a draft.
    """

    accepted: list[int]
    runs: list[int]
    draft_length: int
    overlaps: bool
    plain_s: float
    target_s: float
    draft_s: float

    @property
    def accepted_mean(self) -> float | None:
        """The mean number of tokens of the draft that stand in a run of it; None without a draft."""
        return sum(self.accepted) / sum(self.runs) if sum(self.runs) else None


def joined(parts: Sequence[Drafting]) -> Drafting | None:
    """Join what a draft did on several tasks. The costs are those of the first one.

    Args:
        parts: One entry for each task.

    Returns:
        All prompts in one; None where there are no entries.
    """
    if not parts:
        return None
    return replace(
        parts[0],
        accepted=[count for part in parts for count in part.accepted],
        runs=[count for part in parts for count in part.runs],
    )


def modelled_seconds(forwards: int, draft_forwards: int, overlaps: bool, target_s: float, draft_s: float) -> float:
    """Return the modelled seconds of a method.

    Args:
        forwards: The forwards of the target.
        draft_forwards: The forwards of the draft.
        overlaps: Whether the two run at the same time; every round then has one forward of the target and as many of
            the draft as another round.
        target_s: The seconds of a forward of the target.
        draft_s: The seconds of a forward of the draft.
    """
    target, draft = forwards * target_s, draft_forwards * draft_s
    return max(target, draft) if overlaps else target + draft


def measure_costs(method: AutoregressiveMethod) -> tuple[float, float, float]:
    """Measure what a forward of one row costs, on the devices of the method, one forward after the other.

    Args:
        method: The method.

    Returns:
        The seconds of a forward of the target with one token, of one with as many tokens as the method tests at once,
        and of a forward of the draft with one token, 0 without a draft.
    """
    alone = _Forward(method.target, 1)
    if method.draft is None:
        (plain_s,) = fastest([alone])
        return plain_s, plain_s, 0.0
    tested = _Forward(method.target, method.draft_length + (not method.overlaps))
    plain_s, target_s, draft_s = fastest([alone, tested, _Forward(method.draft, 1)])
    return plain_s, target_s, draft_s


class _Forward:
    """A forward of one row behind a cache of 64 tokens, or of what the model allows.

    Args:
        model: The model.
        tokens: The tokens that the forward computes.
    """

    def __init__(self, model: CausalModel, tokens: int) -> None:
        before = max(1, min(COLUMNS, model.max_length - tokens))
        self.tokens = tokens
        self.row = torch.zeros(1, dtype=torch.long)
        self.text = torch.zeros(1, before + tokens, dtype=torch.long)
        self.start = torch.tensor([before])
        self.runner = Runner(model, 1, before + tokens)
        self.runner.predict(self.row, self.text, self.row, self.start, 1)

    def __call__(self) -> None:
        """Run the forward once."""
        self.runner.predict(self.row, self.text, self.start, self.start + self.tokens, self.tokens)


def fastest(actions: Sequence[Callable[[], None]]) -> list[float]:
    """Measure actions in turn, several times.

    Args:
        actions: What is measured.

    Returns:
        The least seconds that each of them took.
    """
    seconds = [float("inf")] * len(actions)
    for _ in range(REPETITIONS):
        for number, action in enumerate(actions):
            started = time.perf_counter()
            action()
            seconds[number] = min(seconds[number], time.perf_counter() - started)
    return seconds
