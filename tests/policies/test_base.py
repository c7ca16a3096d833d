from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from learn2pd.tensors import most_confident


@given(data=st.data())
def test_the_most_confident_are_those_a_stable_sort_puts_first(data):
    levels = st.sampled_from([0.0, 0.25, 0.5, 1.0])  # ties are the rule
    confidence = data.draw(st.lists(levels, min_size=1, max_size=8))
    eligible = data.draw(st.lists(st.booleans(), min_size=len(confidence), max_size=len(confidence)))
    count = data.draw(st.integers(1, 9))
    ranked = sorted(
        (position for position, allowed in enumerate(eligible) if allowed), key=lambda position: -confidence[position]
    )
    for quota in (count, torch.tensor([count])):
        mask = most_confident(torch.tensor([confidence]), torch.tensor([eligible]), quota)
        assert mask[0].nonzero()[:, 0].tolist() == sorted(ranked[:count])
