"""Filter training: masked positions only, resumable, refuses what cannot be learnt."""

import csv

import pytest
import torch
from datasets import Dataset

from learn2pd.errors import UserError
from learn2pd.policies.filter import FilterNetwork
from learn2pd.training.checkpoint_io import SafetensorsCheckpointIO
from learn2pd.training.filter import FilterData, FilterRows, FilterTraining, filter_rows, train_filter

OPTIONS = {"learning_rate": 1e-2, "weight_decay": 0.0, "loss_on": "answer", "patience_epochs": 100}
WIDTH = 8


def made_rows(count=64, seed=0):
    """Confidence above a half means right, noise on top; half of the positions are masked."""
    generator = torch.Generator().manual_seed(seed)
    confidence = torch.rand(count, WIDTH, generator=generator)
    label = (confidence + 0.2 * torch.randn(count, WIDTH, generator=generator) > 0.5).float()
    masked = torch.rand(count, WIDTH, generator=generator) < 0.5
    return FilterRows(confidence, label, torch.ones_like(masked), masked, masked & (torch.arange(WIDTH) < 6))


def train(folder, epochs, **changes):
    torch.manual_seed(0)
    network = FilterNetwork(WIDTH, 16)
    figures = train_filter(network, FilterData(made_rows(), made_rows(seed=1), 16, seed=0), folder, max_epochs=epochs, **(OPTIONS | changes))
    return network, figures


def test_it_learns(tmp_path):
    _, figures = train(tmp_path, 30)
    assert figures["val_auroc"] > 0.75


def test_resumed_equals_uninterrupted(tmp_path):
    whole, _ = train(tmp_path / "whole", 8)
    train(tmp_path / "parts", 3)
    resumed, _ = train(tmp_path / "parts", 8)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


@pytest.mark.parametrize("epoch", [0, 3])
def test_interrupted_while_training_equals_uninterrupted(tmp_path, monkeypatch, epoch):
    def interrupt(module):
        if module.current_epoch == epoch:
            raise KeyboardInterrupt

    whole, _ = train(tmp_path / "whole", 6)
    with monkeypatch.context() as patch:
        patch.setattr(FilterTraining, "on_train_epoch_start", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "parts", 6)
    resumed, _ = train(tmp_path / "parts", 6)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_the_best_epoch_is_kept_and_the_log_is_csv(tmp_path):
    _, figures = train(tmp_path, 12, learning_rate=0.3)  # a rate at which the last epoch is not the best
    with open(next(tmp_path.rglob("metrics.csv"))) as file:
        losses = [float(row["val_loss"]) for row in csv.DictReader(file) if row["val_loss"]]
    assert figures["val_loss"] == pytest.approx(min(losses), rel=1e-4)


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
def test_what_a_loss_does_not_count_cannot_move_it(loss_on, where, moves):
    rows, network = made_rows(), FilterNetwork(WIDTH, 16)
    module = FilterTraining(network, 1e-2, 0.0, loss_on)
    there = rows.masked & ~rows.answer if where == "padding" else ~rows.masked
    flipped = rows._replace(label=torch.where(there, 1 - rows.label, rows.label))
    logits = network(rows.confidence)
    assert (module.loss(rows, logits, loss_on) != module.loss(flipped, logits, loss_on)).item() is moves


def recorded(labels, length=WIDTH):
    masked = [[True] * WIDTH] * 2
    rows = {
        "split": ["train"] * 2, "prompt_id": ["one"] * 2, "position": [list(range(WIDTH))] * 2, "confidence": [[0.5] * WIDTH] * 2,
        "label": labels, "masked": masked, "valid": masked,
    }  # fmt: skip
    return Dataset.from_dict(rows), Dataset.from_dict({"prompt_id": ["one"], "length": [length]})


def test_the_answer_ends_with_its_end_of_text():
    rows = filter_rows(*recorded([[True] * WIDTH, [False] * WIDTH], length=3), "train")
    assert rows.answer.sum(1).tolist() == [4, 4]


@pytest.mark.parametrize(("value", "word"), [(True, "right"), (False, "wrong")])
def test_labels_of_one_class_are_refused(value, word):
    with pytest.raises(UserError, match=word):
        filter_rows(*recorded([[value] * WIDTH] * 2), "train")


def test_a_split_without_rows_is_refused():
    with pytest.raises(UserError, match="validation"):
        filter_rows(*recorded([[True] * WIDTH, [False] * WIDTH]), "validation")


def test_checkpoints_hold_no_pickle(tmp_path):
    train(tmp_path, 2)
    assert SafetensorsCheckpointIO().load_checkpoint(tmp_path / "last.safetensors")["epoch"] >= 0
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert not path.read_bytes().startswith((b"\x80\x02", b"\x80\x04", b"PK")), path
