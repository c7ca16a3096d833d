"""Learning Unmasking Policies (Apple, arXiv 2512.09106): a small transformer that was trained by reinforcement.

The rule: the network reads, for every position, the model's present confidence c and whether the position is masked,
and for the whole row the time t = steps / canvas. It returns a logit b for every position. The policy commits an
eligible position with the probability

    sigmoid(b / temperature),

drawn for each position on its own, or, with `sample=False`, wherever this probability is above 1/2. Where it commits
none, it commits the eligible position with the largest logit.

The network has an embedding of the confidence, a condition made of mask and time, transformer blocks that the condition
scales and shifts (DiT), and one output. Rotary positions count from the start of what it reads: the canvas with
`full_context`, the window without. The weights are read as the authors' training writes them, `config.json` beside
`model.safetensors`.

Deviations from the authors' code:

- Their mode `bernoulli` may leave masks in the answer. Every step commits here, as in their `bernoulli-argmax`.
- Confidences are float32; theirs have the type of the model.
"""

from __future__ import annotations

import copy
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from learn2pd.arguments import checked
from learn2pd.errors import UserError, first_line
from learn2pd.files import read_json
from learn2pd.loop.crossing import upload
from learn2pd.loop.proposals import row_generators
from learn2pd.roles import Policy
from learn2pd.tensors import canvas_view, most_confident, window_view
from learn2pd.types import Commit, DecodeState, ModelSpec, Prediction, RowMemory

ROTARY_BASE = 10000.0
WRAPPED = "base_policy."  # begins the names of weights that were saved with the wrapper of the authors' trainer
SIZES = ("hidden_dim", "feedforward_dim", "num_heads", "time_embed_dim", "num_blocks")
FIXED = {"policy_type": "dit_confidence", "confidences_top_p": 1}
DRAWS = 1  # the stream of random numbers, apart from that of the tokens


class ModulatedBlock(nn.Module):
    """A transformer block whose norms and outputs are scaled and shifted by a condition.

    Args:
        width: The features.
        heads: The heads of the attention.
        feedforward: The features inside the feed-forward.
    """

    def __init__(self, width: int, heads: int, feedforward: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))
        self.linear1 = nn.Linear(width, feedforward)
        self.linear2 = nn.Linear(feedforward, width)
        self.ada_conditioning = nn.Linear(width, 6 * width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)

    def forward(self, x: Tensor, condition: Tensor, real: Tensor) -> Tensor:
        """Apply the block.

        Args:
            x: [B, W, D] float.
            condition: [B, W, D] float.
            real: [B, W] bool, the positions that are attended to.

        Returns:
            [B, W, D] float.
        """
        scale1, shift1, gate1, scale2, shift2, gate2 = self.ada_conditioning(condition).chunk(6, dim=-1)
        x = x + self.attend(self.norm1(x) * (1 + scale1) + shift1, real) * (1 + gate1)
        hidden = functional.gelu(self.linear1(self.norm2(x) * (1 + scale2) + shift2))
        return x + self.linear2(hidden) * (1 + gate2)

    def attend(self, x: Tensor, real: Tensor) -> Tensor:
        """Attend from every position to every real one."""
        q, k, v = (
            project(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = functional.scaled_dot_product_attention(rotate(q), rotate(k), v, attn_mask=real[:, None, None])
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


def rotate(x: Tensor) -> Tensor:
    """Apply rotary positions to pairs of neighbouring features, and put the first features of all pairs first.

    Args:
        x: [B, heads, W, D] float.

    Returns:
        The same shape.
    """
    inverse = ROTARY_BASE ** -(torch.arange(0, x.shape[-1], 2, device=x.device) / x.shape[-1])
    angles = torch.arange(x.shape[2], device=x.device)[:, None] * inverse
    first, second = x[..., ::2], x[..., 1::2]
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1)


class ConfidenceTransformer(nn.Module):
    """The network.

    Args:
        source: The folder that the weights come from.
        hidden_dim: The features.
        feedforward_dim: The features inside the feed-forward.
        num_heads: The heads of the attention.
        time_embed_dim: The features of the time.
        num_blocks: The transformer blocks.
        time_period: The longest period of the features of the time; with 1, as in all their configurations, all have
            the same period.
    """

    def __init__(
        self,
        source: str,
        hidden_dim: int = 128,
        feedforward_dim: int = 512,
        num_heads: int = 2,
        time_embed_dim: int = 128,
        num_blocks: int = 1,
        time_period: float = 1,
    ) -> None:
        super().__init__()
        self.source = source
        self.time_embed_dim = time_embed_dim
        self.time_period = time_period
        self.time_mlp = nn.Sequential(
            nn.Linear(time_embed_dim, hidden_dim), nn.SiLU(), nn.Linear(hidden_dim, hidden_dim)
        )
        self.confidence_proj = nn.Linear(1, hidden_dim)
        self.mask_embedding = nn.Embedding(2, hidden_dim)
        blocks = [ModulatedBlock(hidden_dim, num_heads, feedforward_dim) for _ in range(num_blocks)]
        self.transformer_blocks = nn.ModuleList(blocks)
        self.final_norm = nn.LayerNorm(hidden_dim)
        self.output_proj = nn.Linear(hidden_dim, 1)

    @property
    def fingerprint(self) -> str:
        """16 hex digits that identify the weights."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def __repr__(self) -> str:
        return f"ConfidenceTransformer({self.source!r})"

    def forward(self, masked: Tensor, confidence: Tensor, time: Tensor, real: Tensor) -> Tensor:
        """Compute the logits.

        Args:
            masked: [B, W] bool.
            confidence: [B, W] float32.
            time: [B] float, 0 to 1.
            real: [B, W] bool, False where a row is shorter than W.

        Returns:
            [B, W] float32.
        """
        half = self.time_embed_dim // 2
        frequency = self.time_period ** -(torch.arange(half, device=time.device) / half)
        angles = time.float()[:, None] * frequency
        features = torch.cat((angles.cos(), angles.sin()), dim=-1).bfloat16().float()  # rounded as in training
        condition = self.mask_embedding(masked.long()) + self.time_mlp(features)[:, None]
        x = self.confidence_proj(confidence[..., None])
        for block in self.transformer_blocks:
            x = block(x, condition, real)
        logits: Tensor = self.output_proj(self.final_norm(x))
        return logits[..., 0]


@dataclass(frozen=True)
class AppleMemory(RowMemory):
    """The memory of a run.

    Attributes:
        network: The network on the device of the run.
    """

    network: ConfidenceTransformer


class ApplePolicy(Policy):
    """Learning Unmasking Policies.

    Args:
        network: The network.
        full_context: True lets the network read the whole canvas, False the window alone.
        temperature: Divides the logits, above 0. A higher one is nearer to a coin toss.
        sample: True draws the positions, False takes those with a probability above 1/2.

    Raises:
        ValueError: The temperature is out of range.
    """

    name = "apple"
    reads_canvas = True
    learned = True
    scores_committed = True
    built_by = "learn2pd.policies.apple:load_apple"

    def __init__(
        self,
        network: ConfidenceTransformer,
        full_context: bool = True,
        temperature: float = 1.0,
        sample: bool = True,
    ) -> None:
        if not 0 < temperature < float("inf"):
            raise ValueError(f"temperature={temperature}: expected above 0, and finite")
        self.network = network
        self.full_context = full_context
        self.temperature = temperature
        self.sample = sample
        self.looks_ahead = full_context

    def describe(self) -> dict[str, Any]:
        options = self.options()
        options["folder"] = options.pop("network").source
        return options

    def start(self, state: DecodeState, spec: ModelSpec) -> AppleMemory:
        device = state.tokens.device
        return AppleMemory(copy.deepcopy(self.network).to(device))

    def select(self, prediction: Prediction, eligible: Tensor, state: DecodeState, memory: AppleMemory) -> Commit:
        logits = self.logits(prediction, state, memory.network) / self.temperature
        probability = logits.sigmoid()
        bar = torch.full_like(probability, 0.5)
        if self.sample:
            draws = [torch.rand(state.gen_length, generator=generator) for generator in row_generators(state, DRAWS)]
            bar = upload(torch.stack(draws), probability.device)
        drawn = eligible & (probability > bar)
        best = most_confident(logits, eligible) & ~drawn.any(1, keepdim=True)
        return Commit(drawn | best, forced=best)

    def logits(self, prediction: Prediction, state: DecodeState, network: ConfidenceTransformer) -> Tensor:
        """Ask the network.

        Args:
            prediction: The proposals of this step. A committed position that was not scored counts as certain.
            state: The state before the commit.
            network: The network, on the device of the run.

        Returns:
            [B, G] float32, without meaning outside the window where the network reads the window alone.
        """
        confidence = torch.where(prediction.valid, prediction.confidence, (~state.masked).float())
        time = state.step / state.gen_length
        if self.full_context:
            return network(state.masked, confidence, time, torch.ones_like(state.masked))
        window = state.window
        width = window.width
        masked, confidence = (window_view(values, window, width) for values in (state.masked, confidence))
        real = torch.arange(width, device=time.device) < (window.stop - window.start)[:, None]
        return canvas_view(network(masked, confidence, time, real), window, state.gen_length)


@checked()
def load_apple(
    folder: str | Path, full_context: bool = True, temperature: float = 1.0, sample: bool = True
) -> ApplePolicy:
    """Build the policy from a folder in the authors' format.

    Args:
        folder: The folder with `config.json` and `model.safetensors`.
        full_context: As for `ApplePolicy`.
        temperature: As for `ApplePolicy`.
        sample: As for `ApplePolicy`.

    Returns:
        The policy.

    Raises:
        UserError: The folder is missing or damaged, or holds another kind of network.
        ValueError: The temperature is out of range.
    """
    config = read_json(Path(folder) / "config.json")
    if config is None:
        raise UserError(
            f"folder={folder}: it has no config.json with a JSON object; expected a folder of Apple's policy"
        )
    for name, value in FIXED.items():
        if config.get(name, value) != value:
            raise UserError(f"{folder}/config.json: {name}={config[name]!r}: expected {value!r}")
    sizes = {name: config[name] for name in SIZES if name in config}
    for name, size in sizes.items():
        if type(size) is not int or size < 1:
            raise UserError(f"{folder}/config.json: {name}={size!r}: expected a whole number above 0")
    network = ConfidenceTransformer(str(folder), **sizes, time_period=config.get("time_period", 1))
    try:
        stored = load_file(Path(folder) / "model.safetensors")
        weights = {name.removeprefix(WRAPPED): tensor.float() for name, tensor in stored.items()}
        network.load_state_dict({name: tensor for name, tensor in weights.items() if not name.endswith(".inv_freq")})
    except (OSError, SafetensorError, RuntimeError) as error:
        raise UserError(f"{folder}/model.safetensors: {first_line(error)}") from error
    return ApplePolicy(network.eval().requires_grad_(False), full_context, temperature, sample)
