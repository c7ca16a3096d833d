"""policy/ round-trips, states its contract, and is refused where the contract does not hold."""

import json
from dataclasses import replace

import pytest
import torch

from learn2pd.decoding.api import decode
from learn2pd.decoding.schedulers import BlocksScheduler
from learn2pd.errors import UserError
from learn2pd.policies.export import PolicyContract, TrainedFilter, load_policy, save_policy
from learn2pd.policies.filter import FilterNetwork


@pytest.fixture
def contract(tiny_model):
    return PolicyContract(block_length=16, alignment="prompt", mask_id=tiny_model.spec.mask_id, vocab_size=tiny_model.spec.vocab_size)


@pytest.fixture
def folder(contract, tmp_path):
    torch.manual_seed(0)
    return save_policy(TrainedFilter(FilterNetwork(16, 24), 0.4, contract, {"auroc": 0.5}), tmp_path / "policy")


def test_a_saved_policy_decodes_as_before(tiny_model, folder, contract, make_prompts):
    loaded, prompts = load_policy(folder), make_prompts([5, 9])
    torch.manual_seed(0)
    original = TrainedFilter(FilterNetwork(16, 24), 0.4, contract)
    assert (loaded.threshold, loaded.contract, loaded.metrics) == (0.4, contract, {"auroc": 0.5})
    before, after = (decode(tiny_model, prompts, policy=policy, gen_length=40) for policy in (original, loaded))
    assert torch.equal(before.tokens, after.tokens)
    assert torch.equal(before.forwards, after.forwards)


@pytest.mark.parametrize(
    ("field", "value", "named"), [("block_length", 8, "block length 8"), ("mask_id", 7, "mask id 7"), ("vocab_size", 126464, "126464")]
)
def test_a_run_that_differs_from_the_training_is_refused_with_both_values(tiny_model, contract, field, value, named, make_prompts):
    other = replace(contract, **{field: value})
    policy = TrainedFilter(FilterNetwork(other.block_length, 4), 0.4, other)
    with pytest.raises(UserError, match=named) as caught:
        decode(tiny_model, make_prompts([5]), policy=policy, scheduler=BlocksScheduler(16), gen_length=32)
    assert str(getattr(contract, field)) in str(caught.value)


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
    (folder / "policy.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        load_policy(folder)
