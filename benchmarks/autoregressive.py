"""Speculative decoding and PEARL against plain decoding: equal tokens, accepted tokens, speedups modelled and measured.

    python benchmarks/autoregressive.py [target=checkpoints/tiny-ar] [draft=checkpoints/tiny-ar-draft] [prompts=300]
        [gen_length=128] [batch=50] [speculative=4,5,6] [pearl=4,5] [threads=1]

The prompts are the test problems of the built-in tasks. `equal` counts the prompts whose answer is the target's, token
for token. The speedup at 1:5 is modelled (learn2pd/autoregressive/timing.py): a forward of the target takes as long as
five of the draft's, and PEARL's draft has a device of its own. The measured one is that of the whole run on this
machine, where draft and target share the processor.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.arguments import options_of
from learn2pd import AutoregressiveMethod, PearlMethod, SpeculativeMethod, generate, load_causal_model
from learn2pd.autoregressive.timing import STATED_RATIO, modelled_seconds
from learn2pd.data.prompts import task_prompts
from learn2pd.registry import GENERATED_TASKS, build_task


def main(arguments: list[str]) -> None:
    """Decode with every method and print the table."""
    defaults = {
        "target": "checkpoints/tiny-ar",
        "draft": "checkpoints/tiny-ar-draft",
        "prompts": "300",
        "gen_length": "128",
        "batch": "50",
        "speculative": "4,5,6",
        "pearl": "4,5",
        "threads": "1",
    }
    options = options_of(arguments, defaults)
    target = load_causal_model(options["target"])
    draft = load_causal_model(options["draft"], key="draft")
    methods = [AutoregressiveMethod(target)]
    methods += [SpeculativeMethod(target, draft, int(length)) for length in options["speculative"].split(",")]
    methods += [PearlMethod(target, draft, int(length)) for length in options["pearl"].split(",")]
    tasks = [build_task(name) for name in GENERATED_TASKS]
    prompts = [prompt.text for prompt in task_prompts(tasks, {"test": int(options["prompts"])}, seed=0)]
    print(f"{target!r} and {draft!r}, {len(prompts)} prompts, {torch.get_num_threads()} threads a model")
    print(
        f"{'method':14} {'draft length':>12} {'equal':>9} {'tokens/target forward':>21} {'accepted':>8} "
        f"{'at 1:5':>7} measured"
    )
    plain = None
    for method in methods:
        result = generate(method, prompts, gen_length=int(options["gen_length"]), batch_size=int(options["batch"]))
        plain = plain or result
        forwards, drafts = int(result.forwards.sum()), int(result.auxiliary_forwards.sum())
        equal = int((result.tokens == plain.tokens).all(1).sum())
        seconds = modelled_seconds(forwards, drafts, method.overlaps, STATED_RATIO, 1)
        modelled = int(plain.forwards.sum()) * STATED_RATIO / seconds
        accepted = float(result.accepted.sum() / result.draft_runs.sum()) if method.draft else 0.0
        print(
            f"{method.name:14} {method.draft_length:12} {equal:5}/{len(prompts):3} "
            f"{int(result.lengths.sum()) / forwards:21.2f} {accepted:8.2f} {modelled:6.2f}x "
            f"{plain.wall_s / result.wall_s:7.2f}x",
            flush=True,
        )


if __name__ == "__main__":
    main(sys.argv[1:])
