"""Answers with gaps: texts stand where they are given, the model fills the rest."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learn2pd import FixedPolicy, ThresholdPolicy, UserError, decode
from learn2pd.models.infilling import given_tokens
from tests.contract.helpers import MODELS, STOPS, policies

GEN, LONG = 40, 90
PARTS = st.lists(
    st.one_of(st.sampled_from(["Eva has", " 12 pens", "\n", "#### 7", "é", "<|endoftext|>"]), st.integers(1, 5)),
    min_size=1,
    max_size=4,
)


@pytest.mark.parametrize(
    ("model", "stop"),
    [
        pytest.param(model, stop, marks=pytest.mark.thorough if (one + other) % len(MODELS) else [])
        for one, model in enumerate(MODELS)
        for other, stop in enumerate(STOPS)
    ],
)
def test_texts_stand_in_the_answer_and_nothing_follows_the_last_one(model, stop, make_prompts, request):
    model = request.getfixturevalue(model)
    answers = [["Eva has", 3, " pens", 2, "\nIt is so."], ["First", None], None, [4, "the end"]]
    result = decode(
        model, make_prompts([3, 9, 5, 7]), policy="threshold", stop=STOPS[stop], gen_length=GEN, given=answers
    )
    assert result.texts[0].startswith("Eva has")
    assert " pens" in result.texts[0]
    assert result.texts[0].endswith("\nIt is so.")
    assert result.texts[1].startswith("First")
    assert result.texts[3].endswith("the end")


@settings(max_examples=20)
@given(PARTS, st.booleans())
def test_any_parts(tiny_model, make_prompts, parts, open_end):
    answer = [*parts, None] if open_end else parts
    if not open_end and not any(isinstance(part, int) for part in parts):
        with pytest.raises(UserError, match="no position to fill"):
            given_tokens(tiny_model, [answer], LONG)
        return
    tokens = given_tokens(tiny_model, [answer], LONG)[0].tolist()
    expected = []
    for part in parts:
        expected += [-1] * part if isinstance(part, int) else tiny_model.encode_text(part, "part")
    assert tokens[: len(expected)] == expected
    assert set(tokens[len(expected) :]) <= {-1 if open_end else tiny_model.spec.eot_ids[0]}
    result = decode(tiny_model, make_prompts([5]), policy=ThresholdPolicy(0.3), gen_length=LONG, given=[answer])
    written = [token for token in expected if token >= 0]
    stands = torch.tensor([token >= 0 for token in expected])
    assert result.tokens[0, : len(expected)][stands].tolist() == written
    if not open_end:
        assert int(result.lengths[0]) <= len(expected)
        if isinstance(parts[-1], str):
            assert int(result.lengths[0]) == len(expected)
            assert result.texts[0].endswith(parts[-1])


def test_a_gap_that_the_model_leaves_short_loses_nothing_behind_it(tiny_model, make_prompts):
    """An end-of-text inside a gap ends no answer, since a given text follows."""
    end = tiny_model.spec.eot_ids[0]
    allowed = torch.full((1, GEN, 1), -1)
    allowed[0, :4] = end
    result = decode(
        tiny_model, make_prompts([5]), policy="fixed", gen_length=GEN, given=[[4, "the end"]], allowed=allowed
    )
    assert result.texts == ["the end"]


def test_a_row_with_gaps_is_what_it_is_alone(tiny_model, make_prompts):
    prompts = make_prompts([3, 21, 9])
    answers = [["Eva", 5, "."], None, [3, "x", None]]
    together = decode(tiny_model, prompts, policy=policies()["threshold0.6"], gen_length=GEN, given=answers)
    for row, prompt in enumerate(prompts):
        alone = decode(tiny_model, [prompt], policy=policies()["threshold0.6"], gen_length=GEN, given=[answers[row]])
        assert together.tokens[row].equal(alone.tokens[0])
        assert together.forwards[row] == alone.forwards[0]


def test_the_texts_are_those_of_the_tensor_that_says_the_same(tiny_model, make_prompts):
    answers = [["Eva has", 3, " pens"]]
    tensor = given_tokens(tiny_model, answers, GEN)
    one, other = (
        decode(tiny_model, make_prompts([5]), policy=FixedPolicy(), gen_length=GEN, given=each)
        for each in (answers, tensor)
    )
    assert one.tokens.equal(other.tokens)
    assert one.texts == other.texts


@pytest.mark.parametrize(
    "answer",
    [
        *([], ["a"], ["a", 41], [0, "b"], [-1], [True], [1.0], "abc", [None, "a"], [None, None], [["a"]], [b"a"], 5),
        *({}, ["\ud800", None], ["", None], ["a" * 500, 3], [20, 21], {"a": 1}, [{}]),
    ],
    ids=repr,
)
def test_what_cannot_be_filled_is_refused(answer, tiny_model, make_prompts):
    with pytest.raises(UserError, match="given 1") as error:
        decode(tiny_model, make_prompts([3, 4]), policy="fixed", gen_length=GEN, given=[None, answer])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["given", "allowed"])
@pytest.mark.parametrize("kind", [torch.float32, torch.bool, torch.complex64])
def test_a_tensor_of_another_type_is_refused(name, kind, tiny_model, make_prompts):
    values = torch.ones(1, GEN, *([2] if name == "allowed" else []), dtype=kind)
    with pytest.raises(UserError, match=f"{name} is of type"):
        decode(tiny_model, make_prompts([3]), policy="fixed", gen_length=GEN, **{name: values})
    with pytest.raises(UserError, match="is of type"):
        decode(tiny_model, make_prompts([3]), policy="fixed", gen_length=GEN, allowed=values.numpy())


@pytest.mark.parametrize("answers", [[], [None], [None] * 3, [["a", None]], "ab", 5, {"a": 1}], ids=repr)
def test_a_wrong_number_of_answers_is_refused(answers, tiny_model, make_prompts):
    with pytest.raises(UserError, match="given"):
        decode(tiny_model, make_prompts([3, 4]), policy="fixed", gen_length=GEN, given=answers)
