"""The methods of a comparison: sweeps become single methods, which are checked before a stage runs, and built."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from learn2pd.autoregressive.methods import AutoregressiveMethod
from learn2pd.cli.config import MethodConfig, RunConfig
from learn2pd.cli.stages.components import method_of
from learn2pd.errors import UserError
from learn2pd.method import Method
from learn2pd.models.loading import Model
from learn2pd.predictors.keep import trained_policy
from learn2pd.registry import AUTOREGRESSIVE, build_autoregressive, lacking

# the predictor beside the filter that a component reads from the folder of the policy, by its role and name
PREDICTOR_OF = {
    ("policy", "keep"): "keep",
    ("stop", "learned"): "end_of_text",
    ("scheduler", "adablock_learned"): "boundary",
}


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
    of_dllm = [method for _, method in methods if method.policy not in AUTOREGRESSIVE]
    if not of_dllm:
        raise UserError(
            "compare.methods lists methods of autoregressive models alone: list at least one method of the dLLM"
        )
    for _, method in methods:
        if method.policy in AUTOREGRESSIVE:
            _check_autoregressive(config, method)
            autoregressive_of(model, method)
    waits = trains and config.compare.policy is None
    folder = policy_folder(config, output)
    for stop in config.compare.stops:
        for method in of_dllm:
            roles = _roles_that_need_the_policy(method, stop)
            if waits and roles:
                _check_will_be_trained(config, method, stop, roles)
            else:
                built = method_of(config, model, folder, method, stop)
                if built.policy.knows_answer and methods[0][1].policy != "fixed":
                    raise UserError(
                        f"compare.methods: {method.policy!r} needs a method with policy 'fixed' at the head of the "
                        "list, whose answers it knows"
                    )


def _check_autoregressive(config: RunConfig, method: MethodConfig) -> None:
    """Check that a comparison asks nothing of an autoregressive method that only a dLLM can do.

    Args:
        config: the configuration.
        method: the method's description.

    Raises:
        UserError: the method has a scheduler or a cache, an answer has given parts, or a text ends answers.
    """
    plain = MethodConfig(name=method.name, policy=method.policy)
    for key in ("scheduler", "scheduler_options", "cache", "cache_options"):
        if getattr(method, key) != getattr(plain, key):
            raise UserError(
                f"compare.methods: {method.name!r} has {key}={getattr(method, key)!r}: "
                f"policy {method.policy!r} decodes from left to right with its own cache; leave {key} out"
            )
    if config.decode.given:
        raise UserError(f"decode.given is set: policy {method.policy!r} decodes from left to right and fills no gaps")
    if "text" in config.compare.stops:
        raise UserError(f"compare.stops: policy {method.policy!r} does not know the stop rule 'text'")


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


def built_method(
    config: RunConfig, model: Model, folder: Path, described: MethodConfig, stop: str
) -> Method | AutoregressiveMethod:
    """Build a method of the dLLM, or one of an autoregressive model.

    Args:
        config: the configuration.
        model: the dLLM.
        folder: the folder of the trained policy.
        described: the method's description.
        stop: the name of the stop rule.

    Raises:
        UserError: the method cannot be built.
    """
    if described.policy in AUTOREGRESSIVE:
        return autoregressive_of(model, described)
    return method_of(config, model, folder, described, stop)


def autoregressive_of(model: Model, method: MethodConfig) -> AutoregressiveMethod:
    """Build the method of an autoregressive model that a configuration describes.

    Args:
        model: the dLLM, on whose device the other model runs where the method's options name none.
        method: the method's description.

    Raises:
        UserError: a model cannot be loaded, or two models do not fit each other.
    """
    provided = {"device": lambda: str(model.adapter.device)}
    built: AutoregressiveMethod = build_autoregressive(method.policy, method.options, provided)
    return built
