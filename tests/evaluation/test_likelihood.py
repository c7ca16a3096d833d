"""The exact likelihood against a slow reference, and against what the loop itself saw."""

import dataclasses

import numpy as np
import pytest
import torch

from learn2pd import FixedPolicy, Method, NoStop, ThresholdPolicy, decode
from learn2pd.evaluation.compare import build_rows, measure
from learn2pd.evaluation.likelihood import likelihood
from learn2pd.evaluation.outcomes import DECODED, cached_likelihood
from learn2pd.schedulers.blocks import BlocksScheduler
from learn2pd.statistics.bootstrap import Bootstrap
from tests.evaluation.synthetic import outcome

LENGTH = 12


def decoded(model, policy, prompts):
    """Decode with a policy; give an outcome, and for each prompt the log-probabilities that the loop saw, [N, G]."""
    seen = torch.zeros(len(prompts), LENGTH)

    def watch(step):
        seen[step.state.index] += step.log_probability

    method = Method(policy, BlocksScheduler(LENGTH), stop=NoStop())
    result = decode(model, prompts, method, gen_length=LENGTH, on_step=watch)
    arrays = {name: getattr(result, name).numpy().astype(kind) for name, kind in DECODED.items()}
    blank = outcome("any", "threshold", forwards=[1] * len(prompts))
    return dataclasses.replace(blank, **arrays), seen.double().numpy()


def reference(model, prompt, tokens, steps, length):
    """Sum the log-probabilities of one answer, a token and a forward at a time."""
    canvas = torch.full((LENGTH,), model.spec.mask_id)
    total = 0.0
    for step in range(int(steps.max()) + 1):
        inside = (steps == step).nonzero()[:, 0].tolist()
        before = canvas.clone()
        for place in sorted(
            (p for p in inside if p <= length), key=lambda p: -log_p(model, prompt, before)[p, tokens[p]]
        ):
            total += float(log_p(model, prompt, canvas)[place, tokens[place]])
            canvas[place] = tokens[place]
        canvas[inside] = tokens[inside]
    return total


@torch.no_grad()
def log_p(model, prompt, canvas):
    logits = model.adapter.network(torch.cat((torch.tensor(prompt), canvas))[None]).logits[0, len(prompt) :]
    logits[:, model.spec.mask_id] = -torch.inf
    return logits.log_softmax(-1)


@pytest.fixture(scope="module")
def prompts(make_prompts):
    return make_prompts([3, 9, 14])


@pytest.mark.parametrize("policy", [FixedPolicy(), ThresholdPolicy(0.3), ThresholdPolicy(0.05)], ids=lambda p: p.name)
def test_both_sums_are_those_of_a_slow_reference_and_of_the_loop(tiny_model, prompts, policy):
    written, seen = decoded(tiny_model, policy, prompts)
    ids = prompts
    result = likelihood(tiny_model, ids, written, None, batch_size=5)
    counted = np.arange(LENGTH) <= written.lengths[:, None]
    assert result.counted.tolist() == counted.sum(1).tolist()
    assert result.joint == pytest.approx((seen * counted).sum(1), abs=1e-3)
    tokens, steps = torch.from_numpy(written.tokens).long(), torch.from_numpy(written.committed_at).long()
    for number, prompt in enumerate(ids):
        slow = reference(tiny_model, prompt, tokens[number], steps[number], int(written.lengths[number]))
        assert result.own_order[number] == pytest.approx(slow, abs=1e-3)


def test_one_token_a_step_pays_nothing_for_joint_commits(tiny_model, prompts):
    written, _ = decoded(tiny_model, FixedPolicy(), prompts)
    assert written.forwards.tolist() == [LENGTH] * 3
    result = likelihood(tiny_model, prompts, written, None, batch_size=4)
    assert result.joint == pytest.approx(result.own_order)


def test_given_tokens_stand_from_the_start_and_are_not_counted(tiny_model, prompts):
    written, _ = decoded(tiny_model, ThresholdPolicy(0.3), prompts[:1])
    given = torch.full((1, LENGTH), -1)
    given[0, :4] = torch.from_numpy(written.tokens[0, :4]).long()
    steps = written.committed_at.copy()
    steps[0, :4] = -1
    fixed = dataclasses.replace(written, committed_at=steps)
    result = likelihood(tiny_model, [prompts[0]], fixed, given, batch_size=4)
    assert result.counted[0] == ((np.arange(LENGTH) <= written.lengths[0]) & (steps[0] >= 0)).sum()


def test_likelihoods_are_kept_on_disk_with_the_key_of_their_outcome(tiny_model, prompts, tmp_path):
    written, _ = decoded(tiny_model, ThresholdPolicy(0.3), prompts[:1])
    calls = []

    def produce():
        calls.append(1)
        return likelihood(tiny_model, [prompts[0]], written, None, batch_size=4)

    first, again = (cached_likelihood(tmp_path / "one.safetensors", "key", produce) for _ in range(2))
    cached_likelihood(tmp_path / "one.safetensors", "another key", produce)
    assert len(calls) == 2
    assert again.own_order.tolist() == first.own_order.tolist()


def test_effective_tokens_subtract_what_was_taken_back_and_overwritten():
    fields = measure(
        [
            outcome("plain", "fixed", lengths=(10, 10), forwards=(10, 10)),
            outcome("bold", "wino", lengths=(10, 10), forwards=(5, 5), revoked=3, edited=1),
            outcome("lost", "wino", lengths=(1, 1), forwards=(5, 5), revoked=3),
        ],
        Bootstrap(20, 0),
    )
    rows = build_rows(fields)
    assert [row["tokens_per_forward"] for row in rows] == pytest.approx([1, 2, 0.2])
    assert [row["effective_tokens_per_forward"] for row in rows] == pytest.approx([1, 1.2, 0])
    assert [row["nats_per_token"] for row in rows] == [None] * 3
