"""A transformer computed from its weights, with keys and values as one list of columns per layer.

It knows the names under which LLaDA and Dream keep their weights, and nothing of how the package runs them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.reference.row import Proposals


@dataclass(frozen=True)
class Layer:
    """The weights of one layer, as modules, by what they do."""

    norm_before_attention: nn.Module
    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    attention_out: nn.Linear
    norm_before_mlp: nn.Module
    gate: nn.Linear
    up: nn.Linear
    down: nn.Linear


def layers_of(network: nn.Module) -> list[Layer]:
    """The layers of a LLaDA or of a Dream."""
    if hasattr(network.model, "transformer"):
        return [
            Layer(b.attn_norm, b.q_proj, b.k_proj, b.v_proj, b.attn_out, b.ff_norm, b.ff_proj, b.up_proj, b.ff_out)
            for b in network.model.transformer.blocks
        ]
    return [
        Layer(
            b.input_layernorm,
            b.self_attn.q_proj,
            b.self_attn.k_proj,
            b.self_attn.v_proj,
            b.self_attn.o_proj,
            b.post_attention_layernorm,
            b.mlp.gate_proj,
            b.mlp.up_proj,
            b.mlp.down_proj,
        )
        for b in network.model.layers
    ]


class Columns:
    """The keys and values that one row has kept, and the forwards that replace some of them.

    Args:
        network: A LLaDA or a Dream.
        mask_id: The token that is never proposed.
        shifted: Whether the output of column i is for the token of column i + 1.
    """

    def __init__(self, network: nn.Module, mask_id: int, shifted: bool) -> None:
        self.network = network
        self.mask_id = mask_id
        self.shifted = shifted
        self.layers = layers_of(network)
        llada = hasattr(network.model, "transformer")
        self.embedding = network.model.transformer.wte if llada else network.model.embed_tokens
        self.last_norm = network.model.transformer.ln_f if llada else network.model.norm
        self.head = network.model.transformer.ff_out if llada else network.lm_head
        self.keys: list[dict[int, Tensor]] = [{} for _ in self.layers]  # layer -> column -> [heads, width]
        self.values: list[dict[int, Tensor]] = [{} for _ in self.layers]

    def norm(self, x: Tensor, module: nn.Module) -> Tensor:
        """x / sqrt(mean(x^2) + eps), times the weight."""
        eps = self.network.config.rms_norm_eps
        return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * module.weight

    def rotate(self, x: Tensor, columns: Sequence[int]) -> Tensor:
        """Rotary positions of [columns, heads, width]; a row that is decoded alone has its columns as positions.

        Angles are float32, as in the authors' models.
        """
        width = x.shape[-1]
        inverse = 1.0 / self.network.config.rope_theta ** (torch.arange(0, width, 2, dtype=torch.float32) / width)
        angles = torch.tensor(columns, dtype=torch.float32)[:, None, None] * inverse
        first, second = x[..., : width // 2], x[..., width // 2 :]
        cos, sin = angles.cos(), angles.sin()
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)

    def attention(self, normed: Tensor, number: int, columns: Sequence[int], seen: Iterable[int]) -> Tensor:
        """Keep the new keys and values of `columns`, then let their queries attend to every kept column in `seen`."""
        layer = self.layers[number]
        width = self.network.config.hidden_size // self.network.config.num_attention_heads
        queries = self.rotate(layer.query(normed).view(len(columns), -1, width), columns)
        keys = self.rotate(layer.key(normed).view(len(columns), -1, width), columns)
        values = layer.value(normed).view(len(columns), -1, width)
        for place, column in enumerate(columns):
            self.keys[number][column] = keys[place]
            self.values[number][column] = values[place]
        kept_keys = torch.stack([self.keys[number][column] for column in seen])  # [seen, heads, width]
        kept_values = torch.stack([self.values[number][column] for column in seen])
        shared_by = queries.shape[1] // keys.shape[1]  # query heads that share a key head
        heads = []
        for head in range(queries.shape[1]):
            scores = queries[:, head] @ kept_keys[:, head // shared_by].T / math.sqrt(width)
            heads.append(scores.softmax(-1) @ kept_values[:, head // shared_by])
        return layer.attention_out(torch.cat(heads, dim=-1))

    def recompute(self, ids: Sequence[int], columns: Sequence[int], seen: Sequence[int]) -> Proposals:
        """One forward: the columns are computed anew and attend to the columns `seen`, new or kept.

        Returns:
            The token and its confidence for every column whose output is among those computed.
        """
        with torch.inference_mode():
            x = self.embedding(torch.tensor([ids[column] for column in columns]))
            for number, layer in enumerate(self.layers):
                x = x + self.attention(self.norm(x, layer.norm_before_attention), number, columns, seen)
                normed = self.norm(x, layer.norm_before_mlp)
                x = x + layer.down(functional.silu(layer.gate(normed)) * layer.up(normed))
            logits = self.head(self.norm(x, self.last_norm))
            logits[:, self.mask_id] = -torch.inf
            best = logits.softmax(-1).max(-1)
        confidences = best.values.float().tolist()  # the package states confidences in float32
        tokens = best.indices.tolist()
        shift = int(self.shifted)
        return {column + shift: (tokens[place], confidences[place]) for place, column in enumerate(columns)}


def full_proposals(network: Callable, ids: Sequence[int], mask_id: int) -> list[tuple[int, float]]:
    """Token and its probability for every column, from one call of the network; the mask token is never proposed."""
    with torch.inference_mode():
        logits = network(torch.tensor([ids])).logits[0].double()
        logits[:, mask_id] = -torch.inf
        best = logits.softmax(-1).max(-1)
    return list(zip(best.indices.tolist(), best.values.tolist(), strict=True))


def on_canvas(by_column: Proposals, prompt_length: int) -> Proposals:
    """Proposals by column as proposals by position of the canvas."""
    return {column - prompt_length: proposal for column, proposal in by_column.items() if column >= prompt_length}
