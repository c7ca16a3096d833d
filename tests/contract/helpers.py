"""What the contract tests decode with: every policy and stop rule that exists, by a name for the test's id."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from learn2pd.caches.dsb import DSBCache
from learn2pd.caches.fast_dllm import DualCache, PrefixCache
from learn2pd.caches.lookahead import LookaheadCache
from learn2pd.caches.none import NoCache
from learn2pd.decoding import answer_lengths
from learn2pd.loop.loop import decode_batch
from learn2pd.method import Method
from learn2pd.policies.apd import APDPolicy, LeftToRightPolicy
from learn2pd.policies.apple import ApplePolicy, ConfidenceTransformer
from learn2pd.policies.credit import CreditPolicy
from learn2pd.policies.dawn import DawnPolicy
from learn2pd.policies.dparallel import DParallelPolicy
from learn2pd.policies.edit import EditPolicy
from learn2pd.policies.entropy_bound import EntropyBoundPolicy
from learn2pd.policies.factor import FactorPolicy
from learn2pd.policies.fixed import FixedPolicy
from learn2pd.policies.hierarchical import HierarchicalPolicy
from learn2pd.policies.klass import KlassPolicy
from learn2pd.policies.localleap import LocalLeapPolicy
from learn2pd.policies.mean_field import MeanFieldPolicy
from learn2pd.policies.oracle import OraclePolicy
from learn2pd.policies.prophet import ProphetPolicy
from learn2pd.policies.remask import RemaskPolicy
from learn2pd.policies.slowfast import SlowFastPolicy
from learn2pd.policies.threshold import ThresholdPolicy
from learn2pd.policies.verifier import Verifier
from learn2pd.policies.wino import WinoPolicy
from learn2pd.predictors.boundary import LearnedAdaBlockScheduler
from learn2pd.predictors.end_of_text import LearnedStop
from learn2pd.predictors.filter import FilterPolicy
from learn2pd.predictors.keep import CHANNELS, KeepPolicy
from learn2pd.predictors.networks import MLP, Conv, PredictorNetwork, Transformer
from learn2pd.predictors.saving import Contract, Predictor
from learn2pd.schedulers.adablock import AdaBlockScheduler
from learn2pd.schedulers.blocks import BlocksScheduler
from learn2pd.schedulers.dsb import DSBScheduler
from learn2pd.schedulers.lookahead import LookaheadScheduler
from learn2pd.stops.eot import EotStop
from learn2pd.stops.eotp import EotpPaperStop
from learn2pd.stops.none import NoStop
from learn2pd.types import DecodeState, Sampling

GEN, BLOCK = 20, 8  # not a multiple: the last block is shorter
MODELS = ["tiny_model", "tiny_model_grouped", "tiny_dream"]  # fixtures
DELIMITERS = tuple(range(0, 400, 7))
SCHEDULERS = {
    "blocks": BlocksScheduler(BLOCK),
    "adablock": AdaBlockScheduler(DELIMITERS, BLOCK, 0.2),
    "dsb_const": DSBScheduler(BLOCK, "const"),
    "dsb_greedy": DSBScheduler(BLOCK, "greedy"),
    "lookahead": LookaheadScheduler(BLOCK),
}
CACHES = {
    "none": NoCache(),
    "prefix": PrefixCache(),
    "dual": DualCache(),
    "dsb": DSBCache(BLOCK, prefix_window=3, suffix_window=2),
    "lookahead": LookaheadCache(4),
}
STOPS = {"none": NoStop(), "eot0": EotStop(0.0), "eot0.5": EotStop(0.5), "paper": EotpPaperStop()}


def every_second(values: Iterable[Any]) -> list[Any]:
    """The values as parameters of a test, of which the suite runs every second one and `-m thorough` the others."""
    return [pytest.param(value, marks=pytest.mark.thorough if n % 2 else []) for n, value in enumerate(values)]


def covering(cases: Sequence[Any], meetings_of: Callable[[Any], set[Hashable]]) -> list[Any]:
    """A small part of the cases in which everything meets that meets in them: always the one with most that is new."""
    meetings = {case: meetings_of(case) for case in cases}
    missing = set().union(*meetings.values())
    part = []
    while missing:
        part.append(max(cases, key=lambda case: len(meetings[case] & missing)))
        missing -= meetings[part[-1]]
    return part


def covering_part(cases: Sequence[tuple[str, str, str]]) -> list[Any]:
    """Combinations as parameters of a test.

    The suite runs every policy of them and every scheduler with every cache, and `-m thorough` runs the others.
    """
    part = covering(cases, lambda case: {case[0], case[1:]})
    return [pytest.param(*case, marks=[] if case in part else pytest.mark.thorough) for case in cases]


@functools.cache
def random_predictor(kind: str = "filter", name: str = "mlp", seed: int = 0) -> Predictor:
    """An untrained network, spread around one half, so that some positions are accepted and some are not."""
    torch.manual_seed(seed)
    name = "keep" if kind == "keep" else name
    networks: dict[str, PredictorNetwork] = {
        "mlp": MLP(BLOCK, 16),
        "conv": Conv(hidden=8),
        "transformer": Transformer(hidden=8),
        "keep": Transformer(CHANNELS, hidden=8),  # the last one, so that the weights of the others stay
    }
    network = networks[name]
    with torch.no_grad():
        (network.linear2 if name == "mlp" else network.leave).weight *= 6
    return Predictor(kind, network, 0.5, Contract(mask_id=1, vocab_size=400, eot_ids=(0,), delimiter_ids=DELIMITERS))


STOPS["learned"] = LearnedStop(random_predictor("end_of_text", "conv"))
SCHEDULERS["adablock_learned"] = LearnedAdaBlockScheduler(random_predictor("boundary", "conv"), BLOCK)


def policies(gen_length: int = GEN) -> dict:
    """Name -> policy, all but the oracle, which needs a reference."""
    return {
        "fixed": FixedPolicy(),
        "fixed_half": FixedPolicy(gen_length // 2),
        **{f"threshold{value}": ThresholdPolicy(value) for value in (0.3, 0.6, 0.9)},
        "entropy": FixedPolicy(gen_length // 2, rank="entropy"),
        "margin": FixedPolicy(gen_length // 2, rank="margin"),
        "factor": FactorPolicy(1.5),
        "localleap": LocalLeapPolicy(0.7, 0.4, 2),
        "left_to_right": LeftToRightPolicy(3),
        **rules(),
        "apd": APDPolicy(tiny_verifier(), 0.7),
        "filter": FilterPolicy(random_predictor()),
        "filter_conv": FilterPolicy(random_predictor(name="conv")),
        "filter_transformer": FilterPolicy(random_predictor(name="transformer")),
        # with this seed many tokens are taken back
        "keep": KeepPolicy(random_predictor(name="conv", seed=3), random_predictor("keep")),
        "filter_back": FilterPolicy(random_predictor(name="conv", seed=3), take_back=0.5),
    }


def rules() -> dict:
    """The later rules by name, with options at which they commit and take back some positions and leave others."""
    return {
        "entropy_bound": EntropyBoundPolicy(1.5),
        "dparallel": DParallelPolicy(1.2),
        "klass": KlassPolicy(0.3, 1.0),
        "hierarchical": HierarchicalPolicy(0.7, 0.3),
        "hierarchical_remask": HierarchicalPolicy(0.7, 0.3, 0.4),
        "credit": CreditPolicy(0.6, 1.5, 1.0, 0.5),
        "slowfast": SlowFastPolicy(0.6, 0.3, 3),
        "prophet": ProphetPolicy(4.0, 3.0, 1.0, 0.5),
        "dawn": DawnPolicy(0.7, 0.5, 0.3, 0.1, 0.05),
        "mean_field": MeanFieldPolicy(0.5, 5.0, 4, 8),
        "wino": WinoPolicy(0.3, 0.5),
        "edit": EditPolicy(0.5, 0.4, 3),
        "remask": RemaskPolicy(0.5, 0.3, 2),
        "apple": ApplePolicy(random_apple()),
        "apple_window": ApplePolicy(random_apple(), full_context=False, sample=False),
    }


@functools.cache
def random_apple() -> ConfidenceTransformer:
    """An untrained network of Apple's kind, whose logits lie on both sides of 0."""
    torch.manual_seed(2)
    network = ConfidenceTransformer("nowhere", 16, 24, 2, 8)
    with torch.no_grad():
        network.output_proj.weight *= 8
    return network.eval().requires_grad_(False)


@functools.cache
def tiny_verifier(vocab_size: int = 400) -> Verifier:
    """A random autoregressive model with the vocabulary of the tiny dLLMs."""
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.3,
    )
    return Verifier(LlamaForCausalLM(config))


class Reviser(ThresholdPolicy):
    """A threshold; and a committed token whose position now proposes another one is taken back or overwritten."""

    name = "reviser"
    scores_committed = True

    def __init__(self, threshold: float, revisions: int, edits: bool) -> None:
        super().__init__(threshold)
        self.revisions = revisions
        self.edits = edits

    def select(self, prediction, eligible, state, memory):
        commit = super().select(prediction, eligible, state, memory)
        inside = state.window.mask(state.gen_length) & (state.open & (state.step < self.revisions))[:, None]
        change = inside & state.decided & ~state.given & prediction.valid & (prediction.tokens != state.canvas)
        return replace(commit, mask=commit.mask | change) if self.edits else replace(commit, revoke=change)


def fits(policy: str, scheduler: str, cache: str) -> bool:
    """Whether the package allows a combination. It refuses the others, and a test makes sure of that."""
    slides = SCHEDULERS[scheduler].slides
    if slides and not CACHES[cache].slides:
        return False
    if policy == "dawn" and cache != "none":
        return False
    return policy != "filter" or scheduler == "blocks"


def tried(policy: str, scheduler: str) -> bool:
    """Whether a pair is worth its time: to the loop all networks are alike, and learned blocks are like AdaBlock's."""
    if policy in rules() or policy in ("filter_back", "keep"):
        return scheduler in ("blocks", "dsb_greedy") or (policy == "dawn" and scheduler != "adablock_learned")
    return policy != "filter_conv" and (
        scheduler != "adablock_learned" or policy in ("threshold0.6", "filter_transformer", "oracle")
    )


COMBINATIONS = [
    (policy, scheduler, cache)
    for policy in [*policies(), "oracle"]
    for scheduler in SCHEDULERS
    for cache in CACHES
    if fits(policy, scheduler, cache) and tried(policy, scheduler)
]


def run(
    model,
    prompts,
    policy,
    stop=None,
    scheduler=None,
    cache=None,
    gen_length=GEN,
    block_length=BLOCK,
    temperature=0.0,
    seed=0,
    index=None,
    observer=None,
    given=None,
    allowed=None,
):
    """The final state of a run. `index` holds the prompts' numbers, which decide their seeds and reference answers."""
    index = list(range(len(prompts))) if index is None else index
    seeds = [seed * 1000 + number for number in index]
    state = DecodeState.start(prompts, gen_length, model.spec, index=index, seed=seeds, given=given, allowed=allowed)
    method = Method(policy, scheduler or BlocksScheduler(block_length), cache or NoCache(), stop or NoStop())
    method.check(model.spec)
    return decode_batch(model.adapter, state, method, sampling=Sampling(temperature), observer=observer)


def outcome(state, model) -> dict[str, list]:
    """What must not depend on a row's neighbours in the batch, by name; each list has one entry a row."""
    return {
        "tokens": state.canvas.tolist(),
        "forwards": state.forwards.tolist(),
        "committed_at": state.committed_at.tolist(),
        "lengths": answer_lengths(state.canvas, model.spec.eot_ids).tolist(),
        "end": state.end.tolist(),
        "auxiliary_forwards": state.auxiliary_forwards.tolist(),
        "columns": state.columns.tolist(),
        "revoked": state.revoked.tolist(),
        "edited": state.edited.tolist(),
        "flip_flops": state.flip_flops.tolist(),
        "step": state.step.tolist(),
    }


def oracle(model, prompts, gen_length: int = GEN, block_length: int = BLOCK) -> OraclePolicy:
    """The oracle that knows what the model decodes with one token a step."""
    whole = run(model, prompts, FixedPolicy(), gen_length=gen_length, block_length=block_length)
    return OraclePolicy(whole.canvas.clone())
