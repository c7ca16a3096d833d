"""The folder of a run (its output_dir): its lock, the description of the run, and its figures.

The folder always tells the truth: what stands in run.json is what its outputs were made with. With resume=true, the
outputs of the stages that a changed key belongs to are deleted before run.json is written.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from learn2pd.cli.config import RunConfig, differences, identity
from learn2pd.cli.values import keys_of
from learn2pd.errors import UserError
from learn2pd.files import here_or_shipped, read_json, write_json
from learn2pd.kinds import shown
from learn2pd.recording.schema import RECORDING

log = logging.getLogger(__name__)
Changes = dict[str, tuple[Any, Any]]  # the old and the new value of changed keys
WRITTEN = ("output_dir", "export_path")  # keys of folders that are written, and not read
RUN_FILE = "run.json"  # the description of the run
METRICS_FILE = "metrics.json"  # the figures of its stages
LOCK_FILE = ".lock"
REPORT_FILE = "report.html"  # the page that shows the run
REPLAY_FILE = "replays.json"  # every step of one prompt of each task, for that page
STAGE_OUTPUTS = {  # names in the folder by the stage that makes them, the stages in their order
    "record": ("records", "labels"),
    "train": ("train", "rounds"),
    "calibrate": ("policy", "adapter", "plots/reliability.png"),
    "reinforce": ("reinforce", "reinforced"),
    "compare": (
        *("compare.json", "compare.md", "plots/tradeoff.png", "plots/tradeoff_tasks.png"),
        *("plots/fastest.png", "plots/commit_steps.png"),
    ),
}
# decoded answers of a comparison; they are kept when a key changes, since each of them knows what it depends on
CACHES = ("compare",)
OUTPUTS = (  # names in the folder that overwrite=true deletes
    *(RUN_FILE, METRICS_FILE, REPORT_FILE, REPLAY_FILE, "plots", "pretrain"),
    *(name for names in STAGE_OUTPUTS.values() for name in names),
    *CACHES,
)
# The first stage whose outputs depend on a key, by the beginning of the key. All other keys belong to `train`. Whether
# the recording depends on them is decided by the recording itself, which holds what it was made with.
FIRST_STAGE = {
    "calibrate.": "calibrate",
    "reinforce.": "reinforce",
    **dict.fromkeys(("name", "model.", "compare.", "data.test_", "record.shard_prompts"), "compare"),
    **dict.fromkeys(("decode.temperature", "decode.top_p", "decode.top_k"), "compare"),
}


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
    _check_folder(config, output)
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


def open_output(config: Any, output: Path, stages: Collection[str] = ()) -> None:
    """Write the description of the run to the output_dir, and delete the outputs that do not belong to it any more.

    With `overwrite=true`, all outputs of an earlier run are deleted. With `resume=true`, those of the stages that a
    changed key belongs to are deleted.

    Args:
        config: the configuration.
        output: the output_dir of the run.
        stages: the stages that are going to run.

    Raises:
        UserError: the folder holds a run of another configuration (the message names the differences), a changed key
            belongs to a stage that is done and is not going to run, the description or the figures of the earlier run
            cannot be read, something would be deleted that is not of a run or that this command reads, or the folder
            cannot be written.
    """
    described = identity(config)
    changed = check_output(config, output, stages)
    try:
        if config.overwrite:
            for name in OUTPUTS:
                _delete(output / name)
        else:
            _drop_changed(output, described, changed)
        write_json(output / RUN_FILE, described)
    except OSError as error:
        raise UserError(f"output_dir={config.output_dir}: cannot be written ({error.strerror})") from error


def check_output(config: Any, output: Path, stages: Collection[str] = ()) -> Changes:
    """Check, without changing anything, that a command may go on or begin in the output_dir.

    Args:
        config: the configuration.
        output: the output_dir of the run.
        stages: the stages that are going to run.

    Returns:
        The old and the new value of every key that has changed, by its name; empty with `overwrite=true`.

    Raises:
        UserError: the output_dir is a file, `overwrite=true` would delete what is not of a run or what the command
            reads, or the run there cannot be continued.
    """
    _check_folder(config, output)
    if config.overwrite:
        _check_overwrite(config, output)
        return {}
    return _changes(config, output, stages)


def _check_folder(config: Any, output: Path) -> None:
    if output.exists() and not output.is_dir():
        raise UserError(f"output_dir={config.output_dir}: it is a file; expected a folder")


def _check_overwrite(config: Any, output: Path) -> None:
    """Refuse to delete what no run has made, and what the command itself reads."""
    strange = _strange(output)
    if strange:
        raise UserError(
            f"output_dir={config.output_dir} holds {strange[0]!r} but no run of learn2pd, so overwrite=true deletes "
            "nothing there: choose another output_dir, or move it away yourself"
        )
    doomed = [output / name for name in OUTPUTS if (output / name).exists()]
    for key, path in _paths(config):
        if any(_lies_in(Path(here_or_shipped(path)), place) for place in doomed):
            raise UserError(
                f"{key}={path!r} lies in output_dir={config.output_dir}, and overwrite=true would delete it before it "
                "is read: choose another output_dir, or move it away first"
            )


def _strange(output: Path) -> list[str]:
    """Return the names of outputs in a folder that no run is known to have made. A recording describes itself."""
    figures = read_json(output / METRICS_FILE)
    if _described(output) is not None or (figures and figures.keys() <= {*STAGE_OUTPUTS, "pretrain"}):
        return []
    ours = ["records"] if (output / "records" / RECORDING).is_file() else []
    return [name for name in OUTPUTS if name not in ours and _holds_something(output / name)]


def _described(output: Path) -> dict[str, Any] | None:
    """Return the description of the run in a folder; None where there is none, or it is damaged."""
    described = read_json(output / RUN_FILE)
    return described if described and "name" in described else None


def _holds_something(path: Path) -> bool:
    return any(path.iterdir()) if path.is_dir() else path.exists()


def _lies_in(path: Path, folder: Path) -> bool:
    """Say whether a path exists and would be gone with a folder, by its name or by where its links lead."""
    return path.exists() and (
        path.resolve().is_relative_to(folder.resolve()) or path.absolute().is_relative_to(folder.absolute())
    )


def _paths(config: Any) -> Iterator[tuple[str, str]]:
    """Yield the keys that may hold paths with their values: those that are meant for paths, and options."""
    for key in keys_of(type(config)):
        value: Any = functools.reduce(getattr, key.name.split("."), config)
        if key.field.metadata.get("path") and key.name not in WRITTEN and isinstance(value, str):
            yield key.name, value
    methods = config.compare.methods if isinstance(config, RunConfig) else []
    for number, method in enumerate(methods):
        for options in ("options", "scheduler_options", "cache_options", "sweep"):
            yield from _texts(f"compare.methods[{number}].{options}", getattr(method, options))


def _texts(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """Yield the texts in nested dicts and lists by their names."""
    if isinstance(value, str):
        yield name, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _texts(f"{name}.{key}", inner)
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _texts(f"{name}[{number}]", inner)


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _changes(config: Any, output: Path, stages: Collection[str]) -> Changes:
    """Make sure that the run in a folder may be continued, and return what has changed since."""
    read_metrics(output)
    strange = _strange(output)
    again = "choose another output_dir" + (", or move it away" if strange else ", or set overwrite=true to start again")
    if not (output / RUN_FILE).exists():
        unknown = [name for name in OUTPUTS if name != "records" and _holds_something(output / name)]
        if unknown or strange:
            raise UserError(
                f"output_dir={config.output_dir} holds {(unknown or strange)[0]!r} but no {RUN_FILE}, so nobody knows "
                f"what it was made with: {again}"
            )
        return {}
    before = _described(output)
    if before is None:
        raise UserError(
            f"{output / RUN_FILE} is damaged, so nobody knows what the outputs beside it were made with: {again}"
        )
    changed = differences(before, identity(config))
    if not changed:
        return {}
    if not config.resume:
        ways = "overwrite=true to start again" if config.job == "embedded" else "resume=true or overwrite=true"
        held = f"output_dir={config.output_dir} holds a run of another configuration ({_worded(changed)})"
        raise UserError(f"{held}: choose another, or set {ways}")
    done = _outdated(output, changed)
    if done and done[0] not in stages:
        raise UserError(
            f"resume=true with another configuration ({_worded(changed)}): it changes the stage {done[0]!r}, which is "
            "done and is not among the stages of this command: run it too, choose another output_dir, or set the key "
            "back"
        )
    return changed


def _worded(changed: Changes) -> str:
    """Word the first of the keys that have changed."""
    lines = [_difference(key, old, new) for key, (old, new) in changed.items()]
    return "; ".join(lines[:4]) + ("; ..." if len(lines) > 4 else "")


def _difference(key: str, old: Any, new: Any) -> str:
    """Word the first difference of two values; of lists of mappings, it is that of their first entry that differs."""
    if isinstance(old, dict) and isinstance(new, dict):
        inner, (before, after) = next(iter(differences(old, new, f"{key}.").items()))
        return _difference(inner, before, after)
    if isinstance(old, list) and isinstance(new, list) and any(isinstance(entry, dict) for entry in old + new):
        number = next((at for at, pair in enumerate(zip(old, new, strict=False)) if pair[0] != pair[1]), None)
        if number is None:
            return f"{key}: {len(old)} entries -> {len(new)} entries"
        return _difference(f"{key}[{number}]", old[number], new[number])
    return f"{key}: {shown(old)} -> {shown(new)}"


def _outdated(output: Path, changed: Changes) -> list[str]:
    """Return the stages that are done, from the first one that a changed key belongs to."""
    order = list(STAGE_OUTPUTS)
    first = min((_first_stage(key) for key in changed), key=order.index)
    return [stage for stage in order[order.index(first) :] if _has_started(output, stage)]


def _drop_changed(output: Path, described: dict[str, Any], changed: Changes) -> None:
    """Delete the outputs that changed keys have made invalid."""
    if not changed:
        return
    kept = all(_keeps_trainings(key, old, new, described) for key, (old, new) in changed.items())
    invalid = [stage for stage in _outdated(output, changed) if not (kept and stage == "train")]
    _invalidate(output, invalid, _worded(changed))
    old, new = changed.get("train.predictors", ([], []))
    _drop_predictors(output, set(old) - set(new))


def _drop_predictors(output: Path, names: Collection[str]) -> None:
    """Delete the trainings of predictors that are not wanted any more, and their figures."""
    for name in names:
        for folder in (output / "train").glob(f"{name}*"):
            _delete(folder)
    figures = read_metrics(output)
    if figures.get("train", {}).keys() & set(names):
        kept = {name: entry for name, entry in figures["train"].items() if name not in names}
        write_json(output / METRICS_FILE, figures | {"train": kept})


def _first_stage(key: str) -> str:
    """Return the first stage that a key changes."""
    return next((stage for start, stage in FIRST_STAGE.items() if key.startswith(start)), "train")


def _has_started(output: Path, stage: str) -> bool:
    return stage in read_metrics(output) or any((output / name).exists() for name in STAGE_OUTPUTS[stage])


def _keeps_trainings(key: str, old: Any, new: Any, described: dict[str, Any]) -> bool:
    """Say whether a changed key leaves the finished trainings of the other networks as they are."""
    if _first_stage(key) != "train" or key == "train.predictors":
        return True
    # a filter that is fine-tuned in rounds is its own round 0
    return key == "train.rounds" and old < new and described["train"]["start"] == "scratch"


def _invalidate(output: Path, stages: Collection[str], reason: str) -> None:
    """Delete the outputs and the figures of stages."""
    for name in (name for stage in stages for name in STAGE_OUTPUTS[stage]):
        _delete(output / name)
    figures = read_metrics(output)
    if figures.keys() & set(stages):
        write_json(output / METRICS_FILE, {stage: kept for stage, kept in figures.items() if stage not in stages})
    if stages:
        log.info("changed since the last run: %s; its outputs of %s are deleted", reason, ", ".join(stages))


def read_metrics(output: Path) -> dict[str, Any]:
    """Read the figures of all stages of a run.

    Args:
        output: the output_dir of the run.

    Returns:
        The figures by the names of the stages; empty where no stage has finished.

    Raises:
        UserError: the file is damaged.
    """
    path = output / METRICS_FILE
    if not path.exists():
        return {}
    figures = read_json(path)
    if figures is None or not all(isinstance(entry, dict) for entry in figures.values()):
        raise UserError(f"{path} is damaged: delete it and start again; finished work is kept")
    return figures


def write_metrics(output: Path, stage: str, figures: dict[str, Any]) -> None:
    """Add the figures of a stage to metrics.json.

    Args:
        output: the output_dir of the run.
        stage: the name of the stage.
        figures: the figures of the stage.
    """
    write_json(output / METRICS_FILE, read_metrics(output) | {stage: figures})
