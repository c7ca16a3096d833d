"""`learn2pd doctor` says whether a run can start, and every reason why not is one line of its report."""

from __future__ import annotations

import gc
import json
import socket
import time

import pytest
import torch
from huggingface_hub import constants

from learn2pd.cli import doctor as room
from learn2pd.cli.config import identity, load_config
from learn2pd.cli.main import guarded, run_command
from learn2pd.data.reading import hub_records
from learn2pd.errors import UserError
from learn2pd.models.loading import load_model, read_skeleton
from learn2pd.models.sizes import sizes_of


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path) -> str:
    """A hub on a port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{probe.getsockname()[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return address


def report(capsys, *arguments: str) -> tuple[int, str, str]:
    started = time.process_time()
    code = guarded(lambda: run_command("doctor", arguments))
    assert time.process_time() - started < 5
    assert gc.isenabled()
    out, err = capsys.readouterr()
    assert err.count("\n") == (1 if code else 0)
    return code, out, err


def test_a_run_of_the_small_model_can_start_without_a_network(capsys, no_network, tmp_path):
    code, out, _ = report(capsys, f"output_dir={tmp_path}")
    assert code == 0
    for word in (
        f"torch {torch.__version__}",
        "transformers",
        "cores",
        "GiB",
        no_network,
        "weights 10 MiB",
        "can start",
    ):
        assert word in out
    assert constants.HF_HUB_OFFLINE is False


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["config=llada_filter"], ["hub", "model.path='GSAI-ML/LLaDA-8B-Instruct'", "data.source=hub needs it"]),
        (["model.path=checkpoints/none"], ["model.path='checkpoints/none'", "the folder does not exist"]),
        (["model.dtype=int4"], ["model.dtype='int4'"]),
        (["model.device=cuda:99"], ["model.device='cuda:99'"]),
        (["data.source=jsonl", "data.path=none.jsonl"], ["data.path='none.jsonl'"]),
        (["data.source=jsonl"], ["data.path is not set"]),
        (["data.test_path=none.jsonl"], ["data.test_path"]),
        (["data.domain=none.jsonl"], ["data.domain='none.jsonl'"]),
        (["data.tasks=[zzz]"], ["data.tasks", "'zzz'"]),
        (["data.tasks=[]"], ["data.tasks is empty"]),
        (["policy=none"], ["policy='none': the folder does not exist"]),
        (["policy=README.md"], ["policy='README.md': this is a file"]),
        (["policy=null"], ["policy"]),
        (["policy=owner/name"], ["policy='owner/name'", "could not be reached"]),
        (["compare.policy=none"], ["compare.policy='none': the folder does not exist"]),
        (["model.adapter=none"], ["model.adapter='none': the folder does not exist"]),
        (["model.revision=main"], ["model.revision='main'", "has no revisions"]),
        (["train.predictors=[zzz]"], ["train.predictors", "'zzz'"]),
        (["calibrate.thresholds=[]"], ["calibrate.thresholds is empty"]),
        (["output_dir=README.md/none"], ["output_dir", "cannot be written"]),
    ],
)
def test_what_stops_a_run_is_named(capsys, tmp_path, overrides, words):
    code, out, err = report(capsys, f"output_dir={tmp_path}", *overrides)
    assert code == 2
    assert "can start" not in out
    for word in words:
        assert word in out + err
        assert word in err


@pytest.mark.parametrize("overrides", [["train.start=scratch", "policy=owner/name"], ["stages=[compare]"]], ids=str)
def test_what_a_run_does_not_read_does_not_stop_it(capsys, tmp_path, overrides):
    code, _, err = report(capsys, f"output_dir={tmp_path}", "compare.methods=[{name: v, policy: fixed}]", *overrides)
    assert (code, err) == (0, "")


def test_a_folder_with_another_run_stops_a_run(capsys, tmp_path):
    (tmp_path / "run.json").write_text(json.dumps(identity(load_config("tiny_filter"))))
    assert report(capsys, f"output_dir={tmp_path}")[0] == 0
    code, _, err = report(capsys, f"output_dir={tmp_path}", "train.max_epochs=1")
    assert code == 2
    assert "holds a run of another configuration (train.max_epochs: 12 -> 1)" in err


def test_a_model_that_does_not_fit_is_told_from_its_config_alone(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(room, "_cpu_memory", lambda: 2**20)
    code, out, _ = report(capsys, f"output_dir={tmp_path}", "model.device=cpu")
    assert code == 2
    assert "1 MiB are free" in out
    assert "bfloat16" in out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_size_from_the_config_is_that_of_the_weights(tiny_model_folder, dtype):
    state = load_model(tiny_model_folder, dtype, device="cpu").adapter.network.state_dict()
    assert sizes_of(read_skeleton(tiny_model_folder, dtype), 1, 8).weights == sum(
        tensor.numel() * tensor.element_size() for tensor in state.values()
    )


def test_what_is_not_installed_is_named(capsys, monkeypatch, tmp_path):
    lines = [
        "torch>=2.9",
        "nothing-of-that-name>=3",
        "numpy>=99",
        'nowhere>1; extra == "humaneval"',
        'numpy; extra == "x"',
    ]
    monkeypatch.setattr(room.importlib.metadata, "requires", lambda name: lines)
    code, out, err = report(capsys, f"output_dir={tmp_path}")
    assert code == 2
    assert "nothing-of-that-name: not installed: pip install 'nothing-of-that-name>=3'" in err
    assert "is installed, >=99 is needed" in err
    assert "nowhere not installed: pip install 'learn2pd[humaneval]'" in out
    assert "extra x" in out


def test_a_data_set_of_the_hub_is_refused_within_seconds(no_network, capfd):
    started = time.process_time()
    with pytest.raises(UserError, match=f"{no_network} could not be reached") as error:
        hub_records("me/none", None, "train", "no network")
    assert time.process_time() - started < 5
    assert "data.source=jsonl" in str(error.value)
    assert "\n" not in str(error.value)
    assert capfd.readouterr().err == ""
    assert constants.HF_HUB_OFFLINE is False
