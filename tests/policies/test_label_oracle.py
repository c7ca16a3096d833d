"""The oracles of labels commit what their label calls right, and no more."""

from __future__ import annotations

import pytest
import torch

from learn2pd.decoding import decode
from learn2pd.errors import UserError
from learn2pd.evaluation.informed import Continuation
from learn2pd.method import Method
from learn2pd.policies.fixed import FixedPolicy
from learn2pd.policies.label_oracle import LABELS, LabelOracle
from learn2pd.schedulers.blocks import BlocksScheduler
from learn2pd.stops.eot import EotStop

GEN, BLOCK = 16, 8
ONE_A_STEP = Method(FixedPolicy(), BlocksScheduler(BLOCK), stop=EotStop(0.5))


@pytest.fixture(scope="module")
def prompts(make_prompts):
    return make_prompts([5, 3, 9, 6], seed=1)


def run(model, prompts, policy):
    return decode(model, prompts, Method(policy, BlocksScheduler(BLOCK), stop=EotStop(0.5)), gen_length=GEN)


@pytest.mark.parametrize(("answer", "steps"), [(True, GEN // BLOCK), (False, GEN)])
def test_it_commits_exactly_what_its_label_calls_right(tiny_model, prompts, answer, steps):
    def labelled(labels, index, canvas, proposals, asked):
        assert asked.any(1).all()
        return torch.full_like(asked, answer), torch.ones_like(index)

    decoded = run(tiny_model, prompts, LabelOracle(labelled))
    assert (decoded.forwards <= steps).all()
    assert decoded.auxiliary_forwards.equal(decoded.forwards)
    if not answer:
        assert decoded.tokens.equal(run(tiny_model, prompts, FixedPolicy()).tokens)


@pytest.mark.parametrize("labels", LABELS)
def test_the_labels_are_those_of_recordings(tiny_model, prompts, labels):
    plain = run(tiny_model, prompts, FixedPolicy())
    judge = Continuation(
        tiny_model, prompts, ONE_A_STEP, lambda number, text: text == plain.texts[number], GEN, batch_size=16
    )
    steps = []

    def labelled(labels, index, canvas, proposals, asked):
        right, forwards = judge.label(labels, index, canvas, proposals, asked)
        steps.append((index, canvas, proposals, asked, right))
        return right, forwards

    decoded = run(tiny_model, prompts, LabelOracle(labelled, labels))
    assert (decoded.forwards <= plain.forwards).all()
    assert decoded.forwards.sum() < plain.forwards.sum()
    assert decoded.auxiliary_forwards.sum() > 0
    index, canvas, proposals, asked, right = steps[0]
    tokens = plain.tokens[index]  # nothing is committed yet, so that the continuation is the whole answer
    if labels == "continuation":
        assert (right & asked).equal((proposals == tokens) & asked)
    elif labels == "checked":
        assert (right & asked & (proposals == tokens)).equal((proposals == tokens) & asked)
        one = (right & asked).nonzero()[-1]
        tried = canvas[one[0]].clone()
        tried[one[1]] = proposals[one[0], one[1]]
        assert judge(index[one[:1]], tried[None])[0].all()
    else:  # a proposal that nothing confirms is right with all of those that are confirmed
        confirmed = asked & (proposals == tokens)
        assert (right & confirmed).equal(confirmed)
        for row, position in (asked & ~confirmed).nonzero().tolist()[:4]:
            tried = torch.where(confirmed[row], proposals[row], canvas[row])
            tried[position] = proposals[row, position]
            assert judge(index[row : row + 1], tried[None])[0].item() is bool(right[row, position])


def test_unknown_labels_and_saving_are_refused():
    with pytest.raises(ValueError, match="labels='reference': expected continuation, checked"):
        LabelOracle(None, "reference")
    with pytest.raises(UserError, match="LabelOracle"):
        Method(LabelOracle(None)).to_dict()
