"""Names to components: `threshold` -> ThresholdPolicy, or `package.module:Class` for one of the user's own.

A component's options are the parameters of its constructor (or loader); parameters that the caller provides (the reference answers of
an oracle, the folder of a filter) are filled in by name.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, cast

from learn2pd.decoding.stops import EotpPaperStop, EotStop, NoStop, StopRule
from learn2pd.errors import UserError, suggest
from learn2pd.policies.base import Policy
from learn2pd.policies.export import load_policy
from learn2pd.policies.fixed import FixedPolicy
from learn2pd.policies.oracle import OraclePolicy
from learn2pd.policies.threshold import ThresholdPolicy

POLICIES: dict[str, Callable[..., Policy]] = {
    "fixed": FixedPolicy,
    "threshold": ThresholdPolicy,
    "oracle": OraclePolicy,
    "filter": load_policy,
}
STOPS: dict[str, Callable[..., StopRule]] = {"none": NoStop, "eot": EotStop, "eotp_paper": EotpPaperStop}


def build_policy(name: str, options: Mapping[str, Any], provided: Mapping[str, Any]) -> Policy:
    """A policy by name.

    Args:
        name: registered, or `package.module:Class`.
        options: the user's; every one must be a parameter.
        provided: by parameter name, used where the constructor asks for it.

    Raises:
        UserError: unknown name or option, value refused by the constructor.
    """
    return cast(Policy, _build("policy", POLICIES, name, options, provided))


def build_stop(name: str, floor: float) -> StopRule:
    """A stop rule by name; `floor` goes to the rules that have one."""
    return cast(StopRule, _build("stop", STOPS, name, {}, {"floor": floor}))


def _build(kind: str, table: Mapping[str, Callable[..., Any]], name: str, options: Mapping[str, Any], provided: Mapping[str, Any]) -> Any:
    factory = table.get(name) or (_import(kind, name) if ":" in name else None)
    if factory is None:
        raise UserError(f"{kind}={name!r}: unknown{suggest(name, table)}; expected one of {', '.join(table)} or package.module:Class")
    parameters = inspect.signature(factory).parameters
    for option in options:
        if option not in parameters:
            raise UserError(f"{kind} {name!r}: unknown option {option!r}{suggest(option, parameters)}; it takes {', '.join(parameters) or 'none'}")
    arguments = {key: value for key, value in provided.items() if key in parameters} | dict(options)
    missing = [key for key, value in parameters.items() if value.default is value.empty and key not in arguments]
    if missing:
        raise UserError(f"{kind} {name!r} needs {', '.join(missing)}")
    try:
        return factory(**arguments)
    except UserError:
        raise
    except (ValueError, TypeError) as error:
        raise UserError(f"{kind} {name!r}: {error}") from error


def _import(kind: str, target: str) -> Callable[..., Any]:
    module, _, attribute = target.partition(":")
    try:
        return cast(Callable[..., Any], getattr(importlib.import_module(module), attribute))
    except (ImportError, AttributeError) as error:
        raise UserError(f"{kind}={target!r}: cannot be imported ({error}); expected package.module:Class on the Python path") from error
