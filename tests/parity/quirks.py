"""Bugs of the authors' code, as subclasses: a trace of theirs is met only where its bug is repeated.

The package has none of these bugs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from learn2pd.caches.dsb import DSBCache
from learn2pd.caches.fast_dllm import DualCache
from learn2pd.caches.none import NoCache
from learn2pd.loop.observing import Observer
from learn2pd.loop.plans import full_plan, partial_plan
from learn2pd.models.adapter import ModelAdapter
from learn2pd.policies.dawn import DawnPolicy
from learn2pd.policies.factor import FactorPolicy
from learn2pd.policies.fixed import FixedPolicy
from learn2pd.policies.slowfast import Cycle, SlowFastPolicy
from learn2pd.roles import StopRule
from learn2pd.schedulers.dsb import DSBScheduler
from learn2pd.stops.eot_filled import EotFilledStop
from learn2pd.tensors import is_among
from learn2pd.types import RowMemory, Step, Window


class LastRankFactor(FactorPolicy):
    """Fast-dLLM: where the first failing rank is the last one, it is committed all the same."""

    def count(self, confidence: Tensor, eligible: Tensor) -> Tensor:
        count = super().count(confidence, eligible)
        candidates = eligible.sum(1)
        return torch.where(count == candidates - 1, candidates, count)


@dataclass(frozen=True)
class Opened(RowMemory):
    """What the authors' cache remembers of the last block."""

    start: Tensor
    visible: Tensor  # [B] long, `state.visible` when the block opened


class CutBlindDual(DualCache):
    """Learn2PD's cached code: after a cut, the forwards of a block still attend to what was cut."""

    def start(self, state, spec):
        return Opened(torch.full_like(state.end, -1), state.visible)

    def plan(self, state, score, memory):
        start = state.window.start
        score = score & state.window.mask(state.gen_length)
        opens = state.open & (start != memory.start)
        visible = torch.where(opens, state.visible, memory.visible)
        plans = full_plan(state, opens, score, keep=True)
        plans += partial_plan(state, state.open & ~opens, start, state.window.stop, score, visible, state.spec.shift)
        return plans, Opened(torch.where(opens, start, memory.start), visible)


class LeakingDSB(DSBScheduler):
    """DSB: `leak` positions behind the window may be committed too, and the next window does not jump over them."""

    def __init__(self, block_length: int, mode: str, leak: int) -> None:
        super().__init__(block_length, mode)
        self.leak = leak

    def propose(self, state, memory):
        start = state.leftmost_mask
        if self.leak:
            start = torch.minimum(start, (state.window.stop - self.leak).clamp_min(0))
        stop = self.block_length + state.decided.sum(1)
        if self.mode == "const":
            stop = torch.minimum(stop, start + self.block_length)
        return Window(start, torch.minimum(stop, state.end) + self.leak)


class LeakingDSBCache(DSBCache):
    """DSB Cache: a mask that is meant for the whole sequence is applied to the slice.

    So only columns from window end + slice start on are closed. The cache goes with a `LeakingDSB` whose leak is
    `suffix_window`.
    """

    def plan(self, state, score, memory):
        within = replace(state, window=Window(state.window.start, state.window.stop - self.suffix_window))
        return super().plan(within, score, memory)

    def scored(self, state, refresh, first, stop):
        window_stop = state.window.stop
        last = torch.minimum(window_stop + self.suffix_window, state.visible)
        sliced = window_stop + first + state.prompt_width - state.pad
        closed = torch.where(refresh | (self.suffix_window == 0), window_stop, sliced)
        return torch.arange(state.gen_length, device=stop.device) < torch.minimum(closed, last)[:, None]


class ForwardsABlock(Observer):
    """Counts the forwards of each row's blocks.

    Fast-dLLM's first code makes at least one forward that reuses in every block, even where the opening forward has
    finished the block. That forward commits nothing. So the traces' forwards are ours, and one more for each block of a
    single forward.
    """

    def __init__(self) -> None:
        self.counts: list[dict[int, int]] = []

    def observe(self, step: Step) -> None:
        self.counts = self.counts or [{} for _ in step.state.pad]
        for row, (is_open, start) in enumerate(
            zip(step.state.open.tolist(), step.state.window.start.tolist(), strict=True)
        ):
            if is_open:
                self.counts[row][start] = self.counts[row].get(start, 0) + 1

    def owed(self, row: int) -> int:
        """Blocks of a row that took a single forward."""
        return sum(count == 1 for count in self.counts[row].values())


def differs_by_a_bug(stored: dict, run: dict) -> bool:
    """Whether a run of a block-causal model shows a bug of the authors' code, so that the package must differ.

    - SDAR's generate.py fills its quota with positions that hold a token already, where fewer masks are left, and
      overwrites them (`edited`), the prompt's too.
    - Fast-dLLM v2 forwards no prompt that is not longer than a block. A prompt of exactly one block is then never seen.
    """
    overwrites = any(step.get("edited", {}).get("pos") for step in run["steps"])
    unseen = "small_block_size" in stored["params"] and len(run["prompt"]) == run["block_length"]
    return overwrites or unseen


class CheckedAtEot(EotFilledStop):
    """LLaDA2's eos_early_stop: whether an answer is filled is asked only where an end-of-text is committed.

    Where the masks before it are filled by a later step, the block is decoded to its end all the same.
    """

    def __init__(self) -> None:
        super().__init__(whole_window=False)

    def ends(self, state, prediction, commit, memory):
        early = super().ends(state, prediction, commit, memory)
        late = EotFilledStop().ends(state, prediction, commit, memory)
        asked = (commit.mask & is_among(prediction.tokens, state.spec.eot_ids)).any(1)
        return torch.where(asked, early, late)


class BlockEndStop(StopRule):
    """dInfer and LLaDA2: nothing is decoded behind the first finished block that holds an end of text."""

    name = "block_end"
    cuts = True

    def ends(self, state, prediction, commit, memory):
        after = state.written(commit, prediction.tokens)
        stays = torch.zeros_like(state.failed) if commit.stay is None else commit.stay
        so_far = torch.arange(state.gen_length) < state.window.stop[:, None]
        ended = is_among(after.canvas, state.spec.eot_ids)
        holds = (ended & so_far).any(1) & ~(after.masked & so_far).any(1) & ~stays
        return torch.where(holds, state.window.stop, state.end)


class ShadowBlockAdapter(ModelAdapter):
    """WINO: the shadow columns are a copy of the whole block, and all of them see the whole copy.

    The copies behind the shadow columns of the plan stand for that block; both see the copies alone.
    """

    def __init__(self, model: ModelAdapter, block_length: int, prompt_width: int) -> None:
        super().__init__(model.network, model.spec)
        self.block_length = block_length
        self.prompt_width = prompt_width

    def forward(self, tokens, plan, store):
        if plan.shadow is None:
            return super().forward(tokens, plan, store)
        start = (plan.shadow[:, :1] - self.prompt_width) // self.block_length * self.block_length + self.prompt_width
        block = start + torch.arange(self.block_length)
        wanted = plan.query.shape[1] + plan.shadow.shape[1]
        hidden = super().forward(tokens, replace(plan, shadow=torch.cat((plan.shadow, block), dim=1)), store)
        return hidden[:, :wanted]

    def _with_shadows(self, plan, seen, place):
        mask = super()._with_shadows(plan, seen, place).clone()
        shadows = plan.shadow.shape[1]
        mask[:, -shadows:, -shadows:] = torch.arange(shadows) >= shadows - self.block_length
        return mask


class MostUncertainFirst(FixedPolicy):
    """KLASS: the choice `entropy` ranks with the wrong sign."""

    def select(self, prediction, eligible, state, memory):
        turned = replace(prediction, extras={"entropy": -prediction.extra("entropy")})
        return super().select(turned, eligible, state, memory)


class ShortForwards(NoCache):
    """SlowFast: the forwards of a fast phase, all but its first, leave out what lies behind the end of the cycle.

    Args:
        policy: The policy of the same run. It keeps its latest memory in its attribute `cycle`.
    """

    def __init__(self, policy: NotingSlowFast) -> None:
        self.policy = policy
        self.began = torch.zeros(0, dtype=torch.bool)

    def options(self):
        return {}

    def plan(self, state, score, memory):
        cycle = self.policy.cycle
        if cycle is not None:
            position = torch.arange(state.gen_length)
            stop = cycle.first + cycle.length
            left = (state.masked & (position >= cycle.first[:, None]) & (position < stop[:, None])).any(1)
            fast = left & (cycle.explored >= self.policy.exploration)
            short = fast & self.began if len(self.began) else torch.zeros_like(fast)
            self.began = fast
            state = replace(state, visible=torch.where(short, stop, state.visible))
            score = score & (position < state.visible[:, None])
        return super().plan(state, score, memory)


class NotingSlowFast(SlowFastPolicy):
    """SlowFast, with its latest memory in an attribute for `ShortForwards`."""

    cycle: Cycle | None = None

    def select(self, prediction, eligible, state, memory):
        commit = super().select(prediction, eligible, state, memory)
        self.cycle = commit.memory
        return commit


class AuthorsDawn(DawnPolicy):
    """DAWN: tokens of the prompt are anchors only if they are proposed with confidence, and "and" stands for "or".

    Args:
        model: The model of the run, which is asked about the prompts.
    """

    def __init__(self, model: ModelAdapter, **kwargs) -> None:
        super().__init__(**kwargs)
        self.model = model

    def anchors(self, prediction, state):
        anchors = super().anchors(prediction, state)
        for row, (tokens, pad) in enumerate(zip(state.tokens, state.pad.tolist(), strict=True)):
            confidence = self.model.network(tokens[None, pad:]).logits[0].softmax(-1).amax(-1)
            prompt = slice(pad, state.prompt_width)
            anchors[row, prompt] = confidence[: state.prompt_width - pad] >= self.threshold
        return anchors

    def kept_away(self, sure, induced, to_anchor):
        return sure & to_anchor
