"""The one decoding loop. It knows no method by name: the caller hands in policy, scheduler, cache and stop rule.

Each step plans the forward, runs it, resolves the window by the proposals, lets the policy select a commit, adds a
position to an empty one, writes it, closes what the stop rule ends, and opens the window of the next step. Then it
reads the state: a step waits once for the device. In the shapes, B is the number of rows and G the number of canvas
positions.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from learn2pd.errors import UserError
from learn2pd.loop.commits import at_least_one, outside, refusal, stays
from learn2pd.loop.observing import Observer
from learn2pd.loop.run import Run, read
from learn2pd.loop.step import ForwardStep
from learn2pd.loop.stopwatch import Stopwatch
from learn2pd.models.adapter import ModelAdapter
from learn2pd.types import GREEDY, NOT_PROPOSED, DecodeState, Sampling, Step, Window

if TYPE_CHECKING:
    from learn2pd.method import Method


class Loop:
    """Runs one method, a step at a time.

    Args:
        model: The adapter of a loaded model.
        method: Policy, scheduler, cache and stop rule, for which `Method.check` passed.
        sampling: How tokens are drawn. Every row has its own seed in the state.
        observer: It receives every step.
        watch: It counts the seconds of the parts of a step.
    """

    def __init__(
        self,
        model: ModelAdapter,
        method: Method,
        *,
        sampling: Sampling = GREEDY,
        observer: Observer | None = None,
        watch: Stopwatch | None = None,
    ) -> None:
        self.model = model
        self.method = method
        self.observer = observer or Observer()
        self.watch = watch or Stopwatch(model.device)
        self.forward = ForwardStep(model, method.needs | self.observer.needs, sampling, self.watch)
        self.scores_committed = method.policy.scores_committed or self.observer.scores_committed
        self.looks_ahead = method.stop.looks_ahead or self.observer.looks_ahead or method.policy.looks_ahead

    def start(self, state: DecodeState) -> Run:
        """Begin a run.

        Args:
            state: The state that `DecodeState.start` made.
        """
        position = torch.arange(1, state.gen_length + 1, device=state.given.device)
        policy, scheduler, cache, stop = self.method.policy, self.method.scheduler, self.method.cache, self.method.stop
        windows = scheduler.start(state, self.model.spec)
        window = self._next_window(state, windows)
        host, illegal = read(state, window, torch.zeros_like(state.failed))
        return Run(
            state=state,
            window=window,
            policy=policy.start(state, self.model.spec),
            cache=cache.start(host, self.model.spec),
            scheduler=windows,
            stop=stop.start(state, self.model.spec),
            last_given=torch.where(state.given, position, 0).amax(1),
            host=host,
            illegal=illegal,
            store=self.model.new_store(*state.tokens.shape) if cache.keeps else None,
        )

    def goes_on(self, run: Run) -> bool:
        """Say whether a row is open, and raise the error of the last step. Both are known on the host.

        Args:
            run: The run.

        Raises:
            UserError: The policy commits or revokes a position that it may not, or cache and scheduler leave no
                position.
        """
        policy = self.method.policy
        if bool(run.illegal.any()):
            raise refusal(policy)
        # every step commits in every open row
        if bool((run.host.step > run.host.gen_length + policy.revisions).any()):
            raise UserError(
                f"scheduler {self.method.scheduler.name!r} and cache {self.method.cache.name!r} leave no position to "
                "commit: one opens what the other hides"
            )
        return bool(run.host.open.any())

    @torch.no_grad()
    def step(self, run: Run) -> Run:
        """Take one step in every open row.

        Args:
            run: A run that goes on.

        Returns:
            The run after the step.
        """
        spec = self.model.spec
        policy, scheduler, cache, stop = self.method.policy, self.method.scheduler, self.method.cache, self.method.stop
        plans, plan_memory = cache.plan(run.host, self._wanted(run.host), run.cache)
        opened = run.state.open
        state = replace(run.state, window=replace(run.window, most=run.host.window.width))
        state, prediction, broken = self.forward(state, run.host, plans, run.store)
        window = scheduler.resolve(state, state.window, prediction, run.scheduler)
        state = replace(state, window=window)
        inside = window.mask(state.gen_length)
        candidates = state.masked & prediction.valid
        eligible = inside & candidates
        with self.watch("policy"):
            commit = policy.select(prediction, eligible, state, run.policy)
            own = run.policy if commit.memory is None else commit.memory
            illegal = outside(commit, candidates if policy.looks_ahead else eligible, state, policy)
            commit = at_least_one(commit, prediction, eligible)
        fails = broken & state.masked.any(1)
        end = torch.where(fails, state.leftmost_mask, stop.ends(state, prediction, commit, run.stop))
        end = torch.maximum(end, run.last_given)  # no row ends before a token that the caller gave
        after = state.commit(commit, prediction.tokens, spec.mask_id).close(end, spec.eot_ids[0], stop.cuts)
        after = replace(
            after,
            step=state.step + opened,
            failed=state.failed | broken,
            committed_with=torch.where(commit.mask, prediction.confidence, state.committed_with),
            previous=torch.where(inside & prediction.valid, prediction.tokens, NOT_PROPOSED),
            stays=stays(commit, state, end, policy) & ~broken,
        )
        self.observer.observe(Step(state, prediction, commit, after))
        window = self._next_window(after, run.scheduler)
        host, illegal = read(after, window, illegal, before=(run.state, run.host))
        return replace(run, state=after, window=window, policy=own, cache=plan_memory, host=host, illegal=illegal)

    def _wanted(self, state: DecodeState) -> Tensor:
        """Mark the positions [B, G] for which the model proposes a token in a step."""
        inside = state.window.mask(state.gen_length)
        opened = state.open[:, None]
        score = inside & (opened if self.scores_committed else state.masked)
        score = score | state.masked if self.looks_ahead else score
        policy = self.method.policy
        return score | opened if policy.looks_ahead and policy.scores_committed else score

    def _next_window(self, state: DecodeState, memory: Any) -> Window:
        """Return the window of the step after a state."""
        window = self.method.scheduler.propose(state, memory)
        return _kept(state, window) if self.method.policy.revisions else window


def decode_batch(
    model: ModelAdapter,
    state: DecodeState,
    method: Method,
    *,
    sampling: Sampling = GREEDY,
    observer: Observer | None = None,
    watch: Stopwatch | None = None,
) -> DecodeState:
    """Decode a batch until no row is open. A row is open while a position of its canvas is masked.

    Args:
        model: The adapter of a loaded model.
        state: The state that `DecodeState.start` made.
        method: As for `Loop`, like the next ones.
        sampling: How tokens are drawn.
        observer: It receives every step.
        watch: It counts the seconds of the parts of a step.

    Returns:
        The final state.

    Raises:
        UserError: As for `Loop.goes_on`.
    """
    loop = Loop(model, method, sampling=sampling, observer=observer, watch=watch)
    run = loop.start(state)
    while loop.goes_on(run):
        run = loop.step(run)
    return run.state


def _kept(state: DecodeState, proposed: Window) -> Window:
    """Return the last window in the rows whose policy looks at it once more, and the proposed one in the others."""
    stop = torch.minimum(state.window.stop, state.end)
    return Window(
        torch.where(state.stays, state.window.start, proposed.start), torch.where(state.stays, stop, proposed.stop)
    )
