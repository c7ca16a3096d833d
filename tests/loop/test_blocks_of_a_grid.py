"""Sub-blocks and the stop of filled answers, against the same rules written down for one row."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from learn2pd.schedulers.sub_blocks import SubBlocksScheduler
from learn2pd.stops.eot_filled import EotFilledStop
from learn2pd.types import Commit, DecodeState, ModelSpec, Prediction, Window

EOT, MASK = 0, 9
SPEC = ModelSpec("tiny", MASK, (EOT,), EOT, 10, 512, False, "", causal_block=8)


@given(
    prompt=st.integers(1, 20), sub=st.sampled_from([1, 2, 4, 8]), committed=st.integers(0, 19), shifted=st.booleans()
)
def test_a_window_is_the_part_of_the_grid_that_holds_the_leftmost_mask(prompt, sub, committed, shifted):
    length = 20
    state = DecodeState.start([[1] * prompt, [1] * 25], length, SPEC)
    masked = torch.arange(length) >= torch.tensor([[committed], [0]])
    state = replace(state, masked=masked, spec=replace(SPEC, shifted_logits=shifted))
    window = SubBlocksScheduler(8, sub).propose(state, None)
    place = prompt + committed
    grid = range(place // sub * sub, place // sub * sub + sub)
    wanted = [position - prompt for position in grid if 0 <= position - prompt < length]
    if shifted and place % 8 == 0:
        wanted = [committed]
    assert list(range(int(window.start[0]), int(window.stop[0]))) == wanted


@pytest.mark.parametrize(("block", "sub"), [(8, 3), (8, 16), (0, 1), (8, 0)])
def test_sub_blocks_that_do_not_divide_are_refused(block, sub):
    with pytest.raises(ValueError, match=r"expected (a divisor|at least 1)"):
        SubBlocksScheduler(block, sub)


@given(
    tokens=st.lists(st.sampled_from([EOT, 1, 2, MASK]), min_size=8, max_size=8),
    start=st.sampled_from([0, 2, 4]),
    whole=st.booleans(),
    end=st.integers(1, 8),
)
def test_a_row_ends_where_nothing_before_its_end_of_text_is_masked(tokens, start, whole, end):
    canvas = torch.tensor([tokens])
    state = replace(DecodeState.start([[1]], 8, SPEC), window=Window(torch.tensor([start]), torch.tensor([start + 4])))
    filled = canvas != MASK
    state = replace(state, end=torch.tensor([end]))
    prediction = Prediction(canvas, torch.ones(1, 8), filled)
    ends = EotFilledStop(whole).ends(state, prediction, Commit(filled), None)
    wanted = end
    if EOT in tokens[:end]:
        behind = tokens.index(EOT) + 1
        behind = max(behind, start + 4) if whole else behind
        wanted = min(end, behind) if MASK not in tokens[:behind] else end
    assert int(ends[0]) == wanted
