"""A trained predictor on disk: `policy.json` (everything it depends on) and `model.safetensors`. No pickle.

The contract of policy.json: schema version, which question the network answers, network and sizes, threshold and calibrated curve, block
geometry, what the model must share (mask id, vocabulary size, end-of-text), how confidence was defined, and for the record the model it
was trained on and its measurements.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from learn2pd.errors import UserError, check_options, first_line
from learn2pd.predictors.networks import NETWORKS, PredictorNetwork
from learn2pd.types import CONFIDENCE, ModelSpec

SCHEMA_VERSION = 3


@dataclass(frozen=True)
class Contract:
    """What a predictor was trained for; a run that differs is refused. None: any."""

    mask_id: int
    vocab_size: int
    eot_ids: tuple[int, ...]
    delimiter_ids: tuple[int, ...] = ()  # tokens that end a step of an answer
    block_length: int | None = None
    alignment: str | None = None
    confidence: str = CONFIDENCE
    model: str = ""  # name and fingerprint are for the record: a filter may serve a fine-tuned sibling
    model_fingerprint: str = ""

    @classmethod
    def of(cls, spec: ModelSpec, **geometry: Any) -> Contract:
        """What a predictor for this model must find again; `geometry` as far as the network depends on it."""
        return cls(
            spec.mask_id, spec.vocab_size, spec.eot_ids, model=spec.name, model_fingerprint=spec.fingerprint, **geometry
        )

    def check(self, spec: ModelSpec, block_length: int, alignment: str) -> None:
        """Raises UserError naming both values where the run differs from the training."""
        pairs = (
            ("mask id", self.mask_id, spec.mask_id),
            ("vocabulary size", self.vocab_size, spec.vocab_size),
            ("end-of-text ids", self.eot_ids, spec.eot_ids),
            ("block length", self.block_length, block_length),
            ("alignment", self.alignment, alignment),
            ("confidence", self.confidence, CONFIDENCE),
        )
        for what, trained, given in pairs:
            if trained is not None and trained != given:
                raise UserError(
                    f"the policy was trained for {what} {trained!r}, this run has {given!r}: change the run or train another policy"
                )


@dataclass(frozen=True)
class Setting:
    """A threshold and what it does on held-out prompts. Bounds hold with the calibration's confidence; None where not measured."""

    threshold: float
    tokens_per_forward: float | None = None
    agreement: float | None = None
    accuracy_drop: float | None = None  # against one token a step; negative is a gain
    loss_bound: float | None = None  # upper confidence bound of what the calibration limits


@dataclass(frozen=True)
class Predictor:
    """A trained network with its threshold. `kind`: filter, end_of_text or boundary."""

    kind: str
    network: PredictorNetwork
    threshold: float
    contract: Contract
    curve: tuple[Setting, ...] = ()  # from the strictest setting to the boldest
    metrics: dict[str, Any] = field(default_factory=dict)
    source: str = field(default="", compare=False)  # the folder it was loaded from

    def __post_init__(self) -> None:
        self.network.eval()

    def at(self, aggressiveness: float) -> Predictor:
        """This predictor with the threshold at a place of its calibrated curve: 0 is the strictest setting there, 1 the boldest.

        Raises:
            UserError: outside 0 to 1, or there is no curve.
        """
        if not 0 <= aggressiveness <= 1:
            raise UserError(f"aggressiveness={aggressiveness}: expected a number from 0 (strictest) to 1 (boldest)")
        if not self.curve:
            raise UserError(
                "aggressiveness: this policy has no calibrated curve to move along; run the stage 'calibrate' or give a threshold"
            )
        place = aggressiveness * (len(self.curve) - 1)
        left = self.curve[int(place)].threshold
        right = self.curve[min(int(place) + 1, len(self.curve) - 1)].threshold
        odds = torch.tensor([left, right], dtype=torch.float64).logit(1e-9)
        return replace(self, threshold=float(torch.lerp(odds[0], odds[1], place - int(place)).sigmoid()))

    @property
    def fingerprint(self) -> str:
        """16 hex digits of network and weights."""
        digest = hashlib.sha256(json.dumps(network_json(self.network)).encode())
        for name, tensor in sorted(self.network.state_dict().items()):
            digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]


def saved_folder(predictor: Predictor) -> str:
    """The folder that a predictor was loaded from.

    Raises:
        UserError: it was not.
    """
    if not predictor.source:
        raise UserError(
            f"this {predictor.kind} predictor is not on disk: save it and load it, so that its folder names it"
        )
    return predictor.source


def network_json(network: PredictorNetwork) -> dict[str, Any]:
    """Name and options of one of our networks."""
    names = [name for name, kind in NETWORKS.items() if kind is type(network)]
    if not names:
        raise UserError(f"network {type(network).__name__} cannot be exported: expected one of {', '.join(NETWORKS)}")
    return {"name": names[0], "options": network.options()}


def build_network(name: str, options: dict[str, Any]) -> PredictorNetwork:
    """Raises UserError for a name or option that does not exist, or a size that makes no sense."""
    if name not in NETWORKS:
        raise UserError(f"filter={name!r}: unknown; expected one of {', '.join(NETWORKS)}")
    check_options(f"filter {name!r}", options, inspect.signature(NETWORKS[name]).parameters)
    try:
        return NETWORKS[name](**options)
    except (ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"filter {name!r}: {error}") from error


def save_predictor(predictor: Predictor, folder: str | Path) -> Path:
    """Write `policy.json` and `model.safetensors` into `folder`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in predictor.network.state_dict().items()}
    save_file(tensors, folder / "model.safetensors")
    described = {
        "schema": SCHEMA_VERSION,
        "kind": predictor.kind,
        "network": network_json(predictor.network),
        "threshold": predictor.threshold,
        "curve": [asdict(setting) for setting in predictor.curve],
        "contract": asdict(predictor.contract),
        "metrics": predictor.metrics,
    }
    (folder / "policy.json").write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    return folder


def load_predictor(folder: str | Path, kind: str) -> Predictor:
    """Load what `save_predictor` wrote.

    Raises:
        UserError: the folder is missing, damaged, of another kind, or of a schema this version does not read.
    """
    folder = Path(folder)
    path = folder / "policy.json"
    if not path.is_file():
        raise UserError(
            f"policy {str(folder)!r}: no policy.json there; expected a folder with policy.json and model.safetensors"
        )
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
        if described["schema"] != SCHEMA_VERSION:
            raise UserError(
                f"policy {str(folder)!r}: schema {described['schema']!r}, this version reads {SCHEMA_VERSION}: train and export it again"
            )
        if described["kind"] != kind:
            raise UserError(f"policy {str(folder)!r}: it is a {described['kind']!r}, expected a {kind!r}")
        network = build_network(described["network"]["name"], described["network"]["options"])
        network.load_state_dict(load_file(folder / "model.safetensors"))
        return Predictor(
            kind=kind,
            network=network.eval(),
            threshold=described["threshold"],
            contract=_contract(described["contract"]),
            curve=tuple(Setting(**setting) for setting in described["curve"]),
            metrics=described["metrics"],
            source=str(folder),
        )
    except UserError:
        raise
    except (OSError, SafetensorError, RuntimeError, KeyError, TypeError, ValueError, AttributeError) as error:
        detail = first_line(error)
        raise UserError(f"policy {str(folder)!r} is damaged ({detail}): export it again") from error


def _contract(fields: dict[str, Any]) -> Contract:
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()
    }
    return Contract(**values)
