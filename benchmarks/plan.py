"""The plan of `--dry-run` beside the recording that it plans.

    python benchmarks/plan.py [model=FOLDER] [gen_length=256] [prompts=192] [sample=16] [batch=16] [threads=1]

A sample of the prompts is recorded in memory, as `plan.sample_prompts` does it, and then all of them on the disk, by
one process. Forwards and bytes are counted. Time is the CPU time of this process, so that other work on the machine
disturbs it little; use one thread, since the time of waiting threads counts too. The bar is 25%.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.arguments import options_of
from benchmarks.record import BLOCK, EMBEDDED, record_all, some_prompts
from learn2pd import load_model
from learn2pd.models.delimiters import newline_ids
from learn2pd.recording.estimate import plan
from learn2pd.recording.reading import Recording

BAR = 0.25


def main(arguments: list[str]) -> None:
    """Plan, record, and print both."""
    options = {"model": str(EMBEDDED), "gen_length": "256", "prompts": "192", "sample": "16", "batch": "16"}
    options = options_of(arguments, options | {"threads": "1"})
    gen_length, batch = int(options["gen_length"]), int(options["batch"])
    model = load_model(options["model"])
    prompts = some_prompts(int(options["prompts"]))
    began = time.process_time()
    planned = plan(
        model,
        prompts,
        gen_length=gen_length,
        block_length=BLOCK,
        batch_size=batch,
        shard_prompts=batch,
        delimiter_ids=newline_ids(model.tokenizer),
        sample=int(options["sample"]),
    )
    sample_s = time.process_time() - began
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "records"
        began = time.process_time()
        record_all(model, prompts, folder, gen_length, batch)
        recorded_s = time.process_time() - began
        disk_bytes = sum(path.stat().st_size for path in folder.iterdir())
        references = Recording.load(folder).references
        forwards = sum(references["forwards"]) + sum(references["oracle_forwards"])
    rows = {
        "forwards": (planned.forwards, forwards),
        "disk, bytes": (planned.disk_bytes, disk_bytes),
        "CPU seconds": (sample_s / planned.sample * len(prompts), recorded_s),
    }
    print(f"{model.spec.name}, {len(prompts)} prompts, canvas {gen_length}, batch {batch}, sample {planned.sample}")
    for name, (expected, measured) in rows.items():
        ratio = expected / measured
        verdict = "within" if abs(ratio - 1) <= BAR else "NOT within"
        print(f"{name:12} planned {expected:16,.1f} measured {measured:16,.1f} ratio {ratio:.3f} ({verdict} {BAR:.0%})")


if __name__ == "__main__":
    main(sys.argv[1:])
