"""An autoregressive model that checks what a dLLM proposes (APD's verifier), through transformers' own classes."""

from __future__ import annotations

from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedTokenizerBase

from learn2pd.errors import UserError, first_line
from learn2pd.models.files import UNREADABLE, check_folder, refuse_adapter
from learn2pd.models.loading import DTYPES, Model, load_tokenizer, resolve_device


class VerifierCache:
    """Keys and values of one run: of the columns up to which every row is committed."""

    def __init__(self) -> None:
        self.kept = DynamicCache()
        self.rows: Tensor | None = None  # [R] long, the rows it holds


class Verifier:
    """Args: network, a causal language model of transformers; tokenizer, None where only vocabulary sizes can be compared."""

    def __init__(self, network: Any, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
        self.network, self.tokenizer = network.eval(), tokenizer
        self.vocab_size = int(network.config.vocab_size)

    def check_model(self, model: Model) -> None:
        """Refuse a dLLM with another vocabulary, or on another device.

        Raises:
            UserError: naming what differs.
        """
        name, spec = getattr(self.network, "name_or_path", "") or "the verifier", model.spec
        if self.network.device != model.adapter.device:
            raise UserError(f"verifier {name} is on {self.network.device}, {spec.name} on {model.adapter.device}: APD needs both on one device")
        if self.tokenizer is None:
            if self.vocab_size > spec.vocab_size:
                raise UserError(f"verifier {name} has {self.vocab_size} tokens, {spec.name} has {spec.vocab_size}: APD needs one vocabulary")
            return
        ours, theirs = model.tokenizer.get_vocab(), self.tokenizer.get_vocab()
        own = set(model.tokenizer.all_special_tokens)  # a dLLM adds its mask token to the vocabulary it was adapted from
        wrong = [token for token, number in ours.items() if theirs.get(token) != number and token not in own]
        wrong += [token for token in theirs if token not in ours]
        if wrong:
            raise UserError(
                f"verifier {name} has another vocabulary than {spec.name}: {wrong[0]!r} is {theirs.get(wrong[0])} there and "
                f"{ours.get(wrong[0])} here, and {len(wrong) - 1} more differ; APD needs the same tokenizer"
            )

    @torch.inference_mode()
    def score(self, tokens: Tensor, pad: Tensor, rows: Tensor, first: Tensor, stop: Tensor, memory: VerifierCache) -> tuple[Tensor, int]:
        """Logits of every row's columns first..stop-1, each given the tokens before it.

        Columns are those of the padded batch. Rows are at different places, so what is kept reaches to the one least far.

        Args:
            tokens: [R, L] long, with the draft written in.
            pad, first, stop: [R] long, columns; rows: [R] long, which rows of the run these are, ascending.

        Returns:
            logits [R, Q, V] and the column that the first of them predicts.
        """
        low = int(first.min()) - 1  # the output at a column predicts the next one
        high = int(stop.max()) - 1
        self._keep(memory, rows, low)
        start = memory.kept.get_seq_length()
        column = torch.arange(start, high, device=tokens.device)
        key = torch.arange(high, device=tokens.device)
        seen = (key <= column[:, None]) & (key >= pad[:, None, None]) | (key == column[:, None])  # [R, Q, K]; padding sees itself
        blocked = torch.finfo(self.network.dtype).min
        mask = torch.zeros(seen.shape, dtype=self.network.dtype, device=tokens.device).masked_fill(~seen, blocked)[:, None]
        logits = self.network(
            input_ids=tokens[:, start:high],
            attention_mask=mask,
            position_ids=(column - pad[:, None]).clamp_min(0),
            past_key_values=memory.kept,
            use_cache=True,
        ).logits
        return logits.float(), start + 1

    def _keep(self, memory: VerifierCache, rows: Tensor, columns: int) -> None:
        """Drop rows that have left and columns that are not final in every row."""
        if memory.rows is not None and len(memory.rows) != len(rows):
            memory.kept.batch_select_indices(torch.isin(memory.rows, rows).nonzero()[:, 0])
        memory.rows = rows
        surplus = memory.kept.get_seq_length() - columns
        if surplus > 0:
            memory.kept.crop(-surplus)


def load_verifier(path: str, dtype: str = "float32", device: str = "auto") -> Verifier:
    """Load an autoregressive model and its tokenizer from a hub name or a folder. No remote code is run.

    Raises:
        UserError: it cannot be read.
    """
    if dtype not in DTYPES:
        raise UserError(f"verifier dtype={dtype!r}: expected one of {', '.join(DTYPES)}")
    check_folder("verifier", path, "config.json, *.safetensors and tokenizer.json of a causal language model")
    refuse_adapter("verifier", path)
    try:
        # False and not the default: the default asks on the terminal whether to run a checkpoint's own code
        network = AutoModelForCausalLM.from_pretrained(path, dtype=DTYPES[dtype], use_safetensors=True, trust_remote_code=False)
    except (SafetensorError, ValueError, KeyError, RuntimeError, *UNREADABLE) as error:
        raise UserError(f"verifier {path!r} could not be loaded ({first_line(error)}); expected a causal language model of transformers") from error
    return Verifier(network.to(resolve_device(device)), load_tokenizer(path, network.config))
