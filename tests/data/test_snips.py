"""`data/snips.py` on a small folder of the benchmark's form."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from learn2pd.data.tasks.slots import SlotsTask

SCRIPT = Path(__file__).parents[2] / "data" / "snips.py"
INTENTS = (
    "AddToPlaylist",
    "BookRestaurant",
    "GetWeather",
    "PlayMusic",
    "RateBook",
    "SearchCreativeWork",
    "SearchScreeningEvent",
)


def convert(folder, checkout):
    """Run the script in a folder."""
    command = [sys.executable, str(SCRIPT), str(checkout)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def request(number, *slots):
    """A request in the benchmark's form, with double spaces and values that end in one."""
    chunks = [{"text": f"say  {number} "}]
    for slot in slots:
        chunks += [{"text": f"Café  {slot} ", "entity": slot}, {"text": " and "}]
    return {"data": chunks}


@pytest.fixture
def checkout(tmp_path):
    """150 training requests and two test requests of every intent; one file is in Latin-1."""
    for intent in INTENTS:
        folder = tmp_path / "nlu" / "2017-06-custom-intent-engines" / intent
        folder.mkdir(parents=True)
        train = [request(f"{intent} {number}", "place", "time") for number in range(150)]
        test = [request(f"{intent} test", "place", "place"), request(f"{intent} none")]
        encoding = "latin-1" if intent == "PlayMusic" else "utf-8"
        for name, rows in {f"train_{intent}_full": train, f"validate_{intent}": test}.items():
            text = json.dumps({intent: rows}, ensure_ascii=False)
            (folder / f"{name}.json").write_bytes(text.encode(encoding))
    return tmp_path / "nlu"


def read(folder, split):
    """The entries of a file that the script wrote."""
    return [json.loads(line) for line in (folder / f"snips_{split}.jsonl").read_text(encoding="utf-8").splitlines()]


def test_the_splits_hold_every_request_once_and_every_record_can_be_judged(checkout, tmp_path):
    done = convert(tmp_path, checkout)
    assert done.returncode == 0, done.stderr
    train, validation, test = (read(tmp_path, split) for split in ("train", "validation", "test"))
    assert (len(train), len(validation), len(test)) == (7 * 150 - 700, 700, 14)
    assert len({entry["prompt"] for entry in train + validation}) == 7 * 150
    for entry in train + validation + test:
        record = SlotsTask().facts(entry["prompt"], entry["answer"])["record"]
        assert record["intent"] in INTENTS
        assert "  " not in entry["prompt"]
        assert record.get("time", "Café time") == "Café time"
    assert json.loads(test[0]["answer"]) == {"intent": "AddToPlaylist", "place": ["Café place", "Café place"]}


def test_the_files_are_the_same_in_every_run(checkout, tmp_path):
    contents = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        convert(tmp_path / name, checkout)
        contents.append([(tmp_path / name / f"snips_{split}.jsonl").read_bytes() for split in ("train", "validation")])
    assert contents[0] == contents[1]


def test_a_folder_that_is_no_checkout_is_one_line(checkout, tmp_path):
    broken = checkout / "2017-06-custom-intent-engines/RateBook/validate_RateBook.json"
    for content in ("", "[1, 2]", '{"RateBook": [{"data": 3}]}', '{"other": []}'):
        broken.write_text(content)
        refused = convert(tmp_path, checkout)
        assert refused.returncode == 2
        assert refused.stderr.startswith("error: ")
        assert refused.stderr.count("\n") == 1
    refused = convert(tmp_path, tmp_path / "nowhere")
    assert refused.returncode == 2
    assert "expected a checkout of github.com/sonos/nlu-benchmark" in refused.stderr
    assert not list(tmp_path.glob("snips_*"))
