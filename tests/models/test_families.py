"""Further families: what their files must say, what is refused, and a family of one's own."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from learn2pd import UserError, decode, load_model
from learn2pd.embedded.tokenizer import MASK
from learn2pd.models import fast_dllm_v2, layers, llada2, llada_moe, sdar
from learn2pd.models.experts import MixtureOfExperts, has_grouped_products
from learn2pd.models.layers import EXCHANGED, SwiGLU
from tests.fixtures import CAUSAL_BLOCK, TINY_FAMILIES, save_tiny_family
from tests.models.helpers import edit_json

FIXED = {
    "sdar": sdar.SDARConfig.fixed,
    "sdar_moe": sdar.SDARConfig.fixed,
    "llada2": llada2.LLaDA2MoeConfig.fixed,
    "llada_moe": llada_moe.LLaDAMoEConfig.fixed,
    "fast_dllm_v2": fast_dllm_v2.Fast_dLLM_QwenConfig.fixed,
}
MIXTURES = ["sdar_moe", "llada2", "llada_moe"]


@pytest.fixture
def folder(request, tokenizer, tmp_path) -> Path:
    return save_tiny_family(request.param, tmp_path / "model", tokenizer)


def refusal(folder: Path, **options) -> str:
    """The line with which a folder is refused."""
    with pytest.raises(UserError) as error:
        load_model(folder, device="cpu", **options)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("folder", TINY_FAMILIES, indirect=True)
def test_a_saved_family_loads_with_its_facts_and_its_logits(folder, request):
    name = request.node.callspec.params["folder"]
    model = load_model(folder, device="cpu")
    spec, network = model.spec, model.adapter.network
    assert spec.causal_block == (None if name == "llada_moe" else CAUSAL_BLOCK)
    assert spec.shifted_logits == (name == "fast_dllm_v2")
    assert network.mixes_experts == (name in MIXTURES)
    # a checkpoint of a class is read by the same class, though LLaDA and LLaDA-MoE share a model_type
    assert type(network).__name__ == TINY_FAMILIES[name][0].rpartition(":")[2]
    ids = torch.arange(10, 30)[None]
    with torch.inference_mode():
        logits = network(ids).logits
        if spec.causal_block is not None:  # a later block changes nothing
            changed = ids.clone()
            changed[:, 16:] += 1
            assert (network(changed).logits - logits)[:, :16].abs().max() < 1e-3
        changed = ids.clone()
        changed[:, 7] += 1
        assert (network(changed).logits - logits)[:, :7].abs().max() > 1e-2  # and the own block does
        padded = network(
            torch.cat((ids[:, :3], ids), dim=1),
            torch.arange(23)[None] >= 3,
            torch.cat((torch.zeros(1, 3, dtype=torch.long), torch.arange(20)[None]), dim=1),
        ).logits[:, 3:]
    assert (padded - logits).abs().max() < 1e-3


REFUSED = [(name, field) for name, fields in FIXED.items() for field in fields]


@pytest.mark.parametrize(("folder", "field"), REFUSED, indirect=["folder"])
def test_a_field_that_asks_for_what_is_not_computed_is_named(folder, field):
    value = json.loads((folder / "config.json").read_text())[field]
    other = {True: False, False: True}.get(value, "gelu") if isinstance(value, bool) else "gelu"
    edit_json(folder / "config.json", **{field: other})
    assert field in refusal(folder)


WRONG = [
    ("sdar", {"block_size": 0}, "block_size=0"),
    ("sdar", {"head_dim": 7}, "head_dim=7"),
    ("sdar", {"num_key_value_heads": 3}, "num_key_value_heads=3"),
    ("sdar", {"layer_types": ["sliding_attention", "full_attention"]}, "layer_types"),
    ("sdar", {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rope_scaling"),
    ("sdar_moe", {"num_experts_per_tok": 7}, "num_experts_per_tok=7"),
    ("sdar_moe", {"decoder_sparse_step": 0}, "decoder_sparse_step=0"),
    ("llada2", {"n_group": 3}, "n_group=3"),
    ("llada2", {"topk_group": 5}, "topk_group=5"),
    ("llada2", {"partial_rotary_factor": 0.3}, "partial_rotary_factor=0.3"),
    ("llada2", {"rotary_dim": 2}, "rotary_dim"),
    ("llada2", {"num_shared_experts": -1}, "num_shared_experts=-1"),
    ("llada_moe", {"moe_layer_freq": [1]}, "moe_layer_freq=[1]"),
    ("llada_moe", {"moe_layer_freq": 2}, "moe_layer_freq=2"),
    ("llada_moe", {"num_experts": "many"}, "num_experts='many'"),
    ("fast_dllm_v2", {"bd_size": -4}, "bd_size=-4"),
    ("fast_dllm_v2", {"hidden_size": 33}, "hidden_size=33"),
]


@pytest.mark.parametrize(("folder", "changes", "words"), WRONG, indirect=["folder"])
def test_a_wrong_field_is_named_with_its_value(folder, changes, words):
    edit_json(folder / "config.json", **changes)
    assert words in refusal(folder)


@pytest.mark.parametrize("folder", MIXTURES, indirect=True)
def test_a_missing_or_misnamed_expert_is_named(folder):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    name = next(key for key in tensors if key.endswith("experts.1.up_proj.weight"))
    kept = tensors.pop(name)
    save_file(tensors, file)
    assert f"1 missing tensors, first {name}" in refusal(folder)
    save_file(tensors | {name.replace("up_proj", "w3"): kept}, file)
    assert f"missing tensors, first {name}" in refusal(folder)


@pytest.mark.parametrize("folder", ["sdar", "fast_dllm_v2"], indirect=True)
def test_experts_that_a_dense_family_does_not_have_are_refused(folder):
    edit_json(folder / "config.json", num_experts=8)
    assert "mixture of experts (num_experts=8)" in refusal(folder)


def test_a_tied_head_may_be_saved_too(tokenizer, tmp_path):
    folder = save_tiny_family("sdar", tmp_path, tokenizer, tie_word_embeddings=True)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    assert "lm_head.weight" not in tensors
    expected = load_model(folder, device="cpu")
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, file)
    assert load_model(folder, device="cpu").spec == expected.spec
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"] + 1}, file)
    assert "unknown tensors, first lm_head.weight" in refusal(folder)


@pytest.mark.parametrize("folder", ["sdar"], indirect=True)
def test_a_mask_id_that_no_file_names_is_the_published_one_where_the_tokenizer_has_it(folder, monkeypatch):
    mask = load_model(folder, device="cpu").spec.mask_id
    edit_json(folder / "config.json", mask_token_id=None)
    edit_json(folder / "tokenizer_config.json", mask_token=None)
    assert "no mask token" in refusal(folder)
    monkeypatch.setitem(sdar.SDARConfig.defaults, "mask_token_id", mask)
    assert load_model(folder, device="cpu").spec.mask_id == mask


def test_experts_equal_those_of_qwen3(tokenizer, tmp_path):
    """SDAR's mixture has no stored logits; it is Qwen3's, which transformers computes."""
    model = load_model(save_tiny_family("sdar_moe", tmp_path, tokenizer), device="cpu").adapter.network
    mine = next(layer.mlp for layer in model.model.layers if isinstance(layer.mlp, MixtureOfExperts))
    config = model.config
    theirs = (
        Qwen3MoeForCausalLM(
            Qwen3MoeConfig(
                hidden_size=config.hidden_size,
                moe_intermediate_size=config.moe_intermediate_size,
                num_hidden_layers=1,
                num_experts=config.num_experts,
                num_experts_per_tok=config.num_experts_per_tok,
                norm_topk_prob=True,
                vocab_size=8,
            )
        )
        .model.layers[0]
        .mlp
    )
    state = mine.state_dict()
    wanted = theirs.state_dict()
    if "experts.gate_up_proj" in wanted:  # transformers 5 joins the experts
        parts = {
            part: torch.stack([state[f"experts.{number}.{part}.weight"] for number in range(config.num_experts)])
            for part in ("gate_proj", "up_proj", "down_proj")
        }
        state = {"gate.weight": state["gate.weight"], "experts.down_proj": parts["down_proj"]}
        state["experts.gate_up_proj"] = torch.cat((parts["gate_proj"], parts["up_proj"]), dim=1)
    theirs.load_state_dict(state)
    x = torch.randn(2, 5, config.hidden_size)
    with torch.inference_mode():
        expected = theirs(x)
        expected = expected[0] if isinstance(expected, tuple) else expected
        assert torch.allclose(mine(x), expected, atol=1e-5)


def test_experts_run_only_on_the_tokens_that_chose_them():
    """The memory of a forward does not grow with the number of experts."""

    class First(MixtureOfExperts):
        def route(self, logits):
            picked = torch.arange(len(logits))[:, None] % 2
            return picked, torch.ones_like(picked, dtype=logits.dtype)

    mixture = First(4, 8, 5, torch.nn.Linear(4, 5, bias=False))
    seen: list[int] = []
    for expert in mixture.experts:
        expert.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    x = torch.randn(1, 7, 4)
    mixed = mixture(x)
    assert seen == [4, 3]
    for number, expert in enumerate(mixture.experts[:2]):
        assert isinstance(expert, SwiGLU)
        assert torch.allclose(mixed[0, number::2], expert(x[0, number::2]), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("folder", MIXTURES, indirect=True)
def test_grouped_products_equal_the_plain_loop_over_the_experts(folder, dtype):
    if not has_grouped_products(torch.device("cpu"), dtype):
        pytest.skip("this torch has no grouped products")
    model = load_model(folder, dtype, device="cpu")
    network = model.adapter.network
    mixtures = [module for module in network.modules() if isinstance(module, MixtureOfExperts)]
    assert mixtures
    assert all(mixture.joined for mixture in mixtures)
    state = network.state_dict()
    epsilon = torch.finfo(dtype).eps
    with torch.inference_mode():
        for mixture in mixtures:
            for tokens in (1, 2, 13):
                x = torch.randn(tokens, network.config.hidden_size).to(dtype)
                grouped = mixture(x)
                joined, mixture.joined = mixture.joined, {}
                alone = mixture(x)
                assert torch.allclose(grouped, alone, rtol=4 * epsilon, atol=10 * epsilon)
                mixture.joined = joined
    network.save_pretrained(folder)  # views of one tensor are saved under the names of the experts
    again = load_model(folder, dtype, device="cpu")
    assert again.spec.fingerprint == model.spec.fingerprint
    assert all(again.adapter.network.state_dict()[name].equal(value) for name, value in state.items())
    wide = network.double()  # a network in another type runs the experts one by one
    assert not any(mixture.joined for mixture in mixtures)
    assert torch.isfinite(wide(torch.arange(10, 20)[None]).logits).all()


@pytest.mark.parametrize("rows", [1, 3, *EXCHANGED, 12])
def test_the_vocabulary_of_few_rows_is_projected_as_a_linear_layer_does(rows, monkeypatch):
    monkeypatch.setattr(layers, "LARGE_VOCABULARY", 100)
    x, weight = torch.randn(rows, 16), torch.randn(100, 16)
    projected = layers.project(x, weight)
    assert projected.is_contiguous()
    assert torch.allclose(projected, torch.nn.functional.linear(x, weight), atol=1e-5)


# a family of one's own

PAGE = Path(__file__).parents[2] / "docs" / "adding_a_family.md"


@pytest.fixture
def own(tokenizer, tmp_path, monkeypatch):
    """The module that docs/adding_a_family.md tells its reader to write, and a checkpoint of its class."""
    code = re.search(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (tmp_path / "my_family.py").write_text(code.group(1) + "\nNUMBER = 7\n\n\nclass Other:\n    pass\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_family", raising=False)
    import my_family

    names = {"mask_token_id": tokenizer.convert_tokens_to_ids(MASK), "eos_token_id": tokenizer.eos_token_id}
    config = my_family.MyConfig(vocab_size=len(tokenizer), **names)
    torch.manual_seed(0)
    my_family.MyNetwork(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_family_of_ones_own_decodes_as_the_page_says(own):
    model = load_model(own, device="cpu", family="my_family:MyNetwork")
    assert (model.spec.causal_block, model.spec.shifted_logits) == (16, False)
    result = decode(model, [[5, 6, 7]], policy="threshold", max_new_tokens=20)
    assert result.tokens.shape == (1, 20)
    assert len(PAGE.read_text().splitlines()) <= 50


@pytest.mark.parametrize(
    ("family", "words"),
    [
        (None, "model_type 'my_dllm', which is no dLLM known here"),
        ("my_family:Missing", "cannot be imported"),
        ("no_such_file:MyNetwork", "cannot be imported"),
        ("MyNetwork", "cannot be imported"),
        ("my_family:NUMBER", "it is no network"),
        ("my_family:Other", "it is no network"),
    ],
)
def test_a_wrong_family_is_refused_in_one_line(own, family, words):
    assert words in refusal(own, family=family)
