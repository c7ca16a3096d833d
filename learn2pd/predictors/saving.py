"""A trained predictor is saved as `policy.json` and `model.safetensors`. Nothing is pickled.

policy.json holds the version of the schema, the question that the network answers, the network and its sizes, the
threshold and the calibrated curve. It also holds the contract, that is the facts that a run must share with the
training: mask id, vocabulary size, end-of-text ids, block geometry and the definition of confidence. The name of the
model of the training and the measurements are kept for information.
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
from learn2pd.files import here_or_shipped
from learn2pd.predictors.networks import NETWORKS, PredictorNetwork
from learn2pd.types import CONFIDENCE, ModelSpec

SCHEMA_VERSION = 3


@dataclass(frozen=True)
class Contract:
    """The facts about the training that a run must share. A run that differs in one of them is refused.

    Attributes:
        mask_id: The id of the mask token.
        vocab_size: The number of tokens.
        eot_ids: The ids that end an answer.
        delimiter_ids: The ids that end a step of an answer; a run is not compared in them.
        block_length: The block length in tokens; None fits any.
        alignment: The alignment of the windows; None fits any.
        confidence: The definition of the confidence.
        model: The name of the model, for information: a filter may serve a fine-tuned version of it.
        model_fingerprint: The fingerprint of the model, for information.
    """

    mask_id: int
    vocab_size: int
    eot_ids: tuple[int, ...]
    delimiter_ids: tuple[int, ...] = ()
    block_length: int | None = None
    alignment: str | None = None
    confidence: str = CONFIDENCE
    model: str = ""
    model_fingerprint: str = ""

    @classmethod
    def of(cls, spec: ModelSpec, **geometry: Any) -> Contract:
        """Make the contract of a predictor that is trained for a model.

        Args:
            spec: The facts about the model.
            geometry: `block_length`, `alignment` and `delimiter_ids`, as far as the network depends on them.
        """
        return cls(
            spec.mask_id, spec.vocab_size, spec.eot_ids, model=spec.name, model_fingerprint=spec.fingerprint, **geometry
        )

    def check(self, spec: ModelSpec, block_length: int, alignment: str) -> None:
        """Refuse a run that differs from the training.

        Args:
            spec: The facts about the model of the run.
            block_length: The block length of the run, in tokens.
            alignment: The alignment of the windows of the run.

        Raises:
            UserError: The run differs; the message names both values.
        """
        pairs = (
            ("mask id", self.mask_id, spec.mask_id),
            ("vocabulary size", self.vocab_size, spec.vocab_size),
            ("end-of-text ids", self.eot_ids, spec.eot_ids),
            ("block length", self.block_length, block_length),
            ("alignment", self.alignment, alignment),
            ("confidence", self.confidence, CONFIDENCE),
        )
        for fact, trained, given in pairs:
            if trained is not None and trained != given:
                raise UserError(
                    f"the policy was trained for {fact} {trained!r}, this run has {given!r}: "
                    "change the run or train another policy"
                )


@dataclass(frozen=True)
class Setting:
    """A threshold and its measurements on held-out prompts. A measurement is None where it was not made.

    Attributes:
        threshold: The threshold on the network's probability.
        tokens_per_forward: The answer tokens per forward.
        agreement: The share of positions that agree with decoding one token a step.
        accuracy_drop: The accuracy lost against one token a step; a negative number is a gain.
        loss_bound: The upper bound, at the calibration's confidence, of the loss that the calibration limits.
    """

    threshold: float
    tokens_per_forward: float | None = None
    agreement: float | None = None
    accuracy_drop: float | None = None
    loss_bound: float | None = None


@dataclass(frozen=True, repr=False)
class Predictor:
    """A trained network with its threshold.

    Attributes:
        kind: `filter`, `end_of_text` or `boundary`.
        network: The network.
        threshold: The threshold on the network's probability.
        contract: The facts about the training that a run must share.
        curve: The calibrated settings, from the strictest to the boldest.
        metrics: The measurements of training and calibration, for information.
        source: The folder from which the predictor was loaded; empty where it was not loaded.
    """

    kind: str
    network: PredictorNetwork
    threshold: float
    contract: Contract
    curve: tuple[Setting, ...] = ()
    metrics: dict[str, Any] = field(default_factory=dict)
    source: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        self.network.eval()

    def __repr__(self) -> str:
        parameters = sum(parameter.numel() for parameter in self.network.parameters())
        name = type(self.network).__name__
        return f"Predictor({self.kind!r}, {name} of {parameters:,} parameters, threshold={self.threshold:.4g})"

    def at(self, aggressiveness: float) -> Predictor:
        """Return this predictor with the threshold at a place of its calibrated curve.

        Args:
            aggressiveness: The place, from 0 for the strictest setting of the curve to 1 for the boldest. Between two
                settings the log-odds of the threshold are interpolated.

        Returns:
            A predictor with the same network.

        Raises:
            UserError: The place is outside 0 to 1, or the predictor has no curve.
        """
        if not 0 <= aggressiveness <= 1:
            raise UserError(f"aggressiveness={aggressiveness}: expected a number from 0 (strictest) to 1 (boldest)")
        if not self.curve:
            raise UserError(
                "aggressiveness: this policy has no calibrated curve to move along; "
                "run the stage 'calibrate' or give a threshold"
            )
        place = aggressiveness * (len(self.curve) - 1)
        left = self.curve[int(place)].threshold
        right = self.curve[min(int(place) + 1, len(self.curve) - 1)].threshold
        odds = torch.tensor([left, right], dtype=torch.float64).logit(1e-9)
        return replace(self, threshold=float(torch.lerp(odds[0], odds[1], place - int(place)).sigmoid()))

    @property
    def fingerprint(self) -> str:
        """16 hex digits that identify the network and its weights."""
        digest = hashlib.sha256(json.dumps(network_json(self.network)).encode())
        for name, tensor in sorted(self.network.state_dict().items()):
            digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]


def saved_folder(predictor: Predictor) -> str:
    """Return the folder from which a predictor was loaded.

    Args:
        predictor: The predictor.

    Raises:
        UserError: The predictor was not loaded from a folder.
    """
    if not predictor.source:
        raise UserError(
            f"this {predictor.kind} predictor is not on disk: save it and load it, so that its folder names it"
        )
    return predictor.source


def network_json(network: PredictorNetwork) -> dict[str, Any]:
    """Describe a network of this package by its name and options.

    Args:
        network: The network.

    Returns:
        JSON values: `name` and `options`.

    Raises:
        UserError: The class of the network is not in `NETWORKS`.
    """
    names = [name for name, kind in NETWORKS.items() if kind is type(network)]
    if not names:
        raise UserError(f"network {type(network).__name__} cannot be exported: expected one of {', '.join(NETWORKS)}")
    return {"name": names[0], "options": network.options()}


def build_network(name: str, options: dict[str, Any]) -> PredictorNetwork:
    """Build an untrained network.

    Args:
        name: A name in `NETWORKS`.
        options: The arguments of its constructor.

    Returns:
        The network.

    Raises:
        UserError: The name or an option is unknown, or the network refuses a size.
    """
    if name not in NETWORKS:
        raise UserError(f"filter={name!r}: unknown; expected one of {', '.join(NETWORKS)}")
    check_options(f"filter {name!r}", options, inspect.signature(NETWORKS[name]).parameters)
    try:
        return NETWORKS[name](**options)
    except (ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"filter {name!r}: {error}") from error


def save_predictor(predictor: Predictor, folder: str | Path) -> Path:
    """Save a predictor as `policy.json` and `model.safetensors`.

    Args:
        predictor: The predictor.
        folder: The folder to write into; it is made where it does not exist.

    Returns:
        The folder.

    Raises:
        UserError: The class of the network is not in `NETWORKS`.
    """
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
    """Load a predictor that `save_predictor` wrote.

    Args:
        folder: The folder with `policy.json` and `model.safetensors`.
        kind: The kind that the predictor must have.

    Returns:
        The predictor.

    Raises:
        UserError: The folder is missing or damaged, or holds a predictor of another kind or schema.
    """
    folder = Path(here_or_shipped(str(folder)))
    path = folder / "policy.json"
    if not path.is_file():
        raise UserError(
            f"policy {str(folder)!r}: no policy.json there; expected a folder with policy.json and model.safetensors"
        )
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
        if described["schema"] != SCHEMA_VERSION:
            raise UserError(
                f"policy {str(folder)!r}: schema {described['schema']!r}, this version reads {SCHEMA_VERSION}: "
                "train and export it again"
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
