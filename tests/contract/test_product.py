"""Every policy with every scheduler and cache: every step keeps the loop's promises, and a row equals itself alone.

The models take turns. The suite decodes a part of the product in which every two parts meet. The tests marked
`thorough` decode the rest, and then the whole product with the other models too.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest
import torch

from learn2pd import Observer, UserError, decode
from learn2pd.loop import step
from tests.contract.helpers import (
    BLOCK,
    CACHES,
    COMBINATIONS,
    MODELS,
    SCHEDULERS,
    STOPS,
    covering,
    fits,
    oracle,
    outcome,
    policies,
    run,
)

CANVAS = 13  # not a multiple of the block
OTHER_CANVASES = (1, 5, 8, 16, 21)  # one token, less than a block, one block, several blocks
BATCHES = ((3, 17, 9), (1, 40, 22), (12, 5, 30, 2), (8, 8, 1), (25, 2))  # lengths of the prompts
TEMPERATURES = (0.0, 0.7)
NAMES = [*policies(), "oracle"]
REVISING = {name for name, policy in policies().items() if policy.revisions}
BEYOND = {name for name, policy in policies().items() if policy.looks_ahead}  # these commit outside the window too


@dataclass(frozen=True)
class Case:
    """One run of the product, every part by its name."""

    policy: str
    scheduler: str
    cache: str
    family: str
    gen_length: int
    stop: str
    temperature: float
    lengths: tuple[int, ...]
    row: int  # the row that is decoded alone
    seed: int  # of the prompts

    def __str__(self) -> str:
        parts = (self.policy, self.scheduler, self.cache, self.family, self.gen_length, self.stop, self.temperature)
        return "-".join(map(str, parts))


def combinations_of(policy: str, turn: int) -> list[tuple[str, str, str, int]]:
    """Scheduler, cache, model and canvas of each run of a policy; canvases of other lengths are decoded in blocks."""
    pairs = [(scheduler, cache) for name, scheduler, cache in COMBINATIONS if name == policy] or [("blocks", "none")]
    families = list(MODELS)

    def family(pair: tuple[str, str], number: int) -> str:
        """The models take turns among the policies that have a pair, and among the pairs of a policy."""
        before = [name for name, *other in COMBINATIONS if tuple(other) == pair]
        place = before.index(policy) if policy in before else NAMES.index(policy)
        return families[(place + number + turn) % len(families)]

    whole = [(*pair, family(pair, number), CANVAS) for number, pair in enumerate(pairs)]
    others = enumerate(OTHER_CANVASES, NAMES.index(policy) + turn)
    return whole + [("blocks", "none", families[number % len(families)], length) for number, length in others]


def product_cases(turn: int) -> list[Case]:
    """The runs of all policies; stop rules, temperatures, batches and the row that is decoded alone take turns.

    A turn decodes every policy with every scheduler and cache once. From turn to turn the model changes.
    """
    cases: list[Case] = []
    for policy in NAMES:
        settings = itertools.cycle(itertools.product(TEMPERATURES, STOPS))
        for combination in combinations_of(policy, turn):
            temperature, stop = next(settings)
            number = len(cases)
            lengths = BATCHES[number % len(BATCHES)]
            row = number // len(BATCHES) % len(lengths)
            cases.append(Case(policy, *combination, stop, temperature, lengths, row, number))
    return cases


def meetings_of(case: Case) -> set[tuple[object, ...]]:
    """What meets in a case: the policy and each other part, and a scheduler and a cache with the model and the rule."""
    of_policy = (case.scheduler, case.cache, case.family, case.stop, case.temperature)
    pair = (case.scheduler, case.cache)
    others = {(*pair, case.family), (*pair, case.stop), (case.stop, case.temperature)}
    others |= {(case.gen_length, case.family), (case.gen_length, case.stop)}
    return {(case.policy, number, part) for number, part in enumerate(of_policy)} | others


CASES = product_cases(0)
OF_THE_SUITE = frozenset(covering(CASES, meetings_of))
MARKED = [
    pytest.param(case, marks=[] if case in OF_THE_SUITE else pytest.mark.thorough)
    for turn in range(len(MODELS))
    for case in product_cases(turn)
]


def test_the_cases_hold_every_combination_and_every_policy_with_every_stop_rule_temperature_and_model():
    whole = [case for case in CASES if case.gen_length == CANVAS]
    assert set(COMBINATIONS) <= {(case.policy, case.scheduler, case.cache) for case in whole}
    pairs = {(scheduler, cache) for _, scheduler, cache in COMBINATIONS}
    assert {(*pair, family) for pair in pairs for family in MODELS} <= {
        (case.scheduler, case.cache, case.family) for case in whole
    }
    assert {(name, family) for name in NAMES for family in MODELS} == {(case.policy, case.family) for case in CASES}
    settings = {(case.policy, case.stop, case.temperature) for case in CASES if case.policy != "filter_conv"}
    named = [name for name in NAMES if name != "filter_conv"]
    assert settings == set(itertools.product(named, STOPS, TEMPERATURES))
    for name in NAMES:
        assert {*OTHER_CANVASES, CANVAS} <= {case.gen_length for case in CASES if case.policy == name}


def test_in_the_part_of_the_suite_meets_what_meets_in_all_cases():
    assert set().union(*map(meetings_of, OF_THE_SUITE)) == set().union(*map(meetings_of, CASES))
    assert len(OF_THE_SUITE) < 0.7 * len(CASES)


class Watcher(Observer):
    """Keeps every step."""

    def __init__(self):
        self.steps = []

    def observe(self, step):
        self.steps.append(step)


def check_steps(case, steps):
    """Every open row commits in every step, and only what is eligible; nothing is revised without having been asked."""
    for each in steps:
        state = each.state
        window = state.window.mask(case.gen_length)
        eligible = state.masked & each.prediction.valid
        if case.policy not in REVISING:
            allowed = eligible if case.policy in BEYOND else eligible & window
            assert not (each.commit.mask & ~allowed).any()
            assert (each.commit.mask.any(1) == state.open).all()
            decided = ~state.masked & (torch.arange(case.gen_length) < each.after.end[:, None])
            assert (each.after.canvas == state.canvas)[decided].all()
        if case.scheduler == "blocks":
            assert (state.window.stop - state.window.start <= BLOCK)[state.open].all()


def check_end(case, state, spec):
    """Behind its end a row holds end-of-text, and all other positions were committed, in a bounded number of steps."""
    assert not state.masked.any()
    assert (state.canvas != spec.mask_id).all()
    closed = torch.arange(case.gen_length) >= state.end[:, None]
    assert (state.canvas == spec.eot_ids[0])[closed].all()
    assert (state.committed_at >= 0)[~closed].all()
    assert (state.committed_at.max(1).values < state.forwards).all()
    # a block that is checked stays open for a few steps without a mask
    bound = case.gen_length if case.policy not in ("edit", "remask") else 6 * case.gen_length
    assert ((state.forwards >= 1) & (state.forwards <= bound)).all()


def policy_of(case, model, prompts):
    """The policy of a case; the oracle knows the answers to its prompts."""
    if case.policy == "oracle":
        return oracle(model, prompts, case.gen_length)
    return policies(max(case.gen_length, 2))[case.policy]


@pytest.mark.parametrize("case", MARKED, ids=str)
def test_a_row_keeps_the_promises_of_the_loop_and_equals_itself_alone(case, make_prompts, request):
    """Rows of one batch are in different phases: one refreshes its cache while another reuses it or has long ended."""
    model = request.getfixturevalue(case.family)
    prompts = make_prompts(list(case.lengths), seed=case.seed)
    policy = policy_of(case, model, prompts)
    parts = {
        "stop": STOPS[case.stop],
        "scheduler": SCHEDULERS[case.scheduler],
        "cache": CACHES[case.cache],
        "temperature": case.temperature,
        "gen_length": case.gen_length,
    }
    watcher = Watcher()
    state = run(model, prompts, policy, observer=watcher, **parts)
    check_steps(case, watcher.steps)
    check_end(case, state, model.spec)
    alone = outcome(run(model, [prompts[case.row]], policy, index=[case.row], **parts), model)
    assert {key: [rows[case.row]] for key, rows in outcome(state, model).items()} == alone


@pytest.mark.parametrize("stop", ["none", "paper"])
def test_the_order_of_the_rows_does_not_matter(stop, tiny_model, make_prompts):
    prompts = make_prompts([5, 30, 12, 1])
    parts = {"stop": STOPS[stop], "temperature": 0.7}
    forward = outcome(run(tiny_model, prompts, policies()["filter"], **parts), tiny_model)
    backward = outcome(run(tiny_model, prompts[::-1], policies()["filter"], index=[3, 2, 1, 0], **parts), tiny_model)
    assert {key: rows[::-1] for key, rows in backward.items()} == forward


PAIRS = [("blocks", "dual"), ("blocks", "none"), ("dsb_greedy", "dsb"), ("lookahead", "lookahead")]


@pytest.mark.parametrize(
    ("policy", "scheduler", "cache"),
    [
        pytest.param(policy, *pair, marks=pytest.mark.thorough if (one + other) % 2 else [])
        for one, policy in enumerate(["threshold0.6", "apd", "entropy"])
        for other, pair in enumerate(PAIRS)
    ],
)
def test_samples_depend_neither_on_plans_nor_on_how_many_positions_are_scored_at_once(
    policy, scheduler, cache, tiny_model, make_prompts, monkeypatch
):
    prompts = make_prompts([1, 17, 9, 30])
    parts = {"scheduler": SCHEDULERS[scheduler], "cache": CACHES[cache], "stop": STOPS["eot0.5"], "temperature": 0.7}
    alone = [
        outcome(run(tiny_model, [prompt], policies()[policy], index=[number], **parts), tiny_model)
        for number, prompt in enumerate(prompts)
    ]
    monkeypatch.setattr(step, "SCORE_VALUES", 3 * tiny_model.spec.vocab_size)
    together = outcome(run(tiny_model, prompts, policies()[policy], **parts), tiny_model)
    assert [{key: [rows[number]] for key, rows in together.items()} for number in range(len(prompts))] == alone


REFUSED = [(p, s, c) for p, s, c in itertools.product(["fixed", "filter"], SCHEDULERS, CACHES) if not fits(p, s, c)]


@pytest.mark.parametrize(("policy", "scheduler", "cache"), REFUSED)
def test_what_does_not_go_together_is_refused_before_anything_runs(policy, scheduler, cache, tiny_model):
    with pytest.raises(UserError) as error:
        decode(
            tiny_model,
            [[5, 6]],
            policy=policies()[policy],
            scheduler=SCHEDULERS[scheduler],
            cache=CACHES[cache],
            gen_length=BLOCK,
        )
    assert SCHEDULERS[scheduler].name in str(error.value)
    assert "\n" not in str(error.value)
