"""What is refused about targets, drafts and their pairs, and what is warned of."""

from __future__ import annotations

import logging

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from learn2pd import AutoregressiveMethod, PearlMethod, SpeculativeMethod, UserError, load_causal_model, load_verifier
from learn2pd.autoregressive.model import causal_model
from learn2pd.registry import build_autoregressive
from tests.autoregressive.helpers import tiny_network, tiny_pair
from tests.policies.test_apd import other_tokenizer


def network_for(tokenizer, hidden_size=8, **changes):
    """A small random network with the vocabulary of a tokenizer."""
    described = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "eos_token_id": 0}
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), hidden_size=hidden_size, **described | changes))


@pytest.mark.parametrize("kind", [SpeculativeMethod, PearlMethod])
def test_a_draft_with_another_tokenizer_is_refused(kind, tokenizer):
    target = causal_model(network_for(tokenizer, 16), tokenizer, "large")
    kind(target, causal_model(network_for(tokenizer), tokenizer, "small"))
    other = causal_model(network_for(tokenizer), other_tokenizer(tokenizer, ("a", "b")), "small")
    with pytest.raises(UserError, match=r"draft small has another vocabulary than target large: '[ab]' is \d+"):
        kind(target, other)


@pytest.mark.parametrize("kind", [SpeculativeMethod, PearlMethod])
def test_a_draft_with_another_number_of_tokens_is_refused(kind):
    target, _ = tiny_pair()
    with pytest.raises(UserError, match="draft other has 41 tokens, target target has 40"):
        kind(target, causal_model(tiny_network(vocab_size=41), None, "other"))


def test_outputs_that_no_token_stands_for_do_not_tell_two_vocabularies_apart(tokenizer):
    """The models of one family pad their vocabularies to different widths."""
    padded = LlamaConfig(
        vocab_size=len(tokenizer) + 9, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    padded.eos_token_id = 0
    target = causal_model(LlamaForCausalLM(padded), tokenizer)
    draft = causal_model(network_for(tokenizer), tokenizer)
    assert target.vocab_size == draft.vocab_size == len(tokenizer)
    SpeculativeMethod(target, draft)


@pytest.mark.parametrize(("hidden", "warned"), [(8, False), (16, True), (32, True)])
def test_a_draft_that_is_not_smaller_than_its_target_is_warned_of(tokenizer, caplog, hidden, warned):
    target = causal_model(network_for(tokenizer, 16), tokenizer, "large")
    with caplog.at_level(logging.WARNING):
        PearlMethod(target, causal_model(network_for(tokenizer, hidden), tokenizer, "small"))
    assert ("not smaller than its target" in caplog.text) == warned


@pytest.mark.parametrize("kind", [SpeculativeMethod, PearlMethod])
@pytest.mark.parametrize("length", [0, -1])
def test_a_draft_length_below_1_is_refused(kind, length):
    with pytest.raises(ValueError, match=f"draft_length={length}: expected at least 1"):
        kind(*tiny_pair(), length)


def test_a_model_with_a_window_is_refused():
    network = tiny_network("qwen2", use_sliding_window=True, sliding_window=8, max_window_layers=1)
    with pytest.raises(UserError, match=r"target the model has layers of the types .*sliding_attention"):
        causal_model(network, None)


def test_a_model_without_an_end_of_text_is_refused():
    network = tiny_network()
    network.config.eos_token_id = network.generation_config.eos_token_id = None
    with pytest.raises(UserError, match="draft small has no end-of-text"):
        causal_model(network, None, "small", "draft")


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("pearl", {}, ["policy 'pearl' needs target, draft"]),
        ("pearl", {"target": "checkpoints/tiny-ar"}, ["needs draft"]),
        ("autoregressive", {"target": "no/such/folder"}, ["target", "no/such/folder", "does not exist"]),
        ("autoregressive", {"target": "checkpoints/tiny-llada"}, ["target 'checkpoints/tiny-llada'", "causal"]),
        ("autoregressive", {"taget": "x"}, ["taget", "did you mean 'target'"]),
        ("speculative", {"target": "a", "draft": "b", "draft_length": "4"}, ["draft_length='4'", "a whole number"]),
        ("speculative", {"target": "checkpoints/tiny-ar", "draft": "no/draft"}, ["draft", "no/draft"]),
        ("autoregressive", {"target": "checkpoints/tiny-ar", "dtype": "int8"}, ["target dtype='int8'"]),
    ],
)
def test_a_method_that_cannot_be_built_says_why_in_one_line(name, options, words):
    with pytest.raises(UserError) as error:
        build_autoregressive(name, options, {})
    assert all(word in str(error.value) for word in words), error.value
    assert "\n" not in str(error.value)


def test_the_fingerprint_of_a_method_covers_its_models_and_its_draft_length():
    target, draft = tiny_pair()
    methods = [AutoregressiveMethod(target), *(kind(target, draft, 3) for kind in (SpeculativeMethod, PearlMethod))]
    methods += [PearlMethod(target, draft, 4), AutoregressiveMethod(draft), PearlMethod(draft, target, 3)]
    assert len({method.fingerprint for method in methods}) == len(methods)
    assert PearlMethod(target, draft, 3).fingerprint == methods[2].fingerprint


@pytest.mark.parametrize("load", [load_causal_model, load_verifier])
def test_a_shipped_model_is_found_from_every_folder(load, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load("checkpoints/tiny-ar-draft", device="cpu").network.config.vocab_size == 1024


def test_a_model_is_read_from_a_folder_and_takes_texts():
    model = load_causal_model("checkpoints/tiny-ar", device="cpu")
    assert model.eot_ids == (0,)
    assert model.text(model.encode("Mia has 7 pears.")) == "Mia has 7 pears."
