"""Train the filter, in rounds, and the other predictors -> output_dir/train, output_dir/rounds."""

from __future__ import annotations

import copy
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftModel

from learn2pd.cli.config import RunConfig
from learn2pd.cli.stages.components import model_of, usable_prompts
from learn2pd.cli.stages.recording import record_round
from learn2pd.cli.stages.run_folder import read_metrics
from learn2pd.cli.stages.validation import measure_on
from learn2pd.errors import UserError, suggest
from learn2pd.files import write_json
from learn2pd.predictors.filter import FilterPolicy
from learn2pd.predictors.kinds import BESIDE_THE_FILTER, QUESTIONS
from learn2pd.predictors.lora import add_adapter
from learn2pd.predictors.networks import PredictorNetwork
from learn2pd.predictors.saving import Contract, Predictor, build_network, load_predictor, network_json
from learn2pd.recording.reading import Recording
from learn2pd.training.calibration import Measured
from learn2pd.training.checkpoint_io import SafetensorsCheckpointIO
from learn2pd.training.fit import PredictorData, Recipe, train_predictor

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """A network, and where it is a fine-tuned one, what it came from."""

    network: PredictorNetwork
    base: Predictor | None = None
    adapted: PeftModel | None = None  # holds `network`, whose layers carry the adapter


def stage_train(config: RunConfig, output: Path) -> dict[str, Any] | None:
    """Train the filter on the oracle's states; in every round let it decode the recorded prompts, and train anew on the states it led into.

    The oracle's states are left out from the first round on: what is masked in them is what the model had wrong, which no other policy meets.
    Where a policy is fine-tuned in rounds it is itself round 0: the states it leads into on the new prompts are there without any training.
    """
    if {"rounds", *config.train.predictors} <= read_metrics(output).get("train", {}).keys():
        log.info("already trained: %s", output / "train")
        return None
    oracle, model = Recording.load(output / "records"), model_of(config)
    validation = [prompt for prompt in usable_prompts(config, model) if prompt.split == "validation"]
    measure = measure_on(config, model, validation, oracle)
    visited: list[Recording] = []
    rounds: list[dict[str, Any]] = []
    for number in range(config.train.rounds + 1):
        base = start(config, "filter", oracle.manifest).base if number == 0 and config.train.rounds else None
        network, figures = (
            (base.network, {}) if base else _trained(config, visited or [oracle], output, "filter", f"round-{number}")
        )
        predictor = Predictor("filter", network, config.train.rollout_threshold, contract_of(oracle.manifest, network))
        rounds.append({"round": number, **figures, **_alone(measure(predictor))})
        if number < config.train.rounds:
            rounds[-1] |= record_round(config, output, number + 1, FilterPolicy(predictor))
            visited.append(Recording.load(output / "rounds" / str(number + 1)))
    extra = {name: _trained(config, [oracle, *visited], output, name, name)[1] for name in config.train.predictors}
    return {"filter": network_json(network)["name"], "rounds": rounds, **extra}


def _alone(measured: Measured) -> dict[str, float | None]:
    """Of the validation prompts, decoded with the round's filter at `train.rollout_threshold`, nobody correcting it."""
    return {
        "agreement": float(measured.agreement.mean()),
        "accuracy_drop": None if measured.drop is None else float(measured.drop.mean()),
        "tokens_per_forward": float(measured.tokens.sum() / measured.forwards.sum()),
    }


def check_training(config: RunConfig) -> None:
    """Raises UserError for what can be seen before anything is recorded: a predictor, an option or a policy to begin with that does not exist."""
    network_of(config, "filter")
    if config.train.start != "scratch":
        base_of(config)
    for name in config.train.predictors:
        if name not in BESIDE_THE_FILTER:
            raise UserError(
                f"train.predictors: unknown predictor {name!r}{suggest(name, BESIDE_THE_FILTER)}; expected some of {', '.join(BESIDE_THE_FILTER)}"
            )


def network_of(config: RunConfig, kind: str) -> PredictorNetwork:
    """An untrained network for a kind of predictor; the filter's is configured.

    Raises:
        UserError: `filter_options` that the network does not take.
    """
    if kind in BESIDE_THE_FILTER:
        return BESIDE_THE_FILTER[kind]()
    width = {"width": config.decode.block_length} if config.filter == "mlp" else {}
    return build_network(config.filter, width | config.filter_options)


def check_trained(output: Path) -> None:
    """Raises UserError where stage `train` has not finished."""
    if "train" not in read_metrics(output):
        raise UserError(f"{output / 'train'}: no finished training; run the stage 'train' first")


def start(config: RunConfig, kind: str, manifest: dict[str, Any]) -> Start:
    """What the training of a predictor begins with.

    Raises:
        UserError: `policy` is missing, is no filter, or was trained for another geometry or vocabulary than the recording's.
    """
    if kind != "filter" or config.train.start == "scratch":
        return Start(network_of(config, kind))
    base = base_of(config)
    check_same(base, manifest)
    network = copy.deepcopy(base.network)
    return Start(network, base, add_adapter(network, config.train.lora_rank) if config.train.start == "lora" else None)


def base_of(config: RunConfig) -> Predictor:
    """The filter that fine-tuning begins with.

    Raises:
        UserError: `policy` is not set, missing, or no filter.
    """
    if config.policy is None:
        raise UserError(
            f"policy is not set: train.start={config.train.start} begins with a trained filter; give policy=FOLDER"
        )
    return load_predictor(config.policy, "filter")


def check_same(base: Predictor, manifest: dict[str, Any]) -> None:
    """Raises UserError where a policy and a recording do not go together."""
    for name in ("mask_id", "vocab_size", "eot_ids", "block_length", "alignment", "confidence"):
        trained, recorded = getattr(base.contract, name), manifest[name]
        recorded = tuple(recorded) if isinstance(recorded, list) else recorded
        if trained is not None and trained != recorded:
            raise UserError(
                f"policy was trained for {name}={trained!r}, this recording has {recorded!r}: record as it was trained, or train from scratch"
            )


def data_of(config: RunConfig, recordings: Sequence[Recording], kind: str, network: PredictorNetwork) -> PredictorData:
    """What a predictor is trained and judged on."""
    return PredictorData(
        recordings,
        QUESTIONS[kind].of(recordings[0].manifest, config.train.loss_on),
        network,
        config.train.batch_rows,
        config.seed,
    )


def contract_of(manifest: dict[str, Any], network: PredictorNetwork) -> Contract:
    """What a network trained on a recording must find again."""
    fixed = network.width is not None
    return Contract(
        mask_id=manifest["mask_id"],
        vocab_size=manifest["vocab_size"],
        eot_ids=tuple(manifest["eot_ids"]),
        delimiter_ids=tuple(manifest["delimiter_ids"]),
        block_length=manifest["block_length"] if fixed else None,
        alignment=manifest["alignment"] if fixed else None,
        confidence=manifest["confidence"],
        model=manifest["model"],
        model_fingerprint=manifest["model_fingerprint"],
    )


def trained(config: RunConfig, output: Path, kind: str, manifest: dict[str, Any]) -> Start:
    """What stage `train` made of its start.

    Raises:
        UserError: it did not train this one.
    """
    folder = output / "train" / (f"round-{config.train.rounds}" if kind == "filter" else kind)
    if not (folder / "done.json").is_file():
        raise UserError(f"{folder}: no finished training; run the stage 'train' first")
    found = start(config, kind, manifest)
    _load(found.network, folder)
    return found


def _trained(
    config: RunConfig, recordings: Sequence[Recording], output: Path, kind: str, name: str
) -> tuple[PredictorNetwork, dict[str, Any]]:
    """Train, or take what an interrupted run had finished."""
    folder, options, begun = output / "train" / name, config.train, start(config, kind, recordings[0].manifest)
    network = begun.network
    done = folder / "done.json"
    if done.is_file():
        _load(network, folder)
        return network, json.loads(done.read_text(encoding="utf-8"))
    data, started = data_of(config, recordings, kind, network), time.perf_counter()
    data.prepare(normalise=begun.base is None)
    figures = train_predictor(
        network,
        data,
        folder,
        Recipe(options.learning_rate, options.weight_decay, options.max_epochs, options.patience_epochs),
    )
    figures["train_seconds"] = round(time.perf_counter() - started, 2)
    figures["parameters"] = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    write_json(done, figures)
    return network, figures


def _load(network: PredictorNetwork, folder: Path) -> None:
    state = SafetensorsCheckpointIO().load_checkpoint(folder / "best.safetensors")["state_dict"]
    network.load_state_dict({name.removeprefix("network."): tensor for name, tensor in state.items()})
    network.eval()
