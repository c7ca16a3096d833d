"""A run with other labels, through the command line: every stage uses them, and an interrupted run goes on."""

from __future__ import annotations

import json

import pytest

from learn2pd.cli import main as cli
from learn2pd.recording.reading import Recording
from tests.recording.helpers import files

SMALL = [
    "config=tiny_filter",
    "train.start=scratch",
    "train.rounds=1",
    "train.predictors=[]",
    "train.max_epochs=1",
    "train.rollout_threshold=0.5",
    "data.train_prompts=6",
    "data.validation_prompts=6",
    "data.test_prompts=3",
    "decode.gen_length=24",
    "decode.block_length=8",
    "record.shard_prompts=6",
    "record.label_states=2",
    "record.label_positions=2",
    "calibrate.target_agreement=0.2",
    "calibrate.max_accuracy_drop=null",
    "calibrate.thresholds=[0.5]",
    "model.device=cpu",
    "threads=1",
]


def folders(labels):
    """The folders of recordings that a run with these labels has, each with the labels of its description."""
    own = {"labels/" + labels: labels, f"rounds/{labels}-1": labels} if labels != "own_answer" else {}
    return {"records": None, "rounds/1": None} | own


@pytest.mark.parametrize(
    "labels",
    [
        pytest.param("own_answer", marks=pytest.mark.thorough),
        pytest.param("continuation", marks=pytest.mark.thorough),
        pytest.param("checked", marks=pytest.mark.thorough),  # tests/recording/test_labels.py labels in this process
    ],
)
def test_a_run_trains_on_its_labels_and_goes_on_where_it_was_interrupted(tiny_model_folder, tmp_path, labels):
    arguments = [*SMALL, f"model.path={tiny_model_folder}", f"record.labels={labels}", f"output_dir={tmp_path}"]
    assert cli.run([*arguments, "stages=[record,train,calibrate]"]) == 0
    expected = {name: files(tmp_path / name) for name in folders(labels)}
    for name, of in folders(labels).items():
        assert Recording.load(tmp_path / name).description.get("labels") == of
    description = Recording.load(tmp_path / "rounds/1").description
    assert description["own_answers"] is True
    if labels != "own_answer":
        continued = Recording.load(tmp_path / f"rounds/{labels}-1").description
        assert continued["policy_fingerprint"] == description["policy_fingerprint"]
        assert len(continued["continued_by"]) == (2 if labels == "checked" else 1)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["train"]["rounds"][0].get("label_forwards_mean", 1) > 0
    assert metrics["calibrate"]["filter"]["states"]["auroc"] is not None
    for name in folders(labels):
        (tmp_path / name / "shard-00001.json").unlink()
        (tmp_path / name / "manifest.json").unlink()
    metrics.pop("train")
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    assert cli.run([*arguments, "stages=[record,train,calibrate]"]) == 0
    assert {name: files(tmp_path / name) for name in folders(labels)} == expected


def test_the_rounds_decode_with_the_options_of_the_rollouts(tiny_model_folder, tmp_path):
    """A filter that accepts nothing commits whole blocks where the model's own confidence is enough."""
    strict = ["train.rollout_threshold=1", "record.labels=own_answer", f"model.path={tiny_model_folder}"]
    strict += ["data.train_prompts=3", "data.validation_prompts=3"]
    plain = {"take_back": 0, "one_more": 1, "confidence_threshold": 1}
    forwards = {}
    for name, options in (("alone", plain), ("confident", plain | {"confidence_threshold": 0})):
        given = [f"train.rollout_options={json.dumps(options)}", f"output_dir={tmp_path / name}"]
        assert cli.run([*SMALL, *strict, *given, "stages=[record,train]"]) == 0
        rounds = Recording.load(tmp_path / name / "rounds/1")
        forwards[name] = sum(rounds.references["oracle_forwards"])
        assert rounds.description["options"] == options
    assert forwards["confident"] <= 0.3 * forwards["alone"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("{take_bak: 0.3}", ["take_bak", "did you mean 'take_back'", "it takes take_back, per_position"]),
        ("{predictor: mine}", ["unknown option 'predictor'", "it takes take_back, per_position"]),
        ("{take_back: 3}", ["take_back=3", "from 0 to 1"]),
        ("{one_more: much}", ["one_more='much'", "expected"]),
    ],
)
def test_an_option_that_the_filter_does_not_take_is_refused_before_anything_is_recorded(
    options, words, tiny_model_folder, tmp_path, capsys
):
    given = [f"train.rollout_options={options}", f"output_dir={tmp_path / 'out'}", f"model.path={tiny_model_folder}"]
    assert cli.run([*SMALL, *given]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert "train.rollout_options" in line
    assert all(word in line for word in words)
    assert not (tmp_path / "out" / "records").exists()
