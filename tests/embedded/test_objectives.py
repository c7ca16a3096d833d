from __future__ import annotations

import pytest
import torch

from learn2pd.embedded.objectives import SMALLEST_RATIO, BlockDiffusion, MaskedDiffusion, NextToken, Row
from learn2pd.models.llada import LLaDAConfig, LLaDAModelLM

MASK_ID, EOT_ID = 1, 0


def generator(seed: int = 0) -> torch.Generator:
    """A generator in the state of a seed."""
    return torch.Generator().manual_seed(seed)


def rows(seed: int = 0, count: int = 5) -> list[Row]:
    """Rows of unequal lengths."""
    drawn = []
    for index in range(count):
        numbers = torch.randint(2, 40, (20,), generator=generator(seed + index)).tolist()
        prompt, answer = 3 + index % 4, 4 + index % 5
        drawn.append(Row(numbers[:prompt], numbers[prompt : prompt + answer], prompt + answer + 1 + index % 3))
    return drawn


def network() -> LLaDAModelLM:
    """A tiny random LLaDA in float64."""
    torch.manual_seed(0)
    config = LLaDAConfig(
        d_model=16, n_layers=2, n_heads=2, mlp_hidden_size=16, vocab_size=40, mask_token_id=MASK_ID, eos_token_id=EOT_ID
    )
    return LLaDAModelLM(config).double().eval()


def logits(model, batch):
    """The logits [R, Q, V] of a micro-batch."""
    return model.score(model.hidden(batch.inputs, batch.positions, batch.attention))


def test_masked_diffusion_masks_answers_only_and_keeps_the_rest():
    some = rows()
    batch = MaskedDiffusion(MASK_ID, EOT_ID)(some, torch.linspace(0, 0.99, len(some)), generator())
    for row, inputs, scored in zip(some, batch.inputs, batch.scored, strict=True):
        assert not scored[: len(row.prompt)].any()
        assert inputs[: len(row.prompt)].tolist() == row.prompt
        assert (inputs[scored] == MASK_ID).all()
        written = torch.tensor((row.prompt + row.answer + [EOT_ID] * 20)[: len(inputs)])
        assert (inputs[~scored] == written[~scored]).all()
    assert len(batch.targets) == len(batch.weights) == int(batch.scored.sum())


def test_the_weight_is_one_over_the_share_that_is_masked():
    wide = [Row([], [5] * 4000, 4001)] * 20
    batch = MaskedDiffusion(MASK_ID, EOT_ID)(wide, torch.linspace(0, 0.99, 20), generator())
    share = batch.scored.double().mean(1)
    weight = batch.weights.split(batch.scored.sum(1).tolist())
    for index in range(1, 20):
        assert abs(1 / float(weight[index][0]) - float(share[index])) < 0.04
    assert float(batch.weights.max()) <= 1 / SMALLEST_RATIO + 1e-3


@pytest.mark.parametrize("objective", [MaskedDiffusion(MASK_ID, EOT_ID), BlockDiffusion(MASK_ID, EOT_ID, 4, "grid")])
def test_masking_is_a_function_of_the_generator(objective):
    some = rows()
    quantiles = torch.linspace(0, 0.99, len(some))
    first, again, other = (objective(some, quantiles, generator(seed)).scored for seed in (1, 1, 2))
    assert first.equal(again)
    assert not first.equal(other)


@pytest.mark.parametrize("alignment", ["prompt", "grid"])
@pytest.mark.parametrize("block_length", [1, 3, 4])
def test_a_noised_block_is_predicted_as_if_it_stood_alone_after_the_clean_ones(alignment, block_length):
    """The obvious twin of two copies side by side: clean tokens up to a block, and then that block noised.

    A position sees its whole block and nothing after it.
    """
    model = network()
    objective = BlockDiffusion(MASK_ID, EOT_ID, block_length, alignment)
    for row in rows():
        batch = objective([row], torch.zeros(1), generator(3))
        length = int(batch.positions.max()) + 1
        copied = batch.inputs[0, length:]
        first = length - len(copied)
        for position in range(first, length):
            if not batch.scored[0, length + position - first]:
                continue
            offset = 0 if alignment == "grid" else len(row.prompt)
            start = position - (position - offset) % block_length
            end = min(start + block_length, length)
            tokens = torch.cat((batch.inputs[0, :start], copied[start - first : end - first]))[None]
            blocks = (
                torch.arange(end) // block_length
                if alignment == "grid"
                else (torch.arange(end) - offset).div(block_length, rounding_mode="floor")
            )
            blocks = blocks.clamp(min=-1)
            seen = (blocks[:, None] >= blocks[None, :])[None]
            alone = model.score(model.hidden(tokens, attention_mask=seen))[0, position]
            together = logits(model, batch)[0, length + position - first]
            assert torch.allclose(alone, together, atol=1e-9)


def test_blocks_of_one_token_score_every_answer_token_once_with_weight_one():
    some = rows()
    batch = BlockDiffusion(MASK_ID, EOT_ID, 1, "prompt")(some, torch.zeros(len(some)), generator())
    assert (batch.weights == 1).all()
    assert len(batch.targets) == batch.tokens
    assert batch.targets.tolist() == [
        token for row in some for token in (row.answer + [EOT_ID] * 20)[: row.length - len(row.prompt)]
    ]


@pytest.mark.parametrize("block_length", [2, 4, 7])
def test_every_block_has_a_mask_and_the_weights_make_up_for_the_rest(block_length):
    objective = BlockDiffusion(MASK_ID, EOT_ID, block_length, "prompt")
    some = rows(count=8)
    total, weight = 0, 0.0
    for seed in range(300):
        batch = objective(some, torch.zeros(len(some)), generator(seed))
        total += batch.tokens
        weight += float(batch.weights.sum())
        for row, positions, scored in zip(some, batch.positions, batch.scored, strict=True):
            masked = set((positions[scored] - len(row.prompt)).div(block_length, rounding_mode="floor").tolist())
            blocks = -(-(row.length - len(row.prompt)) // block_length)
            assert masked == set(range(blocks))
    assert weight == pytest.approx(total)  # exactly: k masked tokens of weight m / k add up to m


@pytest.mark.parametrize(
    "objective",
    [
        MaskedDiffusion(MASK_ID, EOT_ID),
        BlockDiffusion(MASK_ID, EOT_ID, 1, "prompt"),
        BlockDiffusion(MASK_ID, EOT_ID, 3, "prompt"),
        BlockDiffusion(MASK_ID, EOT_ID, 4, "grid"),
        NextToken(EOT_ID),
    ],
    ids=["masked", "blocks of one", "blocks", "grid", "next"],
)
def test_what_is_asked_of_a_row_does_not_depend_on_the_rows_beside_it(objective):
    """A row gives the same inputs, targets, weights and outputs alone and padded beside longer rows."""
    some = rows(count=6)
    quantiles = torch.linspace(0.3, 0.99, len(some))
    causal = isinstance(objective, NextToken)
    model = network()
    drawn = generator(5)
    alone = [objective([row], quantile[None], drawn) for row, quantile in zip(some, quantiles, strict=True)]
    together = objective(some, quantiles, generator(5))
    assert torch.cat([one.targets for one in alone]).equal(together.targets)
    assert torch.allclose(torch.cat([one.weights for one in alone]), together.weights)
    assert sum(one.tokens for one in alone) == together.tokens
    if not causal:
        outputs = torch.cat([logits(model, one)[one.scored] for one in alone])
        assert torch.allclose(outputs, logits(model, together)[together.scored], atol=1e-9)


def test_next_token_scores_the_answer_and_its_end_and_nothing_else():
    some = rows()
    batch = NextToken(EOT_ID)(some, torch.zeros(len(some)), generator())
    assert batch.targets.tolist() == [token for row in some for token in [*row.answer, EOT_ID]]
    for row, inputs, scored in zip(some, batch.inputs, batch.scored, strict=True):
        assert inputs[scored].tolist() == [row.prompt[-1], *row.answer]
