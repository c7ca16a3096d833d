"""Record, train, calibrate: from prompts to an exported filter."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from learn2pd.config import RunConfig, as_dict
from learn2pd.errors import UserError
from learn2pd.evaluation import report
from learn2pd.policies.export import PolicyContract, TrainedFilter, save_policy
from learn2pd.recording.reading import load_recording
from learn2pd.recording.recorder import manifest, open_recording, record
from learn2pd.stages.output import read_metrics
from learn2pd.stages.parts import check_prompts, model_of, network_of, prompts_of
from learn2pd.training.calibration import calibrate, metrics_at, probabilities
from learn2pd.training.checkpoint_io import SafetensorsCheckpointIO
from learn2pd.training.filter import FilterData, filter_rows, train_filter

log = logging.getLogger(__name__)


def stage_record(config: RunConfig, output: Path) -> dict[str, Any] | None:
    """Reference and oracle trajectory of every train and validation prompt -> output_dir/records."""
    model, decoding = model_of(config), config.decode
    prompts = [prompt for prompt in prompts_of(config) if prompt.split != "test"]
    check_prompts(model, prompts, decoding.gen_length)
    folder = output / "records"
    described = manifest(model, prompts, decoding.gen_length, decoding.block_length, config.record.shard_prompts, config.seed, as_dict(config))
    open_recording(folder, described)
    figures = record(
        model, prompts, folder, gen_length=decoding.gen_length, block_length=decoding.block_length,
        batch_size=decoding.batch_size, shard_prompts=config.record.shard_prompts,
    )  # fmt: skip
    rows, references, _ = load_recording(folder)
    if "record" in read_metrics(output) and not figures["prompts_recorded_now"]:
        return None
    return figures | {
        "prompts": len(references),
        "rows": len(rows),
        "reference_forwards_mean": float(sum(references["forwards"]) / len(references)),
        "oracle_forwards_mean": float(sum(references["oracle_forwards"]) / len(references)),
    }


def stage_train(config: RunConfig, output: Path) -> dict[str, Any] | None:
    """Train the filter on the recording -> output_dir/train."""
    if "train" in read_metrics(output):
        log.info("already trained: %s", output / "train")
        return None
    rows, references, _ = load_recording(output / "records")
    train, validation = filter_rows(rows, references, "train"), filter_rows(rows, references, "validation")
    options, network = config.filter, network_of(config)
    figures = train_filter(
        network, FilterData(train, validation, options.batch_rows, config.seed), output / "train",
        learning_rate=options.learning_rate, weight_decay=options.weight_decay, loss_on=options.loss_on,
        max_epochs=options.max_epochs, patience_epochs=options.patience_epochs,
    )  # fmt: skip
    return figures | {"train_rows": len(train.label), "validation_rows": len(validation.label)}


def stage_calibrate(config: RunConfig, output: Path) -> dict[str, Any]:
    """Choose the threshold and export -> output_dir/policy, plots/reliability.png."""
    checkpoint = output / "train" / "best.safetensors"
    if "train" not in read_metrics(output) or not checkpoint.is_file():
        raise UserError(f"{checkpoint.parent}: no finished training; run the stage 'train' first")
    rows, references, recorded = load_recording(output / "records")
    network = network_of(config)
    state = SafetensorsCheckpointIO().load_checkpoint(checkpoint)["state_dict"]
    network.load_state_dict({name.removeprefix("network."): tensor for name, tensor in state.items()})
    probability, label = probabilities(network, filter_rows(rows, references, "validation"))
    target = config.calibrate.target_agreement
    chosen = calibrate(probability, label, target)
    if not chosen.met:
        log.warning("no threshold reaches calibrate.target_agreement=%g on validation prompts; the strictest reaches %.4f", target, chosen.agreement)
    figures = {
        "target_agreement": target,
        "target_met": chosen.met,
        "threshold": chosen.threshold,
        "agreement": chosen.agreement,
        "accepted": chosen.accepted,
        "masked_positions": len(label),
        **metrics_at(probability, label, chosen.threshold),
    }
    contract = PolicyContract(
        block_length=recorded["block_length"],
        alignment=recorded["alignment"],
        mask_id=recorded["mask_id"],
        vocab_size=recorded["vocab_size"],
        confidence=recorded["confidence"],
        model=recorded["model"],
        model_fingerprint=recorded["model_fingerprint"],
    )
    save_policy(TrainedFilter(network, chosen.threshold, contract, figures), output / "policy")
    bins = report.reliability(probability.numpy(), label.numpy())
    (output / "plots").mkdir(exist_ok=True)
    report.plot_reliability(bins, chosen.threshold, output / "plots" / "reliability.png")
    return figures | {"reliability": bins, "curve": chosen.curve}
