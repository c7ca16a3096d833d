"""Save and load a trained policy: `policy.json` (everything it depends on) and `model.safetensors`. No pickle.

The contract of policy.json: schema version, network sizes, threshold, block geometry (alignment, block length), what the model must
share (mask id, vocabulary size), how confidence was defined, and for the record the model it was trained on and its measurements.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from learn2pd.decoding.proposals import CONFIDENCE
from learn2pd.decoding.schedulers import Scheduler
from learn2pd.errors import UserError
from learn2pd.policies.filter import FilterNetwork, FilterPolicy
from learn2pd.types import ModelSpec

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class PolicyContract:
    """What a trained policy was trained for; a run that differs is refused."""

    block_length: int
    alignment: str
    mask_id: int
    vocab_size: int
    confidence: str = CONFIDENCE
    model: str = ""  # name and fingerprint are for the record: a filter may serve a fine-tuned sibling
    model_fingerprint: str = ""

    def check(self, spec: ModelSpec, scheduler: Scheduler) -> None:
        """Raises UserError naming both values where the run differs from the training."""
        pairs = (
            ("mask id", self.mask_id, spec.mask_id),
            ("vocabulary size", self.vocab_size, spec.vocab_size),
            ("block length", self.block_length, scheduler.block_length),
            ("alignment", self.alignment, scheduler.alignment),
            ("confidence", self.confidence, CONFIDENCE),
        )
        for what, trained, given in pairs:
            if trained != given:
                raise UserError(f"the policy was trained for {what} {trained!r}, this run has {given!r}: change the run or train another policy")


class TrainedFilter(FilterPolicy):
    """A filter with its contract, as `load_policy` gives it."""

    def __init__(self, network: FilterNetwork, threshold: float, contract: PolicyContract, metrics: dict[str, Any] | None = None) -> None:
        super().__init__(network, threshold)
        self.contract, self.metrics = contract, metrics or {}


def save_policy(policy: TrainedFilter, folder: str | Path) -> Path:
    """Write `policy.json` and `model.safetensors` into `folder`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    network = policy.network
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}, folder / "model.safetensors")
    described = {
        "schema": SCHEMA_VERSION,
        "policy": "filter",
        "network": {"width": network.width, "hidden": network.hidden},
        "threshold": policy.threshold,
        "contract": asdict(policy.contract),
        "metrics": policy.metrics,
    }
    (folder / "policy.json").write_text(json.dumps(described, indent=2) + "\n")
    return folder


def load_policy(folder: str | Path) -> TrainedFilter:
    """Load a policy that `save_policy` wrote.

    Raises:
        UserError: the folder is missing, damaged, or of a schema this version does not read.
    """
    folder = Path(folder)
    path = folder / "policy.json"
    if not path.is_file():
        raise UserError(f"policy {str(folder)!r}: no policy.json there; expected a folder with policy.json and model.safetensors")
    try:
        described = json.loads(path.read_text())
        if described["schema"] != SCHEMA_VERSION:
            raise UserError(f"policy {str(folder)!r}: schema {described['schema']!r}, this version reads {SCHEMA_VERSION}")
        if described["policy"] != "filter":
            raise UserError(f"policy {str(folder)!r}: kind {described['policy']!r}, this version reads 'filter'")
        network = FilterNetwork(**described["network"])
        contract = PolicyContract(**described["contract"])
        network.load_state_dict(load_file(folder / "model.safetensors"))
        return TrainedFilter(network, described["threshold"], contract, described["metrics"])
    except UserError:
        raise
    except (OSError, SafetensorError, RuntimeError, KeyError, TypeError, ValueError) as error:
        detail = str(error).strip().splitlines()[0]
        raise UserError(f"policy {str(folder)!r} is damaged ({detail}): export it again") from error
