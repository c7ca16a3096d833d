"""`learn2pd eval`: tasks of the lm-evaluation-harness with any model and method of this toolkit.

Outputs: output_dir/results.json, output_dir/samples/TASK.jsonl with every question and answer, and output_dir/answers,
in which lm-eval keeps the answers that it knows, in files that are named by model and method.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from learn2pd.cli.config import RunConfig
from learn2pd.cli.methods import chosen_method
from learn2pd.cli.options import EvalOptions
from learn2pd.cli.stages.components import model_of, sampling_of
from learn2pd.errors import UserError, suggest
from learn2pd.files import read_json, write_json
from learn2pd.models.neighbours import cause, told_in_one_line
from learn2pd.types import GREEDY

log = logging.getLogger(__name__)
RESULTS = "results.json"
NOISY = ("lm_eval", "datasets")
SEEDS = (0, 1234)  # lm-eval's own: of Python's random numbers, and of all others
FEWSHOT_SEED = 1234
LISTED = 12  # names of tasks that a message lists
OF_LIKELIHOODS = ("loglikelihood", "loglikelihood_rolling", "multiple_choice")


def evaluate(config: RunConfig, own: EvalOptions, has_run: bool) -> str:
    """Run tasks, and write results.json and the samples.

    Args:
        config: the configuration.
        own: the options of `eval`.
        has_run: the configuration was named, so its output_dir may hold a trained policy.

    Returns:
        The table of the results, with a line for each task. Only the first of several processes has one.

    Raises:
        UserError: the extra `eval` is missing, a task cannot be loaded, the method cannot be built, or output_dir holds
            other results.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError('learn2pd eval needs the lm-evaluation-harness: pip install "learn2pd[eval]"')
    names = names_of(own.tasks)
    if config.decode.given:
        raise UserError("decode.given: a task of lm-eval asks for whole answers; leave decode.given empty")
    from learn2pd.harness import processes
    from learn2pd.harness.model import DiffusionLM
    from learn2pd.harness.programs import PERMISSION

    os.environ.setdefault("DISABLE_MULTIPROC", "1")  # lm-eval would start a process a core for every resampled metric
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)
    if config.data.run_generated_code:
        os.environ[PERMISSION] = "1"  # lm-eval's own tasks and learn2pd.harness.programs look here
    processes.join()
    try:
        loaded = load_tasks(names, own.include_path, own.fewshot, config.data.run_generated_code)
        if processes.place()[1] > 1 and config.model.device == "auto":
            config = replace(config, model=replace(config.model, device=processes.device()))
        model = model_of(config)
        lm = DiffusionLM(
            model,
            chosen_method(config, own, model, has_run),
            gen_length=own.gen_length,
            batch_size=config.decode.batch_size,
            batch_invariant=config.decode.batch_invariant,
            sampling=sampling_of(config),
            seed=config.seed,
            likelihood_samples=own.likelihood_samples,
        )
        return _run(lm, loaded, own)
    finally:
        processes.leave()


def names_of(tasks: list[str] | str | None) -> list[str]:
    """Return the names of tasks that a user gave as a list, or as one text with commas.

    Args:
        tasks: what the user gave.

    Raises:
        UserError: there is none.
    """
    given = tasks.split(",") if isinstance(tasks, str) else tasks or []
    names = list(dict.fromkeys(name.strip() for name in given if name.strip()))
    if not names:
        raise UserError("tasks is empty: expected names of lm-eval's tasks, such as tasks=gsm8k or tasks=[gsm8k, mbpp]")
    return names


def load_tasks(names: Sequence[str], include_path: str | None, fewshot: int | None, runs_code: bool) -> dict[str, Any]:
    """Load tasks with their data.

    Args:
        names: names of tasks or groups.
        include_path: folder of task files; None takes lm-eval's own tasks alone.
        fewshot: examples before each question; None takes each task's number.
        runs_code: the user allows tasks that run what the model wrote.

    Returns:
        What lm-eval's task manager loads.

    Raises:
        UserError: a name is unknown, a task cannot be loaded, or it runs code without permission.
    """
    if include_path is not None and not Path(include_path).is_dir():
        raise UserError(f"include_path={include_path!r}: no such folder; expected one that holds task files (.yaml)")
    manager = _manager(names, include_path)
    for name in names:
        if name not in manager.task_index:
            own = [known for known in manager.all_tasks if _is_in(manager.task_index[known], include_path)]
            where = f"{include_path} holds {', '.join(own[:LISTED]) or 'none'}" if include_path else "give include_path"
            raise UserError(
                f"tasks: unknown task {name!r}{suggest(name, manager.all_tasks)}; {where} for tasks of your own"
            )
    random.seed(SEEDS[0])
    np.random.seed(SEEDS[1])
    torch.manual_seed(SEEDS[1])
    loaded: dict[str, Any] = {"tasks": {}, "groups": {}, "group_map": {}}
    for name in names:
        try:
            part = manager.load([name])
        except Exception as error:  # lm-eval, datasets and the code of a task raise almost every kind
            raise UserError(
                f"tasks: {name!r} could not be loaded ({cause(error)}); a task file of your own may name a local file "
                "(dataset_path: json, dataset_kwargs.data_files)"
            ) from error
        for key, values in part.items():
            loaded[key] |= values
    for name, task in loaded["tasks"].items():
        if getattr(task, "UNSAFE_CODE", False) and not runs_code:
            raise UserError(f"tasks: {name!r} runs what the model wrote: allow it with data.run_generated_code=true")
        if fewshot is not None and task.get_config("num_fewshot") != 0:
            task.set_config(key="num_fewshot", value=fewshot)
        elif task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=FEWSHOT_SEED)
    return loaded


def _manager(names: Sequence[str], include_path: str | None) -> Any:
    """Return lm-eval's task manager. The index of its own tasks takes seconds, and is made where it is needed alone."""
    from lm_eval.tasks import TaskManager

    if include_path is not None:
        manager = TaskManager(include_path=include_path, include_defaults=False)
        if all(name in manager.all_subtasks for name in names):
            return manager
    return TaskManager(include_path=include_path)


def _is_in(entry: Any, folder: str | None) -> bool:
    return folder is not None and entry.yaml_path is not None and Path(folder) in entry.yaml_path.parents


def _run(lm: Any, loaded: dict[str, Any], own: EvalOptions) -> str:
    """Run loaded tasks on a model, and write what comes out."""
    from lm_eval.api.model import CachingLM
    from lm_eval.evaluator import evaluate as evaluate_tasks
    from lm_eval.utils import handle_non_serializable, make_table

    chat = lm.tokenizer.chat_template is not None if own.chat is None else own.chat
    output = Path(own.output_dir)
    identity = {
        "answers": lm.identity,
        "tasks": sorted(loaded["tasks"]),
        "limit": own.limit,
        "fewshot": own.fewshot,
        "chat": chat,
        "system": own.system,
    }
    _claim(output, identity, own.overwrite)
    source = lm if lm.sampling != GREEDY else CachingLM(lm, str(output / "answers" / f"{lm.identity}_{lm.rank}.db"))
    try:
        with contextlib.redirect_stdout(sys.stderr):  # lm-eval prints
            results = evaluate_tasks(
                lm=source,
                task_dict=loaded,
                limit=own.limit,
                bootstrap_iters=1000,
                system_instruction=own.system,
                apply_chat_template=chat,
                fewshot_as_multiturn=chat,
                confirm_run_unsafe_code=True,  # load_tasks has asked
            )
    finally:
        if source is not lm:
            source.dbdict.close()
    figures = lm.gather_object({name: dict(counts) for name, counts in lm.figures.items()})
    if results is None:
        return ""
    with told_in_one_line(f"output_dir={own.output_dir!r} could not be written"):
        for name, samples in results.pop("samples").items():
            _write_samples(output / "samples" / f"{_file_name(name)}.jsonl", samples, handle_non_serializable)
        about = {name: _about(task, figures, name) for name, task in loaded["tasks"].items()}
        described = {"identity": identity, **lm.get_model_info(), "tasks": about}
        plain = json.loads(json.dumps(results, default=handle_non_serializable))
        write_json(output / RESULTS, plain | {"learn2pd": described})
    table = make_table(results) + (f"\n{make_table(results, 'groups')}" if results.get("groups") else "")
    lines = [f"{name}: {facts['summary']}" for name, facts in about.items()]
    return "\n".join([table.rstrip(), "", *lines, f"results: {output / RESULTS}"])


def _claim(output: Path, identity: Mapping[str, Any], overwrite: bool) -> None:
    """Refuse an output_dir that holds the results of another evaluation."""
    earlier = read_json(output / RESULTS)
    known = earlier.get("learn2pd", {}).get("identity") if earlier else None
    if (output / RESULTS).exists() and known != identity and not overwrite:
        differ = [key for key in identity if not isinstance(known, dict) or known.get(key) != identity[key]]
        words = ", ".join(differ).replace("answers", "model or method")
        raise UserError(
            f"output_dir={str(output)!r}: {RESULTS} holds another evaluation ({words} differ): "
            "give another output_dir, or overwrite=true"
        )
    with told_in_one_line(f"output_dir={str(output)!r} could not be written"):
        (output / "answers").mkdir(parents=True, exist_ok=True)


def _write_samples(path: Path, samples: Sequence[Any], default: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(sample, default=default, ensure_ascii=False) for sample in samples]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _file_name(task: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in task)


def _about(task: Any, figures: Sequence[Mapping[str, Mapping[str, int]]], name: str) -> dict[str, Any]:
    """Say what has a part in the score of a task: the method, or the model alone."""
    if task.OUTPUT_TYPE in OF_LIKELIHOODS:
        summary = "a score of likelihoods; policy, scheduler, cache and stop rule have no part in it"
        return {"output_type": task.OUTPUT_TYPE, "policy_matters": False, "summary": summary}
    counts = {
        key: sum(part.get(name, {}).get(key, 0) for part in figures) for key in ("answers", "forwards", "tokens", "cut")
    }
    summary = (
        f"{counts['answers']} answers decoded, {counts['forwards']} forwards, "
        f"{counts['tokens'] / max(counts['forwards'], 1):.2f} tokens per forward"
    )
    if counts["cut"]:
        summary += f"; {counts['cut']} questions were too long and lost their beginning"
    return {"output_type": task.OUTPUT_TYPE, "policy_matters": True, **counts, "summary": summary}
