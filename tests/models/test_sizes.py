"""The memory that a run needs: the estimate from config.json alone against what tiny models take."""

from __future__ import annotations

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from learn2pd.models.loading import load_model, read_skeleton
from learn2pd.models.sizes import bytes_text, sizes_of
from learn2pd.types import ForwardPlan
from tests.fixtures import TINY_FAMILIES, save_tiny_family, save_tiny_model

ROWS = 3
COLUMNS = 96


@pytest.fixture(scope="module", params=["llada", *TINY_FAMILIES])
def folder(request, tokenizer, tmp_path_factory):
    target = tmp_path_factory.mktemp("sizes") / "model"
    if request.param == "llada":
        return save_tiny_model(target, tokenizer)
    return save_tiny_family(request.param, target, tokenizer)


def peak_bytes(run) -> int:
    """The most bytes that torch holds at one time for what a function makes."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    held = most = 0
    for event in profiled.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_estimate_is_what_a_tiny_model_takes(folder, dtype):
    sizes = sizes_of(read_skeleton(folder, dtype), ROWS, COLUMNS)
    network = load_model(folder, dtype, device="cpu").adapter.network
    assert sizes.weights == sum(tensor.nbytes for tensor in network.state_dict().values())
    columns = torch.arange(COLUMNS).expand(ROWS, -1)
    score = torch.ones_like(columns, dtype=torch.bool)
    lengths = torch.full((ROWS,), COLUMNS)
    plan = ForwardPlan(torch.arange(ROWS), columns, columns, None, score, lengths, (0, COLUMNS))
    store = network.new_store(ROWS, COLUMNS)
    assert store.view(plan) is not None
    assert sizes.kept == store.nbytes
    seen = None if network.causal_block is None else torch.ones(ROWS, COLUMNS, COLUMNS, dtype=torch.bool)

    @torch.inference_mode()
    def forward() -> None:
        logits = network.score(network.hidden(columns, attention_mask=seen).flatten(0, 1)).float()
        (logits - logits[:, :1]).exp_()

    forward()  # the first one also makes what torch keeps
    measured = peak_bytes(forward)
    assert 0.8 * measured <= sizes.activations <= 1.5 * measured


@pytest.mark.parametrize(("count", "text"), [(1, "1 MiB"), (2**20 + 1, "2 MiB"), (3 * 2**29, "1.5 GiB")])
def test_bytes_are_worded(count, text):
    assert bytes_text(count) == text
