"""What a recording holds, on disk and by name.

A recording is a folder: `recording.json` (what it was made with) and `shard-00000/`, `shard-00001/`, ... each with two Arrow data sets,
`rows` and `references`. A shard is written under another name and renamed, so one that has its name is whole.
"""

from __future__ import annotations

from typing import Any

from datasets import Features, Sequence, Value

SCHEMA_VERSION = 1
MANIFEST = "recording.json"


def row_features(width: int) -> Features:
    """One row a prompt and step: the block that was decoded, before the commit. W = block length; past the block's end all is zero."""
    return Features(
        {
            "prompt_id": Value("string"),
            "split": Value("string"),
            "step": Value("int32"),  # forward of this row, from 0
            "block": Value("int32"),
            "position": Sequence(Value("int32"), length=width),  # generation position
            "valid": Sequence(Value("bool"), length=width),  # inside the block
            "masked": Sequence(Value("bool"), length=width),  # still to decode: the others are inputs, never targets
            "proposal": Sequence(Value("int32"), length=width),
            "confidence": Sequence(Value("float32"), length=width),
            "margin": Sequence(Value("float32"), length=width),  # probability of the first minus the second
            "entropy": Sequence(Value("float32"), length=width),  # nats
            "end_of_text": Sequence(Value("bool"), length=width),  # the proposal is an end-of-text
            "label": Sequence(Value("bool"), length=width),  # the proposal equals the final output
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
            "oracle_forwards": Value("int32"),
        }
    )


def describe(manifest: dict[str, Any]) -> dict[str, Any]:
    """The part of a manifest that two recordings must share to be one."""
    return {key: value for key, value in manifest.items() if key != "config"}
