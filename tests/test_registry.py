from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path

import pytest

from learn2pd import UserError, decode
from learn2pd.cli import main as cli
from learn2pd.cli.config import RunConfig
from learn2pd.cli.stages.components import provided_to
from learn2pd.decoding import provided_by
from learn2pd.policies.apd import load_apd
from learn2pd.registry import COMPONENTS, INFORMED, build, name_of

PROVIDED = {"block_length": lambda: 8, "refresh_tokens": lambda: 8, "floor": lambda: 0.25}
PAGE = Path(__file__).parents[1] / "docs" / "adding_a_policy.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)  # a policy, and a stop rule


@pytest.fixture
def written_policy(tmp_path, monkeypatch):
    """The file that docs/adding_a_policy.md tells its reader to write, in the working directory."""
    (tmp_path / "half_life.py").write_text(BLOCKS[0])
    monkeypatch.chdir(tmp_path)
    return "half_life:HalfLife"


def test_the_policy_of_the_page_decodes_and_its_option_matters(written_policy, tiny_model, make_prompts):
    prompts = make_prompts([4, 9])
    slow, fast = (
        decode(tiny_model, prompts, policy=build("policy", written_policy, {"highest": highest}, {}), gen_length=16)
        for highest in (1.0, 0.0)
    )
    assert (fast.forwards < slow.forwards).all()


def test_the_stop_rule_of_the_page_ends_behind_its_token(tmp_path, monkeypatch, tiny_model, make_prompts):
    (tmp_path / "ends_at.py").write_text(BLOCKS[1])
    monkeypatch.chdir(tmp_path)
    arguments = {"policy": "threshold", "gen_length": 16}
    whole = decode(tiny_model, make_prompts([4]), stop="none", **arguments).tokens[0].tolist()
    stop = build("stop", "ends_at:EndsAt", {"token": whole[3]}, {})
    ended = decode(tiny_model, make_prompts([4]), stop=stop, **arguments)
    assert ended.lengths.tolist() == [ended.tokens[0].tolist().index(whole[3]) + 1]


def test_the_command_of_the_page_runs(written_policy, tiny_model_folder, capsys):
    command = re.search(r"learn2pd decode .* policy=(\S+) options='(.*?)' prompt=\"(.*?)\"", PAGE.read_text())
    arguments = [
        "config=tiny_filter",
        "train.start=scratch",
        f"model.path={tiny_model_folder}",
        f"policy={command[1]}",
        f"options={command[2]}",
        f"prompt={command[3]}",
    ]
    assert command[1] == written_policy
    assert cli.guarded(lambda: cli.run_command("decode", [*arguments, "decode.gen_length=32"])) == 0


def test_its_skeleton_is_short(written_policy):
    code = [line for line in Path("half_life.py").read_text().splitlines() if line.strip()]
    assert len(code) <= 20


NEEDS = {
    "apd": "verifier",
    "apple": "folder",
    "filter": "folder",
    "keep": "folder",
    "label_oracle": "labelled",
    "oracle": "reference",
    "search": "still_right",
    "adablock": "delimiter_ids",
    "adablock_learned": "folder",
    "learned": "folder",
    "text": "strings",
}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, table in COMPONENTS.items() for name in table])
def test_every_name_is_built_or_says_what_it_needs(kind, name):
    if name in NEEDS:
        with pytest.raises(UserError, match=f"needs {NEEDS[name]}"):
            build(kind, name, {}, PROVIDED)
    else:
        component = build(kind, name, {}, PROVIDED)
        assert component.name == name
        assert name_of(kind, component) == name


def test_the_policies_that_know_the_answer_are_those_that_say_so():
    places = {name: place.split(":") for name, place in COMPONENTS["policy"].items()}
    classes = {
        name: getattr(importlib.import_module(module), attribute) for name, (module, attribute) in places.items()
    }
    assert {name for name, component in classes.items() if getattr(component, "knows_answer", False)} == set(INFORMED)


def test_what_the_caller_provides_reaches_the_component():
    assert build("scheduler", "dsb", {"mode": "const"}, PROVIDED).block_length == 8
    assert build("scheduler", "dsb", {"block_length": 4}, PROVIDED).block_length == 4
    assert build("cache", "dsb", {"prefix_window": 3}, PROVIDED).refresh_tokens == 8
    assert build("stop", "eot", {}, PROVIDED).floor == 0.25


def test_without_delimiters_adablock_takes_white_space_with_a_new_line(tiny_model, tokenizer):
    scheduler = build("scheduler", "adablock", {}, {**PROVIDED, **provided_by(tiny_model)})
    texts = [tokenizer.decode([token]) for token in scheduler.delimiter_ids]
    assert "\n" in texts
    assert all("\n" in text and not text.strip() for text in texts)


@pytest.mark.parametrize(
    ("kind", "name", "options", "words"),
    [
        ("policy", "threshhold", {}, ["threshhold", "did you mean 'threshold'"]),
        ("policy", "threshold", {"treshold": 0.5}, ["treshold", "did you mean 'threshold'"]),
        ("policy", "threshold", {"threshold": 1.5}, ["threshold=1.5"]),
        ("policy", "factor", {"factor": 0}, ["factor=0"]),
        ("policy", "localleap", {"relaxed_threshold": 0.95}, ["relaxed_threshold=0.95", "threshold=0.9"]),
        ("policy", "localleap", {"radius": -1}, ["radius=-1"]),
        ("policy", "left_to_right", {"tokens_per_step": 0}, ["tokens_per_step=0"]),
        ("policy", "fixed", {"rank": "best"}, ["rank='best'", "margin"]),
        ("policy", "apd", {"verifier": "no/such/folder"}, ["no/such/folder"]),
        ("policy", "no_such_module:Policy", {}, ["no_such_module"]),
        ("scheduler", "dsb", {"mode": "eager"}, ["mode='eager'", "const"]),
        ("scheduler", "blocks", {"block_length": 0}, ["block_length=0"]),
        ("scheduler", "adablock", {"delimiter_ids": []}, ["delimiter_ids", "empty"]),
        ("scheduler", "adablock", {"delimiter_ids": [3], "delimiter_threshold": 2}, ["delimiter_threshold=2"]),
        ("scheduler", "lookahead", {"max_lookahead": 0}, ["max_lookahead=0"]),
        ("cache", "dsb", {"prefix_window": -1}, ["prefix_window=-1"]),
        ("cache", "lookahead", {"kv_window": -2}, ["kv_window=-2"]),
        ("stop", "eot", {"floor": 3}, ["floor=3"]),
        ("policy", "threshold", {"threshold": True}, ["threshold=True", "a number", "bool"]),
        ("policy", "threshold", {"threshold": "0.9"}, ["threshold='0.9'", "a number", "str"]),
        ("policy", "threshold", {1: 2}, ["unknown option 1", "threshold"]),
        ("policy", "fixed", {"steps": 2.5}, ["steps=2.5", "a whole number or null", "float"]),
        ("policy", "fixed", {"steps": 10**20}, [f"steps={10**20}", "at most"]),
        ("policy", "factor", {"factor": float("nan")}, ["factor=nan"]),
        ("policy", "threshold", {"one_more": "no"}, ["one_more='no'", "true or false"]),
        ("policy", "localleap", {"radius": 2.5}, ["radius=2.5", "a whole number"]),
        ("policy", "apd", {"verifier": 5}, ["verifier=5", "text"]),
        ("scheduler", "blocks", {"block_length": 8.5}, ["block_length=8.5", "a whole number", "float"]),
        ("scheduler", "blocks", {"block_length": float("nan")}, ["block_length=nan", "a whole number"]),
        ("scheduler", "lookahead", {"max_lookahead": True}, ["max_lookahead=True", "a whole number or null", "bool"]),
        ("scheduler", "adablock", {"delimiter_ids": [1.5]}, ["delimiter_ids=[1.5]", "a list of a whole number"]),
        ("scheduler", "adablock", {"delimiter_ids": "ab"}, ["delimiter_ids='ab'", "a list"]),
        ("cache", "lookahead", {"kv_window": True}, ["kv_window=True", "a whole number or null", "bool"]),
        ("scheduler", "blocks", {"alignment": 3}, ["alignment=3", "text"]),
        ("scheduler", "blocks", {"alignment": "left"}, ["alignment='left'", "prompt or grid"]),
        ("cache", "duel", {}, ["duel", "did you mean 'dual'"]),
        ("cache", "dsb", {"suffix_window": float("inf")}, ["suffix_window=inf", "a whole number"]),
        ("policy", ":", {}, ["':'", "package.module:Class"]),
        ("policy", ".relative:Policy", {}, ["'.relative:Policy'", "package.module:Class"]),
        ("policy", "os:path", {}, ["'os:path'", "package.module:Class"]),
        ("policy", "builtins:int", {}, ["'builtins:int'", "package.module:Class"]),
        ("policy", "fractions:Fraction", {}, ["no Policy", "learn2pd.Policy"]),
        ("cache", "learn2pd:ThresholdPolicy", {}, ["no Cache"]),
    ],
)
def test_a_name_or_option_that_makes_no_sense_is_one_line(kind, name, options, words):
    with pytest.raises(UserError) as error:
        build(kind, name, options, PROVIDED)
    assert all(word in str(error.value) for word in words), str(error.value)
    assert "\n" not in str(error.value)


def test_options_of_the_stated_types_are_taken():
    assert build("policy", "threshold", {"threshold": 1}, {}).threshold == 1
    assert build("policy", "fixed", {"steps": None}, {}).steps is None
    assert build("cache", "lookahead", {"kv_window": None}, {}).kv_window is None
    assert build("scheduler", "adablock", {"delimiter_ids": [3, 5]}, PROVIDED).delimiter_ids == (3, 5)


def test_a_verifier_is_loaded_where_the_model_is(tiny_model):
    provided = provided_to(RunConfig(), tiny_model, Path())
    assert "device" in inspect.signature(load_apd).parameters
    assert provided["device"]() == str(tiny_model.adapter.device)


@pytest.mark.parametrize(
    "text", ["def f(:", "nothing_of_this_name", "1 / 0", "{}['a']", "raise RuntimeError('x')", "assert 0"]
)
def test_a_module_that_fails_while_it_is_imported_is_one_line(text, tmp_path, monkeypatch):
    name = f"broken_{abs(hash(text))}"
    (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="cannot be imported") as caught:
        build("policy", f"{name}:Mine", {}, {})
    assert "\n" not in str(caught.value)
