"""Other people's prompts in whole runs, at tiny size."""

from __future__ import annotations

import json

import pytest
from safetensors import safe_open

from learn2pd.cli import main as cli
from learn2pd.recording.reading import Recording
from tests.data.helpers import RECORDS, questions, write

pytestmark = pytest.mark.usefixtures("undrawn_plots")
METHODS = (
    "compare.methods=[{name: vanilla, policy: fixed}, {name: quick, policy: threshold, options: {threshold: 0.3}}]"
)


@pytest.fixture
def arguments(tiny_model_folder, tmp_path):
    return [
        "config=tiny_real_filter",
        f"model.path={tiny_model_folder}",
        "model.device=cpu",
        "threads=1",
        f"output_dir={tmp_path / 'out'}",
        "decode.gen_length=16",
        "decode.block_length=16",
        "data.train_prompts=3",
        "data.validation_prompts=3",
        "data.test_prompts=4",
        "compare.stops=[eot]",
        "compare.bootstrap_samples=20",
        "record.shard_prompts=4",
        METHODS,
    ]


def test_requests_have_their_scores_beside_the_table(arguments, tmp_path):
    assert cli.run([*arguments, "stages=[compare]"]) == 0
    comparison = json.loads((tmp_path / "out" / "compare.json").read_text(encoding="utf-8"))
    assert [(row["method"], row["task"], row["prompts"]) for row in comparison["scores"]] == [
        ("vanilla", "slots", 4),
        ("quick", "slots", 4),
    ]
    assert comparison["scores"][0]["scores"] == ["valid JSON", "intent", "slot F1"]
    assert {row["accuracy"] for row in comparison["rows"]} == {0}
    assert "## How near the answers come" in (tmp_path / "out" / "compare.md").read_text(encoding="utf-8")


def test_another_reference_is_judged_anew_and_not_taken_from_the_last_comparison(arguments, tmp_path):
    path = tmp_path / "p.jsonl"
    own = [*arguments, "stages=[compare]", f"data.path={path}", "resume=true"]
    made = []
    for digit in "112":
        write(
            path, [{"prompt": f"{n} or 1 or 2", "answer": f'{{"intent": "a", "x": "{digit}"}}'} for n in range(10, 20)]
        )
        assert cli.run(own) == 0
        made.append({file.stat().st_mtime_ns for file in (tmp_path / "out" / "compare").iterdir()})
    assert made[0] == made[1]
    assert not made[1] & made[2]


@pytest.mark.parametrize("stages", ["[record]", "[compare]", "[record,train,calibrate,compare]"])
def test_a_long_test_prompt_is_refused_before_the_run_leaves_anything(arguments, tmp_path, capsys, stages):
    test = write(tmp_path / "test.jsonl", [*RECORDS[:3], {"prompt": "play " * 900, "answer": '{"intent": "a"}'}])
    own = [*arguments, f"data.test_path={test}", f"stages={stages}", "calibrate.target_agreement=0.1"]
    assert cli.run(own) == 2
    assert "test.jsonl, line 4 ('play play" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_long_prompts_are_left_out_of_every_stage(arguments, tmp_path):
    lines = [*RECORDS, {"prompt": "play " * 900, "answer": '{"intent": "a"}'}]
    path = write(tmp_path / "p.jsonl", lines)
    own = [*arguments, f"data.path={path}", "data.skip_long=true", "data.train_prompts=5", "stages=[record,compare]"]
    assert cli.run([*own, "data.validation_prompts=3", "data.test_prompts=3"]) == 0
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["record"]["prompts"] + metrics["compare"]["prompts"] == 10


def test_prompts_that_nothing_judges_count_in_no_accuracy(arguments, tmp_path):
    train = write(tmp_path / "train.jsonl", questions(10))
    test = write(tmp_path / "test.jsonl", [*questions(3, 50), {"question": "What if?", "answer": "it depends"}])
    own = ["data.prompt_field=question", "data.task=final_number", f"data.path={train}", f"data.test_path={test}"]
    assert cli.run([*arguments, "stages=[compare]", *own]) == 0
    rows = json.loads((tmp_path / "out" / "compare.json").read_text(encoding="utf-8"))["rows"]
    assert {row["task"]: row["prompts"] for row in rows} == {"all": 4, "final_number": 3, "prompts": 1}
    assert {row["task"]: row["accuracy"] for row in rows} == {"all": 0, "final_number": 0, "prompts": None}


def test_programs_are_not_judged_late_without_permission(arguments, tmp_path, capsys):
    own = ["data.source=tasks", "data.tasks=[code]", "data.path=null", "data.run_generated_code=false"]
    assert cli.run([*arguments, *own, "stages=[record,train]", "train.max_epochs=1"]) == 2
    assert "data.run_generated_code=true" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert cli.run([*arguments, *own, "stages=[record]"]) == 0


def test_a_target_of_accuracy_needs_prompts_that_something_judges(arguments, tmp_path, capsys):
    own = ["data.answer_field=null", "calibrate.target_agreement=null", "calibrate.max_accuracy_drop=0.5"]
    assert cli.run([*arguments, *own]) == 2
    assert "no checker judges these prompts" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_stop_strings_and_given_parts_of_the_configuration_reach_every_decode(arguments, tmp_path):
    own = [*arguments, "decode.given=[Sure, 4, null]", "decode.stop_strings=[e, a]", "compare.stops=[eot, text]"]
    assert cli.run([*own, "stages=[record, compare]"]) == 0
    texts = {}
    for path in (tmp_path / "out" / "compare").iterdir():
        with safe_open(path, "np") as stored:
            texts[path.name] = stored.get_tensor("tokens")
    recording = Recording.load(tmp_path / "out" / "records")
    beginnings = [row[:2] for tokens in texts.values() for row in tokens.tolist()]
    beginnings += [row[:2] for row in recording.references.with_format("numpy")["tokens"][:].tolist()]
    assert len({tuple(row) for row in beginnings}) == 1
    assert len(texts) == 4


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["compare.stops=[text]"], "decode.stop_strings is empty"),
        (["compare.stops=[eot]", "decode.stop_strings=[a]"], "only the stop rule 'text' reads them"),
        (["compare.stops=[text]", "decode.stop_strings=['']"], "a text is empty"),
        (["compare.stops=[text]", "decode.stop_strings=[[1]]"], "expected text, got a list"),
        (["decode.given=[Sure]"], "decode.given: the model has no position to fill"),
        (["decode.given=[Sure, 400]"], "decode.given: the part 400"),
        (["decode.given=[{a: 1}]"], "decode.given: the part {'a': 1}"),
        (["decode.given=Sure"], "decode.given='Sure': expected a list"),
    ],
)
def test_wrong_stop_strings_and_given_parts_are_refused_before_anything_is_recorded(
    arguments, tmp_path, capsys, overrides, words
):
    assert cli.run([*arguments, *overrides, "stages=[record, compare]"]) == 2
    line = capsys.readouterr().err
    assert words in line
    assert line.count("\n") == 1
    assert not (tmp_path / "out" / "records").exists()


def answer(capsys, arguments: list[str], *more: str) -> str:
    """What `learn2pd decode` prints."""
    assert cli.guarded(lambda: cli.run_command("decode", [*arguments, "policy=threshold", "prompt=Hello", *more])) == 0
    return capsys.readouterr().out


def test_the_command_line_takes_stop_strings_and_given_parts(arguments, capsys):
    whole = answer(capsys, arguments).removesuffix("\n")
    middle = whole[len(whole) // 2]
    assert answer(capsys, arguments, f"decode.stop_strings={json.dumps([middle])}") == whole.split(middle)[0] + "\n"
    filled = answer(capsys, arguments, 'decode.given=["Yes, ", 3, " it is."]')
    assert filled.startswith("Yes, ")
    assert filled.endswith(" it is.\n")
