"""Stop strings: the answer is what it is without the rule, up to the first of the texts."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from learn2pd import BlocksScheduler, EotStop, Method, NoStop, TextStop, ThresholdPolicy, UserError, decode
from tests.contract.helpers import CACHES, COMBINATIONS, GEN, MODELS, SCHEDULERS, covering_part, policies, run

LENGTHS = [3, 17, 9]
# A policy that takes back may change a text behind which an answer ended; `apple` draws by the number of the prompt.
KEEPING = [name for name, policy in policies().items() if not policy.revisions and name not in ("oracle", "apple")]
CASES = [case for number, case in enumerate(COMBINATIONS) if case[0] in KEEPING and number % 6 == 1]


def before(text: str, strings: list[str]) -> str:
    """The text before the first of the strings, by the slowest way."""
    return text[: min([place for place in range(len(text)) if text[place:].startswith(tuple(strings))] or [len(text)])]


def pieces(text: str) -> list[str]:
    """Strings of one to four characters that the text holds, from its beginning, middle and end."""
    return [text[place : place + 1 + place % 4] for place in range(0, len(text), max(1, len(text) // 6))]


@pytest.mark.parametrize(("policy", "scheduler", "cache"), covering_part(CASES))
def test_the_answer_is_that_without_the_rule_up_to_the_text(policy, scheduler, cache, make_prompts, request):
    number = CASES.index((policy, scheduler, cache))
    model = request.getfixturevalue(MODELS[number % len(MODELS)])
    parts = {"scheduler": SCHEDULERS[scheduler], "cache": CACHES[cache]}
    prompts = make_prompts(LENGTHS, seed=number)
    whole = decode(model, prompts, policy=policies()[policy], stop=EotStop(), gen_length=GEN, **parts)
    strings = pieces(whole.texts[number % len(LENGTHS)])[number % 2 : 5 : 2] or ["a"]
    stopped = decode(model, prompts, policy=policies()[policy], stop=TextStop(strings), gen_length=GEN, **parts)
    assert stopped.texts == [before(text, strings) for text in whole.texts]
    assert (stopped.forwards <= whole.forwards).all()
    row = number % len(LENGTHS)
    alone = decode(model, [prompts[row]], policy=policies()[policy], stop=TextStop(strings), gen_length=GEN, **parts)
    assert (alone.texts[0], int(alone.forwards[0])) == (stopped.texts[row], int(stopped.forwards[row]))


def test_a_stopped_row_saves_forwards_and_ends_with_the_token_of_the_text(tiny_model, make_prompts):
    whole = decode(
        tiny_model, make_prompts([9]), policy="fixed", stop=NoStop(), gen_length=GEN, scheduler=BlocksScheduler(4)
    )
    first = tiny_model.spec.text_of(whole.tokens[0, :4].tolist())
    stopped = decode(
        tiny_model,
        make_prompts([9]),
        policy="fixed",
        stop=TextStop(first[-1]),
        gen_length=GEN,
        scheduler=BlocksScheduler(4),
    )
    length = int(stopped.lengths[0])
    assert int(stopped.forwards[0]) < int(whole.forwards[0])
    assert first[-1] in tiny_model.spec.text_of(stopped.tokens[0, :length].tolist())
    assert first[-1] not in tiny_model.spec.text_of(stopped.tokens[0, : length - 1].tolist())


@settings(max_examples=20)
@given(st.data())
def test_any_strings(tiny_model, make_prompts, data):
    prompts = make_prompts([4, 12])
    whole = decode(tiny_model, prompts, policy=ThresholdPolicy(0.3), gen_length=GEN)
    text = data.draw(st.sampled_from([text for text in whole.texts if text] or ["a"]))
    start = data.draw(st.integers(0, len(text) - 1))
    own = st.text(min_size=1, max_size=3)
    strings = [text[start : start + data.draw(st.integers(1, 8))], *data.draw(st.lists(own, max_size=2))]
    stopped = decode(tiny_model, prompts, policy=ThresholdPolicy(0.3), stop_strings=strings, gen_length=GEN)
    assert stopped.texts == [before(text, strings) for text in whole.texts]


@pytest.mark.parametrize("given_length", [2, 6])
def test_a_text_that_the_caller_gave_ends_the_answer_too(tiny_model, make_prompts, given_length):
    text = tiny_model.spec.text_of(list(range(40, 40 + given_length)))
    result = decode(tiny_model, make_prompts([9]), policy="fixed", given=[[3, text, None]], gen_length=GEN)
    stopped = decode(
        tiny_model, make_prompts([9]), policy="fixed", given=[[3, text, None]], stop_strings=text, gen_length=GEN
    )
    assert stopped.texts == [before(result.texts[0], [text])]


@pytest.mark.parametrize("strings", [[], "", [""], ["a", ""], None, 5, [5], [None], b"a", {"a": 1}, [["a"]]])
def test_what_is_no_text_is_refused(strings, tiny_model, make_prompts):
    with pytest.raises(ValueError, match=r"expected (one )?text or a list of text"):
        TextStop(strings)
    if strings is not None:
        with pytest.raises(UserError, match=r"stop_strings=.*expected (one )?text or a list of text") as error:
            decode(tiny_model, make_prompts([3]), policy="fixed", stop_strings=strings)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "others", [{"method": Method(ThresholdPolicy())}, {"policy": "fixed", "stop": "eot"}], ids=["method", "stop"]
)
def test_two_stop_rules_are_refused(others, tiny_model, make_prompts):
    with pytest.raises(UserError, match="TextStop"):
        decode(tiny_model, make_prompts([3]), stop_strings=["a"], **others)


def test_the_rule_is_saved_by_its_name_and_texts(tiny_model):
    method = Method(ThresholdPolicy(), stop=TextStop(["a", "\n"], 0.4))
    described = method.to_dict()
    assert described["stop"] == {"name": "text", "options": {"strings": ["a", "\n"], "floor": 0.4}}
    assert Method.from_dict(described).fingerprint == method.fingerprint
    assert method.fingerprint != Method(ThresholdPolicy(), stop=TextStop(["a"], 0.4)).fingerprint
    assert repr(method.stop) == "TextStop(strings=['a', '\\n'], floor=0.4)"


def test_a_model_without_a_tokenizer_is_refused(tiny_model):
    with pytest.raises(UserError, match="has no tokenizer"):
        Method(ThresholdPolicy(), stop=TextStop("a")).check(replace(tiny_model.spec, text_of=None))


def test_the_loop_ends_rows_at_the_text_and_not_before(tiny_model, make_prompts):
    prompts = make_prompts(LENGTHS)
    whole = run(tiny_model, prompts, policies()["fixed"])
    strings = [tiny_model.spec.text_of([token]) for token in whole.canvas[:, 5].tolist()]
    state = run(tiny_model, prompts, policies()["fixed"], TextStop([string for string in strings if string]))
    kept = state.end
    for row in range(len(prompts)):
        assert state.canvas[row, : kept[row]].equal(whole.canvas[row, : kept[row]])
    assert (kept <= 6).all()
