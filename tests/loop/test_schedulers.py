"""Windows of hand-made states against the same windows written down; confidences have many ties."""

from __future__ import annotations

from dataclasses import replace

import torch
from hypothesis import given
from hypothesis import strategies as st

from learn2pd.schedulers.adablock import AdaBlockScheduler
from learn2pd.schedulers.blocks import BlocksScheduler
from learn2pd.schedulers.dsb import DSBScheduler
from learn2pd.schedulers.lookahead import LookaheadScheduler
from learn2pd.schedulers.sub_blocks import SubBlocksScheduler
from learn2pd.types import DecodeState, ModelSpec, Prediction
from tests.reference import windows
from tests.reference.row import Row

MASK, PAD, PROMPT = 1, 0, [5, 5]
DELIMITERS = (3, 4)
levels = st.sampled_from([0.25, 0.5, 0.75])
lengths = st.integers(1, 12)
SPEC = ModelSpec(
    name="hand-made",
    mask_id=1,
    eot_ids=(9,),
    pad_id=0,
    vocab_size=400,
    max_length=512,
    shifted_logits=False,
    fingerprint="",
)


def state_of(masked):
    """A row in which some positions were committed, in the package's form and written down."""
    state = DecodeState.start([PROMPT], len(masked), SPEC)
    held = torch.tensor([masked])
    state = replace(state, masked=held, committed_at=torch.where(held, -1, 0))
    row = Row.start(PROMPT, len(masked), MASK)
    row.masked = list(masked)
    return state, row


def shifted(state):
    """The state in a run of a model whose logits are shifted."""
    return replace(state, spec=replace(SPEC, shifted_logits=True))


def bounds(window):
    """Start and stop of the first row's window."""
    return int(window.start[0]), int(window.stop[0])


@given(masked=st.lists(st.booleans(), min_size=1, max_size=30).filter(any), length=lengths)
def test_a_window_is_where_the_rule_written_down_has_it(masked, length):
    state, row = state_of(masked)
    for scheduler, window in (
        (BlocksScheduler(length), windows.Blocks(length)),
        (DSBScheduler(length, "const"), windows.DSB(length, "const")),
        (DSBScheduler(length, "greedy"), windows.DSB(length, "greedy")),
        (LookaheadScheduler(length), windows.Lookahead(length)),
        (LookaheadScheduler(), windows.Lookahead(None)),
    ):
        assert bounds(scheduler.propose(state, None)) == window.before(row)


@given(
    committed=st.integers(0, 20),
    proposals=st.lists(st.tuples(st.integers(2, 6), levels), min_size=1, max_size=40),
    length=lengths,
    threshold=levels,
)
def test_adablock_ends_a_block_at_the_surest_delimiter_of_the_next_quarter(committed, proposals, length, threshold):
    """The first `committed` positions are done, and a block opens behind them."""
    gen_length = committed + len(proposals)
    masked = [position >= committed for position in range(gen_length)]
    state, row = state_of(masked)
    padded = [(0, 0.0)] * committed + proposals
    tokens, confidence = (torch.tensor([column]) for column in zip(*padded, strict=True))
    scheduler = AdaBlockScheduler(DELIMITERS, length, threshold)
    state = replace(state, window=scheduler.propose(state, None))
    window = scheduler.resolve(state, state.window, Prediction(tokens, confidence, state.masked), None)
    reference = windows.AdaBlock(DELIMITERS, length, threshold)
    reference.before(row)
    assert bounds(window) == reference.after(row, dict(enumerate(padded)))


@given(
    masked=st.lists(st.booleans(), min_size=1, max_size=30).filter(any),
    held=st.lists(st.booleans(), min_size=30, max_size=30),
    length=lengths,
)
def test_what_stands_behind_a_window_does_not_move_it(masked, held, length):
    """Such as an end of the answer that the caller gave."""
    for scheduler in (
        BlocksScheduler(length),
        BlocksScheduler(length, "grid"),
        SubBlocksScheduler(2 * length, length),
        AdaBlockScheduler(DELIMITERS, length, 0.5),
        DSBScheduler(length, "const"),
        DSBScheduler(length, "greedy"),
        LookaheadScheduler(length),
        LookaheadScheduler(),
    ):
        window = bounds(scheduler.propose(shifted(state_of(masked)[0]), None))
        other = [*masked[: window[1]], *held[window[1] : len(masked)]]
        assert bounds(scheduler.propose(shifted(state_of(other)[0]), None)) == window


@given(
    proposals=st.lists(st.tuples(st.integers(2, 6), levels), min_size=4, max_size=40),
    held=st.lists(st.booleans(), min_size=40, max_size=40),
    length=lengths,
    threshold=levels,
)
def test_adablock_reads_no_proposals_at_tokens_that_stand(proposals, held, length, threshold):
    """An observer may ask for them: the block ends where it does when nobody has asked."""
    scheduler = AdaBlockScheduler(DELIMITERS, length, threshold)
    state, _ = state_of([True, *(not stands for stands in held[1 : len(proposals)])])
    state = replace(state, given=~state.masked)
    state = replace(state, window=scheduler.propose(state, None))
    tokens, confidence = (torch.tensor([column]) for column in zip(*proposals, strict=True))
    asked, plain = (
        bounds(scheduler.resolve(state, state.window, Prediction(tokens * valid, confidence * valid, valid), None))
        for valid in (torch.ones_like(state.masked), state.masked)
    )
    assert asked == plain
