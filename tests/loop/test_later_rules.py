"""The later rules against the same rules written down: equal tokens, forwards, revocations, edits and flip-flops."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from learn2pd.policies.credit import CreditPolicy
from learn2pd.policies.dawn import DawnPolicy
from learn2pd.policies.dparallel import DParallelPolicy
from learn2pd.policies.edit import EditPolicy
from learn2pd.policies.entropy_bound import EntropyBoundPolicy
from learn2pd.policies.hierarchical import HierarchicalPolicy
from learn2pd.policies.klass import KlassPolicy
from learn2pd.policies.mean_field import MeanFieldPolicy
from learn2pd.policies.prophet import ProphetPolicy
from learn2pd.policies.remask import RemaskPolicy
from learn2pd.policies.slowfast import SlowFastPolicy
from learn2pd.policies.wino import WinoPolicy
from learn2pd.predictors.filter import FilterPolicy
from learn2pd.predictors.networks import PredictorNetwork
from learn2pd.predictors.saving import Contract, Predictor
from learn2pd.types import DecodeState, ModelSpec, Prediction
from tests.contract.helpers import run
from tests.reference import later_rules as slow

high = st.sampled_from([0.45, 0.6, 0.75])
low = st.sampled_from([0.15, 0.25, 0.4])
small = st.integers(1, 3)


class Confident(PredictorNetwork):
    """Its probability is the confidence of the proposal."""

    channels = ("confidence",)

    def __init__(self):
        super().__init__()
        self.place = nn.Parameter(torch.zeros(0))  # by which the policy sees on which device the network is

    def forward(self, inputs, valid, proposal):
        return inputs[..., 0].logit()


def confident(threshold):
    return Predictor("filter", Confident(), threshold, Contract(mask_id=1, vocab_size=400, eot_ids=(0,)))


def pair(policy, rule, **options):
    """A policy of the package and the same rule written down, drawn with the same options."""
    return st.fixed_dictionaries(options).map(lambda drawn: (policy(**drawn), lambda: rule(**drawn)))


PAIRS = {
    "entropy_bound": pair(EntropyBoundPolicy, slow.EntropyBound, bound=st.sampled_from([0.5, 2.0, 5.0])),
    "dparallel": pair(DParallelPolicy, slow.DParallel, threshold=st.sampled_from([0.4, 1.0, 2.0])),
    "hierarchical": pair(
        lambda threshold, low, remask: HierarchicalPolicy(threshold, low, remask),
        slow.Hierarchical,
        threshold=high,
        low=low,
        remask=st.sampled_from([None, 0.3, 0.6]),
    ),
    "credit": pair(
        CreditPolicy,
        slow.Credit,
        threshold=high,
        weight=st.sampled_from([0.7, 2.0]),
        boost=st.sampled_from([0.2, 1.0]),
        decay=st.sampled_from([0.4, 0.9]),
    ),
    "klass": pair(KlassPolicy, slow.Klass, threshold=low, kl_threshold=st.sampled_from([0.3, 1.0]), history=small),
    "slowfast": pair(
        SlowFastPolicy,
        slow.SlowFast,
        threshold=high,
        sight=low,
        exploration=st.integers(3, 4),
        stability=st.integers(2, 3),
        deviation=st.sampled_from([0.5, 2.0]),
    ),
    "prophet": pair(
        ProphetPolicy,
        slow.Prophet,
        early=st.sampled_from([2.0, 4.0]),
        middle=st.sampled_from([1.0, 3.0]),
        late=st.sampled_from([0.5, 2.0]),
        answer_start=st.sampled_from([0.0, 0.4, 0.9]),
    ),
    "dawn": pair(
        lambda threshold, induced, low, sink, edge: DawnPolicy(threshold, induced, low, sink, edge),
        slow.Dawn,
        threshold=high,
        induced=low,
        low=low,
        sink=st.sampled_from([0.05, 0.2]),
        edge=st.sampled_from([0.03, 0.1]),
    ),
    "mean_field": pair(
        lambda threshold, interaction, rounds: MeanFieldPolicy(threshold, interaction, rounds, top=1000),
        slow.MeanField,
        threshold=low,
        interaction=st.sampled_from([0.0, 3.0, 20.0]),
        rounds=st.sampled_from([1, 5]),
    ),
    "wino": pair(
        lambda threshold, back: WinoPolicy(threshold, back),
        slow.Wino,
        threshold=low,
        back=st.sampled_from([0.2, 0.5, 0.9]),
    ),
    "filter": pair(
        lambda threshold, take_back, per_position, one_more, confidence_threshold: FilterPolicy(
            confident(threshold), take_back, per_position, one_more, confidence_threshold
        ),
        slow.TakingBack,
        threshold=st.sampled_from([0.3, 0.45]),
        take_back=st.sampled_from([0.9, 1.0]),
        per_position=small,
        one_more=st.sampled_from([0.1, 0.25, 1.0]),
        confidence_threshold=st.sampled_from([1.0, 0.4]),
    ),
    "edit": pair(
        lambda threshold, most_checks, edit: EditPolicy(threshold, edit, most_checks),
        slow.Checked,
        threshold=low,
        most_checks=st.integers(0, 3),
        edit=low,
    ),
    "remask": pair(
        lambda threshold, most_checks, remask, per_position, share: RemaskPolicy(
            threshold, remask, per_position, share, most_checks
        ),
        slow.Checked,
        threshold=low,
        most_checks=st.integers(0, 3),
        remask=low,
        per_position=st.integers(0, 2),
        share=st.sampled_from([0.1, 0.4, 1.0]),
    ),
}


# The filter has the most settings; the others remember, which a few draws do not show.
EXAMPLES = {"filter": 16, "credit": 15, "slowfast": 15, "hierarchical": 20}


@pytest.mark.parametrize("name", PAIRS)
def test_a_rule_equals_itself_written_down_row_by_row(name, make_prompts, tiny_model, tiny_model_grouped):
    changed = {"revoked": 0, "edited": 0, "flip_flops": 0}

    @settings(max_examples=EXAMPLES.get(name, 5))
    @given(
        drawn=PAIRS[name],
        grouped=st.booleans(),
        block=st.sampled_from([8, 5]),
        gen_length=st.sampled_from([16, 11]),
        lengths=st.lists(st.integers(1, 12), min_size=2, max_size=2),
        seed=st.integers(0, 1000),
    )
    def check(drawn, grouped, block, gen_length, lengths, seed):
        policy, rule = drawn
        model = tiny_model_grouped if grouped else tiny_model
        prompts = make_prompts(lengths, seed)
        state = run(model, prompts, policy, gen_length=gen_length, block_length=block)
        for row, prompt in enumerate(prompts):
            wanted = slow.decode(model.adapter.network, prompt, gen_length, block, model.spec.mask_id, rule())
            assert state.canvas[row].tolist() == wanted.canvas
            assert int(state.forwards[row]) == wanted.forwards
            for count in changed:
                assert int(getattr(state, count)[row]) == getattr(wanted, count), count
                changed[count] += getattr(wanted, count)

    check()
    if name in ("wino", "remask", "hierarchical", "filter"):
        assert changed["revoked"]
        assert changed["flip_flops"] or name == "filter"  # which commits a token again only if it is surer
    if name == "edit":
        assert changed["edited"]


def test_slowfast_keeps_the_first_estimate_that_agrees():
    """In a block of eight masks the model sees to the last one twice, and then one less far."""
    policy = SlowFastPolicy(threshold=0.9, sight=0.3, exploration=3, stability=2, deviation=1.0)
    masked = torch.ones(1, 8, dtype=torch.bool)
    tokens = torch.zeros(1, 8, dtype=torch.long)
    spec = ModelSpec("hand-made", 1, (9,), 0, 400, 512, False, "")
    state = DecodeState.of_block(tokens, masked, spec)
    memory = policy.start(state, spec)
    steps = [
        ([0.8, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5], 0),
        ([0.0, 0.8, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5], 1),
        ([0.0, 0.0, 0.8, 0.5, 0.5, 0.5, 0.5, 0.1], 2),
        ([0.0, 0.0, 0.0, 0.5, 0.5, 0.5, 0.5, 0.8], 7),  # the fast phase looks as far as the first estimates said
    ]
    for confidence, committed in steps:
        prediction = Prediction(tokens, torch.tensor([confidence]), masked)
        commit = policy.select(prediction, masked, state, memory)
        assert commit.mask[0].nonzero()[:, 0].tolist() == [committed]
        memory, masked = commit.memory, masked & ~commit.mask
