"""The policy `keep`: it takes back as its network says, is saved and loaded, and has two thresholds."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from learn2pd import FilterPolicy, KeepPolicy, Method, UserError, load_keep, load_policy
from learn2pd.predictors.keep import PART, trained_policy
from learn2pd.predictors.networks import PredictorNetwork
from learn2pd.predictors.saving import Contract, Predictor, Setting, save_predictor
from tests.contract.helpers import outcome, random_predictor, run

CONTRACT = Contract(mask_id=1, vocab_size=400, eot_ids=(0,))


class LeaveOneOut(PredictorNetwork):
    """Its probability is the leave-one-out probability of the token."""

    channels = ("leave_one_out",)

    def __init__(self):
        super().__init__()
        self.place = nn.Parameter(torch.zeros(0))  # by which the policy sees on which device the network is

    def forward(self, inputs, valid, proposal):
        return inputs[..., 0]


@pytest.fixture
def folder(tmp_path):
    curve = tuple(Setting(value, tokens_per_forward=2.0) for value in (0.9, 0.5, 0.2))
    keeper = replace(random_predictor("keep"), threshold=0.4, filter_threshold=0.7, curve=curve)
    keeper = replace(keeper, one_more=0.3, confidence_threshold=0.95)
    save_predictor(random_predictor(name="conv"), tmp_path)
    save_predictor(keeper, tmp_path / PART)
    return tmp_path


def settings(policy):
    return policy.threshold, policy.take_back, policy.one_more, policy.confidence_threshold


@pytest.mark.parametrize("back", [0.2, 0.5, 0.8])
def test_a_network_that_repeats_the_leave_one_out_probability_takes_back_as_the_filter_does(
    back, tiny_model, make_prompts
):
    prompts = make_prompts([3, 17, 9, 5])
    predictor = random_predictor(name="conv", seed=3)  # with which many tokens are taken back
    keeper = Predictor("keep", LeaveOneOut(), back, CONTRACT)
    kept = run(tiny_model, prompts, KeepPolicy(predictor, keeper))
    assert outcome(kept, tiny_model) == outcome(run(tiny_model, prompts, FilterPolicy(predictor, back)), tiny_model)
    assert int(kept.revoked.sum()) > 0


def test_it_is_loaded_with_the_thresholds_that_were_calibrated_together(folder, tmp_path):
    policy = load_keep(folder)
    assert settings(policy) == (0.7, 0.4, 0.3, 0.95)
    assert load_keep(folder, threshold=0.6, take_back=0.1).take_back == 0.1
    assert [load_keep(folder, aggressiveness=place).threshold for place in (0, 1)] == pytest.approx([0.9, 0.2])
    again = Method.from_dict(Method(policy).to_dict())
    assert again.fingerprint == Method(policy).fingerprint
    marks = {
        load_keep(folder, **choice).fingerprint
        for choice in ({}, {"threshold": 0.6}, {"take_back": 0.1}, {"one_more": 0.9}, {"confidence_threshold": 0.9})
    }
    assert len(marks) == 5
    policy.save_pretrained(tmp_path / "copy")
    copied = load_keep(tmp_path / "copy")
    assert settings(copied) == (0.7, 0.4, 0.3, 0.95)
    assert copied.fingerprint == policy.fingerprint


@pytest.mark.parametrize(
    ("choice", "named"),
    [
        ({"threshold": 2.0}, "threshold=2.0"),
        ({"take_back": -0.1}, "take_back=-0.1"),
        ({"take_back": "much"}, "take_back='much'"),
        ({"aggressiveness": 0.5, "threshold": 0.5}, "one of them"),
        ({"aggressiveness": 3}, "aggressiveness=3"),
        ({"per_position": -1}, "per_position=-1"),
    ],
)
def test_a_setting_that_makes_no_sense_is_one_line(folder, choice, named):
    with pytest.raises(UserError, match=named):
        load_keep(folder, **choice)


def test_the_class_loads_what_it_saved(folder, tmp_path):
    policy = load_keep(folder, take_back=0.2)
    policy.save_pretrained(tmp_path / "saved")
    loaded = KeepPolicy.from_pretrained(tmp_path / "saved")
    assert loaded.fingerprint == load_keep(tmp_path / "saved").fingerprint
    assert (loaded.threshold, loaded.take_back) == (policy.threshold, 0.2)
    with pytest.raises(UserError, match="threshold='high'"):
        KeepPolicy.from_pretrained(folder, threshold="high")


def test_a_filter_without_the_predictor_beside_it_says_what_is_missing(tmp_path):
    save_predictor(random_predictor(name="conv"), tmp_path)
    with pytest.raises(UserError, match=r"keep/policy\.json"):
        load_keep(tmp_path)


@pytest.mark.parametrize(
    "choice",
    [
        {},
        {"threshold": 0.6},
        {"take_back": 0.1},
        {"one_more": 1.0},
        {"aggressiveness": 0.2},
        {"confidence_threshold": 0.9},
    ],
)
def test_saving_keeps_what_was_set_and_leaves_the_filter_alone_as_it_was(choice, folder, tmp_path):
    policy = load_keep(folder, **choice)
    policy.save_pretrained(tmp_path / "copy")
    copied = load_keep(tmp_path / "copy")
    numbers = ("threshold", "take_back", "one_more", "confidence_threshold")
    assert [getattr(copied, name) for name in numbers] == [getattr(policy, name) for name in numbers]
    assert copied.predictor.curve == policy.predictor.curve
    assert Method.from_dict(Method(policy).to_dict()).policy.describe() == policy.describe()
    alone, original = load_policy(tmp_path / "copy").predictor, load_policy(folder).predictor
    assert (alone.threshold, alone.curve) == (original.threshold, original.curve)


@pytest.mark.parametrize("choice", [{"take_back": 0.1}, {"one_more": 1.0}, {"confidence_threshold": 0.9}])
def test_a_curve_says_nothing_about_other_options(choice, folder):
    assert load_keep(folder).predictor.curve[0].tokens_per_forward == 2.0
    assert load_keep(folder, **choice).predictor.curve[0].tokens_per_forward is None


@pytest.mark.parametrize("load", [load_keep, load_policy])
def test_the_dial_moves_the_threshold_and_nothing_else(load, folder):
    options = {"take_back": 0.3, "one_more": 0.8}
    save_predictor(replace(random_predictor(name="conv"), curve=(Setting(0.9), Setting(0.2))), folder)
    policy = load(folder, **options)
    moved = policy.at(1.0)
    assert type(moved) is type(policy)
    assert moved.threshold == pytest.approx(0.2)
    assert moved.describe() == load(folder, **options, aggressiveness=1.0).describe()
    assert policy.describe() == load(folder, **options).describe()  # a policy never changes


def test_a_folder_holds_the_policy_keep_where_the_predictor_lies_beside_the_filter(folder, tmp_path):
    assert trained_policy(folder) == "keep"
    save_predictor(random_predictor(name="conv"), tmp_path / "bare")
    assert trained_policy(tmp_path / "bare") == "filter"
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match=r"holds no policy\.json"):
        trained_policy(empty)


def test_the_card_describes_both_predictors(folder):
    policy = load_keep(folder)
    policy.save_pretrained(folder)
    text = (folder / "README.md").read_text(encoding="utf-8")
    for part in ("## Taking back", "load_keep", "above 0.7", "above 0.3", "below 0.4", "| 0.5 | 2 |"):
        assert part in text


@pytest.mark.parametrize("options", [{"take_back": 0.1}, {"one_more": 0.5}, {"confidence_threshold": 0.9}])
def test_a_filter_with_options_is_not_saved_without_them(options, tmp_path):
    policy = load_policy("checkpoints/tiny-llada-filter", **options)
    with pytest.raises(UserError, match=f"{next(iter(options))}={next(iter(options.values()))}"):
        policy.save_pretrained(tmp_path / "saved")


def test_keep_is_saved_with_all_of_its_numbers_or_not_at_all(tmp_path):
    numbers = {"threshold": 0.97, "take_back": 0.4, "one_more": 0.7, "confidence_threshold": 0.95}
    load_keep("checkpoints/tiny-llada-filter", **numbers).save_pretrained(tmp_path / "saved")
    again = load_keep(tmp_path / "saved")
    assert {name: getattr(again, name) for name in numbers} == numbers
    with pytest.raises(UserError, match="per_position=1"):
        load_keep("checkpoints/tiny-llada-filter", per_position=1).save_pretrained(tmp_path / "other")
