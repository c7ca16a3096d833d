"""`generate` of transformers with a policy gives the tokens of `decode`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import GenerationMixin, PreTrainedModel

from learn2pd import FixedPolicy, Method, PrefixCache, Sampling, UserError, decode, export_policy
from learn2pd.exporters.transformers import generate
from learn2pd.models.llada import LLaDAModelLM
from learn2pd.predictors.filter import FilterPolicy
from learn2pd.predictors.networks import Conv
from learn2pd.predictors.saving import Contract, Predictor
from tests.contract.helpers import policies

LENGTH = 24


def batch(prompts: list[list[int]]) -> dict[str, torch.Tensor]:
    """The prompts as a tokenizer pads them, on the left."""
    width = max(map(len, prompts))
    ids = torch.tensor([[9] * (width - len(prompt)) + prompt for prompt in prompts])
    real = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return {"input_ids": ids, "attention_mask": real}


@pytest.fixture
def policy(tiny_model) -> FilterPolicy:
    torch.manual_seed(0)
    network = Conv(hidden=8)
    with torch.no_grad():
        network.leave.weight *= 6
    return FilterPolicy(Predictor("filter", network, 0.5, Contract.of(tiny_model.spec)))


@pytest.fixture
def exported(policy, tmp_path) -> str:
    folder = tmp_path / "exported"
    export_policy("transformers", policy, folder)
    return str(folder)


class Elsewhere(GenerationMixin, PreTrainedModel):
    """A masked dLLM of somebody else: a forward with logits, and the `generate` of transformers."""

    config_class = LLaDAModelLM.config_class
    _supports_sdpa = True

    def __init__(self, config, inner=None):
        super().__init__(config)
        self.inner = [inner]  # in a list, so that it is no module of this one
        self.anchor = torch.nn.Parameter(torch.zeros(1))

    def forward(self, input_ids, attention_mask=None, position_ids=None, **_):
        return self.inner[0](input_ids, attention_mask=attention_mask, position_ids=position_ids)


class WithoutPositions(Elsewhere):
    def forward(self, input_ids, attention_mask=None, **_):
        return self.inner[0](input_ids)


def elsewhere(model, kind: type = Elsewhere) -> PreTrainedModel:
    inner = model.adapter.network
    made = kind(inner.config, inner).eval()
    made.generation_config.eos_token_id = list(model.spec.eot_ids)
    return made


@pytest.mark.parametrize("name", ["fixed", "filter_transformer", "wino", "dawn", "remask"])
def test_a_class_of_ours_generates_what_decode_does(name, tiny_model, tiny_dream, make_prompts):
    prompts = make_prompts([3, 17])
    for model in (tiny_model, tiny_dream):
        wanted = decode(model, prompts, policy=policies()[name], gen_length=LENGTH).tokens
        got = model.adapter.network.generate(
            **batch(prompts), policy=policies()[name], max_new_tokens=LENGTH, eos_token_id=list(model.spec.eot_ids)
        )
        assert got[:, :17].equal(batch(prompts)["input_ids"])
        assert got[:, 17:].equal(wanted)


def test_a_method_and_sampling_are_those_of_decode(tiny_model, make_prompts):
    prompts = make_prompts([6, 6])
    method = Method(FixedPolicy(12), cache=PrefixCache())
    options = {"policy": method, "max_new_tokens": LENGTH, "eos_token_id": list(tiny_model.spec.eot_ids)}
    got = tiny_model.adapter.network.generate(torch.tensor(prompts), **options)
    assert got[:, 6:].equal(decode(tiny_model, prompts, method, gen_length=LENGTH).tokens)


def test_the_exported_folder_decodes_with_a_model_of_somebody_else(exported, policy, tiny_model, make_prompts):
    prompts = make_prompts([3, 17])
    wanted = decode(tiny_model, prompts, policy=policy, gen_length=LENGTH).tokens
    got = elsewhere(tiny_model).generate(
        **batch(prompts), custom_generate=exported, policy=exported, max_new_tokens=LENGTH, trust_remote_code=True
    )
    assert got[:, 17:].equal(wanted)


def test_the_function_is_a_custom_generate_too_and_draws_as_decode_does(policy, tiny_model, make_prompts):

    prompts = make_prompts([5, 5])
    wanted = decode(tiny_model, prompts, policy=policy, gen_length=LENGTH, sampling=Sampling(0.8, 0.9), seed=3).tokens
    got = generate(
        elsewhere(tiny_model),
        torch.tensor(prompts),
        policy=policy,
        max_new_tokens=LENGTH,
        do_sample=True,
        temperature=0.8,
        top_p=0.9,
        top_k=0,
        seed=3,
    )
    assert got[:, 5:].equal(wanted)


def test_the_folder_holds_what_the_hub_wants(exported):

    files = {str(path.relative_to(exported)) for path in Path(exported).rglob("*") if path.is_file()}
    assert files == {
        *("config.json", "policy.json", "model.safetensors", "README.md"),
        *("custom_generate/generate.py", "custom_generate/requirements.txt"),
    }
    assert json.loads((Path(exported) / "config.json").read_text(encoding="utf-8"))["library_name"] == "learn2pd"


CALLS = {
    "no policy": ({"policy": None}, "policy is not given"),
    "no prompts": ({"input_ids": None}, "input_ids is not given"),
    "beams": ({"num_beams": 4}, "num_beams=4: learn2pd's loop gives one answer"),
    "streamer": ({"streamer": object()}, "streamer is given"),
    "right padding": ({"attention_mask": torch.tensor([[1, 1, 0], [1, 1, 1]])}, "padding lies behind a prompt"),
    "empty prompt": ({"attention_mask": torch.tensor([[0, 0, 0], [1, 1, 1]])}, "prompt 0: it has no tokens"),
    "too long": ({"max_new_tokens": 600}, "3 tokens and max_new_tokens=600 make 603, LLaDAModelLM takes at most 512"),
    "temperature": ({"do_sample": True, "temperature": -1.0}, "temperature=-1.0"),
    "folder": ({"policy": "nowhere/at/all"}, "the folder does not exist"),
    "custom_generate": ({"custom_generate": "x"}, "has learn2pd's generate itself"),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_wrong_call_is_refused_in_one_line(name, tiny_model):
    changes, message = CALLS[name]
    call = {"input_ids": torch.full((2, 3), 7), "policy": FixedPolicy(), "max_new_tokens": 4} | changes
    with pytest.raises(UserError, match=message):
        tiny_model.adapter.network.generate(**call)


def test_what_a_model_of_somebody_else_cannot_give_is_refused(tiny_model, make_prompts):
    model = elsewhere(tiny_model)
    prompts = batch(make_prompts([3, 5]))
    with pytest.raises(UserError, match="policy 'dawn' needs attention, which Elsewhere does not give"):
        generate(model, **prompts, policy=policies()["dawn"], max_new_tokens=4)
    with pytest.raises(UserError, match="caches need a class of learn2pd"):
        generate(model, **prompts, policy=Method(FixedPolicy(), cache=PrefixCache()), max_new_tokens=4)
    without = elsewhere(tiny_model, WithoutPositions)
    with pytest.raises(UserError, match=r"position_ids, which the forward of WithoutPositions does not take"):
        generate(without, **prompts, policy=FixedPolicy(), max_new_tokens=4)
    one = generate(without, prompts["input_ids"][1:], policy=FixedPolicy(), max_new_tokens=4)
    assert one[:, 5:].equal(decode(tiny_model, [prompts["input_ids"][1].tolist()], policy="fixed", gen_length=4).tokens)


REGISTERED = """
import sys, torch, learn2pd
from transformers import AutoConfig, AutoModelForMaskedLM
try:
    AutoConfig.from_pretrained(sys.argv[1])
    raise SystemExit("importing learn2pd registered a class")
except ValueError:
    pass
print(sorted(learn2pd.register()))
assert learn2pd.register() == learn2pd.register()
model = AutoModelForMaskedLM.from_pretrained(sys.argv[1])
tokens = model.generate(torch.tensor([[5, 6]]), policy=learn2pd.FixedPolicy(), max_new_tokens=3)
print(type(model).__name__, tokens.shape)
"""


@pytest.mark.thorough  # a process of its own imports everything
def test_register_and_not_the_import_makes_the_auto_classes_know_our_families(tiny_model_folder):
    done = subprocess.run(
        [sys.executable, "-c", REGISTERED, str(tiny_model_folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr[-500:]
    types, used = done.stdout.splitlines()
    assert "'llada'" in types
    assert "'Dream'" in types
    assert used == "LLaDAModelLM torch.Size([1, 5])"
