"""How much a setting may lose, shown with a stated confidence: upper bounds of a mean loss, and the fastest setting that keeps to a target.

A loss is one number a held-out prompt: 1 - agreement, an answer cut short (0 or 1), or the drop of a verdict against one token a step (-1, 0, 1).
A bound at `delta` holds with probability 1 - delta over the draw of the prompts, at any number of them and for any distribution of the loss; the
prompts must be independent draws of what the policy will meet, and none of them may have been used to train it.

- `upper_bound` takes any loss that is at most 1. It bets against every candidate mean m: wealth starts at 1 and is multiplied by
  1 + c (m - loss) / (1 - m), with 0 <= c <= 1 chosen before the loss is seen. Were the mean m or more, wealth would not be expected to
  grow and would reach 1 / delta with probability at most delta (Waudby-Smith and Ramdas, arXiv 2010.09686), so a mean where it gets there
  is ruled out. How much to bet is free; we take what is still missing over what is left of the sample (STaR-Bets, arXiv 2505.22422), and
  never less than what a flawless rest needs.
- `upper_bound_of_share` is the exact bound (Clopper and Pearson, 1934) for losses that can only be 0 or 1. Which of the two to use follows
  from what the loss is, never from the sample: taking the exact one whenever no fraction turned up could spend delta twice.
- `fastest_within` tries settings from the strictest to the fastest and stops at the first that fails. In a fixed order every test may use
  the whole of delta (Learn then Test, arXiv 2110.01052).

Deviations from STaR-Bets: the floor on the bet, which makes the bound of a flawless sample exact; bets of at most 0.9 otherwise, so that
one loss does not ruin the bettor; losses are shuffled by a fixed seed, since prompts may come sorted by domain.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from learn2pd.errors import UserError

S = TypeVar("S")
MEANS = 1000  # candidate means; the bound is one of them, rounded up by 0.0004 at 0.03 and 0.001 at 0.25
LARGEST_BET = 0.9
PRIOR_LOSSES = 4  # weight, in losses, of the largest variance a mean allows while few losses have been seen
ROUNDING = 1e-9  # of a logarithm of wealth


@dataclass(frozen=True)
class Trial(Generic[S]):
    setting: S
    mean: float  # loss on the held-out prompts
    bound: float  # upper confidence bound of the expected loss


@dataclass(frozen=True)
class Choice(Generic[S]):
    chosen: int | None  # index of the fastest setting that keeps to the target; None where even the strictest does not
    tried: tuple[Trial[S], ...]  # in order; only the last one may have failed


def upper_bound(losses: np.ndarray, delta: float) -> float:
    """Upper confidence bound of the expected loss.

    Args:
        losses: [N] float, each at most 1 (below 0 is a gain), of independent prompts.
        delta: probability that the bound may be under the expected loss, above 0 and below 1.

    Returns:
        A number from `flawless_bound` to 1, not under the mean of the sample; `flawless_bound` itself where no loss is above 0. It is one of
        a set of candidate means fixed beforehand, the least from which on all are ruled out. Were it under the expected loss, the candidate
        next below the expected loss would be ruled out too, and that happens with probability at most delta.
    """
    losses = _checked(losses, delta)
    least = flawless_bound(len(losses), delta)
    mean = least + (1 - least) * (np.arange(MEANS) / MEANS) ** 2  # [M]
    ruled_out = log_wealth(np.random.default_rng(0).permutation(losses), mean, delta) >= -math.log(delta) - ROUNDING
    standing = np.flatnonzero(~ruled_out)
    first = standing[-1] + 1 if len(standing) else 0
    return max(float(mean[first]) if first < MEANS else 1.0, float(losses.mean()))


def upper_bound_of_share(losses: np.ndarray, delta: float) -> float:
    """Upper confidence bound of the probability of a loss that can only be 0 or 1 (`losses` [N]): the largest one under which at most as many
    losses as seen have a probability of delta."""
    losses = _checked(losses, delta)
    if not np.isin(losses, (0, 1)).all():
        raise ValueError(
            f"losses={losses[~np.isin(losses, (0, 1))][0]}: expected 0 or 1; upper_bound takes any loss of at most 1"
        )
    count, lost = len(losses), int(losses.sum())
    if lost == count:
        return 1.0
    log_ways = np.array(
        [math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1) for k in range(lost + 1)]
    )
    low, high = lost / count, 1.0
    while (middle := (low + high) / 2) not in (low, high):  # to the last bit
        log_term = (
            log_ways + np.arange(lost + 1) * math.log(middle) + (count - np.arange(lost + 1)) * math.log1p(-middle)
        )
        low, high = (low, middle) if np.exp(log_term).sum() <= delta else (middle, high)
    return high


def upper_bound_of_drop(reference_correct: np.ndarray, policy_correct: np.ndarray, delta: float) -> float:
    """Upper confidence bound of the accuracy lost against a reference that answered the same prompts ([N] verdicts, 0 or 1, each).

    The loss is the difference of a prompt's two verdicts. Bets need no lower limit of it, so `upper_bound` holds as it is and needs no rescaling from
    a range of 2: prompts where both agree cost nothing, and a sample without any difference is bounded by 3 / N at delta 0.05. A gain elsewhere makes
    up for a drop.
    """
    reference, policy = np.asarray(reference_correct, dtype=float), np.asarray(policy_correct, dtype=float)
    if reference.shape != policy.shape:
        raise ValueError(
            f"{len(reference)} verdicts of the reference and {len(policy)} of the policy: expected the same prompts"
        )
    return upper_bound(reference - policy, delta)


def flawless_bound(prompts: int, delta: float) -> float:
    """What every bound here gives for a sample without a loss, 1 - delta ** (1 / prompts); no valid bound gives less."""
    return -math.expm1(math.log(delta) / prompts)


def needed(target_loss: float, delta: float) -> int:
    """The least number of prompts that can show an expected loss of at most `target_loss`, if none of them loses anything."""
    for name, value in (("target loss", target_loss), ("delta", delta)):
        if not 0 < value < 1:
            raise UserError(f"{name}={value}: expected a number above 0 and below 1")
    count = math.ceil(math.log(delta) / math.log1p(-target_loss))
    return count if flawless_bound(count, delta) <= target_loss else count + 1  # the division may round down


def fastest_within(
    settings: Sequence[S],
    losses_of: Callable[[S], np.ndarray],
    target_loss: float,
    delta: float,
    bound: Callable[[np.ndarray, float], float] = upper_bound,
) -> Choice[S]:
    """The last setting before the first whose bound is above the target.

    With probability 1 - delta the chosen setting's expected loss is at most the target: were it more, the first setting in the order that
    loses more than the target would have passed its own test. The order must be fixed before the losses are seen.

    Args:
        settings: from the strictest to the fastest.
        losses_of: the losses [N] of one setting on the held-out prompts; called only until one fails.
        target_loss: what may be lost, above 0 and below 1.
        delta: probability that the choice loses more than that.
        bound: upper confidence bound of losses [N] at delta.

    Raises:
        UserError: too few prompts to meet the target even without a loss.
    """
    least, tried = needed(target_loss, delta), list[Trial[S]]()
    for setting in settings:
        losses = losses_of(setting)
        if len(losses) < least:
            raise UserError(
                f"{len(losses)} held-out prompts cannot show a loss of at most {target_loss:g} with confidence {1 - delta:g}: "
                f"at least {least} are needed, more if any of them loses; give more prompts, allow a greater loss or ask for less confidence"
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
    """Logarithm of the wealth [M] after betting on losses [N], in this order, against each expected loss in `mean` [M]."""
    odds = mean / (1 - mean)  # what a bet of 1 wins where nothing is lost
    wealth, squares, seen = np.zeros_like(mean), PRIOR_LOSSES * mean * (1 - mean), float(PRIOR_LOSSES)
    for number, loss in enumerate(losses):
        left = len(losses) - number
        missing = np.maximum(-math.log(delta) - wealth, 0)  # infinite once ruined; 0 where won, which ends the betting
        deserved = (1 - mean) * np.sqrt(2 * missing * seen / (left * squares))  # optimal for many small bets
        with np.errstate(over="ignore"):
            flawless = np.expm1(missing / left) / odds  # what wins, just, if nothing is lost from here on
        bet = np.maximum(np.minimum(deserved, LARGEST_BET), np.minimum(flawless, 1))
        with np.errstate(divide="ignore"):
            wealth = wealth + np.log1p(np.maximum(bet * (mean - loss) / (1 - mean), -1))
        squares, seen = squares + (loss - mean) ** 2, seen + 1
    return wealth
