"""Writes `tests/parity/golden`, a part of the authors' traces that is small enough for the repository.

The roots that it reads together have every trace.

Run as `python -m tests.parity.ship ROOT [ROOT ...]`. The choice is fixed by the table below, so that the same roots
give the same bytes.
"""

from __future__ import annotations

import gzip
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.parity.traces import SHIPPED

MODELS = ("llada_tiny", "llada_tiny_gqa", "dream_tiny", "qwen2_verifier_tiny", "filter_tiny", "apple_policy_tiny")
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
    "llada_tiny/wino_0.6_0.9": 2,
    "llada_tiny_gqa/wino_0.7_0.5": 2,
    "llada_tiny/klass_0.5_0.1": 2,
    "llada_tiny_gqa/klass_0.6_0.05_h3": 1,
    "llada_tiny/klass_0.5_0.1_minkl": 1,
    "llada_tiny/klass_alg_entropy": 1,
    "llada_tiny/eb_gamma0.5": 2,
    "llada_tiny/eb_gamma2.0": 1,
    "llada_tiny/credit_thr0.9_strong": 2,
    "llada_tiny_gqa/credit_thr0.9": 1,
    "llada_tiny/hierarchy_0.9_0.4": 2,
    "llada_tiny/dawn_default": 2,
    "llada_tiny/dparallel_ent0.5": 2,
    "llada_tiny/dparallel_ent0.5_dual": 1,
    "llada_tiny/slowfast_default": 2,
    "llada_tiny/prophet_low": 2,
    "llada_tiny/prophet_default": 1,
    "llada_tiny/apple_policy_bernoulli_argmax": 2,
    "llada_tiny/apple_policy_block_context": 1,
}


def pick(runs: list[dict], count: int, first: int) -> list[dict]:
    """Robust runs with a short canvas, spread over prompts and block lengths; `first` says where the choice starts."""
    fit = [run for run in runs if run["robust"] and run["gen_length"] <= LONGEST and not run.get("prompt_overwritten")]
    return [fit[(first + number * len(fit) // count) % len(fit)] for number in range(count)]


def write_trace(path: Path, stored: dict, runs: list[dict]) -> None:
    """One run a line, as in the full file."""
    head = json.dumps({key: value for key, value in stored.items() if key != "runs"})
    lines = ",\n".join(json.dumps(run, separators=(",", ":")) for run in runs)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(f'{head[:-1]},\n"runs":[\n{lines}\n]}}\n'.encode(), mtime=0))


def first_with(roots: Sequence[Path], name: str) -> Path:
    """The file or folder of this name in the first root that has it."""
    return next(root / name for root in roots if (root / name).exists())


def main(roots: Sequence[Path]) -> None:
    """Replace the shipped models, traces and index by those of the roots."""
    shutil.rmtree(SHIPPED / "traces", ignore_errors=True)
    index = {}
    for number, (name, count) in enumerate(RUNS.items()):
        stored = json.loads(first_with(roots, f"traces/{name}.json").read_text())
        runs = pick(stored["runs"], count, number)
        write_trace(SHIPPED / "traces" / f"{name}.json.gz", stored, runs)
        index[f"{name}.json"] = {"runs": len(runs), "robust": len(runs)}
    (SHIPPED / "INDEX.json").write_text(json.dumps(index, indent=1) + "\n")
    for name in MODELS:
        folder = SHIPPED / name
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_bytes(first_with(roots, f"{name}/config.json").read_bytes())
        packed = gzip.compress(first_with(roots, f"{name}/model.safetensors").read_bytes(), mtime=0)
        (folder / "model.safetensors.gz").write_bytes(packed)


if __name__ == "__main__":
    main([Path(root) for root in sys.argv[1:]])
