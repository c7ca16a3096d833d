"""One step over a block is a step of the loop, for every policy that can decide from a block alone.

An outside loop, as an engine has one, runs the model itself and asks the policy block by block.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learn2pd.errors import UserError
from learn2pd.loop.block import BlockMemory, block_step, start_block
from learn2pd.policies.search import SearchPolicy
from learn2pd.policies.threshold import ThresholdPolicy
from learn2pd.registry import COMPONENTS
from learn2pd.schedulers.blocks import BlocksScheduler
from learn2pd.types import GREEDY, Sampling, Window
from tests.contract.helpers import BLOCK, GEN, Reviser, oracle, policies, run

READ_MORE = {"klass", "prophet", "dawn", "apple", "apple_window", "apd", "oracle", "wino", "filter_back", "keep"}
QUOTA = {"fixed_half", "entropy", "margin"}  # their quota is a share of the canvas
REVISERS = {"revoking": Reviser(0.5, 6, edits=False), "editing": Reviser(0.5, 6, edits=True)}


def able() -> dict:
    return {name: policy for name, policy in policies().items() if name not in READ_MORE | QUOTA} | REVISERS


def logits_of(model, prompt: list[int], canvas: torch.Tensor) -> torch.Tensor:
    """The logits [1, G, V] of the canvas, as a model of an engine gives them."""
    tokens = torch.cat((torch.tensor([prompt]), canvas), dim=1)
    logits = model.adapter.network(tokens).logits
    first = len(prompt) - int(model.spec.shifted_logits)
    return logits[:, first : first + canvas.shape[1]]


class Request:
    """One prompt in an engine: the canvas, the block that is open, and the memory of its policy."""

    def __init__(self, model, prompt, policy, number=0, alignment="prompt"):
        self.model, self.prompt, self.policy, self.number = model, prompt, policy, number
        self.canvas = torch.full((1, GEN), model.spec.mask_id)
        self.masked = torch.ones(1, GEN, dtype=torch.bool)
        self.offset = len(prompt) if alignment == "grid" else 0
        self.forwards = 0
        self.memory = None
        self.at = slice(0, 0)
        self.open_next()

    def open_next(self) -> None:
        """Open the block with the leftmost mask; the blocks lie as BlocksScheduler opens them."""
        first = int(self.masked.int().argmax())
        start = first - (first + self.offset) % BLOCK
        self.at = slice(max(start, 0), min(start + BLOCK, GEN))
        self.memory = start_block(
            self.policy,
            self.canvas[:, self.at],
            self.masked[:, self.at],
            self.model.spec.mask_id,
            self.model.spec.vocab_size,
            torch.tensor([self.number]),
            torch.tensor([self.forwards]),
        )

    @property
    def block(self):
        width = self.at.stop - self.at.start
        window = Window(torch.tensor([0]), torch.tensor([width]))
        logits = logits_of(self.model, self.prompt, self.canvas)[:, self.at]
        return logits, self.canvas[:, self.at], self.masked[:, self.at], window

    def take(self, tokens, masked, still_open: bool, memory) -> None:
        self.canvas[:, self.at] = tokens
        self.masked[:, self.at] = masked
        self.memory = memory
        self.forwards += 1
        if not still_open and self.masked.any():
            self.open_next()
        self.done = not (still_open or self.masked.any())

    done = False


def decoded(request: Request, sampling=GREEDY) -> tuple[list[int], int]:
    """What the outside loop makes of a request alone."""
    with torch.no_grad():
        while not request.done:
            step = block_step(
                request.policy, *request.block, request.memory, mask_id=request.model.spec.mask_id, sampling=sampling
            )
            request.take(step.tokens, step.masked, bool(step.open), step.memory)
    return request.canvas[0].tolist(), request.forwards


@pytest.mark.parametrize(
    ("name", "temperature"),
    [
        pytest.param(name, temperature, marks=pytest.mark.thorough if (one + other) % 2 else [])
        for one, name in enumerate(able())
        for other, temperature in enumerate((0.0, 0.8))
    ],
)
def test_blocks_outside_the_loop_are_those_of_the_loop(name, temperature, tiny_model, make_prompts):
    prompts = make_prompts([3, 17])
    policy = able()[name]
    whole = run(tiny_model, prompts, policy, temperature=temperature)
    for number, prompt in enumerate(prompts):
        tokens, forwards = decoded(Request(tiny_model, prompt, policy, number), Sampling(temperature))
        assert tokens == whole.canvas[number].tolist()
        assert forwards == int(whole.forwards[number])


@given(data=st.data())
@settings(max_examples=12)
def test_the_same_on_other_models_prompts_and_grids(data, tiny_dream, tiny_model_grouped, make_prompts):
    model = data.draw(st.sampled_from([tiny_dream, tiny_model_grouped]), label="model")
    policy = able()[data.draw(st.sampled_from(sorted(able())), label="policy")]
    length = data.draw(st.integers(1, 20), label="length")
    alignment = data.draw(st.sampled_from(["prompt", "grid"]), label="alignment")
    prompts = make_prompts([length], seed=data.draw(st.integers(0, 9), label="seed"))
    if policy.window_width is not None:
        alignment = "prompt"
    whole = run(model, prompts, policy, scheduler=BlocksScheduler(BLOCK, alignment))
    assert decoded(Request(model, prompts[0], policy, 0, alignment)) == (
        whole.canvas[0].tolist(),
        int(whole.forwards[0]),
    )


@pytest.mark.parametrize("name", ["filter", "filter_transformer", "credit", "slowfast", "remask", "revoking"])
def test_requests_that_join_and_leave_a_batch_end_as_if_each_were_alone(name, tiny_model, make_prompts):
    policy = able()[name]
    prompts = make_prompts([3, 17, 9])
    whole = run(tiny_model, prompts, policy)
    mask_id = tiny_model.spec.mask_id
    waiting = [Request(tiny_model, prompt, policy, number) for number, prompt in enumerate(prompts)]
    finished, running = [], []
    with torch.no_grad():
        while waiting or running:
            running = [*running, *waiting[:1]][::-1]  # one request joins in each step, and the order changes
            waiting = waiting[1:]
            # only blocks of one width are stacked, as engines do
            width = running[0].at.stop - running[0].at.start
            batch = [request for request in running if request.at.stop - request.at.start == width]
            logits, tokens, masked, windows = zip(*(request.block for request in batch), strict=True)
            memory = BlockMemory.stack([request.memory for request in batch])
            together = (torch.cat(part) for part in (logits, tokens, masked))
            step = block_step(policy, *together, Window.stack(windows), memory, mask_id=mask_id)
            for row, request in enumerate(batch):
                one = torch.tensor([row])
                request.take(step.tokens[one], step.masked[one], bool(step.open[row]), step.memory.rows(one))
            finished += [request for request in running if request.done]
            running = [request for request in running if not request.done]
    for request in finished:
        assert request.canvas[0].tolist() == whole.canvas[request.number].tolist()
        assert request.forwards == int(whole.forwards[request.number])


@pytest.mark.parametrize("name", sorted(READ_MORE | QUOTA))
def test_a_policy_that_reads_more_than_the_block_is_refused_in_one_line(name, tiny_model, make_prompts):
    policy = oracle(tiny_model, make_prompts([3])) if name == "oracle" else policies()[name]
    with pytest.raises(UserError, match=rf"policy '{policy.name}' needs .+; one step over a block gives it the logits"):
        Request(tiny_model, [5, 6], policy)


def test_every_registered_policy_is_tried():
    tried = {policy.name for policy in policies().values()} | {"oracle"}
    assert set(COMPONENTS["policy"]) - tried <= {"low_confidence", "entropy_sum", "search", "label_oracle"}


def test_an_oracle_that_continues_the_answer_is_refused_in_one_line(tiny_model):
    with pytest.raises(UserError, match=r"policy 'search' needs .+; one step over a block gives it the logits"):
        Request(tiny_model, [5, 6], SearchPolicy(None))


def test_a_step_commits_at_least_as_many_as_the_engine_asks_for(tiny_model):
    torch.manual_seed(0)
    logits = torch.randn(2, 6, 12)
    masked = torch.tensor([[True] * 6, [True, True] + [False] * 4])
    window = Window(torch.tensor([0, 0]), torch.tensor([6, 6]))
    tokens = torch.where(masked, 1, 5)
    step = block_step(ThresholdPolicy(1.0), logits, tokens, masked, window, mask_id=1, least=torch.tensor([3, 4]))
    assert step.commit.mask.sum(1).tolist() == [3, 2]
    assert step.commit.forced.equal(step.commit.mask)
    assert not (step.tokens[step.commit.mask] == 1).any()


def test_a_row_with_logits_that_are_not_finite_fails_alone():
    torch.manual_seed(0)
    logits = torch.randn(2, 4, 12)
    logits[1, 2] = torch.nan
    masked = torch.ones(2, 4, dtype=torch.bool)
    window = Window(torch.tensor([0, 0]), torch.tensor([4, 4]))
    step = block_step(ThresholdPolicy(0.1), logits, masked.long(), masked, window, mask_id=1)
    assert step.failed.tolist() == [False, True]
    assert not step.commit.mask[1].any()
    assert step.commit.mask[0].any()


class CommitsEverything(ThresholdPolicy):
    """A policy with a mistake."""

    def select(self, prediction, eligible, state, memory):
        commit = super().select(prediction, eligible, state, memory)
        return type(commit)(eligible | ~eligible)


def test_a_policy_that_commits_what_it_may_not_is_refused():
    masked = torch.tensor([[True, False]])
    window = Window(torch.tensor([0]), torch.tensor([2]))
    with pytest.raises(UserError, match="commits positions that are not eligible"):
        block_step(CommitsEverything(), torch.randn(1, 2, 8), masked.long(), masked, window, mask_id=1)
