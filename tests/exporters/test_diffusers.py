"""The scheduler for diffusers' LLaDA2Pipeline, in the real pipeline."""

from __future__ import annotations

import pytest
import torch

from learn2pd import BlocksScheduler, NoStop, ThresholdPolicy, UserError, decode, export_policy
from learn2pd.predictors.filter import FilterPolicy
from learn2pd.predictors.networks import MLP, Conv
from learn2pd.predictors.saving import Contract, Predictor
from tests.contract.helpers import policies

diffusers = pytest.importorskip("diffusers")
WIDTH = 8
OPTIONS = {
    "block_length": WIDTH,
    "num_inference_steps": WIDTH,
    "output_type": "seq",
    "eos_early_stop": False,
    "editing_threshold": None,
}


@pytest.fixture
def policy(tiny_model) -> FilterPolicy:
    torch.manual_seed(0)
    network = Conv(hidden=8)
    with torch.no_grad():
        network.leave.weight *= 6
    return FilterPolicy(Predictor("filter", network, 0.5, Contract.of(tiny_model.spec)))


def run(model, scheduler, prompts, **changes) -> torch.Tensor:
    """The answers of the pipeline."""
    pipeline = diffusers.LLaDA2Pipeline(model=model.adapter.network, scheduler=scheduler, tokenizer=model.tokenizer)
    pipeline.set_progress_bar_config(disable=True)
    options = OPTIONS | {"mask_token_id": model.spec.mask_id, "eos_token_id": model.spec.eot_ids[0]} | changes
    return pipeline(input_ids=torch.tensor(prompts), **options).sequences


def scheduler_of(policy, block_length: int = WIDTH):
    from learn2pd.exporters.diffusers import Learn2PDScheduler

    return Learn2PDScheduler.from_policy(policy, block_length)


def test_the_pipeline_writes_what_our_loop_writes_where_the_geometry_is_the_same(policy, tiny_model, make_prompts):
    """The prompt ends with a block, and the answer is one block, so that both show the model the same columns."""
    prompts = make_prompts([16, 16, 16])
    for each in (policy, policies()["threshold0.6"], policies()["slowfast"]):
        wanted = decode(
            tiny_model, prompts, policy=each, scheduler=BlocksScheduler(WIDTH), stop=NoStop(), gen_length=WIDTH
        )
        assert run(tiny_model, scheduler_of(each), prompts, gen_length=WIDTH).equal(wanted.tokens)


@pytest.mark.parametrize("steps", [1, 3, 8, 20])
@pytest.mark.parametrize("gen_length", [5, 8, 21])
def test_no_mask_is_left_whatever_the_steps(steps, gen_length, policy, tiny_model, make_prompts):
    made = scheduler_of(ThresholdPolicy(1.0))
    answers = run(tiny_model, made, make_prompts([11]), gen_length=gen_length, num_inference_steps=steps)
    assert answers.shape[1] >= gen_length
    assert not (answers[:, :gen_length] == tiny_model.spec.mask_id).any()


def test_the_policy_travels_with_the_scheduler(policy, tiny_model, tmp_path, make_prompts):
    from learn2pd.exporters.diffusers import Learn2PDScheduler

    folder = tmp_path / "exported"
    assert "Learn2PDScheduler.from_pretrained" in export_policy("diffusers", policy, folder, block_length=WIDTH)
    loaded = Learn2PDScheduler.from_pretrained(folder)
    assert loaded.policy.predictor.fingerprint == policy.predictor.fingerprint
    assert loaded.config.block_length == WIDTH
    prompts = make_prompts([16])
    answers = [run(tiny_model, made, prompts, gen_length=16) for made in (scheduler_of(policy), loaded)]
    assert answers[0].equal(answers[1])
    loaded.save_pretrained(tmp_path / "pipeline" / "scheduler")
    inner = Learn2PDScheduler.from_pretrained(tmp_path / "pipeline", subfolder="scheduler")
    assert inner.policy.predictor.fingerprint == policy.predictor.fingerprint
    stricter = Learn2PDScheduler.from_pretrained(folder, policy_threshold=0.9)
    assert stricter.policy.threshold == 0.9


def test_what_the_pipeline_cannot_give_is_refused(policy, tiny_model, make_prompts, tmp_path):
    for name, message in (
        ("remask", "policy 'remask' takes committed tokens back, diffusers keeps every one"),
        ("klass", "policy 'klass' needs proposals on the whole canvas; diffusers gives it the logits of one block"),
        ("fixed_half", "policy 'fixed' needs the whole canvas"),
    ):
        with pytest.raises(UserError, match=message):
            scheduler_of(policies()[name])
    prompts = make_prompts([8])
    with pytest.raises(UserError, match=r"temperature=0.5: the policy needs a seed for each row"):
        run(tiny_model, scheduler_of(policy), prompts, gen_length=8, temperature=0.5)
    with pytest.raises(UserError, match=r"trained for mask id \d+, diffusers has 7"):
        run(tiny_model, scheduler_of(policy), prompts, gen_length=8, mask_token_id=7)
    fixed = FilterPolicy(Predictor("filter", MLP(8, 4), 0.5, Contract.of(tiny_model.spec, block_length=8)))
    with pytest.raises(UserError, match="works on blocks of 8 tokens, diffusers has 16"):
        run(tiny_model, scheduler_of(fixed), prompts, gen_length=16, block_length=16)
    with pytest.raises(UserError, match="the rule 'threshold': only a trained policy is saved"):
        scheduler_of(ThresholdPolicy()).save_pretrained(tmp_path)
