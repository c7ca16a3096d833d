"""A causal language model of transformers, with a cache that takes rows of unequal lengths and takes tokens back.

In the shapes, B is the number of rows of the batch, R of rows of a forward, S of slots, Q of columns of a forward,
V of tokens of the vocabulary.
"""

from __future__ import annotations

import functools
import inspect
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedTokenizerBase

from learn2pd.arguments import checked
from learn2pd.errors import UserError
from learn2pd.models import identity
from learn2pd.models.causal import load_causal_network
from learn2pd.models.files import shown_name
from learn2pd.models.loading import END_OF_TURN_TOKENS
from learn2pd.models.prompts import prompt_ids
from learn2pd.tensors import widened

FULL = "full_attention"  # the type of a layer in which a token sees every token before it


@dataclass(frozen=True, repr=False, eq=False)
class CausalModel:
    """An autoregressive model.

    Attributes:
        network: A causal language model of transformers.
        tokenizer: The tokenizer. None for a network that is given token ids alone, as in tests.
        name: The name of the model in messages.
        eot_ids: The ids that end an answer. The first one fills what is left of the canvas.
        vocab_size: The number of ids that the tokenizer has. A network may have more outputs, which nothing stands for.
        max_length: The most tokens that a prompt and its answer may have together.
    """

    network: Any
    tokenizer: PreTrainedTokenizerBase | None
    name: str
    eot_ids: tuple[int, ...]
    vocab_size: int
    max_length: int

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return torch.device(self.network.device)

    @property
    def parameters(self) -> int:
        """The number of the weights."""
        return sum(parameter.numel() for parameter in self.network.parameters())

    @functools.cached_property
    def fingerprint(self) -> str:
        """16 hex digits that identify the configuration and the weights."""
        return identity.fingerprint(self.network.config, identity.weights_digest(self.network.state_dict()))

    def __repr__(self) -> str:
        return f"CausalModel({self.name!r}, {str(self.network.dtype).removeprefix('torch.')} on {self.device})"

    def encode(self, prompt: object) -> list[int]:
        """Return the token ids of a prompt.

        Args:
            prompt: A text, chat messages or token ids, as for `learn2pd.decode`.

        Raises:
            UserError: The prompt cannot be encoded, it is empty, or an id is outside the vocabulary.
        """
        # a model without a tokenizer takes token ids alone, which need none
        ids = prompt_ids(self.tokenizer, prompt, self.eot_ids)
        wrong = next((token for token in ids if not 0 <= token < self.vocab_size), None)
        if wrong is not None:
            raise UserError(f"token id {wrong}, {self.name} has ids 0 to {self.vocab_size - 1}")
        return ids

    def text(self, ids: list[int]) -> str:
        """Return the text of an answer, empty for a model without a tokenizer."""
        return "" if self.tokenizer is None else str(self.tokenizer.decode(ids, skip_special_tokens=True))


@checked(but=("path", "dtype", "device"))
def load_causal_model(
    path: str, dtype: str | torch.dtype = "float32", device: str | torch.device = "auto", key: str = "target"
) -> CausalModel:
    """Load an autoregressive model and its tokenizer. No remote code is run.

    Args:
        path: A folder or a hub name.
        dtype: The type of the weights, such as `float32` or `bfloat16`.
        device: `auto`, `cpu`, `cuda` and so on.
        key: The word for the model in messages, `target` or `draft`.

    Returns:
        The model.

    Raises:
        UserError: The model cannot be read, or it is of a kind that cannot be run here.
    """
    network, tokenizer = load_causal_network(path, dtype, device, key)
    return causal_model(network, tokenizer, shown_name(path), key)


def causal_model(
    network: Any, tokenizer: PreTrainedTokenizerBase | None, name: str = "the model", key: str = "target"
) -> CausalModel:
    """Make a model of a network that is already in memory.

    Args:
        network: A causal language model of transformers.
        tokenizer: Its tokenizer; None where prompts are token ids alone.
        name: The name of the model in messages.
        key: The word for the model in messages, `target` or `draft`.

    Returns:
        The model.

    Raises:
        UserError: A layer does not see all tokens before its own, the network cannot leave out logits, or nothing names
            the end-of-text.
    """
    config = network.config.get_text_config()
    layers = set(getattr(config, "layer_types", None) or [FULL])
    if layers != {FULL}:
        raise UserError(f"{key} {name} has layers of the types {', '.join(sorted(layers))}: expected {FULL} alone")
    if "logits_to_keep" not in inspect.signature(network.forward).parameters:
        raise UserError(f"{key} {name} is a {type(network).__name__}, which cannot leave out logits (logits_to_keep)")
    ends = network.generation_config.eos_token_id
    ends = config.eos_token_id if ends is None else ends
    ends = [ends] if isinstance(ends, int) else list(ends or [])
    vocabulary = {} if tokenizer is None else tokenizer.get_vocab()
    ends += [vocabulary[token] for token in END_OF_TURN_TOKENS if token in vocabulary]
    if not ends:
        raise UserError(f"{key} {name} has no end-of-text token: config.json names no eos_token_id")
    known = max(vocabulary.values(), default=config.vocab_size - 1) + 1
    return CausalModel(
        network.eval(),
        tokenizer,
        name,
        tuple(dict.fromkeys(ends)),
        min(known, int(config.vocab_size)),
        int(getattr(config, "max_position_embeddings", None) or 10**9),
    )


class SlotCache(DynamicCache):
    """Keys and values in slots: the token at position p of a row has slot p.

    A token that is taken back costs nothing: its slot is written again before anything sees it, since a query sees the
    slots up to its own alone.

    Args:
        rows: B.
        slots: S.
    """

    def __init__(self, rows: int, slots: int) -> None:
        super().__init__()
        self._shape = (rows, slots)
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}
        self._rows = self._slots = torch.zeros(0, dtype=torch.long)
        self._high = 0

    def aim(self, rows: Tensor, slots: Tensor, high: int) -> None:
        """Say where the next forward writes and what it sees.

        Args:
            rows: [R] long, the rows of the forward.
            slots: [R, Q] long, the slots of its tokens.
            high: The slot behind the last one that it sees.
        """
        self._rows, self._slots, self._high = rows, slots, high

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any) -> Any:
        """Write the keys and values of a layer, [R, heads, Q, width] each, and return those that the forward sees."""
        if layer_idx not in self._kept:
            heads = key_states.shape[1]
            self._kept[layer_idx] = (
                key_states.new_zeros(*self._shape, heads, key_states.shape[3]),
                value_states.new_zeros(*self._shape, heads, value_states.shape[3]),
            )
        return tuple(
            self._written(kept, new)
            for kept, new in zip(self._kept[layer_idx], (key_states, value_states), strict=True)
        )

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return 0: positions and masks are given, and nothing is to be derived from the length."""
        return 0

    def _written(self, kept: Tensor, new: Tensor) -> Tensor:
        kept[self._rows[:, None], self._slots] = new.transpose(1, 2)
        seen = kept[:, : self._high] if len(self._rows) == len(kept) else kept[self._rows, : self._high]
        return seen.transpose(1, 2)


class Runner:
    """A model with its cache, in one batch.

    Args:
        model: The model.
        rows: B.
        slots: S.

    Attributes:
        seconds: The time inside the model so far.
    """

    def __init__(self, model: CausalModel, rows: int, slots: int) -> None:
        self.model = model
        self.seconds = 0.0
        self._cache = SlotCache(rows, slots)

    @torch.inference_mode()
    def predict(self, rows: Tensor, tokens: Tensor, first: Tensor, stop: Tensor, keep: int) -> Tensor:
        """Compute the positions first <= position < stop of some rows.

        The columns before `first` must have been computed before. The rows end in the last column; a row with fewer
        positions than another one repeats its first one.

        Args:
            rows: [R] long, the numbers of the rows in the batch, ascending.
            tokens: [R, S] long, the tokens of these rows.
            first: [R] long, the first position to compute.
            stop: [R] long, the position behind the last one, above `first`.
            keep: The number of last columns whose logits are wanted, at most Q.

        Returns:
            [R, keep, V] float32 or wider, on the device of the model. The last column predicts the token at `stop`.
        """
        started = time.perf_counter()
        device = self.model.device
        rows, tokens, first, stop = (values.to(device) for values in (rows, tokens, first, stop))
        width = int((stop - first).max())
        high = int(stop.max())
        column = stop[:, None] - width + torch.arange(width, device=device)
        column = torch.maximum(column, first[:, None])  # [R, Q]
        self._cache.aim(rows, column, high)
        dtype = self.model.network.dtype
        hidden = torch.arange(high, device=device) > column[..., None]  # [R, Q, K]
        mask = torch.zeros(hidden.shape, dtype=dtype, device=device).masked_fill(hidden, torch.finfo(dtype).min)
        output = self.model.network(
            input_ids=tokens.gather(1, column),
            attention_mask=mask[:, None],
            # what a draft writes behind the end of the canvas is thrown away and may have any position
            position_ids=column.clamp_max(self.model.max_length - 1),
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=keep,
        )
        logits = widened(output.logits[:, -keep:, : self.model.vocab_size])
        if device.type == "cuda":
            torch.cuda.current_stream(device).synchronize()
        self.seconds += time.perf_counter() - started
        return logits
