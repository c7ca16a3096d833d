"""The identity of a model: 16 hex digits that depend on every byte of its weights and on its configuration.

Recordings, policies and compared outcomes belong to a model by this fingerprint, so that a model with one changed value
is another one.

The cost: SHA-256 reads about 1.25 GB a second on one core of a server's processor that has instructions for it
(measured; 0.4 without them). The weights are hashed in the type in which they are loaded, side by side on up to 8
cores: LLaDA-8B takes 13 seconds of one core in bfloat16 (16 GB), and twice as long in float32. Only the first load of a
checkpoint in a type pays. The digest is then kept in the user's cache folder, under the names, sizes, times and inodes
of the files, and nothing is written beside the checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PretrainedConfig

from learn2pd.files import whole_file

SCHEME = "1"  # of the digest of weights; another scheme does not read the digests that this one kept
DIGITS = 16
SETTLED_SECONDS = 2.0  # a file changed more recently may change again without a new time, as some file systems count
# Fields of a configuration that change no output of a loaded model: where it comes from, how it was initialised and
# trained, and how its outputs are packed.
CANNOT_MATTER = frozenset(
    {
        *("architectures", "auto_map", "_name_or_path", "name_or_path", "transformers_version", "_commit_hash"),
        *(
            "dtype",
            "torch_dtype",
            "precision",
            "init_device",
            "init_fn",
            "init_std",
            "init_cutoff_factor",
            "initializer_range",
        ),
        *(
            "attention_dropout",
            "embedding_dropout",
            "residual_dropout",
            "hidden_dropout",
            "flash_attention",
            "_attn_implementation",
        ),
        *(
            "use_cache",
            "return_dict",
            "output_attentions",
            "output_hidden_states",
            "gradient_checkpointing",
            "id2label",
            "label2id",
        ),
        *("num_labels", "problem_type", "task_specific_params"),
    }
)


def fingerprint(config: PretrainedConfig, weights: str) -> str:
    """Return the identity of a model.

    Args:
        config: Every field counts but those of `CANNOT_MATTER` and those that have transformers' own default.
        weights: The hex digest of a `WeightsDigest`.

    Returns:
        16 hex digits.
    """
    defaults = PretrainedConfig().to_dict()
    fields = {name: value for name, value in config.to_dict().items() if name not in CANNOT_MATTER}
    own = {name: value for name, value in fields.items() if name not in defaults or defaults[name] != value}
    text = json.dumps(own, sort_keys=True, default=str)
    return hashlib.sha256(f"{text}\n{weights}".encode()).hexdigest()[:DIGITS]


class WeightsDigest:
    """SHA-256 of the names, types, shapes and bytes of tensors.

    The order in which tensors are added does not matter, nor do the threads that add them.
    """

    def __init__(self) -> None:
        self._lines: dict[str, str] = {}

    def add(self, name: str, tensor: Tensor) -> None:
        """Add a tensor to the digest.

        Args:
            name: The name of the tensor in the network.
            tensor: The tensor, on any device.
        """
        values = tensor.detach().cpu().contiguous().reshape(-1)
        digest = hashlib.sha256(cast(Any, values.view(torch.uint8).numpy())).hexdigest()
        self._lines[name] = f"{name} {tensor.dtype} {tuple(tensor.shape)} {digest}"

    def hexdigest(self) -> str:
        """Return 64 hex digits of everything added so far."""
        return hashlib.sha256("\n".join(self._lines[name] for name in sorted(self._lines)).encode()).hexdigest()


def weights_digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the digest of tensors that are already in memory, such as a network's `state_dict()`."""
    digest = WeightsDigest()
    for name, tensor in tensors.items():
        digest.add(name, tensor)
    return digest.hexdigest()


class KeptDigest:
    """The digest of weights in files, in the user's cache folder.

    A cache that cannot be read or written only costs the time to digest the weights again.

    Args:
        files: The files that hold the weights; how they are is noted here, so make this before they are read.
        dtype: The type in which the weights are loaded.
    """

    def __init__(self, files: Sequence[Path], dtype: torch.dtype) -> None:
        self._files = list(files)
        self._before = file_states(self._files)
        key = f"{SCHEME}\n{dtype}\n{json.dumps(self._before)}"
        self._name = hashlib.sha256(key.encode()).hexdigest()

    @property
    def unchanged(self) -> bool:
        """Whether the files are still as they were."""
        return self._before is not None and file_states(self._files) == self._before

    def read(self) -> str | None:
        """Return the kept digest; None where these files were not digested before."""
        if self._before is None:
            return None
        try:
            digest = (cache_folder() / self._name).read_text(encoding="ascii").strip()
        except (OSError, ValueError, RuntimeError):
            return None
        return digest if len(digest) == 64 and set(digest) <= set("0123456789abcdef") else None

    def write(self, digest: str) -> None:
        """Keep a digest.

        Nothing is kept where the files have changed since this object was made, or where they changed so lately that
        they may change again without a new time.

        Args:
            digest: 64 hex digits.
        """
        if not self.unchanged:
            return
        try:
            if max(file.stat().st_mtime for file in self._files) < time.time() - SETTLED_SECONDS:
                cache_folder().mkdir(parents=True, exist_ok=True)
                with whole_file(cache_folder() / self._name) as partial:
                    partial.write_text(digest, encoding="ascii")
        except (OSError, ValueError, RuntimeError):
            return


def cache_folder() -> Path:
    """Return where digests are kept: `learn2pd/weights` in XDG_CACHE_HOME, else in HF_HOME, else in ~/.cache."""
    for name in ("XDG_CACHE_HOME", "HF_HOME"):
        if os.environ.get(name, "").strip():
            return Path(os.environ[name]).expanduser() / "learn2pd" / "weights"
    return Path.home() / ".cache" / "learn2pd" / "weights"


def file_states(files: Sequence[Path]) -> list[list[Any]] | None:
    """Describe how files are at the moment, so that a change of one of them shows without being read.

    Args:
        files: The files.

    Returns:
        Real path, size, times of the last change (of the content and of the inode) and inode of every file; None where
        one of them is missing.
    """
    states = []
    try:
        for file in files:
            real = file.resolve(strict=True)
            status = real.stat()
            states.append(
                [str(real), status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_dev, status.st_ino]
            )
    except OSError:
        return None
    return sorted(states)
