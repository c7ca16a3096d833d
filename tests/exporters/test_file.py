"""A policy as a file computes what the policy computes in the loop."""

from __future__ import annotations

import importlib.util
import json

import pytest
import torch

from learn2pd import UserError, block_step, export_policy
from learn2pd.exporters.file import INPUTS, Graph, compare, sample
from learn2pd.predictors.filter import FilterPolicy
from learn2pd.predictors.networks import MLP, Conv, Transformer
from learn2pd.predictors.saving import Contract, Predictor
from learn2pd.types import NOT_PROPOSED, Window

VOCABULARY, MASK, WIDTH = 40, 1, 8


def policy_of(name: str) -> FilterPolicy:
    torch.manual_seed(0)
    network = {"mlp": MLP(WIDTH, 8), "conv": Conv(hidden=8), "transformer": Transformer(hidden=8)}[name]
    with torch.no_grad():
        (network.linear2 if name == "mlp" else network.leave).weight *= 6
    return FilterPolicy(Predictor("filter", network, 0.5, Contract(MASK, VOCABULARY, (0,), (2, 3))))


@pytest.mark.parametrize("name", ["mlp", "conv", "transformer"])
def test_the_graph_decides_as_the_policy_does(name):
    """The statistics of the logits are computed here, as another runtime would compute them."""
    policy = policy_of(name)
    graph = Graph(policy.predictor).eval()
    torch.manual_seed(1)
    length = torch.tensor([WIDTH, WIDTH - 3])
    window = Window(torch.zeros_like(length), length)
    tokens = torch.full((2, WIDTH), MASK)
    masked = window.mask(WIDTH)
    previous = torch.full_like(tokens, NOT_PROPOSED)
    memory = None
    for _ in range(4):
        logits = 3 * torch.randn(2, WIDTH, VOCABULARY)
        step = block_step(policy, logits, tokens, masked, window, memory, mask_id=MASK)
        logits[..., MASK] = -torch.inf
        share = logits.softmax(-1)
        best = share.topk(2).values
        entropy = -(share * share.clamp_min(1e-30).log()).sum(-1)
        with torch.no_grad():
            _, commit = graph(
                tokens,
                masked,
                logits.argmax(-1),
                best[..., 0] * window.mask(WIDTH),
                best[..., 0] - best[..., 1],
                entropy,
                previous,
                length,
                torch.tensor(0.5),
            )
        assert commit.equal(step.commit.mask)
        previous = torch.where(masked | policy.scores_committed, logits.argmax(-1), NOT_PROPOSED)
        tokens, masked, memory = step.tokens, step.masked, step.memory


@pytest.mark.parametrize("name", [pytest.param("mlp", marks=pytest.mark.thorough), "transformer"])
def test_a_file_of_torch_export_has_free_rows_and_windows(name, tmp_path):
    policy = policy_of(name)
    folder = tmp_path / "exported"
    export_policy("file", policy, folder)
    described = json.loads((folder / "graph.json").read_text(encoding="utf-8"))
    assert tuple(described["inputs"]) == INPUTS
    assert described["width"] == policy.window_width
    loaded = torch.export.load(folder / "policy.pt2").module()
    compare(Graph(policy.predictor).eval(), loaded, policy.window_width, VOCABULARY)


def test_a_file_that_computes_something_else_is_noticed():
    one, other = (Graph(policy_of(name).predictor).eval() for name in ("conv", "transformer"))
    with pytest.raises(UserError, match="the file differs from the network at 1 rows of 32 positions"):
        compare(one, other, None, VOCABULARY)


@pytest.mark.parametrize("name", ["mlp", "conv", "transformer"])
def test_onnx_computes_the_same_at_every_shape(name, tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")  # onnx's own evaluator stops at an operator of torch's export
    policy = policy_of(name)
    export_policy("file", policy, tmp_path / "exported", formats=["onnx"])
    session = runtime.InferenceSession(tmp_path / "exported" / "policy.onnx")

    def run(*inputs):
        given = {key: value.numpy() for key, value in zip(INPUTS, inputs, strict=True)}
        return [torch.tensor(value) for value in session.run(None, given)]

    compare(Graph(policy.predictor).eval(), run, policy.window_width, VOCABULARY)
    assert len(sample(1, 4, VOCABULARY)) == len(INPUTS)


def test_wrong_formats_are_refused(tmp_path):
    for formats, message in (
        ([], "expected some of pt2, onnx"),
        (["x"], "expected some of"),
        ("pt2", "a list of text"),
    ):
        with pytest.raises(UserError, match=message):
            export_policy("file", policy_of("conv"), tmp_path / "exported", formats=formats)
    if importlib.util.find_spec("onnxscript") is None:
        with pytest.raises(UserError, match=r'pip install "learn2pd\[onnx\]"'):
            export_policy("file", policy_of("conv"), tmp_path / "exported", formats=["onnx"])
    assert not (tmp_path / "exported").exists()
