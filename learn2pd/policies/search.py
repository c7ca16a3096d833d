"""The search oracle (ours): the boldest commits, in a policy's own order, whose continuation is still right.

The rule: the eligible positions are ordered by a score. The policy commits the first k of them with their proposals,

    k = the largest number, found by bisection between 1 and all, for which `still_right` holds,

where `still_right` decodes the rest with one token a step and judges the answer. The score is the confidence, or the
probability of a trained filter. The result says what any policy with these proposals and this order could reach, where
the oracle of policies/oracle.py knows choices that nobody could know.

Bisection assumes that fewer commits are never worse, so a larger k may exist where they are. A step costs at most
2 + log2(W) continuations for a window of W positions; their forwards are counted as those of an auxiliary model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from learn2pd.errors import UserError
from learn2pd.predictors.filter import FilterPolicy, load_policy
from learn2pd.roles import Policy
from learn2pd.types import Commit, DecodeState, ModelSpec, Prediction

if TYPE_CHECKING:
    from learn2pd.method import Method


@runtime_checkable
class StillRight(Protocol):
    """Continues canvases with one token a step and judges the answers."""

    def __call__(self, index: Tensor, canvas: Tensor) -> tuple[Tensor, Tensor]:
        """Continue canvases.

        Args:
            index: [R] long, the number of each row's prompt in the caller's list.
            canvas: [R, G] long, the committed tokens, -1 at positions that are still to decode.

        Returns:
            [R] bool, whether the answer is right; and [R] long, the forwards that the continuation took.
        """


class SearchPolicy(Policy):
    """The search oracle.

    Args:
        still_right: Continues and judges; None in a policy that is only checked and not run.
        filter: The folder or hub name of a trained filter whose probability orders the positions; None orders them by
            confidence.
    """

    name = "search"
    knows_answer = True
    auxiliary = True
    reads_canvas = True

    def __init__(self, still_right: StillRight | None, filter: str | None = None) -> None:
        self.still_right = still_right
        self.filter = filter
        self.scorer: FilterPolicy | None = None if filter is None else load_policy(filter)
        if self.scorer is not None:
            self.needs = self.scorer.needs
            self.scores_committed = self.scorer.scores_committed
            self.window_width = self.scorer.window_width

    def options(self) -> dict[str, Any]:
        return {"filter": self.filter if self.scorer is None else self.scorer.predictor.fingerprint}

    def describe(self) -> dict[str, Any]:
        raise UserError("SearchPolicy judges answers by a function, which has no name to be saved by")

    def check(self, spec: ModelSpec, method: Method) -> None:
        super().check(spec, method)
        if self.scorer is not None:
            self.scorer.check(spec, method)

    def start(self, state: DecodeState, spec: ModelSpec) -> Any:
        return None if self.scorer is None else self.scorer.start(state, spec)

    def select(self, prediction: Prediction, eligible: Tensor, state: DecodeState, memory: Any) -> Commit:
        score = prediction.confidence if self.scorer is None else self.scorer.probability(prediction, state, memory)
        order = score.masked_fill(~eligible, -torch.inf).argsort(dim=1, descending=True, stable=True)
        rank = order.argsort(dim=1)
        all_of_them = eligible.sum(1)
        forwards = torch.zeros_like(all_of_them)
        # One token a step commits the most confident position next, so that this one needs no test. Where a filter's
        # first position is wrong, none is committed here, and the loop adds the most confident one.
        right = all_of_them.clamp_max(1) if self.scorer is None else forwards
        wrong = all_of_them + 1
        guess = all_of_them
        while bool((asked := wrong - right > 1).any()):
            rows = asked.nonzero()[:, 0]
            committed = ~state.masked[rows] | (eligible[rows] & (rank[rows] < guess[rows, None]))
            tokens = torch.where(state.masked[rows], prediction.tokens[rows], state.canvas[rows])
            holds, taken = self._continued(state.index[rows], torch.where(committed, tokens, -1))
            forwards = forwards.index_add(0, rows, taken)
            right = right.index_put((rows,), torch.where(holds, guess[rows], right[rows]))
            wrong = wrong.index_put((rows,), torch.where(holds, wrong[rows], guess[rows]))
            guess = (right + wrong) // 2
        return Commit(eligible & (rank < right[:, None]), auxiliary=forwards)

    def _continued(self, index: Tensor, canvas: Tensor) -> tuple[Tensor, Tensor]:
        if self.still_right is None:
            raise ValueError("still_right is None: this policy was built to be checked and not to be run")
        return self.still_right(index, canvas)
