from __future__ import annotations

import functools
import itertools

import lightning
import pytest
import torch
from learn2pd.training.canvases import BATCHES_PER_ROUND, CanvasBatch, CanvasData, CanvasStream
from learn2pd.training.causal import CausalTraining
from learn2pd.training.dllm import SMALLEST_RATIO, DiffusionTraining, mask_canvas
from learn2pd.training.running import Schedule
from lightning.pytorch.callbacks import ModelCheckpoint
from transformers import LlamaConfig, LlamaForCausalLM

from learn2pd.data.tasks import TASK_NAMES, build_task
from learn2pd.errors import UserError
from learn2pd.models.llada import LLaDAConfig, LLaDAModelLM
from learn2pd.training import canvases
from learn2pd.training.checkpoint_io import SafetensorsCheckpointIO

LENGTH, MASK_ID, EOT_ID = 320, 1, 0


@pytest.fixture
def small_rounds(monkeypatch):
    monkeypatch.setattr(canvases, "PROBLEMS_PER_ROUND", 48)


def stream(tokenizer, **options):
    return CanvasStream([build_task(name) for name in TASK_NAMES], tokenizer, LENGTH, 0.2, 0.4, 7, **options)


def take(source, count):
    return list(itertools.islice(source, count))


def equal(one: CanvasBatch, other: CanvasBatch) -> bool:
    return one.tokens.equal(other.tokens) and one.prompt_mask.equal(other.prompt_mask) and one.seed == other.seed


@pytest.mark.parametrize("start", [0, 3, BATCHES_PER_ROUND, BATCHES_PER_ROUND + 5])
def test_a_stream_started_later_goes_on_where_the_first_would_be(start, tokenizer, small_rounds):
    whole = take(stream(tokenizer), start + 4)[start:]
    later = take(stream(tokenizer, start=start), 4)
    assert all(map(equal, whole, later))
    assert len(whole) == len(later)


def test_every_round_has_the_same_number_of_batches(tokenizer):
    """The number of the first batch of a round is computed from it."""
    assert [len(stream(tokenizer).round(number)) for number in range(3)] == [BATCHES_PER_ROUND] * 3


def test_batches_differ_and_hold_prompt_then_answer_then_end_of_text(tokenizer, small_rounds):
    batches = take(stream(tokenizer), 2 * BATCHES_PER_ROUND)
    assert len({batch.seed for batch in batches}) == len(batches)
    for batch in batches:
        assert batch.tokens.shape[1] <= LENGTH
        assert (batch.prompt_mask.long().diff(dim=1) <= 0).all()  # a prompt comes first and in one piece
        assert (batch.tokens != MASK_ID).all()
        ended = (batch.tokens == EOT_ID).long().cummax(1).values
        assert ((batch.tokens == EOT_ID) == ended.bool()).all()  # nothing follows the first end of text


def test_no_problem_of_the_training_stream_is_in_the_validation_stream(tokenizer, small_rounds):
    def texts(split):
        batches = take(stream(tokenizer, split=split), 16)
        return {tokenizer.decode(row[prompt]) for batch in batches for row, prompt in zip(batch.tokens, batch.prompt_mask, strict=True)}

    assert not texts("train") & texts("validation")


def canvas(rows=64, length=50, prompt=10, seed=5):
    prompt_mask = torch.zeros(rows, length, dtype=torch.bool)
    prompt_mask[:, :prompt] = True
    return CanvasBatch(torch.full((rows, length), 9), prompt_mask, seed)


def test_the_prompt_is_never_masked_and_the_rest_is_left_as_it_is():
    batch = canvas()
    inputs, masked, _ = mask_canvas(batch, MASK_ID)
    assert not (masked & batch.prompt_mask).any()
    assert (inputs[masked] == MASK_ID).all()
    assert (inputs[~masked] == batch.tokens[~masked]).all()


def test_the_weight_is_one_over_the_share_that_is_masked():
    batch = canvas(rows=40, length=4000, prompt=0)
    _, masked, weight = mask_canvas(batch, MASK_ID)
    share = masked.float().mean(1)
    assert ((1 / weight[:, 0] - share).abs() < 0.04).all()
    assert ((weight >= 1) & (weight <= 1 / SMALLEST_RATIO + 1e-3)).all()


def test_mask_ratios_are_spread_evenly_over_a_batch():
    ratio = 1 / mask_canvas(canvas(rows=50, prompt=0), MASK_ID)[2][:, 0]
    assert ((ratio * 50).long().bincount(minlength=50) - 1).abs().max() <= 1
    assert ratio.min() < 0.03
    assert ratio.max() > 0.97


def test_masking_is_a_function_of_the_batch_seed():
    first, again, other = (mask_canvas(canvas(seed=seed), MASK_ID)[1] for seed in (1, 1, 2))
    assert first.equal(again)
    assert not first.equal(other)


def tiny_training(total_steps=6):
    torch.manual_seed(3)
    config = LLaDAConfig(d_model=16, n_layers=1, n_heads=2, mlp_hidden_size=16, vocab_size=400, mask_token_id=MASK_ID, eos_token_id=EOT_ID)
    return DiffusionTraining(LLaDAModelLM(config), schedule(total_steps))


def schedule(total_steps):
    return Schedule(
        total_steps, 2, 0.5, muon_lr=0.02, adam_lr=0.003, weight_decay=0.1, precision="32", checkpoint_every_steps=1, validate_every_steps=1
    )


def tiny_verifier_training():
    torch.manual_seed(3)
    config = LlamaConfig(vocab_size=400, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, eos_token_id=EOT_ID)
    return CausalTraining(LlamaForCausalLM(config), schedule(6))


def train(tokenizer, folder, steps, resume=None):
    """Weights after `steps` batches in all, and the checkpoint of the last."""
    training = tiny_training()
    keep = ModelCheckpoint(dirpath=folder, filename="last", every_n_train_steps=1, save_top_k=1, enable_version_counter=False)
    trainer = lightning.Trainer(
        max_steps=steps, accelerator="cpu", plugins=[SafetensorsCheckpointIO()], callbacks=[keep], logger=False, default_root_dir=folder,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0, use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(training, CanvasData(functools.partial(stream, tokenizer)), ckpt_path=resume)
    trainer.save_checkpoint(folder / "end.ckpt")
    return {name: value.clone() for name, value in training.state_dict().items()}


@pytest.mark.filterwarnings("ignore")
def test_a_resumed_run_ends_with_the_weights_of_the_uninterrupted_one(tokenizer, small_rounds, tmp_path):
    for folder in ("whole", "part", "rest"):
        (tmp_path / folder).mkdir()
    whole = train(tokenizer, tmp_path / "whole", 6)
    part = train(tokenizer, tmp_path / "part", 3)
    rest = train(tokenizer, tmp_path / "rest", 6, resume=tmp_path / "part" / "end.ckpt")
    assert any(not whole[name].equal(part[name]) for name in whole)
    assert all(whole[name].equal(rest[name]) for name in whole)


@pytest.mark.parametrize("build", [tiny_training, tiny_verifier_training])
def test_training_lowers_the_loss(build, tokenizer, small_rounds):
    training = build()
    batch = take(stream(tokenizer), 1)[0]
    optimizer = torch.optim.AdamW(training.parameters(), lr=0.01)
    losses = []
    for _ in range(15):
        loss, _ = training.loss(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_the_learning_rate_warms_up_stays_and_falls_to_nothing():
    training = tiny_training(total_steps=100)
    rates = [training.schedule.rate(step) for step in range(101)]
    assert rates[0] < rates[1] == 1.0
    assert rates[49] == 1.0
    assert rates[50:] == sorted(rates[50:], reverse=True)
    assert rates[100] == 0.0


@pytest.mark.parametrize("build", [tiny_training, tiny_verifier_training])
def test_every_parameter_is_trained_by_exactly_one_optimizer(build):
    training = build()
    groups = [parameter for optimizer in training.configure_optimizers() for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(map(id, groups)) == sorted(map(id, training.parameters()))


def test_a_verifier_is_trained_on_the_answer_and_its_end_and_on_nothing_else():
    """Whatever stands in the prompt's targets or after the end of text leaves the loss as it is."""
    training = tiny_verifier_training()
    tokens = torch.tensor([[5, 6, 7, 8, EOT_ID, EOT_ID, EOT_ID]])
    prompt_mask = torch.tensor([[True, True, False, False, False, False, False]])
    loss, _ = training.loss(CanvasBatch(tokens, prompt_mask, 0))
    logits = training.model(tokens).logits[0]
    wanted = torch.nn.functional.cross_entropy(logits[1:4], tokens[0, 2:5])
    assert torch.allclose(loss, wanted)


def test_a_length_that_no_problem_fits_is_refused(tokenizer, small_rounds):
    with pytest.raises(UserError, match="train_length=8"):
        CanvasStream([build_task("math")], tokenizer, 8, 0.2, 0.4, 7).round(0)
