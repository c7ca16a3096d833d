"""The logits of a step are in memory a few positions at a time, and the answers do not depend on how many."""

from __future__ import annotations

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, GemmaConfig, GemmaForCausalLM, LlamaConfig, LlamaForCausalLM

from learn2pd import Method, NoStop
from learn2pd.loop import step
from learn2pd.loop.loop import Loop
from learn2pd.models.adapter import ModelAdapter
from learn2pd.models.llada import LLaDAConfig, LLaDAModelLM
from learn2pd.models.sizes import LiveBytes
from learn2pd.policies.apd import APDPolicy
from learn2pd.policies.verifier import Verifier
from learn2pd.schedulers.lookahead import LookaheadScheduler
from learn2pd.types import DecodeState, ModelSpec
from tests.contract.helpers import CACHES, outcome, policies, run

READERS = [name for name, policy in policies().items() if "logits" in policy.needs]


@pytest.mark.parametrize(
    ("name", "temperature"),
    [
        pytest.param(name, temperature, marks=pytest.mark.thorough if (one + other) % 2 else [])
        for one, name in enumerate(READERS)
        for other, temperature in enumerate((0.0, 1.0))
    ],
)
def test_a_policy_decides_the_same_from_many_parts(name, temperature, tiny_model, make_prompts, monkeypatch):
    outcomes = []
    for positions in (1000, 3):
        monkeypatch.setattr(step, "SCORE_VALUES", positions * tiny_model.spec.vocab_size)
        state = run(tiny_model, make_prompts([3, 17]), policies()[name], cache=CACHES["none"], temperature=temperature)
        outcomes.append(outcome(state, tiny_model))
    assert outcomes[0] == outcomes[1]


def test_apd_holds_a_part_of_the_logits_of_its_window(monkeypatch):
    vocabulary, rows, canvas, positions = 20_000, 2, 64, 4
    torch.manual_seed(0)
    config = LLaDAConfig(
        d_model=16, n_layers=1, n_heads=2, mlp_hidden_size=16, vocab_size=vocabulary, mask_token_id=1, eos_token_id=0
    )
    spec = ModelSpec("random", 1, (0,), 0, vocabulary, 128, False, "")
    verifier = Verifier(causal(LlamaForCausalLM, LlamaConfig, vocabulary))
    monkeypatch.setattr(step, "SCORE_VALUES", positions * vocabulary)
    loop = Loop(
        ModelAdapter(LLaDAModelLM(config).eval(), spec),
        Method(APDPolicy(verifier), LookaheadScheduler(), CACHES["none"], NoStop()),
    )
    start = loop.start(DecodeState.start([[5, 6], [7, 8]], canvas, spec))
    with LiveBytes() as live:
        loop.step(start)
    part = positions * vocabulary * 4
    assert live.most < 8 * part  # the part of both models, their mixture, and what one proposal takes
    assert rows * canvas * vocabulary * 4 > 30 * part


@pytest.mark.parametrize(
    ("network", "config", "plain"),
    [
        (LlamaForCausalLM, LlamaConfig, True),
        (GemmaForCausalLM, GemmaConfig, True),
        (Gemma2ForCausalLM, Gemma2Config, False),  # it bends its logits
    ],
)
@torch.no_grad()
def test_a_verifier_scores_as_its_network_does(network, config, plain):
    verifier = Verifier(causal(network, config, 300))
    assert verifier.plain_head == plain
    tokens = torch.randint(2, 300, (2, 9), generator=torch.Generator().manual_seed(0))
    pad = torch.tensor([0, 2])
    memory = verifier.start(DecodeState.start([[3, 4, 5], [6, 7, 8]], 6, ModelSpec("", 1, (0,), 0, 300, 99, False, "")))
    scores, _ = verifier.score(tokens, pad, torch.arange(2), (3, 9), memory)
    expected = verifier.network(input_ids=tokens[:1]).logits[0, 2:8]
    assert (scores(torch.zeros(6, dtype=torch.long), torch.arange(3, 9)) - expected).abs().max() < 1e-4
    alone = verifier.network(input_ids=tokens[1:, 2:]).logits[0, :6]
    assert (scores(torch.ones(6, dtype=torch.long), torch.arange(3, 9)) - alone).abs().max() < 1e-4


def causal(network, config, vocabulary):
    """A random causal model, whose logits are large enough to be bent."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    options = sizes | {"num_key_value_heads": 2, "head_dim": 8, "vocab_size": vocabulary, "initializer_range": 0.5}
    return network(config(**options)).eval()
