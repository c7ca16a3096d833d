"""Upper confidence bounds of a mean loss, and the fastest setting whose loss stays within a target.

A loss is one number for each held-out prompt: 1 - agreement, an answer that was cut short (0 or 1), or the difference
of the verdicts with one token a step and with the policy (-1, 0 or 1). A bound at `delta` holds with probability 1 -
delta over the draw of the prompts, for any number of prompts and any distribution of the loss. The prompts must be
independent draws from the prompts that the policy will meet, and none of them may have been used to train the policy.

- `upper_bound` takes any loss that is at most 1. It bets against every candidate mean m. The wealth of a bettor starts
  at 1, and each loss multiplies it by 1 + c (m - loss) / (1 - m), where the bet c, with 0 <= c <= 1, is fixed before
  the loss is seen. If the true mean were m or more, the wealth would not be expected to grow, and the probability that
  it ever reaches 1 / delta would be at most delta (Waudby-Smith and Ramdas, arXiv 2010.09686). A candidate mean whose
  wealth reaches 1 / delta is therefore ruled out. The size of the bet is free. Here it depends on the growth that is
  still missing and on the number of losses that are left (STaR-Bets, arXiv 2505.22422), and it is never less than the
  bet that would win if all the remaining losses were 0.
- `upper_bound_of_share` is the exact bound of Clopper and Pearson (1934) for losses that can only be 0 or 1. The kind
  of loss decides which of the two bounds is used; the sample must not decide it. A user who took the exact bound
  whenever the sample happened to hold no fraction could err twice, each time with probability delta.
- `fastest_within` tries settings from the strictest to the fastest and stops at the first one that fails. Since the
  order is fixed, every test may use the whole of delta (Learn then Test, arXiv 2110.01052).

Deviations from STaR-Bets: the bet has a floor, which makes the bound of a sample without losses exact. Above that floor
a bet is at most 0.9, so that one loss does not ruin the bettor. The losses are shuffled with a fixed seed, since
prompts may be sorted by domain.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from learn2pd.errors import UserError

S = TypeVar("S")
# number of candidate means; the bound is one of them, so it is rounded up by 0.0004 near 0.03 and by 0.001 near 0.25
MEANS = 1000
LARGEST_BET = 0.9  # largest share of the wealth that a loss of 1 may take, unless the floor asks for a larger bet
PRIOR_LOSSES = 4  # losses that the largest variance of a candidate mean counts for, before any loss has been seen
ROUNDING = 1e-9  # allowed error of a logarithm of wealth


@dataclass(frozen=True)
class Trial(Generic[S]):
    """One setting with its measured loss and the bound of its expected loss."""

    setting: S
    mean: float  # mean loss over the held-out prompts
    bound: float  # upper confidence bound of the expected loss


@dataclass(frozen=True)
class Choice(Generic[S]):
    """The result of trying settings from the strictest to the fastest."""

    fastest: int | None  # index of the fastest setting that keeps to the target; None where even the strictest does not
    tried: tuple[Trial[S], ...]  # the trials in their order; only the last one may have failed


def upper_bound(losses: np.ndarray, delta: float) -> float:
    """Compute an upper confidence bound of the expected loss.

    The bound is one of a set of candidate means that is fixed beforehand: the least candidate for which it and every
    larger one are ruled out. If the bound were below the expected loss, the largest candidate that does not exceed the
    expected loss would have been ruled out as well, and that happens with probability at most delta.

    Args:
        losses: [N] float, one loss for each independent prompt, each at most 1; a loss below 0 is a gain.
        delta: probability with which the bound may be below the expected loss, above 0 and below 1.

    Returns:
        A number from `flawless_bound` to 1, which is not below the mean of the sample. It is `flawless_bound` itself
        where no loss is above 0.

    Raises:
        ValueError: `delta` is not a probability, or `losses` is empty or holds a number that is not finite or is above
            1.
    """
    losses = _checked(losses, delta)
    least = flawless_bound(len(losses), delta)
    mean = least + (1 - least) * (np.arange(MEANS) / MEANS) ** 2  # [M]
    ruled_out = log_wealth(np.random.default_rng(0).permutation(losses), mean, delta) >= -math.log(delta) - ROUNDING
    standing = np.flatnonzero(~ruled_out)
    first = standing[-1] + 1 if len(standing) else 0
    return max(float(mean[first]) if first < MEANS else 1.0, float(losses.mean()))


def upper_bound_of_share(losses: np.ndarray, delta: float) -> float:
    """Compute the exact upper confidence bound of the probability of a loss that can only be 0 or 1.

    The bound is the largest probability of a loss under which seeing at most as many losses as in the sample still has
    a probability of `delta`.

    Args:
        losses: [N], each 0 or 1, one for each independent prompt.
        delta: probability with which the bound may be below the true probability, above 0 and below 1.

    Returns:
        A number from `flawless_bound` to 1.

    Raises:
        ValueError: `losses` holds something other than 0 and 1, or `upper_bound` would not take the arguments.
    """
    losses = _checked(losses, delta)
    if not np.isin(losses, (0, 1)).all():
        raise ValueError(
            f"losses={losses[~np.isin(losses, (0, 1))][0]}: expected 0 or 1; upper_bound takes any loss of at most 1"
        )
    count = len(losses)
    lost = int(losses.sum())
    if lost == count:
        return 1.0
    log_ways = np.array(
        [math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1) for k in range(lost + 1)]
    )
    low = lost / count
    high = 1.0
    while (middle := (low + high) / 2) not in (low, high):  # bisection down to the last bit
        log_term = (
            log_ways + np.arange(lost + 1) * math.log(middle) + (count - np.arange(lost + 1)) * math.log1p(-middle)
        )
        if np.exp(log_term).sum() <= delta:
            high = middle
        else:
            low = middle
    return high


def upper_bound_of_drop(reference_correct: np.ndarray, policy_correct: np.ndarray, delta: float) -> float:
    """Compute an upper confidence bound of the accuracy that a policy loses against a reference on the same prompts.

    The loss of a prompt is the difference of its two verdicts. Bets need no lower limit of the loss, so `upper_bound`
    holds for these losses and they need no rescaling from a range of 2. Prompts with two equal verdicts cost nothing: a
    sample without any difference has a bound of about 3 / N at delta 0.05. A prompt that the policy gains makes up for
    one that it loses.

    Args:
        reference_correct: [N] verdicts of the reference, each 0 or 1.
        policy_correct: [N] verdicts of the policy on the same prompts, each 0 or 1.
        delta: probability with which the bound may be below the expected drop, above 0 and below 1.

    Returns:
        The bound, a number above 0 and at most 1.

    Raises:
        ValueError: the numbers of verdicts differ, or `upper_bound` would not take the arguments.
    """
    reference = np.asarray(reference_correct, dtype=float)
    policy = np.asarray(policy_correct, dtype=float)
    if reference.shape != policy.shape:
        raise ValueError(
            f"{len(reference)} verdicts of the reference and {len(policy)} of the policy: expected the same prompts"
        )
    return upper_bound(reference - policy, delta)


def flawless_bound(prompts: int, delta: float) -> float:
    """Return the bound of a sample in which no prompt loses anything.

    Every bound of this file gives 1 - delta ** (1 / prompts) for such a sample, and no valid bound gives less.

    Args:
        prompts: number of prompts, N.
        delta: probability with which the bound may fail, above 0 and below 1.
    """
    return -math.expm1(math.log(delta) / prompts)


def needed(target_loss: float, delta: float) -> int:
    """Compute the least number of prompts that can show a target, provided that none of them loses anything.

    Args:
        target_loss: the expected loss that is to be shown, above 0 and below 1.
        delta: probability with which the bound may fail, above 0 and below 1.

    Returns:
        The number of prompts.

    Raises:
        UserError: one of the arguments is not above 0 and below 1.
    """
    for name, value in (("target loss", target_loss), ("delta", delta)):
        if not 0 < value < 1:
            raise UserError(f"{name}={value}: expected a number above 0 and below 1")
    count = math.ceil(math.log(delta) / math.log1p(-target_loss))
    if flawless_bound(count, delta) > target_loss:  # the division may have been rounded down
        return count + 1
    return count


def fastest_within(
    settings: Sequence[S],
    losses_of: Callable[[S], np.ndarray],
    target_loss: float,
    delta: float,
    bound: Callable[[np.ndarray, float], float] = upper_bound,
) -> Choice[S]:
    """Choose the last setting before the first one whose bound is above the target.

    With probability 1 - delta the expected loss of the selected setting is at most the target. If it were more, then
    the first setting in the order that loses more than the target would have passed its own test, and that has
    probability at most delta. The order must be fixed before the losses are seen.

    Args:
        settings: the settings, from the strictest to the fastest.
        losses_of: returns the losses [N] of one setting on the held-out prompts; it is called until one setting fails.
        target_loss: the expected loss that is allowed, above 0 and below 1.
        delta: probability with which the selected setting may lose more than the target.
        bound: computes an upper confidence bound from losses [N] and delta.

    Returns:
        The selected setting's index, and the trials of all settings up to the first that failed.

    Raises:
        UserError: the prompts are too few to meet the target even if none of them loses anything.
    """
    least = needed(target_loss, delta)
    tried: list[Trial[S]] = []
    for setting in settings:
        losses = losses_of(setting)
        if len(losses) < least:
            raise UserError(
                f"{len(losses)} held-out prompts cannot show a loss of at most {target_loss:g} with confidence "
                f"{1 - delta:g}: at least {least} are needed, more if any of them loses; give more prompts, "
                "allow a greater loss or ask for less confidence"
            )
        tried.append(Trial(setting, float(np.mean(losses)), bound(losses, delta)))
        if tried[-1].bound > target_loss:
            return Choice(len(tried) - 2 if len(tried) > 1 else None, tuple(tried))
    return Choice(len(tried) - 1 if tried else None, tuple(tried))


def _checked(losses: np.ndarray, delta: float) -> np.ndarray:
    losses = np.asarray(losses, dtype=float)
    if not 0 < delta < 1:
        raise ValueError(f"delta={delta}: expected a probability above 0 and below 1")
    if losses.ndim != 1 or not len(losses) or not np.isfinite(losses).all() or losses.max() > 1:
        raise ValueError("losses: expected a list of at least one number, each finite and at most 1")
    return losses


def log_wealth(losses: np.ndarray, mean: np.ndarray, delta: float) -> np.ndarray:
    """Compute the logarithm of the wealth after betting on all losses, against each candidate mean.

    Args:
        losses: [N] float, in the order of the bets.
        mean: [M] float, the candidate means, each above 0 and below 1.
        delta: a candidate is ruled out when its wealth reaches 1 / delta.

    Returns:
        [M] float, the logarithms of the wealth.
    """
    odds = mean / (1 - mean)  # gain of a bet of 1 on a loss of 0
    wealth = np.zeros_like(mean)
    squares = PRIOR_LOSSES * mean * (1 - mean)
    seen = float(PRIOR_LOSSES)
    for number, loss in enumerate(losses):
        left = len(losses) - number
        # growth that is still missing: infinite for a ruined bettor; 0 for one who has won and stops betting
        missing = np.maximum(-math.log(delta) - wealth, 0)
        deserved = (1 - mean) * np.sqrt(2 * missing * seen / (left * squares))  # the best bet if many small ones follow
        with np.errstate(over="ignore"):
            flawless = np.expm1(missing / left) / odds  # the least bet that wins if all remaining losses are 0
        bet = np.maximum(np.minimum(deserved, LARGEST_BET), np.minimum(flawless, 1))
        with np.errstate(divide="ignore"):
            wealth = wealth + np.log1p(np.maximum(bet * (mean - loss) / (1 - mean), -1))
        squares = squares + (loss - mean) ** 2
        seen = seen + 1
    return wealth
