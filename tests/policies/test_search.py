"""The search oracle is as bold as its judge allows, and right wherever one token a step is right."""

from __future__ import annotations

import pytest
import torch

from learn2pd.decoding import answer_lengths, decode
from learn2pd.errors import UserError
from learn2pd.evaluation.informed import Continuation
from learn2pd.method import Method
from learn2pd.policies.fixed import FixedPolicy
from learn2pd.policies.search import SearchPolicy
from learn2pd.predictors.filter import FilterPolicy, save_policy
from learn2pd.schedulers.blocks import BlocksScheduler
from learn2pd.stops.eot import EotStop
from tests.contract.helpers import random_predictor

GEN, BLOCK = 16, 8


@pytest.fixture(scope="module")
def prompts(make_prompts):
    return make_prompts([5, 3, 9, 6], seed=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(save_policy(FilterPolicy(random_predictor(name="conv")), tmp_path_factory.mktemp("filter") / "policy"))


def run(model, prompts, policy):
    return decode(model, prompts, Method(policy, BlocksScheduler(BLOCK), stop=EotStop(0.5)), gen_length=GEN)


def always(answer):
    """A judge that gives every continuation the same verdict, and never decodes."""
    return lambda index, canvas: (torch.full_like(index, answer, dtype=torch.bool), torch.zeros_like(index))


def texts_of(model, tokens):
    lengths = answer_lengths(tokens, model.spec.eot_ids).tolist()
    return [
        model.tokenizer.decode(row[:length], skip_special_tokens=True)
        for row, length in zip(tokens, lengths, strict=True)
    ]


@pytest.mark.parametrize("ordered_by_filter", [False, True])
def test_a_judge_that_accepts_all_opens_whole_blocks_and_one_that_accepts_none_single_tokens(
    tiny_model, prompts, folder, ordered_by_filter
):
    order = folder if ordered_by_filter else None
    bold = run(tiny_model, prompts, SearchPolicy(always(True), order))
    assert (bold.forwards <= GEN // BLOCK).all()
    strict = run(tiny_model, prompts, SearchPolicy(always(False), order))
    plain = run(tiny_model, prompts, FixedPolicy())
    assert (strict.tokens == plain.tokens).all()
    assert (strict.forwards == plain.forwards).all()


@pytest.mark.parametrize("ordered_by_filter", [False, True])
@pytest.mark.parametrize("strictness", [1, 2, 5])
def test_an_answer_is_right_wherever_one_token_a_step_is_right(
    tiny_model, prompts, folder, ordered_by_filter, strictness
):
    plain = run(tiny_model, prompts, FixedPolicy())
    reference = texts_of(tiny_model, plain.tokens)

    def right(number, text):
        return text == reference[number] or hash_of(text) % strictness == 0

    one_a_step = Method(FixedPolicy(), BlocksScheduler(BLOCK), stop=EotStop(0.5))
    judge = Continuation(tiny_model, prompts, one_a_step, right, GEN, 16)
    result = run(tiny_model, prompts, SearchPolicy(judge, folder if ordered_by_filter else None))
    assert all(right(number, text) for number, text in enumerate(texts_of(tiny_model, result.tokens)))
    assert result.forwards.sum() <= plain.forwards.sum()
    assert result.auxiliary_forwards.sum() > 0
    if strictness == 1:
        assert (result.forwards <= GEN // BLOCK).all()


def hash_of(text):
    return sum(ord(character) for character in text)


def test_a_row_alone_is_a_row_in_a_batch(tiny_model, prompts):
    reference = texts_of(tiny_model, run(tiny_model, prompts, FixedPolicy()).tokens)
    one_a_step = Method(FixedPolicy(), BlocksScheduler(BLOCK), stop=EotStop(0.5))

    def judged(numbers):
        def right(number, text):
            return text == reference[numbers[number]] or hash_of(text) % 3 == 0

        asked = [prompts[number] for number in numbers]
        return run(tiny_model, asked, SearchPolicy(Continuation(tiny_model, asked, one_a_step, right, GEN, 16)))

    together = judged(range(len(prompts)))
    alone = judged([3])
    assert (alone.tokens[0] == together.tokens[3]).all()
    assert alone.forwards[0] == together.forwards[3]


def test_a_search_has_no_name_to_be_saved_by():
    with pytest.raises(UserError, match="SearchPolicy"):
        Method(SearchPolicy(None)).to_dict()
