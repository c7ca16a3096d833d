"""The registry turns names into components, such as `threshold` into a ThresholdPolicy.

A user's own component has the name `package.module:Class`. The options of a component are the parameters of its
constructor, or of the function that builds it. The registry fills in by name the parameters that the caller provides,
such as the reference answers of an oracle, the folder of a filter, or the block length. It imports a module when
somebody names a component of it.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from learn2pd.arguments import parameter_kinds
from learn2pd.errors import UserError, check_options, suggest
from learn2pd.kinds import matches, plain, type_name

if TYPE_CHECKING:
    from learn2pd.roles import Role

# Policies that know the answers with one token a step, and so are for recording and comparison alone.
INFORMED = {
    "oracle": "learn2pd.policies.oracle:OraclePolicy",
    "search": "learn2pd.policies.search:SearchPolicy",
    "label_oracle": "learn2pd.policies.label_oracle:LabelOracle",
}
COMPONENTS: dict[str, dict[str, str]] = {
    "policy": {
        "fixed": "learn2pd.policies.fixed:FixedPolicy",
        "threshold": "learn2pd.policies.threshold:ThresholdPolicy",
        "factor": "learn2pd.policies.factor:FactorPolicy",
        "low_confidence": "learn2pd.policies.low_confidence:LowConfidencePolicy",
        "entropy_sum": "learn2pd.policies.entropy_sum:EntropySumPolicy",
        "localleap": "learn2pd.policies.localleap:LocalLeapPolicy",
        "entropy_bound": "learn2pd.policies.entropy_bound:EntropyBoundPolicy",
        "dparallel": "learn2pd.policies.dparallel:DParallelPolicy",
        "klass": "learn2pd.policies.klass:KlassPolicy",
        "hierarchical": "learn2pd.policies.hierarchical:HierarchicalPolicy",
        "credit": "learn2pd.policies.credit:CreditPolicy",
        "slowfast": "learn2pd.policies.slowfast:SlowFastPolicy",
        "prophet": "learn2pd.policies.prophet:ProphetPolicy",
        "dawn": "learn2pd.policies.dawn:DawnPolicy",
        "mean_field": "learn2pd.policies.mean_field:MeanFieldPolicy",
        "wino": "learn2pd.policies.wino:WinoPolicy",
        "edit": "learn2pd.policies.edit:EditPolicy",
        "remask": "learn2pd.policies.remask:RemaskPolicy",
        "apple": "learn2pd.policies.apple:load_apple",
        "apd": "learn2pd.policies.apd:load_apd",
        "left_to_right": "learn2pd.policies.apd:LeftToRightPolicy",
        "filter": "learn2pd.predictors.filter:load_policy",
        "keep": "learn2pd.predictors.keep:load_keep",
        **INFORMED,
    },
    "scheduler": {
        "blocks": "learn2pd.schedulers.blocks:BlocksScheduler",
        "sub_blocks": "learn2pd.schedulers.sub_blocks:SubBlocksScheduler",
        "adablock": "learn2pd.schedulers.adablock:AdaBlockScheduler",
        "adablock_learned": "learn2pd.predictors.boundary:load_boundary",
        "dsb": "learn2pd.schedulers.dsb:DSBScheduler",
        "lookahead": "learn2pd.schedulers.lookahead:LookaheadScheduler",
    },
    "cache": {
        "none": "learn2pd.caches.none:NoCache",
        "prefix": "learn2pd.caches.fast_dllm:PrefixCache",
        "dual": "learn2pd.caches.fast_dllm:DualCache",
        "dsb": "learn2pd.caches.dsb:DSBCache",
        "lookahead": "learn2pd.caches.lookahead:LookaheadCache",
        "causal_block": "learn2pd.caches.causal_block:CausalBlockCache",
        "grow": "learn2pd.caches.grow:GrowCache",
        "sub_block": "learn2pd.caches.sub_block:SubBlockCache",
    },
    "stop": {
        "none": "learn2pd.stops.none:NoStop",
        "eot": "learn2pd.stops.eot:EotStop",
        "eot_filled": "learn2pd.stops.eot_filled:EotFilledStop",
        "eotp_paper": "learn2pd.stops.eotp:EotpPaperStop",
        "learned": "learn2pd.predictors.end_of_text:load_end_of_text",
        "anywhere": "learn2pd.stops.anywhere:AnywhereStop",
        "text": "learn2pd.stops.text:TextStop",
    },
}
# Methods of autoregressive models, which stand beside those of the dLLM in a comparison. A method takes the place of
# all four roles, so that these names stand for the whole of it.
AUTOREGRESSIVE = {
    "autoregressive": "learn2pd.autoregressive.methods:load_autoregressive",
    "speculative": "learn2pd.autoregressive.methods:load_speculative",
    "pearl": "learn2pd.autoregressive.methods:load_pearl",
}
# what a module of the user's own may raise while it is imported
IMPORT_ERRORS = (
    *(ImportError, SyntaxError, NameError, AttributeError, TypeError, ValueError),
    *(LookupError, ArithmeticError, RuntimeError, AssertionError, OSError),
)
LARGEST = 10**9  # largest whole number of an option; larger ones exceed every canvas and vocabulary and would overflow


Provided = Mapping[str, Callable[[], Any]]  # by the name of a parameter; called only if a component has that parameter


def build(role: str, name: str, options: Mapping[str, Any], provided: Provided) -> Any:
    """Build a component by its name.

    Args:
        role: `policy`, `scheduler`, `cache` or `stop`.
        name: A registered name, or `package.module:Class`.
        options: The user's options. Each of them must be a parameter of the component.
        provided: Values for the parameters that the user's options leave out.

    Returns:
        The component.

    Raises:
        UserError: The name or an option is unknown, a value has another type than its parameter, the component refuses
            a value, or the name stands for something that is not a component of this role.
    """
    from learn2pd.roles import ROLES  # with torch, which a look at the names does not need

    component = _built(role, name, _factory(role, name), options, provided)
    if not isinstance(component, ROLES[role]):
        raise UserError(
            f"{role}={name!r}: it is no {ROLES[role].__name__}; derive it from learn2pd.{ROLES[role].__name__}, "
            "see docs/adding_a_policy.md"
        )
    return component


def build_autoregressive(name: str, options: Mapping[str, Any], provided: Provided) -> Any:
    """Build a method of an autoregressive model by its name.

    Args:
        name: One of `AUTOREGRESSIVE`.
        options: The user's options. Each of them must be a parameter of the method.
        provided: Values for the parameters that the user's options leave out.

    Returns:
        The method.

    Raises:
        UserError: As for `build`.
    """
    return _built("policy", name, _import("policy", AUTOREGRESSIVE[name]), options, provided)


def _built(role: str, name: str, factory: Callable[..., Any], options: Mapping[str, Any], provided: Provided) -> Any:
    """Call a factory with the user's options, and with what is provided where the user gave no option."""
    parameters = _parameters(role, name, factory, options)
    arguments = dict(options) | {
        key: give() for key, give in provided.items() if key in parameters and key not in options
    }
    missing = [key for key, value in parameters.items() if value.default is value.empty and key not in arguments]
    if missing:
        raise UserError(f"{role} {name!r} needs {', '.join(missing)}")
    try:
        return factory(**arguments)
    except UserError:
        raise
    except (ValueError, TypeError) as error:
        raise UserError(f"{role} {name!r}: {error}") from error


def lacking(role: str, name: str, options: Mapping[str, Any]) -> list[str]:
    """Check a component without building it.

    Args:
        role: `policy`, `scheduler`, `cache` or `stop`.
        name: A registered name, or `package.module:Class`.
        options: The user's options.

    Returns:
        The parameters that are still needed to build the component, such as the folder of a filter.

    Raises:
        UserError: The name or an option is unknown, or a value has another type than its parameter.
    """
    parameters = _parameters(role, name, _factory(role, name), options)
    return [key for key, value in parameters.items() if value.default is value.empty and key not in options]


def _parameters(
    role: str, name: str, factory: Callable[..., Any], options: Mapping[str, Any]
) -> Mapping[str, inspect.Parameter]:
    """Return the parameters of a component's factory, which take the options."""
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{role}={name!r}: it is not a class that can be built ({error}); expected package.module:Class"
        ) from error
    check_options(f"{role} {name!r}", options, parameters)
    kinds = parameter_kinds(factory)
    for option, value in options.items():
        if not matches(value, kinds.get(option, Any)):
            raise UserError(
                f"{role} {name!r}: {option}={value!r}: expected {type_name(kinds[option])}, got {type(value).__name__}"
            )
        if isinstance(plain(value), int) and abs(value) > LARGEST:
            raise UserError(f"{role} {name!r}: {option}={value}: expected at most {LARGEST}")
    return parameters


def name_of(role: str, component: Role) -> str:
    """Return the name by which `build` makes a component of this class.

    Args:
        role: `policy`, `scheduler`, `cache` or `stop`.
        component: The component.

    Returns:
        A registered name, or `package.module:Class`.
    """
    own = f"{type(component).__module__}:{type(component).__qualname__}"
    registered = [name for name, target in COMPONENTS[role].items() if target in (own, component.built_by)]
    return registered[0] if registered else own


def is_known(role: str, name: str) -> bool:
    """Say whether a name is registered, or names a class of the user's own.

    Args:
        role: `policy`, `scheduler`, `cache` or `stop`.
        name: The name.
    """
    return name in COMPONENTS[role] or ":" in name


def _factory(role: str, name: str) -> Callable[..., Any]:
    table = COMPONENTS[role]
    if not is_known(role, name):
        raise UserError(
            f"{role}={name!r}: unknown{suggest(name, table)}; "
            f"expected one of {', '.join(table)} or package.module:Class"
        )
    target: Callable[..., Any] = _import(role, table.get(name, name))
    return target


def _import(role: str, target: str) -> Any:
    module, _, attribute = target.partition(":")
    # a console script does not search the working directory, in which the user's file lies
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return getattr(importlib.import_module(module), attribute)
    except IMPORT_ERRORS as error:
        told = f"{type(error).__name__}: {error}"
        raise UserError(
            f"{role}={target!r}: cannot be imported ({told}); expected package.module:Class on the Python path"
        ) from error


# ---- Families of dLLMs, by the model_type of config.json. Where a family has the model_type of another one, its key is
# model_type/architecture, with the class that config.json names in `architectures`.

FAMILIES = {
    "llada": "learn2pd.models.llada:LLaDAModelLM",
    "Dream": "learn2pd.models.dream:DreamModel",
    "sdar": "learn2pd.models.sdar:SDARForCausalLM",
    "sdar_moe": "learn2pd.models.sdar:SDARMoeForCausalLM",
    "llada2_moe": "learn2pd.models.llada2:LLaDA2MoeModelLM",
    "llada/LLaDAMoEModelLM": "learn2pd.models.llada_moe:LLaDAMoEModelLM",
    "lladamoe": "learn2pd.models.llada_moe:LLaDAMoEModelLM",
    "Fast_dLLM_Qwen": "learn2pd.models.fast_dllm_v2:Fast_dLLM_QwenForCausalLM",
}


def family_target(fields: Mapping[str, Any]) -> str | None:
    """Return the class that reads a checkpoint, as `module:Class`, or None where no family does.

    Args:
        fields: The fields of its config.json.
    """
    model_type = str(fields.get("model_type"))
    classes = fields.get("architectures")
    shared = [f"{model_type}/{name}" for name in classes] if isinstance(classes, list) else []
    return next((FAMILIES[key] for key in [*shared, model_type] if key in FAMILIES), None)


def import_family(target: str) -> Any:
    """Import the class of a family.

    Args:
        target: The class, as `module:Class`.

    Raises:
        UserError: The class cannot be imported.
    """
    return _import("family", target)


def import_logger(target: str) -> Any:
    """Import a user's own logger.

    Args:
        target: The class, as `module:Class`.

    Raises:
        UserError: The class cannot be imported.
    """
    return _import("train.loggers", target)


# ---- Exporters by the name of the engine.

EXPORTERS = {
    "transformers": "learn2pd.exporters.transformers",
    "diffusers": "learn2pd.exporters.diffusers",
    "sglang": "learn2pd.exporters.sglang",
    "file": "learn2pd.exporters.file",
}


# ---- Tasks by name. A task is imported when it is used, since data/ and embedded/ must not know the registry.

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
    """Build a task by its name.

    Args:
        name: One of `TASKS`, or `package.module:Class`.
        run_generated_code: True allows a task that judges programs to run a model's answers in a limited subprocess.
        key: The word by which the user gave the name, for messages.

    Returns:
        The task.

    Raises:
        UserError: The name is unknown, or it stands for something that cannot judge answers.
    """
    from learn2pd.data.sandbox import Sandbox

    target = TASKS.get(name, name)
    if ":" not in target:
        raise UserError(
            f"{key}={name!r}: unknown task{suggest(name, TASKS)}; "
            f"expected one of {', '.join(TASKS)} or package.module:Class"
        )
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
