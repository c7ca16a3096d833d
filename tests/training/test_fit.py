"""Predictor training: what is asked and where, streaming, resumable, refuses what cannot be learnt."""

from __future__ import annotations

import csv
import functools

import pytest
import torch

from learn2pd.data.prompts import task_prompts
from learn2pd.errors import UserError
from learn2pd.models.delimiters import newline_ids
from learn2pd.predictors.boundary import StepEnd
from learn2pd.predictors.end_of_text import Ended
from learn2pd.predictors.filter import FilterPolicy, Final
from learn2pd.predictors.networks import MLP, Conv, Transformer
from learn2pd.predictors.questions import make_batch
from learn2pd.predictors.saving import Contract, Predictor
from learn2pd.recording.reading import Recording
from learn2pd.recording.recorder import oracle_tables, record
from learn2pd.recording.schema import describe_recording, open_recording
from learn2pd.registry import GENERATED_TASKS, build_task
from learn2pd.schedulers.blocks import BlocksScheduler
from learn2pd.training import fit as predictors
from learn2pd.training.checkpoint_io import SafetensorsCheckpointIO
from learn2pd.training.fit import PredictorData, PredictorTraining, Recipe, train_predictor
from learn2pd.training.loggers import build_loggers
from tests.contract.helpers import run

GEN, BLOCK = 40, 16
CHANNELS = (
    "confidence",
    "margin",
    "entropy",
    "masked",
    "valid",
    "position",
    "decoded",
    "unchanged",
    "end_of_text",
    "delimiter",
)
RECIPE = {"learning_rate": 1e-2, "weight_decay": 0.0, "patience_epochs": 100}


@pytest.fixture(scope="module")
def recording(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("recorded") / "records"
    prompts = task_prompts([build_task(name) for name in GENERATED_TASKS], {"train": 9, "validation": 6}, seed=0)
    delimiters = newline_ids(tiny_model.tokenizer)
    described = describe_recording(
        tiny_model,
        prompts,
        gen_length=GEN,
        block_length=BLOCK,
        alignment="prompt",
        confidence="",
        delimiter_ids=delimiters,
        shard_prompts=4,
        seed=0,
        config={},
    )
    open_recording(folder, described)
    produce = functools.partial(
        oracle_tables, gen_length=GEN, block_length=BLOCK, batch_size=4, delimiter_ids=delimiters
    )
    record(tiny_model, prompts, folder, produce, shard_prompts=4)
    return Recording.load(folder)


def states(recording, split="train", question=None, more=()):
    """All recorded states of a split, by column."""
    question = question or Final()
    parts = [
        recording.columns(shard, (*predictors.OBSERVED, *question.columns, *more), split)
        for shard in range(len(recording))
    ]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def data(recording, network, question=None, batch_rows=16, seed=0):
    """The data of a training on a recording."""
    prepared = PredictorData([recording], question or Final(), network, batch_rows, seed)
    prepared.prepare()
    return prepared


def train(recording, folder, epochs, **changes):
    """Train a small network, and return it with its figures."""
    torch.manual_seed(0)
    network = Conv(hidden=8, layers=2)
    recipe = Recipe(**(RECIPE | {"max_epochs": epochs} | changes))
    figures = train_predictor(network, data(recording, network), folder, recipe, build_loggers(["csv"], folder, "run"))
    return network, figures


def same(one, other):
    """Whether two networks have the same weights."""
    return all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items())


def test_it_learns(recording, tmp_path):
    _, figures = train(recording, tmp_path, 15)
    assert figures["val_auroc"] > 0.7


@pytest.mark.parametrize(
    "network", [MLP(BLOCK, 8), Conv(CHANNELS, 8), Transformer(CHANNELS, 8)], ids=lambda n: type(n).__name__
)
def test_a_network_sees_the_same_in_training_as_in_a_decode(tiny_model, recording, network, make_prompts):
    """The inputs made of a recorded state are those that the policy made in the same state."""
    from learn2pd.recording.recorder import StateRecorder

    seen = []

    class Spy(type(network)):
        def forward(self, *inputs):
            seen.append(inputs)
            return super().forward(*inputs)

    network.__class__ = Spy
    predictor = Predictor(
        "filter",
        network,
        0.5,
        Contract.of(tiny_model.spec, delimiter_ids=tuple(recording.description["delimiter_ids"])),
    )
    prompts = make_prompts([7])
    recorder = StateRecorder(
        torch.zeros(1, GEN, dtype=torch.long), tiny_model.spec.eot_ids, recording.description["delimiter_ids"]
    )
    run(
        tiny_model,
        prompts,
        FilterPolicy(predictor),
        scheduler=BlocksScheduler(BLOCK),
        gen_length=GEN,
        observer=recorder,
    )
    columns = recorder.columns()
    columns["length"] = torch.zeros(len(columns["step"]))
    assert len(seen) == len(columns["step"])
    unwatched = len(seen)
    run(
        tiny_model, prompts, FilterPolicy(predictor), scheduler=BlocksScheduler(BLOCK), gen_length=GEN
    )  # nothing is scored ahead of the window now
    for alone, watched in zip(seen[unwatched:], seen[:unwatched], strict=True):
        assert all(map(torch.equal, alone, watched))
    for step, (inputs, valid, proposal) in enumerate(seen[:unwatched]):
        batch = make_batch({name: values[step : step + 1] for name, values in columns.items()}, Final(), network)
        assert torch.equal(batch.valid, valid)
        assert torch.equal(batch.proposal, proposal)
        assert torch.allclose(batch.inputs, inputs)


def test_every_state_of_a_split_comes_once_and_no_other(recording):
    network = Conv(["masked"], 4)
    whole = states(recording)["masked"]
    for seed in (None, 0, 1):
        stream = data(recording, network).stream("train", 5, seed)
        streamed = torch.cat([columns["masked"] for columns in stream.states()])
        assert sorted(map(tuple, streamed.tolist())) == sorted(map(tuple, whole.tolist()))
        assert max(len(batch.label) for batch in stream) == 5


def test_the_order_is_the_seeds(recording):
    stream = data(recording, Conv(["masked"], 4))
    first, again, other = (
        torch.cat([batch.inputs.flatten() for batch in stream.stream("train", 5, seed)]) for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_what_is_held_does_not_grow_with_the_recording(recording, monkeypatch):
    monkeypatch.setattr(predictors, "SHARDS_AT_A_TIME", 1)
    longest = max(len(recording.columns(shard, ["step"], "train")["step"]) for shard in range(len(recording)))
    many = PredictorData([recording] * 5, Final(), Conv(["masked"], 4), 10**6, seed=0)
    assert max(len(batch.label) for batch in many.stream("train", 10**6, seed=0)) == longest


def test_the_filter_is_asked_about_the_window_that_was_decoded(recording):
    columns = states(recording)
    batch = make_batch(columns, Final("masked"), Conv(["masked"], 4))
    for row in range(0, len(batch.label), 7):
        start, stop = int(columns["start"][row]), int(columns["stop"][row])
        assert batch.valid[row].sum() == stop - start
        assert batch.label[row, : stop - start].bool().tolist() == columns["label"][row, start:stop].tolist()
        assert batch.counted[row, : stop - start].tolist() == columns["masked"][row, start:stop].tolist()


@pytest.mark.parametrize(
    ("loss_on", "where", "moves"),
    [
        ("answer", "padding", False),
        ("answer", "committed", False),
        ("masked", "padding", True),
        ("masked", "committed", False),
        ("all", "committed", True),
    ],
)
def test_what_a_loss_does_not_count_cannot_move_it(recording, loss_on, where, moves):
    network = Conv(CHANNELS, 4)
    batch = make_batch(states(recording), Final(loss_on), network)
    uncounted = batch.valid & (batch.asked & ~batch.judged if where == "padding" else ~batch.asked)
    assert uncounted.any()
    flipped = batch._replace(label=torch.where(uncounted, 1 - batch.label, batch.label))
    module = PredictorTraining(network, 1e-2, 0.0)
    assert (module.loss(batch, batch.counted)[0] != module.loss(flipped, batch.counted)[0]).item() is moves


def test_the_answer_ends_with_its_end_of_text(recording):
    columns = states(recording)
    masked = torch.ones_like(columns["masked"])
    judged = Final("answer").judged(columns | {"masked": masked, "length": torch.full((len(masked),), 3)})
    assert (judged.sum(1) == 4).all()


def test_the_end_predictor_is_asked_whether_the_answer_is_over(recording):
    columns = states(recording, question=Ended())
    batch = make_batch(columns, Ended(), Conv(["masked"], 4))
    assert batch.label.sum(1).tolist() == [GEN - length for length in columns["length"].tolist()]
    assert torch.equal(batch.counted, columns["masked"])


def test_the_boundary_predictor_is_asked_where_steps_of_the_answer_end(recording):
    token = int(recording.references["tokens"][0][2])
    question = StepEnd((token,), reach=10)
    columns = states(recording, question=question)
    batch = make_batch(columns, question, Conv(["masked"], 4))
    for row in range(0, len(batch.label), 11):
        first = columns["masked"][row].int().argmax()
        ends = (columns["reference"][row] == token) & (torch.arange(GEN) < columns["length"][row])
        expected = ends[first : first + 10].tolist()
        assert batch.label[row, : len(expected)].bool().tolist() == expected
    assert batch.label.any()


def test_channels_are_normalised_by_the_training_states(recording):
    network = Conv(CHANNELS, 4)
    prepared = data(recording, network)
    batches = list(prepared.stream("train", 16))
    inside = torch.cat([batch.inputs[batch.valid] for batch in batches])
    assert torch.allclose(network.mean, inside.mean(0), atol=1e-4)
    varies = inside.std(0) > 1e-6
    assert torch.allclose(network.deviation[varies], inside.std(0, correction=0)[varies], atol=1e-3)
    assert (network.deviation[~varies] == 1).all()


def test_resumed_equals_uninterrupted(recording, tmp_path):
    whole, _ = train(recording, tmp_path / "whole", 5)
    train(recording, tmp_path / "parts", 2)
    resumed, _ = train(recording, tmp_path / "parts", 5)
    assert same(whole, resumed)


@pytest.mark.parametrize("epoch", [0, 2])
def test_interrupted_while_training_equals_uninterrupted(recording, tmp_path, monkeypatch, epoch):
    def interrupt(module):
        if module.current_epoch == epoch:
            raise KeyboardInterrupt

    whole, _ = train(recording, tmp_path / "whole", 4)
    with monkeypatch.context() as patch:
        patch.setattr(PredictorTraining, "on_train_epoch_start", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(recording, tmp_path / "parts", 4)
    resumed, _ = train(recording, tmp_path / "parts", 4)
    assert same(whole, resumed)


def test_the_best_epoch_is_kept_and_the_log_is_csv(recording, tmp_path):
    _, figures = train(recording, tmp_path, 8, learning_rate=0.3)  # a rate at which the last epoch is not the best
    with open(next(tmp_path.rglob("metrics.csv"))) as file:
        losses = [float(row["val_loss"]) for row in csv.DictReader(file) if row["val_loss"]]
    assert figures["val_loss"] == pytest.approx(min(losses), rel=1e-4)


@pytest.mark.parametrize(("value", "word"), [(True, "yes"), (False, "no")])
def test_labels_of_one_class_are_refused(recording, monkeypatch, value, word):
    monkeypatch.setattr(Final, "label", lambda self, columns: torch.full_like(columns["masked"], value))
    with pytest.raises(UserError, match=f"'train' is {word}"):
        data(recording, Conv(CHANNELS, 4))


def test_a_split_without_rows_is_refused(recording, monkeypatch):
    columns = Recording.columns
    monkeypatch.setattr(
        Recording,
        "columns",
        lambda self, shard, names, split: columns(self, shard, names, split if split == "train" else "none"),
    )
    with pytest.raises(UserError, match="validation"):
        data(recording, Conv(CHANNELS, 4))


def test_checkpoints_hold_no_pickle(recording, tmp_path):
    train(recording, tmp_path, 2)
    assert SafetensorsCheckpointIO().load_checkpoint(tmp_path / "last.safetensors")["epoch"] >= 0
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert not path.read_bytes().startswith((b"\x80\x02", b"\x80\x04", b"PK")), path
