"""A set of prompts is pushed to a hub and pulled from it, and a list of what an owner holds is made."""

from __future__ import annotations

import json
import socket

import pytest
from huggingface_hub import DatasetCard, constants

from learn2pd import FilterPolicy, UserError, pull_prompts, push_prompts
from learn2pd.cli import main as cli
from learn2pd.predictors.networks import Conv
from learn2pd.predictors.saving import Contract, Predictor
from tests.predictors.test_hub import hub  # noqa: F401  a fixture

NAME = "me/prompts"
ROWS = [{"question": "Add 2.", "answer": "4"}, {"question": "Ä–日本"}]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return path


def test_prompts_come_back_as_they_were_pushed(hub, file):  # noqa: F811
    assert push_prompts(file, NAME).startswith(hub.address)
    old = hub.branches[f"datasets/{NAME}"]["main"]
    assert pull_prompts(NAME).read_bytes() == file.read_bytes()
    before = file.read_bytes()
    file.write_text('{"question": "another"}\n', encoding="utf-8")
    push_prompts(file, NAME)
    assert pull_prompts(NAME).read_bytes() == file.read_bytes()
    assert pull_prompts(NAME, revision=old).read_bytes() == before
    card = DatasetCard(hub.commits[f"datasets/{NAME}"][old]["README.md"].decode())
    assert "learn2pd" in card.data.tags
    assert "2 prompts" in card.text
    assert "`question`, `answer`" in card.text


@pytest.mark.parametrize(
    ("name", "revision", "words"),
    [("me/none", None, "no such repository"), (NAME, "v9", "no such revision"), ("a b", None, "'a b'")],
)
def test_what_the_hub_lacks_is_told(hub, file, name, revision, words):  # noqa: F811
    push_prompts(file, NAME)
    with pytest.raises(UserError, match=words) as error:
        pull_prompts(name, revision=revision)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", ["", "not JSON\n", '{"question": "a"}\n[1]\n'])
def test_a_file_that_holds_no_prompts_is_not_pushed(hub, file, content):  # noqa: F811
    file.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=r"own\.jsonl"):
        push_prompts(file, NAME)
    assert not hub.commits


def test_a_push_that_is_refused_is_told(hub, file):  # noqa: F811
    hub.token = "right"
    with pytest.raises(UserError, match="hf auth login"):
        push_prompts(file, NAME, token="wrong")
    push_prompts(file, NAME, token="right")


def test_the_zoo_lists_what_ships_and_what_an_owner_holds(hub, file, tiny_model, capsys):  # noqa: F811
    push_prompts(file, NAME)
    FilterPolicy(Predictor("filter", Conv(hidden=8), 0.9, Contract.of(tiny_model.spec))).push_to_hub("me/filter")
    hub.create("me/untagged")
    assert cli.guarded(lambda: cli.run_command("zoo", ["owner=me"])) == 0
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["model", "checkpoints/tiny-llada"] in [line[:2] for line in shown]
    assert ["policy", "checkpoints/tiny-llada-filter", "a", "filter", "for", "tiny-llada,"] in [
        line[:6] for line in shown
    ]
    assert ["configuration", "tiny_filter"] in [line[:2] for line in shown]
    assert [line for line in shown if line[0] == "hub"] == [["hub", "policy", "me/filter"], ["hub", "prompts", NAME]]


def test_the_zoo_needs_no_network(monkeypatch, capsys):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{probe.getsockname()[1]}"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", closed)
    assert cli.guarded(lambda: cli.run_command("zoo", [])) == 0
    lines = capsys.readouterr().out.splitlines()
    (told,) = [line for line in lines if line.startswith("hub")]
    assert closed in told
    assert any(line.startswith("model") for line in lines)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["onwer=me"], "did you mean 'owner'"),
        (["seed=3"], "zoo takes owner"),
        (["config=tiny_filter"], "zoo takes owner"),
    ],
)
def test_the_zoo_takes_an_owner_alone(arguments, words):
    with pytest.raises(UserError, match=words):
        cli.run_command("zoo", arguments)
