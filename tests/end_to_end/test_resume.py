"""A run that goes on with another configuration, after a cut, or in a folder with foreign files."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from learn2pd.cli import main as cli
from learn2pd.cli.stages.run_folder import LOCK_FILE, OUTPUTS
from learn2pd.predictors.networks import MLP
from learn2pd.training.checkpoint_io import SafetensorsCheckpointIO
from tests.fixtures import undraw_plots

pytestmark = pytest.mark.usefixtures("undrawn_plots")
SMALL = [
    "config=tiny_filter",
    "train.start=scratch",
    "data.tasks=[math]",
    "data.train_prompts=6",
    "data.validation_prompts=6",
    "data.test_prompts=2",
    "data.run_generated_code=false",
    "decode.gen_length=16",
    "decode.block_length=16",
    "record.shard_prompts=12",
    "filter=mlp",
    "train.rounds=0",
    "record.labels=reference",
    "train.max_epochs=1",
    "calibrate.target_agreement=0.3",
    "calibrate.max_accuracy_drop=null",
    "train.predictors=[]",
    "calibrate.thresholds=[0.5]",
    "compare.methods=[{name: v, policy: fixed}, {name: f, policy: filter}]",
    "compare.stops=[eot]",
    "compare.bootstrap_samples=20",
    "model.device=cpu",
    "threads=1",
]


@pytest.fixture(scope="module")
def arguments(tiny_model_folder, tmp_path_factory):
    """The tiny model, which proposes end-of-text so often here that a predictor has something to learn."""
    folder = shutil.copytree(tiny_model_folder, tmp_path_factory.mktemp("model") / "tiny")
    weights = load_file(folder / "model.safetensors")
    weights["model.transformer.ff_out.weight"][json.loads((folder / "config.json").read_text())["eos_token_id"]] *= 2
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return [*SMALL, f"model.path={folder}"]


@pytest.fixture(scope="module")
def finished(arguments, tmp_path_factory):
    output = tmp_path_factory.mktemp("run") / "out"
    with pytest.MonkeyPatch.context() as patched:
        undraw_plots(patched)
        assert cli.run([*arguments, f"output_dir={output}"]) == 0
    return output


@pytest.fixture
def output(finished, tmp_path):
    """A copy of a finished run."""
    return Path(shutil.copytree(finished, tmp_path / "out", ignore=shutil.ignore_patterns("tensorboard")))


def refusal(capsys, arguments):
    capsys.readouterr()
    assert cli.run(arguments) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    return lines[0]


def state_of(output):
    """What stands in a folder: its files with their contents, without the lock."""
    return {path: path.read_bytes() for path in output.rglob("*") if path.is_file() and path.name != LOCK_FILE}


def claims(output, section):
    return json.loads((output / "run.json").read_text(encoding="utf-8"))[section]


def test_every_output_of_a_run_is_one_that_overwrite_deletes(finished):
    known = {name.split("/")[0] for name in OUTPUTS}
    assert {path.name for path in finished.iterdir()} <= known | {LOCK_FILE}


@pytest.mark.parametrize(
    ("changed", "stages", "gone", "kept"),
    [
        (["train.max_epochs=2"], "[train]", ["policy", "compare.json"], ["records", "train", "compare"]),
        (["train.learning_rate=1e-4"], "[train,calibrate]", ["compare.json", "compare.md"], ["policy"]),
        pytest.param(["filter=conv"], "[train]", ["policy"], ["train"], marks=pytest.mark.thorough),
        (["filter=conv", "filter_options={layers: 1}"], "[train]", ["policy"], ["train"]),
        pytest.param(["train.loss_on=all"], "[train]", ["policy"], ["train"], marks=pytest.mark.thorough),
        (["calibrate.thresholds=[0.6]"], "[calibrate]", ["compare.json"], ["policy", "train", "records"]),
        (["calibrate.confidence=0.8"], "[calibrate]", ["compare.json"], ["plots/reliability.png"]),
        (["compare.bootstrap_samples=30"], "[compare]", [], ["compare.json", "policy", "train"]),
        (["data.test_prompts=3"], "[compare]", [], ["compare.json", "policy", "train"]),
    ],
    ids=str,
)
def test_a_changed_key_invalidates_the_stages_that_depend_on_it(arguments, output, changed, stages, gone, kept):
    trained = json.loads((output / "train" / "round-0" / "done.json").read_text())["train_seconds"]
    kept_keys = [entry for entry in arguments if entry.split("=")[0] not in {new.split("=")[0] for new in changed}]
    own = [*kept_keys, f"output_dir={output}", "resume=true", f"stages={stages}", *changed]
    assert cli.run(own) == 0
    assert not [name for name in gone if (output / name).exists()]
    assert all((output / name).exists() for name in kept)
    figures = json.loads((output / "metrics.json").read_text())
    assert set(figures) >= set(stages.strip("[]").split(","))
    if "max_epochs" in changed[0]:
        assert figures["train"]["rounds"][0]["epochs"] == claims(output, "train")["max_epochs"] == 2
    if stages in ("[calibrate]", "[compare]"):  # nothing was trained again
        assert json.loads((output / "train" / "round-0" / "done.json").read_text())["train_seconds"] == trained
    assert not ({"calibrate", "compare"} - set(stages.strip("[]").split(","))) & set(figures) or "[compare]" in stages


@pytest.mark.parametrize(
    ("changed", "stages", "named"),
    [
        (["decode.gen_length=20"], "[record,train]", ["gen_length 16 there, 20 now"]),
        (["decode.given=[A, null]"], "[record,train]", ["given None there, ['A', None] now"]),
        (["seed=1"], "[train]", ["seed"]),
        (["data.train_prompts=7"], "[record,train,calibrate,compare]", ["prompts"]),
        (["train.max_epochs=2"], "[calibrate,compare]", ["train.max_epochs: 1 -> 2", "stage 'train'"]),
        (["filter=conv"], "[compare]", ["filter: 'mlp' -> 'conv'", "stage 'train'"]),
        (["calibrate.confidence=0.8"], "[compare]", ["calibrate.confidence", "stage 'calibrate'"]),
        (["compare.bootstrap_samples=30"], "[train]", ["bootstrap_samples", "stage 'compare'"]),
    ],
    ids=str,
)
def test_what_cannot_be_done_again_is_refused_and_nothing_is_changed(arguments, output, capsys, changed, stages, named):
    before = state_of(output)
    kept = [entry for entry in arguments if entry.split("=")[0] not in {new.split("=")[0] for new in changed}]
    line = refusal(capsys, [*kept, f"output_dir={output}", "resume=true", f"stages={stages}", *changed])
    for part in named:
        assert part in line
    assert state_of(output) == before


@pytest.mark.parametrize("labels", ["checked", "checked_together", "reference"])
def test_labels_by_a_checker_are_refused_where_an_answer_was_corrected(labels, arguments, tmp_path, capsys):
    questions = tmp_path / "questions.jsonl"

    def run(answer):
        lines = [{"question": f"What is 6 of {number}?", "answer": answer} for number in range(5)]
        questions.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        data = ["data.source=jsonl", f"data.path={questions}", "data.prompt_field=question", "data.answer_field=answer"]
        own = [*data, "data.task=final_number", f"record.labels={labels}", "record.label_states=1", "stages=[record]"]
        kept = [entry for entry in arguments if not entry.startswith("data.")]
        return cli.run(
            [
                *kept,
                *own,
                "data.train_prompts=2",
                "data.validation_prompts=2",
                "data.test_prompts=1",
                f"output_dir={tmp_path / 'run'}",
                "resume=true",
            ]
        )

    assert run("6") == run("6") == 0
    assert run("7") == (0 if labels == "reference" else 2)
    assert ("facts_digest" in capsys.readouterr().err) == (labels != "reference")


def test_more_rounds_leave_the_finished_trainings_alone(arguments, output):
    kept = [entry for entry in arguments if not entry.startswith("train.rounds")]
    before = (output / "train" / "round-0" / "best.safetensors").stat().st_mtime_ns
    assert cli.run([*kept, f"output_dir={output}", "resume=true", "train.rounds=1", "stages=[train]"]) == 0
    assert (output / "train" / "round-0" / "best.safetensors").stat().st_mtime_ns == before
    assert (output / "train" / "round-1" / "done.json").exists()
    assert not (output / "policy").exists()


def test_a_predictor_that_is_dropped_takes_no_other_training_with_it(arguments, output):
    more = [entry for entry in arguments if not entry.startswith("train.predictors")]
    both = ["resume=true", "stages=[train]", f"output_dir={output}"]
    assert cli.run([*more, *both, "train.predictors=[end_of_text]"]) == 0
    times = {path: path.stat().st_mtime_ns for path in (output / "train" / "round-0").rglob("*") if path.is_file()}
    assert (output / "train" / "end_of_text" / "done.json").exists()
    assert cli.run([*more, *both, "train.predictors=[]"]) == 0
    assert not (output / "train" / "end_of_text").exists()
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert "end_of_text" not in json.loads((output / "metrics.json").read_text())["train"]


@pytest.mark.thorough  # three runs
def test_every_network_begins_with_weights_of_its_own_name_and_seed(arguments, output, tmp_path):
    """A run that goes on trains the networks of its next rounds as an uninterrupted one, which has drawn more."""
    changed = ("train.rounds=", "train.predictors=")
    both = [argument for argument in arguments if not argument.startswith(changed)]
    both += ["train.rounds=1", "train.predictors=[end_of_text]", "stages=[record,train]"]
    assert cli.run([*both, f"output_dir={output}", "resume=true"]) == 0
    assert cli.run([*both, f"output_dir={tmp_path / 'whole'}"]) == 0
    other = tmp_path / "other"
    assert cli.run([*both, "seed=1", f"output_dir={other}"]) == 0
    for name in ("round-0", "round-1", "end_of_text"):
        resumed, whole, drawn = (
            SafetensorsCheckpointIO().load_checkpoint(folder / "train" / name / "best.safetensors")["state_dict"]
            for folder in (output, tmp_path / "whole", other)
        )
        assert all(torch.equal(resumed[key], whole[key]) for key in whole), name
        assert not all(torch.equal(drawn[key], whole[key]) for key in whole), name


def test_another_filter_behind_the_same_path_is_not_taken_for_the_old_one(arguments, finished, tmp_path, capsys):
    base = Path(shutil.copytree(finished / "policy", tmp_path / "base"))
    own = [*arguments, f"output_dir={tmp_path / 'out'}", "train.start=full", f"policy={base}"]
    assert cli.run([*own, "stages=[record,train]"]) == 0
    described = json.loads((base / "policy.json").read_text())
    described["network"] = {"name": "mlp", "options": {"width": 16, "hidden": 8}}
    (base / "policy.json").write_text(json.dumps(described))

    save_file(MLP(16, 8).state_dict(), base / "model.safetensors")
    assert "round-0" in refusal(capsys, [*own, "stages=[calibrate]"])


@pytest.mark.parametrize("link", [False, True])
def test_overwrite_leaves_nothing_of_the_old_run(arguments, output, tmp_path, link):
    (output / "adapter").mkdir()
    (output / "adapter" / "adapter.json").write_text("{}")
    if link:
        shutil.move(output / "records", tmp_path / "elsewhere")
        (output / "records").symlink_to(tmp_path / "elsewhere")
    old = {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file() and path.name != LOCK_FILE}
    assert cli.run([*arguments, f"output_dir={output}", "stages=[record]", "overwrite=true", "seed=1"]) == 0
    described = {"metrics.json", "run.json", "report.html", "replays.json"}
    assert {path.name for path in output.iterdir()} == {LOCK_FILE, "records", *described}
    assert not [path for path, changed in old.items() if path.exists() and path.stat().st_mtime_ns == changed]
    assert claims(output, "seed") == 1


def test_outputs_of_nobody_knows_what_are_refused(arguments, output, capsys):
    (output / "run.json").unlink()
    line = refusal(capsys, [*arguments, f"output_dir={output}", "stages=[train]"])
    assert "no run.json" in line
    assert "overwrite=true" in line


# ---- files that were cut off, or that belong to something else

CUTS = {
    "empty": lambda content: b"",
    "half": lambda content: content[: len(content) // 2],
    "zeros": lambda content: bytes(len(content)),
    "an empty object": lambda content: b"{}",
    "a list": lambda content: b"[1]",
    "deep": lambda content: b"[" * 50_000,
    "other text": lambda content: b"\xff\xfe hello",
}
STATE = [
    "run.json",
    "metrics.json",
    "records/recording.json",
    "records/manifest.json",
    "records/shard-00000.json",
    "records/shard-00000.states.arrow",
    "records/shard-00000.references.arrow",
    "train/round-0/done.json",
    "train/round-0/best.safetensors",
    "train/round-0/last.safetensors",
    "policy/policy.json",
    "policy/model.safetensors",
    "compare.json",
]


def test_the_files_that_are_cut_are_those_of_a_run(finished):
    assert not [name for name in STATE if not (finished / name).is_file()]


# every file with one kind of cut; with LEARN2PD_FUZZ, every file with every kind
PAIRS = [
    (name, cut)
    for place, name in enumerate(STATE)
    for number, cut in enumerate(CUTS)
    if "LEARN2PD_FUZZ" in os.environ or (place + number) % len(CUTS) == 0
]


# of the suite: a table, weights and outcomes
OF_THE_SUITE = {"records/shard-00000.states.arrow", "train/round-0/last.safetensors", "compare.json"}


@pytest.mark.parametrize(
    ("name", "cut"),
    [pytest.param(*pair, marks=[] if pair[0] in OF_THE_SUITE else pytest.mark.thorough) for pair in PAIRS],
)
def test_a_file_that_was_cut_off_is_one_line_or_made_again(arguments, output, capsys, name, cut):
    """Each stage on its own, so that no stage mends what the next one would have to read."""
    path = output / name
    path.write_bytes(CUTS[cut](path.read_bytes()))
    for stage in ("record", "train", "calibrate", "compare"):
        capsys.readouterr()
        code = cli.run([*arguments, f"output_dir={output}", f"stages=[{stage}]"])
        shown = capsys.readouterr().err
        assert code in (0, 2), shown
        if code == 2:
            line = next(line for line in shown.splitlines() if line.startswith("error:"))
            assert str(path) in line or str(path.parent) in line
            assert any(word in line for word in ("delete", "overwrite=true", "again")), line


@pytest.mark.parametrize("cut", CUTS)
def test_a_checkpoint_to_go_on_from_that_was_cut_off_is_one_line(arguments, output, capsys, cut):
    (output / "train" / "round-0" / "done.json").unlink()
    (output / "metrics.json").unlink()
    path = output / "train" / "round-0" / "last.safetensors"
    path.write_bytes(CUTS[cut](path.read_bytes()))
    assert str(path) in refusal(capsys, [*arguments, f"output_dir={output}", "stages=[train]"])


def test_a_checkpoint_of_another_network_is_one_line(arguments, output, capsys):
    (output / "train" / "round-0" / "done.json").unlink()
    (output / "metrics.json").unlink()
    SafetensorsCheckpointIO().save_checkpoint(
        {"state_dict": {"w": torch.zeros(1)}, "epoch": 3}, output / "train/round-0/last.safetensors"
    )
    line = refusal(capsys, [*arguments, f"output_dir={output}", "stages=[train]"])
    assert "round-0/last.safetensors is of another training" in line
