"""Time and memory of every method, cache and batch size, against decoding as one would write it down.

    python benchmarks/decode.py [model=PATH] [gen_length=64] [prompt_length=64] [batches=1,4,16]
        [threads=0] [dtype=float32] [compile=false]

Without `model` the benchmark takes a random LLaDA with the real vocabulary (126,464) and a small body. Its head is
scaled so that confidences spread over 0 to 1. The obvious implementation, tests/reference, decodes one row at a time.
It takes the logits of every position and a float64 softmax of all of them. The ratio compares tokens per second at one
token a step. Everything printed is measured in this run, on one model.
"""

from __future__ import annotations

import random
import resource
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.arguments import options_of
from learn2pd import (
    AdaBlockScheduler,
    BlocksScheduler,
    DSBCache,
    DSBScheduler,
    DualCache,
    FixedPolicy,
    LocalLeapPolicy,
    NoCache,
    NoStop,
    PrefixCache,
    ThresholdPolicy,
    decode,
    load_model,
)
from learn2pd.models.adapter import ModelAdapter
from learn2pd.models.llada import LLaDAConfig, LLaDAModelLM
from learn2pd.models.loading import Model
from learn2pd.predictors.filter import FilterPolicy
from learn2pd.predictors.networks import MLP, Transformer
from learn2pd.predictors.saving import Contract, Predictor
from learn2pd.types import ModelSpec
from tests.reference.decoding import decode_blocks, even_quota

BLOCK = 32
PAGE_BYTES = resource.getpagesize()


def random_llada(dtype: torch.dtype, device: str, compile: bool = False) -> Model:
    """An untrained LLaDA with the real vocabulary on a body small enough for a CPU.

    Args:
        dtype: The type of the weights.
        device: The device of the weights.
        compile: True lets torch.compile fuse the layers.
    """
    torch.manual_seed(0)
    config = LLaDAConfig(d_model=256, n_layers=4, n_heads=4, mlp_hidden_size=512, max_sequence_length=2048)
    network = LLaDAModelLM(config)
    with torch.no_grad():
        network.model.transformer.ff_out.weight *= 40.0
    spec = ModelSpec(
        "random LLaDA",
        config.mask_token_id,
        (config.eos_token_id,),
        config.eos_token_id,
        config.vocab_size,
        2048,
        False,
        "",
    )
    tokenizer: Any = SimpleNamespace(decode=lambda *_, **__: "")
    return Model(ModelAdapter(network.eval().to(device, dtype), spec, compile), tokenizer)


class PeakMemory:
    """The largest growth of the process, or of the device's allocations, while it is open, in MiB.

    Args:
        device: The device of the model.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.mib = 0.0

    def __enter__(self) -> PeakMemory:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self.base = torch.cuda.memory_allocated(self.device)
            return self
        self.base = self._resident()
        self.open = True
        self.watcher = threading.Thread(target=self._watch, daemon=True)
        self.watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.device.type == "cuda":
            self.mib = (torch.cuda.max_memory_allocated(self.device) - self.base) / 2**20
            return
        self.open = False
        self.watcher.join()

    def _watch(self) -> None:
        while self.open:
            self.mib = max(self.mib, (self._resident() - self.base) / 2**20)
            time.sleep(0.002)

    @staticmethod
    def _resident() -> int:
        return int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]) * PAGE_BYTES


def methods(spec: ModelSpec) -> dict[str, tuple[Any, Any, Any]]:
    """The methods that are measured: policy, scheduler and cache by name.

    Args:
        spec: What the methods must know of the model.
    """
    blocks = BlocksScheduler(BLOCK)
    sure = ThresholdPolicy(0.9)
    delimiters = tuple(range(0, spec.vocab_size, spec.vocab_size // 20))
    mlp = FilterPolicy(Predictor("filter", MLP(BLOCK), 0.9, Contract.of(spec)))
    transformer = FilterPolicy(Predictor("filter", Transformer(), 0.9, Contract.of(spec)))
    return {
        "one token a step": (FixedPolicy(), blocks, NoCache()),
        "one token a step, prefix": (FixedPolicy(), blocks, PrefixCache()),
        "one token a step, dual": (FixedPolicy(), blocks, DualCache()),
        "threshold": (sure, blocks, NoCache()),
        "threshold, dual": (sure, blocks, DualCache()),
        "localleap": (LocalLeapPolicy(), blocks, NoCache()),
        "adablock, dual": (sure, AdaBlockScheduler(delimiters, BLOCK), DualCache()),
        "dsb greedy": (sure, DSBScheduler(BLOCK), NoCache()),
        "dsb greedy, dsb": (sure, DSBScheduler(BLOCK), DSBCache(BLOCK)),
        "filter, mlp": (mlp, blocks, NoCache()),
        "filter, mlp, dual": (mlp, blocks, DualCache()),
        "filter, transformer": (transformer, blocks, NoCache()),
        "filter, transformer, dual": (transformer, blocks, DualCache()),
    }


def main(arguments: list[str]) -> None:
    """Measure all methods and print the table."""
    options = {
        "model": "",
        "gen_length": "64",
        "prompt_length": "64",
        "batches": "1,4,16",
        "threads": "0",
        "dtype": "float32",
        "compile": "false",
    }
    options = options_of(arguments, options)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    compiled = options["compile"] == "true"
    if options["model"]:
        model = load_model(options["model"], options["dtype"], compile=compiled)
    else:
        model = random_llada(getattr(torch, options["dtype"]), device, compiled)
    network: Any = model.adapter.network
    gen_length = int(options["gen_length"])
    batches = [int(size) for size in options["batches"].split(",")]
    rng = random.Random(0)
    prompts = [[rng.randrange(1, 1000) for _ in range(int(options["prompt_length"]))] for _ in range(max(batches))]
    weights_mib = sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values()) / 2**20
    print(
        f"{model.spec.name}, vocabulary {model.spec.vocab_size}, {options['dtype']}, {device}, "
        f"{torch.get_num_threads()} threads, prompt {options['prompt_length']}, canvas {gen_length}, "
        f"weights {weights_mib:.0f} MiB"
    )
    started = time.perf_counter()
    with PeakMemory(model.adapter.device) as memory:
        _, forwards, _ = decode_blocks(network, prompts[0], gen_length, BLOCK, model.spec.mask_id, even_quota(BLOCK))
    obvious = gen_length / (time.perf_counter() - started)
    step_ms = 1000 / obvious * gen_length / forwards
    above = f"{memory.mib:.0f} MiB above the weights"
    print(f"obvious implementation: {step_ms:.1f} ms a step, {obvious:.2f} tokens/s, {above}")
    titles = f"{'method':26} {'batch':>5} {'ms/step':>8} {'forward':>8} {'score':>6} {'policy':>7} {'rest':>6}"
    print(f"{titles} {'forwards':>8} {'tokens/s':>9} {'ratio':>6} {'MiB':>5}")
    for name, (policy, scheduler, cache) in methods(model.spec).items():
        for batch in batches:
            run = {
                "policy": policy,
                "scheduler": scheduler,
                "cache": cache,
                "stop": NoStop(),
                "gen_length": gen_length,
                "batch_size": batch,
            }
            decode(model, prompts[:1], **run)  # warm-up
            with PeakMemory(model.adapter.device) as memory:
                result = decode(model, prompts[:batch], **run)
            share = {part: 100 * seconds / result.wall_s for part, seconds in result.seconds.items()}
            rest = 100 - sum(share.values())
            steps = int(result.forwards.max())
            speed = batch * gen_length / result.wall_s
            print(
                f"{name:26} {batch:5} {1000 * result.wall_s / steps:8.1f} {share['forward']:7.1f}% "
                f"{share['score']:5.1f}% {share['policy']:6.1f}% {rest:5.1f}% {result.forwards.float().mean():8.1f} "
                f"{speed:9.1f} {speed / obvious:5.1f}x {memory.mib:5.0f}"
            )


if __name__ == "__main__":
    main(sys.argv[1:])
