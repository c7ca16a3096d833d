"""An autoregressive model that checks what a dLLM proposes (APD's verifier), through transformers' own classes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedTokenizerBase

from learn2pd.errors import UserError, first_line
from learn2pd.models.files import UNREADABLE, check_folder, refuse_adapter
from learn2pd.models.loading import load_tokenizer, resolve_device, resolve_dtype
from learn2pd.types import DecodeState, ModelSpec, RowMemory


@dataclass(frozen=True)
class VerifierMemory(RowMemory):
    """Keys and values of the columns up to which every row is committed. They are those of the padded batch."""

    keys: Tensor  # [B, layers, heads, T, width]
    values: Tensor  # the same shape


class Verifier:
    """An autoregressive model that scores drafts.

    Args:
        network: a causal language model of transformers.
        tokenizer: None where only the sizes of the vocabularies can be compared.
        source: where it was loaded from, for messages.
    """

    def __init__(
        self, network: Any, tokenizer: PreTrainedTokenizerBase | None = None, source: str = "the verifier"
    ) -> None:
        self.network = network.eval()
        self.tokenizer = tokenizer
        self.source = source
        self.vocab_size = int(network.config.vocab_size)

    @property
    def fingerprint(self) -> str:
        """16 hex digits of the weights."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.network.state_dict().items()):
            digest.update(name.encode() + tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]

    def __repr__(self) -> str:
        return f"Verifier({self.source!r})"

    def check(self, spec: ModelSpec) -> None:
        """Refuse a dLLM with another vocabulary.

        Raises:
            UserError: naming what differs.
        """
        if self.tokenizer is None or not spec.vocabulary:
            if self.vocab_size > spec.vocab_size:
                raise UserError(
                    f"verifier {self.source} has {self.vocab_size} tokens, {spec.name} has {spec.vocab_size}: APD needs one vocabulary"
                )
            return
        ours, theirs = spec.vocabulary, self.tokenizer.get_vocab()
        own = set(spec.special_tokens)  # a dLLM adds its mask token to the vocabulary it was adapted from
        differing = [token for token, number in ours.items() if theirs.get(token) != number and token not in own]
        differing += [token for token in theirs if token not in ours]
        if differing:
            raise UserError(
                f"verifier {self.source} has another vocabulary than {spec.name}: {differing[0]!r} is {theirs.get(differing[0])} in the one and "
                f"{ours.get(differing[0])} in the other, and {len(differing) - 1} more differ; APD needs the same tokenizer"
            )

    def start(self, state: DecodeState) -> VerifierMemory:
        """An empty memory.

        Raises:
            UserError: the run is on another device than the verifier.
        """
        if self.network.device != state.tokens.device:
            raise UserError(
                f"verifier {self.source} is on {self.network.device}, the model on {state.tokens.device}: APD needs both on one device"
            )
        config = self.network.config
        heads = getattr(config, "num_key_value_heads", config.num_attention_heads)
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        shape = (len(state.tokens), config.num_hidden_layers, heads, 0, width)
        empty = torch.zeros(shape, dtype=self.network.dtype, device=state.tokens.device)
        return VerifierMemory(empty, empty)

    def score(
        self, tokens: Tensor, pad: Tensor, rows: Tensor, first: Tensor, stop: Tensor, memory: VerifierMemory
    ) -> tuple[Tensor, int, VerifierMemory]:
        """Logits of every row's columns first..stop-1, each given the tokens before it.

        Columns are those of the padded batch. Rows are at different places, so what is kept reaches to the one least far.

        Args:
            tokens: [B, L] long, with the draft written in.
            pad: [B] long, columns of left padding.
            rows: [R] long, the rows that are scored, ascending.
            first, stop: [R] long, columns.

        Returns:
            Logits [R, Q, V], the column that the first of them predicts, and the next memory.
        """
        low = int(first.min()) - 1  # the output at a column predicts the next one
        high = int(stop.max()) - 1
        start = min(low, memory.keys.shape[3])
        past = DynamicCache()
        if start:
            for layer in range(memory.keys.shape[1]):
                past.update(memory.keys[rows, layer, :, :start], memory.values[rows, layer, :, :start], layer)
        tokens, pad = tokens[rows], pad[rows]
        column = torch.arange(start, high, device=tokens.device)
        key = torch.arange(high, device=tokens.device)
        seen = (key <= column[:, None]) & (key >= pad[:, None, None]) | (
            key == column[:, None]
        )  # [R, Q, K]; padding sees itself
        blocked = torch.finfo(self.network.dtype).min
        mask = torch.zeros(seen.shape, dtype=self.network.dtype, device=tokens.device).masked_fill(~seen, blocked)[
            :, None
        ]
        output = self.network(
            input_ids=tokens[:, start:high],
            attention_mask=mask,
            position_ids=(column - pad[:, None]).clamp_min(0),
            past_key_values=past,
            use_cache=True,
        )
        return output.logits.float(), start + 1, _kept(memory, past, rows, low)


def _kept(memory: VerifierMemory, past: DynamicCache, rows: Tensor, columns: int) -> VerifierMemory:
    """The memory with the first `columns` columns of `rows`; rows that are not scored any more hold zeros."""

    def of(name: str) -> Tensor:
        layers = torch.stack(
            [getattr(layer, name)[:, :, :columns] for layer in past.layers], dim=1
        )  # [R, layers, heads, T, width]
        if len(rows) == len(memory.keys):
            return layers
        return layers.new_zeros(len(memory.keys), *layers.shape[1:]).index_copy(0, rows, layers)

    return VerifierMemory(of("keys"), of("values"))


def load_verifier(path: str, dtype: str = "float32", device: str = "auto") -> Verifier:
    """Load an autoregressive model and its tokenizer from a hub name or a folder. No remote code is run.

    Raises:
        UserError: it cannot be read.
    """
    try:
        values = resolve_dtype(dtype)
    except UserError as error:
        raise UserError(f"verifier {error}") from error
    check_folder("verifier", path, "config.json, *.safetensors and tokenizer.json of a causal language model")
    refuse_adapter("verifier", path)
    try:
        # False and not the default: the default asks on the terminal whether to run a checkpoint's own code
        network = AutoModelForCausalLM.from_pretrained(
            path, dtype=values, use_safetensors=True, trust_remote_code=False
        )
    except (SafetensorError, ValueError, KeyError, RuntimeError, *UNREADABLE) as error:
        raise UserError(
            f"verifier {path!r} could not be loaded ({first_line(error)}); expected a causal language model of transformers"
        ) from error
    return Verifier(network.to(resolve_device(device)), load_tokenizer(path, network.config, key="verifier"), str(path))
