"""The folder of a run: what it was made with, its figures, and files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from learn2pd.cli.config import differences, identity
from learn2pd.errors import UserError
from learn2pd.files import write_json

RUN_FILE, METRICS_FILE, LOCK_FILE = "run.json", "metrics.json", ".lock"
OUTPUTS = (
    RUN_FILE,
    METRICS_FILE,
    "records",
    "rounds",
    "train",
    "policy",
    "compare",
    "compare.json",
    "compare.md",
    "plots",
    "pretrain",
)


@contextlib.contextmanager
def claimed(config: Any) -> Iterator[Path]:
    """Create output_dir and keep other runs out of it; a run that was killed leaves it free.

    Raises:
        UserError: another run is at work there, or it cannot be written.
    """
    output = Path(config.output_dir)
    lock = FileLock(output / LOCK_FILE)
    try:
        output.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UserError(
            f"output_dir={config.output_dir}: another run is writing there; wait for its end or choose another output_dir"
        ) from error
    except OSError as error:
        raise UserError(f"output_dir={config.output_dir}: cannot be written ({error.strerror})") from error
    try:
        yield output
    finally:
        lock.release()


def open_output(config: Any, output: Path) -> None:
    """Prepare output_dir, or make sure that what is there belongs to this configuration.

    Raises:
        UserError: it belongs to another; names what differs.
    """
    described = identity(config)
    if config.overwrite:
        for name in OUTPUTS:
            target = output / name
            shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)
    path = output / RUN_FILE
    if path.is_file() and not config.resume:
        changed = differences(json.loads(path.read_text(encoding="utf-8")), described)
        if changed:
            shown = "; ".join(changed[:4]) + ("; ..." if len(changed) > 4 else "")
            ways = "overwrite=true to start again" if config.job == "embedded" else "resume=true or overwrite=true"
            held = f"output_dir={config.output_dir} holds a run of another configuration ({shown})"
            raise UserError(f"{held}: choose another, or set {ways}")
    try:
        write_json(path, described)
    except OSError as error:
        raise UserError(f"output_dir={config.output_dir}: cannot be written ({error.strerror})") from error


def read_metrics(output: Path) -> dict[str, Any]:
    path = output / METRICS_FILE
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def write_metrics(output: Path, stage: str, figures: dict[str, Any]) -> None:
    write_json(output / METRICS_FILE, read_metrics(output) | {stage: figures})
