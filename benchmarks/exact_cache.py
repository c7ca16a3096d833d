"""The exact cache of block-causal models against the loop without a cache, in pairs, in one run.

    python benchmarks/exact_cache.py [blocks=4,8,32] [prompt_length=512] [gen_length=512] [vocabulary=150000]
        [decoded=512] [width=256] [layers=4] [repetitions=3] [threads=1]

The model is a random SDAR with a vocabulary of the usual size on a small body. One row is decoded with one token a
step, once without a cache and once with `causal_block`; the order changes with every repetition. The ratio compares
tokens a second of CPU time of this process, which other work on the machine disturbs less than the time on the clock.
The tokens and the forwards of a pair are compared, too. `decoded=64` decodes the last 64 tokens of the canvas alone,
and the others are given. Without a cache every step costs the same. With the cache these steps attend to the most
columns, and the forward of everything before them is spread over fewer steps, so that the ratio is a lower one.

The last two columns are the milliseconds of a step in the body and in the vocabulary, both with the cache.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.arguments import options_of
from learn2pd import CausalBlockCache, FixedPolicy, NoCache, NoStop, decode
from learn2pd.models.adapter import ModelAdapter
from learn2pd.models.loading import Model
from learn2pd.models.sdar import SDARConfig, SDARForCausalLM
from learn2pd.types import DecodeResult, ModelSpec


def random_sdar(vocabulary: int, width: int, layers: int, block: int, columns: int) -> Model:
    """An untrained SDAR.

    Args:
        vocabulary: The number of tokens.
        width: The features of a token.
        layers: The number of layers.
        block: The tokens of a block.
        columns: The longest sequence.
    """
    torch.manual_seed(0)
    config = SDARConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=width // 4,
        max_position_embeddings=columns,
        block_size=block,
        mask_token_id=1,
        eos_token_id=0,
        bos_token_id=None,
        pad_token_id=0,
    )
    network = SDARForCausalLM(config).eval()
    spec = ModelSpec("random SDAR", 1, (0,), 0, vocabulary, columns, False, "", causal_block=block)
    tokenizer: Any = SimpleNamespace(decode=lambda *_, **__: "")
    return Model(ModelAdapter(network, spec), tokenizer)


def measured(model: Model, prompt: list[int], cache: Any, gen_length: int, decoded: int) -> tuple[DecodeResult, float]:
    """Decode one prompt, and return the result and the seconds of CPU time.

    Args:
        model: The model.
        prompt: The token ids.
        cache: The cache.
        gen_length: The tokens of the canvas.
        decoded: The tokens at the end of the canvas that are decoded.
    """
    given = torch.full((1, gen_length), -1)
    given[:, : gen_length - decoded] = 2
    started = time.process_time()
    result = decode(
        model, [prompt], policy=FixedPolicy(), cache=cache, stop=NoStop(), gen_length=gen_length, given=given
    )
    return result, time.process_time() - started


def main(arguments: list[str]) -> None:
    """Measure all block lengths and print a line for each."""
    defaults = {
        "blocks": "4,8,32",
        "prompt_length": "512",
        "gen_length": "512",
        "decoded": "512",
        "vocabulary": "150000",
        "width": "256",
        "layers": "4",
        "repetitions": "3",
        "threads": "1",
    }
    given = options_of(arguments, defaults)
    numbers = {name: int(text) for name, text in given.items() if name != "blocks"}
    rng = random.Random(0)
    prompt = [rng.randrange(2, 1000) for _ in range(numbers["prompt_length"])]
    gen_length, decoded = numbers["gen_length"], numbers["decoded"]
    print(", ".join(f"{name} {value}" for name, value in numbers.items()))
    titles = f"{'block':>5} {'none ms':>8} {'exact ms':>8} {'ratio':>6} {'range':>12}  {'tokens':9}"
    print(f"{titles} {'body':>6} {'vocabulary':>10}")
    for block in map(int, given["blocks"].split(",")):
        columns = len(prompt) + gen_length
        model = random_sdar(numbers["vocabulary"], numbers["width"], numbers["layers"], block, columns)
        measured(model, prompt, CausalBlockCache(), gen_length, min(decoded, 2 * block))  # warm-up
        seconds: dict[str, list[float]] = {"none": [], "causal_block": []}
        parts: dict[str, list[float]] = {"forward": [], "score": []}
        same = True
        for repetition in range(numbers["repetitions"]):
            results = {}
            for cache in (NoCache(), CausalBlockCache())[:: -1 if repetition % 2 else 1]:
                results[cache.name], spent = measured(model, prompt, cache, gen_length, decoded)
                seconds[cache.name].append(spent)
            plain, exact = results["none"], results["causal_block"]
            for part, spent_on in parts.items():
                spent_on.append(exact.seconds[part])
            same = same and plain.tokens.equal(exact.tokens) and plain.forwards.equal(exact.forwards)
        ratios = [none / exact for none, exact in zip(seconds["none"], seconds["causal_block"], strict=True)]
        none_ms, exact_ms, body_ms, vocabulary_ms = (
            1000 * statistics.median(spent_on) / decoded for spent_on in (*seconds.values(), *parts.values())
        )
        print(
            f"{block:5} {none_ms:8.1f} {exact_ms:8.1f} {statistics.median(ratios):6.2f} "
            f"{min(ratios):5.2f}-{max(ratios):5.2f}  {'equal' if same else 'NOT EQUAL':9} "
            f"{body_ms:6.1f} {vocabulary_ms:10.1f}"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
