"""How many processes record, and what is refused. Real ones are started in test_kill.py."""

import pytest
import torch
from lightning_utilities.core.rank_zero import rank_zero_only

from learn2pd.errors import UserError
from learn2pd.recording.processes import Processes, SharedFolder


@pytest.fixture(autouse=True)
def _rank(monkeypatch):
    """Reset the rank that Fabric sets for the whole process; loggers of later tests write nothing with another one."""
    monkeypatch.setattr(rank_zero_only, "rank", 0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="auto is one process a GPU")
def test_one_process_needs_no_group(tmp_path):
    for devices in (1, "auto"):
        processes = Processes(devices)
        processes.meet({}, SharedFolder(tmp_path))
        assert (processes.count, processes.rank, processes.local_rank) == (1, 0, 0)
        assert not torch.distributed.is_initialized()


def test_a_process_alone_is_one_whatever_torchrun_has_started(monkeypatch):
    """A training that is not shared would wait for a second process that has left."""
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert (Processes().count, Processes().rank) == (2, 1)
    processes = Processes.alone()
    assert (processes.count, processes.rank, processes.local_rank) == (1, 0, 0)
    processes.wait()
    assert processes.first_says(True)


def test_the_first_process_knows_that_it_is(monkeypatch):
    processes = Processes(2, num_nodes=3)
    assert (processes.count, processes.rank, processes.local_rank) == (6, 0, 0)
    monkeypatch.setenv("NODE_RANK", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    processes = Processes(2, num_nodes=3)
    assert (processes.count, processes.rank, processes.local_rank) == (6, 5, 1)


@pytest.mark.parametrize("options", [{"devices": 0}, {"devices": "many"}, {"devices": 2, "strategy": "nonsense"}])
def test_numbers_and_strategies_that_make_no_sense_are_refused_by_name(options):
    with pytest.raises(UserError, match=rf"record\.{list(options)[-1]}={next(reversed(options.values()))!r}"):
        Processes(**options)
