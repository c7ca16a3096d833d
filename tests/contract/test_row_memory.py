"""A run remembers everything row by row.

Rows can be taken out of a run, put together with others, and go on as if nothing had happened.
"""

from __future__ import annotations

import pytest
import torch

from learn2pd import Method, NoStop
from learn2pd.loop.loop import decode_batch
from learn2pd.loop.observing import CallbackObserver
from learn2pd.types import DecodeState, RowMemory
from tests.contract.helpers import GEN, SCHEDULERS, policies


@pytest.mark.parametrize("name", policies())
def test_rows_split_off_and_stacked_are_the_rows(name, tiny_model, make_prompts):
    state = DecodeState.start(make_prompts([3, 17, 9]), GEN, tiny_model.spec)
    policy = policies()[name]
    memory = policy.start(state, tiny_model.spec)
    assert memory is None or isinstance(memory, RowMemory)
    parts = [state.rows(torch.tensor([number])) for number in range(3)]
    assert equal(DecodeState.stack(parts), state)
    if memory is not None:
        assert equal(type(memory).stack([memory.rows(torch.tensor([number])) for number in range(3)]), memory)
        assert equal(memory.rows(torch.tensor([True, False, True])), memory.rows(torch.tensor([0, 2])))


def equal(one, other) -> bool:
    """Field by field."""
    for name, value in vars(one).items():
        theirs = getattr(other, name)
        same = (
            value.equal(theirs)
            if isinstance(value, torch.Tensor)
            else equal(value, theirs)
            if isinstance(value, RowMemory)
            else value is theirs
        )
        if not (same or value == theirs):
            return False
    return True


def test_a_state_that_is_split_in_its_middle_ends_as_the_whole_one(tiny_model, make_prompts):
    """Without a cache the state is all that a rule without memory needs."""
    prompts = make_prompts([3, 17, 9])
    method = Method(policies()["threshold0.6"], SCHEDULERS["blocks"], stop=NoStop())
    whole = decode_batch(tiny_model.adapter, DecodeState.start(prompts, GEN, tiny_model.spec), method)
    states = []

    decode_batch(
        tiny_model.adapter,
        DecodeState.start(prompts, GEN, tiny_model.spec),
        method,
        observer=CallbackObserver(lambda step: states.append(step.after)),
    )
    middle = states[len(states) // 2]
    rest = [decode_batch(tiny_model.adapter, middle.rows(torch.tensor([number])), method) for number in range(3)]
    again = DecodeState.stack(rest)
    assert again.canvas.equal(whole.canvas)
    assert again.forwards.equal(whole.forwards)


def test_a_block_is_a_canvas_without_a_prompt():
    tokens = torch.tensor([[5, 1, 7, 1]])
    masked = tokens == 1
    state = DecodeState.of_block(tokens, masked)
    assert state.prompt_width == 0
    assert state.canvas.equal(tokens)
    assert state.window.mask(4).all()
    assert state.decided.equal(~masked)


def test_what_an_observer_keeps_can_be_differentiated_through(tiny_model, make_prompts):
    """A policy that is trained by reinforcement computes its probabilities again from the states that it recorded."""
    steps = []
    state = DecodeState.start(make_prompts([3, 9]), GEN, tiny_model.spec)
    decode_batch(tiny_model.adapter, state, Method(policies()["fixed"]), observer=CallbackObserver(steps.append))
    weight = torch.ones((), requires_grad=True)
    sum((weight * step.prediction.confidence * step.commit.mask).sum() for step in steps).backward()
    assert weight.grad > 0
    assert all((step.log_probability <= 0).all() for step in steps)
