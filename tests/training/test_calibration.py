import torch
from hypothesis import given
from hypothesis import strategies as st

from learn2pd.training.calibration import calibrate, metrics_at

outcomes = st.lists(st.tuples(st.floats(0.0625, 0.9375, width=32), st.integers(0, 1)), min_size=1, max_size=60)


@given(outcomes, st.floats(0.5, 1.0))
def test_the_threshold_is_the_lowest_that_meets_the_target(pairs, target):
    probability, label = torch.tensor([p for p, _ in pairs]), torch.tensor([y for _, y in pairs])
    chosen = calibrate(probability, label, target)
    accepted = probability > chosen.threshold
    assert int(accepted.sum()) == chosen.accepted
    reached = label[accepted].double().mean().item()
    assert abs(reached - chosen.agreement) < 1e-12
    assert chosen.met == (reached >= target)
    for candidate in [0.0, *probability.tolist()]:
        if candidate < chosen.threshold:
            more = probability > candidate
            if int(more.sum()) > chosen.accepted:
                assert label[more].double().mean().item() < target


def test_metrics_at_a_threshold_are_the_counts():
    probability = torch.tensor([0.9, 0.8, 0.7, 0.2, 0.1])
    label = torch.tensor([1, 1, 0, 1, 0])
    figures = metrics_at(probability, label, 0.5)
    assert abs(figures["precision"] - 2 / 3) < 1e-6
    assert abs(figures["recall"] - 2 / 3) < 1e-6
    assert abs(figures["false_commit_rate"] - 1 / 2) < 1e-6
    assert abs(figures["auroc"] - 5 / 6) < 1e-6
