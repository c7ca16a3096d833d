"""Loggers by name, on a real trainer; and progress bars, on a real terminal."""

import contextlib
import importlib.util
import logging
import os
import pty
import sys
import termios

import lightning
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader, TensorDataset

from learn2pd import UserError
from learn2pd.progress import progress_bar
from learn2pd.training.lightning_setup import FitProgress
from learn2pd.training.loggers import build_loggers, check_loggers, close_loggers


class Line(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch, _):
        loss = self.layer(batch[0]).pow(2).mean()
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class OwnLogger(CSVLogger):
    """A logger of the user's own, which takes what it is called with."""


class Narrow(CSVLogger):
    """A logger that takes no name."""

    def __init__(self, save_dir):
        super().__init__(save_dir)


def fitted(folder, names, run, *callbacks):
    loggers = build_loggers(names, folder, run)
    trainer = lightning.Trainer(
        max_epochs=2,
        logger=loggers,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        log_every_n_steps=1,
        callbacks=list(callbacks),
    )
    trainer.fit(Line(), DataLoader(TensorDataset(torch.randn(8, 2)), batch_size=4))
    close_loggers(loggers)


@pytest.mark.parametrize(
    ("name", "package", "left"),
    [
        ("csv", "lightning", "logs/version_0/metrics.csv"),
        ("tensorboard", "tensorboard", "tensorboard/version_0/events.*"),
        ("wandb", "wandb", "wandb/offline-run-*/*.wandb"),
        (f"{__name__}:OwnLogger", "lightning", "run 1/version_0/metrics.csv"),
    ],
)
def test_every_logger_writes_each_round_as_a_run_of_its_own(name, package, left, tmp_path, monkeypatch):
    pytest.importorskip(package)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    check_loggers([name])
    for number in (0, 1):
        fitted(tmp_path / str(number), [name], f"run {number}")
    assert list((tmp_path / "1").glob(left))


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["tensorbord"], "did you mean 'tensorboard'"),
        (["csv", "csv"], "'csv' twice"),
        (["nowhere.at_all:Logger"], "cannot be imported"),
        (["learn2pd.types:ModelSpec"], "it is no logger"),
        ([f"{__name__}:Narrow"], "called with save_dir and name"),
    ],
)
def test_what_is_no_logger_is_refused(names, told):
    with pytest.raises(UserError, match=r"train\.loggers") as caught:
        check_loggers(names)
    assert told in str(caught.value)


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_missing_package_is_refused_with_the_command_that_installs_it(name, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    with pytest.raises(UserError, match=rf'pip install "learn2pd\[{name}\]"'):
        check_loggers([name])


def test_wandb_without_a_key_is_refused_before_the_training(monkeypatch, tmp_path):
    pytest.importorskip("wandb")
    for variable in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    with pytest.raises(UserError, match="WANDB_MODE=offline"):
        check_loggers(["wandb"])


@contextlib.contextmanager
def terminal(monkeypatch):
    """Make standard error a terminal, and give a list that holds at the end what was written there."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    written = []
    with os.fdopen(theirs, "w") as stream, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stream)
        patch.setattr("learn2pd.progress.PATIENCE_S", 0.0)
        yield written
        stream.flush()
        os.set_blocking(ours, False)
        with contextlib.suppress(BlockingIOError):
            written.append(os.read(ours, 10_000).decode())
    os.close(ours)


@pytest.mark.parametrize(
    ("level", "shown"), [(logging.INFO, True), (logging.WARNING, False)], ids=["by default", "quiet"]
)
def test_a_bar_is_shown_in_a_terminal_unless_the_log_is_quiet(level, shown, monkeypatch, caplog):
    with (
        caplog.at_level(level, logger="learn2pd"),
        terminal(monkeypatch) as written,
        progress_bar(2, "record", "prompt") as bar,
    ):
        bar.update(2)
    assert ("record" in "".join(written)) is shown


def test_no_bar_is_written_to_a_file(capfd, caplog, monkeypatch):
    monkeypatch.setattr("learn2pd.progress.PATIENCE_S", 0.0)
    with caplog.at_level(logging.INFO, logger="learn2pd"), progress_bar(2, "record", "prompt") as bar:
        bar.update(2)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(("unit", "total"), [("epoch", 2), ("step", 4)])
def test_a_training_shows_one_bar_which_ends_full(unit, total, monkeypatch, caplog, tmp_path):
    with caplog.at_level(logging.INFO, logger="learn2pd"), terminal(monkeypatch) as written:
        fitted(tmp_path, ["csv"], "run", FitProgress("train", total, unit))
    assert f"{total}/{total}" in "".join(written)
    assert "train" in "".join(written)
