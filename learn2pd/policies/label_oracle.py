"""The oracle of a label (ours): the commits of a filter that has learnt its label without any mistake.

The rule: the policy commits exactly the eligible positions whose proposals the label calls right in this state. Where
it calls none right, the loop adds the most confident position.

- With `continuation`, a proposal is right if it equals what one token a step writes from this state.
- With `checked`, it is right if the answer is right that one token a step writes after this proposal alone was
  committed. Proposals that are right alone may be wrong together, so that this oracle loses accuracy: as much as a
  label of single positions cannot see.
- With `checked_together`, the proposal was committed together with all those of the window that one token a step writes
  from this state itself. Only two proposals that it does not write can still be wrong together.

The oracle of the label `reference` is that of policies/oracle.py. The forwards of the continuations are counted as
those of an auxiliary model.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from learn2pd.errors import UserError
from learn2pd.roles import Policy
from learn2pd.types import Commit, DecodeState, Prediction

LABELS = ("continuation", "checked", "checked_together")


@runtime_checkable
class Labelled(Protocol):
    """Says which proposals a label calls right."""

    def __call__(
        self, labels: str, index: Tensor, canvas: Tensor, proposals: Tensor, asked: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Label proposals.

        Args:
            labels: One of `LABELS`.
            index: [R] long, the number of each row's prompt in the caller's list.
            canvas: [R, G] long, the committed tokens, -1 at positions that are still to decode.
            proposals: [R, G] long, the proposed tokens.
            asked: [R, G] bool, the masked positions whose labels are wanted.

        Returns:
            [R, G] bool, whether the proposals are right; and [R] long, the forwards that it took.
        """


class LabelOracle(Policy):
    """The oracle of a label.

    Args:
        labelled: Labels proposals; None in a policy that is only checked and not run.
        labels: The label: `continuation`, `checked` or `checked_together`.

    Raises:
        ValueError: There is no such label.
    """

    name = "label_oracle"
    knows_answer = True
    auxiliary = True
    reads_canvas = True

    def __init__(self, labelled: Labelled | None, labels: str = "continuation") -> None:
        if labels not in LABELS:
            expected = ", ".join(LABELS)
            raise ValueError(f"labels={labels!r}: expected {expected}; the policy oracle is the one of the reference")
        self.labelled = labelled
        self.labels = labels

    def options(self) -> dict[str, Any]:
        return {"labels": self.labels}

    def describe(self) -> dict[str, Any]:
        raise UserError("LabelOracle labels proposals by a function, which has no name to be saved by")

    def select(self, prediction: Prediction, eligible: Tensor, state: DecodeState, memory: None) -> Commit:
        if self.labelled is None:
            raise ValueError("labelled is None: this policy was built to be checked and not to be run")
        rows = eligible.any(1).nonzero()[:, 0]
        canvas = torch.where(state.masked, -1, state.canvas)
        right, taken = self.labelled(
            self.labels, state.index[rows], canvas[rows], prediction.tokens[rows], eligible[rows]
        )
        commit = torch.zeros_like(eligible).index_put((rows,), right)
        forwards = torch.zeros_like(state.forwards).index_put((rows,), taken)
        return Commit(commit & eligible, auxiliary=forwards)
