"""A method is a value: built from names, described as JSON, the same again, and refused where its parts do not fit."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from learn2pd import (
    BlocksScheduler,
    FilterPolicy,
    Method,
    NoCache,
    OraclePolicy,
    PrefixCache,
    ThresholdPolicy,
    UserError,
    decode,
    load_policy,
    save_policy,
)
from learn2pd.decoding import provided_by
from learn2pd.predictors.boundary import LearnedAdaBlockScheduler
from learn2pd.predictors.end_of_text import LearnedStop
from tests.contract.helpers import CACHES, SCHEDULERS, STOPS, policies, random_predictor

NAMED = [
    {"policy": "threshold", "scheduler": "dsb", "cache": "dsb"},
    {"policy": "fixed", "options": {"steps": 4, "rank": "margin"}, "cache": "dual", "stop": "none"},
    {"policy": "localleap", "scheduler": "adablock", "scheduler_options": {"delimiter_ids": [3, 4]}, "cache": "prefix"},
    {"policy": "factor", "scheduler": "lookahead", "cache": "lookahead", "cache_options": {"kv_window": None}},
]


@pytest.mark.parametrize("names", NAMED, ids=lambda names: names["policy"])
def test_a_method_from_names_is_the_same_after_json(names):
    method = Method.from_names(**names)
    described = json.loads(json.dumps(method.to_dict()))
    again = Method.from_dict(described)
    assert again.to_dict() == method.to_dict()
    assert again.fingerprint == method.fingerprint
    assert repr(again) == repr(method)


def test_every_part_and_every_option_changes_the_fingerprint():
    methods = [Method(ThresholdPolicy(value)) for value in (0.5, 0.9)]
    methods += [Method(ThresholdPolicy(0.9), BlocksScheduler(8)), Method(ThresholdPolicy(0.9), cache=PrefixCache())]
    assert len({method.fingerprint for method in methods}) == len(methods)
    assert Method(ThresholdPolicy(0.9)).fingerprint == methods[1].fingerprint


def test_the_threshold_of_every_trained_part_changes_the_fingerprint():
    makers = (FilterPolicy, LearnedStop, LearnedAdaBlockScheduler)
    for maker, kind in zip(makers, ("filter", "end_of_text", "boundary"), strict=True):
        predictor = random_predictor(kind, "conv")
        marks = {maker(replace(predictor, threshold=value)).fingerprint for value in (0.5, 0.9, 0.9)}
        assert len(marks) == 2, maker


def test_a_trained_policy_is_named_by_its_folder(tmp_path):
    policy = FilterPolicy(random_predictor(name="conv"))
    with pytest.raises(UserError, match="not on disk"):
        Method(policy).to_dict()
    loaded = load_policy(save_policy(policy, tmp_path / "mine"))
    described = Method(loaded).to_dict()
    assert Method.from_dict(described).fingerprint == Method(loaded).fingerprint
    assert described["policy"] == {"name": "filter", "options": {"folder": str(tmp_path / "mine"), "threshold": 0.5}}
    taking_back = Method(load_policy(tmp_path / "mine", take_back=0.3, per_position=1))
    assert Method.from_dict(taking_back.to_dict()).fingerprint == taking_back.fingerprint != Method(loaded).fingerprint


def test_a_method_knows_what_was_trained_and_what_is_needed():
    for name, policy in policies().items():
        method = Method(policy)
        assert method.learned == name.startswith(("filter", "keep", "apple"))
        assert method.needs >= policy.needs
    assert Method(ThresholdPolicy(), SCHEDULERS["adablock_learned"]).learned
    assert Method(ThresholdPolicy(), stop=STOPS["learned"]).learned
    assert not Method(ThresholdPolicy(), cache=CACHES["dual"]).learned


def test_a_method_and_its_parts_decode_the_same(tiny_model, make_prompts):
    prompts = make_prompts([4, 9])
    parts = {"policy": "threshold", "scheduler": "dsb", "cache": "dsb", "stop": "none"}
    whole = decode(tiny_model, prompts, Method.from_names(**parts, provided=provided_by(tiny_model)), gen_length=12)
    single = decode(tiny_model, prompts, **parts, gen_length=12)
    assert whole.tokens.equal(single.tokens)
    assert whole.forwards.equal(single.forwards)


def test_an_oracle_has_no_name_to_be_saved_by():
    with pytest.raises(UserError, match="OraclePolicy: its option reference is a Tensor"):
        Method(OraclePolicy(torch.zeros(1, 4).long()), cache=NoCache()).to_dict()
