"""The last layer computes only the columns that are asked for, and gives for them what it gives for all columns."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from learn2pd.loop.step import places_asked
from learn2pd.types import ForwardPlan

FAMILIES = ["tiny_model", "tiny_model_grouped", "tiny_dream"]
OTHERS = ["sdar", "sdar_moe", "llada2", "llada_moe", "fast_dllm_v2"]
ROWS, COLUMNS, BEFORE = 3, 12, 4


def plan_of(first: int) -> ForwardPlan:
    """Columns from `first` on of rows of which one begins with padding; other columns are scored in each row."""
    query = torch.arange(first, COLUMNS).expand(ROWS, -1)
    pad = torch.tensor([0, 2, 0])
    score = torch.zeros_like(query, dtype=torch.bool)
    score[0, -3:] = score[1, -1:] = score[2, 2:7:2] = True
    seen = torch.arange(COLUMNS) >= pad[:, None]
    position = (query - pad[:, None]).clamp_min(0)
    return ForwardPlan(torch.arange(ROWS), query, position, seen, score, query.new_full((ROWS,), COLUMNS), (0, COLUMNS))


@torch.no_grad()
def check(model):
    adapter = model.adapter
    tokens = torch.randint(2, 300, (ROWS, COLUMNS), generator=torch.Generator().manual_seed(0))
    stores = [adapter.new_store(ROWS, COLUMNS) for _ in range(2)]
    for first in (0, BEFORE):
        plan = plan_of(first)
        shift = int(model.spec.shifted_logits)
        asked = places_asked(plan, shift)
        assert asked.shape[1] < plan.query.shape[1]
        whole = adapter.forward(tokens, plan, stores[0])
        part = adapter.forward(tokens, replace(plan, asked=asked), stores[1])
        assert part.shape[:2] == asked.shape
        row, place = plan.score.nonzero(as_tuple=True)
        at = (plan.score.cumsum(1) - 1)[row, place]
        expected, got = (adapter.score(hidden) for hidden in (whole[row, place - shift], part[row, at]))
        assert (expected - got).abs().max() < 1e-5
        # what later forwards read of this one is complete
        pairs = [
            (one, other)
            for name in ("keys", "values")
            for one, other in zip(*(vars(store)[name] for store in stores), strict=True)
        ]
        assert max(float((one - other).abs().max()) for one, other in pairs) < 1e-6


@pytest.mark.parametrize("model", FAMILIES)
def test_full_attention(model, request):
    check(request.getfixturevalue(model))


@pytest.mark.parametrize("family", OTHERS)
def test_other_families(family, tiny_family):
    check(tiny_family(family))


def test_nothing_is_left_out_where_everything_is_scored():
    plan = plan_of(0)
    assert places_asked(plan, 0) is not None
    assert places_asked(replace(plan, score=plan.query >= 0), 0) is None
