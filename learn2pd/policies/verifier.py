"""The verifier of APD: an autoregressive model that scores the draft of a dLLM. It is one of transformers' own classes.

In the shapes, B is the number of rows of the batch, R of rows that are scored, Q of scored columns, T of kept columns,
V of tokens of the vocabulary.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedTokenizerBase

from learn2pd.arguments import checked
from learn2pd.errors import UserError
from learn2pd.models.causal import load_causal_network, vocabulary_difference
from learn2pd.types import DecodeState, ModelSpec, RowMemory


@dataclass(frozen=True)
class VerifierMemory(RowMemory):
    """The keys and values of the first T columns of the padded batch. Every scored row is committed up to there.

    Attributes:
        keys: [B, layers, heads, T, width].
        values: The same shape.
    """

    keys: Tensor
    values: Tensor

    @classmethod
    def stack(cls, memories: Sequence[VerifierMemory]) -> VerifierMemory:
        """Return a memory of no columns, which the next step computes anew: the columns of several runs differ."""
        return super().stack([cls(memory.keys[:, :, :, :0], memory.values[:, :, :, :0]) for memory in memories])


@dataclass(frozen=True)
class DraftScores:
    """The scores of a draft, which are computed when they are asked for.

    Attributes:
        outputs: [R, Q, D], the hidden states of the columns, or their logits [R, Q, V].
        head: Turns them into logits.
        first: The column that the first of them predicts.
    """

    outputs: Tensor
    head: nn.Module
    first: int

    def __call__(self, number: Tensor, column: Tensor) -> Tensor:
        """Return the logits of some columns.

        Args:
            number: [N] long, the place of the row among the scored rows.
            column: [N] long, the column. Another one than those that were scored has a score without meaning.

        Returns:
            [N, V] float32.
        """
        place = (column - self.first).clamp(0, self.outputs.shape[1] - 1)
        logits: Tensor = self.head(self.outputs[number, place])
        return logits.float()


class Verifier:
    """An autoregressive model that scores drafts.

    Args:
        network: A causal language model of transformers.
        tokenizer: The tokenizer of the network. With None, only the sizes of the two vocabularies can be compared.
        source: The folder or hub name of the model, for messages.
    """

    @checked()
    def __init__(
        self, network: Any, tokenizer: PreTrainedTokenizerBase | None = None, source: str = "the verifier"
    ) -> None:
        self.network = network.eval()
        self.tokenizer = tokenizer
        self.source = source
        self.vocab_size = int(network.config.vocab_size)
        # transformers 5.24 renamed the parameter
        self.cache_name = "cache" if "cache" in inspect.signature(network.forward).parameters else "past_key_values"

    @property
    def fingerprint(self) -> str:
        """16 hex digits that identify the weights."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.network.state_dict().items()):
            digest.update(name.encode() + tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]

    def __repr__(self) -> str:
        return f"Verifier({self.source!r})"

    def check(self, spec: ModelSpec) -> None:
        """Refuse a dLLM with another vocabulary.

        Args:
            spec: The facts about the dLLM.

        Raises:
            UserError: The vocabularies differ; the message names the first difference.
        """
        if self.tokenizer is None or not spec.vocabulary:
            if self.vocab_size > spec.vocab_size:
                raise UserError(
                    f"verifier {self.source} has {self.vocab_size} tokens, {spec.name} has {spec.vocab_size}: "
                    "APD needs one vocabulary"
                )
            return
        theirs = self.tokenizer.get_vocab()
        # a dLLM adds its mask token to the vocabulary from which it was adapted
        difference = vocabulary_difference(spec.vocabulary, theirs, set(spec.special_tokens))
        if difference:
            token, more = difference
            raise UserError(
                f"verifier {self.source} has another vocabulary than {spec.name}: {token!r} is "
                f"{theirs.get(token)} in the one and {spec.vocabulary.get(token)} in the other, "
                f"and {more} more differ; APD needs the same tokenizer"
            )

    def start(self, state: DecodeState) -> VerifierMemory:
        """Make an empty memory.

        Args:
            state: The state before the first step.

        Returns:
            A memory of no columns.

        Raises:
            UserError: The run and the verifier are on different devices.
        """
        if self.network.device != state.tokens.device:
            raise UserError(
                f"verifier {self.source} is on {self.network.device}, the model on {state.tokens.device}: "
                "APD needs both on one device"
            )
        _ = self.plain_head  # it is found out here, so that no step waits for it
        config = self.network.config
        heads = getattr(config, "num_key_value_heads", config.num_attention_heads)
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        shape = (len(state.tokens), config.num_hidden_layers, heads, 0, width)
        empty = torch.zeros(shape, dtype=self.network.dtype, device=state.tokens.device)
        return VerifierMemory(empty, empty)

    @functools.cached_property
    def plain_head(self) -> bool:
        """True where the logits are the output embedding of the last hidden states and nothing else.

        They are then computed where they are needed, since those of a whole draft may not fit into memory. Some
        families scale or bend the logits behind the embedding.
        """
        head = self.network.get_output_embeddings()
        if head is None or self.network.base_model is self.network:
            return False
        # several tokens, since the embedding of the one that pads is zero in some families
        tokens = torch.arange(min(8, self.vocab_size), device=self.network.device)[None]
        with torch.no_grad():
            hidden = self.network.base_model(input_ids=tokens).last_hidden_state
            return bool(head(hidden).equal(self.network(input_ids=tokens).logits))

    def score(
        self, tokens: Tensor, pad: Tensor, rows: Tensor, columns: tuple[int, int], memory: VerifierMemory
    ) -> tuple[DraftScores, VerifierMemory]:
        """Score some columns of some rows. The score of a column depends on the columns before it.

        Rows are committed up to different columns. The memory keeps the columns up to which all scored rows are
        committed.

        Args:
            tokens: [B, L] long, the padded batch with the draft written into it.
            pad: [B] long, the columns of left padding.
            rows: [R] long, the rows that are scored, ascending.
            columns: The first column that is scored, and the one behind the last.
            memory: The memory that `start`, or the last call of this method, returned.

        Returns:
            The scores, and the next memory.
        """
        low, high = (column - 1 for column in columns)  # the output at a column predicts the next column
        start = min(low, memory.keys.shape[3])
        past = DynamicCache()
        if start:
            for layer in range(memory.keys.shape[1]):
                past.update(memory.keys[rows, layer, :, :start], memory.values[rows, layer, :, :start], layer)
        tokens = tokens[rows]
        pad = pad[rows]
        column = torch.arange(start, high, device=tokens.device)
        key = torch.arange(high, device=tokens.device)
        # [R, Q, K] bool; a column of padding sees itself, so that its softmax is defined
        seen = (key <= column[:, None]) & (key >= pad[:, None, None]) | (key == column[:, None])
        blocked = torch.finfo(self.network.dtype).min
        mask = torch.zeros(seen.shape, dtype=self.network.dtype, device=tokens.device)
        mask = mask.masked_fill(~seen, blocked)[:, None]
        network = self.network.base_model if self.plain_head else self.network
        output = network(
            input_ids=tokens[:, start:high],
            attention_mask=mask,
            position_ids=(column - pad[:, None]).clamp_min(0),
            use_cache=True,
            **{self.cache_name: past},
        )
        kept = _kept(memory, past, rows, low)
        if self.plain_head:
            return DraftScores(output.last_hidden_state, self.network.get_output_embeddings(), start + 1), kept
        return DraftScores(output.logits, nn.Identity(), start + 1), kept


def _kept(memory: VerifierMemory, past: DynamicCache, rows: Tensor, columns: int) -> VerifierMemory:
    """Return a memory of the first `columns` columns of `rows`. Rows that are not scored any more hold zeros."""

    def of(name: str) -> Tensor:
        # [R, layers, heads, T, width]
        layers = torch.stack([getattr(layer, name)[:, :, :columns] for layer in past.layers], dim=1)
        if len(rows) == len(memory.keys):
            return layers
        return layers.new_zeros(len(memory.keys), *layers.shape[1:]).index_copy(0, rows, layers)

    return VerifierMemory(of("keys"), of("values"))


@checked(but=("path", "dtype", "device"))
def load_verifier(path: str, dtype: str = "float32", device: str = "auto") -> Verifier:
    """Load an autoregressive model and its tokenizer. No remote code is run.

    Args:
        path: A folder or a hub name.
        dtype: The type of the weights, such as `float32` or `bfloat16`.
        device: `auto`, `cpu`, `cuda` and so on.

    Returns:
        The verifier.

    Raises:
        UserError: The model or its tokenizer cannot be read.
    """
    network, tokenizer = load_causal_network(path, dtype, device, "verifier")
    return Verifier(network, tokenizer, str(path))
