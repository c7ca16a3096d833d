"""What a command may delete or go on with in its output_dir: every refusal leaves the folder as it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from learn2pd import UserError
from learn2pd.cli.config import identity, load_config
from learn2pd.cli.stages import check_needed
from learn2pd.cli.stages.comparison_methods import check_comparison
from learn2pd.cli.stages.run_folder import OUTPUTS, RUN_FILE, check_output, claim_output, open_output


def put(path: Path, text: str = "{}") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def state_of(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(output: Path, *overrides: str, stages=("record",)) -> str:
    """Return the one line with which a command refuses a folder, and make sure that it has changed nothing there."""
    config = load_config("tiny_filter", [f"output_dir={output}", *overrides])
    before = state_of(output)
    with pytest.raises(UserError) as caught:
        open_output(config, output, stages)
    assert state_of(output) == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def output(tmp_path) -> Path:
    """A folder with the description of a run and a policy."""
    config = load_config("tiny_filter")
    put(tmp_path / "out" / RUN_FILE, json.dumps(identity(config)))
    for name in ("policy/policy.json", "rounds/mine.jsonl"):
        put(tmp_path / "out" / name)
    return tmp_path / "out"


READ = {
    "policy": "policy=OUT/policy",
    "compare.policy": "compare.policy=OUT/policy",
    "model.path": "model.path=OUT/policy",
    "model.adapter": "model.adapter=OUT/policy",
    "data.path": "data.path=OUT/rounds/mine.jsonl",
    "data.domain": "data.domain=OUT/rounds/mine.jsonl",
    "data.validation_path": "data.validation_path=OUT/rounds/mine.jsonl",
    "data.test_path": "data.test_path=OUT/rounds/../rounds/mine.jsonl",
    "compare.methods[0].options.folder": "compare.methods=[{name: f, policy: filter, options: {folder: OUT/policy}}]",
    "compare.methods[0].options.target": "compare.methods=[{name: a, policy: apd, options: {target: OUT/policy}}]",
    "compare.methods[0].sweep.folder[1]": "compare.methods=[{name: a, policy: x, sweep: {folder: [a, OUT/policy]}}]",
}


@pytest.mark.parametrize("key", READ)
def test_overwrite_does_not_delete_what_the_command_reads(output, key):
    line = refused(output, "overwrite=true", READ[key].replace("OUT", str(output)))
    assert line.startswith(f"{key}=")
    assert "overwrite=true" in line
    assert str(output) in line


def test_overwrite_does_not_delete_what_a_link_leads_to(output, tmp_path):
    (tmp_path / "link").symlink_to(output / "policy")
    assert refused(output, "overwrite=true", f"policy={tmp_path / 'link'}").startswith("policy=")


def test_overwrite_deletes_what_no_key_names(output):
    config = load_config("tiny_filter", [f"output_dir={output}", "overwrite=true"])
    open_output(config, output)
    assert [path.name for path in output.iterdir()] == [RUN_FILE]


@pytest.mark.parametrize(
    ("name", "described"),
    [
        pytest.param(name, described, marks=pytest.mark.thorough if (one + other) % 3 else [])
        for one, name in enumerate(name for name in OUTPUTS if name not in (RUN_FILE, "metrics.json"))
        for other, described in enumerate([None, "{}", '{"their": "own"}', "[1]"])
    ],
)
def test_what_no_run_has_made_is_neither_deleted_nor_overwritten(tmp_path, name, described):
    put(tmp_path / name if "." in name else tmp_path / name / "mine.txt")
    if described is not None:
        put(tmp_path / RUN_FILE, described)
        put(tmp_path / "metrics.json", '{"their": {}}')
    kept = name.split("/")[0]
    assert kept in refused(tmp_path, "overwrite=true") or described
    for flag in ([], ["resume=true"]):
        line = refused(tmp_path, *flag)
        assert kept in line or described
        assert "overwrite=true" not in line


def test_a_description_that_is_not_of_a_run_is_not_deleted(tmp_path):
    put(tmp_path / RUN_FILE, '{"their": "own"}')
    assert RUN_FILE in refused(tmp_path, "overwrite=true")


@pytest.mark.parametrize("name", ["policy", "rounds", "plots", "compare", "reinforced", "labels", "train"])
@pytest.mark.parametrize("flags", [[], ["resume=true"]], ids=str)
def test_outputs_without_a_description_are_not_gone_on_with(tmp_path, name, flags):
    put(tmp_path / name / "x")
    put(tmp_path / "metrics.json", '{"record": {}}')
    line = refused(tmp_path, *flags)
    assert "no run.json" in line
    assert "overwrite=true" in line


@pytest.mark.parametrize("flags", [[], ["resume=true"], ["overwrite=true"]], ids=str)
def test_a_folder_with_a_recording_alone_may_be_used(tmp_path, flags):
    put(tmp_path / "records" / "recording.json")
    config = load_config("tiny_filter", [f"output_dir={tmp_path}", *flags])
    with claim_output(config) as output:
        open_output(config, output)
    assert (tmp_path / "records").exists() == (flags != ["overwrite=true"])


@pytest.mark.parametrize("flags", [[], ["resume=true"], ["overwrite=true"]], ids=str)
def test_an_output_dir_that_is_a_file_is_named(tmp_path, flags):
    put(tmp_path / "file")
    config = load_config("tiny_filter", [f"output_dir={tmp_path / 'file'}", *flags])
    with pytest.raises(UserError, match="it is a file; expected a folder"):
        check_output(config, tmp_path / "file")


# ---- stages whose needs are deleted, and methods whose predictors nobody trains

RULES = "compare.methods=[{name: v, policy: fixed}]"
FILTER = "compare.methods=[{name: v, policy: fixed}, {name: f, policy: filter}]"


@pytest.mark.parametrize(
    ("stages", "overrides", "needed"),
    [
        (["record"], [], None),
        (["record", "train", "calibrate", "compare"], [FILTER], None),
        (["train"], [], "record"),
        (["calibrate"], [], "record"),
        (["record", "calibrate"], [], "train"),
        (["compare"], [FILTER], "calibrate"),
        (["compare"], [FILTER, "compare.policy=elsewhere"], None),
        (["compare"], ["compare.methods=[{name: f, policy: filter, options: {folder: elsewhere}}]"], None),
        (["compare"], [RULES], None),
        (["compare"], [RULES, "compare.stops=[learned]"], "calibrate"),
        (["compare"], [FILTER, "stages=[record,train,calibrate,reinforce,compare]"], "reinforce"),
        (["reinforce"], ["policy=null"], "calibrate"),
        (["reinforce"], ["policy=elsewhere"], None),
    ],
    ids=str,
)
def test_overwrite_does_not_delete_what_a_stage_needs(stages, overrides, needed):
    config = load_config("tiny_filter", [*overrides, "overwrite=true"])
    check_needed(load_config("tiny_filter", overrides), stages)
    if needed is None:
        check_needed(config, stages)
        return
    with pytest.raises(UserError, match=f"{needed!r}, which the stage {stages[-1]!r} needs") as caught:
        check_needed(config, stages)
    assert "learn2pd run config=tiny_filter" in str(caught.value)
    assert "resume=true" in str(caught.value)


NEEDING = {
    "keep": ["compare.methods=[{name: v, policy: fixed}, {name: mine, policy: keep}]"],
    "end_of_text": ["compare.methods=[{name: mine, policy: fixed}]", "compare.stops=[eot,learned]"],
    "boundary": ["compare.methods=[{name: mine, policy: fixed, scheduler: adablock_learned}]"],
}


@pytest.mark.parametrize("predictor", NEEDING)
@pytest.mark.parametrize("trained", [[], ["keep"], ["end_of_text"], ["boundary"], ["end_of_text", "keep"]], ids=str)
def test_a_predictor_that_is_not_going_to_be_trained_is_missed_at_once(tiny_model, tmp_path, predictor, trained):
    overrides = [*NEEDING[predictor], f"train.predictors=[{','.join(trained)}]"]
    if predictor in trained:
        check_comparison(load_config("tiny_filter", overrides), tiny_model, tmp_path, trains=True)
        overrides.append("stages=[record,train,calibrate,reinforce,compare]")
        named = ["reinforce", "compare.policy"]
    else:
        named = ["train.predictors="]
    with pytest.raises(UserError) as caught:
        check_comparison(load_config("tiny_filter", overrides), tiny_model, tmp_path, trains=True)
    for part in (*named, repr(predictor), "'mine'"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("key", "shown"),
    [
        ("compare.methods[0].name=b", "compare.methods[0].name: 'vanilla' -> 'b'"),
        ("compare.methods[1].sweep={threshold: [0.5]}", "compare.methods[1].sweep.threshold: [0.9, 0.8, 0.98] ->"),
        ("compare.methods=[{name: vanilla, policy: fixed}]", "compare.methods: 7 entries -> 1 entries"),
        ("train.predictors=[]", "train.predictors: ['keep'] -> []"),
    ],
)
def test_a_changed_key_is_worded_by_its_first_difference(output, key, shown):
    line = refused(output, key)
    assert f"({shown}" in line
    assert len(line) < 400
