"""The authors' decoding of block-causal models: the same logits over kept blocks, the same tokens, the same forwards.

The authors forward the prompt before the first step (prefill), and every finished block once more (store). Here the
first forward of a block does both, so that our forwards are theirs in which a token was committed.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from safetensors.torch import load_file

from learn2pd.caches.causal_block import CausalBlockCache
from learn2pd.caches.none import NoCache
from learn2pd.caches.sub_block import SubBlockCache
from learn2pd.method import Method
from learn2pd.policies.apd import LeftToRightPolicy
from learn2pd.policies.low_confidence import LowConfidencePolicy
from learn2pd.schedulers.blocks import BlocksScheduler
from learn2pd.schedulers.sub_blocks import SubBlocksScheduler
from learn2pd.stops.eot_filled import EotFilledStop
from learn2pd.stops.none import NoStop
from tests.parity.quirks import CheckedAtEot, differs_by_a_bug
from tests.parity.test_golden import (
    MODEL_PARAMETERS,
    TRACES,
    adapter,
    by_name,
    decode_run,
    partial_plan,
    skip_unknown_network,
    skip_unsupported,
    with_block,
)
from tests.parity.traces import Trace

BLOCK_TRACES = [trace for trace in TRACES if trace.block_causal and trace.rule is None]


@pytest.mark.parametrize("folder", MODEL_PARAMETERS)
def test_logits_over_kept_blocks_equal_the_authors(folder):
    """A prompt is kept, then a block of masks, the same block filled, and the block behind it."""
    skip_unknown_network(folder)
    stored = load_file(folder / "golden_logits.safetensors")
    blocks = [int(key.split("_")[1][1:]) for key in stored if key.endswith("ids_prefill")]
    if not blocks:
        pytest.skip("no logits over kept blocks are stored for this model")
    for block in blocks:
        model = with_block(adapter(folder), block)
        got = {name: stored[f"cache_b{block}_{name}"] for name in ("ids_prefill", "ids_noisy", "ids_stored")}
        prompt = got["ids_prefill"].shape[1]
        store = model.new_store(1, prompt + 2 * block)
        masks = torch.full((1, block), model.spec.mask_id)

        def logits(tokens, first, stop, model=model, store=store, prompt=prompt, block=block):
            seen = prompt + -(-(stop - prompt) // block) * block
            with torch.inference_mode():
                return model.score(model.forward(tokens, partial_plan(first, stop, seen), store))

        noisy = torch.cat((got["ids_prefill"], got["ids_noisy"], masks), dim=1).long()
        stored_block = torch.cat((got["ids_prefill"], got["ids_stored"], masks), dim=1).long()
        results = {"prefill_last": logits(noisy, 0, prompt)[:, -1:], "noisy": logits(noisy, prompt, prompt + block)}
        if f"cache_b{block}_ids_sub" in stored:
            half = prompt + block // 2
            sub = torch.cat((noisy[:, :half], stored[f"cache_b{block}_ids_sub"].long(), masks), dim=1)
            results["sub"] = logits(sub, half, prompt + block)
        logits(stored_block, prompt, prompt + block)
        results["next"] = logits(stored_block, prompt + block, prompt + 2 * block)
        for name, values in results.items():
            if f"cache_b{block}_logits_{name}" in stored:
                assert (values - stored[f"cache_b{block}_logits_{name}"]).abs().max() < 1e-4, (block, name)


def methods(stored: dict, run: dict) -> Iterator[Method]:
    """The methods that must repeat a run, each with the caches of its tokens."""
    params, block = stored["params"], run["block_length"]
    function, threshold = params["fn"], params.get("threshold", params.get("confidence_threshold", 1.0))
    if "small_block_size" in params:
        sub = run["small_block_size"]
        exact = not params["use_block_cache"]
        for cache in (CausalBlockCache(), NoCache()) if exact else (SubBlockCache(sub),):
            stop = EotFilledStop(False) if stored["method"].count("noeos") == 0 else NoStop()
            yield Method(LowConfidencePolicy(threshold), SubBlocksScheduler(block, sub), cache, stop)
        return
    steps = params.get("denoising_steps", params.get("steps"))
    quota = int((steps + "/1").split("/")[1])
    strategy = params.get("remasking_strategy", "")
    if "static" in strategy:
        threshold = 1.0
    policy = LeftToRightPolicy(quota) if strategy == "sequential" else LowConfidencePolicy(threshold, quota)
    stop = CheckedAtEot() if params.get("eos_early_stop") else EotFilledStop()
    if function != "llada2" and not params["stopping_criteria_idx"]:
        stop = NoStop()
    for cache in (CausalBlockCache(), NoCache()):
        yield Method(policy, BlocksScheduler(block, "grid"), cache, stop)


def canvas_length(stored: dict, run: dict) -> int:
    """The tokens of the canvas on which the authors decode the run."""
    prompt, block = len(run["prompt"]), run["block_length"]
    if "small_block_size" in stored["params"]:  # and the next token behind the last block
        return (prompt // block + run["gen_length"] // block) * block + 1 - prompt
    return -(-(prompt + run["gen_length"]) // block) * block - prompt


def answer(tokens: list[int], ends: tuple[int, ...]) -> list[int]:
    """The tokens up to the first end-of-text, with it."""
    first = next((place for place, token in enumerate(tokens) if token in ends), len(tokens))
    return tokens[: first + 1]


@pytest.mark.parametrize("trace", by_name(BLOCK_TRACES))
def test_a_block_causal_decode_equals_the_authors(trace: Trace):
    skip_unsupported(trace.unsupported())
    stored = trace.stored
    repeated = 0
    for number, run in enumerate(stored["runs"]):
        if not run["robust"] or differs_by_a_bug(stored, run):
            continue
        repeated += 1
        model = with_block(adapter(trace.model), run["block_length"])
        width = canvas_length(stored, run)
        ends = () if "noeos" in stored["method"] else model.spec.eot_ids
        theirs = answer(run["output"][len(run["prompt"]) :], ends)
        while theirs and theirs[-1] == model.spec.mask_id:
            theirs.pop()  # blocks behind the end stay masks
        committing = sum(bool(step["pos"]) for step in run["steps"])
        for method in methods(stored, run):
            method.check(model.spec)
            state = decode_run(model, [run | {"gen_length": width}], method)
            ours = answer(state.canvas[0].tolist(), ends)
            assert ours[: len(theirs)] == theirs, (number, method)
            assert len(ours) >= len(theirs), (number, method)
            if stored["params"]["fn"] != "batch_sample" or ours[-1] not in ends:  # which fills the block behind an end
                assert int(state.forwards[0]) == committing, (number, method)
    assert repeated
