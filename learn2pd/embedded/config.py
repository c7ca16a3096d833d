"""Configuration of a training of an embedded model: what `configs/tiny_dllm.yaml` and its neighbours may say."""

from __future__ import annotations

from dataclasses import dataclass, field

from learn2pd.embedded.stream import Shape
from learn2pd.embedded.training import Schedule

NETWORKS = ("llada", "llama")
OBJECTIVES = ("masked_diffusion", "next_token")


@dataclass
class ExamplesConfig:
    tasks: list[str] = field(default_factory=list)  # built-in tasks whose problems are learnt; empty: requests from files
    path: str | None = None  # JSONL file of training requests, fields prompt and answer
    validation_path: str | None = None  # the same for validation
    digest: str | None = None  # first 16 hex digits of the sha256 of the file at `path`; null: any file
    swap_share: float = 0.5  # probability that training replaces the value of a slot by another request's
    invent_share: float = 0.2  # probability that the replacing value is made up of words of several values


@dataclass
class NetworkConfig:
    kind: str = "llada"  # llada, or llama: the autoregressive model that APD checks drafts with
    d_model: int = 192
    n_layers: int = 5
    n_heads: int = 4
    mlp_hidden_size: int = 512
    max_sequence_length: int = 512
    rope_theta: float = 10000.0


@dataclass
class EmbeddedConfig:
    job: str = "embedded"
    name: str = "???"  # set from config=NAME
    output_dir: str = "outputs/${name}"
    export_path: str = "???"  # folder of the finished checkpoint
    seed: int = 0
    threads: int = 1  # CPU threads; the weights depend on it in their last digits
    resume: bool = False  # refused: a training goes on by itself, and only with the configuration it began with
    overwrite: bool = False  # delete what an earlier run left in output_dir
    examples: ExamplesConfig = field(default_factory=ExamplesConfig)
    vocab_size: int = 1024  # of the tokenizer that is learnt from the training texts
    tokenizer_from: str | None = None  # folder of the model whose tokenizer is taken instead
    network: NetworkConfig = field(default_factory=NetworkConfig)
    objective: str = "masked_diffusion"  # masked_diffusion, next_token
    causal_steps: int = 0  # steps of block diffusion with blocks of one token before the objective
    shape: Shape = field(default_factory=Shape)
    schedule: Schedule = field(default_factory=Schedule)
