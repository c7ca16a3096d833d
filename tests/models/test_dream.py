"""A Dream checkpoint as it lies on the hub.

It has vocabulary files and a tokenizer class of its own, and remote code that must not run.
"""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import Qwen2Config, Qwen2ForCausalLM

from learn2pd import NoStop, ThresholdPolicy, decode
from learn2pd.models.dream import DreamConfig, DreamModel
from learn2pd.models.loading import load_model
from learn2pd.policies.verifier import load_verifier
from tests.models.helpers import YARN, edit_json, edit_weights, refusal

WORDS = 290  # of the vocabulary files; the added tokens follow
END_OF_TEXT, START, END_OF_TURN, BEGIN_OF_TEXT, MASK = range(WORDS, WORDS + 5)
ADDED = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|beginoftext|>", "<|mask|>")
TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CONFIG = {
    "architectures": ["DreamModel"],
    "attention_dropout": 0.0,
    "auto_map": {"AutoConfig": "configuration_dream.DreamConfig", "AutoModel": "modeling_dream.DreamModel"},
    "bos_token_id": END_OF_TEXT,
    "eos_token_id": END_OF_TEXT,
    "full_attn_mask": True,
    "hidden_act": "silu",
    "hidden_size": 32,
    "initializer_range": 0.02,
    "intermediate_size": 48,
    "mask_token_id": MASK,
    "max_position_embeddings": 256,
    "max_window_layers": 2,
    "model_type": "Dream",
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "pad_token_id": END_OF_TEXT,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.46.2",
    "use_cache": True,
    "use_mrope": False,
    "use_sliding_window": False,
    "vocab_size": 320,  # more than the tokenizer has, as on the hub
}


def hub_shapes(config: dict) -> dict[str, tuple[int, ...]]:
    """Tensor names and shapes of the hub's checkpoints, written out by hand."""
    width, inner, words = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    kv_width = width // config["num_attention_heads"] * config["num_key_value_heads"]
    shapes = {
        "model.embed_tokens.weight": (words, width),
        "model.norm.weight": (width,),
        "lm_head.weight": (words, width),
    }
    for number in range(config["num_hidden_layers"]):
        layer = {
            "self_attn.q_proj.weight": (width, width),
            "self_attn.q_proj.bias": (width,),
            "self_attn.k_proj.weight": (kv_width, width),
            "self_attn.k_proj.bias": (kv_width,),
            "self_attn.v_proj.weight": (kv_width, width),
            "self_attn.v_proj.bias": (kv_width,),
            "self_attn.o_proj.weight": (width, width),
            "mlp.gate_proj.weight": (inner, width),
            "mlp.up_proj.weight": (inner, width),
            "mlp.down_proj.weight": (width, inner),
            "input_layernorm.weight": (width,),
            "post_attention_layernorm.weight": (width,),
        }
        shapes |= {f"model.layers.{number}.{name}": shape for name, shape in layer.items()}
    return shapes


def write_tokenizer(folder, tokenizer_class: str, added: tuple[str, ...]) -> None:
    """vocab.json, merges.txt and tokenizer_config.json, and no tokenizer.json."""
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    words.train_from_iterator(
        ["how many apples are there in the basket of the user, asks the assistant of the system"] * 3,
        trainers.BpeTrainer(vocab_size=WORDS, initial_alphabet=alphabet, show_progress=False),
    )
    assert words.get_vocab_size() == WORDS
    words.model.save(str(folder))
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    described = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(WORDS + number): {"content": token, **flags} for number, token in enumerate(added)
        },
        "bos_token": None,
        "chat_template": TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|endoftext|>",
        "errors": "replace",
        "model_max_length": 131072,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": tokenizer_class,
        "unk_token": None,
    }
    if tokenizer_class == "DreamTokenizer":
        described |= {
            "additional_special_tokens": ["<|beginoftext|>", "<|mask|>"],
            "auto_map": {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]},
            "bos_token": "<|beginoftext|>",
            "mask_token": "<|mask|>",
        }
    (folder / "tokenizer_config.json").write_text(json.dumps(described))


@pytest.fixture(scope="module")
def hub_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dream")
    write_tokenizer(folder, "DreamTokenizer", ADDED)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    for name in ("configuration_dream.py", "modeling_dream.py", "tokenization_dream.py"):
        (folder / name).write_text("raise SystemExit('remote code was run')")
    torch.manual_seed(0)
    tensors = {name: torch.randn(shape) * 0.2 + float("norm" in name) for name, shape in hub_shapes(CONFIG).items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def dream(hub_folder):
    return load_model(str(hub_folder), device="cpu")


def logits(network, length: int = 40) -> torch.Tensor:
    """The logits of some fixed tokens."""
    with torch.inference_mode():
        return network(torch.arange(length)[None] * 7 % WORDS).logits


def test_a_hub_checkpoint_loads_without_its_code_and_without_a_question(folder, asked):
    spec = load_model(str(folder), device="cpu").spec
    assert asked == []
    assert (spec.mask_id, spec.eot_ids, spec.pad_id) == (MASK, (END_OF_TEXT, END_OF_TURN), END_OF_TEXT)
    assert (spec.vocab_size, spec.max_length, spec.shifted_logits) == (320, 256, True)


def test_loading_warns_of_nothing(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", DeprecationWarning)  # which users are not shown
        load_model(str(folder), device="cpu")


def test_the_vocabulary_files_give_the_ids(dream, hub_folder):
    vocabulary = json.loads((hub_folder / "vocab.json").read_text())
    assert {token: dream.tokenizer.get_vocab()[token] for token in vocabulary} == vocabulary
    assert dream.tokenizer.convert_tokens_to_ids(list(ADDED)) == [END_OF_TEXT, START, END_OF_TURN, BEGIN_OF_TEXT, MASK]
    assert len(dream.tokenizer) == WORDS + len(ADDED)


@pytest.mark.parametrize("name", ["Qwen2Tokenizer", "Qwen2TokenizerFast"])
def test_qwen2s_own_tokenizer_class_reads_the_same(dream, folder, name, asked):
    edit_json(folder / "tokenizer_config.json", tokenizer_class=name)
    assert load_model(str(folder), device="cpu").encode("how many apples?") == dream.encode("how many apples?")
    assert asked == []


@pytest.mark.parametrize(
    "text", ["how many apples?", "12 345", "  two  spaces\n\nlines\t", "déjà vu 苹果 🍎", "<|im_end|> in the text"]
)
def test_any_text_comes_back(dream, text):
    assert dream.tokenizer.decode(dream.tokenizer.encode(text)) == text


def test_text_is_split_as_qwen2_splits_it(dream):
    assert dream.tokenizer.convert_ids_to_tokens(dream.tokenizer.encode("apples 12"))[-3:] == ["Ġ", "1", "2"]
    assert dream.tokenizer.encode("e\u0301") == dream.tokenizer.encode("é")


def test_the_chat_template_is_applied(dream):
    ids = dream.encode("how many apples?")
    assert dream.tokenizer.decode(ids) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\nhow many apples?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert (ids.count(START), ids.count(END_OF_TURN)) == (3, 2)


@pytest.mark.parametrize(("stated", "taken"), [(BEGIN_OF_TEXT, BEGIN_OF_TEXT), (None, MASK)])
def test_the_mask_id_is_that_of_the_configuration_and_else_of_the_tokenizer(folder, stated, taken):
    edit_json(folder / "config.json", mask_token_id=stated)
    assert load_model(str(folder), device="cpu").spec.mask_id == taken


@pytest.mark.parametrize("stated", [None, [END_OF_TEXT], [END_OF_TEXT, END_OF_TURN]])
def test_the_end_of_text_may_be_a_list_or_the_tokenizers(folder, stated):
    edit_json(folder / "config.json", eos_token_id=stated, pad_token_id=None)
    spec = load_model(str(folder), device="cpu").spec
    assert (spec.eot_ids, spec.pad_id) == ((END_OF_TEXT, END_OF_TURN), END_OF_TEXT)


@pytest.mark.parametrize("field", ["mask_token_id", "eos_token_id"])
@pytest.mark.parametrize("value", ["290", 1.5, 320, -1, [], {}])
def test_an_id_that_is_none_is_refused(folder, field, value):
    edit_json(folder / "config.json", **{field: value})
    assert f"{field}={value!r}" in refusal(folder)


def test_tensor_names_and_shapes_are_the_hubs():
    fields = CONFIG | {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "num_hidden_layers": 28,
        "vocab_size": 152064,
        "max_position_embeddings": 131072,
        "mask_token_id": 151666,
        "eos_token_id": 151643,
        "pad_token_id": 151643,
        "bos_token_id": 151643,
    }
    with torch.device("meta"):
        network = DreamModel(DreamConfig.from_dict(fields))
    assert {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()} == hub_shapes(fields)
    assert round(sum(parameter.numel() for parameter in network.parameters()) / 1e9, 2) == 7.62


def test_the_arithmetic_is_qwen2s_without_the_causal_mask(dream, hub_folder):
    names = (
        "hidden_size",
        "intermediate_size",
        "num_attention_heads",
        "num_hidden_layers",
        "num_key_value_heads",
        "rms_norm_eps",
        "vocab_size",
    )
    qwen = Qwen2ForCausalLM(
        Qwen2Config(**{name: CONFIG[name] for name in names}, rope_theta=1e6, tie_word_embeddings=False)
    ).eval()
    qwen.load_state_dict(load_file(hub_folder / "model.safetensors"))
    ids = torch.arange(40)[None] * 7 % WORDS
    with torch.inference_mode():
        expected = qwen(ids, attention_mask=torch.zeros(1, 1, 40, 40)).logits
    assert torch.allclose(logits(dream.adapter.network), expected, atol=1e-4)


def test_a_saved_model_gives_equal_logits(dream, tmp_path, asked):
    dream.adapter.network.save_pretrained(tmp_path)
    dream.tokenizer.save_pretrained(tmp_path)
    again = load_model(str(tmp_path), device="cpu")
    assert asked == []
    assert logits(again.adapter.network).equal(logits(dream.adapter.network))
    assert again.spec.fingerprint == dream.spec.fingerprint
    assert again.encode("how many apples?") == dream.encode("how many apples?")
    assert load_file(tmp_path / "model.safetensors").keys() == hub_shapes(CONFIG).keys()


def test_it_loads_in_bfloat16(dream, folder):
    network = load_model(str(folder), dtype="bfloat16", device="cpu").adapter.network
    assert {parameter.dtype for parameter in network.parameters()} == {torch.bfloat16}
    given, expected = logits(network), logits(dream.adapter.network)
    assert given.dtype == torch.bfloat16
    assert (given.float() - expected).abs().mean() < 0.05 * expected.abs().mean()


def test_weights_stored_in_bfloat16_load_in_float32(folder):
    edit_weights(folder, lambda tensors: tensors.update({name: tensor.bfloat16() for name, tensor in tensors.items()}))
    network = load_model(str(folder), device="cpu").adapter.network
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}


def shard(model, folder) -> list:
    """Save the model's weights in several files, and return their paths."""
    (folder / "model.safetensors").unlink()
    model.adapter.network.save_pretrained(folder, max_shard_size="40KB")
    return sorted(folder.glob("*.safetensors"))


def test_sharded_weights_load(dream, folder):
    assert len(shard(dream, folder)) > 2
    assert (folder / "model.safetensors.index.json").is_file()
    assert logits(load_model(str(folder), device="cpu").adapter.network).equal(logits(dream.adapter.network))


def test_a_missing_shard_is_refused(dream, folder):
    lost = shard(dream, folder)[1]
    lost.unlink()
    assert "weights" in refusal(folder)


@pytest.mark.parametrize(
    "name", ["lm_head.weight", "model.layers.1.self_attn.k_proj.bias", "model.layers.0.mlp.gate_proj.weight"]
)
@pytest.mark.parametrize("kind", ["missing", "misshapen"])
def test_a_tensor_that_does_not_fit_is_named(folder, kind, name):
    edit_weights(
        folder, lambda tensors: tensors.pop(name) if kind == "missing" else tensors.update({name: torch.zeros(3)})
    )
    line = refusal(folder)
    assert f"1 {kind} tensors" in line
    assert name in line


def test_a_tensor_too_many_is_named(folder):
    edit_weights(folder, lambda tensors: tensors.update({"model.layers.0.self_attn.o_proj.bias": torch.zeros(32)}))
    line = refusal(folder)
    assert "1 unknown tensors" in line
    assert "model.layers.0.self_attn.o_proj.bias" in line


def test_fewer_layers_than_the_weights_have_are_refused(folder):
    edit_json(folder / "config.json", num_hidden_layers=1)
    assert "12 unknown tensors, first model.layers.1." in refusal(folder)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("use_sliding_window", True),
        ("rope_scaling", YARN),
        ("rope_scaling", {"type": "linear", "factor": 2.0}),
        ("rope_parameters", YARN),
        ("rope_parameters", {"rope_type": "default", "partial_rotary_factor": 0.5}),
        ("tie_word_embeddings", True),
        ("hidden_act", "gelu"),
        ("use_mrope", True),
        ("quantization_config", {"quant_method": "gptq"}),
        ("layer_types", ["full_attention", "sliding_attention"]),
    ],
)
def test_a_config_field_this_model_does_not_compute_is_named(folder, field, value):
    edit_json(folder / "config.json", **{field: value})
    assert field in refusal(folder)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden_size", 33),
        ("num_attention_heads", 0),
        ("num_attention_heads", 3),
        ("num_key_value_heads", 3),
        ("vocab_size", None),
        ("num_hidden_layers", 1.5),
        ("rope_theta", 0),
        ("rope_theta", "1e6"),
        ("rms_norm_eps", None),
    ],
)
def test_a_config_field_that_makes_no_model_is_refused(folder, field, value):
    edit_json(folder / "config.json", **{field: value})
    assert f"{field}={value!r}" in refusal(folder)


@pytest.mark.parametrize("field", ["layer_types", "rope_parameters", "model_type"])
@pytest.mark.parametrize("value", [[7], "x", True])
def test_a_field_of_the_wrong_kind_is_named(folder, field, value):
    edit_json(folder / "config.json", **{field: value})
    assert field in refusal(folder)


def test_the_type_of_the_stored_weights_is_not_asked_for(folder):
    edit_json(folder / "config.json", torch_dtype="float99")
    load_model(str(folder), device="cpu")


def test_the_base_of_rotary_positions_is_read_where_transformers_5_writes_it(folder):
    edit_json(
        folder / "config.json",
        rope_theta=...,
        rope_scaling=...,
        rope_parameters={"rope_type": "default", "rope_theta": 5e4},
    )
    assert load_model(str(folder), device="cpu").adapter.network.config.rope_theta == 5e4


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt", "tokenizer_config.json"])
@pytest.mark.parametrize("text", [None, "{", "[]"])
def test_damaged_vocabulary_files_are_refused(folder, name, text):
    (folder / name).unlink()
    if text is not None:
        (folder / name).write_text(text)
    assert "the tokenizer could not be loaded" in refusal(folder)


def test_it_decodes(dream):
    result = decode(dream, ["how many apples?", "the user"], policy=ThresholdPolicy(0.5), stop=NoStop(), gen_length=12)
    assert (result.tokens != MASK).all()
    assert len(result.texts) == 2


def test_a_qwen2_verifier_has_the_same_vocabulary(dream, tmp_path, asked):
    config = Qwen2Config(
        vocab_size=320,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    Qwen2ForCausalLM(config).save_pretrained(tmp_path)
    write_tokenizer(tmp_path, "Qwen2Tokenizer", ADDED[:3])
    load_verifier(str(tmp_path), device="cpu").check(dream.spec)
    assert asked == []


def test_a_verifier_with_code_of_its_own_is_refused_without_a_question(folder, asked):
    edit_json(
        folder / "config.json",
        model_type="another",
        auto_map={"AutoConfig": "modeling_dream.A", "AutoModelForCausalLM": "modeling_dream.B"},
    )
    with pytest.raises(ValueError, match="verifier") as error:
        load_verifier(str(folder), device="cpu")
    assert "\n" not in str(error.value)
    assert asked == []
