import json

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from learn2pd import UserError
from learn2pd.cli.config import MethodConfig, load_config
from learn2pd.cli.stages.comparison_methods import check_comparison, expand_sweeps
from learn2pd.cli.stages.comparison_outcomes import outcome_key
from learn2pd.cli.stages.components import method_of
from learn2pd.evaluation import plots as report
from learn2pd.evaluation.compare import agreement, build_rows, measure
from learn2pd.evaluation.curves import compare_families
from learn2pd.evaluation.outcomes import cached, merge
from learn2pd.evaluation.tables import markdown, summary
from learn2pd.policies.threshold import ThresholdPolicy
from learn2pd.statistics.bootstrap import Bootstrap, better, interval, point
from tests.contract.helpers import tiny_verifier
from tests.evaluation.synthetic import outcome, table_of


def rows_of(outcomes, samples=50):
    """The rows of the table of these outcomes."""
    return build_rows(measure(outcomes, Bootstrap(samples, 0)))


def test_agreement_counts_the_reference_answer_and_its_end_of_text_only():
    reference = np.array([[5, 6, 0, 9], [7, 0, 0, 0]])
    tokens = np.array([[5, 8, 0, 1], [7, 3, 0, 0]])
    assert agreement(tokens, reference, np.array([2, 1])).tolist() == pytest.approx([2 / 3, 1 / 2])


def test_speedups_compare_under_the_same_stop_rule_and_task():
    rows = rows_of(
        [
            outcome("vanilla", "fixed", forwards=(100, 200)),
            outcome("threshold 0.9", "threshold", forwards=(30, 30)),
            outcome("filter", "filter", forwards=(10, 20)),
            outcome("vanilla", "fixed", stop="none", forwards=(256, 256)),
        ]
    )
    third = rows[2]
    assert third["speedup_forwards"] == pytest.approx(10)
    assert third["speedup_forwards_threshold"] == pytest.approx(2)
    assert third["tokens_per_forward"] == pytest.approx(20 / 30)
    assert third["tokens_per_forward_ratio_threshold"] == pytest.approx(2)
    assert rows[3]["speedup_forwards_threshold"] is None
    low, high = third["tokens_per_forward_interval"]
    assert low <= third["tokens_per_forward"] <= high


def test_agreement_is_with_the_one_token_a_step_decode_of_the_same_stop_rule():
    whole, ended = ((5, 6, 0, 0), (7, 0, 0, 0)), ((5, 8, 0, 0), (7, 0, 0, 0))
    rows = rows_of(
        [outcome("vanilla", "fixed", stop=stop, tokens=tokens) for stop, tokens in (("none", whole), ("eot", ended))]
    )
    assert [row["agreement"] for row in rows] == [1, 1]


def test_rows_have_every_key_the_design_names():
    needed = {
        "method",
        "scheduler",
        "policy",
        "cache",
        "stop",
        "task",
        "prompts",
        "accuracy",
        "agreement",
        "forwards_mean",
        "tokens_per_forward",
        "tokens_per_second",
        "wall_seconds",
        "speedup_forwards",
        "speedup_wall",
    }
    assert needed <= set(rows_of([outcome("vanilla", "fixed")])[0])


def test_merging_tasks_adds_prompts_and_time():
    both = merge([outcome("m", "fixed"), outcome("m", "fixed", task="json")])
    assert (both.labels.task, both.lengths.shape, both.tokens.shape, both.wall_s) == ("all", (4,), (4, 4), 4.0)


def test_prompts_nobody_can_judge_have_no_accuracy():
    row = rows_of([outcome("vanilla", "fixed", correct=(np.nan, np.nan))])[0]
    assert row["accuracy"] is None
    assert row["agreement"] == 1


def test_accuracy_is_over_the_prompts_that_can_be_judged():
    assert rows_of([outcome("vanilla", "fixed", forwards=(9, 9, 9), correct=(1, np.nan, 0))])[0][
        "accuracy"
    ] == pytest.approx(0.5)


def test_empty_answers_leave_numbers_that_json_has():
    empty, one = (outcome("threshold", "threshold", lengths=lengths) for lengths in ((0, 0), (0, 9)))
    for rival in (empty, one):
        fields = measure(
            [outcome("vanilla", "fixed", lengths=(0, 0)), rival, outcome("filter", "filter")], Bootstrap(50, 0)
        )
        rows = build_rows(fields)
        json.loads(json.dumps([rows, compare_families(fields, 0.005)], allow_nan=False))
        assert (rows[2]["tokens_per_forward_ratio_threshold"] is None) == (rival is empty)
        assert rows[2]["tokens_per_forward_ratio_threshold_interval"] is None


def test_what_was_taken_back_has_a_table_of_the_methods_that_took_something_back():
    """Each figure stands below its own heading, and lines about all tasks come first."""
    rows = rows_of(
        [
            outcome("vanilla", "fixed"),
            outcome("wino", "wino", revoked=(3, 4), flip_flops=(1, 0), forwards=(8, 12)),
            outcome("edit", "edit", edited=(0, 5)),
            outcome("threshold", "threshold", flip_flops=0),
        ]
    )
    columns, _, *lines = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table_of("revisions", rows=rows).splitlines()
    ]
    assert [dict(zip(columns, line, strict=True)) for line in lines] == [
        {"task": "math", "stop": "eot", "method": "wino", "forwards": "10.0", "columns/forward": "30.0"}
        | {"revoked": "3.50", "edited": "0.00", "flip-flops": "0.50"},
        {"task": "math", "stop": "eot", "method": "edit", "forwards": "15.0", "columns/forward": "30.0"}
        | {"revoked": "0.00", "edited": "2.50", "flip-flops": "0.00"},
    ]


@pytest.mark.parametrize("revising", [False, True])
def test_both_texts_of_a_comparison_say_what_was_taken_back_where_something_was(revising):
    tasks = [outcome("vanilla", "fixed", task=task, revoked=2 * revising) for task in ("math", "all")]
    fields = measure(tasks, Bootstrap(50, 0))
    names = ("model", "prompts", "seed", "gen_length", "block_length", "batch_size", "device", "dtype")
    meta = dict.fromkeys((*names, "bootstrap_samples", "accuracy_margin"), 1)
    comparison = {"meta": meta, "rows": build_rows(fields)} | compare_families(fields, 1)
    assert ("## What was taken back" in markdown(comparison)) == revising
    assert ("What was taken back:" in summary(comparison)) == revising
    revised = table_of("revisions", rows=comparison["rows"]).splitlines()
    assert [line.split(" | ")[0] for line in revised[2:]] == (["| all", "| math"] if revising else [])


@pytest.mark.parametrize("sweep", [{"threshold": []}, {"threshold": 0.5}, {"threshold": [0.5], "radius": [1]}])
def test_a_sweep_that_is_not_one_option_with_values_is_refused(sweep):
    with pytest.raises(UserError, match="one option with a list of values"):
        expand_sweeps([MethodConfig("leap", "localleap", sweep=sweep)])


def test_two_methods_of_one_name_are_refused():
    with pytest.raises(UserError, match=r"two methods are called 'leap 0.5'"):
        expand_sweeps(
            [MethodConfig("leap", "localleap", sweep={"threshold": [0.9, 0.5]}), MethodConfig("leap 0.5", "threshold")]
        )


def test_a_group_of_different_recipes_is_refused():
    seeds = [
        MethodConfig(f"seed {seed}", "filter", options={"folder": f"run{seed}/policy"}, group="mine")
        for seed in range(3)
    ]
    assert len(expand_sweeps(seeds)) == 3
    with pytest.raises(UserError, match=r"group='mine' holds 'seed 0' with scheduler='blocks' and 'other' with 'dsb'"):
        expand_sweeps([*seeds, MethodConfig("other", "filter", scheduler="dsb", group="mine")])


def test_an_outcome_is_not_taken_over_where_the_verifier_was_trained_again(tiny_model, tmp_path):
    config = load_config("tiny_compare")
    tiny_verifier().network.save_pretrained(tmp_path)
    tiny_model.tokenizer.save_pretrained(tmp_path)

    def key(**changes):
        described = {
            "name": "apd",
            "policy": "apd",
            "options": {"verifier": str(tmp_path)},
            "scheduler": "lookahead",
            "cache": "lookahead",
        }
        method = method_of(config, tiny_model, tmp_path, MethodConfig(**described | changes), "eot")
        return outcome_key(tiny_model, [], config, method)

    first = key()
    assert key() == first == key(name="renamed", group="mine")
    assert key(cache="none") != first
    weights = load_file(tmp_path / "model.safetensors")
    name = next(iter(weights))
    save_file(weights | {name: weights[name] + 1}, tmp_path / "model.safetensors", {"format": "pt"})
    assert key() != first


def test_an_outcome_is_not_taken_over_where_the_code_of_ones_own_policy_changed(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    fingerprints = []
    for number, rule in enumerate(("a = 1", "a = 2")):
        (tmp_path / f"own{number}.py").write_text(
            f"from learn2pd import Policy\n{rule}\nclass Mine(Policy):\n    name = 'mine'\n"
        )
        fingerprints.append(__import__(f"own{number}").Mine().fingerprint)
    assert len(set(fingerprints)) == 2
    assert ThresholdPolicy(0.9).fingerprint == ThresholdPolicy(0.9).fingerprint != ThresholdPolicy(0.5).fingerprint


def test_a_stored_outcome_comes_back_whole_and_under_its_new_names(tmp_path):
    first = outcome("old name", "threshold", correct=(1, np.nan))
    path = tmp_path / "kept" / "outcome.safetensors"
    assert cached(path, "key", first.labels, lambda: first) is first
    renamed = outcome("new name", "threshold", group="mine").labels
    again = cached(path, "key", renamed, lambda: pytest.fail("decoded again"))
    assert again.labels == renamed
    for name in ("correct", "tokens", "committed_at", "lengths", "forwards", "auxiliary_forwards", "failed"):
        ours, theirs = getattr(again, name), getattr(first, name)
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)
    assert (again.reasons, again.wall_s, again.model_s) == (first.reasons, first.wall_s, first.model_s)
    other = outcome("other", "threshold")
    assert cached(path, "another key", other.labels, lambda: other) is other
    path.write_bytes(path.read_bytes()[:40])
    assert cached(path, "another key", other.labels, lambda: first) is first


@pytest.mark.parametrize("key", ["stops", "methods"])
def test_a_comparison_without_a_stop_rule_or_a_method_is_refused_at_the_start(key, tiny_model, tmp_path):
    config = load_config("tiny_compare", [f"compare.{key}=[]"])
    with pytest.raises(UserError, match=rf"compare\.{key} is empty"):
        check_comparison(config, tiny_model, tmp_path, trains=False)


def test_tokens_that_look_like_formulas_are_drawn_as_they_are(tmp_path):
    report.plot_commit_steps([("$$ vanilla", ["$$ ", "$\\frac$"], [0, 1])], "title", tmp_path / "steps.png")
    assert (tmp_path / "steps.png").stat().st_size > 0


def test_the_bootstrap_is_seeded_and_brackets_the_mean():
    values = np.random.default_rng(0).normal(size=200)
    means = Bootstrap(2000, 0).sums(values[:, None])[:, 0] / 200
    low, high = interval(means)
    assert [low, high] == interval(Bootstrap(2000, 0).sums(values[:, None])[:, 0] / 200)
    assert point(means) == pytest.approx(values.mean())
    assert low < values.mean() < high
    assert (high - low) / 2 == pytest.approx(1.96 * values.std() / 200**0.5, rel=0.15)


def test_every_resample_draws_as_many_prompts_and_the_same_for_every_column(monkeypatch):
    monkeypatch.setattr("learn2pd.statistics.bootstrap.COUNTS_AT_ONCE", 70)  # in pieces
    values = np.random.default_rng(1).normal(size=20)
    ones, first, second = Bootstrap(50, 3).sums(np.stack((np.ones(20), values, 2 * values + 1), axis=1)).T
    assert ones.shape == (51,)
    assert (ones == 20).all()
    np.testing.assert_allclose(second, 2 * first + 20)
    assert len(set(first.tolist())) > 40


def test_intervals_cover_the_truth_as_often_as_they_say():
    """Of 200 samples of 100 prompts, the interval of about 95% holds the true difference of accuracy of the pair."""
    rng, covered = np.random.default_rng(0), 0
    for _ in range(200):
        skill = rng.random(100)
        pair = np.stack((skill < 0.8, skill < 0.7), axis=1)
        sums = Bootstrap(200, 0).sums(pair) / 100
        low, high = interval(sums[:, 0] - sums[:, 1])
        covered += low <= 0.1 <= high
    assert 0.88 <= covered / 200 <= 0.99


def test_half_a_tie_is_better():
    assert better(np.array([9.0, 1.0, -1.0, 0.0, 0.0])) == pytest.approx(0.5)


def test_an_answer_is_cut_short_where_it_is_the_beginning_of_the_same_methods_longer_one():
    whole, cut, other = ((5, 6, 7, 0), (5, 6, 0, 0)), ((5, 6, 0, 0), (5, 6, 0, 0)), ((9, 6, 0, 0), (5, 6, 8, 0))
    rows = rows_of(
        [
            outcome("vanilla", "fixed", stop="none", tokens=whole, lengths=(3, 2)),
            outcome("vanilla", "fixed", stop="eot", tokens=cut, lengths=(2, 2)),
            outcome("vanilla", "fixed", stop="learned", tokens=other, lengths=(2, 3)),
            outcome("threshold", "threshold", stop="eot", tokens=cut, lengths=(2, 2)),
        ]
    )
    assert [(row["method"], row["stop"], row["cut_short"]) for row in rows] == [
        ("vanilla", "none", 0),
        ("vanilla", "eot", 1),
        ("threshold", "eot", None),
        ("vanilla", "learned", 0),
    ]
