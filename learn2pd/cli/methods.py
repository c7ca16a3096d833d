"""The method that the arguments of a command choose."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from learn2pd.cli.config import MethodConfig, ModelConfig
from learn2pd.cli.options import MethodOptions
from learn2pd.cli.stages.components import check_decoding, method_of
from learn2pd.errors import UserError, suggest
from learn2pd.files import here_or_shipped
from learn2pd.method import Method
from learn2pd.models.loading import Model
from learn2pd.predictors.keep import trained_policy
from learn2pd.registry import AUTOREGRESSIVE, COMPONENTS, is_known

log = logging.getLogger(__name__)
SHIPPED_POLICY = "checkpoints/tiny-llada-filter"  # trained for the embedded model


def chosen_method(config: Any, own: MethodOptions, model: Model, has_run: bool) -> Method:
    """Build the method that the arguments of a command choose, and check that it fits the model.

    Args:
        config: the configuration.
        own: the command's own options.
        model: the model.
        has_run: the configuration was named, so its output_dir may hold a trained policy.

    Raises:
        UserError: the method cannot be built, does not fit, or needs the answers beforehand.
    """
    policy, folder = policy_of(config, own, has_run)
    described = MethodConfig(
        name="chosen",
        policy=policy,
        options=own.options,
        scheduler=own.scheduler,
        scheduler_options=own.scheduler_options,
        cache=own.cache,
        cache_options=own.cache_options,
    )
    stop = own.stop or ("text" if config.decode.stop_strings else "eot")
    check_decoding(config, model, [stop])
    method = method_of(config, model, folder, described, stop)
    if method.policy.knows_answer:
        raise UserError(f"policy={own.policy!r} needs the answer beforehand: it is for recording and comparison")
    return method


def policy_of(config: Any, own: MethodOptions, has_run: bool) -> tuple[str, Path]:
    """Return the name of the policy that a command uses, and the folder of the trained policy.

    Without `policy`, the trained policy of the run is used where there is one; else the shipped policy, if the
    model is the embedded one that it was trained for; else the rule `threshold`. A folder in which a predictor `keep`
    lies beside the filter holds the policy `keep`, with the thresholds that were calibrated together.

    Args:
        config: the configuration.
        own: the command's own options.
        has_run: the configuration was named, so its output_dir may hold a trained policy.

    Raises:
        UserError: the policy is neither a registered name nor a folder.
    """
    run = Path(config.output_dir) / "policy"
    shipped = Path(here_or_shipped(SHIPPED_POLICY))
    fits = config.model == ModelConfig(dtype=config.model.dtype, device=config.model.device) and shipped.is_dir()
    if own.policy in AUTOREGRESSIVE:
        raise UserError(
            f"policy={own.policy!r} decodes with an autoregressive model and is for learn2pd compare alone, "
            "in compare.methods"
        )
    is_folder = ":" in str(own.policy) and Path(str(own.policy)).is_dir()  # and no package.module:Class
    if own.policy is not None and is_known("policy", own.policy) and not is_folder:
        return own.policy, shipped if fits and not run.is_dir() else run
    if own.policy is not None:
        near = suggest(own.policy, COMPONENTS["policy"])
        if near and not Path(own.policy).is_dir():
            known = ", ".join(COMPONENTS["policy"])
            raise UserError(
                f"policy={own.policy!r}: no such folder or name{near}; expected a folder, or one of {known}"
            )
        return trained_policy(own.policy, own.options.get("revision")), Path(own.policy)
    if has_run and run.is_dir():
        log.info("policy: the trained policy in %s", run)
        return trained_policy(run), run
    if fits:
        log.info("policy: the shipped policy in %s", shipped)
        return trained_policy(shipped), shipped
    log.info("policy: threshold, since no trained policy belongs to this model; give policy=FOLDER for one of yours")
    return "threshold", run
