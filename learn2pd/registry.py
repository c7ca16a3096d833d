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
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from learn2pd.decoding.caches import BlockCache, DSBCache, LookaheadCache, NoCache
from learn2pd.decoding.schedulers import AdaBlockScheduler, BlocksScheduler, DSBScheduler, LookaheadScheduler
from learn2pd.decoding.stops import AnywhereStop, EotpPaperStop, EotStop, NoStop
from learn2pd.errors import UserError, suggest
from learn2pd.models.causal import load_verifier
from learn2pd.policies.apd import APDPolicy, LeftToRightPolicy
from learn2pd.policies.export import load_policy
from learn2pd.policies.factor import FactorPolicy
from learn2pd.policies.fixed import FixedPolicy
from learn2pd.policies.localleap import LocalLeapPolicy
from learn2pd.policies.oracle import OraclePolicy
from learn2pd.policies.threshold import ThresholdPolicy


def apd(verifier: str, mixture_weight: float = 0.7, dtype: str = "float32", device: str = "auto") -> APDPolicy:
    """APD with the verifier in a folder or on the hub."""
    return APDPolicy(load_verifier(verifier, dtype, device), mixture_weight)


def adablock(
    tokenizer: PreTrainedTokenizerBase, delimiter_ids: Sequence[int] | None = None, block_length: int = 32, delimiter_threshold: float = 0.3
) -> AdaBlockScheduler:
    """AdaBlock; without `delimiter_ids`, every token that is white space with a new line in it is a delimiter."""
    if delimiter_ids is None:
        texts = ((token, tokenizer.decode([token])) for token in range(len(tokenizer)))
        delimiter_ids = [token for token, text in texts if "\n" in text and not text.strip()]
    return AdaBlockScheduler(delimiter_ids, block_length, delimiter_threshold)


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
    "scheduler": {"blocks": BlocksScheduler, "adablock": adablock, "dsb": DSBScheduler, "lookahead": LookaheadScheduler},
    "cache": {
        "none": NoCache,
        "prefix": functools.partial(BlockCache, "prefix"),
        "dual": functools.partial(BlockCache, "dual"),
        "dsb": DSBCache,
        "lookahead": LookaheadCache,
    },
    "stop": {"none": NoStop, "eot": EotStop, "eotp_paper": EotpPaperStop, "anywhere": AnywhereStop},
}


def build(kind: str, name: str, options: Mapping[str, Any], provided: Mapping[str, Any]) -> Any:
    """A component by name.

    Args:
        kind: `policy`, `scheduler`, `cache` or `stop`.
        name: registered, or `package.module:Class`.
        options: the user's; every one must be a parameter.
        provided: by parameter name, used where the constructor asks for it.

    Raises:
        UserError: unknown name or option, value refused by the constructor.
    """
    table = COMPONENTS[kind]
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


def _import(kind: str, target: str) -> Any:
    module, _, attribute = target.partition(":")
    if os.getcwd() not in sys.path:  # a console script does not look into the working directory, where the user's file is
        sys.path.insert(0, os.getcwd())
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(f"{kind}={target!r}: cannot be imported ({error}); expected package.module:Class on the Python path") from error
