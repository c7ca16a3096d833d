"""The data of a small run, for tests of the report page."""

from __future__ import annotations

from learn2pd.cli.config import identity, load_config
from learn2pd.evaluation.compare import build_rows, measure
from learn2pd.evaluation.curves import compare_families
from learn2pd.evaluation.page import RunData
from learn2pd.statistics.bootstrap import Bootstrap
from tests.evaluation.synthetic import exact

HOSTILE = "</script><script>document.title='taken over'</script>"


def comparison():
    """A comparison of five families on two tasks and all of them."""
    outcomes = []
    for task in ("math", "json", "all"):
        outcomes.append(exact("vanilla", "fixed", 0.9, 0.92, task=task))
        for threshold, speed, accuracy in ((0.8, 2.9, 0.70), (0.9, 2.2, 0.88), (0.98, 1.6, 0.91), (0.5, 3.4, 0.4)):
            outcomes.append(exact("threshold", "threshold", speed, accuracy, setting=str(threshold), task=task))
        for threshold, speed, accuracy in ((0.8, 4.1, 0.84), (0.95, 3.1, 0.91), (0.99, 2.4, 0.92)):
            outcomes.append(exact("filter", "filter", speed, accuracy, setting=str(threshold), task=task, revoked=1))
        outcomes.append(exact("oracle", "oracle", 7.5, 0.92, task=task))
    fields = measure(outcomes, Bootstrap(50, 0))
    meta = {
        "model": "tiny-llada",
        "model_fingerprint": "0" * 16,
        "prompts": 100,
        "seed": 0,
        "gen_length": 8,
        "bootstrap_samples": 50,
        "accuracy_margin": 0.005,
        "device": "cpu",
        "threads": 1,
        "dtype": "float32",
    }
    return {"meta": meta, "rows": build_rows(fields), "scores": []} | compare_families(fields, 0.005)


def run_of(method, steps, texts):
    return {
        "method": method,
        "given": [],
        "steps": steps,
        "texts": texts,
        "answer": "3+4=7",
        "tokens": 5,
        "forwards": len(steps),
        "revoked": sum(len(step.get("revoked", ())) for step in steps),
        "edited": 0,
    }


def replays(prompt="What is 3 plus 4?"):
    """One task under a slow method and a fast one, which takes a token back."""
    texts = ["3", "+", "4", "=", "7", "<|endoftext|>", "8"]
    slow = [
        {"window": [0, 8], "end": 6 if at == 5 else 8, "at": list(range(at, 6)), "token": list(range(at, 6)),
         "sure": [900] * (6 - at), "commit": [[at, at]]}
        for at in range(6)
    ]  # fmt: skip
    fast = [
        {"window": [0, 8], "end": 8, "at": [0, 1, 4], "token": [0, 1, 6], "sure": [999, 990, 400],
         "commit": [[0, 0], [1, 1], [4, 6]], "forced": [4]},
        {"window": [0, 8], "end": 8, "at": [2, 3], "token": [2, 3], "sure": [970, 960],
         "commit": [[2, 2], [3, 3]], "revoked": [4]},
        {"window": [0, 8], "end": 6, "at": [4, 5], "token": [4, 5], "sure": [998, 997], "commit": [[4, 4], [5, 5]]},
    ]  # fmt: skip
    runs = [run_of("one token a step", slow, texts), run_of("filter", fast, texts)]
    return [{"task": "math", "prompt": prompt, "gen_length": 8, "runs": runs, "pair": [0, 1]}]


def metrics():
    """The figures of a training and a calibration."""
    rounds = [
        {"round": number, "epochs": 9.0, "val_loss": 0.2, "val_auroc": 0.97, "agreement": 0.95, "accuracy_drop": 0.01,
         "tokens_per_forward": 2.9, "rows": 1200, "train_seconds": 12.0}
        for number in (0, 1)
    ]  # fmt: skip
    curve = [
        {"threshold": threshold, "agreement": agreement, "accuracy_drop": None, "loss_bound": 0.1,
         "tokens_per_forward": speed}
        for threshold, agreement, speed in ((0.99, 0.98, 2.2), (0.9, 0.95, 3.0))
    ]  # fmt: skip
    calibrated = {
        "threshold": 0.9,
        "target_agreement": 0.9,
        "max_accuracy_drop": None,
        "target_met": True,
        "confidence": 0.9,
        "prompts": 45,
        "curve": curve,
        "reliability": [
            {"bin": place, "probability": place / 10 + 0.05, "right": place / 10, "count": 10**place // 7 + 3}
            for place in range(10)
        ],
    }
    record = {"prompts": 45, "rows": 1200, "reference_forwards_mean": 60.0, "oracle_forwards_mean": 9.0}
    return {
        "record": record | {"stage_seconds": 31.0},
        "train": {"rounds": rounds, "stage_seconds": 44.0},
        "calibrate": {"filter": calibrated, "stage_seconds": 20.0},
    }


def whole_run(**changes):
    """Everything a finished run has."""
    described = identity(load_config("tiny_filter"))
    data = {
        "title": "tiny_filter",
        "version": "0.2.0",
        "described": described,
        "metrics": metrics(),
        "comparison": comparison(),
        "replays": replays(),
    }
    return RunData(**(data | changes))
