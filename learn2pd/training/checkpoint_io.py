"""Lightning checkpoints as safetensors files.

Tensors are stored in the body of the file, and everything else as JSON in its header. No pickle is written or read.

A checkpoint is a tree of dicts, lists, tuples, tensors and plain values. Each tensor moves to the body under a running
name and leaves a reference in the tree. Tuples, and dicts whose keys are not all strings (the states of optimizers),
are tagged so that the tree that is read has the same types.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import CheckpointIO
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from learn2pd.errors import UserError, first_line
from learn2pd.files import whole_file

TAGS = ("__tensor__", "__items__", "__tuple__")


def _flatten(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        name = f"t{len(tensors)}"
        tensors[name] = value.detach().cpu().clone().contiguous()  # clone: safetensors refuses shared storage
        return {"__tensor__": name}
    if isinstance(value, dict):
        if all(isinstance(key, str) and key not in TAGS for key in value):
            return {key: _flatten(entry, tensors) for key, entry in value.items()}
        return {"__items__": [[_flatten(key, tensors), _flatten(entry, tensors)] for key, entry in value.items()]}
    if isinstance(value, tuple):
        return {"__tuple__": [_flatten(entry, tensors) for entry in value]}
    if isinstance(value, list):
        return [_flatten(entry, tensors) for entry in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"a checkpoint cannot hold a {type(value).__name__}: only tensors and JSON values are saved")


def _unflatten(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_unflatten(entry, tensors) for entry in value]
    if not isinstance(value, dict):
        return value
    if "__tensor__" in value:
        return tensors[value["__tensor__"]]
    if "__items__" in value:
        return {_unflatten(key, tensors): _unflatten(entry, tensors) for key, entry in value["__items__"]}
    if "__tuple__" in value:
        return tuple(_unflatten(entry, tensors) for entry in value["__tuple__"])
    return {key: _unflatten(entry, tensors) for key, entry in value.items()}


class SafetensorsCheckpointIO(CheckpointIO):
    """Writes and reads checkpoints as safetensors files.

    A checkpoint is written to a temporary name and then renamed, so that a kill at any moment leaves the previous
    checkpoint whole.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint.

        Args:
            checkpoint: the tree that Lightning saves.
            path: the file to write or replace.
            storage_options: not used.

        Raises:
            TypeError: the tree holds something that is neither a tensor nor a JSON value.
        """
        tensors: dict[str, Tensor] = {}
        tree = json.dumps(_flatten(checkpoint, tensors))
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(target) as partial:
            save_file(tensors or {"empty": torch.zeros(1)}, partial, metadata={"tree": tree})

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint.

        Args:
            path: the file.
            map_location: not used; the tensors are on the CPU.
            weights_only: not used; the file cannot hold code.

        Returns:
            The tree that was saved.

        Raises:
            UserError: the file is missing, damaged or not such a checkpoint; the message names the file.
        """
        try:
            with safe_open(path, framework="pt") as file:
                tree = json.loads(file.metadata()["tree"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            restored: dict[str, Any] = _unflatten(tree, tensors)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise UserError(
                f"checkpoint {path} is damaged or not one of ours ({first_line(error)}): delete it to start again"
            ) from error
        return restored

    def remove_checkpoint(self, path: Any) -> None:
        """Delete a checkpoint if it exists.

        Args:
            path: the file.
        """
        Path(path).unlink(missing_ok=True)
