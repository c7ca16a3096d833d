"""LoRA adapters for a trained filter: a few kilobytes that adapt the filter to a domain.

An adapter is saved apart from its base and merged into it when it is loaded. It is a folder with
`adapter_config.json` and `adapter_model.safetensors`, as peft writes them, and `adapter.json`, which names the base by
its fingerprint and holds the threshold and the curve that were calibrated on the domain.
"""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from learn2pd.errors import UserError
from learn2pd.files import write_json
from learn2pd.kinds import check_kind
from learn2pd.models.files import path_text
from learn2pd.models.neighbours import told_in_one_line
from learn2pd.predictors.networks import PredictorNetwork
from learn2pd.predictors.saving import Predictor, read_curve, read_threshold

DESCRIPTION = "adapter.json"
WEIGHTS = "adapter_model.safetensors"


def add_adapter(network: PredictorNetwork, rank: int) -> PeftModel:
    """Put LoRA on every linear layer and convolution of a network, in place. Only LoRA's parameters are trainable then.

    Args:
        network: The network; it is changed.
        rank: The rank of LoRA.

    Returns:
        The network as peft wraps it.
    """
    layers = [name for name, layer in network.named_modules() if isinstance(layer, nn.Linear | nn.Conv1d)]
    return get_peft_model(network, LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules=layers))


def merged(adapted: PeftModel) -> PredictorNetwork:
    """Return a copy of the base network with the adapter's change added to its weights.

    Args:
        adapted: The network that `add_adapter` returned; it is not changed.

    Returns:
        A network of the base's class, with all parameters trainable.
    """
    network: PredictorNetwork = copy.deepcopy(adapted).merge_and_unload()
    for parameter in network.parameters():
        parameter.requires_grad_(True)
    return network


def save_adapter(adapted: PeftModel, base: Predictor, tuned: Predictor, folder: Path) -> Path:
    """Save an adapter without its base.

    Args:
        adapted: The network that `add_adapter` returned, after training.
        base: The predictor on which the adapter was trained.
        tuned: The merged predictor, with its threshold and curve on the domain.
        folder: The folder to write into.

    Returns:
        The folder.
    """
    adapted.save_pretrained(str(folder), safe_serialization=True)
    shutil.copymode(folder / "adapter_config.json", folder / "adapter_model.safetensors")  # else its owner's alone
    (folder / "README.md").unlink(missing_ok=True)  # peft's empty model card
    described = {
        "base": base.weights_fingerprint,
        "threshold": tuned.threshold,
        "curve": [asdict(setting) for setting in tuned.curve],
        "metrics": tuned.metrics,
    }
    write_json(folder / DESCRIPTION, described)
    return folder


def with_adapter(base: Predictor, folder: str | Path) -> Predictor:
    """Merge an adapter into its base.

    Args:
        base: The predictor on which the adapter was trained; it is not changed.
        folder: The folder of the adapter.

    Returns:
        A predictor with the merged network, and with the adapter's threshold and curve.

    Raises:
        UserError: The folder holds no adapter, a damaged one, or one of another base.
    """
    folder = Path(path_text("adapter", folder))
    for name in (DESCRIPTION, "adapter_config.json", WEIGHTS):
        if not (folder / name).is_file():
            raise UserError(
                f"adapter {str(folder)!r}: no {name} there; expected adapter_config.json, {WEIGHTS} and {DESCRIPTION}"
            )
    with told_in_one_line(f"adapter {str(folder)!r} is damaged", "train it again"):
        described = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        check_kind("the file", described, dict)
        if described["base"] != base.weights_fingerprint:
            raise UserError(
                f"adapter {str(folder)!r} was trained on the policy {described['base']}, "
                f"this one is {base.weights_fingerprint}: give the base it belongs to"
            )
        adapted = PeftModel.from_pretrained(copy.deepcopy(base.network), str(folder))
        network: PredictorNetwork = adapted.merge_and_unload()
        return replace(
            base,
            network=network.eval(),
            threshold=read_threshold(described["threshold"]),
            curve=read_curve(described["curve"]),
            metrics=check_kind("metrics", described["metrics"], dict),
        )
