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
import math
import typing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from learn2pd.errors import UserError, check_options, first_line
from learn2pd.files import whole_file, write_json
from learn2pd.kinds import check_kind, matches
from learn2pd.predictors.networks import NETWORKS, PredictorNetwork
from learn2pd.types import CONFIDENCE, ModelSpec

SCHEMA_VERSION = 3
LARGEST_SIZE = 4096  # of a network: a larger one is no small network, and building it may take all memory
LARGEST_MODEL = 65536  # features of a model's hidden states
DESCRIPTION = "policy.json"
WEIGHTS = "model.safetensors"
EXPECTED = f"{DESCRIPTION} and {WEIGHTS}, as a run or save_pretrained writes them"


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
        kind: `filter`, `end_of_text`, `boundary` or `keep`.
        network: The network.
        threshold: The threshold on the network's probability.
        contract: The facts about the training that a run must share.
        curve: The calibrated settings, from the strictest to the boldest. Those of the kind `keep` are settings of the
            filter beside it, with the predictor's own threshold.
        metrics: The measurements of training and calibration, for information.
        filter_threshold: The threshold of the filter that was calibrated together with this predictor's own; only the
            kind `keep` has one.
        one_more: The filter's option of this name in that calibration.
        confidence_threshold: The filter's option of this name in that calibration.
        source: The folder or hub name from which the predictor was loaded; empty where it was not loaded.
        revision: The revision of the hub repository, where the caller named one.
    """

    kind: str
    network: PredictorNetwork
    threshold: float
    contract: Contract
    curve: tuple[Setting, ...] = ()
    metrics: dict[str, Any] = field(default_factory=dict)
    filter_threshold: float | None = None
    one_more: float = 1.0
    confidence_threshold: float = 1.0
    source: str = field(default="", compare=False)
    revision: str | None = field(default=None, compare=False)

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
        place = round(aggressiveness * (len(self.curve) - 1), 9)  # 15 / 22 * 22 is less than 15
        left = self.curve[int(place)].threshold
        if place == int(place):
            return replace(self, threshold=left)  # the interpolation would round it, and its measurements be lost
        right = self.curve[int(place) + 1].threshold
        odds = torch.tensor([left, right], dtype=torch.float64).logit(1e-9)
        return replace(self, threshold=float(torch.lerp(odds[0], odds[1], place - int(place)).sigmoid()))

    def with_threshold(self, threshold: float | None, aggressiveness: float | None) -> Predictor:
        """Return this predictor with another threshold, or as it is where the caller chooses none.

        Args:
            threshold: The threshold itself, or None.
            aggressiveness: A place on the calibrated curve as for `at`, or None.

        Returns:
            A predictor with the same network.

        Raises:
            UserError: Both are given, or as for `at`.
        """
        if threshold is not None and aggressiveness is not None:
            raise UserError(
                f"threshold={threshold} and aggressiveness={aggressiveness} both choose the filter's threshold: "
                "give one of them"
            )
        if aggressiveness is not None:
            return self.at(aggressiveness)
        return self if threshold is None else replace(self, threshold=threshold)

    @property
    def setting(self) -> Setting | None:
        """The setting of the curve at the threshold; None where the threshold is not on the curve."""
        return next((setting for setting in self.curve if setting.threshold == self.threshold), None)

    @property
    def fingerprint(self) -> str:
        """16 hex digits that identify the network, its weights and the threshold."""
        return hashlib.sha256(f"{self.weights_fingerprint} {self.threshold!r}".encode()).hexdigest()[:16]

    @property
    def weights_fingerprint(self) -> str:
        """16 hex digits that identify the network and its weights."""
        digest = hashlib.sha256(json.dumps(network_json(self.network)).encode())
        for name, tensor in sorted(self.network.state_dict().items()):
            digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]


def saved_folder(predictor: Predictor) -> dict[str, str]:
    """Return the folder or hub name from which a predictor was loaded, as the options with which it is loaded again.

    Args:
        predictor: The predictor.

    Returns:
        `folder`, and `revision` where the caller named one.

    Raises:
        UserError: The predictor was not loaded from a folder.
    """
    if not predictor.source:
        raise UserError(
            f"this {predictor.kind} predictor is not on disk: save it and load it, so that its folder names it"
        )
    named = {} if predictor.revision is None else {"revision": predictor.revision}
    return {"folder": predictor.source} | named


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
    if not isinstance(name, str) or name not in NETWORKS:
        raise UserError(f"filter={name!r}: unknown; expected one of {', '.join(NETWORKS)}")
    check_options(f"filter {name!r}", options, inspect.signature(NETWORKS[name]).parameters)
    kinds = typing.get_type_hints(NETWORKS[name].__init__)
    try:
        for option, value in options.items():
            check_kind(option, value, kinds[option])
            largest = LARGEST_MODEL if option == "model_width" else LARGEST_SIZE
            if type(value) is int and not 1 <= value <= largest:
                raise ValueError(f"{option}={value}: expected a size from 1 to {largest}")
        return NETWORKS[name](**options)
    except (ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"filter {name!r}: {first_line(error)}") from error


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
    with whole_file(folder / WEIGHTS) as partial:
        save_file(tensors, partial)
    described = {
        "schema": SCHEMA_VERSION,
        "kind": predictor.kind,
        "network": network_json(predictor.network),
        "threshold": predictor.threshold,
        "curve": [asdict(setting) for setting in predictor.curve],
        "contract": asdict(predictor.contract),
        "metrics": predictor.metrics,
    }
    if predictor.filter_threshold is not None:
        described |= {
            "filter_threshold": predictor.filter_threshold,
            "one_more": predictor.one_more,
            "confidence_threshold": predictor.confidence_threshold,
        }
    write_json(folder / DESCRIPTION, described)
    return folder


def read_predictor(folder: Path, kind: str, source: str = "", revision: str | None = None) -> Predictor:
    """Read a predictor that `save_predictor` wrote into a folder.

    Args:
        folder: The folder with `policy.json` and `model.safetensors`.
        kind: The kind that the predictor must have.
        source: The folder or hub name by which the user named it.
        revision: The revision of the hub repository.

    Returns:
        The predictor.

    Raises:
        UserError: The files hold a predictor of another kind or schema.
        Exception: A file is missing or damaged. Errors of many kinds are raised, and the caller words them.
    """
    described = check_kind("the file", json.loads((folder / DESCRIPTION).read_text(encoding="utf-8")), dict)
    json.dumps(described, ensure_ascii=False).encode()  # half a character cannot be written into a file again
    if described["schema"] != SCHEMA_VERSION:
        raise UserError(
            f"schema {described['schema']!r}, this version reads {SCHEMA_VERSION}: train and export it again"
        )
    if described["kind"] != kind:
        raise UserError(f"it is a {described['kind']!r}, expected a {kind!r}")
    beside = described.get("filter_threshold")
    try:
        return Predictor(
            kind=kind,
            network=_trained(described["network"], load_file(folder / WEIGHTS)),
            threshold=read_threshold(described["threshold"]),
            contract=_contract(described["contract"]),
            curve=read_curve(described["curve"]),
            metrics=check_kind("metrics", described["metrics"], dict),
            filter_threshold=None if beside is None else read_threshold(beside),
            one_more=read_threshold(described.get("one_more", 1.0)),
            confidence_threshold=read_threshold(described.get("confidence_threshold", 1.0)),
            source=source,
            revision=revision,
        )
    except UserError as error:  # it is about a value of the file, and does not name the file
        raise ValueError(str(error)) from error


def _trained(described: dict[str, Any], tensors: dict[str, Tensor]) -> PredictorNetwork:
    """Build the network of a file with its weights. Its sizes cost no memory before the weights are seen to fit."""
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or not tensor.float().isfinite().all():
            raise ValueError(f"the tensor {name} holds something other than finite numbers")
    with torch.device("meta"):
        network = build_network(described["name"], check_kind("network.options", described["options"], dict))
    network.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, assign=True)
    return network.eval()


def read_threshold(value: Any) -> float:
    """Check a threshold of a file.

    Args:
        value: The value in the file.

    Returns:
        The threshold.

    Raises:
        ValueError: It is not a number from 0 to 1.
    """
    if not matches(value, float) or not 0 <= value <= 1:
        raise ValueError(f"threshold={value!r}: expected a number from 0 to 1")
    return float(value)


def read_curve(values: Any) -> tuple[Setting, ...]:
    """Check a calibrated curve of a file.

    Args:
        values: The value in the file, a list of objects.

    Returns:
        The settings.

    Raises:
        ValueError: A setting lacks a field, has an unknown one, or holds something other than a finite number.
    """
    curve = tuple(_read(Setting, "curve", setting) for setting in check_kind("curve", values, list))
    thresholds = [read_threshold(setting.threshold) for setting in curve]
    numbers = [value for setting in curve for value in asdict(setting).values() if value is not None]
    if not all(map(math.isfinite, numbers)):
        raise ValueError("the curve holds a number that is not finite")
    if thresholds != sorted(thresholds, reverse=True):
        raise ValueError(f"the thresholds {thresholds} of the curve do not go from the strictest to the boldest")
    return curve


def _contract(fields: Any) -> Contract:
    contract = _read(Contract, "contract", fields)
    ids = (contract.mask_id, *contract.eot_ids, *contract.delimiter_ids)
    if not 0 <= min(ids) <= max(ids) < contract.vocab_size:
        raise ValueError(f"the contract's ids reach from {min(ids)} to {max(ids)}, of {contract.vocab_size} tokens")
    return contract


Read = TypeVar("Read", Contract, Setting)


def _read(kind: type[Read], name: str, fields: Any) -> Read:
    """Make an object of a JSON object whose values must have the types of the class's fields."""
    kinds = typing.get_type_hints(kind)
    check_options(name, check_kind(name, fields, dict), kinds)
    for key, value in fields.items():
        check_kind(f"{name}.{key}", value, kinds[key])
    needed = (key for key, value in inspect.signature(kind).parameters.items() if value.default is value.empty)
    missing = [key for key in needed if key not in fields]
    if missing:
        raise ValueError(f"{name} lacks {', '.join(missing)}")
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
    return kind(**values)
