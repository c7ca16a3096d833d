"""The four roles of a decoding method: policy, scheduler, cache, stop rule.

A component is one object of a role, such as `ThresholdPolicy(0.9)`. Every role has the same three kinds of methods:

- `check` runs before the first step. It refuses a model, or other components, that the component does not fit.
- `start` makes the component's memory of one run.
- One verb acts in every step: `select`, `propose` with `resolve`, `plan` or `ends`.

A component never changes after it is built, so that several runs can share it. Everything that changes during a run is
in `DecodeState`, or in the memory that `start` returned.

A memory is None or a `RowMemory`. A `RowMemory` is immutable and has one entry for each row, so that rows can be taken
out of one run and put into another.

In the shapes, B is the number of rows of the batch and G the number of positions of the canvas.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from typing import TYPE_CHECKING, Any

from torch import Tensor

from learn2pd.arguments import checked
from learn2pd.errors import UserError
from learn2pd.kinds import plain
from learn2pd.types import Commit, DecodeState, ForwardPlan, ModelSpec, Prediction, Window

if TYPE_CHECKING:
    from learn2pd.method import Method


REVISIONS = 4096  # `Policy.revisions` of the rules that take back; a run takes fewer steps than this


class Role:
    """The part that the four roles share.

    Attributes:
        name: The name of the component in messages and tables. No behaviour depends on it.
        needs: The extras of the prediction that the component reads, such as `margin`, `entropy`, `logits` or
            `leave_one_out`.
        learned: Whether the component was trained.
        built_by: The function by which the registry builds the component, as `module:function`. It is empty where the
            registry calls the class.
    """

    name: str
    needs: frozenset[str] = frozenset()
    learned: bool = False
    built_by: str = ""

    def __init_subclass__(cls, **arguments: Any) -> None:
        """Refuse a constructor whose parameter has the name of a method, and let others check their arguments.

        A constructor is wrapped, so that an argument of another type than its annotation is refused by a `UserError`.

        Raises:
            TypeError: The value could not be kept in the attribute of its name, by which `options` reads it.
        """
        super().__init_subclass__(**arguments)
        for name in inspect.signature(cls).parameters:
            if name not in ("args", "kwargs") and callable(getattr(Role, name, None)):
                raise TypeError(
                    f"{cls.__name__}: its option {name!r} has the name of a method of every role: rename the option"
                )
        if "__init__" in vars(cls):
            cls.__init__ = checked()(cls.__init__)  # type: ignore[method-assign]

    def check(self, spec: ModelSpec, method: Method) -> None:
        """Refuse a model or a method that the component does not fit.

        Args:
            spec: The facts about the model.
            method: The method of which this component is a part.

        Raises:
            UserError: The component does not fit; the message names both sides.
        """

    def start(self, state: DecodeState, spec: ModelSpec) -> Any:
        """Make the memory of one run.

        Args:
            state: The state before the first step.
            spec: The facts about the model.

        Returns:
            A `RowMemory`, or None where the component remembers nothing.
        """
        return None

    def options(self) -> dict[str, Any]:
        """Return the arguments with which the constructor would build this component again.

        The method reads each argument from the attribute of the same name.

        Returns:
            The value of every parameter of the constructor, by its name.
        """
        return {name: plain(getattr(self, name)) for name in inspect.signature(type(self)).parameters}

    def describe(self) -> dict[str, Any]:
        """Return the options with which the registry builds this component, as JSON values.

        Returns:
            The options by name.

        Raises:
            UserError: One of the options is not a JSON value.
        """
        for name, value in self.options().items():
            if not isinstance(value, bool | int | float | str | list | tuple | dict | None):
                raise UserError(
                    f"{type(self).__name__}: its option {name} is a {type(value).__name__}, "
                    "which has no name to be saved by"
                )
        return self.options()

    @property
    def fingerprint(self) -> str:
        """16 hex digits that identify the component.

        They depend on the class and its options. For a class outside this package they also depend on its source file.
        """
        described = [f"{type(self).__module__}:{type(self).__qualname__}", _own_source(type(self)), self.options()]
        return hashlib.sha256(json.dumps(described, default=_identity, sort_keys=True).encode()).hexdigest()[:16]

    def __repr__(self) -> str:
        given = inspect.signature(type(self)).parameters
        shown = [f"{name}={value!r}" for name, value in self.options().items() if value != given[name].default]
        return f"{type(self).__name__}({', '.join(shown)})"


def _own_source(role: type) -> str:
    """Return the source of the module of a user's own class.

    The result is empty for a class of this package, since the version of the package already identifies its code.
    """
    if role.__module__.partition(".")[0] == "learn2pd":
        return ""
    try:
        return inspect.getsource(inspect.getmodule(role) or role)
    except (OSError, TypeError):  # the class was typed into an interpreter and has no source file
        return ""


def _identity(option: Any) -> Any:
    """Return a text that identifies an option that is not a JSON value."""
    if isinstance(option, Tensor):
        return hashlib.sha256(option.detach().cpu().contiguous().numpy().tobytes()).hexdigest()
    return option.fingerprint


class Policy(Role):
    """The role that decides which proposals are committed, and which commits are taken back.

    Attributes:
        scores_committed: True asks the model for proposals at the committed positions of the window too.
        looks_ahead: True asks for proposals on the whole canvas, and not only in the window: at every masked position,
            and with `scores_committed` at every position. Such a policy may commit masked positions outside the window.
        reads_canvas: True where the decisions depend on more than the window: on the length of the canvas, on the
            tokens outside the window, or on the steps of the whole run. Engines that decode block by block refuse such
            a policy.
        window_width: The only window length, in tokens, with which the policy works; None stands for any length.
        revisions: The number of steps, from the first one on, in which the policy may revoke or overwrite committed
            tokens. The number is finite, so that every run ends.
        auxiliary: Whether the policy runs a model of its own.
        knows_answer: Whether the caller gave the policy the answer before the run.
    """

    scores_committed: bool = False
    looks_ahead: bool = False
    reads_canvas: bool = False
    window_width: int | None = None
    revisions: int = 0
    auxiliary: bool = False
    knows_answer: bool = False

    def check(self, spec: ModelSpec, method: Method) -> None:
        scheduler = method.scheduler
        blocks = scheduler.alignment in ("prompt", "grid") and scheduler.block_length == self.window_width
        if self.window_width is not None and not blocks:
            raise UserError(
                f"policy {self.name!r} works on blocks of {self.window_width} tokens, "
                f"scheduler {scheduler.name!r} opens {scheduler.alignment} windows of {scheduler.block_length}"
            )

    def select(self, prediction: Prediction, eligible: Tensor, state: DecodeState, memory: Any) -> Commit:
        """Decide which positions are committed in this step.

        Args:
            prediction: The proposals of this step.
            eligible: [B, G] bool, the masked positions of the window that the policy may commit; a commit of any other
                position is an error. A policy that looks ahead may also commit other positions that are masked and
                valid.
            state: The state before the commit.
            memory: The memory that `start` returned, or the `memory` of the latest commit that carried one.

        Returns:
            The commit. While `state.step < revisions` it may also revoke or overwrite committed positions of the
            window.
        """
        raise NotImplementedError


class Scheduler(Role):
    """The role that decides where the policy may commit next: it opens a window in every row.

    A scheduler that keeps a window open over several steps reads the window from `state.window`.

    Attributes:
        alignment: How the windows lie. With `prompt` they are blocks that are counted from the end of the prompt. With
            `grid` they are blocks that are counted from the first token of the prompt. With `sliding` they move with
            the leftmost mask. With `semantic` their ends follow the text.
        block_length: The tokens of a block, of the first window, or of a block in which no delimiter was proposed.
        slides: True where the window moves at every step.
    """

    alignment: str
    block_length: int
    slides: bool = False

    def check(self, spec: ModelSpec, method: Method) -> None:
        fits = (self.alignment, self.block_length) == ("grid", spec.causal_block)
        if spec.causal_block is not None and not fits:
            raise UserError(
                f"{spec.name} reads blocks of {spec.causal_block} tokens from the start of the sequence, "
                f"scheduler {self.name!r} opens {self.alignment} windows of {self.block_length}: "
                f"use BlocksScheduler({spec.causal_block}, alignment='grid'), "
                f"in a configuration scheduler blocks with decode.block_length={spec.causal_block}"
            )

    def propose(self, state: DecodeState, memory: Any) -> Window:
        """Open a window in every row, before the forward.

        Args:
            state: The state before the step.
            memory: The memory that `start` returned.

        Returns:
            The window of each row.
        """
        raise NotImplementedError

    def resolve(self, state: DecodeState, window: Window, prediction: Prediction, memory: Any) -> Window:
        """Shorten the window after the forward, for schedulers that depend on the proposals.

        Args:
            state: The state before the commit.
            window: The window that `propose` opened.
            prediction: The proposals of this step.
            memory: The memory that `start` returned.

        Returns:
            The window in which the policy may commit. It lies within `window`.
        """
        return window


class Cache(Role):
    """The role that decides which columns a step recomputes.

    A cache works on the host: its states, scores, plans and memories lie in the memory of the CPU, whatever the device
    of the model. So it may read values, and the size of a forward is known without waiting for the device.

    Attributes:
        keeps: True where the plans of the cache keep keys and values.
        slides: True where the cache works with a window that moves at every step, without recomputing every column each
            time.
        grows: True where the forwards compute no column behind the window's block, so that time and memory follow the
            answer, however long the canvas is.
    """

    keeps: bool = True
    slides: bool = False
    grows: bool = False

    def check(self, spec: ModelSpec, method: Method) -> None:
        if method.scheduler.slides and not self.slides:
            raise UserError(
                f"cache {self.name!r} is refilled when a block opens, "
                f"scheduler {method.scheduler.name!r} moves its window at every step: "
                "use cache none or dsb, or scheduler blocks or adablock"
            )

    def plan(self, state: DecodeState, score: Tensor, memory: Any) -> tuple[list[ForwardPlan], Any]:
        """Plan the forwards of this step.

        Args:
            state: The state before the forward, with the window that the scheduler opened.
            score: [B, G] bool, the positions at which proposals are wanted. A cache may score fewer positions, but
                never more.
            memory: The memory that `start`, or the last call of this method, returned.

        Returns:
            The plans, and the memory of the next step.
        """
        raise NotImplementedError


class StopRule(Role):
    """The role that decides, after each commit, at which position each row ends.

    The positions from a row's end on are closed: the loop fills them with end-of-text and decodes them no more.

    Attributes:
        cuts: True where the closed positions leave the sequence, so that the model sees them no more. False where they
            stay in it.
        looks_ahead: True asks the model for proposals at every masked position, and not only in the window.
    """

    cuts: bool = False
    looks_ahead: bool = False

    def ends(self, state: DecodeState, prediction: Prediction, commit: Commit, memory: Any) -> Tensor:
        """Decide where each row ends.

        `state.written(commit, prediction.tokens)` gives the canvas and the masks after the commit. An end-of-text
        before a token that the caller gave ends nothing, since the model only left a gap shorter than it is;
        `learn2pd.tensors.may_end` marks those that count. The loop moves an end that lies before a given token behind
        it.

        Args:
            state: The state before the commit.
            prediction: The proposals of this step.
            commit: The commit of this step, with the position that the loop added where the policy committed none.
            memory: The memory that `start` returned.

        Returns:
            [B] long, the first position that is closed in each row, never greater than `state.end`.
        """
        raise NotImplementedError

    def final_text(self, text: str) -> str:
        """Return the part of an answer's text that belongs to the answer.

        Args:
            text: The text of the tokens before the first end-of-text.

        Returns:
            The text, without what only ended it.
        """
        return text


ROLES: dict[str, type[Role]] = {"policy": Policy, "scheduler": Scheduler, "cache": Cache, "stop": StopRule}
