"""Weights from *.safetensors, checked by their headers before a value is read: which tensors, of which type and shape.

transformers' own reader is not used: it initialises what is missing, casts integers without their scales, prints a
report of dozens of lines before anybody can refuse, and fails on an index without metadata.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from torch import Tensor

from learn2pd.errors import UserError
from learn2pd.models.files import check_file, refuse_tensors
from learn2pd.models.neighbours import told_in_one_line

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
MOST_HEADER_BYTES = 100_000_000  # the limit of the format
MOST_THREADS = 8
PLAIN_TYPES = {"F64", "F32", "F16", "BF16"}
# By the end of a tensor's name: the tools that store numbers beside or instead of a weight.
QUANTISED_NAMES = {
    "qweight": "GPTQ or AWQ",
    "qzeros": "GPTQ or AWQ",
    "g_idx": "GPTQ",
    "absmax": "bitsandbytes",
    "quant_map": "bitsandbytes",
    "SCB": "bitsandbytes",
    "weight_scale": "compressed-tensors or FP8",
    "weight_scale_inv": "FP8",
    "weight_packed": "compressed-tensors",
    "input_scale": "FP8",
    "scales": "MLX, GPTQ or AWQ",
    "biases": "MLX",
}
IGNORED_ENDS = ("rotary_emb.inv_freq",)  # a buffer that old versions of transformers stored and nobody reads


@dataclass(frozen=True)
class Stored:
    """The place of one tensor, and its description in the header of its file.

    Attributes:
        file: The file.
        name: The name of the tensor in the file.
        dtype: The type as safetensors writes it, such as BF16.
        shape: The shape.
    """

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]


def files_to_fetch(subject: str, folder: Path) -> list[str]:
    """List the names of the files with the weights.

    Args:
        subject: The model, for messages.
        folder: The folder that may hold an index of the weights.

    Returns:
        The files that the index names, or the name of the single file where the folder holds no index.

    Raises:
        UserError: The index cannot be read.
    """
    if (folder / SINGLE).exists() or not (folder / INDEX).exists():
        return [SINGLE]
    return sorted(set(_index(subject, folder).values()))


def find_tensors(subject: str, folder: Path) -> tuple[dict[str, Stored], list[Path]]:
    """Read the headers of a folder's weights.

    Args:
        subject: The model, for messages.
        folder: The folder with model.safetensors, or with an index and its shards.

    Returns:
        The tensors by name, and the files.

    Raises:
        UserError: A file is missing, empty, cut short or no safetensors file, or the index is wrong; the message names
            the file.
    """
    if not (folder / SINGLE).is_file() and not (folder / INDEX).is_file():
        raise UserError(
            f"{subject}: there are no weights in {SINGLE} or {INDEX}{_instead(folder)}; "
            "expected whole *.safetensors files"
        )
    by_file: dict[str, list[str]] = {}
    if (folder / SINGLE).is_file():
        by_file[SINGLE] = []
    else:
        for name, file in _index(subject, folder).items():
            by_file.setdefault(file, []).append(name)
    tensors: dict[str, Stored] = {}
    for file, names in sorted(by_file.items()):
        if not (folder / file).is_file():
            raise UserError(
                f"{subject}: the weights are incomplete, {INDEX} names {file}, which is missing; download it again"
            )
        described = _header(subject, folder / file)
        absent = [name for name in names if name not in described]
        refuse_tensors(subject, f"{INDEX} says that {file} holds them", missing=absent)
        tensors |= {
            name: Stored(folder / file, name, fields["dtype"], tuple(fields["shape"]))
            for name, fields in described.items()
        }
    return tensors, [folder / file for file in by_file]


def fit(subject: str, tensors: Mapping[str, Stored], expected: Mapping[str, Tensor]) -> dict[str, Stored]:
    """Match the stored tensors with the network's, and check that each one exists, fits and holds plain numbers.

    Args:
        subject: The model, for messages.
        tensors: The tensors by their names in the files, which may lack the network's prefix `model.`.
        expected: The network's state, of any device.

    Raises:
        UserError: Naming the first tensor that does not fit.
    """
    named = {}
    for name, stored in tensors.items():
        full = name if name in expected or f"model.{name}" not in expected else f"model.{name}"
        if full in named:
            raise UserError(
                f"{subject}: the weights hold {full} twice, also without the prefix model.; expected it once"
            )
        named[full] = stored
    unknown = [name for name in named if name not in expected and not name.endswith(IGNORED_ENDS)]
    _refuse_quantised(subject, named, unknown)
    refuse_tensors(
        subject,
        "the checkpoint does not fit its config.json",
        missing=[name for name in expected if name not in named],
        unknown=unknown,
        misshapen=[name for name in expected if name in named and tuple(expected[name].shape) != named[name].shape],
    )
    return {name: named[name] for name in expected}


def read(
    subject: str,
    tensors: Mapping[str, Stored],
    dtype: torch.dtype,
    devices: Mapping[str, torch.device],
    inspect: Callable[[str, Tensor], object] | None = None,
) -> dict[str, Tensor]:
    """Return every tensor on its device, in the wanted type.

    The processor's memory holds a few tensors at a time beside those of the result.

    Args:
        subject: The model, for messages.
        tensors: The tensors that `fit` returned.
        dtype: The type of the result.
        devices: The device of every tensor of the result, by its name.
        inspect: A function that several threads call with every name and its tensor on the CPU.

    Raises:
        UserError: A file cannot be read, or the device has too little memory.
    """
    with (
        ExitStack() as stack,
        told_in_one_line(f"{subject}: the weights could not be loaded", "expected whole *.safetensors files"),
    ):
        files = {stored.file for stored in tensors.values()}
        opened = {file: stack.enter_context(safe_open(file, framework="pt")) for file in files}

        def loaded(name: str) -> Tensor:
            stored = tensors[name]
            mapped = opened[stored.file].get_tensor(stored.name)
            value = mapped.to(dtype).contiguous()
            if inspect is not None:
                inspect(name, value)
            # never the mapped file itself, which somebody may overwrite while the model is used
            return value.to(devices[name], copy=value.data_ptr() == mapped.data_ptr())

        with ThreadPoolExecutor(min(MOST_THREADS, os.cpu_count() or 1)) as pool:
            return dict(zip(tensors, pool.map(loaded, tensors), strict=True))


def _index(subject: str, folder: Path) -> dict[str, str]:
    """Return the file names by tensor."""
    check_file(subject, folder / INDEX)
    with told_in_one_line(f"{subject}: {INDEX} could not be read", "expected an object with weight_map"):
        fields = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    named = fields.get("weight_map") if isinstance(fields, dict) else None
    if not isinstance(named, dict) or not named or not all(isinstance(file, str) for file in named.values()):
        raise UserError(f"{subject}: {INDEX} has no weight_map of tensor names and file names; download it again")
    for file in named.values():
        if Path(file).name != file or not file.endswith(".safetensors"):
            raise UserError(f"{subject}: {INDEX} names the file {file!r}; expected *.safetensors beside it")
    return named


def _header(subject: str, file: Path) -> dict[str, dict[str, Any]]:
    check_file(subject, file)
    size = file.stat().st_size
    wrong = f"{subject}: the weights in {file.name} could not be read"
    with told_in_one_line(wrong, "download the file again"):
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if size >= 8 and length > min(size - 8, MOST_HEADER_BYTES):
                kind = "it is cut short" if length <= MOST_HEADER_BYTES else "it is no safetensors file"
                raise UserError(f"{wrong} ({kind}: {size} bytes); download the file again")
            fields = json.loads(opened.read(length))
        fields.pop("__metadata__", None)
        wanted = 8 + length + max((stored["data_offsets"][1] for stored in fields.values()), default=0)
        if size < wanted:
            raise UserError(f"{wrong} (it is cut short: {size} of {wanted} bytes); download the file again")
        with safe_open(file, framework="pt"):  # which checks the rest
            return cast(dict[str, dict[str, Any]], fields)


def _instead(folder: Path) -> str:
    """Name files of the folder that the user may have meant as the weights."""
    for pattern, says in (
        ("*.gguf", "GGUF files are not read"),
        ("*.bin", "PyTorch's *.bin files are pickle and never loaded"),
        ("*.pt", "PyTorch's *.pt files are pickle and never loaded"),
        ("*.pth", "PyTorch's *.pth files are pickle and never loaded"),
        ("*.npz", "*.npz files are not read"),
        ("*.safetensors", "files of other names are not read"),
    ):
        if any(folder.glob(pattern)):
            return f" ({says})"
    return ""


def _refuse_quantised(subject: str, named: Mapping[str, Stored], unknown: list[str]) -> None:
    for name in sorted(unknown):
        tool = QUANTISED_NAMES.get(name.rpartition(".")[2])
        tool = "bitsandbytes" if "quant_state" in name else tool
        if tool is not None:
            raise UserError(
                f"{subject}: the weights are quantised, as by {tool} (tensor {name}); expected the plain checkpoint"
            )
    for name, stored in sorted(named.items()):
        if stored.dtype not in PLAIN_TYPES and name not in unknown:
            raise UserError(
                f"{subject}: the tensor {name} holds values of type {stored.dtype}, as quantised weights do, "
                "and no scales belong to them; "
                f"expected the plain checkpoint, of type {', '.join(sorted(PLAIN_TYPES))}"
            )
