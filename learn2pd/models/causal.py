"""Loading of causal language models, which APD asks for verdicts and the autoregressive methods decode with."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from learn2pd.errors import UserError, first_line
from learn2pd.models.files import UNREADABLE, check_folder, path_text, refuse_adapter
from learn2pd.models.loading import load_tokenizer, resolve_device, resolve_dtype


def load_causal_network(
    path: str, dtype: str | torch.dtype, device: str | torch.device, key: str
) -> tuple[Any, PreTrainedTokenizerBase]:
    """Load a causal language model of transformers and its tokenizer. No remote code is run.

    Args:
        path: A folder or a hub name.
        dtype: The type of the weights, such as `float32` or `bfloat16`.
        device: `auto`, `cpu`, `cuda` and so on.
        key: The word for the model in messages, such as `verifier` or `draft`.

    Returns:
        The network in evaluation mode, and the tokenizer.

    Raises:
        UserError: The model or its tokenizer cannot be read.
    """
    try:
        values = resolve_dtype(dtype)
    except UserError as error:
        raise UserError(f"{key} {error}") from error
    path = path_text(key, path)
    check_folder(key, path, "config.json, *.safetensors and tokenizer.json of a causal language model")
    refuse_adapter(key, path)
    try:
        # with the default of trust_remote_code, transformers asks on the terminal whether to run a checkpoint's code
        network = AutoModelForCausalLM.from_pretrained(
            path, dtype=values, use_safetensors=True, trust_remote_code=False
        )
    except (ValueError, KeyError, RuntimeError, *UNREADABLE) as error:
        raise UserError(
            f"{key} {path!r} could not be loaded ({first_line(error)}); "
            "expected a causal language model of transformers"
        ) from error
    return network.eval().to(resolve_device(device)), load_tokenizer(path, network.config, key=key)


def vocabulary_difference(
    ours: Mapping[str, int], theirs: Mapping[str, int], own: Collection[str] = ()
) -> tuple[str, int] | None:
    """Compare two vocabularies.

    Args:
        ours: The ids of the first vocabulary by the texts of the tokens.
        theirs: The ids of the second vocabulary.
        own: Tokens that the first vocabulary may have alone.

    Returns:
        The first token that differs and the number of further ones; None where the vocabularies are equal.
    """
    differing = [token for token, number in ours.items() if theirs.get(token) != number and token not in own]
    differing += [token for token in theirs if token not in ours]
    return (differing[0], len(differing) - 1) if differing else None
