"""The shape of a step on a GPU: time by part, shares, waits and memory at the sizes of LLaDA-8B and SDAR-8B.

    python benchmarks/gpu.py [shapes=llada,sdar] [batches=1,8,32] [canvases=256,1024] [caches=none,dual,exact]
        [prompt_length=128] [steps=20] [size=full] [dtype=bfloat16] [compile=false] [attention=auto] [threads=0]

The weights are random and made on the device, so that nothing is downloaded or read. `exact` is the cache
`causal_block` and belongs to SDAR; `dual` belongs to LLaDA. A step commits one token in every row. `policy` is the
rule, `score` the proposals without the projection to the vocabulary, which counts to `forward`, and `rest` is what is
left of the time on the clock. With `compile=true` the layers are compiled, with dynamic shapes. `attention=flash`,
`efficient` or `math` allows torch one kernel alone, so that a run says whether it can be used; `auto` lets torch
choose. With a mask, which block-causal models have, flash is not possible. `size=tiny` runs everything on a CPU in
seconds.
"""

from __future__ import annotations

import random
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.arguments import options_of
from learn2pd import BlocksScheduler, CausalBlockCache, DualCache, Method, NoCache, NoStop, ThresholdPolicy
from learn2pd.loop.loop import Loop
from learn2pd.loop.stopwatch import Stopwatch
from learn2pd.models.adapter import ModelAdapter
from learn2pd.models.llada import LLaDAConfig, LLaDAModelLM
from learn2pd.models.network import DiffusionNetwork
from learn2pd.models.sdar import SDARConfig, SDARForCausalLM
from learn2pd.types import DecodeState, ModelSpec

BLOCK = 32
CACHES = {"none": NoCache, "dual": DualCache, "exact": CausalBlockCache}
CACHES_OF = {"llada": ("none", "dual"), "sdar": ("none", "exact")}
KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
TINY_LLADA = {"d_model": 64, "n_layers": 2, "n_heads": 4, "mlp_hidden_size": 64, "vocab_size": 512} | {
    "mask_token_id": 1,
    "eos_token_id": 0,
}
TINY_SDAR = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "mask_token_id": 1,
    "eos_token_id": 0,
    "bos_token_id": None,
    "pad_token_id": 0,
}


def network_of(shape: str, size: str, dtype: torch.dtype, device: torch.device) -> DiffusionNetwork:
    """A network with random weights, made on its device in its type.

    Args:
        shape: `llada` or `sdar`.
        size: `full` takes the sizes of the 8B models, `tiny` those of a test.
        dtype: The type of the weights.
        device: The device.
    """
    torch.manual_seed(0)
    tiny = size == "tiny"
    torch.set_default_dtype(dtype)
    try:
        with device:
            if shape == "llada":
                return LLaDAModelLM(LLaDAConfig(**(TINY_LLADA if tiny else {}))).eval()
            return SDARForCausalLM(SDARConfig(block_size=BLOCK, **(TINY_SDAR if tiny else {}))).eval()
    finally:
        torch.set_default_dtype(torch.float32)


class TimedAdapter(ModelAdapter):
    """An adapter that counts the projection to the vocabulary apart from the proposals.

    Attributes:
        projection: The stopwatch of the projection.
    """

    def __init__(self, network: DiffusionNetwork, spec: ModelSpec, compile: bool) -> None:
        super().__init__(network, spec, compile)
        self.projection = Stopwatch(network.device)

    def score(self, hidden: Tensor) -> Tensor:
        with self.projection("score"):
            return super().score(hidden)


@contextmanager
def counted_waits(device: torch.device) -> Iterator[list[int]]:
    """Count the waits of the host for a CUDA device inside a `with` block, into the list that is returned.

    Args:
        device: The device. On a CPU nothing waits, and the list stays empty.
    """
    waits: list[int] = []
    if device.type != "cuda":
        yield waits
        return
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        yield waits
    names = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
    waits.append(sum(event.count for event in profile.key_averages() if event.key in names))


def allowed_kernel(name: str) -> AbstractContextManager[Any]:
    """Allow torch one attention kernel alone, or all of them.

    Args:
        name: A key of `KERNELS`, or `auto`.
    """
    return nullcontext() if name == "auto" else sdpa_kernel(KERNELS[name])


def measured(
    adapter: TimedAdapter, cache: str, batch: int, canvas: int, options: Mapping[str, str]
) -> dict[str, float]:
    """Take some steps in the middle of an answer, and return the milliseconds of a step by part, waits and memory.

    Args:
        adapter: The model.
        cache: A key of `CACHES`.
        batch: The rows.
        canvas: The tokens of the canvas.
        options: The options of the command line.
    """
    device = adapter.device
    alignment = "prompt" if adapter.spec.causal_block is None else "grid"
    method = Method(ThresholdPolicy(1.0), BlocksScheduler(BLOCK, alignment), CACHES[cache](), NoStop())
    method.check(adapter.spec)
    rng = random.Random(0)
    prompts = [[rng.randrange(2, 500) for _ in range(int(options["prompt_length"]))] for _ in range(batch)]
    steps = int(options["steps"])
    watch = Stopwatch(device)
    loop = Loop(adapter, method, watch=watch)
    run = loop.start(DecodeState.start(prompts, canvas, adapter.spec, device=device))
    for _ in range(3):  # warm-up: the forward that opens the block, and kernels that are loaded
        run = loop.step(run)
    before = dict(watch.seconds), dict(adapter.projection.seconds)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    started = time.perf_counter()
    for _ in range(steps):
        run = loop.step(run)
    wall = time.perf_counter() - started  # a step ends with a read, so the device has finished
    part = {name: seconds - before[0].get(name, 0.0) for name, seconds in watch.seconds.items()}
    projected = adapter.projection.seconds["score"] - before[1].get("score", 0.0)
    ms: dict[str, float] = defaultdict(float)
    ms["forward"] = part["forward"] + projected
    ms["score"] = part["score"] - projected
    ms["policy"] = part["policy"]
    ms["rest"] = wall - sum(ms.values())
    ms = {name: 1000 * seconds / steps for name, seconds in ms.items()} | {"step": 1000 * wall / steps}
    with counted_waits(device) as waits:
        loop.step(run)
    return ms | {
        "waits": waits[0] if waits else float("nan"),
        "mib": torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else float("nan"),
    }


def main(arguments: list[str]) -> None:
    """Measure all shapes and print a line for each."""
    defaults = {
        "shapes": "llada,sdar",
        "batches": "1,8,32",
        "canvases": "256,1024",
        "caches": "none,dual,exact",
        "prompt_length": "128",
        "steps": "20",
        "size": "full",
        "dtype": "bfloat16",
        "compile": "false",
        "attention": "auto",
        "threads": "0",
    }
    options = options_of(arguments, defaults)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    if options["size"] == "full" and device.type == "cpu":
        sys.exit("size=full: 16 GB of weights need a GPU, and torch sees none; size=tiny runs on a CPU")
    if options["attention"] not in ("auto", *KERNELS):
        sys.exit(f"attention={options['attention']}: expected auto, {', '.join(KERNELS)}")
    print(f"{card}, torch {torch.__version__}, " + ", ".join(f"{key} {value}" for key, value in options.items()))
    print(
        f"{'shape':6} {'cache':6} {'batch':>5} {'canvas':>6} {'ms/step':>8} {'forward':>8} {'score':>6} {'policy':>7} "
        f"{'rest':>6} {'waits':>5} {'MiB':>7}"
    )
    dtype = getattr(torch, options["dtype"])
    for shape in options["shapes"].split(","):
        network = network_of(shape, options["size"], dtype, device)
        config = network.config
        spec = ModelSpec(
            f"random {shape}",
            config.mask_token_id,
            (config.eos_token_id,),
            config.pad_token_id,
            config.vocab_size,
            config.max_position_embeddings,
            network.shifted_logits,
            "",
            causal_block=network.causal_block,
        )
        adapter = TimedAdapter(network, spec, options["compile"] == "true")
        for cache in [name for name in options["caches"].split(",") if name in CACHES_OF[shape]]:
            for batch in map(int, options["batches"].split(",")):
                for canvas in map(int, options["canvases"].split(",")):
                    with allowed_kernel(options["attention"]):
                        one = measured(adapter, cache, batch, canvas, options)
                    share = {name: 100 * one[name] / one["step"] for name in ("forward", "score", "policy", "rest")}
                    print(
                        f"{shape:6} {cache:6} {batch:5} {canvas:6} {one['step']:8.2f} {share['forward']:7.1f}% "
                        f"{share['score']:5.1f}% {share['policy']:6.1f}% {share['rest']:5.1f}% {one['waits']:5.0f} "
                        f"{one['mib']:7.0f}",
                        flush=True,
                    )


if __name__ == "__main__":
    main(sys.argv[1:])
