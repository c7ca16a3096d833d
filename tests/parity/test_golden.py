"""The authors' own implementations, on tiny models: the same logits, the same tokens, the same number of forwards.

Traces are read from wherever LEARN2PD_GOLDEN points; whatever lies there is run, and methods that do not exist here are skipped by name.
"""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from learn2pd.decoding.caches import NoCache
from learn2pd.decoding.loop import decode_batch
from learn2pd.decoding.schedulers import BlocksScheduler
from learn2pd.decoding.stops import EotpPaperStop, NoStop
from learn2pd.models.adapter import LLaDAAdapter
from learn2pd.models.llada import LLaDAConfig, LLaDAModelLM
from learn2pd.policies.filter import FilterNetwork, FilterPolicy
from learn2pd.policies.fixed import FixedPolicy
from learn2pd.policies.oracle import OraclePolicy
from learn2pd.policies.threshold import ThresholdPolicy
from learn2pd.types import DecodeState, ModelSpec
from tests.conftest import golden_root

ROOT = golden_root()
TRACES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("traces/*/*.json")) if ROOT else []
MODELS = sorted({path.parent.name for path in ROOT.glob("*/golden_logits.safetensors")}) if ROOT else []
needs_traces = pytest.mark.skipif(ROOT is None, reason="no stored traces: set LEARN2PD_GOLDEN to their folder")


@functools.cache
def adapter(folder: Path) -> LLaDAAdapter:
    fields = json.loads((folder / "config.json").read_text())
    if fields["model_type"] != "llada":
        pytest.skip(f"model_type {fields['model_type']} is not supported yet")
    config = LLaDAConfig.from_dict({key: value for key, value in fields.items() if key != "auto_map"})
    network = LLaDAModelLM(config)
    network.load_state_dict(load_file(folder / "model.safetensors"))
    spec = ModelSpec(
        name=folder.name, mask_id=config.mask_token_id, eot_ids=(config.eos_token_id,), pad_id=config.pad_token_id,
        vocab_size=config.vocab_size, max_length=config.max_sequence_length, shifted_logits=False, fingerprint="",
    )  # fmt: skip
    return LLaDAAdapter(network.eval(), spec)


@functools.cache
def golden_filter(folder: Path) -> FilterNetwork:
    network = FilterNetwork(32, 32)
    network.load_state_dict(load_file(folder / "model.safetensors"))
    return network


def build(method: str, params: dict, run: dict, root: Path):
    """Policy and stop rule of a trace, or a skip that says what is missing."""
    if "fn" not in params:
        pytest.skip(f"{method}: this method is not supported yet")
    if "cache" in params["fn"] or "_prefix" in method or "_dual" in method:
        pytest.skip(f"{method}: prefix and dual caches are not supported yet")
    if params["fn"] == "generate" and params.get("threshold"):
        return ThresholdPolicy(params["threshold"]), NoStop()
    if params["fn"] == "generate" and re.fullmatch(r"gen_length(/\d+)?", str(params.get("steps"))) and "factor" not in params:
        return FixedPolicy(run["gen_length"] // int((params["steps"] + "/1").split("/")[1])), NoStop()
    if params["fn"] in ("generate_learn2parallel", "generate_l2p_eot"):
        policy = FilterPolicy(golden_filter(root / params["filter"]), params["accept_thres"])
        return policy, EotpPaperStop() if params["fn"] == "generate_l2p_eot" else NoStop()
    pytest.skip(f"{method}: {params['fn']} is not supported yet")


def decode_run(model: LLaDAAdapter, runs: list[dict], policy, stop):
    """The final state of runs of one geometry, decoded as a batch."""
    gen_length, block_length = runs[0]["gen_length"], runs[0]["block_length"]
    state = DecodeState.start([run["prompt"] for run in runs], range(len(runs)), gen_length, model.spec.mask_id, model.spec.pad_id, model.device)
    return decode_batch(model, state, scheduler=BlocksScheduler(block_length), policy=policy, cache=NoCache(), stop=stop)[0]


@needs_traces
@pytest.mark.parametrize("name", MODELS)
def test_logits_equal_the_authors(name):
    model = adapter(ROOT / name)
    stored = load_file(ROOT / name / "golden_logits.safetensors")
    cases = [key.removeprefix("ids_") for key in stored if key.startswith("ids_")]
    assert cases
    for case in cases:
        with torch.inference_mode():
            logits = model.network(stored[f"ids_{case}"].reshape(1, -1).long()).logits
        assert (logits - stored[f"logits_{case}"]).abs().max() < 1e-4, case


@needs_traces
@pytest.mark.parametrize("trace", TRACES)
def test_a_decode_equals_the_authors(trace):
    stored = json.loads((ROOT / trace).read_text())
    if stored["method"].endswith("oracle"):
        pytest.skip("the oracle has its own test below")
    first = stored["runs"][0]
    build(stored["method"], stored["params"], first, ROOT)
    model = adapter(ROOT / Path(trace).parent.name)
    assert stored["mask_id"] == model.spec.mask_id
    geometries = sorted({(run["gen_length"], run["block_length"]) for run in stored["runs"]})
    for gen_length, block_length in geometries:
        runs = [run for run in stored["runs"] if run["robust"] and (run["gen_length"], run["block_length"]) == (gen_length, block_length)]
        if not runs:
            continue
        state = decode_run(model, runs, *build(stored["method"], stored["params"], runs[0], ROOT))
        for row, run in enumerate(runs):
            answer = run["output"][len(run["prompt"]) :]
            assert int(state.visible[row]) == len(answer), (gen_length, block_length, row)
            assert state.canvas[row, : len(answer)].tolist() == answer, (gen_length, block_length, row)
            assert int(state.forwards[row]) == run["nfe"], (gen_length, block_length, row)
            if len(answer) == gen_length:  # a cut drops commits from the stored steps
                ours = [(state.committed_at[row] == step).nonzero()[:, 0] + len(run["prompt"]) for step in range(run["nfe"])]
                assert [positions.tolist() for positions in ours] == [step["pos"] for step in run["steps"]], (gen_length, block_length, row)


class OracleLabels:
    """The labels of every step, as the authors record them: the window's confidences and which proposals are right."""

    needs, scores_committed = frozenset(), True

    def __init__(self):
        self.steps = []

    def record(self, state, prediction, commit):
        self.steps.append((state, prediction))


@needs_traces
@pytest.mark.parametrize("trace", [trace for trace in TRACES if trace.endswith("l2p_oracle.json")])
def test_the_oracle_records_what_the_authors_record(trace):
    """Their loop calls the model a second time before it notices that nothing changes; the fill here comes at once, one forward earlier."""
    stored = json.loads((ROOT / trace).read_text())
    model = adapter(ROOT / Path(trace).parent.name)
    for run in stored["runs"]:
        if not run["robust"]:
            continue
        length, start = run["block_length"], len(run["prompt"])
        reference = torch.tensor([run["correct_answer"][-run["gen_length"] :]])
        assert decode_run(model, [run], FixedPolicy(), NoStop()).canvas.equal(reference)
        watcher = OracleLabels()
        state = DecodeState.start([run["prompt"]], [0], run["gen_length"], model.spec.mask_id, model.spec.pad_id, model.device)
        state, _ = decode_batch(
            model, state, scheduler=BlocksScheduler(length), policy=OraclePolicy(reference), cache=NoCache(), stop=NoStop(), recorder=watcher
        )
        assert state.tokens[0].tolist() == run["output"], start
        ours = []
        for before, prediction in watcher.steps:
            block = slice(int(before.window.start[0]), int(before.window.start[0]) + length)
            ours.append((prediction.confidence[0, block], (prediction.tokens[0, block] == reference[0, block]).int().tolist()))
        assert len(ours) == int(state.forwards[0])
        theirs = without_stalls(run["records"])
        assert len(ours) == len(theirs)
        for (confidence, right), record in zip(ours, theirs, strict=True):
            assert right == record["is_correct"]
            assert (confidence - torch.tensor(record["confidence"])).abs().max() < 1e-4


def without_stalls(records: list[dict]) -> list[dict]:
    """Their records less the second of two equal ones in a block, which is the forward that notices the stall."""
    kept: list[dict] = []
    for record in records:
        if kept and kept[-1]["block"] == record["block"] and kept[-1]["confidence"] == record["confidence"]:
            continue
        kept.append(record)
    return kept
