"""The stage `calibrate`: it sets the thresholds and exports the policy.

Outputs: output_dir/policy, output_dir/plots/reliability.png and, for a fine-tuned filter, output_dir/adapter.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from learn2pd.cli.config import CalibrateConfig, RunConfig
from learn2pd.cli.stages.components import model_of, usable_prompts
from learn2pd.cli.stages.recording import labels_folder
from learn2pd.cli.stages.training import check_trained, contract_of, data_of, load_trained
from learn2pd.cli.stages.validation import measure_on
from learn2pd.data.prompts import Prompt
from learn2pd.errors import UserError
from learn2pd.evaluation import plots as report
from learn2pd.predictors.filter import FilterPolicy
from learn2pd.predictors.keep import KeepPolicy
from learn2pd.predictors.loading import load_predictor
from learn2pd.predictors.lora import merged, save_adapter
from learn2pd.predictors.saving import Predictor, save_predictor
from learn2pd.recording.reading import Recording
from learn2pd.training.calibration import (
    CALIBRATIONS,
    NO_CHECKER,
    calibrate_filter,
    calibrate_pair,
    check_enough,
    metrics_at,
    probabilities,
)

log = logging.getLogger(__name__)


def stage_calibrate(config: RunConfig, output: Path) -> dict[str, Any]:
    """Set the thresholds of the trained predictors and export them.

    The thresholds of the filter and of `keep` are set by decoding the validation prompts; those of the other predictors
    are set on their recorded states.

    Args:
        config: the configuration.
        output: the output_dir of the run.

    Returns:
        The figures of every predictor.

    Raises:
        UserError: the training has not finished, or a predictor cannot be calibrated.
    """
    check_trained(output)
    recordings = [Recording.load(output / "records")]
    recordings += [Recording.load(output / "rounds" / str(number + 1)) for number in range(config.train.rounds)]
    rounds = range(1, config.train.rounds + 1) if config.train.rounds else range(1)
    labelled = [Recording.load(labels_folder(config, output, number)) for number in rounds]
    prompts = [prompt for prompt in usable_prompts(config, model_of(config)) if prompt.split == "validation"]
    figures: dict[str, Any] = {"filter": _calibrate_filter(config, output, recordings[0], labelled, prompts)}
    for kind in config.train.predictors:
        if kind == "keep":
            figures[kind] = _calibrate_keep(config, output, recordings[0], prompts)
            continue
        network = load_trained(config, output, kind, recordings[0].description).network
        predictor = Predictor(kind, network, 0.5, contract_of(recordings[0].description, network))
        data = data_of(config, recordings, kind, network)
        predictor, figures[kind] = CALIBRATIONS[kind](
            predictor, data, config.calibrate.false_stops, config.calibrate.confidence
        )
        save_predictor(predictor, output / "policy" / kind)
    return figures


def check_target(config: RunConfig, prompts: Sequence[Prompt]) -> None:
    """Check, before anything is recorded, that there are enough validation prompts to show the target.

    A target of accuracy counts only prompts that a checker judges.

    Args:
        config: the configuration.
        prompts: the prompts of all splits.

    Raises:
        UserError: the validation prompts are too few, or no checker judges them although the target is one of accuracy.
    """
    options = config.calibrate
    for key, listed in (("thresholds", options.thresholds), ("take_back", options.take_back)):
        if not listed:
            raise UserError(f"calibrate.{key} is empty: list at least one threshold, such as 0.9")
    usable = [
        prompt
        for prompt in prompts
        if prompt.split == "validation" and (options.max_accuracy_drop is None or prompt.task)
    ]
    if not usable and options.target_agreement is None:
        raise UserError(NO_CHECKER)
    sequences = len(options.take_back) if "keep" in config.train.predictors else 1
    confidence = 1 - (1 - options.confidence) / sequences
    check_enough(len(usable), options.target_agreement, options.max_accuracy_drop, confidence)


# what the labels of a filter call right, in the words of its card
LABELS = {
    "reference": "it equals the token of the model's answer with one token a step",
    "own_answer": "it equals the token of the filter's own answer, where a checker accepts this answer, and elsewhere "
    "the token of the model's answer with one token a step",
    "continuation": "it equals what one token a step writes from that state",
    "checked": "the answer is right that follows when it is committed alone",
    "checked_together": "the answer is right that follows when it is committed with all that are right",
}


def _trained_on(config: RunConfig) -> dict[str, Any]:
    """Return the facts about the training that the card of a policy tells. A file is named without its folder."""
    data = config.data
    file = data.domain or data.path or ""
    prompts = {"tasks": ", ".join(data.tasks), "hub": file, "humaneval": data.source, "jsonl": Path(file).name}
    return {
        "prompts": prompts[data.source] if data.domain is None else Path(file).name,
        "number of training prompts": data.train_prompts,
        "canvas of the recording in tokens": config.decode.gen_length,
        "rounds in which the filter's own decodes were recorded": config.train.rounds,
        "a proposal is right where": LABELS[config.record.labels],
        "seed": config.seed,
    }


def _calibrate_filter(
    config: RunConfig, output: Path, recording: Recording, labelled: Sequence[Recording], prompts: Sequence[Prompt]
) -> dict[str, Any]:
    """Set the threshold of the filter, and export it with its figures on the states that it was trained on."""
    options = config.calibrate
    trained = load_trained(config, output, "filter", recording.description)
    network = trained.network if trained.adapted is None else merged(trained.adapted)
    predictor = Predictor("filter", network, 0.5, contract_of(recording.description, network))
    measure = measure_on(config, model_of(config), prompts, recording)
    predictor, met = calibrate_filter(
        predictor,
        lambda predictor: measure(FilterPolicy(predictor)),
        options.thresholds,
        target_agreement=options.target_agreement,
        max_accuracy_drop=options.max_accuracy_drop,
        confidence=options.confidence,
    )
    probability, label = probabilities(
        network, data_of(config, labelled, "filter", network).stream("validation", batch_rows=1024)
    )
    calibrated = next(setting for setting in predictor.curve if setting.threshold == predictor.threshold)
    figures = _of_target(options, met, "threshold of calibrate.thresholds", len(prompts)) | {
        "threshold": predictor.threshold,
        "agreement": calibrated.agreement,
        "accuracy_drop": calibrated.accuracy_drop,
        "loss_bound": calibrated.loss_bound,
        "tokens_per_forward": calibrated.tokens_per_forward,
        "states": metrics_at(probability, label, predictor.threshold),
    }
    predictor = replace(predictor, metrics=figures | {"trained_on": _trained_on(config)})
    FilterPolicy(predictor).save_pretrained(output / "policy")
    if trained.base is not None and trained.adapted is not None:
        save_adapter(trained.adapted, trained.base, predictor, output / "adapter")
    (output / "plots").mkdir(exist_ok=True)
    bins = report.reliability(probability.numpy(), label.numpy())
    report.plot_reliability(bins, predictor.threshold, output / "plots" / "reliability.png")
    return figures | {"reliability": bins, "curve": [vars(setting) for setting in predictor.curve]}


def _of_target(options: CalibrateConfig, met: bool, tried: str, prompts: int) -> dict[str, Any]:
    """Return the figures about the target of a calibration, and warn where nothing that was tried keeps to it."""
    if not met:
        log.warning(
            "no %s keeps to the target on %d validation prompts; the strictest threshold is exported", tried, prompts
        )
    return {
        "target_agreement": options.target_agreement,
        "max_accuracy_drop": options.max_accuracy_drop,
        "confidence": options.confidence,
        "target_met": met,
        "prompts": prompts,
    }


def _calibrate_keep(config: RunConfig, output: Path, recording: Recording, prompts: Sequence[Prompt]) -> dict[str, Any]:
    """Set the thresholds of the filter and of the predictor `keep` together, and export the predictor."""
    options = config.calibrate
    network = load_trained(config, output, "keep", recording.description).network
    keeper = Predictor("keep", network, 0.5, contract_of(recording.description, network))
    predictor = load_predictor(output / "policy", "filter")
    measure = measure_on(config, model_of(config), prompts, recording)
    pair = calibrate_pair(
        lambda threshold, take_back: measure(
            KeepPolicy(
                replace(predictor, threshold=threshold),
                replace(keeper, threshold=take_back),
                one_more=options.one_more,
                confidence_threshold=options.confidence_threshold,
            )
        ),
        options.thresholds,
        options.take_back,
        target_agreement=options.target_agreement,
        max_accuracy_drop=options.max_accuracy_drop,
        confidence=options.confidence,
    )
    tried = "pair of calibrate.thresholds and calibrate.take_back"
    figures = _of_target(options, pair.met, tried, len(prompts)) | {
        "threshold": pair.threshold,
        "take_back": pair.take_back,
        "one_more": options.one_more,
        "confidence_threshold": options.confidence_threshold,
    }
    policy = KeepPolicy(
        replace(predictor, threshold=pair.threshold, curve=pair.curve),
        replace(keeper, threshold=pair.take_back, metrics=figures),
        one_more=options.one_more,
        confidence_threshold=options.confidence_threshold,
        alone=predictor,
    )
    policy.save_pretrained(output / "policy")
    curves = {str(take_back): [vars(setting) for setting in curve] for take_back, curve in pair.curves.items()}
    return figures | {"curves": curves}
