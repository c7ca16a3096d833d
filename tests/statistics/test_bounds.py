import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from learn2pd.errors import UserError
from learn2pd.statistics.bounds import (
    Choice,
    Trial,
    fastest_within,
    flawless_bound,
    log_wealth,
    needed,
    upper_bound,
    upper_bound_of_drop,
    upper_bound_of_share,
)

DRAWS = 120
deltas = st.floats(0.001, 0.5)
losses_to_one = st.lists(st.floats(0, 1), min_size=1, max_size=30).map(np.array)
verdicts = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30).map(np.array)


def slack(delta: float) -> float:
    """What a share of DRAWS events of probability delta exceeds by chance about once in 10,000."""
    return 3.7 * math.sqrt(delta * (1 - delta) / DRAWS)


# Validity without simulation: over every sample there is, the probability that the bound is under the expected loss.


@pytest.mark.parametrize("delta", [0.05, 0.2, 0.4])
@pytest.mark.parametrize("support", [(0.0, 1.0), (0.0, 0.5, 1.0), (-1.0, 0.0, 1.0), (0.0, 0.1, 1.0), (-8.0, 0.2, 1.0)])
def test_the_bound_fails_with_probability_delta_at_most_for_every_distribution_on_a_few_values(support, delta):
    size = 5
    samples = np.array(list(itertools.product(range(len(support)), repeat=size)))
    values = np.array(support)
    bounds = np.array([upper_bound(values[sample], delta) for sample in samples])
    generator = np.random.default_rng(1)
    for weights in [
        *generator.dirichlet(np.ones(len(support)), 300),
        *generator.dirichlet(np.full(len(support), 0.2), 300),
    ]:
        failing = bounds < weights @ values
        assert weights[samples].prod(1)[failing].sum() <= delta + 1e-9


@given(st.floats(0.01, 0.9), st.just(1.0) | st.floats(0, 1), st.floats(-2, 1), deltas)
def test_wealth_is_expected_to_stay_at_one_where_the_mean_is_the_one_bet_against(mean, near, far, delta):
    low, high = (
        mean - (mean - far) * (far < mean),
        mean + (1 - mean) * near,
    )  # two losses around the mean, and the chance of the higher
    chance = (mean - low) / (high - low) if high > low else 0.5
    higher = np.array(list(itertools.product((False, True), repeat=4)))
    wealth = np.array(
        [np.exp(log_wealth(np.where(sample, high, low), np.array([mean]), delta))[0] for sample in higher]
    )
    assert np.where(higher, chance, 1 - chance).prod(1) @ wealth == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("count", [1, 2, 7, 30])
@pytest.mark.parametrize("delta", [0.01, 0.1, 0.5])
def test_the_bound_of_a_share_is_valid_and_exact_where_the_expected_share_is_one_of_its_values(count, delta):
    bounds = np.array([upper_bound_of_share(np.arange(count) < lost, delta) for lost in range(count + 1)])

    def failing(share):
        chances = np.array([math.comb(count, k) * share**k * (1 - share) ** (count - k) for k in range(count + 1)])
        return chances[bounds < share].sum()

    assert all(failing(share) <= delta + 1e-9 for share in np.linspace(0, 1, 201))
    for bound in bounds[:-1]:
        assert failing(bound + 1e-12) == pytest.approx(delta, abs=1e-6)


# Validity by simulation, where the values are many.

DISTRIBUTIONS = {
    "rare": lambda draw, n: (draw.random(n) < 0.06) * 1.0,
    "mixed": lambda draw, n: (draw.random(n) < 0.2) * draw.beta(1, 3, n),
    "small": lambda draw, n: draw.beta(1, 20, n),
    "large": lambda draw, n: 1 - (draw.random(n) < 0.3) * draw.random(n),
    "uniform": lambda draw, n: draw.random(n),
    "constant": lambda draw, n: np.full(n, 0.07),
    "drops": lambda draw, n: draw.choice([-1.0, 0.0, 1.0], n, p=[0.05, 0.85, 0.1]),
    "drops and gains": lambda draw, n: draw.choice([-1.0, 0.0, 1.0], n, p=[0.3, 0.4, 0.3]),
    "drops alone": lambda draw, n: draw.choice([0.0, 1.0], n, p=[0.96, 0.04]),
}


ARRANGED = {"as drawn": np.asarray, "ascending": np.sort, "descending": lambda losses: -np.sort(-losses)}


@pytest.mark.parametrize(
    ("name", "order"),
    [*((name, "as drawn") for name in DISTRIBUTIONS), ("uniform", "ascending"), ("rare", "descending")],
)
def test_the_bound_fails_at_most_in_delta_of_the_samples_whatever_their_order(name, order):
    draw, delta, distribution = np.random.default_rng(2), 0.1, DISTRIBUTIONS[name]
    expected = distribution(draw, 10**6).mean()
    failures = sum(upper_bound(ARRANGED[order](distribution(draw, 40)), delta) < expected - 1e-3 for _ in range(DRAWS))
    assert failures / DRAWS <= delta + slack(delta)


# What the bound gives.


@settings(max_examples=30)
@given(st.integers(1, 400), deltas)
def test_a_sample_without_a_loss_is_bounded_by_the_closed_form(count, delta):
    closed = 1 - delta ** (1 / count)
    zeros = np.zeros(count)
    assert upper_bound(zeros, delta) == flawless_bound(count, delta) == pytest.approx(closed, abs=1e-12)
    assert upper_bound_of_share(zeros, delta) == pytest.approx(closed, abs=1e-12)
    right = np.arange(count) % 2
    assert upper_bound_of_drop(right, right, delta) == pytest.approx(closed, abs=1e-12)
    assert upper_bound_of_drop(right, np.ones(count), delta) == pytest.approx(closed, abs=1e-12)  # gains alone


def test_no_difference_in_a_hundred_pairs_is_bounded_by_three_hundredths():
    assert upper_bound_of_drop(np.ones(100), np.ones(100), 0.05) == pytest.approx(0.03, abs=5e-4)


@given(losses_to_one, deltas)
def test_the_bound_lies_between_the_mean_and_one_and_is_the_same_each_time(losses, delta):
    bound = upper_bound(losses, delta)
    assert max(losses.mean(), flawless_bound(len(losses), delta)) <= bound <= 1
    assert bound == upper_bound(losses, delta)


@given(verdicts, deltas)
def test_the_bound_of_a_drop_lies_between_the_mean_drop_and_one(pairs, delta):
    reference, policy = pairs.T
    assert reference.mean() - policy.mean() - 1e-12 <= upper_bound_of_drop(reference, policy, delta) <= 1


@settings(max_examples=50)
@given(st.lists(st.booleans(), min_size=1, max_size=60).map(np.array), deltas, deltas)
def test_more_confidence_costs_a_higher_bound_of_a_share(losses, delta, other):
    bounds = [upper_bound_of_share(losses, d) for d in sorted((delta, other))]
    assert losses.mean() <= bounds[1] <= bounds[0] <= 1


@pytest.mark.parametrize("name", ["rare", "mixed", "uniform", "drops and gains"])
def test_the_bound_falls_on_average_with_delta_and_with_the_number_of_prompts(name):
    draw = np.random.default_rng(3)
    samples = [DISTRIBUTIONS[name](draw, 160) for _ in range(8)]
    by_delta = [np.mean([upper_bound(losses, delta) for losses in samples]) for delta in (0.01, 0.03, 0.1, 0.3)]
    assert by_delta == sorted(by_delta, reverse=True)
    by_count = [np.mean([upper_bound(losses[:count], 0.1) for losses in samples]) for count in (20, 40, 80, 160)]
    assert by_count == sorted(by_count, reverse=True)


@pytest.mark.parametrize(
    ("name", "share"), [("mixed", 0.8), ("small", 0.7), ("uniform", 0.8), ("drops", 0.4), ("drops and gains", 0.7)]
)
def test_the_bound_is_closer_to_the_mean_than_hoeffdings(name, share):
    """The bound's distance from the mean is at most `share` of the one that Hoeffding's inequality leaves.

    The inequality is taken in its relative-entropy form, and for drops it is that of (1 + drop) / 2.
    """
    draw, count, delta = np.random.default_rng(4), 200, 0.05
    low = -1 if "drops" in name else 0

    def hoeffding(losses):
        mean = (losses.mean() - low) / (1 - low)
        candidates = np.linspace(mean, 1, 20_001)[1:-1]
        entropy = mean * np.log(mean / candidates) + (1 - mean) * np.log((1 - mean) / (1 - candidates))
        return low + (1 - low) * candidates[np.flatnonzero(count * entropy >= -math.log(delta))[0]]

    samples = [DISTRIBUTIONS[name](draw, count) for _ in range(6)]
    ours, theirs = (
        np.mean([bound(losses) - losses.mean() for losses in samples])
        for bound in (lambda x: upper_bound(x, delta), hoeffding)
    )
    assert ours <= share * theirs


@given(st.floats(0.001, 0.9), deltas)
def test_the_number_needed_is_the_least_with_which_a_flawless_sample_meets_the_target(target, delta):
    count = needed(target, delta)
    assert flawless_bound(count, delta) <= target
    assert count == 1 or flawless_bound(count - 1, delta) > target


def test_numbers_needed_by_hand():
    assert (needed(0.5, 0.25), needed(0.05, 0.05), needed(0.01, 0.05)) == (2, 59, 299)


# The choice.


@pytest.mark.parametrize("bound", [upper_bound, upper_bound_of_share])
@pytest.mark.parametrize("shares", [(0.11, 0.2, 0.3), (0.02, 0.11, 0.11), (0.11, 0.02, 0.11), (0.0, 0.11, 0.13)])
def test_a_setting_that_loses_more_than_the_target_is_chosen_with_probability_delta_at_most(shares, bound):
    draw, delta = np.random.default_rng(5), 0.1
    wrong = 0
    for _ in range(DRAWS):
        prompts = draw.random(30)  # the same prompts for every setting
        choice = fastest_within(shares, lambda share, prompts=prompts: (prompts < share) * 1.0, 0.1, delta, bound)
        wrong += choice.fastest is not None and shares[choice.fastest] > 0.1
    assert wrong / DRAWS <= delta + slack(delta)


def test_settings_are_tried_in_order_until_one_fails():
    asked = []

    def losses_of(setting):
        asked.append(setting)
        return (np.arange(100) < setting) * 1.0

    choice = fastest_within([0, 1, 40, 0], losses_of, 0.1, 0.05)
    assert asked == [0, 1, 40]
    assert choice.fastest == 1
    assert choice.tried == tuple(
        Trial(setting, setting / 100, upper_bound(losses_of(setting), 0.05)) for setting in (0, 1, 40)
    )


def test_the_fastest_is_chosen_where_all_keep_to_the_target_and_none_where_the_strictest_does_not():
    assert fastest_within("abc", lambda setting: np.zeros(100), 0.1, 0.05).fastest == 2
    failed = fastest_within("abc", lambda setting: np.ones(100), 0.1, 0.05)
    assert (failed.fastest, failed.tried) == (None, (Trial("a", 1.0, 1.0),))
    assert fastest_within("", lambda setting: np.ones(100), 0.1, 0.05) == Choice(None, ())


def test_a_flawless_sample_of_just_the_number_needed_passes_and_one_less_is_refused():
    assert fastest_within([0], lambda setting: np.zeros(59), 0.05, 0.05).fastest == 0
    with pytest.raises(
        UserError, match=r"58 held-out prompts .* at most 0\.05 with confidence 0\.95: at least 59 are needed"
    ) as caught:
        fastest_within([0], lambda setting: np.zeros(58), 0.05, 0.05)
    assert "\n" not in str(caught.value)


# Bad input.


@pytest.mark.parametrize(
    ("target", "delta", "name"),
    [(0, 0.1, "target loss=0"), (1, 0.1, "target loss=1"), (0.1, 0, "delta=0"), (0.1, 1.5, "delta=1.5")],
)
def test_a_target_or_delta_out_of_range_is_named(target, delta, name):
    with pytest.raises(UserError, match=name):
        fastest_within([0], lambda setting: np.zeros(10), target, delta)


@pytest.mark.parametrize("losses", [[], [0.5, 1.5], [math.nan], [[0.1], [0.2]]])
@pytest.mark.parametrize("bound", [upper_bound, upper_bound_of_share])
def test_what_is_no_list_of_losses_is_refused(bound, losses):
    with pytest.raises(ValueError, match="losses"):
        bound(np.array(losses), 0.1)


def test_fractions_are_no_share_and_verdicts_come_in_pairs():
    with pytest.raises(ValueError, match=r"losses=0\.5"):
        upper_bound_of_share(np.array([0, 0.5]), 0.1)
    with pytest.raises(ValueError, match="2 verdicts of the reference and 1 of the policy"):
        upper_bound_of_drop(np.ones(2), np.ones(1), 0.1)
    with pytest.raises(ValueError, match="delta=1"):
        upper_bound(np.zeros(3), 1)
