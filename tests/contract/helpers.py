"""What the contract tests decode with: every policy and stop rule that exists, by a name for the test's id."""

from __future__ import annotations

import functools

import torch

from learn2pd.decoding.api import answer_lengths
from learn2pd.decoding.caches import NoCache
from learn2pd.decoding.loop import decode_batch
from learn2pd.decoding.schedulers import BlocksScheduler
from learn2pd.decoding.stops import EotpPaperStop, EotStop, NoStop
from learn2pd.policies.filter import FilterNetwork, FilterPolicy
from learn2pd.policies.fixed import FixedPolicy
from learn2pd.policies.oracle import OraclePolicy
from learn2pd.policies.threshold import ThresholdPolicy
from learn2pd.types import DecodeState

GEN, BLOCK = 20, 8  # not a multiple: the last block is shorter
STOPS = {"none": NoStop(), "eot0": EotStop(0.0), "eot0.5": EotStop(0.5), "paper": EotpPaperStop()}


@functools.cache
def random_filter(width: int = BLOCK, seed: int = 0) -> FilterNetwork:
    torch.manual_seed(seed)
    network = FilterNetwork(width, 16)
    with torch.no_grad():
        network.linear2.weight *= 6  # spread around one half, so that some positions are accepted and some are not
    return network


def policies(gen_length: int = GEN) -> dict:
    """Name -> policy, all but the oracle, which needs a reference."""
    return {
        "fixed": FixedPolicy(),
        "fixed_half": FixedPolicy(gen_length // 2),
        **{f"threshold{value}": ThresholdPolicy(value) for value in (0.3, 0.6, 0.9)},
        "filter": FilterPolicy(random_filter(), 0.5),
    }


def run(model, prompts, policy, stop=None, gen_length=GEN, block_length=BLOCK, temperature=0.0, seed=0, index=None, recorder=None):
    """The final state. `index` are the prompts' numbers in the caller's list, which decide generators and reference answers."""
    index = list(range(len(prompts))) if index is None else index
    state = DecodeState.start(prompts, index, gen_length, model.spec.mask_id, model.spec.pad_id, model.adapter.device)
    state, _ = decode_batch(
        model.adapter, state, scheduler=BlocksScheduler(block_length), policy=policy, cache=NoCache(), stop=stop or NoStop(),
        temperature=temperature, generators=[torch.Generator().manual_seed(seed * 1000 + number) for number in index], recorder=recorder,
    )  # fmt: skip
    return state


def outcome(state, model) -> dict[str, list]:
    """What of a run must not depend on its neighbours, a list entry a row."""
    return {
        "tokens": state.canvas.tolist(),
        "forwards": state.forwards.tolist(),
        "committed_at": state.committed_at.tolist(),
        "lengths": answer_lengths(state.canvas, model.spec.eot_ids).tolist(),
        "end": state.end.tolist(),
    }


def oracle(model, prompts, gen_length: int = GEN, block_length: int = BLOCK) -> OraclePolicy:
    return OraclePolicy(run(model, prompts, FixedPolicy(), gen_length=gen_length, block_length=block_length).canvas.clone())
