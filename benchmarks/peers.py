"""A peer's own code beside this toolkit: the same weights, prompts and settings, in turn, at equal tokens.

    python benchmarks/peers.py peer=PATH [model=PATH] [prompts=5] [prompt_length=64] [gen_length=64] [threads=1]
        [settings=none,dual] [block=4] [batch=1]

`peer` is a checkout of Fast-dLLM, Learn2PD (Learning-to-Parallel-Decoding), DSB, dInfer or SDAR; which one it is is
seen from its files. Nothing in it is changed, and its code is imported from there and run, so read it first. Without
`model` both sides run a random LLaDA with the real vocabulary (126,464) and a small body, as benchmarks/decode.py does;
beside SDAR they run a random SDAR with blocks of `block` tokens, as benchmarks/exact_cache.py does.

Fast-dLLM, DSB and Learn2PD bring a network of their own, which gets the very tensors of ours. dInfer's network needs
vLLM and SDAR's needs flash-attn, so that their loops run over our network here. SDAR's sampler draws at random; the
most probable token of the same softmax takes its place. Its forwards that only store keys and values get no logits,
which its own network would compute.

A prompt is decoded with the peer and with this toolkit, one directly after the other, and the order changes from prompt
to prompt. With `batch`, this toolkit decodes so many prompts together, and the peer one after the other, as its own
scripts do where prompts differ in length. The answers must be equal, token for token; where they are not, the process
says so and ends with exit code 1. What is compared is the processor time of this process on a CPU, and the time on the
clock on a GPU. The ratio is the peer's time by ours: above 1 we are faster. The columns `MiB` are the most
that the tensors of a decode take beside the weights, counted tensor by tensor in a decode that is not timed: one prompt
of theirs, and a batch of ours.
"""

from __future__ import annotations

import functools
import importlib
import logging
import os
import random
import statistics
import sys
import time
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.arguments import options_of
from benchmarks.decode import BLOCK, random_llada
from benchmarks.exact_cache import random_sdar
from learn2pd import (
    BlocksScheduler,
    CausalBlockCache,
    DSBCache,
    DSBScheduler,
    DualCache,
    FilterPolicy,
    FixedPolicy,
    LowConfidencePolicy,
    NoCache,
    NoStop,
    PrefixCache,
    ThresholdPolicy,
    UserError,
    decode,
    load_model,
)
from learn2pd.models.loading import Model
from learn2pd.models.sizes import LiveBytes
from learn2pd.predictors.networks import MLP
from learn2pd.predictors.saving import Contract, Predictor
from learn2pd.types import ForwardPlan

THRESHOLD = 0.9
FILTER_THRESHOLD = 0.5  # of the random filter that Learn2PD and we share
Answer = Callable[[Tensor], Tensor]  # prompt [1, P] long -> tokens [1, P + G] long


class Unequal(Exception):
    """The two sides answer differently."""


@dataclass(frozen=True)
class Setting:
    """One way to decode, on both sides.

    Attributes:
        ours: Policy, scheduler and cache of ours.
        theirs: Decodes a prompt with the peer's code.
    """

    ours: dict[str, Any]
    theirs: Answer


@dataclass(frozen=True)
class Peer:
    """A kind of checkout.

    Attributes:
        name: The name of the project.
        file: The file by which the checkout is known, relative to it.
        mark: A text in that file which no other peer has.
        settings: Makes the settings, from the checkout, the model and the length of the canvas.
        block_causal: True for a peer that decodes block-causal models.
    """

    name: str
    file: str
    mark: str
    settings: Callable[[Path, Model, int], dict[str, Setting]]
    block_causal: bool = False


def their_module(folder: Path, name: str) -> Any:
    """Import a module of a checkout by the name that its own files use."""
    sys.path.insert(0, str(folder))
    return importlib.import_module(name)


def their_network(folder: Path, model: Model) -> Any:
    """Build the peer's LLaDA on our tensors.

    Two fields of its configuration are set that its code reads and some releases of transformers do not set.
    """
    modelling = their_module(folder, "model.modeling_llada")
    described = their_module(folder, "model.configuration_llada").LLaDAConfig
    known = {key: value for key, value in model.adapter.network.config.to_dict().items() if key != "architectures"}
    config = described(**known)
    config.use_cache = False
    with torch.device("meta"):
        network = modelling.LLaDAModelLM(config, init_params=False)
    if not hasattr(network.config, "use_return_dict"):
        network.config.use_return_dict = True
    network.load_state_dict(model.adapter.network.state_dict(), assign=True)
    return network.eval()


def shared_options(model: Model, gen_length: int) -> dict[str, Any]:
    """Return the arguments that all functions of Fast-dLLM's family take."""
    return {
        "steps": gen_length,
        "gen_length": gen_length,
        "block_length": min(BLOCK, gen_length),
        "temperature": 0.0,
        "mask_id": model.spec.mask_id,
    }


def fast_dllm(checkout: Path, model: Model, gen_length: int) -> dict[str, Setting]:
    """Fast-dLLM: one token a step and the threshold, without a cache, with the prefix cache and with the dual cache."""
    folder = checkout / "llada"
    network = their_network(folder, model)
    theirs = their_module(folder, "generate")
    shared = shared_options(model, gen_length)
    blocks = BlocksScheduler(BLOCK)
    caches = {"none": ("generate", NoCache()), "prefix": ("generate_with_prefix_cache", PrefixCache())}
    caches["dual"] = ("generate_with_dual_cache", DualCache())
    settings = {}
    for policy, options, title in (
        (FixedPolicy(), {}, "one token a step"),
        (ThresholdPolicy(THRESHOLD), {"threshold": THRESHOLD}, f"threshold {THRESHOLD}"),
    ):
        for cache, (function, ours) in caches.items():

            def answer(prompt: Tensor, function: str = function, options: dict[str, Any] = options) -> Tensor:
                tokens: Tensor = getattr(theirs, function)(network, prompt, **shared, **options)[0]
                return tokens

            settings[f"{title}, {cache}"] = Setting({"policy": policy, "scheduler": blocks, "cache": ours}, answer)
    return settings


def dsb(checkout: Path, model: Model, gen_length: int) -> dict[str, Setting]:
    """DSB: greedy sliding blocks with the threshold, without a cache and with DSB's."""
    folder = checkout / "llada"
    network = their_network(folder, model)
    theirs = their_module(folder, "generate")
    shared = shared_options(model, gen_length) | {"threshold": THRESHOLD}
    ours = {"policy": ThresholdPolicy(THRESHOLD), "scheduler": DSBScheduler(BLOCK, "greedy")}
    return {
        "greedy, none": Setting(
            ours | {"cache": NoCache()}, lambda prompt: theirs.generate_dsb(network, prompt, **shared)[0]
        ),
        "greedy, dsb": Setting(
            ours | {"cache": DSBCache(BLOCK)}, lambda prompt: theirs.generate_dsb_cache(network, prompt, **shared)[0]
        ),
    }


def learn2pd(checkout: Path, model: Model, gen_length: int) -> dict[str, Setting]:
    """Learn2PD: its filter with random weights, which ours shares, without a cache."""
    folder = checkout / "llada"
    network = their_network(folder, model)
    theirs = their_module(folder, "generate")
    torch.manual_seed(0)
    ours = MLP(BLOCK)
    small = their_module(folder, "model.small_model").LogisticRegression(BLOCK)
    small.load_state_dict(ours.state_dict())
    policy = FilterPolicy(Predictor("filter", ours.eval(), FILTER_THRESHOLD, Contract.of(model.spec)))
    shared = shared_options(model, gen_length)

    def answer(prompt: Tensor) -> Tensor:
        with torch.no_grad():
            tokens: Tensor = theirs.generate_learn2parallel(network, small, FILTER_THRESHOLD, prompt, **shared)
        return tokens

    return {
        "filter, none": Setting({"policy": policy, "scheduler": BlocksScheduler(BLOCK), "cache": NoCache()}, answer)
    }


def dinfer(checkout: Path, model: Model, gen_length: int) -> dict[str, Setting]:
    """dInfer: its loop over blocks with the threshold, without a cache, over our network."""
    root = checkout / "python" / "dinfer"
    # its packages import engines that this loop does not need, so that only their folders are named here
    for name, folder in (("dinfer", root), ("dinfer.decoding", root / "decoding")):
        package = types.ModuleType(name)
        package.__path__ = [str(folder)]
        sys.modules[name] = package
    logging.getLogger("dinfer").setLevel(logging.ERROR)
    loops = importlib.import_module("dinfer.decoding.generate_uniform")
    rules = importlib.import_module("dinfer.decoding.parallel_strategy")
    parts = importlib.import_module("dinfer.decoding.utils")
    network: Any = model.adapter.network
    spec = model.spec

    class Bridge:
        """Our network under the call that dInfer's loop makes."""

        device = model.adapter.device

        def __call__(self, tokens: Tensor, **_: Any) -> Any:
            return SimpleNamespace(logits=network(tokens).logits)

    decoder = rules.ThresholdParallelDecoder(0, THRESHOLD, mask_id=spec.mask_id, eos_id=-1)

    def answer(prompt: Tensor) -> Tensor:
        loop = loops.BlockWiseDiffusionLLM(
            Bridge(), decoder, parts.BlockIteratorFactory(), early_stop=False, maximum_unroll=1
        )
        with torch.no_grad():
            tokens: Tensor = loop.generate(prompt, gen_length, min(BLOCK, gen_length))
        return tokens

    ours = {"policy": ThresholdPolicy(THRESHOLD), "scheduler": BlocksScheduler(BLOCK), "cache": NoCache()}
    return {f"threshold {THRESHOLD}, none": Setting(ours, answer)}


class StoringNetwork:
    """Our block-causal network under the call that SDAR's loop makes.

    It keeps keys and values in our buffers, in which a block that is forwarded again overwrites itself.

    Args:
        model: The model.
    """

    def __init__(self, model: Model) -> None:
        self.adapter = model.adapter
        self.columns = model.spec.max_length
        self.device = model.adapter.device
        self.store = self.adapter.new_store(1, self.columns)

    def eval(self) -> None:
        """Forget the last prompt, since the loop calls this once before each."""
        self.store = self.adapter.new_store(1, self.columns)

    def __call__(self, tokens: Tensor, attention_mask: Tensor, position_ids: Tensor, store_kv: bool, **_: Any) -> Any:
        every = torch.ones_like(tokens, dtype=torch.bool)
        row = torch.zeros(1, dtype=torch.long, device=self.device)
        span = (0, attention_mask.shape[-1])
        plan = ForwardPlan(row, position_ids, position_ids, None, every, every.sum(1), span)
        network = self.adapter.network
        hidden = network.hidden(tokens, position_ids, attention_mask, self.store.view(plan))
        return SimpleNamespace(logits=None if store_kv else network.score(hidden))


def most_probable(logits: Tensor, **_: Any) -> tuple[Tensor, Tensor]:
    """Return the most probable tokens and their probabilities, under the call of SDAR's sampler."""
    best = logits.softmax(-1).max(-1)
    return best.indices, best.values


def sdar(checkout: Path, model: Model, gen_length: int) -> dict[str, Setting]:
    """SDAR: its static and its dynamic low confidence with its cache of finished blocks, over our network."""
    theirs: Any = their_module(checkout, "generate")
    theirs.sample_with_temperature_topk_topp = most_probable
    network = StoringNetwork(model)
    block = model.spec.causal_block
    assert block is not None
    shared = {"mask_id": model.spec.mask_id, "gen_length": gen_length, "block_length": block, "denoising_steps": block}
    exact = {"scheduler": BlocksScheduler(block, alignment="grid"), "cache": CausalBlockCache()}

    def setting(threshold: float, strategy: str) -> Setting:
        def answer(prompt: Tensor) -> Tensor:
            with torch.inference_mode():
                tokens: Tensor = theirs.block_diffusion_generate(
                    network,
                    {"input_ids": prompt},
                    remasking_strategy=strategy,
                    confidence_threshold=threshold,
                    **shared,
                )
            return tokens[:, : prompt.shape[1] + gen_length]

        return Setting(exact | {"policy": LowConfidencePolicy(threshold)}, answer)

    return {
        "one token a step, exact": setting(1.0, "low_confidence_static"),
        f"threshold {THRESHOLD}, exact": setting(THRESHOLD, "low_confidence_dynamic"),
    }


PEERS = (
    Peer("Learn2PD", "llada/generate.py", "def generate_learn2parallel(", learn2pd),
    Peer("DSB", "llada/generate.py", "def generate_dsb(", dsb),
    Peer("Fast-dLLM", "llada/generate.py", "def generate_with_dual_cache(", fast_dllm),
    Peer("dInfer", "python/dinfer/decoding/generate_uniform.py", "class BlockWiseDiffusionLLM(", dinfer),
    Peer("SDAR", "generate.py", "def block_diffusion_generate(", sdar, block_causal=True),
)


def peer_of(path: str) -> tuple[Peer, Path]:
    """Return which peer a checkout is, and its folder.

    Args:
        path: The folder of the checkout.

    Raises:
        UserError: The folder is none of the known peers'.
    """
    checkout = Path(path).expanduser().resolve()
    for peer in PEERS:
        try:
            if path and peer.mark in (checkout / peer.file).read_text(encoding="utf-8"):
                return peer, checkout
        except (OSError, UnicodeDecodeError, ValueError):
            continue
    known = "; ".join(f"{peer.name} with {peer.file} and in it {peer.mark!r}" for peer in PEERS)
    raise UserError(f"peer={path!r} is no checkout of a known peer: expected {known}")


@dataclass(frozen=True)
class Measured:
    """A setting on both sides.

    Attributes:
        seconds: The seconds of the peer and of this toolkit, for each batch.
        mib: The most MiB that their tensors take at one time.
    """

    seconds: list[tuple[float, float]]
    mib: tuple[float, float]


def most_mib(action: Callable[[], Tensor]) -> float:
    """Return the most MiB that the tensors which an action makes take at one time."""
    with LiveBytes() as live:
        action()
    return live.most / 2**20


def timed(action: Callable[[], Tensor], device: torch.device) -> tuple[Tensor, float]:
    """Return the result of an action and its seconds: of the processor, or on the clock where there is a GPU."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    started = clock()
    result = action()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return result, clock() - started


def measure(setting: Setting, model: Model, batches: list[list[list[int]]], gen_length: int) -> Measured:
    """Decode every batch with both sides in turn.

    Raises:
        Unequal: The answers to a prompt differ.
    """
    device = model.adapter.device

    def ours(prompts: list[list[int]]) -> Tensor:
        size = {"gen_length": gen_length, "batch_size": len(prompts)}
        return decode(model, prompts, stop=NoStop(), **size, **setting.ours).tokens

    def theirs(prompts: list[list[int]]) -> Tensor:
        answers = [setting.theirs(torch.tensor([prompt], device=device))[0, -gen_length:] for prompt in prompts]
        return torch.stack(answers).cpu()

    # both sides warm up
    mib = (most_mib(lambda: theirs(batches[0][:1])), most_mib(lambda: ours(batches[0])))
    pairs = []
    for number, prompts in enumerate(batches):
        sides = [theirs, ours] if number % 2 else [ours, theirs]
        results = {side: timed(functools.partial(side, prompts), device) for side in sides}
        differ = int((results[ours][0] != results[theirs][0]).sum())
        if differ:
            raise Unequal(
                f"batch {number}: {differ} of {len(prompts) * gen_length} tokens differ, so that no times are compared"
            )
        pairs.append((results[theirs][1], results[ours][1]))
    return Measured(pairs, mib)


def row_of(measured: Measured) -> str:
    """Word the figures of a setting: medians over the batches, the range of the ratios, and the memory."""
    ratios = sorted(theirs / ours for theirs, ours in measured.seconds)
    theirs, ours = (statistics.median(side) for side in zip(*measured.seconds, strict=True))
    spread = f"{ratios[0]:.2f}-{ratios[-1]:.2f}"
    memory = "{:5.0f} {:5.0f}".format(*measured.mib)
    return f"{theirs:9.2f} {ours:8.2f} {statistics.median(ratios):5.2f}x  {spread:13} equal  {memory}"


def main(arguments: list[str]) -> int:
    """Measure all settings and print the table; return the exit code."""
    defaults = {
        "peer": "",
        "model": "",
        "prompts": "5",
        "prompt_length": "64",
        "gen_length": "64",
        "threads": "1",
        "settings": "",
        "block": "4",
        "batch": "1",
    }
    options = options_of(arguments, defaults)
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # Fast-dLLM compiles its attention, which is slower on a CPU
    try:
        peer, checkout = peer_of(options["peer"])
        device = "cuda" if torch.cuda.is_available() else "cpu"
        gen_length = int(options["gen_length"])
        length = int(options["prompt_length"])
        if options["model"]:
            model = load_model(options["model"])
        elif peer.block_causal:
            block = int(options["block"])
            model = random_sdar(150_000, 256, 4, block, length + gen_length + block)
        else:
            model = random_llada(torch.float32, device)
        if peer.block_causal != (model.spec.causal_block is not None):
            kind = "a block-causal model" if peer.block_causal else "a model that is not block-causal"
            raise UserError(f"model={options['model']}: {peer.name} needs {kind}")
        multiple = model.spec.causal_block or BLOCK
        if gen_length % multiple:
            raise UserError(f"gen_length={gen_length}: expected a multiple of {multiple}, the tokens of a block")
        settings = peer.settings(checkout, model, gen_length)
        wanted = [name for name in options["settings"].split(",") if name]
        compared = {name: part for name, part in settings.items() if not wanted or any(word in name for word in wanted)}
        if not compared:
            raise UserError(f"settings={options['settings']}: expected parts of {'; '.join(settings)}")
        rng = random.Random(0)
        limit = min(model.spec.vocab_size, 1000)
        prompts = [[rng.randrange(10, limit) for _ in range(length)] for _ in range(int(options["prompts"]))]
        batch = max(1, int(options["batch"]))
        batches = [prompts[first : first + batch] for first in range(0, len(prompts), batch)]
        print(
            f"{peer.name} beside learn2pd: {model.spec.name}, vocabulary {model.spec.vocab_size}, {device}, "
            f"{torch.get_num_threads()} threads, {len(prompts)} prompts of {length} tokens, canvas {gen_length}, "
            f"batch {batch}"
        )
        print(f"{'setting':28} {'theirs s':>9} {'ours s':>8} {'ratio':>6}  {'range':13} tokens {'MiB':>5} {'ours':>5}")
        for name, setting in compared.items():
            print(f"{name:28} {row_of(measure(setting, model, batches, gen_length))}", flush=True)
    except Unequal as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except ImportError as error:
        print(
            f"error: {options['peer']}: its code cannot be imported ({error}); install what it requires, "
            "such as einops for Fast-dLLM",
            file=sys.stderr,
        )
        return 2
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
