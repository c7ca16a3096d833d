"""The authors' implementations of the later rules, on tiny models: the same tokens, changes and forwards.

`test_golden.py` says where the traces come from. Here every step of a trace is compared: what it commits, overwrites
and takes back.
"""

from __future__ import annotations

import functools
import json
import os
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from learn2pd.caches.fast_dllm import DualCache, PrefixCache
from learn2pd.caches.none import NoCache
from learn2pd.loop.loop import decode_batch
from learn2pd.loop.observing import Observer
from learn2pd.loop.proposals import propose
from learn2pd.method import Method
from learn2pd.models.adapter import ModelAdapter
from learn2pd.policies.apple import SIZES, ApplePolicy, ConfidenceTransformer, load_apple
from learn2pd.policies.credit import CreditPolicy
from learn2pd.policies.dparallel import DParallelPolicy
from learn2pd.policies.edit import EditPolicy
from learn2pd.policies.entropy_bound import EntropyBoundPolicy
from learn2pd.policies.fixed import FixedPolicy
from learn2pd.policies.hierarchical import HierarchicalPolicy
from learn2pd.policies.klass import KlassPolicy
from learn2pd.policies.prophet import ProphetPolicy
from learn2pd.policies.threshold import ThresholdPolicy
from learn2pd.policies.wino import WinoPolicy
from learn2pd.schedulers.blocks import BlocksScheduler
from learn2pd.stops.none import NoStop
from learn2pd.types import GREEDY, DecodeState, Draw, ModelSpec, Prediction
from tests.parity.quirks import (
    AuthorsDawn,
    BlockEndStop,
    MostUncertainFirst,
    NotingSlowFast,
    ShadowBlockAdapter,
    ShortForwards,
)
from tests.parity.test_golden import adapter, by_name, skip_unsupported, with_block
from tests.parity.traces import VARIABLE, Trace, all_roots, collect, weights

ROOTS = all_roots(os.environ.get(VARIABLE))
TRACES = [trace for trace in collect(ROOTS) if trace.rule is not None]
IDLE = {"dinfer", "dparallel", "slowfast"}  # these make forwards without a commit in a block that is finished already
CACHES = {None: NoCache(), "prefix": PrefixCache(), "dual": DualCache()}
RANKS = {"topk_margin": "margin", "entropy": "entropy"}


@dataclass
class Changes(Observer):
    """What each step of each row changed: the positions that were committed, overwritten and taken back."""

    rows: list[list[tuple[list[int], list[int], list[int]]]] = field(default_factory=list)

    def observe(self, step) -> None:
        self.rows = self.rows or [[] for _ in step.state.pad]
        masked = step.state.masked
        revoked = torch.zeros_like(masked) if step.commit.revoke is None else step.commit.revoke
        parts = (step.commit.mask & masked, step.commit.mask & ~masked, revoked)
        for row, is_open in enumerate(step.state.open.tolist()):
            if is_open:
                self.rows[row].append(tuple(part[row].nonzero()[:, 0].tolist() for part in parts))


def changes_of(run: dict) -> list[tuple[list[int], list[int], list[int]]]:
    """What each step of a stored run changed, in positions of the canvas."""
    start = len(run["prompt"])
    kinds = [
        (step["pos"], step.get("edited", {}).get("pos", []), step.get("revoked", {}).get("pos", []))
        for step in run["steps"]
    ]
    return [tuple(sorted(position - start for position in part) for part in step) for step in kinds]


@functools.cache
def apple_network(folder: Path) -> ConfidenceTransformer:
    """Apple's network in a folder of the golden files, which may be compressed."""
    fields = json.loads((folder / "config.json").read_text())
    network = ConfidenceTransformer(str(folder), **{name: fields[name] for name in SIZES})
    stored = {name: tensor for name, tensor in weights(folder).items() if not name.endswith("inv_freq")}
    network.load_state_dict(stored)
    return network.eval()


def build(trace: Trace, params: dict, run: dict, model: ModelAdapter) -> Method:
    """The components that repeat a run of a trace."""
    scheduler = BlocksScheduler(run["block_length"] or run["gen_length"])
    steps = run["gen_length"] // int((str(params.get("steps", "")) + "/1").split("/")[1])
    cache = CACHES[params.get("cache")]
    stop = NoStop()
    rule = trace.rule
    if rule == "apple" and params["remasking"] == "fastdllm":
        policy = ThresholdPolicy(params["thres"])
    elif rule == "apple":
        network = apple_network(trace.folder("apple_policy_tiny"))
        policy = ApplePolicy(network, params["full_context"], params["temperature_policy"], sample=False)
    elif rule in ("credit", "dinfer", "hierarchy"):
        stop = BlockEndStop()
        threshold = params["threshold"]
        arguments = params.get("decoder_args", {})
        if rule == "credit":
            policy = CreditPolicy(
                threshold, *(arguments[name] for name in ("credit_alpha", "boost_gamma", "decay_beta"))
            )
        elif rule == "hierarchy":
            policy = HierarchicalPolicy(threshold, arguments["low_threshold"])
        else:
            policy = ThresholdPolicy(threshold)
    elif rule == "dawn":
        policy = AuthorsDawn(
            model,
            induced_threshold=params["tau_induce"],
            low_threshold=params["tau_low"],
            sink=params["tau_sink"],
            edge=params["tau_edge"],
        )
    elif rule == "dparallel":
        policy = DParallelPolicy(params["threshold"])
    elif rule == "eb":
        policy = EntropyBoundPolicy(params["gamma"])
    elif rule == "klass" and params["alg"] == "entropy":
        policy = MostUncertainFirst(steps, "entropy")
    elif rule == "klass" and params["alg"] != "klass":
        policy = FixedPolicy(steps, RANKS[params["alg"]])
    elif rule == "klass":
        strategy = params["unmask_strategy"]
        policy = KlassPolicy(
            params["conf_threshold"], params["kl_threshold"], params["kl_history_length"], strategy, steps
        )
    elif rule == "llada21":
        scheduler = BlocksScheduler(run["block_length"], "grid")
        stop = BlockEndStop() if params.get("eos_early_stop") else NoStop()
        policy = EditPolicy(
            params["threshold"],
            params["editing_threshold"],
            params.get("max_post_steps", 16),
            params.get("num_to_transfer", 1),
        )
    elif rule == "prophet":
        policy = ProphetPolicy(
            *(params["thresholds"][name] for name in ("early", "mid", "late")), params["answer_offset"], steps
        )
    elif rule == "slowfast":
        policy = NotingSlowFast(
            params["high_confidence_threshold"],
            params["cycle_len_confidence_threshold"],
            params["k_exploration_steps"],
            params["cycle_length_stability_window"],
            params["cycle_length_stability_std_dev_threshold"],
        )
        cache = ShortForwards(policy)
    else:
        policy = WinoPolicy(params["threshold"], params["threshold_back"])
    return Method(policy, scheduler, cache, stop)


def flaw_of(trace: Trace, run: dict) -> str | None:
    """The bug of the authors' code that a run shows and that no component repeats, or None."""
    if run.get("still_masked"):
        return "it leaves masks in the answer"
    if trace.rule == "klass" and any("edited" in step for step in run["steps"]):
        return "its quota overwrites decoded tokens"
    if trace.rule == "klass" and any(
        len({position // run["block_length"] for position in step[0]}) > 1 for step in changes_of(run)
    ):
        return "its quota commits outside the block"
    if trace.rule == "klass" and trace.stored["mask_id"] in run["output"][len(run["prompt"]) :]:
        return "it runs out of steps"
    return None


def canvas_length(trace: Trace, run: dict) -> int:
    """The canvas of a run; that of LLaDA2 ends on a multiple of the block."""
    if trace.rule != "llada21":
        return run["gen_length"]
    block, prompt = run["block_length"], len(run["prompt"])
    return -(-(prompt + run["gen_length"]) // block) * block - prompt


def groups_of(trace: Trace) -> list[list[dict]]:
    """The robust runs without a flaw, those of one geometry together; WINO's adapter takes one prompt at a time."""
    groups: dict = {}
    for run in trace.stored["runs"]:
        if run["robust"] and flaw_of(trace, run) is None:
            key = (canvas_length(trace, run), run["block_length"], len(run["prompt"]) if trace.rule == "wino" else 0)
            groups.setdefault(key, []).append(run)
    return list(groups.values())


@pytest.mark.parametrize("trace", by_name(TRACES))
def test_a_rule_decodes_as_the_authors(trace):
    skip_unsupported(trace.unsupported())
    stored = trace.stored
    plain = adapter(trace.model)
    groups = groups_of(trace)
    if not groups:
        pytest.skip(f"{len(stored['runs'])} runs: " + str(flaw_of(trace, stored["runs"][0])))
    for runs in groups:
        model = with_block(plain, runs[0]["block_length"]) if trace.block_causal else plain
        if trace.rule == "wino":
            model = ShadowBlockAdapter(plain, runs[0]["block_length"], len(runs[0]["prompt"]))
        method = build(trace, stored["params"], runs[0], plain)
        changes = Changes()
        prompts = [run["prompt"] for run in runs]
        state = DecodeState.start(prompts, canvas_length(trace, runs[0]), model.spec)
        state = decode_batch(model, state, method, observer=changes)
        for row, run in enumerate(runs):
            compare(trace, run, state, row, changes.rows[row])


def compare(trace: Trace, run: dict, state: DecodeState, row: int, ours: list) -> None:
    """Compare a run with a row of ours."""
    label = (run["gen_length"], run["block_length"], run["prompt"][:3])
    theirs = changes_of(run)
    if run.get("prompt_overwritten"):  # equal until the first token of the prompt is overwritten
        whole = next(number for number, step in enumerate(theirs) if any(part and part[0] < 0 for part in step))
        assert ours[:whole] == theirs[:whole], label
        return
    assert run["nfe"] == len(theirs)
    if trace.rule in IDLE:
        theirs = [step for step in theirs if any(step)]
    answer = run["output"][len(run["prompt"]) :] + run.get("canvas_tail", [])
    while answer and answer[-1] == trace.stored["mask_id"]:  # the masks of later blocks
        answer.pop()
    if trace.stored["params"].get("early_stop"):  # theirs fills what is left in its last step, here it is closed
        theirs[-1] = tuple([place for place in part if place < int(state.visible[row])] for part in theirs[-1])
    else:
        assert int(state.visible[row]) == len(answer), label
    assert ours == theirs, label
    assert state.canvas[row, : len(answer)].tolist() == answer, label
    assert int(state.forwards[row]) == len(theirs), label
    assert int(state.revoked[row]) == sum(len(step[2]) for step in theirs)
    assert int(state.edited[row]) == sum(len(step[1]) for step in theirs)


def stored_cases(name: str) -> dict[str, torch.Tensor]:
    """The tensors of a file in the first root that has it; the test is skipped where none has."""
    for root in ROOTS:
        if (root / name).is_file():
            return load_file(root / name)
    pytest.skip(f"no root has {name}")


def cases_in(stored: dict[str, torch.Tensor], first: str) -> list[str]:
    """The endings of the names that begin with `first`."""
    return [name.removeprefix(first) for name in stored if name.startswith(first)]


def of_block(
    logits: torch.Tensor, tokens: torch.Tensor, masked: torch.Tensor, mask_id: int
) -> tuple[Prediction, DecodeState]:
    """The proposals at every position of a block, and its state, in which no token was given."""
    spec = ModelSpec("hand-made", mask_id, (), 0, logits.shape[-1], len(tokens), False, "")
    wanted = frozenset({"entropy"})
    tokens_proposed, confidence, extras = propose(logits.float(), Draw(GREEDY), wanted)
    state = DecodeState.of_block(tokens[None], masked[None], spec)
    state = replace(state, given=torch.zeros_like(state.masked))
    prediction = Prediction(
        tokens_proposed[None],
        confidence[None],
        torch.ones_like(masked)[None],
        {name: values[None] for name, values in extras.items()},
    )
    return prediction, state


def test_apples_network_gives_the_authors_logits():
    stored = stored_cases("apple_policy_tiny/golden_logits.safetensors")
    folders = [root / "apple_policy_tiny" for root in ROOTS if (root / "apple_policy_tiny/model.safetensors").is_file()]
    network = load_apple(str(folders[0])).network
    for case in cases_in(stored, "out_"):
        masked = stored[f"mask_{case}"].bool()
        confidence, time = stored[f"confidence_{case}"][..., 0], stored[f"time_{case}"][:, 0]
        logits = network(masked, confidence, time, torch.ones_like(masked))
        assert (logits - stored[f"out_{case}"]).abs().max() < 1e-4, case


def test_the_entropy_bound_accepts_what_transformers_accepts():
    stored = stored_cases("rule_cases/entropy_bound.safetensors")
    for case in cases_in(stored, "accepted_"):
        logits = stored[f"logits_{case}"]
        for row, accepted in enumerate(stored[f"accepted_{case}"].reshape(-1, logits.shape[-2]).bool()):
            masked = torch.ones_like(accepted)
            block = logits.reshape(-1, *logits.shape[-2:])[row]
            prediction, state = of_block(block, masked.long(), masked, mask_id=1)
            policy = EntropyBoundPolicy(float(stored[f"bound_{case}"]))
            assert policy.select(prediction, masked[None], state, None).mask[0].equal(accepted), (case, row)


def test_hierarchical_decoding_with_remasking_changes_what_dinfer_changes():
    stored = stored_cases("rule_cases/hierarchy_remask.safetensors")
    mask_id = 159
    for case in cases_in(stored, "after_"):
        tokens = stored[f"x_{case}"].flatten().long()
        masked = tokens == mask_id
        prediction, state = of_block(stored[f"logits_{case}"].flatten(0, 1), tokens, masked, mask_id)
        names = ("threshold", "low_threshold", "remask_threshold")
        policy = HierarchicalPolicy(*(float(stored[f"{name}_{case}"]) for name in names))
        commit = policy.select(prediction, masked[None], state, None)
        after = state.commit(commit, prediction.tokens).canvas[0]
        assert after.equal(stored[f"after_{case}"].flatten().long()), case
