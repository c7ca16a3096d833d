"""What a predictor network sees: windows cut out of the canvas, channels, nothing from outside."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from learn2pd.predictors.features import (
    CHANNELS,
    DECIDED,
    OBSERVED,
    STANDING,
    VALUES,
    cut,
    observe,
    observe_committed,
    stack,
)
from learn2pd.tensors import canvas_view, window_view
from learn2pd.types import Commit, DecodeState, ModelSpec, Prediction, Window

GEN = 12


def columns(rows=3, seed=0):
    """Random observations of every kind."""
    generator = torch.Generator().manual_seed(seed)
    values = {name: torch.rand(rows, GEN, generator=generator) for name in OBSERVED}
    kinds = {name: values[name] if name in VALUES else values[name] < 0.5 for name in OBSERVED}
    return kinds | {"proposal": (9 * values["proposal"]).int()}


def described(rows=3, seed=0):
    """Random observations, with those of committed tokens."""
    generator = torch.Generator().manual_seed(seed + 7)
    known = columns(rows, seed)
    shares = {name: torch.rand(rows, GEN, generator=generator) for name in (*STANDING, "committed_with")}
    age = torch.randint(1, 6, (rows, GEN), generator=generator) * ~known["masked"]
    token = torch.randint(0, 9, (rows, GEN), generator=generator)
    return known | shares | {"age": age, "token": token}


def windows():
    """Windows of different lengths, one for each of three rows."""
    return Window(torch.tensor([0, 4, 9]), torch.tensor([5, 12, 10]))


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


@pytest.mark.parametrize("name", CHANNELS)
def test_a_channel_is_zero_past_the_window_and_does_not_depend_on_how_far_it_is_padded(name):
    narrow, wide = (stack(cut(described(), windows(), width, committed=False), [name]) for width in (8, 20))
    assert torch.equal(narrow, wide[:, :8])
    assert not wide[:, 8:].any()
    inside = cut(columns(), windows(), 8, committed=False).valid
    assert not narrow[~inside].any()


@pytest.mark.parametrize("name", CHANNELS)
def test_a_channel_sees_nothing_outside_its_window(name):
    here = described()
    other = described(seed=1)
    inside = windows().mask(GEN)
    mixed = {key: torch.where(inside, here[key], other[key]) for key in here}
    before, after = (stack(cut(values, windows(), 8, committed=True), [name]) for values in (here, mixed))
    assert torch.equal(before, after)


def test_values_of_committed_positions_are_hidden_unless_asked_for():
    values = columns()
    shown, hidden = (cut(values, windows(), 8, committed=committed) for committed in (True, False))
    assert torch.equal(hidden.confidence, shown.confidence * shown.masked)
    assert shown.confidence[shown.valid & ~shown.masked].all()


def test_a_proposal_is_seen_where_there_is_something_to_decide_and_nowhere_else():
    values, window = columns(), windows()
    view = cut(values, window, 8, committed=False)
    for row, (start, stop) in enumerate(zip(window.start.tolist(), window.stop.tolist(), strict=True)):
        expected = torch.where(values["masked"], values["proposal"], DECIDED)[row, start:stop].tolist()
        assert view.proposal[row].tolist() == expected + [DECIDED] * (8 - len(expected))


def test_log_odds_tell_sure_from_surer():
    sure = columns(rows=1) | {"confidence": torch.full((1, GEN), 0.99), "masked": torch.ones(1, GEN, dtype=torch.bool)}
    surer = sure | {"confidence": torch.full((1, GEN), 0.9999)}
    window = Window(torch.tensor([0]), torch.tensor([GEN]))
    low, high = (stack(cut(values, window, GEN, committed=False), ["log_odds"]) for values in (sure, surer))
    assert ((high - low) > 4).all()


def test_a_step_is_observed_as_it_is():
    spec = ModelSpec("hand-made", 1, (9,), 0, 400, 512, False, "")
    state = DecodeState.start([[5, 6]], 4, spec)
    state = state.commit(Commit(torch.tensor([[True, False, False, False]])), torch.tensor([[9, 0, 0, 0]]))
    prediction = Prediction(
        torch.tensor([[7, 9, 3, 0]]), torch.tensor([[0.2, 0.3, 0.4, 0.0]]), torch.tensor([[False, True, True, False]])
    )
    later = replace(state, previous=torch.tensor([[7, 9, 2, 0]]))
    observed = observe(later, prediction, eot_ids=(9,), delimiter_ids=(3,))
    assert observed["masked"].tolist() == [[False, True, True, True]]
    assert observed["proposal"].tolist() == [[7, 9, 3, 0]]
    assert observed["end_of_text"].tolist() == [[True, True, False, False]]  # the committed token, then the proposal
    assert observed["delimiter"].tolist() == [[False, False, True, False]]
    assert observed["unchanged"].tolist() == [[False, True, False, False]]
    assert not observe(state, prediction, (9,), ())["unchanged"].any()


def test_a_window_with_described_tokens_shows_them_in_place_of_proposals():
    values, window = described(), windows()
    view = cut(values, window, 8, committed=False)
    for row, (start, stop) in enumerate(zip(window.start.tolist(), window.stop.tolist(), strict=True)):
        assert view.proposal[row].tolist() == values["token"][row, start:stop].tolist() + [DECIDED] * (8 - stop + start)


def test_newer_is_the_share_of_the_window_that_was_committed_later():
    values, window = described(), windows()
    newer = stack(cut(values, window, 8, committed=False), ["newer"])[..., 0]
    for row, (start, stop) in enumerate(zip(window.start.tolist(), window.stop.tolist(), strict=True)):
        age = values["age"][row, start:stop].tolist()
        expected = [sum(0 < other < own for other in age) / len(age) for own in age]
        assert newer[row, : stop - start].tolist() == pytest.approx(expected)


def test_committed_tokens_are_described_as_they_stand():
    spec = ModelSpec("hand-made", 1, (9,), 0, 400, 512, False, "")
    state = DecodeState.start([[5, 6]], 5, spec, given=torch.tensor([[8, -1, -1, -1, -1]]))
    state = state.commit(Commit(torch.tensor([[False, True, False, False, False]])), torch.tensor([[0, 7, 0, 0, 0]]))
    state = replace(state, step=state.step + 3, committed_with=torch.tensor([[0.0, 0.6, 0.0, 0.0, 0.0]]))
    standing = {
        name: torch.tensor([[0.0, value, 0.0, 0.0, 0.0]]) for name, value in zip(STANDING, (0.2, 2.0, 0.7), strict=True)
    }
    valid = torch.tensor([[False, False, True, True, False]])
    prediction = Prediction(torch.tensor([[0, 0, 3, 4, 5]]), 0.5 * valid, valid, standing)
    seen = observe_committed(state, prediction)
    assert seen["age"].tolist() == [[0, 3, 0, 0, 0]]  # a given token was not committed
    assert seen["committed_with"].tolist() == [[0.0, pytest.approx(0.6), 0.0, 0.0, 0.0]]
    assert seen["token"].tolist() == [[8, 7, 3, 4, DECIDED]]
    assert {name: seen[name] for name in STANDING} == standing


@pytest.mark.parametrize("channel", ["margin", "entropy", "age", "newer", "committed_with", *STANDING])
def test_a_channel_that_the_prediction_lacks_is_an_error_and_not_zeros(channel):
    shown = {name: values for name, values in columns().items() if name != channel}
    with pytest.raises(ValueError, match=f"'{channel}'.*needs"):
        stack(cut(shown, windows(), 8, committed=False), [channel])
