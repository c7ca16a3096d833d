"""A dLLM that carries a peft adapter: the adapter is added into the weights, so that a forward costs what it costs without one.

Names are those of the hub's own classes, which the classes here share: an adapter trained on the hub's LLaDA or Dream fits as it is.
"""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any, cast

from peft import PeftConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file
from torch import Tensor

from learn2pd.errors import UserError
from learn2pd.models.files import ADAPTER_CONFIG, check_file, check_folder, local_folder, read_object, refuse_tensors
from learn2pd.models.neighbours import told_in_one_line
from learn2pd.models.network import DiffusionNetwork

log = logging.getLogger(__name__)

KEY = "adapter"
WEIGHTS = "adapter_model.safetensors"
FILES = (ADAPTER_CONFIG, WEIGHTS)
EXPECTED = f"{ADAPTER_CONFIG} and {WEIGHTS}, as peft saves them"
PROVENANCE = {
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "peft_version",
    "revision",
    "task_type",
}  # change no value
MIXTURE = "XLORA"  # loads further adapters, of any format, and weighs them anew for every input


def merge_adapter(network: DiffusionNetwork, adapter: str, base: str) -> tuple[DiffusionNetwork, str]:
    """Add an adapter of peft's into the weights of the dLLM it was trained on.

    Args:
        network: the dLLM; it is changed.
        adapter: a hub name or a folder with adapter_config.json and adapter_model.safetensors.
        base: name of the dLLM, for messages.

    Returns:
        The network with the weights summed, in its own dtype, and a digest (hex) of the adapter's tensors and of its settings.

    Raises:
        UserError: the adapter is missing, damaged, not safetensors, of a kind that cannot be merged, or of another dLLM.
    """
    check_folder(KEY, adapter, EXPECTED, ADAPTER_CONFIG)
    fields = read_object(KEY, adapter, ADAPTER_CONFIG, "peft's settings", patterns=FILES)
    tensors, digest = _read_weights(adapter)
    _warn_of_another_base(adapter, fields.get("base_model_name_or_path"), base)
    with told_in_one_line(f"{KEY}={adapter!r} could not be merged into {base}", f"expected {EXPECTED}"):
        config = PeftConfig.from_pretrained(str(local_folder(KEY, adapter, patterns=FILES)))
        if config.is_prompt_learning or config.peft_type == MIXTURE:
            raise UserError(
                f"{KEY}={adapter!r}: peft_type {fields['peft_type']} changes no weights and cannot be merged; expected LORA or its like"
            )
        wrapped = PeftModel(
            network, config
        )  # not peft's class for the task, which looks for methods that a dLLM does not have
        _check(wrapped, tensors, adapter, base)
        set_peft_model_state_dict(wrapped, tensors)
        merged = cast(DiffusionNetwork, wrapped.merge_and_unload(safe_merge=True))  # refuses a sum that is not finite
    settings = json.dumps({key: value for key, value in sorted(fields.items()) if key not in PROVENANCE})
    return merged.eval(), hashlib.sha256(f"{digest}{settings}".encode()).hexdigest()


def _read_weights(adapter: str) -> tuple[dict[str, Tensor], str]:
    """The tensors on the CPU, and the SHA-256 of their file."""
    path = local_folder(KEY, adapter, patterns=FILES) / WEIGHTS
    subject = f"{KEY}={adapter!r}"
    pickled = "expected a whole file (adapter_model.bin is pickle, never loaded)"
    if path.is_file():
        check_file(subject, path)
    with told_in_one_line(f"{subject}: {WEIGHTS} could not be read", pickled):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return load_file(path), digest


def _warn_of_another_base(adapter: str, stated: Any, base: str) -> None:
    """Only a warning: the same model goes by many names."""
    if isinstance(stated, str) and stated and Path(stated).name.lower() != Path(base).name.lower():
        log.warning(
            "%s=%r was trained on %s, and the model is %s: its tensors are added all the same where they fit",
            KEY,
            adapter,
            stated,
            base,
        )


def _check(wrapped: Any, tensors: dict[str, Tensor], adapter: str, base: str) -> None:
    """Refuse tensors that peft would leave out, leave as they were drawn, or add where they mean something else."""
    expected = get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    refuse_tensors(
        f"{KEY}={adapter!r}", f"it is not an adapter of {base}",
        missing=expected.keys() - tensors.keys(), unknown=tensors.keys() - expected.keys() - wrapped.state_dict().keys(),
        misshapen=[name for name in expected.keys() & tensors.keys() if expected[name].shape != tensors[name].shape],
    )  # fmt: skip
    network = wrapped.get_base_model()
    embedding = network.get_input_embeddings()
    if isinstance(embedding, BaseTunerLayer) and embedding is network.get_output_embeddings():
        raise UserError(
            f"{KEY}={adapter!r} adapts the embedding of {base}, which is also its head: merged, it would change both"
        )
