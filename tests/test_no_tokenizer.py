"""A model without a tokenizer takes token ids, and says in one line what it cannot take."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from learn2pd import (
    AutoregressiveMethod,
    Method,
    Model,
    PearlMethod,
    TextStop,
    ThresholdPolicy,
    UserError,
    decode,
    generate,
)
from learn2pd.models.adapter import ModelAdapter
from learn2pd.policies.apd import APDPolicy
from tests.autoregressive.helpers import tiny_pair
from tests.contract.helpers import tiny_verifier

GEN = 12
TEXTS = {"a text": ["Hi"], "chat messages": [[{"role": "user", "content": "Hi"}]], "empty": [""]}


@pytest.fixture(scope="module")
def bare(tiny_model):
    """The tiny model as a network alone."""
    spec = replace(tiny_model.spec, vocabulary={}, special_tokens=(), text_of=None)
    return Model(ModelAdapter(tiny_model.adapter.network, spec), None)


@pytest.mark.parametrize(
    "options",
    [
        {"policy": "threshold"},
        {"policy": "fixed", "cache": "dual", "stop": "none"},
        {"policy": "threshold", "given": torch.full((2, GEN), -1).index_fill(1, torch.tensor([3]), 20)},
        {"policy": APDPolicy(tiny_verifier()), "scheduler": "lookahead", "cache": "lookahead", "stop": "anywhere"},
    ],
    ids=["threshold", "fixed", "given", "apd"],
)
def test_token_ids_are_decoded_as_with_a_tokenizer(options, bare, tiny_model, make_prompts):
    prompts = make_prompts([4, 9])
    alone, whole = (decode(model, prompts, gen_length=GEN, **options) for model in (bare, tiny_model))
    assert alone.tokens.equal(whole.tokens)
    assert alone.forwards.equal(whole.forwards)
    assert alone.texts == ["", ""]


@pytest.mark.parametrize("kind", TEXTS)
def test_a_prompt_of_text_is_refused(kind, bare):
    with pytest.raises(UserError) as error:
        decode(bare, TEXTS[kind], policy="threshold", gen_length=GEN)
    assert str(error.value).startswith("prompt 0: the prompt is ")
    assert "the model has no tokenizer: expected token ids ([1, 2, 3])" in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"given": [["The capital is ", 3]]}, "given 0 is a text, and the model has no tokenizer"),
        ({"stop_strings": ["x"]}, "stop rule 'text' reads the tokens as text, and .* has no tokenizer"),
        ({"stop": TextStop("x")}, "stop rule 'text' reads the tokens as text, and .* has no tokenizer"),
        ({"scheduler": "adablock"}, "delimiter_ids is not given, and the model has no tokenizer"),
    ],
)
def test_an_option_of_text_is_refused(options, message, bare, make_prompts):
    with pytest.raises(UserError, match=message) as error:
        decode(bare, make_prompts([4]), policy="threshold", gen_length=GEN, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", TEXTS)
@pytest.mark.parametrize("drafted", [False, True])
def test_generate_refuses_a_prompt_of_text(kind, drafted):
    method = PearlMethod(*tiny_pair()) if drafted else AutoregressiveMethod(tiny_pair()[0])
    with pytest.raises(UserError, match=r"^prompt 0: the prompt is .* and the model has no tokenizer: expected token"):
        generate(method, TEXTS[kind], gen_length=GEN)
    assert generate(method, [[11, 12]], gen_length=GEN).texts == [""]


def test_the_tasks_of_the_harness_are_texts(bare):
    pytest.importorskip("lm_eval")
    from learn2pd.harness.model import DiffusionLM

    with pytest.raises(UserError, match="has no tokenizer, and the tasks of lm-eval are texts"):
        DiffusionLM(bare, Method(ThresholdPolicy()))
