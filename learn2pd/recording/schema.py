"""What a recording holds, on disk and by name.

A recording is a folder:

    recording.json                what it was made with
    shard-00000.states.arrow      what the model proposed, one row a prompt and step (Arrow IPC stream, `datasets.Dataset.from_file` opens it)
    shard-00000.references.arrow  what was right, one row a prompt
    shard-00000.json              rows, prompts, size and sha256 of the two; written last, so that a shard is there exactly when this file is
    ...
    manifest.json                 all of the shards' entries, once every shard is there

All of them are the same, byte for byte, however many processes made them and however often they were interrupted.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from pathlib import Path
from typing import Any

from datasets import Features, Sequence, Value

from learn2pd.data.prompts import Prompt, prompts_digest
from learn2pd.errors import UserError
from learn2pd.files import read_json, write_json
from learn2pd.models.loading import Model

SCHEMA_VERSION = 2
RECORDING, MANIFEST = "recording.json", "manifest.json"
TABLES = ("states", "references")


def state_features(gen_length: int) -> Features:
    """One row a prompt and step, before the commit, over the whole canvas of G positions.

    Proposals are scored at every masked position, and at committed ones of the window; elsewhere they are zeros.
    """

    def canvas(kind: str) -> Any:
        return Sequence(Value(kind), length=gen_length)

    return Features(
        {
            "prompt_id": Value("string"),
            "split": Value("string"),
            "step": Value("int32"),  # forward of this row, from 0
            "start": Value("int32"),  # the window: start <= position < stop
            "stop": Value("int32"),
            "masked": canvas("bool"),  # still to decode: the others are inputs, never targets
            "proposal": canvas("int32"),
            "confidence": canvas("float32"),
            "margin": canvas("float32"),  # probability of the first minus the second
            "entropy": canvas("float32"),  # nats
            "unchanged": canvas("bool"),  # scored in the step before too, and the proposal is the same
            "end_of_text": canvas("bool"),  # the proposal is an end-of-text; of a committed position, its token
            "delimiter": canvas("bool"),  # likewise, a token that ends a line
            "label": canvas("bool"),  # the proposal equals the reference's token
        }
    )


def reference_features(gen_length: int) -> Features:
    """One row a prompt: what the model decodes with one token a step."""
    return Features(
        {
            "prompt_id": Value("string"),
            "split": Value("string"),
            "prompt": Value("string"),
            "tokens": Sequence(Value("int32"), length=gen_length),
            "length": Value("int32"),  # answer tokens before the first end-of-text
            "forwards": Value("int32"),  # of the reference decode
            "oracle_forwards": Value("int32"),  # of the decode whose states these are
        }
    )


def features_of(table: str, gen_length: int) -> Features:
    return {"states": state_features, "references": reference_features}[table](gen_length)


def describe_recording(
    model: Model,
    prompts: SequenceOf[Prompt],
    *,
    gen_length: int,
    block_length: int,
    alignment: str,
    confidence: str,
    delimiter_ids: SequenceOf[int],
    shard_prompts: int,
    seed: int,
    config: dict[str, Any],
    **more: Any,
) -> dict[str, Any]:
    """What a recording is made with; all but `config` must agree when one is continued. `more` is whatever else tells it from others."""
    return {
        "schema": SCHEMA_VERSION,
        "model": model.spec.name,
        "model_fingerprint": model.spec.fingerprint,
        "mask_id": model.spec.mask_id,
        "vocab_size": model.spec.vocab_size,
        "eot_ids": list(model.spec.eot_ids),
        "delimiter_ids": list(delimiter_ids),
        "gen_length": gen_length,
        "block_length": block_length,
        "alignment": alignment,
        "confidence": confidence,
        "prompts": len(prompts),
        "prompts_digest": prompts_digest(prompts),
        "shard_prompts": shard_prompts,
        "seed": seed,
        **more,
        "config": config,
    }


def shard_count(recording: dict[str, Any]) -> int:
    return -(-int(recording["prompts"]) // int(recording["shard_prompts"]))


def shard_name(number: int) -> str:
    return f"shard-{number:05d}"


def table_path(folder: Path, number: int, table: str) -> Path:
    return folder / f"{shard_name(number)}.{table}.arrow"


def entry_path(folder: Path, number: int) -> Path:
    return folder / f"{shard_name(number)}.json"


def open_recording(folder: Path, wanted: dict[str, Any]) -> None:
    """Create the folder and say in it what is recorded there, or make sure that the recording there is the same one.

    Raises:
        UserError: it was made with something else; names each difference.
    """
    path = folder / RECORDING
    if path.exists():
        existing = read_recording(folder)
        keys = [key for key in (*existing, *(key for key in wanted if key not in existing)) if key != "config"]
        changed = [
            f"{key} {existing.get(key)!r} there, {wanted.get(key)!r} now"
            for key in keys
            if existing.get(key) != wanted.get(key)
        ]
        if changed:
            raise UserError(
                f"{folder} holds a recording made with {'; '.join(changed)}: choose another output_dir or set overwrite=true"
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, wanted)


def read_recording(folder: Path) -> dict[str, Any]:
    """Raises UserError where there is no readable recording.json of this schema."""
    found = read_json(folder / RECORDING)
    if found is None:
        raise UserError(f"{folder}: no readable {RECORDING}; run the stage 'record' first")
    if found.get("schema") != SCHEMA_VERSION:
        raise UserError(
            f"{folder}: recorded with schema {found.get('schema')!r}, this version reads {SCHEMA_VERSION}: record again with overwrite=true"
        )
    return found
