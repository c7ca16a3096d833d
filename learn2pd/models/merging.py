"""A peft adapter is added into the weights of a dLLM, so that a forward with it costs the same as a forward without it.

The classes of this package have the same tensor names as the hub's own classes, so that an adapter that was trained on
the hub's LLaDA or Dream fits without a change.
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
# the fields of adapter_config.json that change no value
PROVENANCE = {"auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision", "task_type"}
MIXTURE = "XLORA"  # this kind loads further adapters of any format, and weighs them anew for every input


def merge_adapter(network: DiffusionNetwork, adapter: str, base: str) -> tuple[DiffusionNetwork, str]:
    """Add a peft adapter into the weights of the dLLM on which it was trained.

    Args:
        network: The dLLM; it is changed.
        adapter: A hub name, or a folder with adapter_config.json and adapter_model.safetensors.
        base: The name of the dLLM, for messages.

    Returns:
        The network with the summed weights in their own type, and a digest (hex) of the adapter's tensors and settings.

    Raises:
        UserError: The adapter is missing, damaged, not in safetensors, of a kind that cannot be merged, or of another
            dLLM.
    """
    check_folder(KEY, adapter, EXPECTED, ADAPTER_CONFIG)
    fields = read_object(KEY, adapter, ADAPTER_CONFIG, "peft's settings", patterns=FILES)
    tensors, digest = _read_weights(adapter)
    _warn_of_another_base(adapter, fields.get("base_model_name_or_path"), base)
    with told_in_one_line(f"{KEY}={adapter!r} could not be merged into {base}", f"expected {EXPECTED}"):
        config = PeftConfig.from_pretrained(str(local_folder(KEY, adapter, patterns=FILES)))
        if config.is_prompt_learning or config.peft_type == MIXTURE:
            raise UserError(
                f"{KEY}={adapter!r}: peft_type {fields['peft_type']} changes no weights and cannot be merged; "
                "expected LORA or its like"
            )
        # peft's classes for tasks look for methods that a dLLM does not have
        wrapped = PeftModel(network, config)
        _check(wrapped, tensors, adapter, base)
        set_peft_model_state_dict(wrapped, tensors)
        merged = cast(DiffusionNetwork, wrapped.merge_and_unload(safe_merge=True))  # refuses a sum that is not finite
    settings = json.dumps({key: value for key, value in sorted(fields.items()) if key not in PROVENANCE})
    return merged.eval(), hashlib.sha256(f"{digest}{settings}".encode()).hexdigest()


def _read_weights(adapter: str) -> tuple[dict[str, Tensor], str]:
    """Return the adapter's tensors on the CPU, and the SHA-256 of their file."""
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
    """Warn where the adapter names another base. This is no error, since one model can have many names."""
    if isinstance(stated, str) and stated and Path(stated).name.lower() != Path(base).name.lower():
        log.warning(
            "%s=%r was trained on %s, and the model is %s: its tensors are added all the same where they fit",
            KEY,
            adapter,
            stated,
            base,
        )


def _check(wrapped: Any, tensors: dict[str, Tensor], adapter: str, base: str) -> None:
    """Refuse an adapter whose tensors do not fit.

    peft would leave out unknown tensors, leave missing ones at their random start, and add a tensor of a tied embedding
    to the head too.
    """
    expected = get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    refuse_tensors(
        f"{KEY}={adapter!r}",
        f"it is not an adapter of {base}",
        missing=expected.keys() - tensors.keys(),
        unknown=tensors.keys() - expected.keys() - wrapped.state_dict().keys(),
        misshapen=[name for name in expected.keys() & tensors.keys() if expected[name].shape != tensors[name].shape],
    )
    network = wrapped.get_base_model()
    embedding = network.get_input_embeddings()
    if isinstance(embedding, BaseTunerLayer) and embedding is network.get_output_embeddings():
        raise UserError(
            f"{KEY}={adapter!r} adapts the embedding of {base}, which is also its head: merged, it would change both"
        )
