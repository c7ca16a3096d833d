"""The four roles of a decoding method: policy, scheduler, cache, stop rule.

Every role has one shape. `check` refuses, before anything runs, what does not fit the model or the other three; `start` makes the memory of one
run; one verb acts in every step (`select`, `propose` with `resolve`, `plan`, `ends`). A component never changes once it is built, so that several
runs can share it. What changes in a run is in `DecodeState`, or in the memory that `start` returned.

A memory is None or a `RowMemory`: immutable, one entry a row, so that rows can be taken out of a run and put into another.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from typing import TYPE_CHECKING, Any

from torch import Tensor

from learn2pd.errors import UserError
from learn2pd.types import Commit, DecodeState, ForwardPlan, ModelSpec, Prediction, Window

if TYPE_CHECKING:
    from learn2pd.method import Method


class Role:
    """What the four roles share.

    Attributes:
        name: what messages and tables call the component. Nothing depends on it.
        needs: extras of the prediction that the component reads, such as `margin`, `entropy`, `logits`, `leave_one_out`.
        learned: whether it was trained.
        built_by: the function that the registry builds it by, `module:function`; empty where that is its class.
    """

    name: str
    needs: frozenset[str] = frozenset()
    learned: bool = False
    built_by: str = ""

    def check(self, spec: ModelSpec, method: Method) -> None:
        """Refuse a model or a method that the component does not fit.

        Raises:
            UserError: naming both sides.
        """

    def start(self, state: DecodeState, spec: ModelSpec) -> Any:
        """The memory of one run; None where the component remembers nothing."""
        return None

    def options(self) -> dict[str, Any]:
        """The arguments of the constructor that would build this component again; each is kept in the attribute of its name."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def describe(self) -> dict[str, Any]:
        """The options by which the registry builds this component, as JSON values.

        Raises:
            UserError: one of them is no JSON value.
        """
        for name, value in self.options().items():
            if not isinstance(value, bool | int | float | str | list | tuple | dict | None):
                raise UserError(
                    f"{type(self).__name__}: its option {name} is a {type(value).__name__}, which has no name to be saved by"
                )
        return self.options()

    @property
    def fingerprint(self) -> str:
        """16 hex digits of the class and its options, and of the file of a class that is not this package's."""
        described = [f"{type(self).__module__}:{type(self).__qualname__}", _own_source(type(self)), self.options()]
        return hashlib.sha256(json.dumps(described, default=_identity, sort_keys=True).encode()).hexdigest()[:16]

    def __repr__(self) -> str:
        given = inspect.signature(type(self)).parameters
        shown = [f"{name}={value!r}" for name, value in self.options().items() if value != given[name].default]
        return f"{type(self).__name__}({', '.join(shown)})"


def _own_source(role: type) -> str:
    """The source of the module of a user's own class; nothing for this package, whose version says what it does."""
    if role.__module__.partition(".")[0] == "learn2pd":
        return ""
    try:
        return inspect.getsource(inspect.getmodule(role) or role)
    except (OSError, TypeError):  # typed into an interpreter
        return ""


def _identity(option: Any) -> Any:
    """What identifies an option that is no JSON value."""
    if isinstance(option, Tensor):
        return hashlib.sha256(option.detach().cpu().contiguous().numpy().tobytes()).hexdigest()
    return option.fingerprint


class Policy(Role):
    """What to commit, and what to take back.

    Attributes:
        scores_committed: True asks for proposals at committed positions of the window too.
        window_width: the only window length that the policy works at; None for any.
        revisions: number of first steps in which the policy may revoke or overwrite committed tokens; it bounds the run.
        auxiliary: whether it runs a model of its own.
        knows_answer: whether it was given the answer beforehand.
    """

    scores_committed: bool = False
    window_width: int | None = None
    revisions: int = 0
    auxiliary: bool = False
    knows_answer: bool = False

    def check(self, spec: ModelSpec, method: Method) -> None:
        geometry = (method.scheduler.block_length, method.scheduler.alignment)
        if self.window_width is not None and geometry != (self.window_width, "prompt"):
            raise UserError(
                f"policy {self.name!r} works on blocks of {self.window_width} tokens, "
                f"scheduler {method.scheduler.name!r} opens {geometry[1]} windows of {geometry[0]}"
            )

    def select(self, prediction: Prediction, eligible: Tensor, state: DecodeState, memory: Any) -> Commit:
        """Choose what to commit.

        Args:
            prediction: the proposals of this step.
            eligible: [B, G] bool, masked positions of the window that may be committed. Rows without any are ignored.
            state: before the commit.
            memory: what `start`, or the last commit's `memory`, holds.

        Returns:
            The commit. While `state.step < revisions` it may also revoke or overwrite committed positions of the window.
        """
        raise NotImplementedError


class Scheduler(Role):
    """Where a policy may commit next. A window that stays open over several steps is read from `state.window`.

    Attributes:
        alignment: `prompt`: windows are whole blocks counted from the end of the prompt; `grid`: counted from the first token of the prompt;
            `sliding`: windows move with the leftmost mask; `semantic`: their ends follow the text.
        block_length: tokens of a block, of the first window, or of a block without a delimiter.
        slides: True where the window moves at every step.
    """

    alignment: str
    block_length: int
    slides: bool = False

    def check(self, spec: ModelSpec, method: Method) -> None:
        fits = (self.alignment, self.block_length) == ("grid", spec.causal_block)
        if spec.causal_block is not None and not fits:
            raise UserError(
                f"{spec.name} reads blocks of {spec.causal_block} tokens from the start of the sequence, scheduler {self.name!r} opens "
                f"{self.alignment} windows of {self.block_length}: use BlocksScheduler({spec.causal_block}, alignment='grid')"
            )

    def propose(self, state: DecodeState, memory: Any) -> Window:
        """The window, before the forward."""
        raise NotImplementedError

    def resolve(self, state: DecodeState, window: Window, prediction: Prediction, memory: Any) -> Window:
        """The window, after the forward; for schedulers that depend on the proposals. It lies within `window`."""
        return window


class Cache(Role):
    """What a step recomputes.

    Attributes:
        keeps: True where its plans keep keys and values.
        slides: True where it works with a window that moves at every step, without recomputing everything each time.
    """

    keeps: bool = True
    slides: bool = False

    def check(self, spec: ModelSpec, method: Method) -> None:
        if method.scheduler.slides and not self.slides:
            raise UserError(
                f"cache {self.name!r} is refilled when a block opens, scheduler {method.scheduler.name!r} moves its window at every step: "
                "use cache none or dsb, or scheduler blocks or adablock"
            )

    def plan(self, state: DecodeState, score: Tensor, memory: Any) -> tuple[list[ForwardPlan], Any]:
        """The forwards of this step.

        Args:
            score: [B, G] bool, where proposals are wanted. A cache may score less, never more.

        Returns:
            The plans, and the memory of the next step.
        """
        raise NotImplementedError


class StopRule(Role):
    """Where a row ends, decided after each commit.

    Attributes:
        cuts: True where closed positions leave the sequence; False where they stay in it as end-of-text.
        looks_ahead: True asks for proposals at every masked position, not only in the window.
    """

    cuts: bool = False
    looks_ahead: bool = False

    def ends(self, state: DecodeState, prediction: Prediction, commit: Commit, memory: Any) -> Tensor:
        """Where each row ends, [B] long, never later than `state.end`; `state` is the one before the commit."""
        raise NotImplementedError


ROLES: dict[str, type[Role]] = {"policy": Policy, "scheduler": Scheduler, "cache": Cache, "stop": StopRule}
