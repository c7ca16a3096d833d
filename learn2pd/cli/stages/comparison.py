"""The stage `compare`: it decodes the test prompts with every method and stop rule, and writes tables and plots.

A run has one length of the canvas. For another length, run the stage again with another decode.gen_length and another
output_dir; the policies stay the same.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from learn2pd import __version__
from learn2pd.autoregressive.methods import AutoregressiveMethod
from learn2pd.cli.config import MethodConfig, RunConfig, as_dict
from learn2pd.cli.stages.components import (
    autoregressive_of,
    check_autoregressive,
    checkers_of,
    given_of,
    method_of,
    model_of,
    sampling_of,
    usable_prompts,
)
from learn2pd.data.prompts import Prompt, encoded, prompts_digest
from learn2pd.data.tasks import Checker
from learn2pd.decoding import answer_lengths
from learn2pd.errors import UserError
from learn2pd.evaluation import plots as report
from learn2pd.evaluation import tables
from learn2pd.evaluation.autoregressive import KIND, autoregressive_rows, run_autoregressive
from learn2pd.evaluation.compare import build_rows, measure, score_rows
from learn2pd.evaluation.curves import compare_families
from learn2pd.evaluation.likelihood import likelihood
from learn2pd.evaluation.outcomes import (
    Labels,
    Likelihood,
    Outcome,
    cached,
    cached_likelihood,
    group_by_task,
    merge,
    run_method,
)
from learn2pd.evaluation.search import Continuation
from learn2pd.files import write_json
from learn2pd.method import Method
from learn2pd.models.infilling import given_tokens
from learn2pd.models.loading import Model
from learn2pd.policies.fixed import FixedPolicy
from learn2pd.policies.label_oracle import LabelOracle
from learn2pd.policies.oracle import OraclePolicy
from learn2pd.policies.search import SearchPolicy
from learn2pd.policies.threshold import ThresholdPolicy
from learn2pd.predictors.keep import trained_policy
from learn2pd.progress import progress_bar
from learn2pd.registry import AUTOREGRESSIVE, INFORMED, lacking
from learn2pd.roles import Policy
from learn2pd.statistics.bootstrap import Bootstrap

log = logging.getLogger(__name__)
# the predictor beside the filter that a component reads from the folder of the policy, by its role and name
PREDICTOR_OF = {
    ("policy", "keep"): "keep",
    ("stop", "learned"): "end_of_text",
    ("scheduler", "adablock_learned"): "boundary",
}


def stage_compare(config: RunConfig, output: Path) -> dict[str, Any]:
    """Compare all methods and stop rules on the test prompts.

    Outputs: compare.json, compare.md and plots in the output_dir.

    Args:
        config: the configuration.
        output: the output_dir of the run.

    Returns:
        The numbers of rows and of prompts.

    Raises:
        UserError: a method or a stop rule cannot be built.
    """
    model = model_of(config)
    prompts = [prompt for prompt in usable_prompts(config, model) if prompt.split == "test"]
    checkers = checkers_of(config, prompts)
    outcomes = _compare_outcomes(config, output, model, prompts, checkers)
    bootstrap = Bootstrap(config.compare.bootstrap_samples, config.seed)
    fields = measure(outcomes, bootstrap)
    comparison = {"rows": build_rows(fields), "scores": score_rows(outcomes, checkers, bootstrap)}
    comparison["autoregressive"] = autoregressive_rows(outcomes)
    comparison |= compare_families(fields, config.compare.accuracy_margin)
    meta: dict[str, Any] = {
        "model": model.spec.name,
        "model_fingerprint": model.spec.fingerprint,
        "prompts": len(prompts),
        "prompts_digest": prompts_digest(prompts),
        "seed": config.seed,
        "gen_length": config.decode.gen_length,
        "block_length": config.decode.block_length,
        "batch_size": config.decode.rows_together,
        "bootstrap_samples": config.compare.bootstrap_samples,
        "accuracy_margin": config.compare.accuracy_margin,
        "device": str(model.adapter.device),
        "threads": torch.get_num_threads(),
        "dtype": config.model.dtype,
    }
    write_json(output / "compare.json", {"meta": meta} | comparison)
    (output / "compare.md").write_text(tables.markdown(comparison, meta), encoding="utf-8")
    plots = output / "plots"
    plots.mkdir(exist_ok=True)
    report.plot_tradeoff(comparison, plots / "tradeoff.png", config.compare.accuracy_margin)
    # With only one task, the rows of the task `all` are the same as those of that task.
    if len({row["task"] for row in comparison["rows"]}) > 2:
        report.plot_tradeoff(comparison, plots / "tradeoff_tasks.png", config.compare.accuracy_margin, by_task=True)
    if comparison["fastest"]:
        report.plot_fastest(comparison, plots / "fastest.png", config.compare.accuracy_margin)
    _plot_one_answer(model, outcomes, plots / "commit_steps.png")
    log.info(
        "comparison over all tasks:\n%s\n\nall tables: %s", tables.summary(comparison, meta), output / "compare.md"
    )
    return {"rows": len(comparison["rows"]), "prompts": len(prompts)}


def check_comparison(config: RunConfig, model: Model, output: Path, trains: bool) -> None:
    """Check the methods and stop rules before anything is recorded.

    All of them are built, apart from those that need the filter that this run is going to train.

    Args:
        config: the configuration.
        model: the model.
        output: the output_dir of the run.
        trains: the run is going to train and export a filter.

    Raises:
        UserError: the configuration lists no method or no stop rule, one of them cannot be built, or one of them needs
            a predictor that the run does not train.
    """
    if not config.compare.methods:
        raise UserError("compare.methods is empty: list at least one method with name and policy")
    if not config.compare.stops:
        raise UserError("compare.stops is empty: list at least one stop rule, such as eot")
    methods = expand_sweeps(config.compare.methods)
    informed = [method.policy for _, method in methods if method.policy in INFORMED]
    if informed and methods[0][1].policy != "fixed":
        raise UserError(
            f"compare.methods: {informed[0]!r} needs a method with policy 'fixed' at the head of the list, "
            "whose answers it knows"
        )
    rivals = [method for _, method in methods if method.policy in AUTOREGRESSIVE]
    if len(rivals) == len(methods):
        raise UserError(
            "compare.methods lists methods of autoregressive models alone: list at least one method of the dLLM"
        )
    for method in rivals:
        check_autoregressive(config, method)
        autoregressive_of(model, method)
    waits = trains and config.compare.policy is None
    folder = policy_folder(config, output)
    for stop in config.compare.stops:
        for _, method in methods:
            if method.policy in AUTOREGRESSIVE:
                continue
            roles = _roles_that_need_the_policy(method, stop)
            if waits and roles:
                _check_will_be_trained(config, method, stop, roles)
            else:
                method_of(config, model, folder, method, stop)


def needs_policy_of_run(config: RunConfig) -> bool:
    """Say whether the comparison reads the policy that this run trains.

    Args:
        config: the configuration.

    Raises:
        UserError: the name or an option of a component is unknown.
    """
    methods = [method for _, method in expand_sweeps(config.compare.methods) if method.policy not in AUTOREGRESSIVE]
    return config.compare.policy is None and any(
        _roles_that_need_the_policy(method, stop) for stop in config.compare.stops for method in methods
    )


def _roles_that_need_the_policy(method: MethodConfig, stop: str) -> list[str]:
    """Check the names and options of a method, and return the roles that still need the folder of a policy."""
    parts: tuple[tuple[str, str, dict[str, Any]], ...] = (
        ("policy", method.policy, method.options),
        ("scheduler", method.scheduler, method.scheduler_options),
        ("cache", method.cache, method.cache_options),
        ("stop", stop, {}),
    )
    needed = {role: lacking(role, name, options) for role, name, options in parts}
    return [role for role, names in needed.items() if "folder" in names]


def _check_will_be_trained(config: RunConfig, method: MethodConfig, stop: str, roles: Sequence[str]) -> None:
    """Check that the run exports the predictors that a method reads from the folder of the policy."""
    names = {"policy": method.policy, "scheduler": method.scheduler, "cache": method.cache, "stop": stop}
    for role in roles:
        predictor = PREDICTOR_OF.get((role, names[role]))
        if predictor is None:
            continue
        told = f"{role}={names[role]!r} of the method {method.name!r} needs the predictor {predictor!r}"
        if "reinforce" in config.stages:
            raise UserError(
                f"compare: {told}, and the stage reinforce exports the filter alone: give compare.policy=FOLDER, or "
                "leave it out"
            )
        if predictor not in config.train.predictors:
            raise UserError(
                f"train.predictors={config.train.predictors!r}: {told}: add {predictor} to train.predictors, or leave "
                "the method out"
            )


def check_compared(config: RunConfig) -> None:
    """Check that compare.policy holds a trained policy.

    Args:
        config: the configuration.

    Raises:
        UserError: it holds none.
    """
    try:
        trained_policy(str(config.compare.policy))
    except UserError as error:
        raise UserError(f"compare.{error}") from error


def policy_folder(config: RunConfig, output: Path) -> Path:
    """Return the folder of the trained filter that is compared.

    Args:
        config: the configuration.
        output: the output_dir of the run.
    """
    if config.compare.policy:
        return Path(config.compare.policy)
    return output / ("reinforced" if "reinforce" in config.stages else "policy")


def expand_sweeps(methods: list[MethodConfig]) -> list[tuple[str, MethodConfig]]:
    """Replace every method that has a sweep by one method for each value.

    Args:
        methods: the methods of the configuration.

    Returns:
        The methods, each after the name of the family it belongs to.

    Raises:
        UserError: a sweep is not one option with a list of values, two methods have the same name, or a group holds
            different recipes.
    """
    _check_groups(methods)
    expanded = []
    for method in methods:
        if not method.sweep:
            expanded.append((method.name, method))
            continue
        values = next(iter(method.sweep.values()))
        if len(method.sweep) != 1 or not isinstance(values, list) or not values:
            raise UserError(
                f"compare.methods: sweep={method.sweep!r} of {method.name!r}: expected one option with a list of values"
            )
        (option,) = method.sweep
        for value in values:
            swept = dataclasses.replace(
                method, name=f"{method.name} {value}", options=method.options | {option: value}, sweep={}
            )
            expanded.append((method.name, swept))
    names = [method.name for _, method in expanded]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UserError(f"compare.methods: two methods are called {twice[0]!r}: give each a name of its own")
    return expanded


def _check_groups(methods: list[MethodConfig]) -> None:
    """Check that the methods of a group differ only in their name and in the folder of the trained policy."""
    first: dict[str, MethodConfig] = {}
    for method in (method for method in methods if method.group is not None):
        other = first.setdefault(str(method.group), method)
        for key in ("policy", "scheduler", "scheduler_options", "cache", "cache_options", "sweep"):
            if getattr(method, key) != getattr(other, key):
                raise UserError(
                    f"compare.methods: group={method.group!r} holds {other.name!r} with {key}={getattr(other, key)!r} "
                    f"and {method.name!r} with {getattr(method, key)!r}: "
                    "a group is one recipe trained with several seeds"
                )


def _compare_outcomes(
    config: RunConfig, output: Path, model: Model, prompts: list[Prompt], checkers: dict[str, Checker]
) -> list[Outcome]:
    decoding = config.decode
    groups = group_by_task(prompts)
    folder = policy_folder(config, output)
    methods = expand_sweeps(config.compare.methods)
    # All methods are built before the first one runs, so that a mistake in the last line does not cost an hour.
    runs = [
        (stop, family, method, _built(config, model, folder, method, stop))
        for stop in config.compare.stops
        for family, method in methods
    ]
    references: dict[tuple[str, str], torch.Tensor] = {}  # answers with one token a step, by stop rule and task
    outcomes: list[Outcome] = []
    with progress_bar(len(runs) * len(prompts), "compare", "prompt") as bar:
        for stop, family, described, built in runs:
            parts = []
            for task, group in groups.items():
                method = built
                shared: dict[str, Any] = {
                    "progress": bar.update,
                    "gen_length": decoding.gen_length,
                    "batch_size": decoding.rows_together,
                    "sampling": sampling_of(config),
                    "seed": config.seed,
                }
                if isinstance(method, AutoregressiveMethod):
                    labels = _autoregressive_labels(described, family, method, stop, task)
                    produce = functools.partial(run_autoregressive, group, checkers, labels, method, **shared)
                else:
                    if method.policy.knows_answer:
                        method = _informed(config, model, method, group, checkers, references[stop, task])
                    labels = _labels(described, family, method, task)
                    given = given_of(config, len(group))
                    produce = functools.partial(
                        run_method, model, group, checkers, labels, method, given=given, **shared
                    )
                key = outcome_key(model, group, config, method)
                before = bar.n
                outcome = cached(output / "compare" / _file_name(described.name, stop, task), key, labels, produce)
                bar.update(len(group) - (bar.n - before))
                if config.compare.likelihood and isinstance(method, Method):
                    outcome = _with_likelihood(config, model, group, outcome, output, key)
                parts.append(outcome)
                if labels.mark == "reference":
                    references.setdefault((stop, task), torch.from_numpy(outcome.tokens).long())
            outcomes += [*parts, merge(parts)]
    return outcomes


def _built(
    config: RunConfig, model: Model, folder: Path, described: MethodConfig, stop: str
) -> Method | AutoregressiveMethod:
    """Build a method of the dLLM, or one of an autoregressive model."""
    if described.policy in AUTOREGRESSIVE:
        return autoregressive_of(model, described)
    return method_of(config, model, folder, described, stop)


def _autoregressive_labels(
    described: MethodConfig, family: str, method: AutoregressiveMethod, stop: str, task: str
) -> Labels:
    """Return the labels of an outcome of an autoregressive model."""
    return Labels(
        method=described.name,
        family=family,
        setting=described.name.removeprefix(family).strip(),
        group=described.group,
        scheduler="none",
        policy=method.name,
        cache="causal",
        stop=stop,
        task=task,
        mark="" if method.draft else "target",
        kind=KIND,
        model=method.target.name,
    )


def _with_likelihood(
    config: RunConfig, model: Model, prompts: list[Prompt], outcome: Outcome, output: Path, key: str
) -> Outcome:
    """Add the likelihood of its answers to an outcome."""
    labels = outcome.labels
    given = given_of(config, len(prompts))

    def produce() -> Likelihood:
        with progress_bar(len(prompts), f"likelihood of {labels.method}", "prompt") as bar:
            return likelihood(
                model,
                [model.encode(prompt.content) for prompt in prompts],
                outcome,
                None if given is None else given_tokens(model, given, config.decode.gen_length),
                config.decode.rows_together,
                bar.update,
            )

    name = _file_name(labels.method, labels.stop, labels.task, "likelihood")
    return dataclasses.replace(outcome, likelihood=cached_likelihood(output / "compare" / name, key, produce))


def _informed(
    config: RunConfig,
    model: Model,
    built: Method,
    prompts: Sequence[Prompt],
    checkers: Mapping[str, Checker],
    reference: torch.Tensor,
) -> Method:
    """Return the method of an oracle with what it must know about prompts of one task.

    Args:
        config: the configuration.
        model: the model.
        built: the method, whose policy is an oracle.
        prompts: the prompts.
        checkers: the checkers by the names of their tasks.
        reference: [N, G] long, the answers with one token a step.
    """
    if isinstance(built.policy, OraclePolicy):
        return dataclasses.replace(built, policy=OraclePolicy(reference))
    lengths = answer_lengths(reference, model.spec.eot_ids).tolist()
    texts = [
        model.tokenizer.decode(row[:length], skip_special_tokens=True)
        for row, length in zip(reference, lengths, strict=True)
    ]

    def right(number: int, text: str) -> bool:
        """Say whether the checker calls an answer right, or it is that of one token a step."""
        prompt = prompts[number]
        return text == texts[number] or (
            prompt.task is not None and checkers[prompt.task].check(prompt.facts, text).correct
        )

    given = given_of(config, len(prompts))
    continuation = Continuation(
        model,
        encoded(model, prompts),
        dataclasses.replace(built, policy=FixedPolicy()),
        right,
        config.decode.gen_length,
        config.decode.rows_together,
        None if given is None else given_tokens(model, given, config.decode.gen_length),
    )
    informed: Policy = built.policy
    if isinstance(informed, LabelOracle):
        informed = LabelOracle(continuation.label, informed.labels)
    elif isinstance(informed, SearchPolicy):
        informed = SearchPolicy(continuation, informed.filter)
    return dataclasses.replace(built, policy=informed)


def _labels(described: MethodConfig, family: str, method: Method, task: str) -> Labels:
    """Return the labels of an outcome."""
    kind = "oracle" if method.policy.knows_answer else "learned" if method.learned else "training-free"
    marks = ((OraclePolicy, "oracle"), (FixedPolicy, "reference"), (ThresholdPolicy, "baseline"))
    mark = next((mark for policy, mark in marks if isinstance(method.policy, policy)), "")
    return Labels(
        method=described.name,
        family=family,
        setting=described.name.removeprefix(family).strip(),
        group=described.group,
        scheduler=method.scheduler.name,
        policy=method.policy.name,
        cache=method.cache.name,
        stop=method.stop.name,
        task=task,
        mark=mark,
        kind=kind,
    )


def _file_name(*names: str) -> str:
    """Return a readable file name that is different for different names."""
    readable = "-".join("".join(c if c.isalnum() else "_" for c in name) for name in names)
    return f"{readable[:120]}-{hashlib.sha256(json.dumps(names).encode()).hexdigest()[:8]}.safetensors"


def outcome_key(model: Model, prompts: list[Prompt], config: RunConfig, method: Method | AutoregressiveMethod) -> str:
    """Return a digest of everything that an outcome depends on.

    The package's version is part of the digest; the names of a method are not.

    Args:
        model: the model that decodes.
        prompts: the prompts of the task.
        config: the configuration.
        method: the method, with its stop rule.
    """
    # the fingerprint of the method covers its stop rule, and with it these keys
    of_stop_rule = ("stop_floor", "stop_strings")
    decoding = {key: value for key, value in as_dict(config)["decode"].items() if key not in of_stop_rule}
    depends = [
        __version__,
        model.spec.fingerprint,
        config.model.dtype,
        prompts_digest(prompts),
        decoding,
        config.seed,
        method.fingerprint,
        config.data.run_generated_code,
        [[prompt.task, prompt.facts] for prompt in prompts],
    ]
    return hashlib.sha256(json.dumps(depends).encode()).hexdigest()


def _plot_one_answer(model: Model, outcomes: list[Outcome], path: Path) -> None:
    """Draw the heat map of the prompt whose answer has the median length, under the first stop rule."""
    shown = [
        outcome
        for outcome in outcomes
        if outcome.labels.task == "all"
        and outcome.labels.stop == outcomes[0].labels.stop
        and not outcome.labels.model  # its tokens may be those of another tokenizer
    ]
    prompt = int(shown[0].lengths.argsort(kind="stable")[len(shown[0].lengths) // 2])
    lines = []
    for outcome in shown:
        length = min(int(outcome.lengths[prompt]) + 1, 64)
        texts = [model.tokenizer.decode([token]) for token in outcome.tokens[prompt][:length].tolist()]
        tokens = [text if text.isprintable() else ascii(text)[1:-1] for text in texts]
        lines.append((outcome.labels.method, tokens, outcome.committed_at[prompt][:length].tolist()))
    report.plot_commit_steps(lines, "Forward at which each position of one answer was committed", path)
