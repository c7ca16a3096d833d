"""Calibration: the fastest threshold that keeps to the target, a curve for the dial, no answer cut short."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learn2pd.errors import UserError
from learn2pd.predictors.end_of_text import Ended
from learn2pd.predictors.networks import Conv
from learn2pd.predictors.saving import Contract, Predictor
from learn2pd.statistics.bounds import upper_bound
from learn2pd.training.calibration import (
    DecodedValidation,
    calibrate_boundary,
    calibrate_end,
    calibrate_filter,
    calibrate_pair,
    check_enough,
    metrics_at,
    probabilities,
    surest_false_stops,
)
from learn2pd.training.fit import PredictorData

THRESHOLDS = (0.5, 0.9, 0.7, 0.3)
PREDICTOR = Predictor("filter", Conv(["masked"], 4), 0.5, Contract(1, 400, (0,)))
TARGET = {"target_agreement": 0.9, "max_accuracy_drop": None, "confidence": 0.9}


def measure(predictor: Predictor, prompts=60, judged=True) -> DecodedValidation:
    """A policy that loses more and runs faster the lower its threshold."""
    generator = np.random.default_rng(0)
    loss = (1 - predictor.threshold) * generator.random(prompts) * 0.5
    drop = (generator.random(prompts) < 1 - predictor.threshold).astype(float) if judged else None
    return DecodedValidation(1 - loss, drop, np.full(prompts, 20.0), np.full(prompts, 10 * predictor.threshold))


def test_the_fastest_threshold_within_the_target_is_chosen_and_all_are_kept_as_the_curve():
    calibrated, met = calibrate_filter(PREDICTOR, measure, THRESHOLDS, **TARGET)
    assert met
    assert [setting.threshold for setting in calibrated.curve] == [0.9, 0.7, 0.5, 0.3]
    assert [setting.tokens_per_forward for setting in calibrated.curve] == pytest.approx([20 / 9, 20 / 7, 4, 20 / 3])
    for setting in calibrated.curve:
        losses = 1 - measure(replace(PREDICTOR, threshold=setting.threshold)).agreement
        assert setting.loss_bound == pytest.approx(upper_bound(losses, 0.1))
        assert (setting.threshold >= calibrated.threshold) == (setting.loss_bound <= 0.1)


def test_a_stricter_target_is_never_faster():
    thresholds = [
        calibrate_filter(PREDICTOR, measure, THRESHOLDS, **(TARGET | {"target_agreement": target}))[0].threshold
        for target in (0.7, 0.85, 0.95)
    ]
    assert thresholds == sorted(thresholds)


def test_a_target_that_nothing_meets_says_so_and_takes_the_strictest():
    setting, met = calibrate_filter(
        PREDICTOR, lambda predictor: replace(measure(predictor), agreement=np.full(60, 0.5)), THRESHOLDS, **TARGET
    )
    assert not met
    assert setting.threshold == 0.9


def test_accuracy_can_be_the_target():
    options = TARGET | {"target_agreement": None, "max_accuracy_drop": 0.4}
    setting, met = calibrate_filter(PREDICTOR, measure, THRESHOLDS, **options)
    assert met
    assert setting.threshold == 0.7
    with pytest.raises(UserError, match="no checker"):
        calibrate_filter(PREDICTOR, lambda predictor: measure(predictor, judged=False), THRESHOLDS, **options)


def of_pair(threshold: float, take_back: float) -> DecodedValidation:
    """A policy that loses less and is slower the more it takes back."""
    measured = measure(replace(PREDICTOR, threshold=threshold))
    return replace(measured, agreement=measured.agreement ** (1 - take_back), forwards=measured.forwards + take_back)


def test_a_pair_is_the_fastest_that_passes_and_the_sequences_share_the_error_probability():
    backs = (0.2, 0.6)
    pair = calibrate_pair(of_pair, THRESHOLDS, backs, **TARGET)
    assert pair.met
    passed = []
    for back in backs:
        settings = pair.curves[back]
        assert [setting.threshold for setting in settings] == [0.9, 0.7, 0.5, 0.3]
        for setting in settings:
            losses = 1 - of_pair(setting.threshold, back).agreement
            assert setting.loss_bound == pytest.approx(upper_bound(losses, 0.1 / len(backs)))
        keeping = [setting.loss_bound <= 0.1 for setting in settings]
        count = keeping.index(False) if False in keeping else len(keeping)
        passed += [(setting.tokens_per_forward, setting.threshold, back) for setting in settings[:count]]
    assert (pair.threshold, pair.take_back) == max(passed)[1:]
    assert pair.curve == pair.curves[pair.take_back]


def test_no_pair_is_selected_behind_a_failure_of_its_sequence():
    def failing_first(threshold, take_back):
        measured = of_pair(threshold, take_back)
        return replace(measured, agreement=np.full(60, 0.5)) if threshold == 0.9 else measured

    pair = calibrate_pair(failing_first, THRESHOLDS, (0.2, 0.6), **TARGET)
    assert (pair.met, pair.threshold, pair.take_back) == (False, 0.9, 0.2)


@pytest.mark.parametrize("options", [{"max_accuracy_drop": 0.1}, {"target_agreement": None}])
def test_exactly_one_target_is_set(options):
    with pytest.raises(UserError, match="set one of them"):
        calibrate_filter(PREDICTOR, measure, THRESHOLDS, **(TARGET | options))


def test_too_few_prompts_says_how_many_are_needed():
    with pytest.raises(UserError, match=r"8 held-out prompts.*at least 22 are needed"):
        calibrate_filter(PREDICTOR, lambda predictor: measure(predictor, prompts=8), THRESHOLDS, **TARGET)


def test_too_few_prompts_are_known_before_anything_is_decoded():
    check_enough(22, 0.9, None, 0.9)
    with pytest.raises(UserError, match=r"target_agreement=0.9 .*at least 22 .*there are 21"):
        check_enough(21, 0.9, None, 0.9)
    with pytest.raises(UserError, match=r"max_accuracy_drop=0.01.*at least 230"):
        check_enough(60, None, 0.01, 0.9)


def test_metrics_are_those_of_a_hand_count():
    probability, label = torch.tensor([0.9, 0.8, 0.7, 0.2]), torch.tensor([1, 0, 1, 0])
    figures = metrics_at(probability, label, 0.75)
    assert (figures["precision"], figures["recall"], figures["false_commit_rate"]) == (0.5, 0.5, 0.5)
    assert figures["auroc"] == 0.75


class Made(PredictorData):
    """States that are made, not recorded."""

    def __init__(self, columns, network):
        super().__init__([], Ended(), network, 16, 0)
        self.made = columns

    def stream(self, split, batch_rows, seed=None):
        states = super().stream(split, batch_rows, seed)
        states.states = lambda more=(): iter([self.made])
        return states


class Sure(Conv):
    """Says what its first channel says."""

    scale = 1

    def forward(self, inputs, valid, proposal):
        return inputs[..., 0] * self.scale


def ended_states(log_odds, masked, length, prompt):
    """Recorded states with given log-odds, masks and lengths of the answer, one row for each prompt."""
    zeros = torch.zeros(len(log_odds), len(log_odds[0]))
    columns = dict.fromkeys(("margin", "entropy"), zeros) | {
        name: zeros.bool() for name in ("proposal", "unchanged", "end_of_text", "delimiter")
    }
    confidence = torch.tensor(log_odds, dtype=torch.float).sigmoid()
    return columns | {
        "confidence": confidence,
        "masked": torch.tensor(masked, dtype=torch.bool),
        "length": torch.tensor(length),
        "prompt": torch.tensor(prompt),
    }


def test_the_surest_false_stop_is_that_of_masked_positions_the_answer_needs():
    columns = ended_states(
        log_odds=[[1, 2, 9, 9], [5, 1, 3, 9], [4, 4, 1, 9]],
        masked=[[1, 1, 1, 1], [1, 0, 1, 1], [1, 1, 1, 1]],
        length=[2, 3, 1],
        prompt=[0, 0, 1],
    )
    surest = surest_false_stops(Sure(["log_odds"], 4), Made(columns, Sure(["log_odds"], 4)), "train")
    # prompt 0: 2 in its first state, and 3 in its second, where position 0 has a committed token behind it
    assert surest.logit().tolist() == pytest.approx([3.0, 4.0], abs=1e-3)


def end_predictor(surest, prompts=60, scale=1):
    """A predictor and `prompts` prompts of one state each.

    Position 0 belongs to the answer, and `surest` times `scale` is its log-odds of lying past the end.
    """
    network = Sure(["log_odds"], 4)
    network.scale = scale
    columns = ended_states([[odds, 11.5] for odds in surest], [[1, 1]] * prompts, [1] * prompts, list(range(prompts)))
    return replace(PREDICTOR, kind="end_of_text", network=network), Made(columns, network)


def test_the_end_threshold_lies_above_every_false_stop_and_a_margin_above_those_in_training():
    predictor, data = end_predictor([1.0] * 60)
    setting, figures = calibrate_end(predictor, data, false_stops=0.05, confidence=0.9)
    assert torch.tensor(setting.threshold).logit() == pytest.approx(2.0, abs=1e-3)
    assert figures["false_stops_bound"] == pytest.approx(1 - 0.1 ** (1 / 60))
    predictor, data = end_predictor([1.0] * 59 + [6.5])
    assert torch.tensor(calibrate_end(predictor, data, 0.05, 0.9)[0].threshold).logit() == pytest.approx(7.5, abs=1e-2)


def test_a_predictor_that_cannot_keep_to_the_false_stops_is_refused():
    predictor, data = end_predictor([1.0] * 60)
    with pytest.raises(UserError, match=r"60 held-out prompts.*at least 230 are needed"):
        calibrate_end(predictor, data, false_stops=0.01, confidence=0.9)
    predictor, data = end_predictor([7.0] * 30 + [1.0] * 30, scale=2)
    with pytest.raises(UserError, match=r"calibrate.false_stops=0.05.*50.0%"):
        calibrate_end(predictor, data, false_stops=0.05, confidence=0.9)


def test_every_threshold_is_measured_once():
    seen = []
    calibrate_filter(
        PREDICTOR, lambda predictor: seen.append(predictor.threshold) or measure(predictor), THRESHOLDS, **TARGET
    )
    assert sorted(seen) == sorted(THRESHOLDS)


def test_the_boundary_threshold_has_the_best_f1():
    network = Sure(["log_odds"], 4)
    odds = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    columns = ended_states(odds.tolist(), [[1] * 6] * 20, [6] * 20, list(range(20)))
    data = Made(columns, network)
    label = odds + torch.randn(20, 6, generator=torch.Generator().manual_seed(1)) > 0.5
    data.question = replace_label(label)
    setting, figures = calibrate_boundary(replace(PREDICTOR, kind="boundary", network=network), data, 0.05, 0.9)

    def f1(threshold):
        said = odds.sigmoid() > threshold
        return float(2 * (said & label).sum() / (said.sum() + label.sum()))

    assert figures["f1"] == pytest.approx(f1(setting.threshold), abs=1e-6)
    assert figures["f1"] >= max(f1(threshold) for threshold in np.linspace(0.01, 0.99, 99)) - 1e-6


@pytest.mark.filterwarnings("ignore:No (positive|negative) samples")
@settings(max_examples=40)
@given(
    st.lists(
        # saturated, tied and neighbouring odds, and all others; they are multiplied by 2
        st.tuples(st.sampled_from([-11.0, 0.0, 1e-7, 8.0, 8.1, 11.0]) | st.floats(-11, 11, width=32), st.booleans()),
        min_size=1,
        max_size=12,
    )
)
def test_the_boundary_figures_are_those_of_the_threshold_that_is_set_and_no_other_is_better(judged):
    network = Sure(["log_odds"], 4)
    network.scale = 2
    rows = len(judged)
    data = Made(ended_states([[odds] for odds, _ in judged], [[1]] * rows, [1] * rows, list(range(rows))), network)
    data.question = replace_label(torch.tensor([[right] for _, right in judged]))
    setting, figures = calibrate_boundary(replace(PREDICTOR, kind="boundary", network=network), data, 0.05, 0.9)
    probability, label = probabilities(network, data.stream("validation", 64))

    def f1(threshold):
        said = probability > threshold
        return float(2 * (said & label.bool()).sum() / (said.sum() + label.sum()).clamp(min=1))

    assert 0 <= setting.threshold <= 1
    assert figures["threshold"] == setting.threshold
    assert figures["f1"] == pytest.approx(f1(setting.threshold), abs=1e-6)
    assert figures["f1"] >= max(f1(threshold) for threshold in (0.0, *probability.tolist())) - 1e-6
    precision, recall = figures["precision"], figures["recall"]
    assert figures["f1"] == pytest.approx(2 * precision * recall / max(precision + recall, 1e-9), abs=1e-6)


def replace_label(label):
    """The question whether the answer has ended, with other labels."""

    class Told(Ended):
        def label(self, columns):
            return label

    return Told()
