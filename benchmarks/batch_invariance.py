"""How many answers depend on the batch in each type of weights, and what `batch_invariant` costs.

    python benchmarks/batch_invariance.py [model=checkpoints/tiny-llada] [prompts=48] [gen_length=64] [batch_size=16]
        [dtypes=float32,bfloat16,float16] [policy=threshold] [cache=none] [threads=0] [device=auto]

The prompts are problems of the built-in tasks. Every type of weights decodes them in batches, alone, and in batches
with `batch_invariant`. The table counts the prompts whose tokens differ from those of the prompt alone. The cost is the
wall time with `batch_invariant` over that of the batches, each the better of two runs that take turns.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.arguments import options_of
from learn2pd import decode, load_model
from learn2pd.data.prompts import task_prompts
from learn2pd.registry import GENERATED_TASKS, build_task

REPEATS = 2


def main(arguments: list[str]) -> None:
    """Measure all types of weights and print the table."""
    defaults = {
        "model": "checkpoints/tiny-llada",
        "prompts": "48",
        "gen_length": "64",
        "batch_size": "16",
        "dtypes": "float32,bfloat16,float16",
        "policy": "threshold",
        "cache": "none",
        "threads": "0",
        "device": "auto",
    }
    options = options_of(arguments, defaults)
    tasks = [build_task(name) for name in GENERATED_TASKS]
    texts = [prompt.text for prompt in task_prompts(tasks, {"test": int(options["prompts"])}, 0)]
    print(
        f"{options['model']}, {len(texts)} prompts, policy {options['policy']}, cache {options['cache']}, "
        f"canvas {options['gen_length']}, batch {options['batch_size']}, {torch.get_num_threads()} threads"
    )
    print(f"{'type':10} {'device':>7} {'batch differs':>14} {'invariant differs':>18} {'batch s':>8} {'cost':>6}")
    for name in options["dtypes"].split(","):
        model = load_model(options["model"], name, device=options["device"])
        run: dict[str, Any] = {
            "policy": options["policy"],
            "cache": options["cache"],
            "gen_length": int(options["gen_length"]),
            "batch_size": int(options["batch_size"]),
        }
        alone = {text: decode(model, [text], **run) for text in random.Random(0).sample(texts, len(texts))}
        seconds: dict[bool, list[float]] = {False: [], True: []}
        wrong: dict[bool, int] = {}
        for _ in range(REPEATS):
            for invariant in seconds:
                result = decode(model, texts, batch_invariant=invariant, **run)
                seconds[invariant].append(result.wall_s)
                wrong[invariant] = sum(
                    not result.tokens[row].equal(alone[text].tokens[0]) for row, text in enumerate(texts)
                )
        cost = min(seconds[True]) / min(seconds[False])
        print(
            f"{name:10} {model.adapter.device.type:>7} {wrong[False]:>11}/{len(texts)} {wrong[True]:>15}/{len(texts)} "
            f"{min(seconds[False]):>8.2f} {cost:>5.1f}x"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
