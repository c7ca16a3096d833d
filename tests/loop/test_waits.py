"""A step waits once for the device, whatever the method, and computes there what it computes on the CPU.

The device is that of tests/device.py, so that no GPU is needed. A policy that waits more often is named here.
"""

from __future__ import annotations

import pytest
import torch

from learn2pd import Method, Sampling, TextStop
from learn2pd.loop.loop import Loop
from learn2pd.models.adapter import ModelAdapter
from learn2pd.policies.apd import APDPolicy
from learn2pd.policies.verifier import Verifier
from learn2pd.types import DecodeState
from tests.contract.helpers import CACHES, SCHEDULERS, STOPS, fits, policies, tiny_verifier
from tests.device import Device, held, moved, on_the_device

CANVAS, STEPS = 12, 2  # the forward that opens a block and one that reuses what it kept
MORE_WAITS = {
    "apd": 1,  # the size of the verifier's forward follows from the draft
    "dawn": 1,  # how often its third set grows
    "apple": 1,  # its draws come from a generator of the CPU, whose seed it reads
}
CACHE_OF = {name: "dual" if fits(name, "blocks", "dual") else "none" for name in policies()}
WINDOWS = [
    pytest.param(scheduler, cache, marks=pytest.mark.thorough if (one + other) % 3 else [])
    for one, scheduler in enumerate(SCHEDULERS)
    for other, cache in enumerate(CACHES)
    if fits("threshold0.6", scheduler, cache)
]


@pytest.fixture(autouse=True)
def _without_inference_mode(monkeypatch):
    """Torch refuses views of a wrapped tensor in inference mode."""
    monkeypatch.setattr(torch, "inference_mode", torch.no_grad)


def steps_of(loop: Loop, state: DecodeState, device: Device | None = None) -> tuple[DecodeState, list[list[str]]]:
    """The state after some steps, and the waits of each step."""
    run = loop.start(state)
    waits = []
    while loop.goes_on(run) and len(waits) < STEPS:
        seen = len(device.waits) if device else 0
        run = loop.step(run)
        waits.append(device.waits[seen:] if device else [])
    return run.state, waits


def check(model, prompts, method: Method, most: int = 1, sampling=Sampling(), moved_policy=None):  # noqa: B008
    method.check(model.spec)
    state = DecodeState.start(prompts, CANVAS, model.spec)
    expected, _ = steps_of(Loop(model.adapter, method, sampling=sampling), state)
    with Device() as device:
        adapter = ModelAdapter(moved(model.adapter.network), model.spec)
        if moved_policy:
            method = Method(moved_policy(), method.scheduler, method.cache, method.stop)
        loop = Loop(adapter, method, sampling=sampling)
        after, waits = steps_of(loop, on_the_device(state), device)
    assert held(after).tokens.equal(expected.tokens)
    assert held(after).forwards.equal(expected.forwards)
    assert waits
    longest = max(waits, key=len)
    assert len(longest) <= most, "\n".join(longest)


@pytest.mark.parametrize("name", CACHE_OF)
def test_a_policy_waits_once(name, tiny_model, make_prompts):
    method = Method(policies(CANVAS)[name], SCHEDULERS["blocks"], CACHES[CACHE_OF[name]], STOPS["eot0.5"])
    on_device = (lambda: APDPolicy(Verifier(moved(tiny_verifier().network)))) if name == "apd" else None
    check(tiny_model, make_prompts([3, 9]), method, 1 + MORE_WAITS.get(name, 0), moved_policy=on_device)


@pytest.mark.parametrize(("scheduler", "cache"), WINDOWS)
def test_a_window_and_a_cache_wait_once(scheduler, cache, tiny_dream, make_prompts):
    method = Method(policies()["filter_transformer"], SCHEDULERS[scheduler], CACHES[cache], STOPS["paper"])
    check(tiny_dream, make_prompts([3, 9]), method)


@pytest.mark.parametrize("stop", STOPS)
def test_a_stop_rule_waits_once(stop, tiny_model, make_prompts):
    check(tiny_model, make_prompts([3, 9]), Method(policies()["threshold0.6"], stop=STOPS[stop]))


def test_a_stop_that_reads_text_waits_once_more(tiny_model, make_prompts):
    check(tiny_model, make_prompts([3, 9]), Method(policies()["threshold0.6"], stop=TextStop(["x"])), 2)


def test_draws_wait_once(tiny_model, make_prompts):
    check(tiny_model, make_prompts([3, 9]), Method(policies()["fixed_half"]), sampling=Sampling(1.0, 0.9))


def test_a_device_notices_what_waits():
    """The ways in which a tensor is read, each of which a loop could contain."""
    ways = {
        "item": lambda x: x.sum().item(),
        "bool": lambda x: bool((x > 0).any()),
        "int": lambda x: int(x.max()),
        "tolist": lambda x: x.tolist(),
        "nonzero": lambda x: x.nonzero(),
        "mask": lambda x: x[x > 0],
        "mask of one axis": lambda x: x[(x > 0).any(1)],
        "write by a mask": lambda x: x.clone().index_put_((x > 0,), x.sum()),
        "masked_select": lambda x: x.masked_select(x > 0),
        "cpu": lambda x: x.cpu(),
        "numpy": lambda x: x.cpu().numpy(),
        "blocking copy": lambda x: torch.ones(3).to(x.device),
        "unique": lambda x: x.unique(),
        "bincount": lambda x: x.flatten().bincount(),
        "equal": lambda x: x.equal(x),
        "repeat": lambda x: x.flatten().repeat_interleave(x.flatten()),
    }
    for name, way in ways.items():
        with Device() as device:
            way(on_the_device(torch.tensor([[1, 0, 2], [0, 0, 0]])))
        assert device.waits, name


def test_a_device_refuses_tensors_of_the_host():
    with Device(), pytest.raises(RuntimeError, match="tensors of the host and of the device"):
        on_the_device(torch.ones(3)) + torch.ones(3)


def test_a_copy_that_does_not_block_and_work_on_the_device_wait_for_nothing():
    with Device() as device:
        x = torch.ones(3).to("meta", non_blocking=True)
        y = torch.where(x > 0, x.cumsum(0), 0)[x.long()]
        y[x.long()] = 5.0
    assert not device.waits
    assert held(y).tolist() == [1, 5, 2] or held(y).tolist() == [2, 5, 2]
