"""What to commit: each rule takes candidates, which map a position to its confidence, and returns positions."""

from __future__ import annotations

from collections.abc import Callable

Candidates = dict[int, float]
Rule = Callable[[Candidates], set[int]]


def by_confidence(candidates: Candidates) -> list[int]:
    """The positions, the most confident first and the leftmost first among equals."""
    return sorted(candidates, key=lambda position: (-candidates[position], position))


def at_least_one(taken: set[int], candidates: Candidates) -> set[int]:
    """What a rule took, or the most confident candidate where it took nothing."""
    return taken or set(by_confidence(candidates)[:1])


def threshold(value: float) -> Rule:
    """Fast-dLLM: every candidate with at least this confidence."""

    def rule(candidates: Candidates) -> set[int]:
        return {position for position, confidence in candidates.items() if confidence >= value}

    return rule


def quota(count: int) -> Rule:
    """LLaDA: the `count` most confident candidates."""

    def rule(candidates: Candidates) -> set[int]:
        return set(by_confidence(candidates)[:count])

    return rule


def leftmost(count: int) -> Rule:
    """The baseline of APD: the `count` leftmost candidates."""

    def rule(candidates: Candidates) -> set[int]:
        return set(sorted(candidates)[:count])

    return rule


def factor(value: float) -> Rule:
    """Fast-dLLM: ranks 1, 2, ... until the first with c < 1 - f / (rank + 1); rank 1 always passes."""

    def rule(candidates: Candidates) -> set[int]:
        taken: set[int] = set()
        for rank, position in enumerate(by_confidence(candidates), start=1):
            if rank > 1 and candidates[position] < 1 - value / (rank + 1):
                break
            taken.add(position)
        return taken

    return rule


def localleap(anchor: float, relaxed: float, radius: int) -> Rule:
    """LocalLeap: candidates that reach `anchor`, and those near them that reach `relaxed`.

    Near is at most `radius` positions away.
    """

    def rule(candidates: Candidates) -> set[int]:
        anchors = [position for position, confidence in candidates.items() if confidence >= anchor]
        taken = set(anchors)
        for position, confidence in candidates.items():
            near = any(abs(position - other) <= radius for other in anchors)
            if near and confidence >= relaxed:
                taken.add(position)
        return taken

    return rule


def low_confidence(value: float, count: int) -> Rule:
    """SDAR: every candidate above the threshold if they are `count` at least, else the `count` most confident ones."""

    def rule(candidates: Candidates) -> set[int]:
        sure = {position for position, confidence in candidates.items() if confidence > value}
        return sure if len(sure) >= count else quota(count)(candidates)

    return rule


def entropy_sum(bound: float) -> Rule:
    """JetEngine: the candidates of lowest entropy, as long as their entropies add up to less than the bound."""

    def rule(entropies: Candidates) -> set[int]:
        taken: set[int] = set()
        total = 0.0
        for position in sorted(entropies, key=lambda position: (entropies[position], position)):
            total += entropies[position]
            if taken and total >= bound:
                break
            taken.add(position)
        return taken

    return rule
