"""The engine gives every request exactly what it would get alone, whoever joins and leaves beside it."""

from __future__ import annotations

import random
import threading
import time
from dataclasses import replace
from queue import Queue

import pytest

from learn2pd import (
    BlocksScheduler,
    DualCache,
    LeftToRightPolicy,
    Method,
    Policy,
    Sampling,
    TextStop,
    ThresholdPolicy,
    UserError,
    decode,
)
from learn2pd.serving.batch import Request
from learn2pd.serving.engine import Closed, Engine, QueueFull
from tests.contract.helpers import BLOCK, GEN, SCHEDULERS, policies
from tests.serving.helpers import LONGEST_S, alone, answers_of

THRESHOLD = Method(ThresholdPolicy(0.6), BlocksScheduler(BLOCK))
REVISING = [name for name, policy in policies().items() if policy.revisions]


@pytest.fixture
def engine(tiny_model):
    engine = Engine(tiny_model, rows=4, queue=64)
    yield engine
    engine.close()


def test_requests_of_all_kinds_together_are_each_of_them_alone(engine, tiny_model, make_prompts):
    cached = replace(THRESHOLD, cache=DualCache())
    kinds = [
        {"method": THRESHOLD, "gen_length": GEN},
        {"method": THRESHOLD, "gen_length": 7},
        {"method": cached, "gen_length": GEN},
        {"method": THRESHOLD, "gen_length": GEN, "sampling": Sampling(1.0, 0.9)},
    ]
    prompts = make_prompts([random.Random(0).randrange(2, 60) for _ in range(8)])
    asked = [
        Request(ids, seed=number, streams=number % 3 == 0, **kinds[number % 4]) for number, ids in enumerate(prompts)
    ]
    answers, pieces = answers_of(engine, asked)
    assert answers == [alone(tiny_model, request) for request in asked]
    assert pieces == [answer.text if request.streams else "" for request, answer in zip(asked, answers, strict=True)]
    assert engine.row_steps > engine.steps


@pytest.mark.parametrize("name", REVISING)
def test_a_stream_never_has_to_take_back_what_it_said(name, engine, tiny_model, make_prompts):
    method = Method(policies()[name], SCHEDULERS["blocks"])
    asked = [Request(ids, GEN, method, streams=True) for ids in make_prompts([3, 17])]
    answers, pieces = answers_of(engine, asked)
    assert answers == [alone(tiny_model, request) for request in asked]
    assert pieces == [answer.text for answer in answers]


@pytest.mark.parametrize("streams", [False, True])
def test_stop_strings_of_each_request_are_the_stop_rule_of_decode(streams, engine, tiny_model, make_prompts):
    prompts = make_prompts([3, 9, 17, 5])
    texts = [decode(tiny_model, [ids], THRESHOLD, gen_length=GEN).texts[0] for ids in prompts]
    strings = [text[len(text) // 2 : len(text) // 2 + 2] or "none" for text in texts]
    asked = [
        Request(ids, GEN, THRESHOLD, stop_strings=(string,), streams=streams)
        for ids, string in zip(prompts, strings, strict=True)
    ]
    answers, pieces = answers_of(engine, asked)
    for request, answer in zip(asked, answers, strict=True):
        method = replace(THRESHOLD, stop=TextStop(list(request.stop_strings)))
        expected = alone(tiny_model, replace(request, method=method))
        assert (answer.text, answer.tokens, answer.forwards) == (expected.text, expected.tokens, expected.forwards)
    assert pieces == [answer.text if streams else "" for answer in answers]


def test_a_thousand_requests_at_once(tiny_model, make_prompts):
    engine = Engine(tiny_model, rows=100, queue=1000)
    kinds = [Request(ids, 4, THRESHOLD) for ids in make_prompts(list(range(2, 12)))]
    expected = [alone(tiny_model, request) for request in kinds]
    answers, _ = answers_of(engine, kinds * 100)
    assert answers == expected * 100
    engine.close()


class Waits(Policy):
    """Commits one token a step, as soon as it may."""

    name = "waits"

    def __init__(self) -> None:
        self.may = threading.Event()

    def select(self, prediction, eligible, state, memory):
        assert self.may.wait(LONGEST_S)
        return LeftToRightPolicy().select(prediction, eligible, state, memory)


class Breaks(Policy):
    name = "breaks"

    def select(self, prediction, eligible, state, memory):
        raise RuntimeError("out of memory")


def test_a_request_that_is_cancelled_frees_its_place(tiny_model, make_prompts):
    engine = Engine(tiny_model, rows=1, queue=2)
    slow = Waits()
    told: Queue = Queue()
    ids = make_prompts([5])[0]
    asked = Request(ids, GEN, Method(slow, SCHEDULERS["blocks"]))
    [running] = engine.submit([(asked, told.put)])
    while engine.waiting:
        time.sleep(0.001)
    [waits, _] = engine.submit([(asked, told.put)] * 2)
    with pytest.raises(QueueFull, match="2 requests are waiting, and at most 2 may"):
        engine.submit([(asked, told.put)])
    engine.cancel(waits)
    engine.cancel(running)
    slow.may.set()
    assert told.get(timeout=LONGEST_S) == alone(tiny_model, asked)
    engine.close()
    assert told.empty()


class HasNoNeeds(ThresholdPolicy):
    """It breaks where the batch is made, before any step."""

    @property
    def needs(self):
        raise RuntimeError("out of memory")


class HasNoHash(ThresholdPolicy):
    """It breaks where the requests of one batch are looked for, as a dataclass without a hash does."""

    def __hash__(self):
        raise RuntimeError("out of memory")


@pytest.mark.parametrize("policy", [Breaks, HasNoNeeds, HasNoHash])
def test_a_batch_that_fails_ends_its_own_requests_alone(policy, engine, tiny_model, make_prompts):
    broken = Request(make_prompts([5])[0], GEN, Method(policy(), SCHEDULERS["blocks"]))
    good = replace(broken, method=THRESHOLD)
    answers, _ = answers_of(engine, [broken, good, broken])
    assert answers[1] == alone(tiny_model, good)
    assert [str(answers[0]), str(answers[2])] == ["decoding failed: out of memory"] * 2
    assert engine.alive


def test_logits_that_are_not_finite_are_an_error_and_no_answer(engine, tiny_model, make_prompts, monkeypatch):
    score = tiny_model.adapter.score
    monkeypatch.setattr(tiny_model.adapter, "score", lambda hidden: score(hidden) * float("nan"))
    [answer], _ = answers_of(engine, [Request(make_prompts([5])[0], GEN, THRESHOLD)])
    assert isinstance(answer, UserError)
    assert "not finite" in str(answer)


def test_an_engine_that_is_closed_tells_those_who_wait(tiny_model, make_prompts):
    engine = Engine(tiny_model, rows=1)
    slow = Waits()
    told: Queue = Queue()
    asked = Request(make_prompts([5])[0], GEN, Method(slow, SCHEDULERS["blocks"]))
    engine.submit([(asked, told.put)] * 3)
    closing = threading.Thread(target=engine.close)
    closing.start()
    slow.may.set()
    closing.join(LONGEST_S)
    events = [told.get(timeout=LONGEST_S) for _ in range(3)]
    assert any(isinstance(event, Closed) for event in events)
    with pytest.raises(Closed):
        engine.submit([(asked, told.put)])
