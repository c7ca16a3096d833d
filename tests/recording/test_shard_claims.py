"""Shards: any interruption and any number of processes give the same bytes.

A folder that belongs to another recording is refused.
"""

import errno
import gc
import itertools
import os
import threading
import time

import pyarrow as pa
import pytest
import torch

from learn2pd.errors import UserError
from learn2pd.recording import writing
from learn2pd.recording.reading import Recording
from learn2pd.recording.schema import entry_path, open_recording
from learn2pd.recording.shard_claims import claimed, share
from tests.recording.helpers import SHARD, described, files, make, oracle_producer, some_prompts


class Interrupted:
    """A producer that is stopped before its n-th shard."""

    def __init__(self, produce, shards):
        self.produce, self.left = produce, shards

    def __call__(self, model, prompts):
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        return self.produce(model, prompts)


@pytest.mark.parametrize("shards", [0, 1, 2])
def test_interrupted_and_started_again_gives_the_same_bytes(tiny_model, prompts, recorded, tmp_path, shards):
    with pytest.raises(KeyboardInterrupt):
        make(tiny_model, prompts, tmp_path, produce=Interrupted(oracle_producer(tiny_model), shards))
    with pytest.raises(UserError, match=f"shard-{shards:05d} is missing: the recording has 3 shards"):
        Recording.load(tmp_path)
    kept = {
        name: (tmp_path / name).stat().st_mtime_ns
        for name in files(tmp_path)
        if name.startswith("shard") and not name.endswith("lock")
    }
    assert len(kept) == 3 * shards
    figures = make(tiny_model, prompts, tmp_path)
    assert figures["prompts_recorded_now"] == len(prompts) - shards * SHARD
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in kept} == kept
    assert files(tmp_path) == files(recorded)
    assert make(tiny_model, prompts, tmp_path)["prompts_recorded_now"] == 0


def test_one_that_does_not_lead_records_and_leaves_the_manifest_to_the_first(tiny_model, prompts, recorded, tmp_path):
    make(tiny_model, prompts, tmp_path, leads=False)
    assert files(tmp_path).keys() == files(recorded).keys() - {"manifest.json"}
    with pytest.raises(UserError, match="manifest"):
        Recording.load(tmp_path)
    assert make(tiny_model, prompts, tmp_path)["prompts_recorded_now"] == 0
    assert files(tmp_path) == files(recorded)


def test_what_lost_processes_left_does_not_matter(tiny_model, prompts, recorded, tmp_path):
    open_recording(tmp_path, described(tiny_model, prompts))
    for name in (
        "shard-00001.lock",
        "shard-00000.lock",
        "shard-00001.states.arrow.partial",
        "shard-00002.references.arrow",
        "shard-00000.json.999999.partial",
        "manifest.json.999999.partial",
        "recording.json.999999.partial",
    ):
        (tmp_path / name).write_bytes(b"half of it")
    make(tiny_model, prompts, tmp_path)
    assert files(tmp_path) == files(recorded)


def test_many_hands_make_every_shard_once(tmp_path):
    made, seen, count = [], {}, 40

    def make_one(number):
        made.append(number)
        entry_path(tmp_path, number).write_text("{}")

    def work(hand):
        seen[hand] = list(share(tmp_path, count, make_one, frozenset()))

    hands = [threading.Thread(target=work, args=(hand,)) for hand in range(4)]
    for hand in hands:
        hand.start()
    for hand in hands:
        hand.join()
    assert sorted(made) == list(range(count))
    assert all(sorted(numbers) == list(range(count)) for numbers in seen.values())
    assert not list(tmp_path.glob("*.lock"))


def test_a_shard_that_is_claimed_is_looked_at_again_later(tmp_path):
    def make_one(number):
        entry_path(tmp_path, number).write_text("{}")

    shares = share(tmp_path, 4, make_one, frozenset())
    with claimed(tmp_path, 1) as mine:
        assert mine
        with claimed(tmp_path, 1) as twice:
            assert not twice
        assert [next(shares) for _ in range(3)] == [0, 2, 3]
    assert list(shares) == [1]


def test_a_full_disk_is_one_line_and_keeps_earlier_shards(tiny_model, prompts, recorded, tmp_path):
    (tmp_path / "shard-00001.references.arrow.partial").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"no space left on the disk while writing .*shard-00001"):
        make(tiny_model, prompts, tmp_path)
    assert entry_path(tmp_path, 0).is_file()
    assert not entry_path(tmp_path, 1).exists()
    assert not list(tmp_path.glob("*.partial"))
    make(tiny_model, prompts, tmp_path)
    assert files(tmp_path) == files(recorded)


def test_another_geometry_model_or_prompt_set_is_refused_and_named(tiny_model, tiny_model_grouped, prompts, recorded):
    for model, some, changes, named in (
        (tiny_model, prompts, {"gen_length": 48}, "gen_length 24 there, 48 now"),
        (tiny_model, prompts, {"block_length": 8}, "block_length 16 there, 8 now"),
        (tiny_model, prompts, {"shard_prompts": 4}, "shard_prompts 3 there, 4 now"),
        (tiny_model_grouped, prompts, {}, "model_fingerprint"),
        (tiny_model, prompts[1:], {}, "prompts 8 there, 7 now"),
    ):
        with pytest.raises(UserError, match=named):
            make(model, some, recorded, **changes)


def test_what_else_a_recording_is_told_from_others_by_must_agree_too(tiny_model, prompts, tmp_path):
    open_recording(tmp_path, described(tiny_model, prompts, round=1, policy_fingerprint="abc"))
    open_recording(tmp_path, described(tiny_model, prompts, round=1, policy_fingerprint="abc"))
    with pytest.raises(UserError, match="policy_fingerprint 'abc' there, 'def' now"):
        open_recording(tmp_path, described(tiny_model, prompts, round=1, policy_fingerprint="def"))
    with pytest.raises(UserError, match="round 1 there, None now"):
        open_recording(tmp_path, described(tiny_model, prompts))


def test_a_process_whose_recording_was_begun_anew_gives_its_shard_up(tiny_model, prompts, tmp_path):
    def produce(model, some):
        (tmp_path / "recording.json").write_text("{}")
        return oracle_producer(model)(model, some)

    with pytest.raises(UserError, match="now holds another recording"):
        make(tiny_model, prompts, tmp_path, produce=produce)
    assert not list(tmp_path.glob("shard-*.arrow*"))


def test_recording_holds_one_shard_however_many_there_are(tiny_model, tmp_path):
    """Tensors and Arrow buffers alive when a shard begins: none of the shards before it."""

    def held():
        gc.collect()
        tensors = [thing for thing in gc.get_objects() if type(thing) is torch.Tensor]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors) + pa.total_allocated_bytes()

    bytes_held = {}
    produce, shards = oracle_producer(tiny_model), itertools.count()

    def measured(model, some):
        number = next(shards)
        if number in (3, 12):
            bytes_held[number] = held()
        return produce(model, some)

    make(tiny_model, some_prompts(9, 4), tmp_path, produce=measured, shard_prompts=1)
    assert bytes_held[12] <= bytes_held[3] + 10_000  # a shard has some 40,000 bytes


@pytest.mark.parametrize("hours", [-100_000, -1, 1, 100_000])
def test_a_lock_is_no_older_or_younger_for_the_clock_of_another_node(tmp_path, hours):
    def make_one(number):
        entry_path(tmp_path, number).write_text("{}")

    moment = time.time() + hours * 3600
    for number in range(3):
        path = tmp_path / f"shard-{number:05d}.lock"
        path.touch()
        os.utime(path, (moment, moment))
    shares = share(tmp_path, 3, make_one, frozenset())
    with claimed(tmp_path, 1):
        os.utime(tmp_path / "shard-00001.lock", (moment, moment))
        assert [next(shares), next(shares)] == [0, 2]
    assert list(shares) == [1]


@pytest.mark.parametrize("name", ["write_json", "_write_table"])
def test_a_disk_that_is_full_at_any_write_keeps_what_is_recorded(
    tiny_model, prompts, recorded, tmp_path, monkeypatch, name
):
    real, calls = getattr(writing, name), itertools.count()

    def full(*given, **more):
        if next(calls) == (1 if name == "write_json" else 3):  # of the second shard
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*given, **more)

    monkeypatch.setattr(writing, name, full)
    with pytest.raises(UserError, match=r"no space left on the disk while writing .*shard-00001"):
        make(tiny_model, prompts, tmp_path)
    assert [entry_path(tmp_path, number).exists() for number in range(3)] == [True, False, False]
    assert not list(tmp_path.glob("*.partial"))
    monkeypatch.undo()
    make(tiny_model, prompts, tmp_path)
    assert files(tmp_path) == files(recorded)


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOLCK, "No locks available"), OSError(errno.EOPNOTSUPP, "x"), NotImplementedError("flock")]
)
def test_a_file_system_without_locks_is_one_line(tmp_path, monkeypatch, error):
    def refuse(*given, **more):
        raise error

    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    with pytest.raises(UserError, match="has no locks"), claimed(tmp_path, 0):
        pass
