"""The authors' own implementations, on tiny models: the same logits, the same tokens, the same number of forwards.

A part of the traces ships with the repository (golden/README.md). LEARN2PD_GOLDEN adds roots with more of them,
separated as in PATH. Every trace of every root is run; one of a method or a model family that the package does not have
is skipped by name.
"""

from __future__ import annotations

import functools
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from learn2pd.caches.fast_dllm import DualCache, PrefixCache
from learn2pd.caches.lookahead import LookaheadCache
from learn2pd.caches.none import NoCache
from learn2pd.loop.loop import decode_batch
from learn2pd.loop.observing import Observer
from learn2pd.method import Method
from learn2pd.models.adapter import ModelAdapter
from learn2pd.models.loading import IDS
from learn2pd.models.loading import network_of as network_class
from learn2pd.policies.apd import APDPolicy, LeftToRightPolicy
from learn2pd.policies.fixed import FixedPolicy
from learn2pd.policies.localleap import LocalLeapPolicy
from learn2pd.policies.oracle import OraclePolicy
from learn2pd.policies.threshold import ThresholdPolicy
from learn2pd.policies.verifier import Verifier
from learn2pd.predictors.filter import FilterPolicy
from learn2pd.predictors.networks import MLP
from learn2pd.predictors.saving import Contract, Predictor
from learn2pd.registry import family_target
from learn2pd.schedulers.adablock import AdaBlockScheduler
from learn2pd.schedulers.blocks import BlocksScheduler
from learn2pd.schedulers.lookahead import LookaheadScheduler
from learn2pd.stops.anywhere import AnywhereStop
from learn2pd.stops.eotp import EotpPaperStop
from learn2pd.stops.none import NoStop
from learn2pd.types import DecodeState, ForwardPlan, ModelSpec
from tests.parity.quirks import CutBlindDual, ForwardsABlock, LastRankFactor, LeakingDSB, LeakingDSBCache
from tests.parity.traces import ORACLE, VARIABLE, Trace, all_roots, collect, collect_models, unsupported_family, weights

MASK = 159  # of every stored model; the configurations of LLaDA2 and Fast-dLLM v2 do not name it
ROOTS = all_roots(os.environ.get(VARIABLE))
TRACES = collect(ROOTS)
DECODES = [trace for trace in TRACES if not (trace.method == ORACLE or trace.rule or trace.block_causal)]
LABELS = [trace for trace in TRACES if trace.method == ORACLE]
MODELS = collect_models(ROOTS)  # none of the shipped models comes with its logits


def by_name(traces: list[Trace]) -> list:
    """The traces as parameters of a test, with their names as ids."""
    return [pytest.param(trace, id=trace.identity) for trace in traces]


def skip_unsupported(reason: str | None) -> None:
    """Skip the test where the package lacks a method or a family; the reason names it."""
    if reason is not None:
        pytest.skip(reason)


@functools.cache
def network_of(folder: Path):
    """The network of a stored model, dLLM or verifier."""
    fields = {
        key: value for key, value in json.loads((folder / "config.json").read_text()).items() if key != "auto_map"
    }
    if family_target(fields) is not None:
        family = network_class(fields)
        network = family(family.config_class.from_dict(dict.fromkeys(IDS) | fields))
    else:
        network = AutoModelForCausalLM.from_config(AutoConfig.for_model(**fields))
    missing, unexpected = network.load_state_dict(weights(folder), strict=False)
    assert not unexpected
    assert all(name in ("lm_head.weight",) for name in missing)
    return network.eval()


@functools.cache
def adapter(folder: Path) -> ModelAdapter:
    """The model in a folder of the golden files."""
    network = network_of(folder)
    config = network.config
    spec = ModelSpec(
        name=folder.name,
        mask_id=MASK,
        eot_ids=(config.eos_token_id,),
        pad_id=config.pad_token_id or 0,
        vocab_size=config.vocab_size,
        max_length=config.max_position_embeddings,
        shifted_logits=network.shifted_logits,
        fingerprint="",
    )
    return ModelAdapter(network, spec)


def with_block(model: ModelAdapter, block: int) -> ModelAdapter:
    """The model with another length of its causal blocks."""
    return ModelAdapter(model.network, replace(model.spec, causal_block=block))


@functools.cache
def golden_filter(folder: Path) -> MLP:
    """The paper's network with the weights in a folder."""
    network = MLP(32, 32)
    network.load_state_dict(weights(folder))
    return network


def build(trace: Trace, stored: dict, run: dict) -> Method:
    """The components that repeat a run of a trace."""
    method, params = stored["method"], stored["params"]
    function, gen_length, block_length = params.get("fn", params.get("alg")), run["gen_length"], run.get("block_length")
    scheduler, stop = BlocksScheduler(block_length or gen_length), NoStop()
    cache = NoCache()
    if function.endswith("prefix_cache"):
        cache = PrefixCache()
    if function.endswith("dual_cache"):
        cache = CutBlindDual() if "accept_thres" in params else DualCache()
    if function in ("apd", "leftright"):
        policy = (
            LeftToRightPolicy(params["tokens_per_step"])
            if function == "leftright"
            else APDPolicy(Verifier(network_of(trace.folder("qwen2_verifier_tiny"))), params["apd_mixture_weight"])
        )
        return Method(
            policy,
            LookaheadScheduler(params.get("max_lookahead")),
            LookaheadCache(params.get("kv_window")),
            AnywhereStop(),
        )
    if "adablock" in function:
        scheduler = AdaBlockScheduler(params["delimiter_ids"], block_length, params["delimiter_threshold"])
    if "dsb" in function:
        mode, suffix = ("greedy" if params["max_block_length"] == -1 else "const"), params.get("suffix_window", 0)
        scheduler = LeakingDSB(block_length, mode, suffix)
        if "cache" in function:
            cache = LeakingDSBCache(block_length, params["prefix_window"], suffix)
    if "accept_thres" in params:
        policy = FilterPolicy(
            Predictor(
                "filter", golden_filter(trace.folder(params["filter"])), params["accept_thres"], Contract(0, 0, ())
            )
        )
        stop = EotpPaperStop() if "eot" in method else NoStop()
    elif "relaxed_threshold" in params:
        policy = LocalLeapPolicy(params["threshold"], params["relaxed_threshold"], params["radius"])
    elif params.get("factor") is not None:
        policy = LastRankFactor(params["factor"])
    elif params.get("threshold") is not None:
        policy = ThresholdPolicy(params["threshold"])
    else:
        policy = FixedPolicy(gen_length // int((params["steps"] + "/1").split("/")[1]))
        stop = EotpPaperStop(accepted=False) if "eot_id" in params else NoStop()
    return Method(policy, scheduler, cache, stop)


def owes(stored: dict) -> bool:
    """Whether a trace comes from NVlabs' first cached code, which makes forwards without a commit (ForwardsABlock)."""
    return stored["method"].startswith(("fastdllm_thr", "vanilla")) and str(stored["params"].get("fn")).endswith(
        "_cache"
    )


def decode_run(model: ModelAdapter, runs: list[dict], method: Method, observer=None):
    """The final state of runs of one geometry, decoded as a batch."""
    gen_length = runs[0]["gen_length"]
    state = DecodeState.start([run["prompt"] for run in runs], gen_length, model.spec)
    return decode_batch(model, state, method, observer=observer)


MODEL_PARAMETERS = [pytest.param(folder, id=name) for name, folder in MODELS]


def skip_unknown_network(folder: Path) -> None:
    """Skip what is neither a dLLM of the package nor the verifier, which transformers computes."""
    if json.loads((folder / "config.json").read_text()).get("model_type") != "qwen2":
        skip_unsupported(unsupported_family(folder))


@pytest.mark.parametrize("folder", MODEL_PARAMETERS)
def test_logits_equal_the_authors(folder):
    skip_unknown_network(folder)
    network = network_of(folder)
    stored = load_file(folder / "golden_logits.safetensors")
    cases = [key.removeprefix("ids_") for key in stored if key.startswith("ids_")]
    assert cases
    for case in cases:
        ids = stored[f"ids_{case}"].reshape(1, -1).long()
        place = torch.arange(ids.shape[1]) // stored.get(f"block_{case}", ids.shape[1])
        with torch.inference_mode():
            logits = network(ids, (place <= place[:, None])[None]).logits
        assert (logits - stored[f"logits_{case}"]).abs().max() < 1e-4, case


def partial_plan(first: int, stop: int, columns: int) -> ForwardPlan:
    """A plan of one row that recomputes the columns from `first` to `stop` and sees `columns` of them."""
    query = torch.arange(first, stop)[None]
    return ForwardPlan(torch.tensor([0]), query, query, None, query >= 0, torch.tensor([stop - first]), (0, columns))


@pytest.mark.parametrize("folder", MODEL_PARAMETERS)
def test_logits_over_kept_keys_and_values_equal_the_authors(folder):
    """A full pass, then columns of the changed sequence replaced in what it kept, step upon step."""
    skip_unknown_network(folder)
    stored = load_file(folder / "golden_logits.safetensors")
    if "cache_ids_full" not in stored:
        pytest.skip("no cached logits are stored for this model")
    model = adapter(folder)
    full, new = stored["cache_ids_full"].reshape(1, -1).long(), stored["cache_ids_new"].reshape(1, -1).long()
    columns = full.shape[1]

    def after_full_pass(*parts):
        store = model.new_store(1, columns)
        with torch.inference_mode():
            model.forward(full, partial_plan(0, columns, columns), store)
            for first, stop in parts:
                logits = model.score(model.forward(new, partial_plan(first, stop, columns), store))
        return logits

    for key, parts in {
        "prefix": [(12, 44)],
        "dual": [(12, 28)],
        "dsb1": [(8, 20)],
        "dsb2": [(8, 20), (16, 30)],
    }.items():
        assert (after_full_pass(*parts) - stored[f"cache_{key}_logits"]).abs().max() < 1e-4, key


@pytest.mark.parametrize("trace", by_name(DECODES))
def test_a_decode_equals_the_authors(trace):
    skip_unsupported(trace.unsupported())
    stored = trace.stored
    model = adapter(trace.model)
    assert stored["mask_id"] == model.spec.mask_id
    geometries: dict = {}
    for run in stored["runs"]:
        if run["robust"]:
            geometries.setdefault((run["gen_length"], run.get("block_length")), []).append(run)
    for geometry, runs in geometries.items():
        blocks = ForwardsABlock()
        state = decode_run(model, runs, build(trace, stored, runs[0]), blocks)
        for row, run in enumerate(runs):
            answer = run["output"][len(run["prompt"]) :]
            while answer[-1] == model.spec.mask_id:  # APD leaves the masks behind its end of text, here they are cut
                answer.pop()
            assert int(state.visible[row]) == len(answer), (geometry, row)
            assert state.canvas[row, : len(answer)].tolist() == answer, (geometry, row)
            assert int(state.forwards[row]) + blocks.owed(row) * owes(stored) == run["nfe"], (geometry, row)
            if (
                len(answer) == run["gen_length"] and "pos" in run["steps"][0]
            ):  # a cut drops commits from the stored steps
                ours = [
                    (state.committed_at[row] == step).nonzero()[:, 0] + len(run["prompt"])
                    for step in range(int(state.step[row]))
                ]
                theirs = [step["pos"] for step in run["steps"] if step["pos"]]
                assert [positions.tolist() for positions in ours if len(positions)] == theirs, (geometry, row)


class OracleLabels(Observer):
    """The labels of every step, as the authors record them: the window's confidences and which proposals are right."""

    scores_committed = True

    def __init__(self):
        self.steps = []

    def observe(self, step):
        self.steps.append((step.state, step.prediction))


@pytest.mark.parametrize("trace", by_name(LABELS))
def test_the_oracle_records_what_the_authors_record(trace):
    """The authors' loop calls the model a second time before it notices that nothing changes.

    The fill of this package comes at once, one forward earlier.
    """
    skip_unsupported(trace.unsupported())
    model = adapter(trace.model)
    for run in trace.stored["runs"]:
        if not run["robust"]:
            continue
        length, start = run["block_length"], len(run["prompt"])
        reference = torch.tensor([run["correct_answer"][-run["gen_length"] :]])
        watcher, blocks = OracleLabels(), BlocksScheduler(length)
        assert decode_run(model, [run], Method(FixedPolicy(), blocks, NoCache(), NoStop())).canvas.equal(reference)
        state = decode_run(model, [run], Method(OraclePolicy(reference), blocks, NoCache(), NoStop()), watcher)
        assert state.tokens[0].tolist() == run["output"], start
        ours = []
        for before, prediction in watcher.steps:
            block = slice(int(before.window.start[0]), int(before.window.start[0]) + length)
            ours.append(
                (prediction.confidence[0, block], (prediction.tokens[0, block] == reference[0, block]).int().tolist())
            )
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
