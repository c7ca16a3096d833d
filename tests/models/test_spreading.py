"""The layers of one network on several devices decode what they decode on one."""

from __future__ import annotations

import copy

import pytest
import torch

from learn2pd import Method
from learn2pd.caches.causal_block import CausalBlockCache
from learn2pd.errors import UserError
from learn2pd.loop.loop import Loop
from learn2pd.models import loading
from learn2pd.models.adapter import ModelAdapter
from learn2pd.models.loading import load_model
from learn2pd.models.spreading import connect, devices_of_layers, devices_of_tensors
from learn2pd.schedulers.blocks import BlocksScheduler
from learn2pd.types import DecodeState
from tests.contract.helpers import BLOCK, CACHES, SCHEDULERS, STOPS, policies
from tests.device import DEVICE, Device

CPU = torch.device("cpu")
CANVAS = 13


def spread(network):
    """A copy of a network whose later layers are on the device. The device must be active."""
    network = copy.deepcopy(network)
    for layer in network.parts().layers[1:]:
        layer.to(DEVICE)
    connect(network)
    return network


def answer(adapter, method, prompts, spec):
    loop = Loop(adapter, method)
    run = loop.start(DecodeState.start(prompts, CANVAS, spec))
    while loop.goes_on(run):
        run = loop.step(run)
    return run.state


CASES = [("tiny_model", "none"), ("tiny_model", "dual"), ("tiny_dream", "dsb"), ("llada2", "causal_block")]


@pytest.fixture(autouse=True)
def _without_inference_mode(monkeypatch):
    """Torch refuses views of a wrapped tensor in inference mode."""
    monkeypatch.setattr(torch, "inference_mode", torch.no_grad)


@pytest.mark.parametrize(
    ("name", "cache", "policy"),
    [
        pytest.param(*case, policy, marks=pytest.mark.thorough if (one + other) % 2 else [])
        for one, case in enumerate(CASES)
        for other, policy in enumerate(["threshold0.6", "filter_back"])
    ],
)
def test_answers_are_those_of_one_device(request, name, cache, policy, make_prompts, tiny_family):
    model = request.getfixturevalue(name) if name.startswith("tiny") else tiny_family(name)
    scheduler = BlocksScheduler(model.spec.causal_block or BLOCK, "grid" if model.spec.causal_block else "prompt")
    kept = CausalBlockCache() if cache == "causal_block" else CACHES[cache]
    method = Method(policies(CANVAS)[policy], scheduler, kept, STOPS["eot0.5"])
    prompts = make_prompts([3, 9, 5])
    expected = answer(model.adapter, method, prompts, model.spec)
    with Device():
        after = answer(ModelAdapter(spread(model.adapter.network), model.spec), method, prompts, model.spec)
    assert after.tokens.equal(expected.tokens)
    assert after.forwards.equal(expected.forwards)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_devices_hold_about_the_same_and_follow_each_other(tiny_family, number):
    network = tiny_family("sdar").adapter.network
    devices = [torch.device("cuda", index) for index in range(number)]
    places = devices_of_layers(network, devices)
    assert places == sorted(places, key=devices.index)
    sizes = dict.fromkeys(devices, 0)
    by_name = devices_of_tensors(network, devices)
    for name, tensor in network.state_dict().items():
        sizes[by_name[name]] += tensor.nbytes
    layer = sum(tensor.nbytes for tensor in network.parts().layers[0].state_dict().values())
    rest = sum(network.state_dict()[name].nbytes for name in by_name if "layers" not in name)
    assert max(sizes.values()) <= max(sum(sizes.values()) / number + layer, rest)
    assert by_name[next(iter(by_name))] == devices[0]


def test_a_checkpoint_is_loaded_onto_several_devices(tiny_model_folder, tiny_model, monkeypatch, make_prompts):
    monkeypatch.setattr(loading, "resolve_devices", lambda _: [CPU, torch.device("cpu", 0)])
    model = load_model(tiny_model_folder, device="two")
    assert model.spec.fingerprint == tiny_model.spec.fingerprint
    method = Method(policies(CANVAS)["threshold0.6"], SCHEDULERS["blocks"], CACHES["dual"], STOPS["eot0.5"])
    prompts = make_prompts([3, 9])
    both = [answer(each.adapter, method, prompts, model.spec).tokens for each in (model, tiny_model)]
    assert both[0].equal(both[1])


@pytest.mark.parametrize("device", ["cpu,cpu", "auto,cpu", "cpu,", "cpu,nowhere", ","])
def test_a_device_that_cannot_be_is_refused_in_one_line(tiny_model_folder, device):
    with pytest.raises(UserError, match=r"^device="):
        load_model(tiny_model_folder, device=device)


def test_layers_on_several_devices_are_not_compiled(tiny_model_folder, monkeypatch):
    monkeypatch.setattr(loading, "resolve_devices", lambda _: [CPU, torch.device("cpu", 0)])
    with pytest.raises(UserError, match="compile=true"):
        load_model(tiny_model_folder, device="cuda:0,cuda:1", compile=True)
