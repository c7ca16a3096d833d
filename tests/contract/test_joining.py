"""Rows join a batch that is already running and leave it, and each of them gets exactly what it gets alone."""

from __future__ import annotations

import pytest
import torch

from learn2pd import Method, Sampling
from learn2pd.loop.loop import Loop, decode_batch
from learn2pd.loop.run import Run
from learn2pd.types import DecodeState
from tests.contract.helpers import CACHES, SCHEDULERS, STOPS, every_second, policies

GEN = 13  # not a multiple of the block
LENGTHS = [9, 30, 3, 17]  # a longer prompt joins a shorter one, and the longest of the batch leaves it
EVERY = 3  # steps after which the next row joins


def alone(model, prompt, number, method, sampling) -> DecodeState:
    state = DecodeState.start([prompt], GEN, model.spec, index=[number])
    return decode_batch(model.adapter, state, method, sampling=sampling)


def joined(model, prompts, method, sampling) -> dict[int, DecodeState]:
    """The final state of each prompt, of which one joins the batch every few steps."""
    loop = Loop(model.adapter, method, sampling=sampling)
    waiting = list(enumerate(prompts))
    ended: dict[int, DecodeState] = {}
    run = None
    steps = 0
    while waiting or (run is not None and run.state.open.any()):
        if waiting and steps % EVERY == 0:
            number, prompt = waiting.pop(0)
            fresh = loop.start(DecodeState.start([prompt], GEN, model.spec, index=[number]))
            parts = [] if run is None or not run.state.open.any() else [run.rows(run.state.open)]
            run = Run.stack([*parts, fresh])
        if loop.goes_on(run):
            run = loop.step(run)
        steps += 1
        ended |= {int(run.state.index[row]): run.state.rows(row[None]) for row in (~run.state.open).nonzero()[:, 0]}
    return ended


def check(model, make_prompts, method, sampling=Sampling()):  # noqa: B008
    prompts = make_prompts(LENGTHS)
    method.check(model.spec)
    ended = joined(model, prompts, method, sampling)
    assert len(ended) == len(prompts)
    for number, prompt in enumerate(prompts):
        expected = alone(model, prompt, number, method, sampling)
        assert ended[number].canvas.equal(expected.canvas)
        assert ended[number].committed_at.equal(expected.committed_at)
        assert ended[number].forwards.equal(expected.forwards)
        assert ended[number].columns.equal(expected.columns)


@pytest.mark.parametrize("name", every_second(policies(GEN)))
def test_a_row_that_joins_gets_what_it_gets_alone(name, tiny_model, make_prompts):
    check(tiny_model, make_prompts, Method(policies(GEN)[name], SCHEDULERS["blocks"], stop=STOPS["eot0.5"]))


@pytest.mark.parametrize(
    ("cache", "model"),
    [
        pytest.param(cache, model, marks=pytest.mark.thorough if (one + other) % 2 else [])
        for one, cache in enumerate(CACHES)
        for other, model in enumerate(("tiny_dream", "tiny_model"))
    ],
)
def test_kept_keys_and_values_move_with_their_row(cache, model, make_prompts, request):
    scheduler = SCHEDULERS["lookahead" if cache == "lookahead" else "blocks"]
    method = Method(policies()["threshold0.6"], scheduler, CACHES[cache], STOPS["paper"])
    check(request.getfixturevalue(model), make_prompts, method)


@pytest.mark.parametrize("name", ["threshold0.6", "apd"])
def test_draws_are_those_of_the_row_alone(name, tiny_model, make_prompts):
    check(tiny_model, make_prompts, Method(policies()[name], SCHEDULERS["blocks"]), Sampling(1.0, 0.9))


def test_the_columns_of_a_prompt_that_has_left_are_given_back(tiny_model, make_prompts):
    loop = Loop(tiny_model.adapter, Method(policies()["threshold0.6"], SCHEDULERS["blocks"], CACHES["dual"]))
    run = loop.step(loop.start(DecodeState.start(make_prompts([40, 3]), GEN, tiny_model.spec)))
    short = Run.stack([run.rows(torch.tensor([1]))])
    assert (short.state.prompt_width, short.store.columns) == (3, 3 + GEN)
    assert short.store.reached <= 3 + GEN
