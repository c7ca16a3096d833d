"""The stages of a run: record, train, calibrate, reinforce, compare.

This is the edge of the package. Here a configuration becomes components with flat arguments, and their results become
files in output_dir. Each stage writes its figures to metrics.json and continues its work where an interruption stopped
it; a stage whose work is complete does not repeat it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import lightning
import torch

from learn2pd.cli.config import RunConfig
from learn2pd.cli.stages.calibration import check_target, stage_calibrate
from learn2pd.cli.stages.comparison import stage_compare
from learn2pd.cli.stages.comparison_methods import check_compared, check_comparison, needs_policy_of_run
from learn2pd.cli.stages.components import (
    check_adapter,
    check_decoding,
    check_revision,
    checkers_of,
    model_of,
    prompts_of,
    usable_prompts,
)
from learn2pd.cli.stages.planning import dry_run
from learn2pd.cli.stages.recording import (
    check_hidden,
    check_labels,
    check_recording,
    processes_of,
    stage_record,
)
from learn2pd.cli.stages.reinforcing import check_reinforcing, stage_reinforce
from learn2pd.cli.stages.reporting import write_replays, write_report
from learn2pd.cli.stages.run_folder import REPLAY_FILE, check_output, claim_output, open_output, write_metrics
from learn2pd.cli.stages.training import check_filter, check_training, stage_train
from learn2pd.errors import UserError
from learn2pd.recording.processes import Processes

__all__ = ["check_folder", "dry_run", "early_checks", "run_stages", "write_report"]
log = logging.getLogger(__name__)
SHARED = {"record": stage_record, "train": stage_train}  # stages in which several processes may take part
STAGE_FUNCTIONS = {  # of the stages that the first process runs alone
    "calibrate": stage_calibrate,
    "reinforce": stage_reinforce,
    "compare": stage_compare,
}


def run_stages(config: RunConfig, only: str | None = None) -> None:
    """Run the stages of a configuration in its output_dir.

    Of several processes, the first one runs the stages. The other processes only help to record, and to train where
    `train.together` is set.

    Args:
        config: the configuration.
        only: the only stage to run; None runs the stages that the configuration lists.

    Raises:
        UserError: the user made a mistake that they can mend.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    lightning.seed_everything(config.seed, verbose=False)
    stages = [only] if only else config.stages
    processes = processes_of(config)
    shared = [stage for stage in stages if stage == "record" or (stage == "train" and config.train.together)]
    try:
        if processes.rank == 0:
            _lead(config, stages, processes)
        else:
            for stage in shared:
                SHARED[stage](config, Path(config.output_dir), processes)
    except UserError as error:
        if shared:
            processes.give_up(error)
        raise
    finally:
        processes.part()


def early_checks(config: RunConfig, stages: Sequence[str], reads_prompts: bool = True) -> list[Callable[[], object]]:
    """Return the checks of a configuration that need no model. Each of them raises a UserError where it fails.

    Args:
        config: the configuration.
        stages: the stages that are going to run.
        reads_prompts: False leaves out the checks that read the prompts.
    """
    checks: list[Callable[[], object]] = [
        lambda: check_revision(config.model),
        lambda: check_adapter(config.model.adapter),
    ]
    if "train" in stages:
        checks.append(lambda: check_training(config))
    if "compare" in stages and config.compare.policy is not None:
        checks.append(lambda: check_compared(config))
    if reads_prompts:
        checks.append(lambda: prompts_of(config))
    if reads_prompts and "calibrate" in stages:
        checks.append(lambda: check_target(config, prompts_of(config)))
    return checks


def check_folder(config: RunConfig, stages: Sequence[str]) -> None:
    """Check, without changing anything, that the stages may run in the output_dir.

    Args:
        config: the configuration.
        stages: the stages that are going to run.

    Raises:
        UserError: the folder holds something else, or something that would be deleted.
    """
    check_needed(config, stages)
    check_output(config, Path(config.output_dir), stages)


def check_needed(config: RunConfig, stages: Sequence[str]) -> None:
    """Check that overwrite=true does not delete the outputs of stages that a command needs and does not run.

    Args:
        config: the configuration.
        stages: the stages that are going to run.

    Raises:
        UserError: a stage needs the outputs of a stage that is not before it.
    """
    if not config.overwrite:
        return
    for place, stage in enumerate(stages):
        for needed in _needed(config, stage):
            if needed not in stages[:place]:
                raise UserError(
                    f"overwrite=true deletes the outputs of the stage {needed!r}, which the stage {stage!r} needs: "
                    f"start again with learn2pd run config={config.name} overwrite=true, or give resume=true instead"
                )


def _needed(config: RunConfig, stage: str) -> tuple[str, ...]:
    """Return the stages whose outputs a stage reads."""
    if stage == "reinforce":
        return ("calibrate",) if config.policy is None else ()
    if stage == "compare":
        last = "reinforce" if "reinforce" in config.stages else "calibrate"
        return (last,) if needs_policy_of_run(config) else ()
    return {"train": ("record",), "calibrate": ("record", "train")}.get(stage, ())


def _lead(config: RunConfig, stages: Sequence[str], processes: Processes) -> None:
    """Check the configuration and run the stages, in the first process of a run."""
    for check in early_checks(config, stages):
        check()
    model = model_of(config)
    check_decoding(config, model, config.compare.stops)
    prompts = usable_prompts(config, model)
    if "calibrate" in stages:
        check_target(config, prompts)
    if {"record", "train"} & set(stages):
        check_labels(config, prompts)
        check_hidden(config)
    if set(stages) - {"record"}:
        checkers_of(config, prompts)
    if "train" in stages:
        check_filter(config, model)
    if "reinforce" in stages:
        check_reinforcing(config, stages, prompts)
    if "compare" in stages:
        check_comparison(config, model, Path(config.output_dir), trains=bool({"calibrate", "reinforce"} & set(stages)))
    with claim_output(config) as output:
        if set(stages) - {"reinforce", "compare"} and not config.overwrite:
            check_recording(config, output)
        check_needed(config, stages)
        open_output(config, output, stages)
        (output / REPLAY_FILE).unlink(missing_ok=True)  # replays of an earlier command may show another policy
        try:
            for stage in stages:
                started = time.perf_counter()
                log.info("stage %s", stage)
                if stage in SHARED:
                    figures = SHARED[stage](config, output, processes)
                else:
                    figures = STAGE_FUNCTIONS[stage](config, output)
                if figures is not None:
                    write_metrics(output, stage, figures | {"stage_seconds": round(time.perf_counter() - started, 2)})
            if stages:
                write_replays(config, output, stages[-1])
        finally:  # the page of an interrupted run says what is missing
            page = write_report(output)
        log.info("report: %s", page)
