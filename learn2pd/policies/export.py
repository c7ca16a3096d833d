"""Save and load a trained policy: `policy.json` and `model.safetensors`, see signals/storage.py."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from learn2pd.errors import UserError
from learn2pd.policies.filter import FilterPolicy
from learn2pd.signals.adapters import with_adapter
from learn2pd.signals.storage import load_signal, save_signal


def save_policy(policy: FilterPolicy, folder: str | Path) -> Path:
    """Write `policy.json` and `model.safetensors` into `folder`."""
    return save_signal(policy.signal, folder)


def load_policy(
    folder: str | Path,
    adapter: str | Path | None = None,
    threshold: float | None = None,
    aggressiveness: float | None = None,
) -> FilterPolicy:
    """Load a trained filter.

    Args:
        folder: what `save_policy` or a run wrote.
        adapter: folder of a LoRA adapter that was trained on this policy; it is merged, and brings its own threshold and curve.
        threshold: instead of the calibrated one.
        aggressiveness: instead of the calibrated threshold, the place on the calibrated curve, 0 (strictest) to 1 (boldest).

    Raises:
        UserError: the folder is missing, damaged or of another schema; the adapter is of another base; both a threshold and an
            aggressiveness, or one of the numbers out of range.
    """
    signal = load_signal(folder, "filter")
    if adapter is not None:
        signal = with_adapter(signal, adapter)
    if threshold is not None and aggressiveness is not None:
        raise UserError(f"threshold={threshold} and aggressiveness={aggressiveness} both choose the filter's threshold: give one of them")
    if aggressiveness is not None:
        signal = signal.at(aggressiveness)
    if threshold is not None:
        signal = replace(signal, threshold=threshold)
    try:
        return FilterPolicy(signal)
    except ValueError as error:
        raise UserError(str(error)) from error
