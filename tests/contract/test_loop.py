"""Promises of the loop that hold for every policy and stop rule."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learn2pd import (
    BlocksScheduler,
    CausalBlockCache,
    DSBScheduler,
    EotStop,
    Method,
    NoStop,
    Observer,
    Policy,
    PrefixCache,
    Sampling,
    UserError,
    decode,
)
from learn2pd.policies.fixed import FixedPolicy
from learn2pd.policies.oracle import OraclePolicy
from learn2pd.policies.threshold import ThresholdPolicy
from learn2pd.predictors.filter import FilterPolicy
from learn2pd.types import Commit, Window
from tests.contract.helpers import BLOCK, GEN, STOPS, outcome, policies, random_predictor, run
from tests.reference.decoding import count_above, decode_blocks, even_quota

LENGTHS = [2, 11, 30]


class Watcher(Observer):
    """Keeps every step's state, proposals and commit."""

    def __init__(self):
        self.steps = []

    def observe(self, step):
        self.steps.append((step.state, step.prediction, step.commit))


def test_stop_rules_are_exercised_by_the_tiny_models(tiny_model, tiny_model_grouped, make_prompts):
    """Without rows that end early the contract tests would say nothing of the stop rules."""
    prompts = make_prompts([1, 5, 9, 14, 20, 26, 33, 40])
    for name, stop in STOPS.items():
        for model in (tiny_model, tiny_model_grouped):
            ended = run(model, prompts, FixedPolicy(), stop).end < GEN
            assert ended.any() == (name != "none"), name
            assert name == "none" or not ended.all(), name


def test_a_literal_mask_id_in_the_prompt_is_an_ordinary_token(tiny_model, make_prompts):
    mask_id = tiny_model.spec.mask_id
    prompts = make_prompts([6, 15])
    prompts[0][2] = prompts[0][5] = prompts[1][0] = mask_id
    state = run(tiny_model, prompts, ThresholdPolicy(0.6))
    assert state.tokens[0, 9:15].tolist() == prompts[0]
    assert state.tokens[1, :15].tolist() == prompts[1]
    assert not (state.canvas == mask_id).any()


@pytest.mark.parametrize(
    "policy",
    [FixedPolicy(), FixedPolicy(GEN // 2), ThresholdPolicy(0.6), FilterPolicy(random_predictor())],
    ids=lambda p: p.name,
)
@pytest.mark.parametrize("stop", [EotStop(0.0), EotStop(0.5)], ids=["floor0", "floor0.5"])
def test_eot_stop_changes_nothing_until_it_first_ends_the_row(policy, stop, tiny_model_grouped, make_prompts):
    """What comes after may differ: the row then sees end-of-text to its right where the other run sees masks."""
    prompts, watcher = make_prompts([1, 5, 9, 14, 20, 26, 33, 40]), Watcher()
    stopped, whole = (
        run(tiny_model_grouped, prompts, policy, stop, observer=watcher),
        run(tiny_model_grouped, prompts, policy),
    )
    for row in range(len(prompts)):
        open_steps = sum(
            int(state.end[row]) == GEN for state, _, _ in watcher.steps
        )  # the last of them is the one that ended the row
        known = (
            (stopped.committed_at[row] >= 0)
            & (stopped.committed_at[row] < open_steps)
            & (torch.arange(GEN) < stopped.end[row])
        )
        assert (stopped.canvas[row] == whole.canvas[row])[known].all()
        assert (stopped.committed_at[row] == whole.committed_at[row])[known].all()


class Outside(Policy):
    """A policy that forgets to look at what is eligible."""

    name = "outside"

    def select(self, prediction, eligible, state, memory):
        return Commit(~eligible)


class Revoking(Outside):
    """A policy that takes back without having said that it would."""

    def select(self, prediction, eligible, state, memory):
        return Commit(eligible, revoke=state.decided)


@pytest.mark.parametrize("policy", [Outside(), Revoking()])
def test_a_policy_that_does_what_it_may_not_is_an_error_and_never_dropped(policy, tiny_model, make_prompts):
    with pytest.raises(UserError, match=r"'outside'.*not eligible"):
        run(tiny_model, make_prompts(LENGTHS), policy)


class Shut(BlocksScheduler):
    """A scheduler that opens nothing."""

    def propose(self, state, memory):
        return Window(state.end, state.end)


def test_a_run_in_which_nothing_can_be_committed_is_an_error_and_does_not_hang(tiny_model, make_prompts):
    with pytest.raises(UserError, match="no position to commit"):
        run(tiny_model, make_prompts(LENGTHS), FixedPolicy(), scheduler=Shut(BLOCK))


def test_fixed_takes_one_forward_a_token(tiny_model_grouped, make_prompts):
    """Tokens written past an end of text that is found later count too: their forwards were made."""
    watcher = Watcher()
    state = run(
        tiny_model_grouped, make_prompts([1, 5, 9, 14, 20, 26, 33, 40]), FixedPolicy(), EotStop(0.0), observer=watcher
    )
    written = torch.stack([commit.mask.sum(1) for _, _, commit in watcher.steps]).sum(0)
    assert state.forwards.equal(written)
    assert (state.forwards >= (state.committed_at >= 0).sum(1)).all()
    assert (state.forwards < GEN).any()


def test_a_fixed_quota_does_not_grow_when_a_row_ends_inside_its_block(tiny_model_grouped, make_prompts):
    """The end of text must not make the positions before it be committed in greater haste."""
    watcher = Watcher()
    run(
        tiny_model_grouped,
        make_prompts([1, 5, 9, 14, 20, 26, 33, 40]),
        FixedPolicy(GEN // 2),
        EotStop(0.0),
        observer=watcher,
    )
    assert max(int(commit.mask.sum(1).max()) for _, _, commit in watcher.steps) == 2


@pytest.mark.parametrize("name", policies())
def test_samples_differ_between_seeds(name, tiny_model, make_prompts):
    first, other = (
        run(tiny_model, make_prompts(LENGTHS), policies()[name], temperature=1.0, seed=seed, gen_length=BLOCK).canvas
        for seed in (1, 2)
    )
    assert (first != other).any(1).all()


def test_equal_prompts_draw_different_samples(tiny_model, make_prompts):
    prompt = make_prompts([10])[0]
    tokens = decode(
        tiny_model, [prompt, prompt], policy=FixedPolicy(), gen_length=GEN, stop=NoStop(), sampling=Sampling(1.0)
    ).tokens
    assert (tokens[0] != tokens[1]).any()


@settings(max_examples=10)
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=3), seed=st.integers(0, 1000))
def test_the_oracle_reproduces_its_reference_in_at_most_as_many_forwards(lengths, seed, tiny_model, make_prompts):
    prompts = make_prompts(lengths, seed)
    plain = run(tiny_model, prompts, FixedPolicy())
    taught = run(tiny_model, prompts, OraclePolicy(plain.canvas.clone()))
    assert taught.canvas.equal(plain.canvas)
    assert (taught.forwards <= plain.forwards).all()


def test_the_oracle_reproduces_any_reference(tiny_model, make_prompts):
    reference = torch.randint(10, 300, (3, GEN), generator=torch.Generator().manual_seed(0))
    state = run(tiny_model, make_prompts(LENGTHS), OraclePolicy(reference))
    assert state.canvas.equal(reference)


@pytest.mark.parametrize(("gen_length", "steps"), [(16, 16), (16, 8), (16, 4), (16, 2), (24, 6), (24, 12)])
def test_fixed_takes_exactly_the_steps_it_was_given(gen_length, steps, tiny_model, make_prompts):
    state = run(tiny_model, make_prompts(LENGTHS), FixedPolicy(steps), gen_length=gen_length)
    assert state.forwards.tolist() == [steps] * len(LENGTHS)


def test_threshold_zero_commits_a_block_a_forward(tiny_model, make_prompts):
    state = run(tiny_model, make_prompts(LENGTHS), ThresholdPolicy(0.0))
    assert state.forwards.tolist() == [3] * len(LENGTHS)
    assert state.committed_at.tolist() == [[position // BLOCK for position in range(GEN)]] * len(LENGTHS)


def test_threshold_one_is_one_token_a_step(tiny_model, make_prompts):
    prompts = make_prompts(LENGTHS)
    assert outcome(run(tiny_model, prompts, ThresholdPolicy(1.0)), tiny_model) == outcome(
        run(tiny_model, prompts, FixedPolicy()), tiny_model
    )


def test_an_accepting_filter_is_threshold_zero_and_a_refusing_one_is_one_token_a_step(tiny_model, make_prompts):
    prompts = make_prompts(LENGTHS)
    for threshold, rule in ((0.0, ThresholdPolicy(0.0)), (1.0, FixedPolicy())):
        filtered = run(tiny_model, prompts, FilterPolicy(replace(random_predictor(), threshold=threshold)))
        assert outcome(filtered, tiny_model) == outcome(run(tiny_model, prompts, rule), tiny_model)


def test_the_papers_filter_commits_the_most_confident_position_in_every_step(tiny_model, make_prompts):
    watcher = Watcher()
    run(tiny_model, make_prompts(LENGTHS), policies()["filter"], observer=watcher)
    for state, prediction, commit in watcher.steps:
        eligible = state.window.mask(GEN) & state.masked & prediction.valid
        best = prediction.confidence.masked_fill(~eligible, -1.0).argmax(1)
        taken = commit.mask[torch.arange(len(best)), best]
        assert taken[state.open].all()


RULES = {
    "fixed": (FixedPolicy(), lambda gen: even_quota(gen)),
    "fixed_steps": (FixedPolicy(6), lambda gen: even_quota(2)),
    **{
        f"threshold{value}": (ThresholdPolicy(value), lambda gen, value=value: count_above(value))
        for value in (0.3, 0.6, 0.9)
    },
}


@pytest.mark.parametrize("family", ["tiny_model", "tiny_model_grouped"])
@pytest.mark.parametrize("name", RULES)
def test_the_loop_equals_the_slow_reference(name, family, make_prompts, request):
    model = request.getfixturevalue(family)
    policy, rule = RULES[name]
    gen_length = 24 if name == "fixed_steps" else GEN
    prompts = make_prompts([1, 9, 25, 40])
    state = run(model, prompts, policy, gen_length=gen_length)
    for row, prompt in enumerate(prompts):
        canvas, forwards, committed_at = decode_blocks(
            model.adapter.network, prompt, gen_length, BLOCK, model.spec.mask_id, rule(gen_length)
        )
        assert (state.canvas[row].tolist(), int(state.forwards[row]), state.committed_at[row].tolist()) == (
            canvas,
            forwards,
            committed_at,
        )


def test_results_come_back_in_the_callers_order_whatever_the_batch(tiny_model, make_prompts):
    prompts = make_prompts([20, 3, 31, 3, 12])
    options = {"policy": ThresholdPolicy(0.6), "scheduler": BlocksScheduler(BLOCK), "gen_length": GEN}
    whole = decode(tiny_model, prompts, **options)
    for batch_size in (1, 2, 3):
        part = decode(tiny_model, prompts, batch_size=batch_size, **options)
        assert part.texts == whole.texts
        for name in ("tokens", "lengths", "committed_at", "forwards"):
            assert getattr(part, name).equal(getattr(whole, name)), name


def test_decode_takes_texts_and_no_prompts_at_all(tiny_model):
    texts = ["Mia has 4 pears.", "Table to JSON:"]
    by_text = decode(tiny_model, texts, policy=FixedPolicy(), gen_length=8)
    by_ids = decode(tiny_model, [tiny_model.encode(text) for text in texts], policy=FixedPolicy(), gen_length=8)
    assert by_text.tokens.equal(by_ids.tokens)
    assert len(by_text.texts) == 2
    nothing = decode(tiny_model, [], policy=FixedPolicy(), gen_length=8)
    assert nothing.tokens.shape == (0, 8)
    assert nothing.texts == []


@pytest.mark.parametrize(
    ("prompts", "options", "words"),
    [
        (["Tom has 3.", "  "], {}, ["prompt 1", "empty"]),
        ([[5], []], {}, ["prompt 1", "no tokens"]),
        ([[5] * 500], {"gen_length": 13}, ["prompt 0", "500", "513", "512"]),
        ([[5]], {"gen_length": 0}, ["gen_length=0"]),
        ([[5]], {"batch_size": 0}, ["batch_size=0"]),
        ([[5]], {"policy": FilterPolicy(random_predictor()), "scheduler": BlocksScheduler(16)}, ["filter", "8", "16"]),
        ([[5, 400]], {}, ["prompt 0", "400"]),
        ([[5, -1]], {}, ["prompt 0", "-1"]),
        ("Tom has 3.", {}, ["one text", "list"]),
        ([[5]], {"scheduler": DSBScheduler(8), "cache": PrefixCache()}, ["prefix", "dsb"]),
        ([[5]], {"cache": CausalBlockCache()}, ["causal_block", "block-causal"]),
        ([[5]], {"given": torch.zeros(2, 8).long()}, ["given", "(2, 8)", "(1, 8)"]),
        ([[5]], {"given": torch.full((1, 8), 400)}, ["given", "400", "399"]),
        ([[5]], {"allowed": torch.zeros(1, 8).long()}, ["allowed", "(1, 8)"]),
        ([[5]], {"policy": "treshold"}, ["treshold", "did you mean 'threshold'"]),
        ([[5]], {"method": Method(FixedPolicy())}, ["method", "policy"]),
        ([[5]], {"policy": None}, ["policy is not given"]),
    ],
)
def test_a_run_that_cannot_work_is_refused_in_one_line(prompts, options, words, tiny_model):
    with pytest.raises(UserError) as error:
        decode(tiny_model, prompts, **({"policy": FixedPolicy(), "gen_length": 8} | options))
    assert all(word in str(error.value) for word in words), str(error.value)
    assert "\n" not in str(error.value)


def test_a_prompt_that_just_fits_is_decoded(tiny_model):
    assert decode(tiny_model, [[5] * 510], policy=ThresholdPolicy(0.0), gen_length=2).tokens.shape == (1, 2)


def test_a_result_iterates_and_converts(tiny_model, make_prompts):
    given = torch.full((2, 6), -1)
    given[0, 0] = 9
    result = decode(tiny_model, make_prompts([3, 8]), policy=FixedPolicy(), gen_length=6, stop="none", given=given)
    assert list(result) == result.texts
    assert len(result) == 2
    described = json.loads(json.dumps(result.to_dict()))
    assert described["forwards"] == result.forwards.tolist() == [5, 6]
    assert [len(steps) for steps in described["step_map"]] == result.lengths.tolist()
    assert described["step_map"][0][:1] in ([-1], [])
    assert "2 answers" in repr(result)
    assert len(repr(result)) < 100
