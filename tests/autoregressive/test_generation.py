"""Plain, speculative and PEARL decoding against the target alone, in tokens and in distribution."""

from __future__ import annotations

import itertools
import random
import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from learn2pd import AutoregressiveMethod, PearlMethod, Sampling, SpeculativeMethod, UserError, generate
from learn2pd.autoregressive.drawing import pick
from learn2pd.autoregressive.model import causal_model
from tests.autoregressive.helpers import EOT, FAMILIES, greedy, tiny_network, tiny_pair

GEN = 14
LENGTHS = [3, 17, 1, 9]
DRAFTED = (SpeculativeMethod, PearlMethod)


def some_prompts(lengths=LENGTHS, vocab_size=40):
    """Random prompts of these lengths."""
    rng = random.Random(0)
    return [[rng.randrange(1, vocab_size) for _ in range(length)] for length in lengths]


def methods(target, draft, lengths=(1, 4)):
    """Every method, with several draft lengths."""
    return [AutoregressiveMethod(target), *(kind(target, draft, length) for kind in DRAFTED for length in lengths)]


@pytest.mark.parametrize(
    ("family", "stops"),
    [
        pytest.param(family, stops, marks=pytest.mark.thorough if (one + other) % 2 else [])
        for one, family in enumerate(FAMILIES)
        for other, stops in enumerate((True, False))
    ],
)
def test_greedy_answers_are_the_targets_token_for_token(family, stops):
    pair = tiny_pair(family)
    prompts = some_prompts()
    # three rows together and one alone
    answers = [greedy(pair[0], prompt, GEN, stops) for prompt in prompts]
    for method in methods(*pair):
        result = generate(method, prompts, gen_length=GEN, batch_size=3, stops=stops)
        assert result.tokens.tolist() == answers
        assert not result.failed.any()


@pytest.mark.parametrize(
    ("noise", "sampling"), [(0.0, Sampling()), (0.05, Sampling()), (0.1, Sampling(0.8, top_p=0.9))]
)
def test_a_row_decoded_alone_equals_the_same_row_in_a_batch(noise, sampling):
    prompts = some_prompts()
    names = ("tokens", "forwards", "auxiliary_forwards", "accepted", "draft_runs", "columns", "committed_at")
    for method in methods(*tiny_pair(noise=noise), lengths=(3,)):
        together, alone = (
            generate(method, prompts, gen_length=GEN, batch_size=size, sampling=sampling, seed=5)
            for size in (len(prompts), 1)
        )
        for name in names:
            assert getattr(alone, name).tolist() == getattr(together, name).tolist(), name


def test_counts_are_those_of_the_rule_written_down():
    """The draft is the target itself: every token of it stands."""
    target, _ = tiny_pair()
    draft = causal_model(tiny_network(), None, "draft", "draft")
    for length in (1, 4):
        speculative = generate(SpeculativeMethod(target, draft, length), [[7]], gen_length=GEN, stops=False)
        pearl = generate(PearlMethod(target, draft, length), [[7]], gen_length=GEN, stops=False)
        rounds = -(-GEN // (length + 1))
        assert int(speculative.forwards) == int(speculative.draft_runs) == rounds
        assert int(speculative.auxiliary_forwards) == rounds * length
        # the first round settles one token, every later one a whole draft; the draft never begins anew
        rounds = 1 + -(-(GEN - 1) // length)
        assert int(pearl.forwards) == rounds
        assert int(pearl.auxiliary_forwards) == rounds * length
        assert int(pearl.draft_runs) == 1
        assert int(pearl.accepted) == GEN


def test_a_run_of_pearls_draft_is_at_least_as_long_as_any_fixed_draft():
    target, draft = tiny_pair(noise=0.02)
    prompts = some_prompts([5] * 6)

    def accepted(method):
        result = generate(method, prompts, gen_length=GEN, stops=False)
        return float(result.accepted.sum() / result.draft_runs.sum())

    fixed = [accepted(SpeculativeMethod(target, draft, length)) for length in (1, 2, 4)]
    assert fixed == sorted(fixed)
    assert all(accepted(PearlMethod(target, draft, length)) >= fixed[-1] for length in (1, 2, 4))


SMALL = 5  # tokens of the vocabulary in which answers are counted
DRAWS = 2500


@pytest.mark.parametrize("sampling", [Sampling(1.0), Sampling(0.6, top_p=0.8), Sampling(1.3, top_k=3)])
def test_sampled_answers_have_the_targets_distribution(sampling):
    target, draft = tiny_pair(vocab_size=SMALL, noise=0.15)
    prompt = [3, 1]
    expected = distribution(target, prompt, sampling, 3)
    for method in methods(target, draft, lengths=(2,)):
        result = generate(
            method, [prompt] * DRAWS, gen_length=3, batch_size=DRAWS, sampling=sampling, seed=2, stops=False
        )
        counted = torch.zeros(SMALL, SMALL, SMALL, dtype=torch.float64)
        counted.index_put_(tuple(result.tokens.T), torch.ones(DRAWS, dtype=torch.float64), accumulate=True)
        assert (counted[expected == 0] == 0).all()
        often = DRAWS * expected >= 5  # all other answers are counted as one
        mean = torch.cat((DRAWS * expected[often], DRAWS * expected[~often].sum()[None])).clamp_min(1e-9)
        seen = torch.cat((counted[often], counted[~often].sum()[None]))
        chi_square = ((seen - mean) ** 2 / mean).sum()
        freedom = int(often.sum())
        assert chi_square < freedom + 4 * (2 * freedom) ** 0.5, method  # four standard deviations


def distribution(model, prompt, sampling, length):
    """The probability of every answer of a length, [V] * length."""
    probability = torch.ones((SMALL,) * length, dtype=torch.float64)
    for number in range(length):
        for beginning in itertools.product(range(SMALL), repeat=number):
            with torch.inference_mode():
                logits = model.network(torch.tensor([[*prompt, *beginning]])).logits[0, -1]
            following = torch.tensor(filtered(logits / sampling.temperature, sampling), dtype=torch.float64)
            probability[beginning] *= following.view(-1, *(1,) * (length - number - 1))
    return probability


def filtered(logits, sampling):
    """The probabilities of the tokens that top-k and top-p leave, written down for one position."""
    order = logits.argsort(descending=True).tolist()
    kept = order[: sampling.top_k or None]
    probability = {token: float(value) for token, value in enumerate(logits.exp())}
    total = sum(probability[token] for token in kept)
    mass = 0.0
    left = {}
    for token in kept:
        if mass < sampling.top_p:
            left[token] = probability[token]
        mass += probability[token] / total
    return [left.get(token, 0.0) / sum(left.values()) for token in range(len(order))]


@given(st.lists(st.floats(0, 1), min_size=2, max_size=6), st.floats(0, 1, exclude_max=True))
def test_a_token_of_weight_0_is_never_drawn(weights, uniform):
    values = torch.tensor(weights, dtype=torch.float64)
    if float(values.cumsum(0)[-1]) > 1e-300:
        assert weights[int(pick(values, torch.tensor(uniform, dtype=torch.float64)))] > 0


def test_an_answer_ends_at_its_end_of_text_and_at_the_end_of_the_canvas():
    target, draft = tiny_pair()
    prompts = some_prompts([4] * 12)
    result = generate(PearlMethod(target, draft, 4), prompts, gen_length=GEN)
    for tokens, length, steps in zip(result.tokens.tolist(), result.lengths.tolist(), result.step_map, strict=True):
        assert EOT not in tokens[:length]
        assert set(tokens[length:]) <= {EOT}
        assert -1 not in steps
        assert steps == sorted(steps)
    assert result.lengths.min() < GEN


def test_positions_behind_the_last_one_of_the_model_are_not_asked_for():
    target, draft = tiny_pair("gpt2")  # it has a table of positions
    prompt = some_prompts([96 - GEN])
    for method in methods(target, draft, lengths=(7,)):
        result = generate(method, prompt, gen_length=GEN, stops=False)
        assert result.tokens.tolist() == [greedy(target, prompt[0], GEN, stops=False)]


def test_draft_and_target_run_at_the_same_time(monkeypatch):
    """Each of the two waits inside its forward until the other one is in its own, which can only end if both run."""
    target, draft = tiny_pair()
    meeting = threading.Barrier(2, timeout=60)
    for model in (target, draft):
        forward = model.network.forward

        def meet(*arguments, forward=forward, **options):
            meeting.wait()
            return forward(*arguments, **options)

        monkeypatch.setattr(model.network, "forward", meet)
    result = generate(PearlMethod(target, draft, 1), [[5, 6]], gen_length=6, stops=False)
    assert int(result.forwards) == int(result.auxiliary_forwards)


def test_logits_that_are_not_finite_end_a_row():
    target, draft = tiny_pair()
    with torch.no_grad():
        target.network.lm_head.weight[3] = torch.nan
    for method in methods(target, draft, lengths=(3,)):
        assert generate(method, [[5, 6], [7]], gen_length=8).failed.all()


def test_no_prompts_give_no_answers():
    for method in methods(*tiny_pair()):
        assert len(generate(method, [], gen_length=4, sampling=Sampling(1.0))) == 0


@pytest.mark.parametrize(
    ("prompts", "options", "words"),
    [
        ([[1] * 90], {}, ["prompt 0", "90 tokens", "gen_length=14", "at most 96"]),
        ([[5], [40]], {}, ["prompt 1", "token id 40", "0 to 39"]),
        ([[5], []], {}, ["prompt 1"]),
        ([[5]], {"gen_length": 0}, ["gen_length=0"]),
        ([[5]], {"batch_size": 0}, ["batch_size=0"]),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(prompts, options, words):
    with pytest.raises(UserError) as error:
        generate(PearlMethod(*tiny_pair()), prompts, **{"gen_length": GEN} | options)
    assert all(word in str(error.value) for word in words)
    assert "\n" not in str(error.value)
