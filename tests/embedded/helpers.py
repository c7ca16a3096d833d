"""Tiny configurations of embedded models, as files that the command line takes, and what a finished training leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from learn2pd.cli.config import load_config
from learn2pd.embedded.config import EmbeddedConfig

ROOT = Path(__file__).parents[2]
REQUESTS = ROOT / "data" / "requests.jsonl"
EXPORTED = ("model.safetensors", "tokenizer.json", "tokenizer_config.json", "losses.csv")
KINDS = {
    "diffusion": {},
    "blocks": {"network": {"kind": "sdar", "block_size": 4}},
    "causal": {
        "network": {"kind": "llama"},
        "shape": {"long_share": 0.0, "prefix_share": 0.0},
    },
}


def write_requests(folder: Path, count: int = 120) -> tuple[Path, Path]:
    """Files of training and validation requests, the first ones and the ones after them of the repository's own."""
    lines = REQUESTS.read_text().splitlines()
    train, validation = folder / "train.jsonl", folder / "validation.jsonl"
    train.write_text("\n".join(lines[:count]) + "\n")
    validation.write_text("\n".join(lines[count : count + 20]) + "\n")
    return train, validation


def tiny(folder: Path, kind: str = "diffusion") -> dict[str, Any]:
    """What the file of a training that takes a second says; it reads and writes in `folder` alone."""
    train, validation = write_requests(folder)
    described: dict[str, Any] = {
        "job": "embedded",
        "seed": 0,
        "output_dir": str(folder / "run"),
        "export_path": str(folder / "export"),
        "examples": {"path": str(train), "validation_path": str(validation)},
        "vocab_size": 300,
        "network": {"d_model": 16, "n_layers": 1, "n_heads": 2, "mlp_hidden_size": 16, "max_sequence_length": 400},
        "shape": {"batch_examples": 4, "length": 400, "long_share": 0.1, "prefix_share": 0.5},
        "schedule": {"total_steps": 12, "warmup_steps": 2, "checkpoint_every_steps": 2, "validate_every_steps": 5},
    }
    for key, value in KINDS[kind].items():
        described[key] = described[key] | value if isinstance(value, dict) else value
    return described


def write_config(folder: Path, described: dict[str, Any]) -> str:
    """The argument `config=` that names the description as a file."""
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(described))
    return f"config={path}"


def tiny_config(folder: Path, kind: str = "diffusion", overrides: tuple[str, ...] = ()) -> EmbeddedConfig:
    """The checked configuration of `tiny`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = write_config(folder, tiny(folder, kind)).removeprefix("config=")
    return load_config(path, overrides)


def exported(folder: Path) -> dict[str, bytes]:
    """The files of a finished training that another run of its command must give again."""
    return {name: (folder / "export" / name).read_bytes() for name in EXPORTED}


def metrics(folder: Path) -> dict[str, Any]:
    """The figures of a finished training that do not depend on the time it took."""
    figures = json.loads((folder / "run" / "metrics.json").read_text())["pretrain"]
    return {name: value for name, value in figures.items() if name != "core_hours"}
