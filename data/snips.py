"""Turn a checkout of the SNIPS benchmark into JSONL files for `config=tiny_real_dllm` and `config=tiny_real_card`.

The benchmark (github.com/sonos/nlu-benchmark, CC0) holds spoken requests that people wrote, with intents and slots:

    git clone https://github.com/sonos/nlu-benchmark
    python data/snips.py nlu-benchmark

This writes snips_train.jsonl, snips_validation.jsonl and snips_test.jsonl into the current folder. The test split is
the benchmark's own. The validation split is 700 of its training requests, drawn by seed 0.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path
from typing import Any

INTENTS = (
    "AddToPlaylist",
    "BookRestaurant",
    "GetWeather",
    "PlayMusic",
    "RateBook",
    "SearchCreativeWork",
    "SearchScreeningEvent",
)
FOLDER = "2017-06-custom-intent-engines"
VALIDATION_REQUESTS = 700
INSTRUCTION = "Write this as JSON."


def record(intent: str, chunks: list[dict[str, str]]) -> dict[str, Any]:
    """The intent and the slots of a request, in the order of their mention; a slot that is filled twice has a list."""
    slots: dict[str, Any] = {"intent": intent}
    for chunk in chunks:
        if "entity" in chunk:
            value, before = _one_space(chunk["text"]), slots.get(chunk["entity"])
            among = [before] if isinstance(before, str) else before
            slots[chunk["entity"]] = value if among is None else [*among, value]
    return slots


def lines(path: Path, intent: str) -> list[str]:
    """The requests of one file of the benchmark, as lines of JSON with the fields `prompt` and `answer`."""
    content = path.read_bytes()
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        text = content.decode("latin-1")  # one file of the benchmark
    written = []
    for request in json.loads(text)[intent]:
        prompt = _one_space("".join(chunk["text"] for chunk in request["data"]))
        answer = json.dumps(record(intent, request["data"]), ensure_ascii=False)
        written.append(json.dumps({"prompt": f"{prompt} {INSTRUCTION}", "answer": answer}, ensure_ascii=False))
    return written


def splits(checkout: Path) -> dict[str, list[str]]:
    """The lines of the three files, by the name of the split."""
    folder = checkout / FOLDER
    train = [line for name in INTENTS for line in lines(folder / name / f"train_{name}_full.json", name)]
    test = [line for name in INTENTS for line in lines(folder / name / f"validate_{name}.json", name)]
    random.Random(0).shuffle(train)
    return {"train": train[VALIDATION_REQUESTS:], "validation": train[:VALIDATION_REQUESTS], "test": test}


def _one_space(text: str) -> str:
    return " ".join(text.split())


def main() -> int:
    """Convert the checkout that the command names; exit code 2 with one line where it is not one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="folder of the benchmark's checkout")
    checkout = parser.parse_args().checkout
    try:
        files = splits(checkout)
    except OSError as error:
        expected = "expected a checkout of github.com/sonos/nlu-benchmark"
        print(f"error: {error.filename}: {error.strerror}; {expected}", file=sys.stderr)
        return 2
    except (ValueError, KeyError, TypeError) as error:
        print(f"error: {checkout}: not the benchmark's files ({error!r})", file=sys.stderr)
        return 2
    for split, written in files.items():
        Path(f"snips_{split}.jsonl").write_bytes(("\n".join(written) + "\n").encode())
        print(f"snips_{split}.jsonl: {len(written)} requests")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
