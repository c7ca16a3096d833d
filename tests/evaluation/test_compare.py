import numpy as np
import pytest
import torch

from learn2pd.evaluation.compare import Bootstrap, Outcome, agreement, build_rows, mean, merge


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


def test_the_bootstrap_is_seeded_and_brackets_the_mean():
    values = np.random.default_rng(0).normal(size=200)
    low, high = Bootstrap(2000, 0).interval(mean, values)
    assert [low, high] == Bootstrap(2000, 0).interval(mean, values)
    assert low < values.mean() < high
    assert (high - low) / 2 == pytest.approx(1.96 * values.std() / 200**0.5, rel=0.15)
