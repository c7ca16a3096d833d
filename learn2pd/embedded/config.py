"""Configuration of a training of an embedded model: what `configs/tiny_dllm.yaml` and its neighbours may say."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from learn2pd.embedded.stream import Shape
from learn2pd.embedded.training import Schedule
from learn2pd.kinds import option

ROPE_THETA = 10000.0
SMALLEST_VOCABULARY = 260  # 256 bytes and 4 special tokens


def check_least(name: str, value: float, least: float) -> None:
    """Check that a number of the configuration makes sense.

    Args:
        name: The key of the number.
        value: The number.
        least: The least number that makes sense.

    Raises:
        ValueError: The number is below the least one, or not finite.
    """
    if not least <= value < math.inf:
        raise ValueError(f"{name}={value}: expected a number of at least {least}")


@dataclass
class ExamplesConfig:
    """Where the examples come from: built-in tasks, or a file of requests."""

    # built-in tasks whose problems are learnt, in equal shares; a task that is named twice has two shares, and an empty
    # list stands for requests from files
    tasks: list[str] = field(default_factory=list)
    path: str | None = option(None, "file of training requests, fields prompt and answer", path=True)
    validation_path: str | None = option(None, "the same for validation", path=True)
    digest: str | None = None  # first 16 hex digits of the sha256 of the file at `path`; null: any file
    swap_share: float = 0.5  # probability that training replaces the value of a slot by another request's
    invent_share: float = 0.2  # probability that the replacing value is made up of words of several values

    def __post_init__(self) -> None:
        for name in ("swap_share", "invent_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"examples.{name}={getattr(self, name)}: expected a number from 0 to 1")


@dataclass
class NetworkConfig:
    """Kind and sizes of the network."""

    # llada (masked diffusion), sdar (block diffusion), or llama: the autoregressive model that APD checks drafts with
    kind: str = "llada"
    d_model: int = 192
    n_layers: int = 5
    n_heads: int = 4
    mlp_hidden_size: int = 512
    max_sequence_length: int = 512
    rope_theta: float = ROPE_THETA  # of llada and sdar; llama has this one alone
    block_size: int = 8  # tokens of a block, counted from the first token of the prompt; sdar alone has blocks

    def __post_init__(self) -> None:
        for name in (
            "d_model",
            "n_layers",
            "n_heads",
            "mlp_hidden_size",
            "max_sequence_length",
            "rope_theta",
            "block_size",
        ):
            check_least(f"network.{name}", getattr(self, name), 1)
        if self.d_model % (2 * self.n_heads):
            raise ValueError(
                f"network.d_model={self.d_model}: expected a multiple of twice network.n_heads={self.n_heads}, "
                "since rotary positions turn pairs of channels of every head"
            )


@dataclass
class EmbeddedConfig:
    """The whole configuration of a training of an embedded model."""

    job: str = "embedded"
    name: str = "???"  # set from config=NAME
    output_dir: str = option("outputs/${name}", "folder of the run", path=True)
    export_path: str = option("???", "folder of the finished checkpoint", path=True)
    seed: int = 0
    device: str = "auto"  # auto takes a GPU where there is one; the weights depend on it in their last digits
    threads: int = 1  # CPU threads; the weights depend on it in their last digits
    resume: bool = False  # refused: a training goes on by itself, and only with the configuration it began with
    overwrite: bool = False  # delete what an earlier run left in output_dir
    examples: ExamplesConfig = field(default_factory=ExamplesConfig)
    vocab_size: int = 1024  # of the tokenizer that is learnt from the training texts
    tokenizer_from: str | None = option(None, "folder of the model whose tokenizer is taken instead", path=True)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    shape: Shape = field(default_factory=Shape)
    schedule: Schedule = field(default_factory=Schedule)

    def __post_init__(self) -> None:
        check_least("threads", self.threads, 1)
        check_least("vocab_size", self.vocab_size, SMALLEST_VOCABULARY)
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed={self.seed}: expected a number from 0 to {2**32 - 1}")
        if self.shape.length > self.network.max_sequence_length:
            longest = f"network.max_sequence_length={self.network.max_sequence_length}"
            raise ValueError(f"shape.length={self.shape.length}: expected at most {longest}")
        if self.network.kind == "sdar" and self.shape.length % self.network.block_size:
            raise ValueError(
                f"shape.length={self.shape.length}: expected a multiple of network.block_size={self.network.block_size}"
            )
        if self.network.kind == "llama" and self.network.rope_theta != ROPE_THETA:
            theta = self.network.rope_theta
            raise ValueError(f"network.rope_theta={theta}: expected {ROPE_THETA} with network.kind=llama")
