"""The exact likelihood under the model of what a policy wrote, by the policy's own order.

A policy that commits one position a step defines a distribution over texts. The probability of a text is the product,
over the positions in the order of their commits, of the model's probability of the token, given the prompt and the
tokens that were committed before; masks stand at all other positions of the canvas. The order may depend on what was
written before, so this product is an exact likelihood, and not a bound (DUEL, arXiv 2603.01367).

A policy that commits several positions in one step takes each token's probability as if the others were still masked.
Here the tokens of such a step are put one after the other, the most confident first. The sum over the text of

    log p(token | what was committed in earlier steps) - log p(token | that and the step's tokens before it)

is what the *joint* commits cost, in nats. It is the total correlation of the joint commits at the text that was
written, with its sign turned: above 0 where tokens were likely each alone and are unlikely together, such as the halves
of two different names, and below 0 where they confirm each other. It is 0 for one token a step.

The likelihood is that of the model, without a cache and without the cut of a stop rule, so that all methods are
measured alike. It counts the answer and its end-of-text; a token that was taken back and written again counts where it
was written last. It takes a forward of one row for every counted token.

In the shapes, G is the number of positions of the canvas and C of the counted positions of an answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from learn2pd.caches.none import NoCache
from learn2pd.evaluation.outcomes import Likelihood, Outcome
from learn2pd.loop.step import ForwardStep
from learn2pd.loop.stopwatch import Stopwatch
from learn2pd.models.loading import Model
from learn2pd.types import GREEDY, DecodeState


def likelihood(
    model: Model,
    prompts: Sequence[Sequence[int]],
    outcome: Outcome,
    given: Tensor | None,
    batch_size: int,
    progress: Callable[[int], object] | None = None,
) -> Likelihood:
    """Compute the likelihood of every answer of an outcome.

    Args:
        model: the model.
        prompts: the token ids of the outcome's prompts.
        outcome: the answers, with the steps of their commits.
        given: [N, G] long, the tokens that stood from the start, -1 elsewhere; None for none.
        batch_size: the rows of a forward.
        progress: a function that receives the number of answers that are finished.

    Returns:
        The log-likelihoods.
    """
    own_order, joint, counted = [], [], []
    for number, prompt in enumerate(prompts):
        tokens = torch.from_numpy(outcome.tokens[number]).long()
        steps = torch.from_numpy(outcome.committed_at[number]).long()
        start = torch.full_like(tokens, -1) if given is None else given[number]
        alone, together = _answer(model, prompt, tokens, steps, start, int(outcome.lengths[number]), batch_size)
        own_order.append(float(alone.sum()))
        joint.append(float(together.sum()))
        counted.append(len(alone))
        if progress:
            progress(1)
    return Likelihood(np.array(own_order), np.array(joint), np.array(counted))


def _answer(
    model: Model, prompt: Sequence[int], tokens: Tensor, steps: Tensor, given: Tensor, length: int, batch_size: int
) -> tuple[Tensor, Tensor]:
    """Return the log-probabilities [C] of an answer's tokens by the policy's own order, and those of its joint commits.

    Args:
        model: the model.
        prompt: the token ids of the prompt.
        tokens: [G] long, the answer.
        steps: [G] long, the step of every commit, -1 where there was none.
        given: [G] long, the tokens that stood from the start, -1 elsewhere.
        length: the tokens of the answer; the end-of-text behind them counts too.
        batch_size: the rows of a forward.
    """
    counted = steps.ge(0) & (torch.arange(len(steps)) <= length)
    moments = steps[counted].unique().tolist()
    before = [torch.where((steps >= 0) & (steps < moment), tokens, given) for moment in moments]
    at_once = [counted & (steps == moment) for moment in moments]
    first = _log_probability(model, prompt, before, at_once, tokens, batch_size)
    contexts, positions, log_first = [], [], []
    for context, together, log_p in zip(before, at_once, first, strict=True):
        places = together.nonzero()[:, 0]
        order = log_p.argsort(descending=True, stable=True)
        log_first.append(log_p[order])
        for place in places[order].tolist():
            contexts.append(context)
            positions.append(torch.arange(len(tokens)) == place)
            context = torch.where(positions[-1], tokens, context)
    joint = torch.cat(log_first) if log_first else torch.zeros(0, dtype=torch.double)
    follows = _follows(at_once)
    rest = _log_probability(
        model,
        prompt,
        [context for context, later in zip(contexts, follows, strict=True) if later],
        [position for position, later in zip(positions, follows, strict=True) if later],
        tokens,
        batch_size,
    )
    own_order = joint.clone()
    own_order[torch.tensor(follows, dtype=torch.bool)] = torch.cat(rest) if rest else torch.zeros(0, dtype=torch.double)
    return own_order, joint


def _follows(at_once: Sequence[Tensor]) -> list[bool]:
    """Say for each token, in its order, whether another token of the same step comes before it."""
    return [place > 0 for together in at_once for place in range(int(together.sum()))]


def _log_probability(
    model: Model,
    prompt: Sequence[int],
    contexts: Sequence[Tensor],
    scored: Sequence[Tensor],
    tokens: Tensor,
    batch_size: int,
) -> list[Tensor]:
    """Return the log-probabilities of tokens, each context in a row of its own.

    Args:
        model: the model.
        prompt: the token ids of the prompt.
        contexts: for each row, [G] long, the tokens that the model sees, -1 where it sees a mask.
        scored: for each row, [G] bool, the positions whose tokens are scored.
        tokens: [G] long, the answer.
        batch_size: the rows of a forward.

    Returns:
        For each row, the log-probabilities of its scored tokens, in the order of the positions.
    """
    adapter = model.adapter
    forward = ForwardStep(adapter, frozenset({"logits"}), GREEDY, Stopwatch(adapter.device))
    scores: list[Tensor] = []
    for first in range(0, len(contexts), batch_size):
        seen = torch.stack(list(contexts[first : first + batch_size]))
        score = torch.stack(list(scored[first : first + batch_size]))
        state = DecodeState.start([prompt] * len(seen), seen.shape[1], model.spec, given=seen, device=adapter.device)
        host = DecodeState.start([prompt] * len(seen), seen.shape[1], model.spec, given=seen)
        plans, _ = NoCache().plan(host, score, None)
        _, prediction, _ = forward(state, host, plans, None)
        assert prediction.logits is not None, "the step was asked for logits"
        written = tokens.expand_as(score)[score].to(adapter.device)
        log_p = prediction.logits.log_softmax(-1).gather(1, written[:, None])[:, 0].double().cpu()
        scores += log_p.split(score.sum(1).tolist())
    return scores
