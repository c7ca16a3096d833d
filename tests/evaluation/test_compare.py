import json

import numpy as np
import pytest
import torch

from learn2pd import UserError
from learn2pd.config import MethodConfig, load_config
from learn2pd.evaluation import report
from learn2pd.evaluation.compare import Bootstrap, Outcome, agreement, build_rows, mean, merge
from learn2pd.stages.comparison import _outcome_key, expand_sweeps, stage_compare


def outcome(method, policy, stop="eot", task="math", forwards=(10, 20), lengths=(10, 10), correct=(True, False), tokens=((5, 6, 0, 0), (7, 0, 0, 0))):
    return Outcome(
        method=method, family=method, scheduler="blocks", policy=policy, cache="none", stop=stop, task=task, correct=list(correct), reasons=["", ""],
        tokens=[list(row) for row in tokens], lengths=list(lengths), forwards=list(forwards), auxiliary_forwards=[0, 0],
        failed=[False, False], committed_at=[[0] * 4] * 2, wall_s=2.0, model_s=1.0,
    )  # fmt: skip


def test_agreement_counts_the_reference_answer_and_its_end_of_text_only():
    reference = torch.tensor([[5, 6, 0, 9], [7, 0, 0, 0]])
    tokens = torch.tensor([[5, 8, 0, 1], [7, 3, 0, 0]])
    assert agreement(tokens, reference, torch.tensor([2, 1])).tolist() == pytest.approx([2 / 3, 1 / 2])


def test_speedups_compare_under_the_same_stop_rule_and_task():
    rows = build_rows(
        [
            outcome("vanilla", "fixed", forwards=(100, 200)),
            outcome("threshold 0.9", "threshold", forwards=(30, 30)),
            outcome("filter", "filter", forwards=(10, 20)),
            outcome("vanilla", "fixed", stop="none", forwards=(256, 256)),
        ],
        Bootstrap(50, 0),
    )
    chosen = rows[2]
    assert chosen["speedup_forwards"] == pytest.approx(10)
    assert chosen["speedup_forwards_threshold"] == pytest.approx(2)
    assert chosen["tokens_per_forward"] == pytest.approx(20 / 30)
    assert chosen["tokens_per_forward_ratio_threshold"] == pytest.approx(2)
    assert rows[3]["speedup_forwards_threshold"] is None
    low, high = chosen["tokens_per_forward_interval"]
    assert low <= chosen["tokens_per_forward"] <= high


def test_agreement_is_with_the_one_token_a_step_decode_of_the_same_stop_rule():
    whole, ended = ((5, 6, 0, 0), (7, 0, 0, 0)), ((5, 8, 0, 0), (7, 0, 0, 0))
    rows = build_rows([outcome("vanilla", "fixed", stop=stop, tokens=tokens) for stop, tokens in (("none", whole), ("eot", ended))], Bootstrap(20, 0))
    assert [row["agreement"] for row in rows] == [1, 1]


def test_rows_have_every_key_the_design_names():
    needed = {"method", "scheduler", "policy", "cache", "stop", "task", "prompts", "accuracy", "agreement", "forwards_mean", "tokens_per_forward",
              "tokens_per_second", "wall_seconds", "speedup_forwards", "speedup_wall"}  # fmt: skip
    assert needed <= set(build_rows([outcome("vanilla", "fixed")], Bootstrap(20, 0))[0])


def test_merging_tasks_adds_prompts_and_time():
    both = merge([outcome("m", "fixed"), outcome("m", "fixed", task="json")])
    assert (both.task, len(both.lengths), both.wall_s) == ("all", 4, 4.0)


def test_prompts_nobody_can_judge_have_no_accuracy():
    row = build_rows([outcome("vanilla", "fixed", correct=(None, None))], Bootstrap(20, 0))[0]
    assert row["accuracy"] is None
    assert row["agreement"] == 1


def test_empty_answers_leave_numbers_that_json_has():
    empty, one = (outcome("threshold", "threshold", lengths=lengths) for lengths in ((0, 0), (0, 9)))
    for rival in (empty, one):
        rows = build_rows([rival, outcome("filter", "filter")], Bootstrap(50, 0))
        json.loads(json.dumps(rows, allow_nan=False))
        assert (rows[1]["tokens_per_forward_ratio_threshold"] is None) == (rival is empty)
        assert rows[1]["tokens_per_forward_ratio_threshold_interval"] is None


@pytest.mark.parametrize("sweep", [{"threshold": []}, {"threshold": 0.5}, {"threshold": [0.5], "radius": [1]}])
def test_a_sweep_that_is_not_one_option_with_values_is_refused(sweep):
    with pytest.raises(UserError, match="one option with a list of values"):
        expand_sweeps([MethodConfig("leap", "localleap", sweep=sweep)])


def test_two_methods_of_one_name_are_refused():
    with pytest.raises(UserError, match=r"two methods are called 'leap 0.5'"):
        expand_sweeps([MethodConfig("leap", "localleap", sweep={"threshold": [0.9, 0.5]}), MethodConfig("leap 0.5", "threshold")])


def test_an_outcome_is_not_taken_over_where_the_verifier_was_trained_again(tiny_model, tmp_path):
    def key():
        method = MethodConfig("apd", "apd", options={"verifier": str(tmp_path)})
        return _outcome_key(tiny_model, [], method, tmp_path / "policy", load_config("tiny_compare"), "eot")

    (tmp_path / "model.safetensors").write_bytes(b"first")
    first = key()
    assert key() == first
    (tmp_path / "model.safetensors").write_bytes(b"again")
    assert key() != first


def test_a_comparison_without_a_stop_rule_is_refused(tmp_path):
    config = load_config("tiny_compare", ["compare.stops=[]"])
    with pytest.raises(UserError, match=r"compare\.stops"):
        stage_compare(config, tmp_path)


def test_tokens_that_look_like_formulas_are_drawn_as_they_are(tmp_path):
    report.plot_commit_steps([("$$ vanilla", ["$$ ", "$\\frac$"], [0, 1])], "title", tmp_path / "steps.png")
    assert (tmp_path / "steps.png").stat().st_size > 0
    report.plot_tradeoff(build_rows([merge([outcome("$$ vanilla", "fixed")])], Bootstrap(20, 0)), tmp_path / "tradeoff.png")
    assert (tmp_path / "tradeoff.png").stat().st_size > 0


def test_the_bootstrap_is_seeded_and_brackets_the_mean():
    values = np.random.default_rng(0).normal(size=200)
    low, high = Bootstrap(2000, 0).interval(mean, values)
    assert [low, high] == Bootstrap(2000, 0).interval(mean, values)
    assert low < values.mean() < high
    assert (high - low) / 2 == pytest.approx(1.96 * values.std() / 200**0.5, rel=0.15)
