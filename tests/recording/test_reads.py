"""How often a recording's tables are read to be checked."""

from __future__ import annotations

import os
from collections import Counter

import pytest

from learn2pd import UserError, files
from learn2pd.recording.reading import Recording
from tests.recording.helpers import make


@pytest.fixture
def reads(monkeypatch):
    """The number of times that each table was read as a whole; files count as settled from the start."""
    counted: Counter[str] = Counter()
    digest = files.sha256

    def counting(path):
        counted[path.name] += path.suffix == ".arrow"
        return digest(path)

    monkeypatch.setattr(files, "SETTLED_SECONDS", -1.0)
    monkeypatch.setattr(files, "sha256", counting)
    return counted


def test_the_stages_of_a_process_read_every_table_once(tiny_model, prompts, tmp_path, reads):
    """Recording goes on where it was, and training and calibration open it again and again."""
    make(tiny_model, prompts, tmp_path)
    for _ in range(3):
        make(tiny_model, prompts, tmp_path)
        Recording.load(tmp_path)
    assert set(reads.values()) <= {0, 1}
    assert sum(reads.values()) == 2 * len(Recording.load(tmp_path))


@pytest.mark.parametrize("keeps_size", [True, False])
@pytest.mark.parametrize("keeps_time", [True, False])
def test_a_table_that_changes_after_it_was_checked_is_read_again(
    tiny_model, prompts, tmp_path, reads, keeps_size, keeps_time
):
    make(tiny_model, prompts, tmp_path)
    Recording.load(tmp_path)
    path = next(iter(sorted(tmp_path.glob("*.states.arrow"))))
    status = path.stat()
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]) if keeps_size else content[:-1])
    if keeps_time:
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(UserError, match="damaged"):
        Recording.load(tmp_path)


def test_a_table_that_was_written_just_now_is_not_trusted(tiny_model, prompts, tmp_path, reads, monkeypatch):
    monkeypatch.setattr(files, "SETTLED_SECONDS", 60.0)
    make(tiny_model, prompts, tmp_path)
    before = sum(reads.values())
    Recording.load(tmp_path)
    Recording.load(tmp_path)
    assert sum(reads.values()) - before == 2 * 2 * len(Recording.load(tmp_path))
