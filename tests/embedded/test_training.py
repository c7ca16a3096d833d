from __future__ import annotations

import functools
import itertools
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch

from learn2pd.cli.stages.pretraining import run_pretraining as run
from learn2pd.data.reading import read_records
from learn2pd.data.tasks.slots import SlotsTask
from learn2pd.embedded.examples import ProblemExamples, RequestExamples
from learn2pd.embedded.networks import KINDS as NETWORKS
from learn2pd.embedded.objectives import BlockDiffusion, MaskedDiffusion, NextToken
from learn2pd.embedded.stream import LARGEST_TAIL, BatchStream, Shape, StreamData
from learn2pd.embedded.training import LanguageTraining, Schedule
from learn2pd.errors import UserError
from learn2pd.registry import GENERATED_TASKS, build_task
from tests.embedded.helpers import KINDS, REQUESTS, ROOT, exported, metrics, tiny, tiny_config, write_config

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's


def requests(first, last):
    """Some entries of the file of requests, as prompts with records."""
    entries = [row.fields for row in read_records(REQUESTS).rows][first:last]
    return [(entry["prompt"], SlotsTask().facts(entry["prompt"], entry["answer"])["record"]) for entry in entries]


SOURCES = {
    "problems": ProblemExamples([build_task(name) for name in GENERATED_TASKS]),
    "requests": RequestExamples(requests(0, 300), requests(300, 420), 0.5, 0.2),
}


def objectives(tokenizer):
    """Every objective, by a name for the test's id."""
    mask_id, eot_id = tokenizer.mask_token_id, tokenizer.eos_token_id
    return {
        "masked": MaskedDiffusion(mask_id, eot_id),
        "blocks": BlockDiffusion(mask_id, eot_id, 4, "grid"),
        "next": NextToken(eot_id),
    }


def stream(tokenizer, source="problems", objective="masked", seed=7, start=0, micro_tokens=1500, **options):
    """A stream of small batches."""
    shape = Shape(**{"batch_examples": 12, "length": 320, "long_share": 0.1, "prefix_share": 0.5} | options)
    return BatchStream(
        SOURCES[source], tokenizer, objectives(tokenizer)[objective], shape, seed, micro_tokens, start=start
    )


def batch_of(tokenizer, objective, number=0, **options):
    """One batch of problems."""
    return stream(tokenizer, objective=objective, **{"long_share": 0.03} | options).batch(number)


def equal(one, other):
    """Whether two batches hold the same numbers in the same micro-batches."""
    if len(one) != len(other):
        return False
    for left, right in zip(one, other, strict=True):
        for before, after in zip(left, right, strict=True):
            same = torch.equal(before, after) if isinstance(before, torch.Tensor) else before == after
            if not same:
                return False
    return True


def written(part):
    """The rows of a micro-batch of masked diffusion with the masked tokens put back."""
    tokens = part.inputs.clone()
    tokens[part.scored] = part.targets
    return tokens


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("start", [0, 1, 4])
def test_a_stream_started_later_goes_on_where_the_first_would_be(start, source, tokenizer):
    whole = list(itertools.islice(stream(tokenizer, source), start + 3))[start:]
    later = list(itertools.islice(stream(tokenizer, source, start=start), 3))
    assert all(map(equal, whole, later))
    assert not equal(whole[0], whole[1])


@pytest.mark.parametrize("source", SOURCES)
def test_a_batch_depends_on_its_number_and_the_seed_and_on_nothing_drawn_before(source, tokenizer):
    numbers = [5, 0, 4, 0, 5]
    streams = [stream(tokenizer, source, seed=seed) for seed in (7, 7, 8)]
    drawn = [[one.batch(number) for number in numbers] for one in streams]
    torch.rand(3)
    random.random()
    assert all(map(equal, drawn[0], drawn[1]))
    assert equal(drawn[0][0], drawn[0][4])
    assert not equal(drawn[0][0], drawn[0][2])
    assert not any(map(equal, drawn[0], drawn[2]))


@pytest.mark.parametrize("workers", [1, 3])
def test_processes_that_prepare_batches_give_the_same_ones_in_the_same_order(workers, tokenizer):
    data = StreamData(functools.partial(stream, tokenizer), workers)
    prepared = list(itertools.islice(data.train_dataloader(), 7))
    assert all(map(equal, prepared, stream(tokenizer)))


@pytest.mark.parametrize("source", SOURCES)
def test_no_training_example_is_a_validation_example(source, tokenizer):
    drawn = {split: SOURCES[source].draw(split, 300, random.Random(0)) for split in ("train", "validation")}
    prompts = {split: {example.prompt for example in examples} for split, examples in drawn.items()}
    assert len(prompts["validation"]) > 50
    assert not prompts["train"] & prompts["validation"]


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("number", [0, 4])
def test_a_batch_holds_every_example_that_was_drawn_once(number, source, tokenizer):
    one = stream(tokenizer, source, micro_tokens=900, batch_examples=13, prefix_share=0.0)
    drawn = one.source.draw("train", 13, random.Random(f"7/train/{number}"))
    wanted = [f"<|user|>{example.prompt.strip()}<|assistant|>{example.answer}" for example in drawn]
    rows = [row for part in one.batch(number) for row in written(part)]
    texts = [tokenizer.decode(row).split("<|endoftext|>")[0] for row in rows]
    assert sorted(texts) == sorted(wanted)


@pytest.mark.parametrize("micro_tokens", [1, 400, 1500, 10**6])
def test_micro_batches_are_small_or_a_single_row_and_no_smaller_than_they_must_be(micro_tokens, tokenizer):
    batch = batch_of(tokenizer, "masked", micro_tokens=micro_tokens)
    for part in batch:
        assert len(part.inputs) == 1 or part.inputs.numel() <= micro_tokens
    for part, following in itertools.pairwise(batch):
        assert (len(part.inputs) + 1) * following.inputs.shape[1] > micro_tokens
    assert sum(len(part.inputs) for part in batch) == 12


def test_long_rows_are_padded_to_the_full_length_and_the_others_get_a_short_tail(tokenizer):
    for part in batch_of(tokenizer, "masked", long_share=1.0, prefix_share=0.0):
        assert part.inputs.shape[1] == 320
    for number, share in itertools.product(range(3), (0.0, 1.0)):
        for part in batch_of(tokenizer, "masked", number, micro_tokens=1, long_share=share):
            tokens = written(part)[0]
            ended = (tokens == tokenizer.eos_token_id).long()
            assert ended.sum() >= 1
            assert torch.equal(ended, ended.cummax(0).values)  # nothing follows the first end-of-text
            assert len(tokens) == 320 if share else ended.sum() <= LARGEST_TAIL + 1


def test_as_many_answers_are_begun_as_the_share_says(tokenizer):
    """A row whose answer is given in part has a prompt that goes on after the turn of the assistant."""
    assistant = tokenizer.convert_tokens_to_ids("<|assistant|>")
    for share in (0.0, 1.0):
        longer = []
        options = {"micro_tokens": 1, "long_share": 0.0, "prefix_share": share, "batch_examples": 40}
        for part in batch_of(tokenizer, "next", **options):
            last_of_prompt = int(part.scored[0].int().argmax())
            longer.append(int(part.inputs[0, last_of_prompt]) != assistant)
        assert sum(longer) >= 35 if share else not any(longer)


def test_a_length_that_no_example_fits_is_refused_by_name(tokenizer):
    with pytest.raises(UserError, match=r"shape.length=8: none of 12 examples"):
        batch_of(tokenizer, "masked", length=8)


def module_of(tokenizer, tmp_path, kind):
    """An untrained model of a kind with its optimizers, for the tokenizer of the tests."""
    torch.manual_seed(3)
    config = tiny_config(tmp_path, kind)
    return NETWORKS[config.network.kind].build(config, tokenizer)


@pytest.mark.parametrize(("kind", "objective"), [("diffusion", "masked"), ("blocks", "blocks"), ("causal", "next")])
def test_the_losses_of_the_micro_batches_add_up_to_the_loss_of_one_big_one(kind, objective, tokenizer, tmp_path):
    """Also where a larger micro-batch pads more of its rows: padding is neither seen nor scored."""
    module = module_of(tokenizer, tmp_path, kind).double()
    losses, gradients = [], []
    for micro_tokens in (700, 10**6):
        batch = batch_of(tokenizer, objective, micro_tokens=micro_tokens, long_share=0.3, batch_examples=10)
        module.zero_grad()
        parts = [loss for loss, _ in module.losses(batch)]
        sum(parts).backward()
        losses.append((len(parts), float(sum(parts).detach())))
        gradients.append([parameter.grad.clone() for parameter in module.parameters() if parameter.grad is not None])
    assert losses[0][0] > losses[1][0] == 1
    assert losses[0][1] == pytest.approx(losses[1][1], rel=1e-6)  # the entropies themselves are taken in float32
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, atol=1e-6)


@pytest.mark.parametrize(("kind", "objective"), [("diffusion", "masked"), ("blocks", "blocks"), ("causal", "next")])
def test_training_lowers_the_loss(kind, objective, tokenizer, tmp_path):
    module = module_of(tokenizer, tmp_path, kind)
    batch = batch_of(tokenizer, objective, batch_examples=4)
    optimizers = module.configure_optimizers()
    losses = []
    for _ in range(25):
        loss = sum(loss for loss, _ in module.losses(batch))
        module.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("decay_share", [0.0, 0.3, 1.0])
def test_the_learning_rate_warms_up_stays_and_falls_to_nothing(decay_share):
    schedule = Schedule(total_steps=100, warmup_steps=10, decay_share=decay_share)
    rates = [schedule.rate(step) for step in range(101)]
    last_full = 100 - round(100 * decay_share)
    assert rates[:9] == sorted(rates[:9])
    assert all(rate == 1.0 for rate in rates[9:last_full])
    assert rates[max(last_full, 10) :] == sorted(rates[max(last_full, 10) :], reverse=True)
    assert min(rates[:100]) > 0
    assert rates[100] == 0.0


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_is_trained_by_exactly_one_optimizer(kind, tokenizer, tmp_path):
    module = module_of(tokenizer, tmp_path, kind)
    muon, adam = module.configure_optimizers()
    trained = [parameter for one in (muon, adam) for group in one.param_groups for parameter in group["params"]]
    assert sorted(map(id, trained)) == sorted(map(id, module.parameters()))
    assert all(parameter.ndim == 2 for group in muon.param_groups for parameter in group["params"])
    sharp = {id(parameter) for name, parameter in module.named_parameters() if "q_proj" in name or "k_proj" in name}
    assert {id(parameter) for parameter in muon.param_groups[1]["params"]} == sharp != set()


def interrupt(monkeypatch, step, moment):
    """Ctrl-C at a step: before or after its update, or in the validation that follows it."""
    training_step, validation_step = LanguageTraining.training_step, LanguageTraining.validation_step

    def train(self, batch, index):
        if moment == "before" and self.global_step == step:
            raise KeyboardInterrupt
        training_step(self, batch, index)
        if moment == "after" and self.global_step == step + 1:
            raise KeyboardInterrupt

    def validate(self, batch, index):
        if moment == "validation" and self.global_step == step + 1 and index == 2:
            raise KeyboardInterrupt
        validation_step(self, batch, index)

    monkeypatch.setattr(LanguageTraining, "training_step", train)
    monkeypatch.setattr(LanguageTraining, "validation_step", validate)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """A folder of a finished training of each kind."""
    folders = {kind: tmp_path_factory.mktemp(kind) for kind in KINDS}
    for kind, folder in folders.items():
        run(tiny_config(folder, kind))
    return folders


INTERRUPTIONS = {
    "again and again": ("diffusion", [(0, "after"), (4, "before"), (4, "validation"), (11, "after")]),
    "of the other kind": ("causal", [(5, "after")]),
}


@pytest.mark.parametrize("name", INTERRUPTIONS)
def test_an_interrupted_training_ends_as_the_uninterrupted_one(name, uninterrupted, tmp_path, monkeypatch):
    kind, moments = INTERRUPTIONS[name]
    config = tiny_config(tmp_path, kind)
    for step, moment in moments:
        with monkeypatch.context() as patched:
            interrupt(patched, step, moment)
            with pytest.raises(KeyboardInterrupt):
                run(config)
        assert not (tmp_path / "export" / "model.safetensors").exists()
    run(config)
    assert exported(tmp_path) == exported(uninterrupted[kind])
    assert metrics(tmp_path) == metrics(uninterrupted[kind])


@pytest.mark.thorough  # the test above interrupts at every moment; this one starts commands, which takes longer
def test_a_killed_training_ends_as_the_uninterrupted_one(uninterrupted, tmp_path):
    """A process that is killed soon after its first checkpoint, at a moment that nobody chooses.

    It writes nothing of its libraries, and a progress bar only to a terminal.
    """
    config = write_config(tmp_path, tiny(tmp_path))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "train.py", config]
    shown = tmp_path / "shown.txt"
    with shown.open("w") as file:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 120
    while not (tmp_path / "run/pretrain/last.safetensors").exists() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    time.sleep(random.SystemRandom().uniform(0, 0.1))
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert shown.read_text() == ""
    assert not (tmp_path / "export" / "model.safetensors").exists()
    run(tiny_config(tmp_path))
    assert exported(tmp_path) == exported(uninterrupted["diffusion"])


def test_a_finished_training_started_again_changes_nothing(uninterrupted):
    folder = uninterrupted["diffusion"]
    before = exported(folder), metrics(folder)
    run(tiny_config(folder))
    assert (exported(folder), metrics(folder)) == before


def losses(folder):
    """The lines of the exported file of losses."""
    return (folder / "export" / "losses.csv").read_text().splitlines()


def test_the_first_losses_identify_a_training(uninterrupted, tmp_path):
    """How often a checkpoint is saved makes no difference to them; the seed does, to every single one."""
    seldom = "schedule.checkpoint_every_steps=100"
    run(tiny_config(tmp_path / "again", overrides=(seldom,)))
    run(tiny_config(tmp_path / "other", overrides=(seldom, "seed=1")))
    assert losses(tmp_path / "again") == losses(uninterrupted["diffusion"])
    assert len(losses(tmp_path / "again")) == 13
    assert not set(losses(tmp_path / "again")[1:]) & set(losses(tmp_path / "other"))
