"""Autoregressive methods in the table of a comparison, and the model of time."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from learn2pd import UserError
from learn2pd.autoregressive.timing import Drafting, joined, measure_costs, modelled_seconds
from learn2pd.cli.config import MethodConfig, load_config
from learn2pd.cli.stages import run_stages
from learn2pd.cli.stages.comparison_methods import check_comparison
from learn2pd.evaluation.autoregressive import autoregressive_rows
from learn2pd.evaluation.compare import build_rows, measure
from learn2pd.evaluation.curves import compare_families
from learn2pd.evaluation.outcomes import cached, merge
from learn2pd.statistics.bootstrap import Bootstrap
from tests.autoregressive.helpers import tiny_pair
from tests.autoregressive.test_generation import methods
from tests.evaluation.synthetic import outcome, table_of

FIXED = {"name": "vanilla", "policy": "fixed"}
PAIR = {"target": "checkpoints/tiny-ar", "draft": "checkpoints/tiny-ar-draft"}


def decoded(name, *, draft_length=0, overlaps=False, drafts=0, accepted=(0, 0), runs=(0, 0), model="ar", **known):
    """An outcome of an autoregressive method with known figures; its forwards cost 10 ms and 2 ms."""
    made = outcome(name, name, **known)
    labels = replace(made.labels, model=model, kind="autoregressive", mark="" if draft_length else "target")
    drafting = Drafting(list(accepted), list(runs), draft_length, overlaps, 0.01, 0.01, 0.002)
    return replace(made, labels=labels, auxiliary_forwards=np.array([drafts, drafts], np.int32), drafting=drafting)


def three_methods():
    """Plain decoding, speculative decoding and PEARL, with the same answers."""
    same = {"tokens": ((9, 8, 7, 0), (9, 0, 0, 0)), "lengths": (30, 30)}
    drafted = {"draft_length": 5, **same}
    return [
        decoded("autoregressive", forwards=(30, 30), wall_s=6.0, **same),
        decoded("speculative", forwards=(6, 6), drafts=30, accepted=(24, 24), runs=(6, 6), wall_s=3.0, **drafted),
        decoded(
            "pearl", forwards=(8, 8), drafts=40, accepted=(28, 28), runs=(2, 2), overlaps=True, wall_s=2.0, **drafted
        ),
    ]


def test_the_columns_of_an_autoregressive_method():
    plain, speculative, pearl = autoregressive_rows(three_methods())
    assert (plain["speedup_wall"], plain["speedup_modelled"], plain["speedup_stated"]) == (1, 1, 1)
    assert plain["accepted_mean"] is plain["draft_length"] is plain["draft_ms"] is None
    assert speculative["tokens_per_target_forward"] == pytest.approx(5)
    assert speculative["accepted_mean"] == pytest.approx(4)
    assert speculative["speedup_wall"] == pytest.approx(2)
    assert speculative["speedup_stated"] == pytest.approx(30 * 5 / (6 * 5 + 30))
    assert speculative["speedup_modelled"] == pytest.approx(30 * 10 / (6 * 10 + 30 * 2))
    assert pearl["accepted_mean"] == pytest.approx(14)
    assert pearl["speedup_stated"] == pytest.approx(30 / 8)
    assert pearl["target_ms"] == pytest.approx(10)


def test_without_plain_decoding_of_the_same_model_no_speedup_is_shown():
    plain, *drafted = three_methods()
    for others in (drafted, [replace(plain, labels=replace(plain.labels, model="another")), *drafted]):
        rows = [row for row in autoregressive_rows(others) if row["method"] != "autoregressive"]
        assert all(row[f"speedup_{kind}"] is None for row in rows for kind in ("wall", "modelled", "stated"))


def test_forwards_and_answers_are_compared_with_plain_decoding_of_the_same_model():
    fields = measure([outcome("vanilla", "fixed"), outcome("t", "threshold"), *three_methods()], Bootstrap(50, 0))
    rows = {row["method"]: row for row in build_rows(fields)}
    assert rows["pearl"]["agreement"] == rows["speculative"]["agreement"] == 1
    assert rows["pearl"]["speedup_forwards"] == pytest.approx(30 / 8)
    assert rows["pearl"]["speedup_forwards_threshold"] is None
    assert rows["t"]["agreement"] == 1
    assert rows["t"]["speedup_forwards_threshold"] == 1


def test_families_and_curves_are_those_of_the_dllm_alone():
    dllm = [outcome("vanilla", "fixed"), outcome("t", "threshold")]
    with_them, without = (
        compare_families(measure(outcomes, Bootstrap(50, 0)), 0.005) for outcomes in ([*dllm, *three_methods()], dllm)
    )
    assert with_them == without


def test_the_table_has_a_line_for_every_autoregressive_method():
    rows = autoregressive_rows(three_methods())
    text = table_of("autoregressive", autoregressive=rows)
    assert text.count("\n") == 1 + len(rows)
    assert "3.75x" in text


def test_an_outcome_keeps_what_the_draft_did(tmp_path):
    made = three_methods()[2]
    for _ in range(2):
        kept = cached(tmp_path / "a.safetensors", "key", made.labels, lambda: made)
        assert kept.drafting == made.drafting
    plain = outcome("vanilla", "fixed")
    cached(tmp_path / "b.safetensors", "key", plain.labels, lambda: plain)
    assert cached(tmp_path / "b.safetensors", "key", plain.labels, lambda: made).drafting is None


def test_tasks_are_joined():
    made = three_methods()[2]
    both = merge([made, made])
    assert both.drafting == replace(made.drafting, accepted=[28] * 4, runs=[2] * 4)
    assert joined([]) is None


@pytest.mark.parametrize(
    ("overlaps", "target_s", "draft_s", "seconds"),
    [(False, 5, 1, 40 * 5 + 160), (True, 5, 1, 200), (True, 5, 2, 320), (True, 0, 1, 160)],
)
def test_two_devices_take_the_time_of_the_slower_one(overlaps, target_s, draft_s, seconds):
    assert modelled_seconds(40, 160, overlaps, target_s, draft_s) == seconds


def test_costs_are_measured_for_every_method():
    for method in methods(*tiny_pair(), lengths=(3,)):
        plain_s, target_s, draft_s = measure_costs(method)
        assert plain_s > 0
        assert target_s > 0
        assert (draft_s > 0) == (method.draft is not None)


@pytest.mark.parametrize(
    ("changes", "overrides", "words"),
    [
        ({"scheduler": "dsb"}, [], ["'mine' has scheduler='dsb'"]),
        ({"cache": "dual"}, [], ["'mine' has cache='dual'"]),
        ({}, ["decode.given=[A, null]"], ["decode.given", "fills no gaps"]),
        ({}, ["compare.stops=[text]", 'decode.stop_strings=["x"]'], ["stop rule 'text'"]),
        ({"options": {"target": "checkpoints/tiny-ar"}}, [], ["needs draft"]),
    ],
)
def test_what_an_autoregressive_method_cannot_do_is_refused_before_anything_runs(
    tiny_model, tmp_path, changes, overrides, words
):
    config = load_config("tiny_ar_compare", overrides)
    described = {"name": "mine", "policy": "pearl", "options": PAIR} | changes
    config.compare.methods = [MethodConfig(**FIXED), MethodConfig(**described)]
    with pytest.raises(UserError) as error:
        check_comparison(config, tiny_model, tmp_path, trains=False)
    assert all(word in str(error.value) for word in words)


def test_a_comparison_without_a_method_of_the_dllm_is_refused(tiny_model, tmp_path):
    config = load_config("tiny_ar_compare")
    config.compare.methods = [MethodConfig("mine", "pearl", options=PAIR)]
    with pytest.raises(UserError, match="at least one method of the dLLM"):
        check_comparison(config, tiny_model, tmp_path, trains=False)


def test_a_comparison_runs_from_the_configuration(tmp_path):
    config = load_config(
        "tiny_ar_compare",
        [
            *("data.tasks=[math]", "data.test_prompts=2", "decode.gen_length=32", "compare.bootstrap_samples=10"),
            *(f"output_dir={tmp_path}", "model.device=cpu", "compare.stops=[eot]"),
        ],
    )
    named = {method.name: method for method in config.compare.methods}
    config.compare.methods = [named["vanilla"], named["autoregressive"]]
    config.compare.methods += [replace(named[name], sweep={"draft_length": [3]}) for name in ("speculative", "pearl")]
    run_stages(config)
    comparison = json.loads((tmp_path / "compare.json").read_text())
    rows = {row["method"]: row for row in comparison["rows"] if row["task"] == "all"}
    assert rows["pearl 3"]["agreement"] == rows["speculative 3"]["agreement"] == 1
    assert rows["pearl 3"]["kind"] == "autoregressive"
    assert rows["pearl 3"]["model"] == "tiny-ar"
    assert {row["method"] for row in comparison["autoregressive"]} == rows.keys() - {"vanilla"}
    assert "## Autoregressive models" in (tmp_path / "compare.md").read_text()
