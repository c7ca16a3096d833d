"""What users get wrong, through the command line: exit code 2 and one line that names the value and what is allowed."""

from __future__ import annotations

import hashlib
import json
import logging

import pytest
import torch
from safetensors.torch import save_file

from learn2pd.cli import main as cli
from learn2pd.training.checkpoint_io import SafetensorsCheckpointIO
from tests.embedded.helpers import ROOT, tiny, write_config

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's


@pytest.fixture
def refused(tmp_path, capsys):
    """Start the tiny training with some keys and return the one line that it ends with."""
    config = write_config(tmp_path, tiny(tmp_path))

    def start(*overrides, command=None):
        arguments = [config, *overrides]
        capsys.readouterr()
        code = cli.guarded(lambda: cli.run_command(command, arguments)) if command else cli.run(arguments)
        shown = capsys.readouterr()
        assert code == 2, shown.err
        assert shown.out == ""
        line = shown.err.removesuffix("\n")
        assert line.startswith("error: ")
        assert "\n" not in line
        return line

    return start


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """A folder with a short training that finished."""
    folder = tmp_path_factory.mktemp("started")
    described = tiny(folder)
    described["schedule"] |= {"total_steps": 2}
    assert cli.run([write_config(folder, described)]) == 0
    return folder


def again(folder, *overrides):
    """The arguments that start the training of a folder again."""
    return [f"config={folder / 'tiny.yaml'}", *overrides]


WRONG = {
    "schedule.total_steps=abc": ("schedule.total_steps='abc'", "whole number"),
    "schedule.total_steps=1.5": ("schedule.total_steps=1.5", "whole number"),
    "schedule.total_steps=0": ("schedule.total_steps=0", "at least 1"),
    "schedule.warmup_steps=0": ("schedule.warmup_steps=0", "at least 1"),
    "schedule.checkpoint_every_steps=-1": ("schedule.checkpoint_every_steps=-1", "at least 1"),
    "schedule.muon_lr=3": ("schedule.muon_lr=3", "between 0 and 1"),
    "schedule.adam_lr=.nan": ("schedule.adam_lr=nan", "between 0 and 1"),
    "schedule.decay_share=2": ("schedule.decay_share=2", "from 0 to 1"),
    "schedule.weight_decay=.nan": ("schedule.weight_decay=nan", "at least 0"),
    "shape.long_share=2": ("shape.long_share=2", "from 0 to 1"),
    "shape.prefix_share=-0.1": ("shape.prefix_share=-0.1", "from 0 to 1"),
    "shape.batch_examples=0": ("shape.batch_examples=0", "at least 1"),
    "shape.length=1000": ("shape.length=1000", "at most network.max_sequence_length=400"),
    "shape=3": ("shape", "must hold keys and values"),
    "examples.swap_share=1.5": ("examples.swap_share=1.5", "from 0 to 1"),
    "examples.invent_share=.nan": ("examples.invent_share=nan", "from 0 to 1"),
    "examples.tasks=math": ("examples.tasks='math'", "list"),
    "examples.tasks=[math]": ("examples.tasks=['math']", "examples.tasks=[]"),
    "examples.tasks=[maths]": ("examples.tasks='maths'", "math, json, code; did you mean 'math'"),
    "examples.path=null": ("examples.path=None", "expected a JSONL file each"),
    "examples.validation_path=null": ("examples.validation_path=None", "expected a JSONL file each"),
    "network.kind=lama": ("network.kind='lama'", "llada, sdar, llama; did you mean 'llama'"),
    "network.block_size=0": ("network.block_size=0", "at least 1"),
    "network.d_model=18": ("network.d_model=18", "multiple of twice network.n_heads=2"),
    "network.n_layers=0": ("network.n_layers=0", "at least 1"),
    "network={kind: llama, rope_theta: 500.0}": ("network.rope_theta=500.0", "expected 10000.0"),
    "device=gpu": ("device='gpu'", "use auto, cpu or cuda"),
    "device=meta": ("device='meta'", "use auto, cpu or cuda"),
    "vocab_size=100": ("vocab_size=100", "at least 260"),
    "threads=0": ("threads=0", "at least 1"),
    "seed=-1": ("seed=-1", "from 0 to 4294967295"),
    "resume=true": ("resume=true", "goes on by itself"),
    "job=embeded": ("job='embeded'", "is a configuration of job=embedded"),
    "job=policy": ("job='policy'", "is a configuration of job=embedded"),
    "schedule.total_step=3": ("schedule.total_step", "did you mean 'schedule.total_steps'"),
    "network.dmodel=3": ("network.dmodel", "did you mean 'network.d_model'"),
    "model.path=x": ("model.path", "unknown key"),
    "total_steps=3": ("total_steps", "did you mean 'schedule.total_steps'"),
}


@pytest.mark.parametrize("override", WRONG)
def test_a_value_that_makes_no_sense_is_named_with_what_is_allowed(override, refused, tmp_path):
    line = refused(override)
    assert all(part in line for part in WRONG[override]), line
    assert not (tmp_path / "run").exists()  # a mistyped command leaves no trace that the next one would trip over
    assert not (tmp_path / "export").exists()


@pytest.mark.parametrize("job", ["embeded", ["embedded"], 3], ids=str)
def test_a_file_of_an_unknown_job_is_refused(job, tmp_path, capsys):
    assert cli.run([write_config(tmp_path, tiny(tmp_path) | {"job": job})]) == 2
    assert f"job={job!r}: expected one of policy, embedded" in capsys.readouterr().err


def test_a_file_without_an_export_path_is_refused(tmp_path, capsys):
    described = tiny(tmp_path)
    del described["export_path"]
    assert cli.run([write_config(tmp_path, described)]) == 2
    assert "export_path" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["record", "train", "calibrate", "compare", "decode"])
def test_other_commands_name_the_one_that_trains(command, refused):
    assert "python train.py config=" in refused(command=command)


def test_a_dry_run_names_the_command_that_trains(refused):
    assert "trains an embedded model" in refused("--dry-run")
    assert "trains an embedded model" in refused("--dry-run", command="record")


@pytest.mark.parametrize("name", ["tiny_dllm", "tiny_ar", "tiny_real_dllm"])
def test_the_configurations_of_the_repository_train_embedded_models(name, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert cli.guarded(lambda: cli.run_command("record", [f"config={name}"])) == 2
    assert f"start it with python train.py config={name}" in capsys.readouterr().err


def test_the_second_models_configuration_says_that_the_requests_are_missing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    folders = [f"output_dir={tmp_path / 'run'}", f"export_path={tmp_path / 'export'}"]
    assert cli.run(["config=tiny_real_dllm", *folders]) == 2
    assert "examples.path='snips_train.jsonl': cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize("key", ["examples.path", "examples.validation_path"])
def test_a_data_file_that_is_missing_or_no_jsonl_is_named_by_its_key(key, refused, tmp_path):
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "other").write_text('{"question": "a"}\nnonsense\n')
    for name, reason in {
        "missing": "cannot be read",
        "": "cannot be read",
        "binary": "cannot be read",
        "empty": "the file is empty",
        "other": "no line holds a request; the first: line 2",
    }.items():
        line = refused(f"{key}={tmp_path / name}")
        assert f"{key}={str(tmp_path / name)!r}" in line
        assert reason in line


def test_a_data_file_that_is_cut_off_or_of_another_version_is_refused(refused, tmp_path):
    path = tmp_path / "train.jsonl"
    whole = path.read_bytes()
    digest = hashlib.sha256(whole).hexdigest()[:16]
    for content in (whole[:-700], whole[:-1], whole + b"\n", whole.replace(b"JSON", b"json", 1)):
        path.write_bytes(content)
        line = refused(f"examples.digest={digest}")
        assert f"examples.path={str(path)!r}" in line
        assert digest in line
        assert hashlib.sha256(content).hexdigest()[:16] in line
        assert "cut off or of another version" in line


def test_lines_that_hold_no_request_are_counted_and_left_out(tmp_path, caplog):
    """The training with them is the training without them."""
    good = tiny(tmp_path)
    good["schedule"] |= {"total_steps": 1}
    assert cli.run([write_config(tmp_path, good)]) == 0
    path = tmp_path / "train.jsonl"
    bad = [
        "{not json",
        '["a list"]',
        '{"prompt": "twice", "prompt": "twice", "answer": "{\\"intent\\": \\"a\\"}"}',
        json.dumps({"prompt": "a key twice", "answer": '{"intent": "a", "intent": "b"}'}),
        json.dumps({"prompt": "a slot from elsewhere", "answer": '{"intent": "a", "city": "Rome"}'}),
        json.dumps({"prompt": "a record", "answer": {"intent": "a"}}),
        json.dumps({"prompt": " ", "answer": '{"intent": "a"}'}),
        json.dumps({"answer": '{"intent": "a"}'}),
        json.dumps({"prompt": "half \ud800", "answer": '{"intent": "a"}'}),
        json.dumps({"prompt": "half", "answer": '{"intent": "\\ud800"}'}),
        "[" * 100_000,
    ]
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*bad[:6], *lines, "", *bad[6:]]))
    with caplog.at_level(logging.WARNING):
        assert cli.run([f"config={tmp_path / 'tiny.yaml'}", f"export_path={tmp_path / 'other'}", "overwrite=true"]) == 0
    assert f"train.jsonl: {len(bad)} lines hold no request and are left out; the first: line 1" in caplog.text
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("export", "other")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("extra", [[], ["resume=true"]])
def test_a_training_of_another_configuration_is_not_gone_on_with(extra, started, capsys):
    assert cli.run(again(started, "schedule.muon_lr=0.1", *extra)) == 2
    line = capsys.readouterr().err
    if extra:
        assert "resume=true: this training goes on by itself" in line
    else:
        assert "holds a run of another configuration (schedule.muon_lr: 0.008 -> 0.1)" in line
        assert "overwrite=true to start again" in line
        assert "resume" not in line


def test_a_tokenizer_learnt_from_other_texts_is_refused(started, capsys):
    """The file of requests was exchanged under the same name."""
    path = started / "train.jsonl"
    before = path.read_text()
    path.write_text("\n".join(before.splitlines()[:-1]) + "\n")
    code = cli.run(again(started))
    path.write_text(before)
    assert code == 2
    line = capsys.readouterr().err
    assert f"{started / 'run/pretrain/tokenizer'}: the tokenizer was learnt from other texts" in line
    assert "overwrite=true" in line


def damage_empty(path):
    """Leave the file without a byte."""
    path.write_bytes(b"")


def damage_truncated(path):
    """Cut the end of the file off."""
    path.write_bytes(path.read_bytes()[:-50])


def damage_header(path):
    """Overwrite the first bytes of the file."""
    path.write_bytes(b"\xff" * 20 + path.read_bytes()[20:])


def damage_foreign(path):
    """Replace the checkpoint by a file of tensors that is none."""
    save_file({"a": torch.zeros(1)}, path)


def damage_shapes(path):
    """Cut all tensors of the checkpoint short."""
    storage = SafetensorsCheckpointIO()
    checkpoint = storage.load_checkpoint(path)
    checkpoint["state_dict"] = {name: tensor[:1] for name, tensor in checkpoint["state_dict"].items()}
    storage.save_checkpoint(checkpoint, path)


def damage_kind(path):
    """Replace the checkpoint by one of another training."""
    SafetensorsCheckpointIO().save_checkpoint({"state_dict": {}, "global_step": 3}, path)


DAMAGES = [damage_empty, damage_truncated, damage_header, damage_foreign, damage_shapes, damage_kind]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named_with_what_to_do(damage, started, capsys):
    path = started / "run/pretrain/last.safetensors"
    before = path.read_bytes()
    damage(path)
    code = cli.run(again(started))
    path.write_bytes(before)
    line = capsys.readouterr().err.strip()
    assert code == 2
    assert f"checkpoint {path} " in line
    assert "delete it to start again" in line
    assert "\n" not in line


def test_an_export_path_that_cannot_be_written_is_refused_before_the_training(refused, tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "export"):
        assert f"export_path={str(path)!r}: cannot be written" in refused(f"export_path={path}")
    assert not (tmp_path / "run").exists()


def test_an_output_dir_that_cannot_be_written_is_refused(refused, tmp_path):
    (tmp_path / "file").write_text("")
    assert "it is a file; expected a folder" in refused(f"output_dir={tmp_path / 'file'}")


def test_a_folder_that_holds_no_fitting_tokenizer_is_refused(refused, tmp_path, tokenizer):
    for name in ("empty", "damaged", "bare"):
        (tmp_path / name).mkdir()
    (tmp_path / "damaged" / "tokenizer.json").write_text("{")
    tokenizer.save_pretrained(tmp_path / "bare", save_jinja_files=False)
    described = json.loads((tmp_path / "bare" / "tokenizer_config.json").read_text())
    described.pop("mask_token")
    (tmp_path / "bare" / "tokenizer_config.json").write_text(json.dumps(described))
    for name, reason in {
        "missing": "the folder does not exist",
        "empty": "the folder holds no tokenizer.json",
        "damaged": "the tokenizer could not be loaded",
        "bare": "the tokenizer has no mask token",
    }.items():
        line = refused(f"tokenizer_from={tmp_path / name}")
        assert f"tokenizer_from={str(tmp_path / name)!r}" in line
        assert reason in line
    assert not (tmp_path / "run").exists()
