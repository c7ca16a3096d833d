"""Every rule, scheduler and cache against the same method written down: equal tokens, forwards and commit steps."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from learn2pd.caches.dsb import DSBCache
from learn2pd.caches.fast_dllm import DualCache, PrefixCache
from learn2pd.caches.lookahead import LookaheadCache
from learn2pd.caches.none import NoCache
from learn2pd.policies.apd import LeftToRightPolicy
from learn2pd.policies.factor import FactorPolicy
from learn2pd.policies.fixed import FixedPolicy
from learn2pd.policies.localleap import LocalLeapPolicy
from learn2pd.policies.threshold import ThresholdPolicy
from learn2pd.schedulers.adablock import AdaBlockScheduler
from learn2pd.schedulers.blocks import BlocksScheduler
from learn2pd.schedulers.dsb import DSBScheduler
from learn2pd.schedulers.lookahead import LookaheadScheduler
from tests.contract.helpers import MODELS, run
from tests.reference import caches, rules, windows
from tests.reference.decoding import decode_row
from tests.reference.network import Columns, full_proposals

# Of each method with each model, of which the suite tries two; more of them where one column matters little.
EXAMPLES = {"lookahead-lookahead": 12, "dsb_const-dsb": 8, "dsb_greedy-dsb": 8}
blocks = st.integers(2, 9)
confidences = st.sampled_from([0.2, 0.35, 0.5, 0.65, 0.8, 0.95])


@st.composite
def any_rule(draw):
    """A policy of the package and the same rule written down."""
    kind = draw(st.sampled_from(["threshold", "factor", "localleap", "fixed", "left_to_right"]))
    high = draw(confidences)
    if kind == "threshold":
        return ThresholdPolicy(high), rules.threshold(high)
    if kind == "factor":
        value = draw(st.sampled_from([0.3, 0.7, 1.0, 1.6]))
        return FactorPolicy(value), rules.factor(value)
    if kind == "localleap":
        low = min(high, draw(confidences))
        radius = draw(st.integers(0, 4))
        return LocalLeapPolicy(high, low, radius), rules.localleap(high, low, radius)
    count = draw(st.integers(1, 3))
    if kind == "fixed":
        return FixedPolicy(), rules.quota(1)
    return LeftToRightPolicy(count), rules.leftmost(count)


@st.composite
def block_window(draw):
    """Blocks of one length."""
    length = draw(blocks)
    return BlocksScheduler(length), lambda: windows.Blocks(length)


@st.composite
def adablock_window(draw):
    """Blocks that end at delimiters, which are frequent enough to matter."""
    length = draw(blocks)
    share = draw(st.sampled_from([2, 3, 5]))
    delimiters = range(0, 400, share)
    threshold = draw(st.sampled_from([0.0, 0.3, 0.5]))
    return AdaBlockScheduler(delimiters, length, threshold), lambda: windows.AdaBlock(delimiters, length, threshold)


@st.composite
def dsb_window(draw, mode):
    """Sliding windows."""
    length = draw(blocks)
    return DSBScheduler(length, mode), lambda: windows.DSB(length, mode)


@st.composite
def lookahead_window(draw):
    """The leftmost mask and what follows it."""
    length = draw(st.sampled_from([6, 9, 4, None, 2]))
    return LookaheadScheduler(length), lambda: windows.Lookahead(length)


@st.composite
def dsb_cache(draw):
    """A sliding cache that refreshes now and then."""
    refresh = draw(st.integers(1, 9))
    before = draw(st.integers(0, 5))
    behind = draw(st.integers(0, 4))
    return DSBCache(refresh, before, behind), lambda columns: caches.DSBCache(columns, refresh, before, behind)


@st.composite
def lookahead_cache(draw):
    """A cache that freezes what lies far enough left."""
    window = draw(st.sampled_from([2, 4, 1, 3, 0, 8, None]))
    return LookaheadCache(window), lambda columns: caches.LookaheadCache(columns, window)


NONE = st.just((NoCache(), caches.Everything))
PREFIX = st.just((PrefixCache(), caches.Prefix))
DUAL = st.just((DualCache(), caches.Dual))
METHODS = {
    "blocks-none": (block_window(), NONE),
    "blocks-prefix": (block_window(), PREFIX),
    "blocks-dual": (block_window(), DUAL),
    "adablock-none": (adablock_window(), NONE),
    "adablock-prefix": (adablock_window(), PREFIX),
    "adablock-dual": (adablock_window(), DUAL),
    "dsb_const-none": (dsb_window("const"), NONE),
    "dsb_const-dsb": (dsb_window("const"), dsb_cache()),
    "dsb_greedy-none": (dsb_window("greedy"), NONE),
    "dsb_greedy-dsb": (dsb_window("greedy"), dsb_cache()),
    "lookahead-none": (lookahead_window(), NONE),
    "lookahead-lookahead": (lookahead_window(), lookahead_cache()),
}


@pytest.mark.parametrize(
    ("method", "family"),
    [
        pytest.param(method, family, marks=pytest.mark.thorough if (one + other) % len(MODELS) == 0 else [])
        for one, method in enumerate(METHODS)
        for other, family in enumerate(MODELS)
    ],
)
def test_a_batch_equals_the_method_written_down_row_by_row(method, family, make_prompts, request):
    model = request.getfixturevalue(family)
    window_pairs, cache_pairs = METHODS[method]

    @settings(max_examples=EXAMPLES.get(method, 4))
    @given(
        rule_pair=any_rule(),
        window_pair=window_pairs,
        cache_pair=cache_pairs,
        gen_length=st.sampled_from([16, 24, 11, 20, 5, 1]),
        lengths=st.lists(st.integers(1, 20), min_size=2, max_size=3),
        seed=st.integers(0, 1000),
    )
    def check(rule_pair, window_pair, cache_pair, gen_length, lengths, seed):
        prompts = make_prompts(lengths, seed)
        policy, rule = rule_pair
        scheduler, window = window_pair
        cache, forwards = cache_pair
        state = run(model, prompts, policy, scheduler=scheduler, cache=cache, gen_length=gen_length)
        for number, prompt in enumerate(prompts):
            columns = Columns(model.adapter.network, model.spec.mask_id, model.spec.shifted_logits)
            row = decode_row(forwards(columns), window(), rule, prompt, gen_length, model.spec.mask_id)
            assert state.canvas[number].tolist() == row.canvas
            assert int(state.forwards[number]) == row.forwards
            assert state.committed_at[number].tolist() == row.committed_at

    check()


@pytest.mark.parametrize("family", MODELS)
def test_the_network_written_down_proposes_what_the_network_proposes(family, make_prompts, request):
    model = request.getfixturevalue(family)
    (prompt,) = make_prompts([30])
    columns = Columns(model.adapter.network, model.spec.mask_id, model.spec.shifted_logits)
    by_column = columns.recompute(prompt, range(30), range(30))
    plain = full_proposals(model.adapter.network, prompt, model.spec.mask_id)
    assert len(by_column) == len(plain)
    for column, (token, confidence) in enumerate(plain):
        own_token, own_confidence = by_column[column + int(model.spec.shifted_logits)]
        assert own_token == token
        assert own_confidence == pytest.approx(confidence, rel=1e-6)
