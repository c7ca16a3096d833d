"""Writes `tests/parity/golden`, a part of the authors' traces that is small enough for the repository.

The root that it reads has every trace.

Run as `python -m tests.parity.ship ROOT`. The choice is fixed by the table below, so that the same root gives the same
bytes.
"""

from __future__ import annotations

import gzip
import json
import shutil
import sys
from pathlib import Path

from tests.parity.traces import SHIPPED

MODELS = ("llada_tiny", "llada_tiny_gqa", "dream_tiny", "qwen2_verifier_tiny", "filter_tiny")
LONGEST = 64  # canvas of the runs that are taken, tokens
RUNS = {  # trace -> how many of its runs are taken
    "llada_tiny/vanilla_steps_half": 2,
    "llada_tiny/vanilla_steps_full_prefix": 1,
    "llada_tiny/fastdllm_thr0.7_nocache": 3,
    "llada_tiny/fastdllm_thr0.2_dual": 4,
    "llada_tiny/fastdllm_v1_factor1.0_nocache": 3,
    "llada_tiny/fastdllm_v1_thr0.7_dual": 2,
    "llada_tiny/adablock_nocache": 3,
    "llada_tiny/adablock_prefix": 2,
    "llada_tiny/dsb_const_nocache": 3,
    "llada_tiny/dsb_greedy_cache_p8s4": 3,
    "llada_tiny/l2p_thr0.5": 3,
    "llada_tiny/l2p_eot_dual_thr0.5": 3,
    "llada_tiny/l2p_oracle": 1,
    "llada_tiny_gqa/fastdllm_v1_thr0.7_prefix": 3,
    "llada_tiny_gqa/adablock_dual_multi": 3,
    "llada_tiny_gqa/dsb_greedy_nocache": 3,
    "llada_tiny_gqa/dsb_const_cache_p24s0": 3,
    "llada_tiny_gqa/localleap_wide": 3,
    "llada_tiny_gqa/eot_only": 2,
    "llada_tiny_gqa/l2p_eot_thr0.5": 3,
    "dream_tiny/apd_R0.7_W16_M20": 3,
    "dream_tiny/apd_R0.9_W8_M3": 3,
    "dream_tiny/leftright_K3_W16_M20": 3,
}


def pick(runs: list[dict], count: int, first: int) -> list[dict]:
    """Robust runs with a short canvas, spread over prompts and block lengths; `first` says where the choice starts."""
    fit = [run for run in runs if run["robust"] and run["gen_length"] <= LONGEST]
    return [fit[(first + number * len(fit) // count) % len(fit)] for number in range(count)]


def write_trace(path: Path, stored: dict, runs: list[dict]) -> None:
    """One run a line, as in the full file."""
    head = json.dumps({key: value for key, value in stored.items() if key != "runs"})
    lines = ",\n".join(json.dumps(run, separators=(",", ":")) for run in runs)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'{head[:-1]},\n"runs":[\n{lines}\n]}}\n')


def main(root: Path) -> None:
    """Replace the shipped models, traces and index by those of `root`."""
    shutil.rmtree(SHIPPED / "traces", ignore_errors=True)
    index = {}
    for number, (name, count) in enumerate(RUNS.items()):
        stored = json.loads((root / "traces" / f"{name}.json").read_text())
        runs = pick(stored["runs"], count, number)
        write_trace(SHIPPED / "traces" / f"{name}.json", stored, runs)
        index[f"{name}.json"] = {"runs": len(runs), "robust": len(runs)}
    (SHIPPED / "INDEX.json").write_text(json.dumps(index, indent=1) + "\n")
    for name in MODELS:
        folder = SHIPPED / name
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_bytes((root / name / "config.json").read_bytes())
        packed = gzip.compress((root / name / "model.safetensors").read_bytes(), mtime=0)
        (folder / "model.safetensors.gz").write_bytes(packed)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
