"""Predictor networks are small, work at any length and see nothing past a window.

Their inputs are normalised by what they were trained on.
"""

from __future__ import annotations

import pytest
import torch

from learn2pd.errors import UserError
from learn2pd.predictors.features import DECIDED
from learn2pd.predictors.networks import MLP, Conv, Transformer
from learn2pd.predictors.saving import build_network, network_json

LENGTH_FREE = [Conv, Transformer]


def inputs_of(network, rows=4, width=12, seed=0):
    """Random inputs of a network: channels, positions inside the window, and proposals."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(rows, width, len(network.channels), generator=generator)
    return inputs, torch.ones(rows, width, dtype=torch.bool), torch.randint(-1, 5, (rows, width), generator=generator)


def stirred(network):
    """With weights that are nowhere zero."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)).to(parameter) * 0.1)
    return network


@pytest.mark.parametrize("kind", LENGTH_FREE)
def test_the_default_has_at_most_50_000_parameters(kind):
    assert sum(parameter.numel() for parameter in kind().parameters()) <= 50_000


def test_the_papers_filter_has_2112_parameters():
    assert sum(parameter.numel() for parameter in MLP().parameters()) == 2112


@pytest.mark.parametrize("kind", LENGTH_FREE)
def test_a_row_does_not_depend_on_its_padding_or_its_neighbours(kind):
    torch.manual_seed(0)
    network = stirred(kind().double())
    inputs, valid, proposal = inputs_of(network)
    valid[:, 9:], proposal[:, 9:] = False, DECIDED
    alone = network(inputs[1:2, :9].double(), valid[1:2, :9], proposal[1:2, :9])
    together = network((inputs * valid[..., None]).double(), valid, proposal)
    assert torch.allclose(together[1, :9], alone[0], atol=1e-12)


@pytest.mark.parametrize("kind", LENGTH_FREE)
def test_an_empty_window_gives_finite_logits(kind):
    network = kind()
    inputs, valid, proposal = inputs_of(network)
    assert network(inputs, torch.zeros_like(valid), torch.full_like(proposal, DECIDED)).isfinite().all()


def test_the_transformer_sees_which_proposals_are_equal_and_not_what_they_are():
    network = stirred(Transformer())
    inputs, valid, proposal = inputs_of(network)
    before = network(inputs, valid, proposal)
    renamed = torch.where(proposal == DECIDED, DECIDED, (proposal + 2) % 5 + 1000)
    assert torch.equal(network(inputs, valid, renamed), before)
    proposal[:, 3] = 99  # what nothing else proposes
    assert not torch.allclose(network(inputs, valid, proposal), before, atol=1e-3)


def test_without_same_proposal_the_transformer_is_blind_to_proposals():
    network = stirred(Transformer(same_proposal=False))
    inputs, valid, proposal = inputs_of(network)
    assert torch.equal(network(inputs, valid, proposal), network(inputs, valid, proposal.flip(1)))


@pytest.mark.parametrize("kind", LENGTH_FREE)
def test_normalisation_undoes_a_change_of_units(kind):
    """A network that is told mean and deviation of its inputs gives the same for inputs in other units."""
    torch.manual_seed(0)
    network = kind()
    inputs, valid, proposal = inputs_of(network)
    network.normalise_by(inputs.mean((0, 1)), inputs.std((0, 1)))
    before = network(inputs, valid, proposal)
    scaled = inputs * 7 + 3
    network.normalise_by(scaled.mean((0, 1)), scaled.std((0, 1)))
    assert torch.allclose(network(scaled, valid, proposal), before, atol=1e-4)


SMALL = [
    MLP(8, 4),
    Conv(["masked", "log_odds"], 8, 2, 3),
    Transformer(["masked"], 8, 1, 2),
    Transformer(["masked"], 8, 1, 2, same_proposal=False),
]


@pytest.mark.parametrize("network", SMALL, ids=lambda n: type(n).__name__)
def test_a_network_is_rebuilt_from_its_description(network):
    described = network_json(network)
    again = build_network(described["name"], described["options"])
    again.load_state_dict(network.state_dict())
    seen = inputs_of(network, width=8)
    assert torch.equal(again(*seen), network(*seen))


@pytest.mark.parametrize(
    ("name", "options", "named"),
    [
        ("lstm", {}, "transformer"),
        ("conv", {"depth": 3}, "'depth'.*layers"),
        ("conv", {"channels": ["colour"]}, "colour.*confidence"),
        ("conv", {"kernel": 4}, "kernel=4"),
        ("transformer", {"hidden": 9, "heads": 4}, "hidden=9"),
        ("conv", {"channels": []}, "channels"),
    ],
)
def test_a_network_that_cannot_be_built_is_one_line(name, options, named):
    with pytest.raises(UserError, match=named):
        build_network(name, options)
