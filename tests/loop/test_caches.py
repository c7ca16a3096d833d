"""What a cache recomputes, against recomputing everything."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from learn2pd import (
    Cache,
    DSBCache,
    DSBScheduler,
    DualCache,
    EotStop,
    FixedPolicy,
    LookaheadCache,
    LookaheadScheduler,
    NoCache,
    Observer,
    PrefixCache,
    ThresholdPolicy,
)
from learn2pd.types import Commit, DecodeState
from tests.contract.helpers import BLOCK, CACHES, GEN, MODELS, SCHEDULERS, every_second, fits, outcome, run

LENGTHS = [3, 21, 12]


@pytest.fixture(params=every_second(MODELS))
def model(request):
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_cache_that_refreshes_after_every_token_changes_nothing(scheduler, model, make_prompts):
    plain, cached = (
        outcome(
            run(model, make_prompts(LENGTHS), ThresholdPolicy(0.6), scheduler=SCHEDULERS[scheduler], cache=cache), model
        )
        for cache in (NoCache(), DSBCache(refresh_tokens=1))
    )
    assert plain == cached


def test_a_single_step_a_block_needs_nothing_of_what_is_kept(model, make_prompts):
    for cache in (PrefixCache(), DualCache()):
        plain, cached = (
            outcome(run(model, make_prompts(LENGTHS), ThresholdPolicy(0.0), cache=kind), model)
            for kind in (NoCache(), cache)
        )
        assert plain == cached


def test_a_lookahead_that_freezes_nothing_changes_nothing(model, make_prompts):
    plain, cached = (
        outcome(
            run(model, make_prompts(LENGTHS), ThresholdPolicy(0.6), scheduler=LookaheadScheduler(), cache=cache), model
        )
        for cache in (NoCache(), LookaheadCache(None))
    )
    assert plain == cached


class Counting(Cache):
    """A cache that notes how many columns each forward recomputed."""

    def __init__(self, cache):
        self.cache, self.name, self.keeps, self.slides = cache, cache.name, cache.keeps, cache.slides
        self.columns = []

    def start(self, state, spec):
        return self.cache.start(state, spec)

    def plan(self, state, score, memory):
        plans, memory = self.cache.plan(state, score, memory)
        self.columns.append([(plan.rows.tolist(), plan.query.shape[1]) for plan in plans])
        return plans, memory


@pytest.mark.parametrize(
    ("cache", "later"),
    [
        (DualCache(), BLOCK),
        (PrefixCache(), GEN),
        (DSBCache(BLOCK, prefix_window=4), BLOCK + 4),
        (DSBCache(BLOCK, prefix_window=4, suffix_window=2), BLOCK + 6),
    ],
    ids=["dual", "prefix", "dsb", "dsb with a suffix"],
)
def test_after_a_refresh_only_the_window_is_recomputed(cache, later, model, make_prompts):
    lead = int(model.spec.shifted_logits)
    watched = Counting(cache)
    run(model, make_prompts([12]), FixedPolicy(), cache=watched)
    widths = [width for step in watched.columns for _, width in step]
    assert widths[0] == 12 + GEN
    assert widths[1] == later + lead
    assert widths.count(12 + GEN) == 3  # one a block of 8, 8 and 4 tokens


class Commits(Observer):
    """Notes how many tokens every step committed."""

    def __init__(self):
        self.made = []

    def observe(self, step):
        self.made.append(int(step.commit.mask.sum()))


def test_commits_count_towards_a_refresh_though_an_end_of_text_closes_them(model, make_prompts):
    closed = 0
    for number in range(6):
        watched, commits = Counting(DSBCache(6, prefix_window=2)), Commits()
        parts = {"scheduler": DSBScheduler(BLOCK), "cache": watched, "stop": EotStop(0.0), "observer": commits}
        state = run(model, make_prompts([12], seed=number), ThresholdPolicy(0.8), gen_length=40, **parts)
        since, made = 6, commits.made
        for step, columns in enumerate(watched.columns):
            refreshes = columns[0][1] == 12 + 40
            assert refreshes == (since >= 6)
            since = made[step] + (0 if refreshes else since)
        closed += sum(made) > int((state.committed_at >= 0).sum())
    assert closed


@pytest.mark.parametrize("end", [4, 1], ids=["all stay", "three of four are closed at once"])
def test_what_a_step_commits_counts_towards_a_refresh_though_the_same_step_closes_it(end, tiny_model, make_prompts):
    cache, spec = DSBCache(refresh_tokens=4), tiny_model.spec
    state = DecodeState.start(make_prompts([3]), GEN, spec)
    state = replace(state, window=DSBScheduler(BLOCK).propose(state, None))
    _, memory = cache.plan(state, state.masked, cache.start(state, spec))
    four = torch.arange(GEN)[None] < 4
    after = state.commit(Commit(four), torch.full_like(state.canvas, 7))
    after = replace(after, step=state.step + 1).close(torch.tensor([end]), cut=False)
    after = replace(after, masked=torch.arange(GEN)[None] >= GEN - 1)  # so that the row is open
    plans, _ = cache.plan(after, after.masked, memory)
    assert [plan.query.shape[1] for plan in plans] == [3 + GEN]


def test_rows_of_a_batch_refresh_and_reuse_in_the_same_step(model, make_prompts):
    watched = Counting(DSBCache(4, prefix_window=2))
    run(model, make_prompts(range(1, 12)), ThresholdPolicy(0.5), scheduler=DSBScheduler(BLOCK), cache=watched)
    assert any(len(step) == 2 for step in watched.columns)


@pytest.mark.parametrize("cache", [name for name in CACHES if name != "none"])
def test_kept_values_are_never_those_of_an_earlier_run(cache, model, make_prompts):
    scheduler = next(name for name in SCHEDULERS if fits("fixed", name, cache))
    prompts = make_prompts(LENGTHS)
    first = outcome(
        run(model, prompts, ThresholdPolicy(0.6), scheduler=SCHEDULERS[scheduler], cache=CACHES[cache]), model
    )
    run(
        model, make_prompts(LENGTHS, seed=9), ThresholdPolicy(0.6), scheduler=SCHEDULERS[scheduler], cache=CACHES[cache]
    )
    assert (
        outcome(run(model, prompts, ThresholdPolicy(0.6), scheduler=SCHEDULERS[scheduler], cache=CACHES[cache]), model)
        == first
    )


def break_row(monkeypatch, model, number, value, after=2):
    """Let the model give a row hidden states that are not finite, once it has made some forwards."""
    forward, calls = model.adapter.forward, []

    def breaking(tokens, plan, store):
        hidden = forward(tokens, plan, store)
        calls.append(len(plan.rows))
        return torch.where(((plan.rows == number) & (len(calls) > after))[:, None, None], value, hidden)

    monkeypatch.setattr(model.adapter, "forward", breaking)


@pytest.mark.parametrize(
    ("cache", "broken"),
    [
        pytest.param(cache, broken, marks=pytest.mark.thorough if (one + other) % 2 else [])
        for one, cache in enumerate(CACHES)
        for other, broken in enumerate((float("nan"), float("inf")))
    ],
)
def test_a_row_whose_logits_are_not_finite_stops_and_the_others_go_on(cache, broken, model, make_prompts, monkeypatch):
    prompts = make_prompts(LENGTHS)
    alone = outcome(run(model, prompts[:1] + prompts[2:], ThresholdPolicy(0.6), cache=CACHES[cache]), model)
    break_row(monkeypatch, model, 1, broken)
    state = run(model, prompts, ThresholdPolicy(0.6), cache=CACHES[cache])
    assert state.failed.tolist() == [False, True, False]
    assert not state.masked.any()
    together = outcome(state, model)
    assert {key: [rows[0], rows[2]] for key, rows in together.items()} == alone


@pytest.mark.parametrize("after", [0, 2])
def test_a_row_that_fails_keeps_the_tokens_that_the_caller_gave(after, model, make_prompts, monkeypatch):
    """Between the leftmost mask and the last given token nothing is left to decide, and the others go on."""
    prompts = make_prompts(LENGTHS)
    given = torch.full((len(prompts), GEN), -1)
    given[:, GEN - 2] = 7
    break_row(monkeypatch, model, 1, float("nan"), after)
    state = run(model, prompts, ThresholdPolicy(0.9), given=given)
    assert state.failed.tolist() == [False, True, False]
    assert not state.masked.any()
    assert (state.canvas[:, GEN - 2] == 7).all()
    assert state.forwards[1] == after + 1
