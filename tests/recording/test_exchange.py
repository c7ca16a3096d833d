"""Processes with different folders exchange their shards through a URL, and the first one gets the whole recording."""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path

import fsspec
import pytest

from learn2pd.cli.main import guarded, run_command
from learn2pd.errors import UserError
from learn2pd.recording import exchange as room
from learn2pd.recording.exchange import Exchange
from learn2pd.recording.schema import RECORDING, TABLES, entry_path, table_path
from tests.recording.helpers import files, make, remembered


@pytest.fixture(params=["file", "memory"])
def url(request, tmp_path):
    """The URL of an empty folder."""
    if request.param == "file":
        yield f"file://{tmp_path / 'exchange'}"
        return
    yield "memory://exchange"
    fsspec.filesystem("memory").rm("/exchange", recursive=True)


def counted(model, numbers):
    """A producer that notes how many prompts it was asked for."""
    produce = remembered(model)

    def of(model, prompts):
        numbers.append(len(prompts))
        return produce(model, prompts)

    return of


@pytest.mark.parametrize("first", [0, 1])
def test_one_after_the_other_the_first_has_everything(url, first, tiny_model, prompts, recorded, tmp_path):
    """Whoever comes first makes all, since nobody else does."""
    made: dict[int, list[int]] = {0: [], 1: []}
    for rank in (first, 1 - first):
        exchange = Exchange(url, rank, 2)
        produce = counted(tiny_model, made[rank])
        make(tiny_model, prompts, tmp_path / str(rank), produce=produce, leads=rank == 0, exchange=exchange)
    assert sum(made[first]) == len(prompts)
    assert not made[1 - first]
    assert files(tmp_path / "0") == files(recorded)


def test_together_they_make_the_recording_of_one(url, tiny_model, prompts, recorded, tmp_path):
    def work(rank: int) -> None:
        make(tiny_model, prompts, tmp_path / str(rank), leads=rank == 0, exchange=Exchange(url, rank, 3))

    crew = [threading.Thread(target=work, args=(rank,)) for rank in range(3)]
    for worker in crew:
        worker.start()
    for worker in crew:
        worker.join()
    assert files(tmp_path / "0") == files(recorded)


@pytest.mark.parametrize("fails", [False, True])
def test_processes_with_one_folder_make_every_shard_of_a_lost_node_once(url, fails, tmp_path):
    """Ranks 0 and 1 of one node; ranks 2 and 3 are lost. Where a process fails at a shard, the other one makes it."""
    (tmp_path / RECORDING).write_text("{}")
    started, made, seen, start = [], [], {}, threading.Barrier(2)

    def make_one(number):
        started.append(number)
        time.sleep(0.05)
        if fails and number == 7 and started.count(7) == 1:
            raise UserError("this process is lost")
        for name in TABLES:
            table_path(tmp_path, number, name).write_bytes(b"rows")
        entry_path(tmp_path, number).write_text("{}")
        made.append(number)

    def work(rank):
        start.wait()
        with contextlib.suppress(UserError):
            seen[rank] = sorted(Exchange(url, rank, 4).share(tmp_path, 8, make_one, frozenset()))

    crew = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for worker in crew:
        worker.start()
    for worker in crew:
        worker.join()
    assert sorted(made) == list(range(8))
    assert list(seen.values()) == [list(range(8))] * (1 if fails else 2)
    at_the_url = Exchange(url, 0, 4)
    assert all(at_the_url.has(entry_path(tmp_path, number).name) for number in range(8))


@pytest.mark.parametrize("kind", ["cut off", "other bytes", "no entry"])
def test_a_transfer_that_was_cut_off_is_no_shard(url, kind, tiny_model, prompts, recorded, tmp_path, caplog):
    make(tiny_model, prompts, tmp_path / "1", leads=False, exchange=Exchange(url, 1, 2))
    exchange = Exchange(url, 0, 2)
    place = f"{exchange.root}/{table_path(Path(), 1, 'states').name}"
    whole = exchange.files.cat_file(place)
    if kind == "no entry":
        exchange.remove(entry_path(Path(), 1).name)
    else:
        exchange.files.pipe_file(place, whole[: len(whole) // 2] if kind == "cut off" else whole[:-1] + b"?")
    make(tiny_model, prompts, tmp_path / "0", exchange=exchange)
    assert files(tmp_path / "0") == files(recorded)
    assert exchange.files.cat_file(place) == whole
    assert ("is damaged" in caplog.text) == (kind != "no entry")


def test_a_run_that_goes_on_makes_nothing_twice(url, tiny_model, prompts, recorded, tmp_path):
    made: list[int] = []
    for _ in range(2):
        make(tiny_model, prompts, tmp_path / "0", produce=counted(tiny_model, made), exchange=Exchange(url, 0, 2))
    assert sum(made) == len(prompts)
    entry_path(tmp_path / "0", 1).unlink()
    make(tiny_model, prompts, tmp_path / "0", produce=counted(tiny_model, made), exchange=Exchange(url, 0, 2))
    assert sum(made) == len(prompts)
    assert files(tmp_path / "0") == files(recorded)


def test_the_shards_of_another_recording_are_refused(url, tiny_model, prompts, tmp_path):
    make(tiny_model, prompts, tmp_path / "1", leads=False, exchange=Exchange(url, 1, 2))
    with pytest.raises(UserError, match="holds another recording"):
        make(tiny_model, prompts[:4], tmp_path / "0", exchange=Exchange(url, 0, 2))


@pytest.mark.parametrize("left", [0, 1, 40])
def test_a_description_of_which_only_the_beginning_was_put_is_put_again(left, url, tiny_model, prompts, tmp_path):
    """Its process was killed while it wrote, or is at it now."""
    make(tiny_model, prompts, tmp_path / "1", leads=False, exchange=Exchange(url, 1, 2))
    exchange = Exchange(url, 0, 2)
    whole = (tmp_path / "1" / RECORDING).read_bytes()
    exchange.put(RECORDING, whole[:left])
    exchange.open_recording(tmp_path / "1")
    assert exchange.files.cat_file(f"{exchange.root}/{RECORDING}") == whole


def test_the_mark_of_a_meeting_is_seen_and_removed(url):
    exchange, other = Exchange(url, 0, 2), Exchange(url, 1, 2)
    assert not other.has("mark")
    exchange.put("mark")
    assert other.has("mark")
    exchange.remove("mark")
    exchange.remove("mark")
    assert not other.has("mark")


@pytest.mark.parametrize(
    "wrong", ["nowhere://a/b", "s3://bucket/run", "http://127.0.0.1:9/a", "file:///proc/nowhere", ""]
)
def test_a_url_that_cannot_be_used_is_one_line(wrong, tiny_model, prompts, tmp_path, monkeypatch):
    monkeypatch.setattr(room.fsspec.core, "url_to_fs", _refusing(room.fsspec.core.url_to_fs))
    with pytest.raises(UserError, match=r"^record\.exchange=") as told:
        make(tiny_model, prompts, tmp_path / "0", exchange=Exchange(wrong, 0, 2))
    assert "\n" not in str(told.value)


def _refusing(real):
    """No package for s3, whatever is installed."""

    def url_to_fs(url, **options):
        if url.startswith("s3"):
            raise ImportError("Install s3fs to access S3")
        return real(url, **options)

    return url_to_fs


@pytest.mark.parametrize("shared", ["train.together=true", "record.labels=continuation"])
def test_what_needs_a_shared_folder_is_refused(shared, tiny_model_folder, tmp_path, capsys):
    own = [f"model.path={tiny_model_folder}", "model.device=cpu", f"output_dir={tmp_path / 'run'}", shared]
    own += [f"record.exchange=file://{tmp_path}/there", "train.start=scratch", "decode.gen_length=32"]
    assert guarded(lambda: run_command("record", ["config=tiny_filter", *own])) == 2
    assert f"{shared} needs a folder" in capsys.readouterr().err
