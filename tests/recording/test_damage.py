"""What is damaged is found, named and recorded again, and until then not read."""

import json
import shutil

import pytest

from learn2pd.errors import UserError
from learn2pd.recording.reading import Recording
from learn2pd.recording.schema import entry_path, table_path
from tests.recording.helpers import SHARD, files, make


@pytest.fixture
def copied(recorded, tmp_path):
    return shutil.copytree(recorded, tmp_path / "copy")


def flip(folder):
    """Flip one bit in the middle of a table of states."""
    path = table_path(folder, 1, "states")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "a bit": (flip, "shard-00001.states.arrow has another sha256"),
    "truncated": (
        lambda folder: table_path(folder, 1, "references").write_bytes(b"ARROW"),
        "shard-00001.references.arrow has 5 bytes",
    ),
    "missing": (lambda folder: table_path(folder, 1, "states").unlink(), "shard-00001.states.arrow cannot be read"),
    "no entry": (lambda folder: entry_path(folder, 1).write_text("{"), "shard-00001"),
    "no shard's entry": (lambda folder: entry_path(folder, 1).write_text("{}"), "shard-00001.json is not an entry"),
    "foreign": (
        lambda folder: entry_path(folder, 1).write_text(
            json.dumps(json.loads(entry_path(folder, 1).read_text()) | {"recording": "0"})
        ),
        "belongs to another recording.json",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_shard_is_found_named_and_recorded_again(tiny_model, prompts, recorded, copied, caplog, kind):
    break_it, named = DAMAGE[kind]
    break_it(copied)
    with pytest.raises(UserError, match="shard-00001") as refused:
        Recording.load(copied)
    assert named in str(refused.value)
    assert "run the stage 'record' again" in str(refused.value)
    figures = make(tiny_model, prompts, copied)
    assert figures["prompts_recorded_now"] == SHARD
    assert [
        record.levelname
        for record in caplog.records
        if "shard-00001" in record.message and "recorded again" in record.message
    ] == ["WARNING"]
    assert files(copied) == files(recorded)


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest["shards"][2].update(rows=1),
        lambda manifest: manifest["shards"].pop(),
        lambda manifest: manifest.clear(),
    ],
)
def test_a_manifest_that_disagrees_with_the_shards_is_refused_and_written_anew(
    tiny_model, prompts, recorded, copied, change
):
    path = copied / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"manifest\.json (disagrees|is missing)"):
        Recording.load(copied)
    assert make(tiny_model, prompts, copied)["prompts_recorded_now"] == 0
    assert files(copied) == files(recorded)


def test_a_recording_of_another_schema_version_is_refused(copied):
    path = copied / "recording.json"
    path.write_text(path.read_text().replace('"schema": 2', '"schema": 1'))
    with pytest.raises(UserError, match="schema 1, this version reads 2 and 3"):
        Recording.load(copied)
