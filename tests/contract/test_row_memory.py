"""A run remembers everything row by row.

Rows can be taken out of a run, put together with others, and go on as if nothing had happened.
"""

from __future__ import annotations

from dataclasses import is_dataclass

import pytest
import torch

from learn2pd import Method, NoStop, Observer
from learn2pd.loop.loop import decode_batch
from learn2pd.loop.observing import CallbackObserver
from learn2pd.types import DecodeState, RowMemory
from tests.contract.helpers import CACHES, GEN, SCHEDULERS, policies, run


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


def test_a_block_is_a_canvas_without_a_prompt(tiny_model):
    tokens = torch.tensor([[5, 1, 7, 1]])
    masked = tokens == 1
    state = DecodeState.of_block(tokens, masked, tiny_model.spec)
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


class ReadsLogits(Observer):
    """Asks for everything that a component may read of the model, and keeps the steps."""

    needs = frozenset({"logits", "margin", "entropy", "leave_one_out"})
    scores_committed = True

    def __init__(self):
        self.steps = []

    def observe(self, step):
        self.steps.append(step)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("cache", CACHES)
def test_nothing_that_a_component_or_an_observer_receives_is_bound_to_inference_mode(
    cache, temperature, tiny_model, make_prompts
):
    """Torch refuses to train with such tensors, and to change them in place."""
    observer = ReadsLogits()
    run(
        tiny_model,
        make_prompts([3, 9]),
        policies()["fixed"],
        cache=CACHES[cache],
        temperature=temperature,
        observer=observer,
    )
    received = [tensor for step in observer.steps for tensor in tensors_of(step)]
    assert len(received) > 20 * len(observer.steps)
    assert not any(tensor.is_inference() for tensor in received)
    weight = torch.nn.Linear(tiny_model.spec.vocab_size, 1)
    weight(observer.steps[0].prediction.logits.float().clamp_min(-9)).sum().backward()


def tensors_of(value) -> list[torch.Tensor]:
    """All tensors in a value of learn2pd.types, however deep."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        return [tensor for item in value.values() for tensor in tensors_of(item)]
    return tensors_of(vars(value)) if is_dataclass(value) else []
