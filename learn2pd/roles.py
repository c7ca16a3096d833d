"""The four roles of a decoding method: policy, scheduler, cache, stop rule."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from learn2pd.types import Commit, DecodeState, ForwardPlan, ModelSpec, Prediction, Window


class Cache(Protocol):
    name: str
    keeps: bool  # True: its plans keep keys and values
    slides: bool  # True: works where the window moves at every step, without recomputing everything each time

    def start(self, state: DecodeState, shifted_logits: bool) -> Any:
        """Memory of one run; `shifted_logits` as in the model's specification."""

    def plan(self, state: DecodeState, score: Tensor, memory: Any) -> list[ForwardPlan]:
        """The forwards of this step; `score` [B, G] bool says where proposals are wanted. A cache may score less, never more."""

    def finish(self, state: DecodeState, memory: Any) -> list[ForwardPlan]:
        """Forwards still owed when every row is done: none, but for a reference's quirk."""


class Scheduler(Protocol):
    name: str
    alignment: str  # "prompt": windows are whole blocks counted from the end of the prompt; "sliding"; "semantic": ends follow the text
    block_length: int  # tokens: of a block, of the first window, or of a block without a delimiter
    slides: bool  # True: the window moves at every step

    def check_model(self, spec: ModelSpec) -> None:
        """Raises UserError where the scheduler does not fit the model."""

    def propose(self, state: DecodeState) -> Window: ...

    def resolve(self, state: DecodeState, window: Window, prediction: Prediction) -> Window: ...


class StopRule(Protocol):
    name: str
    cuts: bool  # True: closed positions leave the sequence; False: they stay in it as end-of-text
    looks_ahead: bool  # True: proposals are wanted at every masked position, not only in the window

    def ends(self, state: DecodeState, prediction: Prediction, commit: Commit, eot_ids: tuple[int, ...]) -> Tensor:
        """Where each row ends, [B] long, never later than `state.end`; `state` is the one before the commit."""


class Policy(Protocol):
    name: str
    needs: frozenset[str]  # of the prediction: "margin", "entropy", "logits"
    scores_committed: bool  # True: wants proposals at committed positions of the window too
    window_width: int | None  # the only window length it works at; None for any

    def start(self, state: DecodeState) -> Any:
        """Memory of one run; a policy itself never changes."""

    def select(self, prediction: Prediction, eligible: Tensor, state: DecodeState, memory: Any) -> Commit:
        """Choose among `eligible` [B, G] bool. Rows without eligible positions are ignored."""
