"""The folder of a run (its output_dir): its lock, the description of the run, and its figures."""

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

RUN_FILE = "run.json"  # the description of the run
METRICS_FILE = "metrics.json"  # the figures of its stages
LOCK_FILE = ".lock"
OUTPUTS = (  # names in the folder that overwrite=true deletes
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
def claim_output(config: Any) -> Iterator[Path]:
    """Create the output_dir and keep other runs out of it while the `with` block runs.

    A run that is killed leaves the folder free.

    Args:
        config: the configuration.

    Yields:
        The output_dir.

    Raises:
        UserError: another run is writing to the folder, or the folder cannot be written.
    """
    output = Path(config.output_dir)
    lock = FileLock(output / LOCK_FILE)
    try:
        output.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UserError(
            f"output_dir={config.output_dir}: another run is writing there; "
            "wait for its end or choose another output_dir"
        ) from error
    except OSError as error:
        raise UserError(f"output_dir={config.output_dir}: cannot be written ({error.strerror})") from error
    try:
        yield output
    finally:
        lock.release()


def open_output(config: Any, output: Path) -> None:
    """Write the description of the run to the output_dir, or make sure that the description in it is the same.

    With `overwrite=true`, the outputs of the earlier run are deleted first.

    Args:
        config: the configuration.
        output: the output_dir of the run.

    Raises:
        UserError: the folder holds a run of another configuration (the message names the differences), or it cannot be
            written.
    """
    described = identity(config)
    if config.overwrite:
        for name in OUTPUTS:
            target = output / name
            if target.is_dir():
                shutil.rmtree(target)
            else:
                target.unlink(missing_ok=True)
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
    """Read the figures of all stages of a run.

    Args:
        output: the output_dir of the run.

    Returns:
        The figures by the names of the stages; empty where no stage has finished.
    """
    path = output / METRICS_FILE
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def write_metrics(output: Path, stage: str, figures: dict[str, Any]) -> None:
    """Add the figures of a stage to metrics.json.

    Args:
        output: the output_dir of the run.
        stage: the name of the stage.
        figures: the figures of the stage.
    """
    write_json(output / METRICS_FILE, read_metrics(output) | {stage: figures})
