"""The score of an answer equals the sum over all maskings, written out; estimates scatter around it."""

from __future__ import annotations

import itertools

import pytest
import torch

from learn2pd.harness.likelihood import are_greedy, blocks_of, log_likelihoods, maskings
from tests.fixtures import CAUSAL_BLOCK

FAMILIES = ("llada", "dream", "sdar", "llada2", "fast_dllm_v2")


@pytest.fixture
def model(request, tiny_model, tiny_dream, tiny_family):
    name = request.param
    return {"llada": tiny_model, "dream": tiny_dream}.get(name) or tiny_family(name)


def bound(model, before, block) -> float:
    """The mean over all maskings, one sequence a forward, by the network's own `forward`."""
    network = model.adapter.network
    total = 0.0
    for count in range(1, len(block) + 1):
        ways = list(itertools.combinations(range(len(block)), count))
        for hidden in ways:
            tokens = torch.tensor([[*before, *block]])
            places = [len(before) + place for place in hidden]
            tokens[0, places] = model.spec.mask_id
            with torch.no_grad():
                logits = network(tokens).logits[0].double()
            if model.spec.shifted_logits:
                logits = torch.cat((logits[:1], logits[:-1]))
            log_p = logits.log_softmax(-1)
            total += sum(float(log_p[len(before) + place, block[place]]) for place in hidden) / count / len(ways)
    return total


@pytest.mark.parametrize("model", FAMILIES, indirect=True)
@pytest.mark.parametrize(("prompt_length", "length"), [(5, 1), (6, 3), (7, 4), (8, 3)])
def test_a_short_answer_is_scored_exactly(model, make_prompts, prompt_length, length):
    prompt, answer = make_prompts([prompt_length, length])
    expected = sum(bound(model, *part) for part in blocks_of(prompt, answer, model.spec.causal_block))
    (got,) = log_likelihoods(model.adapter, [(prompt, answer)], samples=15, rows=4, seed=0)
    assert got == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("model", ["sdar", "llada2", "fast_dllm_v2"], indirect=True)
def test_a_block_causal_model_is_scored_block_by_block(model, make_prompts):
    prompt, answer = make_prompts([6, 4])  # two tokens end the block of the prompt, two begin the next one
    parts = blocks_of(prompt, answer, CAUSAL_BLOCK)
    assert [len(block) for _, block in parts] == [2, 2]
    (got,) = log_likelihoods(model.adapter, [(prompt, answer)], samples=3, rows=2, seed=0)  # 3 maskings a block: exact
    assert got == pytest.approx(sum(bound(model, *part) for part in parts), abs=1e-9)


@pytest.mark.parametrize("model", ["llada", "sdar"], indirect=True)
def test_an_estimate_scatters_around_the_exact_score(model, make_prompts):
    pair = tuple(make_prompts([3, 5]))
    (exact,) = log_likelihoods(model.adapter, [pair], samples=31, rows=31, seed=0)
    estimates = torch.tensor(
        [log_likelihoods(model.adapter, [pair], samples=8, rows=64, seed=seed)[0] for seed in range(60)]
    )
    assert len(estimates.unique()) > 1
    assert abs(float(estimates.mean()) - exact) < 3 * float(estimates.std()) / 60**0.5


@pytest.mark.parametrize("model", FAMILIES, indirect=True)
def test_a_score_depends_on_no_other_answer_and_on_no_batch(model, make_prompts):
    ids = make_prompts([4, 9, 11, 2, 1, 6])
    pairs = list(zip(ids[::2], ids[1::2], strict=True))
    options = {"samples": 6, "seed": 3}
    alone = [log_likelihoods(model.adapter, [pair], rows=1, **options)[0] for pair in pairs]
    together = log_likelihoods(model.adapter, pairs[::-1], rows=5, **options)[::-1]
    assert together == pytest.approx(alone, abs=1e-9)
    assert log_likelihoods(model.adapter, pairs, rows=3, samples=6, seed=4) != pytest.approx(alone, abs=1e-9)


@pytest.mark.parametrize("length", range(1, 7))
@pytest.mark.parametrize("samples", [1, 2, 5, 7, 40])
def test_the_weights_of_the_maskings_count_every_token_once(length, samples):
    hidden, weight = maskings(length, samples, torch.Generator().manual_seed(1))
    assert hidden.any(1).all()
    assert float((hidden.sum(1) * weight).sum()) == pytest.approx(length)
    if 2**length - 1 <= samples:
        assert len(hidden.unique(dim=0)) == len(hidden) == 2**length - 1
        assert (weight[:, None] * hidden).sum(0).tolist() == pytest.approx([1.0] * length)
    else:
        assert len(hidden) == samples


def test_every_number_of_masks_is_equally_likely():
    counts = torch.zeros(8)
    for seed in range(800):
        hidden, _ = maskings(7, 3, torch.Generator().manual_seed(seed))
        counts += torch.bincount(hidden.sum(1), minlength=8)
    assert float(counts[0]) == 0
    assert float((counts[1:] / counts.sum() - 1 / 7).abs().max()) < 0.03


def greedy_answer(model, prompt, length):
    """One token a step, the surest first, block by block, written out."""
    tokens = [*prompt, *[model.spec.mask_id] * length]
    block = model.spec.causal_block or len(tokens)
    while model.spec.mask_id in tokens:
        first = tokens.index(model.spec.mask_id)
        stop = min((first // block + 1) * block, len(tokens))
        with torch.no_grad():
            logits = model.adapter.network(torch.tensor([tokens[:stop]])).logits[0]
        if model.spec.shifted_logits:
            logits = torch.cat((logits[:1], logits[:-1]))
        logits[:, model.spec.mask_id] = -torch.inf
        best = logits.softmax(-1).max(-1)
        place = max((p for p in range(stop) if tokens[p] == model.spec.mask_id), key=lambda p: float(best.values[p]))
        tokens[place] = int(best.indices[place])
    return tokens[len(prompt) :]


@pytest.mark.parametrize("model", FAMILIES, indirect=True)
def test_a_greedy_answer_is_known_and_any_other_token_is_noticed(model, make_prompts):
    prompts = make_prompts([5, 12, 7])
    right = [(prompt, greedy_answer(model, prompt, length)) for prompt, length in zip(prompts, (6, 1, 10), strict=True)]
    wrong = [(prompt, [*answer[:-1], (answer[-1] + 1) % 300]) for prompt, answer in right]
    assert are_greedy(model.adapter, right + wrong, rows=4) == [True] * 3 + [False] * 3
