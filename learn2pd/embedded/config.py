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

    tasks: list[str] = option(
        [], "built-in tasks whose problems are learnt, in equal shares; a task named twice has two; [] takes the files"
    )
    path: str | None = option(None, "file of training requests, fields prompt and answer", path=True)
    validation_path: str | None = option(None, "the same for validation", path=True)
    digest: str | None = option(None, "first 16 hex digits of the sha256 of the file at `path`; null takes any file")
    swap_share: float = option(0.5, "probability that training replaces the value of a slot by another request's")
    invent_share: float = option(0.2, "probability that the replacing value is made up of words of several values")

    def __post_init__(self) -> None:
        for name in ("swap_share", "invent_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"examples.{name}={getattr(self, name)}: expected a number from 0 to 1")


@dataclass
class NetworkConfig:
    """Kind and sizes of the network."""

    kind: str = option(
        "llada",
        "llada (masked diffusion), sdar (block diffusion), or llama, the autoregressive model that APD checks drafts "
        "with",
    )
    d_model: int = option(192, "channels of a position")
    n_layers: int = option(5, "blocks of attention and feed-forward network")
    n_heads: int = option(4, "heads of the attention")
    mlp_hidden_size: int = option(512, "hidden channels of the feed-forward network")
    max_sequence_length: int = option(512, "tokens of the longest sequence, prompt and canvas together")
    rope_theta: float = option(ROPE_THETA, "base of the rotary positions of llada and sdar; llama takes no other value")
    block_size: int = option(8, "tokens of a block, counted from the first token of the prompt; only sdar has blocks")

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

    job: str = option("embedded", "kind of the configuration: policy, or embedded (the training of an embedded model)")
    name: str = option("???", "is set from config=NAME")
    output_dir: str = option("outputs/${name}", "folder of the run", path=True)
    export_path: str = option("???", "folder of the finished checkpoint", path=True)
    seed: int = option(0, "seed of everything that is random")
    device: str = option("auto", "auto takes a GPU where there is one; the weights depend on it in their last digits")
    threads: int = option(1, "number of CPU threads; the weights depend on it in their last digits")
    resume: bool = option(
        False, "is refused: a training goes on by itself, and only with the configuration it began with"
    )
    overwrite: bool = option(False, "delete the outputs of an earlier run in output_dir")
    quiet: bool = option(False, "show warnings and errors alone, and no progress bar")
    examples: ExamplesConfig = field(default_factory=ExamplesConfig)
    vocab_size: int = option(1024, "tokens of the tokenizer that is learnt from the training texts")
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
