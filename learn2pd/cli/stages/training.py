"""The stage `train`: it trains the filter, in rounds, and the other predictors.

Outputs: output_dir/train and output_dir/rounds.
"""

from __future__ import annotations

import copy
import inspect
import logging
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning
from peft import PeftModel

from learn2pd.cli.config import RunConfig
from learn2pd.cli.stages.components import model_of, usable_prompts
from learn2pd.cli.stages.recording import (
    first_policy,
    labels_folder,
    labels_oracle,
    meet,
    placed,
    record_free,
    record_labels,
    record_round,
)
from learn2pd.cli.stages.run_folder import read_metrics
from learn2pd.cli.stages.validation import measure_on
from learn2pd.errors import UserError, check_options, suggest
from learn2pd.files import read_json, write_json
from learn2pd.models.loading import Model
from learn2pd.predictors.apply import check_hidden_states
from learn2pd.predictors.filter import FilterPolicy
from learn2pd.predictors.hidden import hidden_map
from learn2pd.predictors.keep import PART as KEEP_FOLDER
from learn2pd.predictors.keep import KeepPolicy, trained_policy
from learn2pd.predictors.kinds import BESIDE_THE_FILTER, QUESTIONS
from learn2pd.predictors.loading import load_predictor
from learn2pd.predictors.lora import add_adapter
from learn2pd.predictors.networks import LengthFree, PredictorNetwork
from learn2pd.predictors.saving import Contract, Predictor, build_network, network_json
from learn2pd.recording.processes import Processes
from learn2pd.recording.reading import Recording
from learn2pd.registry import build
from learn2pd.schedulers.blocks import alignment_of
from learn2pd.training.calibration import DecodedValidation
from learn2pd.training.fit import PredictorData, Recipe, load_weights, train_predictor
from learn2pd.training.loggers import build_loggers, check_loggers
from learn2pd.types import CONFIDENCE

log = logging.getLogger(__name__)
DONE = "done.json"  # the figures of a finished training, in its folder
TAKE_BACK = 0.3  # below it a committed token is taken back in the decodes that `keep` is trained on


@dataclass(frozen=True)
class Start:
    """The network that a training begins with, and the filter that it comes from if it is fine-tuned."""

    network: PredictorNetwork
    base: Predictor | None = None  # the filter that is fine-tuned
    adapted: PeftModel | None = None  # the peft model around `network`, whose layers carry the adapter


def stage_train(config: RunConfig, output: Path, processes: Processes) -> dict[str, Any] | None:
    """Train the filter, first on the oracle's states and then in rounds, and train the other predictors.

    In a round, the trained filter decodes the recorded prompts, and a new filter is trained on the states that this
    decode visits. From the first round on, the visited states of all rounds replace the oracle's states for the filter.
    The reason is that the oracle commits everything that the model has right, so the positions that stay masked in its
    states are those that the model has wrong. No other policy meets such states. The other predictors are trained on
    the oracle's states together with the visited states.

    A filter that is fine-tuned in rounds starts as its own round 0: it visits its first states without having been
    trained on the recording.

    Args:
        config: the configuration.
        output: the output_dir of the run.
        processes: the processes of the run. With `train.together`, all of them call this function, and they train and
            record the rounds together; else the first one calls it.

    Returns:
        The figures of the rounds and of the other predictors; None where everything is already trained.

    Raises:
        UserError: the recording is not complete, or the filter to fine-tune does not fit it.
    """
    if config.train.together:
        config = placed(config, processes)
        meet(config, output, processes)
    else:
        processes = Processes.alone()
    finished = read_metrics(output).get("train", {})
    enough_rounds = len(finished.get("rounds", [])) == config.train.rounds + 1
    if processes.first_says(enough_rounds and finished.keys() >= set(config.train.predictors)):
        log.info("already trained: %s", output / "train")
        return None
    processes.wait()  # the first process has finished the recording
    oracle = Recording.load(output / "records")
    model = model_of(config)
    validation = [prompt for prompt in usable_prompts(config, model) if prompt.split == "validation"]
    measure = measure_on(config, model, validation, oracle)
    if labels_oracle(config):
        record_labels(config, output, 0, first_policy(config), processes.rank == 0)  # where other labels are wanted now
        processes.wait()
    visited: list[Recording] = []
    labelled: list[Recording] = []
    rounds: list[dict[str, Any]] = []
    for number in range(config.train.rounds + 1):
        base = start_of(config, "filter", oracle.description).base if number == 0 and config.train.rounds else None
        if base:
            network = base.network
            figures: dict[str, Any] = {}
        else:
            states = labelled or [Recording.load(labels_folder(config, output, 0))]
            network, figures = _train_or_load(config, states, output, "filter", f"round-{number}", processes)
        predictor = Predictor(
            "filter", network, config.train.rollout_threshold, contract_of(oracle.description, network)
        )
        rounds.append({"round": number, **figures})
        if processes.rank == 0:
            rounds[-1] |= _alone(measure(rollout_policy(config, predictor)))
        if number < config.train.rounds:
            rounds[-1] |= record_round(config, output, number + 1, rollout_policy(config, predictor), processes)
            visited.append(Recording.load(output / "rounds" / str(number + 1)))
            labelled.append(Recording.load(labels_folder(config, output, number + 1)))
    extra = {
        name: _train_keep(config, output, predictor, processes)
        if name == "keep"
        else _train_or_load(config, [oracle, *visited], output, name, name, processes)[1]
        for name in config.train.predictors
    }
    return {"filter": network_json(network)["name"], "rounds": rounds, **extra}


def _train_keep(config: RunConfig, output: Path, predictor: Predictor, processes: Processes) -> dict[str, Any]:
    """Train the predictor `keep` in rounds.

    In the first round, the filter takes back by the leave-one-out probability; in the next ones, the network of the
    round before takes back. Each network is trained on the states of all rounds so far.

    Args:
        config: the configuration.
        output: the output_dir of the run.
        predictor: the trained filter.
        processes: the processes that train together.

    Returns:
        The figures of the rounds.
    """
    predictor = replace(predictor, threshold=config.train.keep_threshold)
    policy = FilterPolicy(predictor, TAKE_BACK)
    visited: list[Recording] = []
    rounds: list[dict[str, Any]] = []
    for number in range(1, config.train.keep_rounds + 1):
        figures = record_free(config, output, number, policy, processes)
        visited.append(Recording.load(output / "rounds" / f"keep-{number}"))
        network, trained = _train_or_load(config, visited, output, "keep", f"keep-{number}", processes)
        rounds.append({"round": number, **figures, **trained})
        policy = KeepPolicy(
            predictor, Predictor("keep", network, TAKE_BACK, contract_of(visited[0].description, network))
        )
    return {"rounds": rounds}


def rollout_policy(config: RunConfig, predictor: Predictor) -> FilterPolicy:
    """Build the policy that decodes the recorded prompts in a round: the filter with `train.rollout_options`.

    Args:
        config: the configuration.
        predictor: the filter of the round.

    Raises:
        UserError: the filter does not have one of the options, or refuses its value.
    """
    name = f"{FilterPolicy.__module__}:{FilterPolicy.__qualname__}"
    options = config.train.rollout_options
    taken = [option for option in inspect.signature(FilterPolicy).parameters if option != "predictor"]
    check_options("train.rollout_options", options, taken)
    try:
        policy: FilterPolicy = build("policy", name, options, {"predictor": lambda: predictor})
    except UserError as error:
        raise UserError(f"train.rollout_options: {str(error).replace(repr(name), repr('filter'))}") from error
    return policy


def _alone(measured: DecodedValidation) -> dict[str, float | None]:
    """Return the means over the validation prompts, which the filter of the round decodes as in a rollout.

    Nothing corrects the filter in this decode, unlike in the decode that records the states of a round.
    """
    return {
        "agreement": float(measured.agreement.mean()),
        "accuracy_drop": None if measured.drop is None else float(measured.drop.mean()),
        "tokens_per_forward": float(measured.tokens.sum() / measured.forwards.sum()),
    }


def check_training(config: RunConfig) -> None:
    """Check the configuration of the training before anything is recorded.

    Args:
        config: the configuration.

    Raises:
        UserError: a predictor, a logger, an option of the network, or the filter to fine-tune does not exist.
    """
    check_loggers(config.train.loggers)
    if config.filter == "mlp" and config.record.hidden_states:
        raise UserError(
            f"record.hidden_states={config.record.hidden_states}: filter=mlp sees confidences alone; "
            "take filter=conv or transformer"
        )
    if config.filter != "transformer" and config.record.top_tokens:
        raise UserError(
            f"record.top_tokens=true: only the attention of filter=transformer reads them, and filter={config.filter}"
        )
    width = network_of(config, "filter").width
    if width not in (None, config.decode.block_length):
        raise UserError(
            f"filter_options.width={width}: expected decode.block_length={config.decode.block_length}, "
            "since this network looks at one whole block"
        )
    if config.train.start != "scratch":
        base_of(config)
    for name in config.train.predictors:
        if name not in BESIDE_THE_FILTER:
            raise UserError(
                f"train.predictors: unknown predictor {name!r}{suggest(name, BESIDE_THE_FILTER)}; "
                f"expected some of {', '.join(BESIDE_THE_FILTER)}"
            )


def check_filter(config: RunConfig, model: Model) -> None:
    """Check the filter of the rounds, and one to fine-tune, against the model and the blocks before all recording.

    Args:
        config: the configuration.
        model: the model.

    Raises:
        UserError: the rounds have an option that the filter does not take, or the filter to fine-tune was trained for
            something else.
    """
    untrained = Predictor("filter", network_of(config, "filter"), 0.5, Contract.of(model.spec))
    rollout_policy(config, untrained)
    if config.train.start != "scratch":
        spec = model.spec
        facts = {"mask_id": spec.mask_id, "vocab_size": spec.vocab_size, "eot_ids": spec.eot_ids}
        geometry = {
            "block_length": config.decode.block_length,
            "alignment": alignment_of(spec),
            "confidence": CONFIDENCE,
        }
        base = base_of(config)
        check_same(base, facts | geometry)
        check_hidden_states(base, spec)
        if base.network.overlap and not config.record.top_tokens:
            raise UserError("policy reads the most probable tokens: set record.top_tokens=true, or train from scratch")
        if base.network.hidden_states != config.record.hidden_states:
            raise UserError(
                f"policy reads {base.network.hidden_states} numbers of hidden states, and "
                f"record.hidden_states={config.record.hidden_states}: set them equal, or train from scratch"
            )


def network_of(config: RunConfig, kind: str, model_width: int | None = None) -> PredictorNetwork:
    """Build an untrained network for a kind of predictor.

    The filter's network is configured; the other kinds have a network of their own.

    Args:
        config: the configuration.
        kind: kind of the predictor.
        model_width: features of a hidden state of the model; None where the network is not going to be used.

    Raises:
        UserError: the network does not take one of the `filter_options`.
    """
    if kind in BESIDE_THE_FILTER:
        return BESIDE_THE_FILTER[kind]()
    own: dict[str, Any] = {"width": config.decode.block_length} if config.filter == "mlp" else {}
    numbers = config.record.hidden_states
    if numbers:
        own |= {"hidden_states": numbers, "model_width": model_width or numbers}
    if config.record.top_tokens and config.filter == "transformer":
        own |= {"overlap": True}
    network = build_network(config.filter, own | config.filter_options)
    if isinstance(network, LengthFree) and network.hidden_states and model_width:
        network.hidden_map.copy_(hidden_map(model_width, numbers))
    return network


def check_trained(output: Path) -> None:
    """Check that the stage `train` has finished.

    Args:
        output: the output_dir of the run.

    Raises:
        UserError: it has not finished.
    """
    if "train" not in read_metrics(output):
        raise _unfinished(output / "train")


def _unfinished(folder: Path) -> UserError:
    return UserError(f"{folder}: no finished training; run the stage 'train' first")


def start_of(config: RunConfig, kind: str, description: dict[str, Any]) -> Start:
    """Return the network that the training of a predictor begins with.

    Args:
        config: the configuration.
        kind: kind of the predictor.
        description: the description of the recording that it is trained on.

    Raises:
        UserError: `policy` is missing or is not a filter, or it was trained for another geometry or vocabulary than
            that of the recording.
    """
    if kind == "keep" and config.train.start != "scratch" and _has_keep(config.policy):
        keeper = load_predictor(str(config.policy), "keep", KEEP_FOLDER)
        return Start(copy.deepcopy(keeper.network), keeper)
    if kind != "filter" or config.train.start == "scratch":
        return Start(network_of(config, kind, description.get("model_width")))
    base = base_of(config)
    check_same(base, description)
    network = copy.deepcopy(base.network)
    adapted = add_adapter(network, config.train.lora_rank) if config.train.start == "lora" else None
    return Start(network, base, adapted)


def _has_keep(base: str | None) -> bool:
    """Say whether a predictor `keep` lies beside the filter to fine-tune."""
    return base is not None and trained_policy(base) == KeepPolicy.name


def base_of(config: RunConfig) -> Predictor:
    """Return the filter that fine-tuning begins with.

    Args:
        config: the configuration.

    Raises:
        UserError: `policy` is not set, does not exist, or is not a filter.
    """
    if config.policy is None:
        raise UserError(
            f"policy is not set: train.start={config.train.start} begins with a trained filter; give policy=FOLDER"
        )
    return load_predictor(config.policy, "filter")


def check_same(base: Predictor, description: dict[str, Any]) -> None:
    """Check that a filter fits a recording.

    Args:
        base: the filter.
        description: the description of the recording.

    Raises:
        UserError: the filter was trained for other tokens, blocks or confidences than those of the recording.
    """
    for name in ("mask_id", "vocab_size", "eot_ids", "block_length", "alignment", "confidence"):
        trained = getattr(base.contract, name)
        recorded = description[name]
        if isinstance(recorded, list):
            recorded = tuple(recorded)
        if trained is not None and trained != recorded:
            raise UserError(
                f"policy was trained for {name}={trained!r}, this recording has {recorded!r}: "
                "record as it was trained, or train from scratch"
            )


def data_of(config: RunConfig, recordings: Sequence[Recording], kind: str, network: PredictorNetwork) -> PredictorData:
    """Return the data that a predictor is trained and validated on.

    Args:
        config: the configuration.
        recordings: the recordings whose states are used.
        kind: kind of the predictor.
        network: the network of the predictor.
    """
    return PredictorData(
        recordings,
        QUESTIONS[kind].of(recordings[0].description, config.train.loss_on),
        network,
        config.train.batch_rows,
        config.seed,
    )


def contract_of(description: dict[str, Any], network: PredictorNetwork) -> Contract:
    """Return the contract of a network: the conditions under which it was trained and must be used.

    Args:
        description: the description of the recording.
        network: the network that was trained on it.
    """
    fixed = network.width is not None
    return Contract(
        mask_id=description["mask_id"],
        vocab_size=description["vocab_size"],
        eot_ids=tuple(description["eot_ids"]),
        delimiter_ids=tuple(description["delimiter_ids"]),
        block_length=description["block_length"] if fixed else None,
        alignment=description["alignment"] if fixed else None,
        confidence=description["confidence"],
        model=description["model"],
        model_fingerprint=description["model_fingerprint"],
    )


def load_trained(config: RunConfig, output: Path, kind: str, description: dict[str, Any]) -> Start:
    """Load the network that the stage `train` has trained, with the start of its training.

    Args:
        config: the configuration.
        output: the output_dir of the run.
        kind: kind of the predictor.
        description: the description of the recording that it was trained on.

    Raises:
        UserError: the stage has not finished training this predictor.
    """
    last = {"filter": f"round-{config.train.rounds}", "keep": f"keep-{config.train.keep_rounds}"}
    folder = output / "train" / last.get(kind, kind)
    if not (folder / DONE).exists():
        raise _unfinished(folder)
    start = start_of(config, kind, description)
    _figures(folder / DONE, start)
    load_weights(start.network, folder)
    return start


def _train_or_load(
    config: RunConfig, recordings: Sequence[Recording], output: Path, kind: str, name: str, processes: Processes
) -> tuple[PredictorNetwork, dict[str, Any]]:
    """Train a predictor, or load it where an interrupted run has finished training it; return it with its figures."""
    folder = output / "train" / name
    options = config.train
    # A run that was interrupted has drawn otherwise by now, and the network must begin as it would have.
    lightning.seed_everything(zlib.crc32(f"{config.seed} {name}".encode()), verbose=False)
    start = start_of(config, kind, recordings[0].description)
    network = start.network
    done = folder / DONE
    if processes.first_says(done.exists()):
        load_weights(network, folder)
        return network, _figures(done, start)
    data = data_of(config, recordings, kind, network)
    started = time.perf_counter()
    data.prepare(normalise=start.base is None)
    recipe = Recipe(options.learning_rate, options.weight_decay, options.max_epochs, options.patience_epochs)
    loggers = build_loggers(options.loggers, folder, f"{config.name} {name}")
    figures: dict[str, Any] = dict(
        train_predictor(network, data, folder, recipe, loggers, processes if processes.count > 1 else None)
    )
    figures["train_seconds"] = round(time.perf_counter() - started, 2)
    figures["parameters"] = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    if start.base:
        figures["base"] = start.base.weights_fingerprint
    if processes.rank == 0:
        write_json(done, figures)
    return network, figures


def _figures(path: Path, start: Start) -> dict[str, Any]:
    """Return the figures of a finished training, which began with the same filter as this run would."""
    figures = read_json(path)
    if figures is None:
        raise UserError(f"{path} is damaged: delete {path.parent} to train it again")
    base = start.base.weights_fingerprint if start.base else None
    if figures.get("base", base) != base:
        raise UserError(
            f"{path.parent} was trained on the filter {figures['base']}, and policy is now {base}: "
            "delete the folder to train it again, or give the filter of that training"
        )
    return figures
