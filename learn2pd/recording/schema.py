"""The files of a recording, their columns and their names.

A recording is a folder:

    recording.json                what the recording was made with
    shard-00000.states.arrow      what the model proposed: a row for each prompt and step (an Arrow IPC stream,
                                  which `datasets.Dataset.from_file` opens)
    shard-00000.references.arrow  what was right: a row for each prompt
    shard-00000.json              the shard's entry: numbers of rows and prompts, size and sha256 of the two tables
    ...
    manifest.json                 the entries of all shards, written when every shard exists

The entry of a shard is written last, so a shard is complete exactly when its entry exists.

The files are the same, byte for byte, however many processes made them and however often they were interrupted.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from collections.abc import Sequence as SequenceOf
from pathlib import Path
from typing import Any

from datasets import Features, Sequence, Value

from learn2pd.data.prompts import Prompt, prompts_digest
from learn2pd.errors import UserError
from learn2pd.files import read_json, write_json
from learn2pd.models.loading import Model
from learn2pd.predictors.questions import CHECKED

SCHEMA_VERSION = 2  # of recordings whose columns are all known to release 0.1.0
LATER_VERSION = 3  # of the others
RECORDING = "recording.json"
MANIFEST = "manifest.json"
TABLES = ("states", "references")
COUNTS = ("prompts", "shard_prompts", "gen_length")  # whole numbers in recording.json
# Columns of states with several numbers for each of the positions start to start + block_length, with their types.
WIDE = {"hidden": "float16", "top_ids": "int32", "top_shares": "float16"}
LATER_KEYS = {"hidden_states", "top_tokens"}  # keys of recording.json that say that there are such columns
# Groups of columns that only some recordings have, each with a column by which it is known.
GROUPS = {"committed": "holds", "labels": "label_forwards", "checked": "labelled"}


def state_features(gen_length: int, groups: Collection[str] = (), wide: Mapping[str, int] | None = None) -> Features:
    """Return the columns of the states: a row for each prompt and step.

    A row describes the whole canvas of G positions before the commit of its step. Proposals are scored at every masked
    position and at the committed positions of the window; at all other positions the scores are zeros.

    Args:
        gen_length: length of the canvas G, in tokens.
        groups: names in `GROUPS`. With `committed`, the states are those of a policy that nobody corrected, and the
            committed tokens are described too. With `checked`, a label is known at some positions only.
        wide: names in `WIDE` with the numbers that a row holds; None where there are none.
    """

    def canvas(kind: str) -> Any:
        return Sequence(Value(kind), length=gen_length)

    of_committed = {
        "token": canvas("int32"),  # of a committed position; at a masked position the proposal, -1 where it has none
        "leave_one_out": canvas("float32"),  # probability of the committed token given all tokens but itself
        "leave_one_out_rank": canvas("int32"),  # number of tokens that are more probable there
        "leave_one_out_entropy": canvas("float32"),  # nats
        "committed_with": canvas("float32"),  # confidence with which the token was committed
        "age": canvas("int32"),  # steps since then; 0 where no earlier step committed a token
        "holds": canvas("bool"),  # the committed token equals that of the answer that is right for this prompt
    }
    return Features(
        {
            "prompt_id": Value("string"),
            "split": Value("string"),
            "step": Value("int32"),  # number of the forward in the decode of this row, from 0
            "start": Value("int32"),  # the window holds the positions start <= position < stop
            "stop": Value("int32"),
            "masked": canvas("bool"),  # still to decode; the other positions are inputs and never targets
            "proposal": canvas("int32"),
            "confidence": canvas("float32"),
            "margin": canvas("float32"),  # probability of the most likely token minus that of the second
            "entropy": canvas("float32"),  # nats
            "unchanged": canvas("bool"),  # the step before was scored too, and its proposal was the same
            "end_of_text": canvas("bool"),  # the proposal (at a committed position: the token) is an end-of-text
            "delimiter": canvas("bool"),  # the proposal (at a committed position: the token) ends a line
            "label": canvas("bool"),  # the proposal equals the reference's token
        }
        | (of_committed if "committed" in groups else {})
        | ({"labelled": canvas("bool")} if "checked" in groups else {})  # the label is known
        | {name: Sequence(Value(WIDE[name]), length=numbers) for name, numbers in (wide or {}).items()}
    )


def reference_features(gen_length: int, groups: Collection[str] = ()) -> Features:
    """Return the columns of the references: a row for each prompt, with the answer that has one token a step.

    Args:
        gen_length: length of the canvas G, in tokens.
        groups: names in `GROUPS`.
    """
    of_labels = {"label_forwards": Value("int32")}  # forwards of the continuations that made the labels
    of_checks = {"wordings": Sequence(Value("string"))}  # the answers that were judged right, sorted
    return Features(
        {
            "prompt_id": Value("string"),
            "split": Value("string"),
            "prompt": Value("string"),
            "tokens": Sequence(Value("int32"), length=gen_length),
            "length": Value("int32"),  # answer tokens before the first end-of-text
            "forwards": Value("int32"),  # forwards of the decode that made this reference
            "oracle_forwards": Value("int32"),  # forwards of the decode that made the states
        }
        | (of_labels if "labels" in groups else {})
        | (of_checks if "checked" in groups else {})
    )


def features_of(table: str, gen_length: int, groups: Collection[str], wide: Mapping[str, int]) -> Features:
    """Return the columns of a table.

    Args:
        table: `states` or `references`.
        gen_length: length of the canvas G, in tokens.
        groups: names in `GROUPS`.
        wide: names in `WIDE` with the numbers that a row of the states holds.
    """
    return state_features(gen_length, groups, wide) if table == "states" else reference_features(gen_length, groups)


def wide_of(description: Mapping[str, Any]) -> dict[str, int]:
    """Return the columns in `WIDE` that a recording has, with the numbers that a row holds.

    Args:
        description: the object in recording.json.
    """
    several = {"hidden": description.get("hidden_states", 0)}
    several |= dict.fromkeys(("top_ids", "top_shares"), description.get("top_tokens", 0))
    return {name: int(count) * int(description["block_length"]) for name, count in several.items() if count}


def groups_of(description: Mapping[str, Any]) -> frozenset[str]:
    """Return the groups of columns that a recording has beside those of every recording.

    Args:
        description: the object in recording.json.
    """
    labels = description.get("labels")
    return frozenset(
        group
        for group, holds in (
            ("committed", description.get("committed", False)),
            ("labels", labels is not None),
            ("checked", labels in CHECKED),
        )
        if holds
    )


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
    """Describe what a recording is made with, as recording.json holds it.

    A recording may be continued only by a run that has the same description; only `config` may differ.

    Args:
        model: the model that decodes.
        prompts: all prompts of the recording.
        gen_length: length of the canvas, in tokens.
        block_length: length of a block, in tokens.
        alignment: where the blocks begin, see `Contract`.
        confidence: name of the measure of confidence that is recorded.
        delimiter_ids: tokens that end a line.
        shard_prompts: prompts in each shard.
        seed: seed of the run.
        config: the configuration of the run, for people who read the file.
        **more: whatever else tells this recording from others.

    Returns:
        The description, plain data for JSON.
    """
    return {
        "schema": LATER_VERSION if groups_of(more) - {"committed"} or LATER_KEYS & more.keys() else SCHEMA_VERSION,
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


def shard_count(description: Mapping[str, Any]) -> int:
    """Compute the number of shards from a recording's description."""
    return -(-int(description["prompts"]) // int(description["shard_prompts"]))


def shard_name(number: int) -> str:
    """Return the name of a shard, which all its files begin with."""
    return f"shard-{number:05d}"


def table_path(folder: Path, number: int, table: str) -> Path:
    """Return the path of one table of one shard.

    Args:
        folder: the folder of the recording.
        number: number of the shard, from 0.
        table: `states` or `references`.
    """
    return folder / f"{shard_name(number)}.{table}.arrow"


def entry_path(folder: Path, number: int) -> Path:
    """Return the path of a shard's entry.

    Args:
        folder: the folder of the recording.
        number: number of the shard, from 0.
    """
    return folder / f"{shard_name(number)}.json"


def open_recording(folder: Path, wanted: dict[str, Any]) -> None:
    """Create the folder with its recording.json, or make sure that an existing one describes the same recording.

    Args:
        folder: the folder of the recording.
        wanted: the description (`describe_recording`) of the recording that is to be made.

    Raises:
        UserError: the folder holds a recording that was made with something else; the message names each difference.
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
                f"{folder} holds a recording made with {'; '.join(changed)}: "
                "choose another output_dir or set overwrite=true"
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, wanted)


def read_recording(folder: Path) -> dict[str, Any]:
    """Read the description of a recording.

    Args:
        folder: the folder of the recording.

    Returns:
        The object in recording.json.

    Raises:
        UserError: the folder has no readable recording.json, or the file has another schema.
    """
    if not (folder / RECORDING).exists():
        raise UserError(f"{folder}: no {RECORDING}; run the stage 'record' first")
    description = read_json(folder / RECORDING)
    if description is None:
        raise UserError(f"{folder / RECORDING} is damaged: delete {folder} and run the stage 'record' again")
    if description.get("schema") not in (SCHEMA_VERSION, LATER_VERSION):
        known = f"{SCHEMA_VERSION} and {LATER_VERSION}"
        raise UserError(
            f"{folder}: recorded with schema {description.get('schema')!r}, this version reads {known}: "
            "record again with overwrite=true"
        )
    lacking = [key for key in COUNTS if not isinstance(description.get(key), int) or description[key] < 1]
    if lacking:
        raise UserError(
            f"{folder / RECORDING}: {lacking[0]}={description.get(lacking[0])!r}: the file is damaged: "
            f"delete {folder} and run the stage 'record' again"
        )
    return description
