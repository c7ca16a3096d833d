"""Time of the decoding loop outside the model, as a share of the whole, for every policy.

    python benchmarks/loop_overhead.py [model=checkpoints/tiny-llada] [batch_size=16] [gen_length=256] [repeats=3]

The model's part is forward and vocabulary projection; the rest is proposals, policy, stop rule and bookkeeping. The oracle gets the answers
of the run before it. Prints the median of the repeats and their range.
"""

from __future__ import annotations

import statistics
import sys

import torch

from learn2pd import EotStop, FixedPolicy, NoStop, OraclePolicy, ThresholdPolicy, decode, load_model
from learn2pd.policies.base import Policy
from learn2pd.policies.filter import FilterNetwork, FilterPolicy
from learn2pd.prompts import task_prompts


def main(arguments: list[str]) -> None:
    options = {"model": "checkpoints/tiny-llada", "batch_size": "16", "gen_length": "256", "repeats": "3"}
    options |= dict(argument.split("=", 1) for argument in arguments)
    batch, gen_length = int(options["batch_size"]), int(options["gen_length"])
    model = load_model(options["model"])
    texts = [prompt.text for prompt in task_prompts(["math", "json", "code"], {"test": batch}, seed=0)]
    reference = decode(model, texts, policy=FixedPolicy(), gen_length=gen_length, batch_size=batch)
    policies: dict[str, Policy] = {
        "fixed": FixedPolicy(),
        "fixed steps=G/2": FixedPolicy(steps=gen_length // 2),
        "threshold 0.9": ThresholdPolicy(0.9),
        "filter": FilterPolicy(FilterNetwork(), 0.9),
        "oracle": OraclePolicy(reference.tokens),
    }
    print(f"{model.spec.name}, batch {batch}, canvas {gen_length}, {torch.get_num_threads()} threads, median [range] of {options['repeats']}")
    print(f"{'policy':16} {'stop':5} {'forwards':>8} {'ms a step':>9} {'outside the model':>26}")
    for stop in (NoStop(), EotStop()):
        for name, policy in policies.items():
            shares = []
            for _ in range(int(options["repeats"])):
                result = decode(model, texts, policy=policy, stop=stop, gen_length=gen_length, batch_size=batch)
                shares.append(100 * (1 - result.model_s / result.wall_s))
            steps = int(result.forwards.max())
            spread = f"{statistics.median(shares):.1f}% [{min(shares):.1f}, {max(shares):.1f}]"
            print(f"{name:16} {stop.name:5} {result.forwards.float().mean():8.1f} {1000 * result.wall_s / steps:9.1f} {spread:>26}")


if __name__ == "__main__":
    main(sys.argv[1:])
