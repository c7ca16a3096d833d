"""Names to components: `threshold` -> ThresholdPolicy, or `package.module:Class` for one of the user's own.

A component's options are the parameters of its constructor (or of the function that builds it); parameters that the caller provides (the
reference answers of an oracle, the folder of a filter, the block length) are filled in by name.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from learn2pd.caches.dsb import DSBCache
from learn2pd.caches.fast_dllm import BlockCache
from learn2pd.caches.lookahead import LookaheadCache
from learn2pd.caches.none import NoCache
from learn2pd.errors import UserError, check_options, suggest
from learn2pd.kinds import matches, type_name
from learn2pd.models.delimiters import newline_ids
from learn2pd.policies.apd import APDPolicy, LeftToRightPolicy
from learn2pd.policies.factor import FactorPolicy
from learn2pd.policies.fixed import FixedPolicy
from learn2pd.policies.localleap import LocalLeapPolicy
from learn2pd.policies.oracle import OraclePolicy
from learn2pd.policies.threshold import ThresholdPolicy
from learn2pd.policies.verifier import load_verifier
from learn2pd.predictors.boundary import LearnedAdaBlockScheduler
from learn2pd.predictors.end_of_text import LearnedStop
from learn2pd.predictors.filter import load_policy
from learn2pd.predictors.saving import load_predictor
from learn2pd.roles import Cache, Policy, Scheduler, StopRule
from learn2pd.schedulers.adablock import AdaBlockScheduler
from learn2pd.schedulers.blocks import BlocksScheduler
from learn2pd.schedulers.dsb import DSBScheduler
from learn2pd.schedulers.lookahead import LookaheadScheduler
from learn2pd.stops.anywhere import AnywhereStop
from learn2pd.stops.eot import EotStop
from learn2pd.stops.eotp import EotpPaperStop
from learn2pd.stops.none import NoStop


def apd(verifier: str, mixture_weight: float = 0.7, dtype: str = "float32", device: str = "auto") -> APDPolicy:
    """APD with the verifier in a folder or on the hub."""
    return APDPolicy(load_verifier(verifier, dtype, device), mixture_weight)


def adablock(
    tokenizer: PreTrainedTokenizerBase, delimiter_ids: Sequence[int] | None = None, block_length: int = 32, delimiter_threshold: float = 0.3
) -> AdaBlockScheduler:
    """AdaBlock; without `delimiter_ids`, every token that is white space with a new line in it is a delimiter."""
    return AdaBlockScheduler(newline_ids(tokenizer) if delimiter_ids is None else delimiter_ids, block_length, delimiter_threshold)


def adablock_learned(folder: str | Path, block_length: int = 32) -> LearnedAdaBlockScheduler:
    """AdaBlock with the boundary predictor beside the policy in `folder`."""
    return LearnedAdaBlockScheduler(load_predictor(Path(folder) / "boundary", "boundary"), block_length)


def learned_stop(folder: str | Path, floor: float = 0.5) -> LearnedStop:
    """The stop rule with the end-of-text predictor beside the policy in `folder`."""
    return LearnedStop(load_predictor(Path(folder) / "end_of_text", "end_of_text"), floor)


COMPONENTS: dict[str, dict[str, Callable[..., Any]]] = {
    "policy": {
        "fixed": FixedPolicy,
        "threshold": ThresholdPolicy,
        "factor": FactorPolicy,
        "localleap": LocalLeapPolicy,
        "apd": apd,
        "left_to_right": LeftToRightPolicy,
        "filter": load_policy,
        "oracle": OraclePolicy,
    },
    "scheduler": {
        "blocks": BlocksScheduler,
        "adablock": adablock,
        "adablock_learned": adablock_learned,
        "dsb": DSBScheduler,
        "lookahead": LookaheadScheduler,
    },
    "cache": {
        "none": NoCache,
        "prefix": functools.partial(BlockCache, "prefix"),
        "dual": functools.partial(BlockCache, "dual"),
        "dsb": DSBCache,
        "lookahead": LookaheadCache,
    },
    "stop": {"none": NoStop, "eot": EotStop, "eotp_paper": EotpPaperStop, "learned": learned_stop, "anywhere": AnywhereStop},
}


ROLES: dict[str, type] = {"policy": Policy, "scheduler": Scheduler, "cache": Cache, "stop": StopRule}
LARGEST = 10**9  # whole number of an option: what is far beyond every canvas and every vocabulary would only overflow


def build(kind: str, name: str, options: Mapping[str, Any], provided: Mapping[str, Any]) -> Any:
    """A component by name.

    Args:
        kind: `policy`, `scheduler`, `cache` or `stop`.
        name: registered, or `package.module:Class`.
        options: the user's; every one must be a parameter.
        provided: by parameter name, used where the constructor asks for it.

    Raises:
        UserError: unknown name or option, value of another type than the parameter's, value refused by the constructor, or something that is
            no component of this kind.
    """
    table = COMPONENTS[kind]
    factory = table.get(name) or (_import(kind, name) if ":" in name else None)
    if factory is None:
        raise UserError(f"{kind}={name!r}: unknown{suggest(name, table)}; expected one of {', '.join(table)} or package.module:Class")
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError) as error:
        raise UserError(f"{kind}={name!r}: it is not a class that can be built ({error}); expected package.module:Class") from error
    check_options(f"{kind} {name!r}", options, parameters)
    kinds = _annotations(factory)
    for option, value in options.items():
        if not matches(value, kinds.get(option, Any)):
            raise UserError(f"{kind} {name!r}: {option}={value!r}: expected {type_name(kinds[option])}, got {type(value).__name__}")
        if isinstance(value, int) and abs(value) > LARGEST:
            raise UserError(f"{kind} {name!r}: {option}={value}: expected at most {LARGEST}")
    arguments = {key: value for key, value in provided.items() if key in parameters} | dict(options)
    missing = [key for key, value in parameters.items() if value.default is value.empty and key not in arguments]
    if missing:
        raise UserError(f"{kind} {name!r} needs {', '.join(missing)}")
    try:
        component = factory(**arguments)
    except UserError:
        raise
    except (ValueError, TypeError) as error:
        raise UserError(f"{kind} {name!r}: {error}") from error
    role = ROLES[kind]
    lacking = [part for part in (*role.__annotations__, *vars(role)) if not part.startswith("_") and not hasattr(component, part)]
    if lacking:
        raise UserError(f"{kind}={name!r}: it has no {', '.join(lacking)}, so it is no {kind}; see docs/adding_a_policy.md")
    return component


def _annotations(factory: Callable[..., Any]) -> dict[str, Any]:
    """Types of the parameters, as far as they are stated and exist at run time."""
    target = factory.func if isinstance(factory, functools.partial) else factory
    try:
        return typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except (NameError, TypeError):  # a user's own class may import its types for the type checker only
        return {}


def _import(kind: str, target: str) -> Any:
    module, _, attribute = target.partition(":")
    if os.getcwd() not in sys.path:  # a console script does not look into the working directory, where the user's file is
        sys.path.insert(0, os.getcwd())
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise UserError(f"{kind}={target!r}: cannot be imported ({error}); expected package.module:Class on the Python path") from error


# ---- tasks by name. They are imported when they are used: data/ and embedded/ must not know the registry.

TASKS = {
    "math": "learn2pd.embedded.tasks.math_problems:MathTask",
    "json": "learn2pd.embedded.tasks.json_records:JsonTask",
    "code": "learn2pd.embedded.tasks.python_functions:CodeTask",
    "final_number": "learn2pd.data.tasks.final_number:FinalNumberTask",
    "slots": "learn2pd.data.tasks.slots:SlotsTask",
    "humaneval": "learn2pd.data.humaneval:HumanEvalTask",
}
GENERATED_TASKS = ("math", "json", "code")  # these also generate their problems


def build_task(name: str, run_generated_code: bool = False, key: str = "task") -> Any:
    """The task of a name.

    Args:
        name: one of `TASKS`, or `package.module:Class`.
        run_generated_code: allows a task that judges programs to run model output in a limited subprocess.
        key: what the caller's user knows the name as, for messages.

    Raises:
        UserError: the name is unknown, or it names nothing that judges answers.
    """
    from learn2pd.data.sandbox import Sandbox

    target = TASKS.get(name, name)
    if ":" not in target:
        raise UserError(f"{key}={name!r}: unknown task{suggest(name, TASKS)}; expected one of {', '.join(TASKS)} or package.module:Class")
    task_class = _import(key, target)
    try:
        takes_sandbox = "sandbox" in inspect.signature(task_class).parameters
        task = task_class(Sandbox(run_generated_code)) if takes_sandbox else task_class()
    except (TypeError, ValueError) as error:
        raise UserError(f"{key}={name!r}: it cannot be built without arguments ({error})") from error
    lacking = [part for part in ("name", "facts", "check") if not hasattr(task, part)]
    if lacking:
        raise UserError(f"{key}={name!r}: it has no {', '.join(lacking)}, so it judges no answers")
    return task
