"""A policy is pushed to a hub and pulled from it; a hub on this machine answers."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard, constants

from learn2pd import FilterPolicy, Method, Predictor, UserError, decode, load_policy
from learn2pd.predictors.end_of_text import load_end_of_text
from learn2pd.predictors.networks import MLP, Conv
from learn2pd.predictors.saving import Contract, Setting, save_predictor
from tests.predictors.local_hub import LocalHub, running_hub

NAME = "me/filter"
CURVE = (Setting(0.9, 1.5, 0.99, 0.0, 0.02), Setting(0.5, 2.5, 0.9, None, 0.15))
METRICS = {"prompts": 150, "confidence": 0.9, "target_met": True, "trained_on": {"prompts": "math, json", "seed": 0}}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with running_hub() as running:
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", running.address)
        for module in ("constants", "file_download"):  # by the version of huggingface_hub
            template = running.address + "/{repo_id}/resolve/{revision}/{filename}"
            monkeypatch.setattr(f"huggingface_hub.{module}.HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
        monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", running.address)
        yield running


@pytest.fixture
def policy(tiny_model) -> FilterPolicy:
    torch.manual_seed(0)
    return FilterPolicy(Predictor("filter", Conv(hidden=8), 0.9, Contract.of(tiny_model.spec), CURVE, METRICS))


def test_a_policy_comes_back_from_the_hub_as_it_was_pushed(hub: LocalHub, policy, tiny_model, make_prompts):
    address = policy.push_to_hub(NAME, token="secret", commit_message="first")
    assert address.startswith(hub.address)
    pulled = FilterPolicy.from_pretrained(NAME)
    assert pulled.predictor == replace(policy.predictor, network=pulled.predictor.network)
    assert pulled.predictor.fingerprint == policy.predictor.fingerprint
    one, other = (decode(tiny_model, make_prompts([4, 9]), policy=each, gen_length=32) for each in (policy, pulled))
    assert torch.equal(one.tokens, other.tokens)
    hub.asked.clear()
    assert load_policy(NAME).predictor.fingerprint == pulled.predictor.fingerprint
    assert not [path for path in hub.asked if "/resolve/" in path]  # the second load downloads nothing


def test_only_the_files_of_the_policy_are_pushed_and_pulled(hub: LocalHub, policy, tmp_path):
    policy.push_to_hub(NAME)
    (files,) = [files for files in hub.commits[NAME].values() if files]
    assert set(files) - {".gitattributes"} == {"policy.json", "model.safetensors", "README.md"}
    hub.commit(NAME, "main", {"huge.bin": b"x", "code.py": b"x"})
    load_policy(NAME)
    fetched = {path.rpartition("/")[2] for path in hub.asked if "/resolve/" in path}
    assert fetched == {"policy.json", "model.safetensors"}


def test_a_revision_is_pulled_and_remembered(hub: LocalHub, policy):
    policy.push_to_hub(NAME)
    old = hub.branches[NAME]["main"]
    FilterPolicy(replace(policy.predictor, threshold=0.5)).push_to_hub(NAME)
    assert (load_policy(NAME).threshold, load_policy(NAME, revision=old).threshold) == (0.5, 0.9)
    described = Method(load_policy(NAME, revision=old)).to_dict()
    assert described["policy"]["options"] == {"folder": NAME, "revision": old, "threshold": 0.9}
    assert Method.from_dict(described).policy.threshold == 0.9


def test_predictors_beside_the_policy_are_pulled_too(hub: LocalHub, policy, tiny_model, tmp_path):
    folder = tmp_path / "policy"
    policy.save_pretrained(folder)
    ended = Conv(("log_odds", "masked", "end_of_text"), hidden=4)
    save_predictor(Predictor("end_of_text", ended, 0.7, Contract.of(tiny_model.spec)), folder / "end_of_text")
    hub.create(NAME)
    hub.commit(
        NAME, "main", {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    )
    stop = load_end_of_text(NAME, 0.4)
    assert stop.predictor.threshold == 0.7
    assert stop.describe() == {"folder": NAME, "floor": 0.4}


def test_the_card_says_what_the_policy_was_trained_on_its_curve_and_its_limits(policy, tmp_path):
    policy.save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.library_name == "learn2pd"
    for part in (
        "tiny_model",
        "prompts: math, json",
        "| 0.9 | 1.5 | 0.99 | 0 | 0.02 |",
        "not measured",
        "150 validation",
    ):
        assert part in card.text
    assert f"{policy.predictor.contract.vocab_size} tokens" in card.text


@pytest.mark.parametrize("metrics", [{}, METRICS | {"target_met": False}, {"trained_on": "text"}, {"prompts": None}])
@pytest.mark.parametrize("curve", [(), CURVE])
def test_a_card_is_written_whatever_is_known(tiny_model, tmp_path, metrics, curve):
    contract = Contract.of(tiny_model.spec, block_length=16, alignment="prompt")
    FilterPolicy(Predictor("filter", MLP(16, 4), 0.9, contract, curve, metrics)).save_pretrained(tmp_path)
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "## Limits" in text
    assert "blocks of 16 tokens only" in text
    assert ("not calibrated" in text) == (not curve)


def test_the_card_belongs_to_the_weights_beside_it(policy, tmp_path):
    FilterPolicy(replace(policy.predictor, threshold=0.123)).save_pretrained(tmp_path)
    policy.save_pretrained(tmp_path)
    assert "0.123" not in (tmp_path / "README.md").read_text(encoding="utf-8")
    assert {path.name for path in tmp_path.iterdir()} == {"README.md", "model.safetensors", "policy.json"}


def refusal(action, *arguments, **options) -> str:
    started = time.monotonic()
    with pytest.raises(UserError) as error:
        action(*arguments, **options)
    assert time.monotonic() - started < 10
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_missing_network_is_told_at_once(policy, monkeypatch, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{probe.getsockname()[1]}"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", closed)
    for action in (load_policy, FilterPolicy.from_pretrained, load_end_of_text):
        line = refusal(action, NAME)
        assert line.startswith(f"policy={NAME!r}")
        assert closed in line
        assert "local folder" in line
    line = refusal(policy.push_to_hub, NAME)
    assert closed in line
    assert "save_pretrained" in line


@pytest.mark.parametrize(
    ("name", "revision", "words"),
    [(NAME, None, "no such repository"), ("me/empty", None, "holds no policy.json"), ("me/empty", "v9", "no such rev")],
)
def test_what_the_hub_lacks_is_told(hub: LocalHub, name, revision, words):
    hub.create("me/empty")
    assert words in refusal(load_policy, name, revision=revision)


def test_a_push_that_is_refused_is_told(hub: LocalHub, policy):
    hub.token = "right"
    line = refusal(policy.push_to_hub, NAME, token="wrong")
    assert "401" in line
    assert "hf auth login" in line
    policy.push_to_hub(NAME, token="right")


@pytest.mark.parametrize("name", ["", "a b/c", "a/b/c/d", "-x/y"])
def test_a_name_that_the_hub_does_not_take_is_told(hub: LocalHub, policy, name):
    assert repr(name) in refusal(policy.push_to_hub, name)


def test_a_folder_that_cannot_be_written_is_told(policy, tmp_path):
    (tmp_path / "file").write_text("x")
    assert "file" in refusal(policy.save_pretrained, tmp_path / "file")


@pytest.mark.thorough  # huggingface_hub reads the variable; the other tests set what it becomes
def test_the_endpoint_of_the_environment_is_used(hub: LocalHub, policy, tmp_path):
    policy.push_to_hub(NAME)
    code = f"from learn2pd import load_policy; print(load_policy({NAME!r}).threshold)"
    environment = os.environ | {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False, cwd=Path.cwd()
    )
    assert (done.returncode, done.stdout) == (0, "0.9\n"), done.stderr


def test_a_card_holds_what_the_calibration_measured(tmp_path):
    shipped = load_policy("checkpoints/tiny-llada-filter")
    shipped.save_pretrained(tmp_path)
    described = json.loads((tmp_path / "policy.json").read_text(encoding="utf-8"))
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    for setting in described["curve"]:
        assert f"| {setting['threshold']:.4g} | {setting['tokens_per_forward']:.4g} |" in text
