"""The one decoding loop. It never asks which method it runs: policy, scheduler, cache and stop rule are handed in.

A step plans the forwards and runs them. The scheduler may then shorten the window, and the policy selects a commit. The
loop adds a position where the commit of a row is empty, writes the commit, and closes what the stop rule ends. At last
the scheduler opens the window of the next step, and the state is read to the host, the one wait for the device. In the
shapes, B is the number of rows and G the number of canvas positions.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from learn2pd.errors import UserError
from learn2pd.loop.commits import at_least_one, outside, refusal, stays
from learn2pd.loop.observing import Observer
from learn2pd.loop.run import Run, read_to_host
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
        policy, scheduler, cache, stop = self.method.policy, self.method.scheduler, self.method.cache, self.method.stop
        scheduler_memory = scheduler.start(state, self.model.spec)
        window = self._next_window(state, scheduler_memory)
        host, illegal = read_to_host(state, window, torch.zeros_like(state.failed))
        return Run(
            state=state,
            window=window,
            policy_memory=policy.start(state, self.model.spec),
            cache_memory=cache.start(host, self.model.spec),
            scheduler_memory=scheduler_memory,
            stop_memory=stop.start(state, self.model.spec),
            host=host,
            illegal=illegal,
            store=self.model.new_store(*state.tokens.shape) if cache.keeps else None,
        )

    def goes_on(self, run: Run) -> bool:
        """Say whether a row is open, and raise what the policy did wrong in the last step. The host knows both.

        Args:
            run: The run.

        Raises:
            UserError: The policy commits or revokes a position that it may not, or the cache lets the model compute no
                position that the scheduler opens.
        """
        policy = self.method.policy
        if bool(run.illegal.any()):
            raise refusal(policy)
        # Every step commits in every row that has a mask; one without a mask stays open while `revisions` last at most.
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
        policy, scheduler, cache, stop = self.method.policy, self.method.scheduler, self.method.cache, self.method.stop
        plans, cache_memory = cache.plan(run.host, self._scored(run.host), run.cache_memory)
        # the width of the widest row is known on the host, so that no code on the device has to ask for it
        state = replace(run.state, window=replace(run.window, most=run.host.window.width))
        state, prediction, not_finite = self.forward(state, run.host, plans, run.store)
        window = scheduler.resolve(state, state.window, prediction, run.scheduler_memory)
        state = replace(state, window=window)
        inside = window.mask(state.gen_length)
        masked_and_scored = state.masked & prediction.valid
        eligible = inside & masked_and_scored
        with self.watch("policy"):
            commit = policy.select(prediction, eligible, state, run.policy_memory)
            policy_memory = run.policy_memory if commit.memory is None else commit.memory
            illegal = outside(commit, masked_and_scored if policy.looks_ahead else eligible, state, policy)
            commit = at_least_one(commit, prediction, eligible)
        # A row whose logits are not finite ends at its leftmost mask; no row ends before a token that the caller gave.
        fails = not_finite & state.masked.any(1)
        end = torch.where(fails, state.leftmost_mask, stop.ends(state, prediction, commit, run.stop_memory))
        end = torch.maximum(end, state.given_end)
        after = state.commit(commit, prediction.tokens).close(end, stop.cuts, fails)
        proposed = inside & prediction.valid
        if commit.revoke is not None and not policy.scores_committed:
            proposed = proposed & ~commit.revoke  # only an observer asked what is proposed at a committed position
        after = replace(
            after,
            step=state.step + state.open,
            failed=state.failed | not_finite,
            committed_with=torch.where(commit.mask, prediction.confidence, state.committed_with),
            previous=torch.where(proposed, prediction.tokens, NOT_PROPOSED),
            stays=stays(commit, state, end, policy) & ~not_finite,
        )
        self.observer.observe(Step(state, prediction, commit, after))
        window = self._next_window(after, run.scheduler_memory)
        host, illegal = read_to_host(after, window, illegal, before=(run.state, run.host))
        return replace(
            run,
            state=after,
            window=window,
            policy_memory=policy_memory,
            cache_memory=cache_memory,
            host=host,
            illegal=illegal,
        )

    def _scored(self, state: DecodeState) -> Tensor:
        """Mark the positions [B, G] at which the model proposes a token in a step."""
        open_rows = state.open[:, None]
        policy = self.method.policy
        if policy.looks_ahead and policy.scores_committed:
            return open_rows.expand_as(state.masked)
        inside = state.window.mask(state.gen_length)
        scored = inside & (open_rows if self.scores_committed else state.masked)
        return scored | state.masked if self.looks_ahead else scored

    def _next_window(self, state: DecodeState, memory: Any) -> Window:
        """Return the window of the step after a state."""
        window = self.method.scheduler.propose(state, memory)
        return _kept_where_the_row_stays(state, window) if self.method.policy.revisions else window


def decode_batch(
    model: ModelAdapter,
    state: DecodeState,
    method: Method,
    *,
    sampling: Sampling = GREEDY,
    observer: Observer | None = None,
    watch: Stopwatch | None = None,
) -> DecodeState:
    """Decode a batch until no row is open (`DecodeState.open`).

    Args:
        model: The adapter of a loaded model.
        state: The state that `DecodeState.start` made.
        method: Policy, scheduler, cache and stop rule, for which `Method.check` passed.
        sampling: How tokens are drawn. Every row has its own seed in the state.
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


def _kept_where_the_row_stays(state: DecodeState, proposed: Window) -> Window:
    """Return the last window in the rows whose policy looks at it once more, and the proposed one in the others."""
    stop = torch.minimum(state.window.stop, state.end)
    return Window(
        torch.where(state.stays, state.window.start, proposed.start), torch.where(state.stays, stop, proposed.stop)
    )
