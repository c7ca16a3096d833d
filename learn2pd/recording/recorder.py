"""Record what the oracle would do: per prompt the reference decode, then the oracle's trajectory with a label at every position.

The reference is the model's own output with one token a step; once it has committed an end-of-text the rest of its canvas is end-of-text.
The oracle pass runs over the whole canvas, so that a policy trained on it has seen padded blocks too.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from tqdm.auto import tqdm

from learn2pd.decoding.api import decode
from learn2pd.decoding.proposals import CONFIDENCE
from learn2pd.decoding.schedulers import BlocksScheduler
from learn2pd.decoding.stops import EotStop, NoStop, is_among
from learn2pd.errors import UserError
from learn2pd.models.loading import Model
from learn2pd.policies.filter import window_view
from learn2pd.policies.fixed import FixedPolicy
from learn2pd.policies.oracle import OraclePolicy
from learn2pd.prompts import Prompt, prompts_digest
from learn2pd.recording.schema import MANIFEST, SCHEMA_VERSION, describe, reference_features, row_features
from learn2pd.types import Commit, DecodeState, Prediction

log = logging.getLogger(__name__)


class OracleRecorder:
    """A loop recorder that keeps one row a step and open row, labelled with the reference."""

    needs = frozenset({"margin", "entropy"})
    scores_committed = True

    def __init__(self, reference: Tensor, block_length: int, eot_ids: tuple[int, ...]) -> None:
        self.reference, self.block_length, self.eot_ids = reference, block_length, eot_ids
        self.columns: list[dict[str, Tensor]] = []

    def record(self, state: DecodeState, prediction: Prediction, commit: Commit) -> None:
        width, rows = self.block_length, state.open
        position = state.window.start[:, None] + torch.arange(width, device=state.end.device)
        reference = self.reference.to(state.tokens.device)[state.index]
        canvas = {
            "masked": state.masked,
            "proposal": prediction.tokens,
            "confidence": prediction.confidence,
            "margin": prediction.extras["margin"],
            "entropy": prediction.extras["entropy"],
            "end_of_text": is_among(prediction.tokens, self.eot_ids),
            "label": prediction.tokens == reference,
        }
        found = {name: window_view(values, state.window, width) for name, values in canvas.items()}
        found |= {"valid": position < state.window.stop[:, None], "position": position}
        found |= {"index": state.index, "step": state.forwards - 1, "block": state.window.start // width}
        self.columns.append({name: values[rows].cpu() for name, values in found.items()})

    def rows(self) -> dict[str, Tensor]:
        """All rows by column, ordered by prompt and step."""
        joined = {name: torch.cat([step[name] for step in self.columns]) for name in self.columns[0]}
        order = (joined["index"] * (int(joined["step"].max()) + 1) + joined["step"]).argsort()
        return {name: values[order] for name, values in joined.items()}


def manifest(
    model: Model, prompts: Sequence[Prompt], gen_length: int, block_length: int, shard_prompts: int, seed: int, config: dict[str, Any]
) -> dict[str, Any]:
    """What a recording is made with; all but `config` must agree when one is continued or trained on."""
    return {
        "schema": SCHEMA_VERSION,
        "model": model.spec.name,
        "model_fingerprint": model.spec.fingerprint,
        "mask_id": model.spec.mask_id,
        "vocab_size": model.spec.vocab_size,
        "gen_length": gen_length,
        "block_length": block_length,
        "alignment": BlocksScheduler.alignment,
        "confidence": CONFIDENCE,
        "prompts": len(prompts),
        "prompts_digest": prompts_digest(prompts),
        "shard_prompts": shard_prompts,
        "seed": seed,
        "config": config,
    }


def open_recording(folder: Path, wanted: dict[str, Any]) -> None:
    """Create the folder with its manifest, or make sure that the one there is the same recording.

    Raises:
        UserError: it was made with something else; names each difference.
    """
    path = folder / MANIFEST
    if path.exists():
        existing = read_manifest(folder)
        pairs = ((key, describe(existing).get(key), value) for key, value in describe(wanted).items())
        changed = [f"{key} {old!r} there, {new!r} now" for key, old, new in pairs if old != new]
        if changed:
            raise UserError(f"{folder} holds a recording made with {'; '.join(changed)}: choose another output_dir or set overwrite=true")
        return
    folder.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(wanted, indent=2) + "\n")
    os.replace(partial, path)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Raises UserError where there is no readable manifest of this schema."""
    path = folder / MANIFEST
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: no readable {MANIFEST} ({str(error).splitlines()[0]}); run the stage 'record' first") from error
    if found.get("schema") != SCHEMA_VERSION:
        raise UserError(
            f"{folder}: recorded with schema {found.get('schema')!r}, this version reads {SCHEMA_VERSION}: record again with overwrite=true"
        )
    return found


def record(
    model: Model, prompts: Sequence[Prompt], folder: Path, *, gen_length: int, block_length: int, batch_size: int, shard_prompts: int
) -> dict[str, float]:
    """Record every shard that is not there yet. The result does not depend on interruptions.

    Args:
        folder: opened by `open_recording`.
        shard_prompts: prompts a shard; an interruption costs at most one shard.

    Returns:
        prompts recorded now, seconds, forwards of reference and oracle per prompt.

    Raises:
        UserError: the disk is full; what was recorded stays.
    """
    chunks = [prompts[first : first + shard_prompts] for first in range(0, len(prompts), shard_prompts)]
    missing = [number for number in range(len(chunks)) if not shard_path(folder, number).is_dir()]
    done = len(prompts) - sum(len(chunks[number]) for number in missing)
    started = time.perf_counter()
    with tqdm(total=len(prompts), initial=done, desc="record", unit="prompt", dynamic_ncols=True) as bar:
        for number in missing:
            _record_shard(model, chunks[number], shard_path(folder, number), gen_length, block_length, batch_size)
            bar.update(len(chunks[number]))
    return {"prompts_recorded_now": float(len(prompts) - done), "seconds": time.perf_counter() - started}


def shard_path(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:05d}"


def _record_shard(model: Model, prompts: Sequence[Prompt], path: Path, gen_length: int, block_length: int, batch_size: int) -> None:
    texts = [prompt.text for prompt in prompts]
    scheduler = BlocksScheduler(block_length)
    reference = decode(model, texts, policy=FixedPolicy(), scheduler=scheduler, stop=EotStop(0.0), gen_length=gen_length, batch_size=batch_size)
    recorder = OracleRecorder(reference.tokens, block_length, model.spec.eot_ids)
    oracle = decode(
        model, texts, policy=OraclePolicy(reference.tokens), scheduler=scheduler, stop=NoStop(),
        gen_length=gen_length, batch_size=batch_size, recorder=recorder,
    )  # fmt: skip
    columns = recorder.rows()
    index = columns.pop("index").tolist()
    rows = {name: values.numpy() if values.ndim == 1 else list(values.numpy()) for name, values in columns.items()}
    rows |= {"prompt_id": [prompts[i].id for i in index], "split": [prompts[i].split for i in index]}
    references = {
        "prompt_id": [prompt.id for prompt in prompts],
        "split": [prompt.split for prompt in prompts],
        "prompt": texts,
        "tokens": list(reference.tokens.numpy()),
        "length": reference.lengths.tolist(),
        "forwards": reference.forwards.tolist(),
        "oracle_forwards": oracle.forwards.tolist(),
    }
    _write_shard(
        path, Dataset.from_dict(rows, features=row_features(block_length)), Dataset.from_dict(references, features=reference_features(gen_length))
    )


def _write_shard(path: Path, rows: Dataset, references: Dataset) -> None:
    partial = path.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        _save(rows, partial / "rows")
        _save(references, partial / "references")
        os.replace(partial, path)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        if error.errno == errno.ENOSPC:
            raise UserError(
                f"no space left on the disk while writing {path}: {path.parent} keeps every earlier shard; free space and start again"
            ) from error
        raise


def _save(dataset: Dataset, path: Path) -> None:
    """`save_to_disk` without its own progress bar, which would break into ours."""
    import datasets

    shown = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        dataset.save_to_disk(str(path))
    finally:
        if not shown:
            datasets.enable_progress_bars()
