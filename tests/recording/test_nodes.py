"""Two nodes of one machine: agents of torchrun that are lost, come back or are slow, and processes that do not fit."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.recording.test_kill import ENVIRONMENT, ROOT

pytestmark = pytest.mark.thorough  # each test starts agents of torchrun, which takes half a minute


def answer(*arguments):
    """What tests/recording/nodes.py prints, in a process of its own: it forks, and this one has threads."""
    command = [sys.executable, "-m", "tests.recording.nodes", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("losses", [2, 10])
def test_nodes_that_are_lost_and_come_back_leave_the_recording_of_one_process(tiny_model_folder, tmp_path, losses):
    figures = answer("losses", tiny_model_folder, tmp_path, 0, losses)
    assert figures["lost"] == losses
    assert figures["equal"] == figures["recordings"] >= 1


def test_nodes_without_a_shared_folder_exchange_their_shards(tiny_model_folder, tmp_path):
    figures = answer("exchange", tiny_model_folder, tmp_path)
    assert figures["codes"] == [0, 0]
    assert figures["equal"]
    assert figures["made"][1] > 0


@pytest.mark.parametrize("rounds", [0, 1])
def test_two_nodes_that_train_together_get_the_network_of_one_process(tiny_model_folder, tmp_path, rounds):
    """One of them is lost in the first training and comes back. Sums of two halves round otherwise than whole sums."""
    figures = answer("training", tiny_model_folder, tmp_path, rounds)
    assert figures["lost"] == 1
    assert figures["apart"] < 1e-4
    alone, shared = figures["alone"]["rounds"], figures["shared"]["rounds"]
    assert len(alone) == len(shared) == rounds + 1
    assert shared[0]["val_loss"] == pytest.approx(alone[0]["val_loss"], abs=1e-4)


@pytest.fixture(scope="module")
def refused(tiny_model_folder, tmp_path_factory):
    """What two processes say that do not fit together, by the name of what is wrong."""
    folder = tmp_path_factory.mktemp("nodes")
    other = folder / "model-other"
    other.mkdir()
    for path in Path(tiny_model_folder).iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    weights = load_file(other / "model.safetensors")
    first = next(iter(weights))
    save_file(weights | {first: torch.zeros_like(weights[first])}, other / "model.safetensors", {"format": "pt"})
    return answer("refusals", tiny_model_folder, folder)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ("a seed", ["seed is 0 in process 0 on ", "1 in process 1 on "]),
        ("two keys", ["seed is 0 in", "decode.gen_length is 24 in process 0 on ", "16 in process 1 on "]),
        ("a release", ["learn2pd is '", "'0.1.7' in process 1 on "]),
        ("a model", ["model_fingerprint is "]),
        ("prompts", ["prompts_digest is "]),
        ("a folder", ["process 1 on ", "does not see what process 0 on ", "share"]),
        ("a model that is missing", ["nowhere"]),
        ("a first process that is refused", ["decode.gen_length=100000"]),
    ],
)
def test_processes_that_do_not_fit_together_say_so_in_one_line_each(refused, wrong, named):
    case = refused[wrong]
    assert case["codes"] == [2, 2]
    assert not case["shards"]
    for text in case["errors"]:
        lines = [line for line in text.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1
        assert "Traceback" not in text
        for part in named:
            assert part in lines[0]
