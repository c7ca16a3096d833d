"""A recording read back: tables as they lie on the disk, columns of one shard, and no more memory than that."""

import itertools

import pyarrow as pa
import pytest
import torch
from datasets import Dataset

from learn2pd.errors import UserError
from learn2pd.files import sha256
from learn2pd.recording.reading import Recording
from learn2pd.recording.schema import RECORDING, open_recording, reference_features, state_features, table_path
from learn2pd.recording.writing import Tables, write_manifest, write_shard
from tests.recording.helpers import GEN, described


def test_references_of_a_prompt_that_was_not_recorded_are_refused(recording):
    with pytest.raises(UserError, match="no prompt 'nobody'"):
        recording.references_of(["nobody"])


def test_datasets_opens_the_files_as_they_lie(recording):
    count = {"states": 0, "references": 0}
    for shard, name in itertools.product(range(len(recording)), count):
        rows = Dataset.from_file(str(table_path(recording.folder, shard, name)))
        assert rows.features == {"states": state_features, "references": reference_features}[name](GEN)
        count[name] += len(rows)
    assert count == {"states": len(recording.states), "references": len(recording.references)}


@pytest.mark.parametrize("split", ["train", "validation"])
def test_columns_of_a_shard_are_those_of_its_states(recording, split):
    whole = recording.states.with_format("torch")[:]
    mine = torch.tensor([name == split for name in recording.states["split"]])
    lengths = dict(zip(recording.references["prompt_id"], recording.references["length"], strict=True))
    owners = [name for name, here in zip(recording.states["prompt_id"], mine.tolist(), strict=True) if here]
    names = ("label", "reference", "step", "confidence", "length", "proposal", "start")
    parts = [recording.columns(shard, names, split) for shard in range(len(recording))]
    joined = {name: torch.cat([part[name] for part in parts]) for name in names}
    for name in ("label", "step", "confidence", "proposal", "start"):
        assert torch.equal(joined[name], whole[name][mine].to(joined[name].dtype)), name
    assert joined["length"].tolist() == [lengths[name] for name in owners]
    assert torch.equal(joined["label"], (joined["confidence"] > 0) & (joined["proposal"] == joined["reference"]))
    assert {name: values.dtype for name, values in joined.items()} == {
        "label": torch.bool,
        "reference": torch.long,
        "step": torch.int32,
        "confidence": torch.float32,
        "length": torch.long,
        "proposal": torch.int32,
        "start": torch.int32,
    }


def test_columns_of_a_split_that_is_not_there_are_empty(recording):
    columns = recording.columns(0, ["label", "length", "reference"], "test")
    assert {name: tuple(values.shape) for name, values in columns.items()} == {
        "label": (0, GEN),
        "length": (0,),
        "reference": (0, GEN),
    }


def test_reading_maps_the_tables_instead_of_holding_them(tiny_model, prompts, tmp_path):
    """Shards of ten million bytes cost no memory to open, and one shard's columns cost that shard's."""
    rows, gen_length = 2000, 300
    open_recording(tmp_path, described(tiny_model, prompts[:4], gen_length=gen_length, shard_prompts=1))
    recording = sha256(tmp_path / RECORDING)
    canvas = {
        name: torch.zeros(rows, gen_length, dtype=kind)
        for kind, names in (
            (torch.bool, ("masked", "unchanged", "end_of_text", "delimiter", "label")),
            (torch.int32, ("proposal",)),
            (torch.float32, ("confidence", "margin", "entropy")),
        )
        for name in names
    }
    numbers = {name: torch.zeros(rows, dtype=torch.int32) for name in ("step", "start", "stop")}
    for number, prompt in enumerate(prompts[:4]):
        one = {name: torch.zeros(1, dtype=torch.int32) for name in ("length", "forwards", "oracle_forwards")}
        references = one | {
            "prompt_id": [prompt.id],
            "split": ["train"],
            "prompt": ["x"],
            "tokens": torch.zeros(1, gen_length, dtype=torch.int32),
        }
        states = canvas | numbers | {"prompt_id": [prompt.id] * rows, "split": ["train"] * rows}
        write_shard(tmp_path, number, Tables(states, references), gen_length, recording)
    write_manifest(tmp_path, 4)
    before = pa.total_allocated_bytes()
    loaded = Recording.load(tmp_path)
    assert len(loaded.states) == 4 * rows
    assert sum(loaded.states[place]["stop"] for place in range(0, 4 * rows, 1000)) == 0
    assert pa.total_allocated_bytes() - before < 1_000_000
    assert loaded.columns(2, ["confidence"], "train")["confidence"].shape == (rows, gen_length)


def write_states(folder, model, prompts, rows):
    """A recording of one shard for each prompt, with so many states each."""
    open_recording(folder, described(model, prompts, shard_prompts=1, labels="checked"))
    recording = sha256(folder / RECORDING)
    groups = ("labels", "checked")
    for number, (prompt, count) in enumerate(zip(prompts, rows, strict=True)):
        tables = {}
        for name, features, length in (
            ("states", state_features(GEN, groups), count),
            ("references", reference_features(GEN, groups), 1),
        ):
            texts = {"prompt_id": [prompt.id], "split": ["train"], "prompt": ["x"], "wordings": [[]]}
            tables[name] = {
                column: texts[column] * length
                if column in texts
                else torch.zeros(length, *([GEN] if hasattr(kind, "feature") else []), dtype=torch.int32)
                for column, kind in features.items()
            }
        write_shard(folder, number, Tables(**tables), GEN, recording)
    write_manifest(folder, len(prompts))
    return Recording.load(folder)


@pytest.mark.parametrize("rows", [(0,), (0, 0), (2, 0), (0, 2), (2, 0, 1)])
def test_a_shard_without_states_reads_as_empty(rows, tiny_model, prompts, tmp_path):
    """Labels are checked at some states only, so that a shard may hold none."""
    picked = prompts[: len(rows)]
    made = write_states(tmp_path, tiny_model, picked, rows)
    names = ("masked", "label", "step", "length", "reference", "prompt")
    for shard, count in enumerate(rows):
        shapes = {name: tuple(values.shape) for name, values in made.columns(shard, names, "train").items()}
        assert shapes == {name: (count,) if name in ("step", "length", "prompt") else (count, GEN) for name in names}
    place, columns = made.states_of([prompt.id for prompt in picked])
    assert place.tolist() == [number for number, count in enumerate(rows) for _ in range(count)]
    assert {len(values) for values in columns.values()} == {sum(rows)}
    assert columns["label"].shape == (sum(rows), GEN)
    assert made.states_of([])[0].tolist() == []
