"""Read a recording back, checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import Dataset, concatenate_datasets, load_from_disk

from learn2pd.errors import UserError
from learn2pd.recording.recorder import read_manifest, shard_path
from learn2pd.recording.schema import reference_features, row_features


def load_recording(folder: Path) -> tuple[Dataset, Dataset, dict[str, Any]]:
    """Rows, references and manifest of a complete recording.

    Raises:
        UserError: shards are missing or damaged; names the first.
    """
    found = read_manifest(folder)
    count = -(-found["prompts"] // found["shard_prompts"])
    parts: dict[str, list[Dataset]] = {"rows": [], "references": []}
    expected = {"rows": row_features(found["block_length"]), "references": reference_features(found["gen_length"])}
    for number in range(count):
        path = shard_path(folder, number)
        for name, collected in parts.items():
            if not path.is_dir():
                raise UserError(f"{path} is missing: the recording has {count} shards; run the stage 'record' again to complete it")
            try:
                part = load_from_disk(str(path / name))
            except Exception as error:
                detail = (str(error).splitlines() or [type(error).__name__])[0]
                raise UserError(f"{path / name} is damaged ({detail}): delete {path} and run the stage 'record' again") from error
            if not isinstance(part, Dataset) or part.features != expected[name]:
                raise UserError(
                    f"{path / name} does not have the columns of schema {found['schema']}: delete {path} and run the stage 'record' again"
                )
            collected.append(part)
    return concatenate_datasets(parts["rows"]), concatenate_datasets(parts["references"]), found
