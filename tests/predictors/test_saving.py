"""A saved policy decodes as before, states its contract, and is refused where the contract does not hold.

An adapter is kept apart from its base and merged when it is loaded.
"""

import copy
import json
from dataclasses import replace

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from learn2pd.decoding import decode
from learn2pd.errors import UserError
from learn2pd.predictors.filter import FilterPolicy, load_policy, save_policy
from learn2pd.predictors.loading import load_predictor
from learn2pd.predictors.lora import add_adapter, merged, save_adapter
from learn2pd.predictors.networks import MLP, Conv, Transformer
from learn2pd.predictors.saving import Contract, Predictor, Setting, save_predictor
from learn2pd.schedulers.blocks import BlocksScheduler
from learn2pd.schedulers.dsb import DSBScheduler

CURVE = (Setting(0.9, 1.5, 0.99, 0.0, 0.02), Setting(0.5, 2.5, 0.9, 0.1, 0.15), Setting(0.2, 4.0, 0.6, 0.4, 0.5))


def made(model, network=None, **geometry):
    """An untrained predictor with a contract for a model."""
    torch.manual_seed(0)
    network = network or MLP(16, 24)
    fixed = {"block_length": 16, "alignment": "prompt"} if network.width else {}
    return Predictor("filter", network, 0.4, Contract.of(model.spec, **(fixed | geometry)), CURVE, {"auroc": 0.5})


@pytest.fixture(params=["mlp", "conv", "transformer"])
def predictor(request, tiny_model):
    torch.manual_seed(0)
    return made(
        tiny_model, {"mlp": MLP(16, 24), "conv": Conv(hidden=8), "transformer": Transformer(hidden=8)}[request.param]
    )


@pytest.fixture
def folder(tiny_model, tmp_path):
    return save_policy(FilterPolicy(made(tiny_model)), tmp_path / "policy")


def test_a_saved_policy_decodes_as_before(tiny_model, predictor, make_prompts, tmp_path):
    prompts = make_prompts([5, 9])
    loaded = load_policy(save_policy(FilterPolicy(predictor), tmp_path / "policy"))
    assert (loaded.threshold, loaded.predictor.contract, loaded.predictor.metrics, loaded.predictor.curve) == (
        0.4,
        predictor.contract,
        {"auroc": 0.5},
        CURVE,
    )
    assert loaded.predictor.fingerprint == predictor.fingerprint
    before, after = (
        decode(tiny_model, prompts, policy=policy, scheduler=BlocksScheduler(16), gen_length=40)
        for policy in (FilterPolicy(predictor), loaded)
    )
    assert torch.equal(before.tokens, after.tokens)
    assert torch.equal(before.forwards, after.forwards)


def test_the_dial_moves_along_the_calibrated_curve(folder):
    assert [load_policy(folder, aggressiveness=place).threshold for place in (0, 0.5, 1)] == pytest.approx(
        [0.9, 0.5, 0.2]
    )
    between = load_policy(folder, aggressiveness=0.25).threshold
    assert 0.5 < between < 0.9
    assert load_policy(folder, threshold=0.7).threshold == 0.7


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9))
@example([0.9 - step / 100 for step in range(23)])
def test_at_a_measured_place_the_dial_stands_at_the_measured_setting(tiny_model, thresholds):
    curve = tuple(Setting(threshold, 2.0) for threshold in sorted(thresholds, reverse=True))
    predictor = replace(made(tiny_model), curve=curve)
    for place, setting in enumerate(curve):
        moved = predictor.at(place / max(1, len(curve) - 1))
        assert moved.setting == setting
        assert FilterPolicy(moved).setting == setting


@pytest.mark.parametrize(
    ("choice", "named"),
    [
        ({"aggressiveness": 1.5}, "aggressiveness=1.5"),
        ({"aggressiveness": 0.5, "threshold": 0.5}, "one of them"),
        ({"threshold": 2.0}, "threshold=2.0"),
        ({"take_back": 1.5}, "take_back=1.5"),
        ({"one_more": -1.0}, "one_more=-1.0"),
        ({"confidence_threshold": 1.1}, "confidence_threshold=1.1"),
        ({"take_back": "much"}, "take_back='much'"),
        ({"take_back": 0.3, "per_position": -1}, "per_position=-1"),
    ],
)
def test_a_setting_that_makes_no_sense_is_one_line(folder, choice, named):
    with pytest.raises(UserError, match=named):
        load_policy(folder, **choice)


def test_a_policy_without_a_curve_has_no_dial(tiny_model, tmp_path):
    bare = save_policy(FilterPolicy(replace(made(tiny_model), curve=())), tmp_path / "bare")
    with pytest.raises(UserError, match="no calibrated curve"):
        load_policy(bare, aggressiveness=0.5)


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("block_length", 8, "block length 8"),
        ("mask_id", 7, "mask id 7"),
        ("vocab_size", 126464, "126464"),
        ("eot_ids", (9,), r"\(9,\)"),
    ],
)
def test_a_run_that_differs_from_the_training_is_refused_with_both_values(
    tiny_model, field, value, named, make_prompts
):
    predictor = made(tiny_model)
    other = replace(predictor, contract=replace(predictor.contract, **{field: value}))
    with pytest.raises(UserError, match=named) as caught:
        decode(tiny_model, make_prompts([5]), policy=FilterPolicy(other), scheduler=BlocksScheduler(16), gen_length=32)
    assert str(getattr(predictor.contract, field)) in str(caught.value)


@pytest.mark.parametrize(
    "scheduler", [BlocksScheduler(16), BlocksScheduler(7), BlocksScheduler(100), DSBScheduler(12)], ids=lambda s: s.name
)
@pytest.mark.parametrize("network", [Conv(hidden=8), Transformer(hidden=8)], ids=lambda n: type(n).__name__)
def test_a_length_free_filter_works_with_any_block_length_and_schedule(tiny_model, scheduler, network, make_prompts):
    result = decode(
        tiny_model,
        make_prompts([5, 9]),
        policy=FilterPolicy(made(tiny_model, network)),
        scheduler=scheduler,
        gen_length=40,
    )
    assert (result.forwards >= 1).all()


def test_a_missing_damaged_or_newer_policy_is_one_line(folder, tmp_path):
    with pytest.raises(UserError, match=r"policy\.json"):
        load_policy(tmp_path / "nothing")
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:60])
    with pytest.raises(UserError, match="damaged"):
        load_policy(folder)
    weights.write_bytes(whole)
    described = json.loads((folder / "policy.json").read_text())
    (folder / "policy.json").write_text(json.dumps(described | {"schema": 99}))
    with pytest.raises(UserError, match="schema 99"):
        load_policy(folder)
    contract = described["contract"] | {"model": "half a character: \ud83d"}
    (folder / "policy.json").write_text(json.dumps(described | {"contract": contract}))
    with pytest.raises(UserError, match="surrogates"):
        load_policy(folder)
    (folder / "policy.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        load_policy(folder)


def test_a_predictor_of_another_kind_is_refused(tiny_model, tmp_path):
    save_predictor(replace(made(tiny_model), kind="boundary"), tmp_path)
    with pytest.raises(UserError, match=r"boundary.*filter"):
        load_policy(tmp_path)
    assert load_predictor(tmp_path, "boundary").threshold == 0.4


def adapted_from(base):
    """A LoRA on the base whose change is not nothing."""
    network = copy.deepcopy(base.network)
    adapter = add_adapter(network, rank=2)
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(0))
    return network, adapter


def test_an_adapter_is_small_saved_alone_and_merged_when_loaded(predictor, tmp_path):
    base = save_policy(FilterPolicy(predictor), tmp_path / "base")
    network, adapter = adapted_from(predictor)
    seen = torch.randn(3, 16, len(network.channels)), torch.ones(3, 16, dtype=torch.bool), torch.randint(0, 5, (3, 16))
    tuned = replace(predictor, network=merged(adapter), threshold=0.6)
    folder = save_adapter(adapter, predictor, tuned, tmp_path / "adapter")
    assert {path.name for path in folder.iterdir()} == {
        "adapter.json",
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    assert sum(path.stat().st_size for path in folder.iterdir()) < 40_000
    loaded = load_policy(base, adapter=folder)
    assert loaded.threshold == 0.6
    assert type(loaded.predictor.network) is type(predictor.network)
    with torch.no_grad():
        assert not torch.allclose(network(*seen), predictor.network(*seen), atol=1e-3)
        assert torch.allclose(network(*seen), loaded.predictor.network(*seen), atol=1e-5)
    assert load_policy(save_policy(loaded, tmp_path / "merged")).predictor.fingerprint == loaded.predictor.fingerprint
    assert load_policy(base).predictor.fingerprint == predictor.fingerprint


def test_an_adapter_of_another_base_or_a_damaged_one_is_one_line(tiny_model, tmp_path):
    predictor = made(tiny_model, Transformer(hidden=8))
    _, adapter = adapted_from(predictor)
    folder = save_adapter(adapter, predictor, predictor, tmp_path / "adapter")
    torch.manual_seed(5)
    other = save_policy(FilterPolicy(made(tiny_model, Transformer(hidden=8))), tmp_path / "other")
    with pytest.raises(UserError, match=predictor.weights_fingerprint):
        load_policy(other, adapter=folder)
    base = save_policy(FilterPolicy(predictor), tmp_path / "base")
    with pytest.raises(UserError, match=r"adapter\.json"):
        load_policy(base, adapter=tmp_path / "nothing")
    (folder / "adapter_model.safetensors").write_bytes(b"short")
    with pytest.raises(UserError, match="damaged"):
        load_policy(base, adapter=folder)
