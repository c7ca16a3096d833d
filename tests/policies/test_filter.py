from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from learn2pd.policies.base import most_confident
from learn2pd.policies.filter import canvas_view, window_view
from learn2pd.types import Window


@given(data=st.data())
def test_a_window_seen_and_put_back_is_the_canvas_inside_it_and_nothing_outside(data):
    gen_length, width, rows = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 12)), data.draw(st.integers(1, 3))
    start = [data.draw(st.integers(0, gen_length - 1)) for _ in range(rows)]
    stop = [min(first + data.draw(st.integers(1, width)), gen_length) for first in start]
    window = Window(torch.tensor(start), torch.tensor(stop))
    values = torch.rand(rows, gen_length, generator=torch.Generator().manual_seed(0)) + 0.1
    seen = window_view(values, window, width)
    for row in range(rows):
        inside = values[row, start[row] : stop[row]].tolist()
        assert seen[row].tolist() == inside + [0.0] * (width - len(inside))
    assert canvas_view(seen, window, gen_length).equal(values * window.mask(gen_length))


@given(data=st.data())
def test_the_most_confident_are_those_a_stable_sort_puts_first(data):
    levels = st.sampled_from([0.0, 0.25, 0.5, 1.0])  # ties are the rule
    confidence = data.draw(st.lists(levels, min_size=1, max_size=8))
    eligible = data.draw(st.lists(st.booleans(), min_size=len(confidence), max_size=len(confidence)))
    count = data.draw(st.integers(1, 9))
    ranked = sorted((position for position, allowed in enumerate(eligible) if allowed), key=lambda position: -confidence[position])
    for quota in (count, torch.tensor([count])):
        mask = most_confident(torch.tensor([confidence]), torch.tensor([eligible]), quota)
        assert mask[0].nonzero()[:, 0].tolist() == sorted(ranked[:count])
