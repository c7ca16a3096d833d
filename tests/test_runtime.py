"""The runtime module reads a policy and decides over blocks, with torch and safetensors alone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from learn2pd import load_policy
from learn2pd.errors import UserError
from learn2pd.files import shipped_folder
from learn2pd.loop.block import block_step
from learn2pd.policies.apple import ApplePolicy
from learn2pd.policies.threshold import ThresholdPolicy
from learn2pd.runtime import check_model, read_policy
from learn2pd.types import Window
from tests.contract.helpers import random_apple

FILTER = shipped_folder("checkpoints") / "tiny-llada-filter"

# What this package imports elsewhere, without torch, safetensors, and what torch itself imports.
BLOCKED = (
    *("transformers", "lightning", "datasets", "omegaconf", "peft", "huggingface_hub", "tokenizers", "torchmetrics"),
    *("matplotlib", "pyarrow", "rich", "diffusers", "sglang"),
)
ALONE = """
import json, sys, time

for name in sys.argv[2].split(","):
    sys.modules[name] = None  # importing it raises ImportError
began = time.perf_counter()
import torch
import safetensors.torch
middle = time.perf_counter()
from learn2pd.runtime import Window, block_step, build, read_policy
ended = time.perf_counter()

policy = read_policy(sys.argv[1], aggressiveness=0.5)
torch.manual_seed(0)
logits = 4 * torch.randn(2, 32, 1024)
masked = torch.ones(2, 32, dtype=torch.bool)
window = Window(torch.tensor([0, 5]), torch.tensor([32, 30]))
step = block_step(policy, logits, masked.long(), masked, window, mask_id=policy.predictor.contract.mask_id)
rule = build("policy", "threshold", {"threshold": 0.5}, {})
print(json.dumps({"tokens": step.tokens.tolist(), "ratio": (ended - began) / (middle - began), "rule": repr(rule)}))
"""


def test_it_works_and_starts_quickly_where_no_other_library_is_installed(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(FILTER), ",".join(BLOCKED)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["ratio"] < 1.5
    assert told["rule"] == "ThresholdPolicy(threshold=0.5)"
    policy = load_policy(FILTER, aggressiveness=0.5)
    torch.manual_seed(0)
    logits = 4 * torch.randn(2, 32, 1024)
    masked = torch.ones(2, 32, dtype=torch.bool)
    window = Window(torch.tensor([0, 5]), torch.tensor([32, 30]))
    step = block_step(policy, logits, masked.long(), masked, window, mask_id=policy.predictor.contract.mask_id)
    assert told["tokens"] == step.tokens.tolist()


def damaged(folder: Path, what: str) -> None:
    file = folder / "policy.json"
    described = json.loads(file.read_text(encoding="utf-8"))
    if what == "missing":
        file.unlink()
    elif what == "no JSON":
        file.write_text("{", encoding="utf-8")
    elif what == "schema":
        file.write_text(json.dumps(described | {"schema": 1}), encoding="utf-8")
    elif what == "kind":
        file.write_text(json.dumps(described | {"kind": "boundary"}), encoding="utf-8")
    elif what == "key":
        del described["contract"]
        file.write_text(json.dumps(described), encoding="utf-8")
    elif what == "weights":
        (folder / "model.safetensors").write_bytes(b"\0" * 100)
    else:
        (folder / "model.safetensors").unlink()


@pytest.mark.parametrize("what", ["missing", "no JSON", "schema", "kind", "key", "weights", "no weights"])
def test_a_damaged_folder_is_refused_in_one_line(what, tmp_path):
    folder = tmp_path / "policy"
    shutil.copytree(FILTER, folder)
    damaged(folder, what)
    with pytest.raises(UserError, match=r"^policy=") as raised:
        read_policy(folder)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 0.5, "aggressiveness": 0.5}, "give one of them"),
        ({"threshold": 1.5}, "expected a probability from 0 to 1"),
        ({"aggressiveness": 2}, "expected a number from 0"),
    ],
)
def test_wrong_numbers_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        read_policy(FILTER, **options)


def test_a_folder_that_is_none_is_refused():
    with pytest.raises(UserError, match=r"policy='nowhere': this is no folder; expected policy.json and model.safe"):
        read_policy("nowhere")


FITS = {"mask_id": 4, "vocab_size": 1024, "block_length": 32, "alignment": "prompt"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask_id": 156895}, "mask id {mask}, the engine has 156895"),
        ({"vocab_size": 1000}, "a vocabulary of 1024 tokens, the engine gives 1000 logits"),
    ],
)
def test_a_model_of_another_kind_is_refused_with_both_values(changes, message):
    policy = read_policy(FILTER)
    mask_id = policy.predictor.contract.mask_id
    fits = FITS | {"mask_id": mask_id, "block_length": None, "alignment": None}
    check_model(policy, "the engine", **fits)
    check_model(policy, "the engine", **fits | {"vocab_size": 1088})  # a padded vocabulary
    with pytest.raises(UserError, match=message.format(mask=mask_id)):
        check_model(policy, "the engine", **fits | changes)


def test_a_policy_that_needs_the_canvas_is_refused_and_a_rule_has_no_contract():
    check_model(ThresholdPolicy(), "the engine", **FITS)
    with pytest.raises(UserError, match=r"policy 'apple' needs the whole canvas.*; the engine gives it the logits of"):
        check_model(ApplePolicy(random_apple(), full_context=False), "the engine", **FITS)
