"""`learn2pd check` prints a line for each certificate, and its exit code is 1 where one of them does not hold."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
import torch

from learn2pd import UserError, load_keep, load_policy
from learn2pd.cli import check as checks
from learn2pd.cli import main as cli
from learn2pd.predictors.saving import save_predictor
from learn2pd.roles import Policy
from learn2pd.types import Commit
from tests.fixtures import CAUSAL_BLOCK, save_tiny_family

SMALL = ["decode.gen_length=16", "count=5", "decode.block_length=8"]


@pytest.fixture(scope="module")
def causal_folder(tokenizer, tmp_path_factory):
    return save_tiny_family("sdar", tmp_path_factory.mktemp("sdar"), tokenizer)


def run(capsys, *arguments) -> tuple[int, dict[str, tuple[str, str]]]:
    code = cli.guarded(lambda: cli.run_command("check", [*SMALL, *arguments]))
    lines = capsys.readouterr().out.splitlines()
    rows = [re.fullmatch(r"(ok|wrong|left out) +(.{24}) (.+)", line).groups() for line in lines]
    return code, {subject.strip(): (state, text) for state, subject, text in rows}


def test_a_rule_on_a_model_with_full_attention(tiny_model_folder, capsys):
    code, shown = run(capsys, f"model={tiny_model_folder}", "policy=threshold")
    assert code == 0
    assert shown["row alone = row in batch"] == ("ok", "4 of 4 prompts have the same tokens and forwards")
    assert shown["cache = no cache"][0] == "left out"
    assert shown["block step = loop"] == ("ok", "4 of 4 prompts have the same tokens and forwards")
    assert shown["float32 on the CPU"][0] == "ok"
    assert shown["calibrated loss"] == ("left out", "policy 'threshold' is not calibrated")


def test_rows_that_are_decoded_alone_anyway_need_no_check(tiny_model_folder, capsys):
    code, shown = run(capsys, f"model={tiny_model_folder}", "policy=threshold", "decode.batch_invariant=true")
    assert code == 0
    assert shown["row alone = row in batch"][0] == "left out"


def test_the_cache_of_a_block_causal_model_is_exact(causal_folder, capsys):
    code, shown = run(capsys, f"model={causal_folder}", "policy=low_confidence", "prompts=math")
    assert code == 0
    assert shown["cache = no cache"] == (
        "ok",
        "5 of 5 prompts have the same tokens and forwards with causal_block and none",
    )
    assert shown["block step = loop"] == ("ok", "4 of 4 prompts have the same tokens and forwards")
    assert CAUSAL_BLOCK == 8


def test_other_types_are_compared_with_float32(tiny_model_folder, capsys):
    options = [f"model={tiny_model_folder}", "policy=threshold", "model.dtype=bfloat16"]
    code, shown = run(capsys, *options, "least_agreement=0")
    assert code == 0
    assert re.match(r"\d+\.\d\d% of the tokens agree, \d of 5 answers are equal", shown["float32 on the CPU"][1])
    code, shown = run(capsys, *options, "least_agreement=1")
    assert (code, shown["float32 on the CPU"][0]) == (1, "wrong")  # bfloat16 changes tokens of a random model
    assert run(capsys, *options, "reference=false")[1]["float32 on the CPU"] == ("left out", "reference=false")


class Peeking(Policy):
    """A rule of one's own that breaks the promise: what it commits in a row depends on the number of rows."""

    name = "peeking"

    def select(self, prediction, eligible, state, memory):
        return Commit(eligible if len(eligible) > 1 else torch.zeros_like(eligible))


def test_a_policy_that_looks_at_other_rows_is_found(tiny_model_folder, capsys):
    code, shown = run(capsys, f"model={tiny_model_folder}", f"policy={__name__}:Peeking")
    assert code == 1
    assert shown["row alone = row in batch"][0] == "wrong"


@pytest.mark.thorough  # it decodes hundreds of prompts
def test_the_loss_of_a_calibrated_policy(tmp_path, capsys):
    together = load_keep("checkpoints/tiny-llada-filter").setting
    shipped = load_policy("checkpoints/tiny-llada-filter").predictor
    code, shown = run(capsys, "policy=checkpoints/tiny-llada-filter", "prompts=math", "decode.block_length=32")
    assert code == 0
    assert f"promised {together.loss_bound:.2%}" in shown["calibrated loss"][1]
    assert shown["calibrated loss"][0] == "ok"
    setting = replace(shipped.curve[0], threshold=0.0, loss_bound=0.01)
    reckless = replace(shipped, threshold=0.0, curve=(setting,))
    given = [f"policy={tmp_path}", "prompts=math", "decode.block_length=32"]
    save_predictor(reckless, tmp_path)
    code, shown = run(capsys, *given, "decode.gen_length=96")
    assert re.search("[1-9][0-9.]*% of accuracy is lost against one token a step", shown["calibrated loss"][1])
    metrics = shipped.metrics | {"target_agreement": 0.9, "max_accuracy_drop": None}
    save_predictor(replace(reckless, metrics=metrics), tmp_path)
    code, shown = run(capsys, *given)
    assert (code, shown["calibrated loss"][0]) == (1, "wrong")
    code, shown = run(capsys, "policy=checkpoints/tiny-llada-filter", "prompts=code", "decode.block_length=32")
    assert shown["calibrated loss"][0] == "left out"
    assert "run_generated_code" in shown["calibrated loss"][1]
    code, shown = run(capsys, f"policy={tmp_path}", "options.threshold=0.5", "prompts=math", "decode.block_length=32")
    assert shown["calibrated loss"] == ("left out", "threshold 0.5 is not on the calibrated curve")


@pytest.mark.parametrize(
    "options",
    [
        ["options.take_back=0.1"],
        ["options.one_more=1.0"],
        ["policy=filter", "options.take_back=0.3"],
        ["policy=filter", "options.one_more=0.5"],
    ],
)
def test_a_bound_is_not_promised_for_options_with_which_nothing_was_measured(options, capsys):
    _, shown = run(capsys, "count=2", "prompts=math", "decode.block_length=32", *options)
    assert shown["calibrated loss"] == ("left out", "the calibrated curve was not measured with these options")


def test_a_file_of_prompts_is_fresh_as_a_whole(tiny_model_folder, tmp_path, monkeypatch):
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps({"question": f"Add {n}."}) + "\n" for n in range(7)), encoding="utf-8")
    seen = []
    monkeypatch.setattr(checks, "certificates", lambda case, config, own: seen.append(case) or ())
    cli.run_command("check", [*SMALL, f"model={tiny_model_folder}", "policy=threshold", f"prompts={path}"])
    assert len(seen[0].prompts) == 5


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["prompts=nowhere.jsonl"], "nowhere.jsonl"),
        (["prompts=[math, nowhere]"], "expected built-in tasks"),
        (["count=1"], "count=1"),
        (["decode.temperature=0.5"], "decode.temperature"),
        (["decode.gen_length=511"], "expected at least 2"),
        (["promts=math"], "did you mean 'prompts'"),
        (["least_agreement=2"], "least_agreement=2"),
    ],
)
def test_what_is_wrong_is_one_line(tiny_model_folder, arguments, words):
    with pytest.raises(UserError) as error:
        cli.run_command("check", [*SMALL, f"model={tiny_model_folder}", "policy=threshold", *arguments])
    assert words in str(error.value)
    assert "\n" not in str(error.value)
