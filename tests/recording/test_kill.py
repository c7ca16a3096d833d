"""Real processes, killed: by the dozen on a small recording (crew.py), and once each way through the command line."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from learn2pd.cli import main as cli
from tests.recording.helpers import files

ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get("LEARN2PD_KILLS", "3"))  # 20 and more take a minute
ENVIRONMENT = {
    name: value for name, value in os.environ.items() if name not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")
} | {"OMP_NUM_THREADS": "1"}


@pytest.mark.thorough  # the suite interrupts recordings within one process, see test_shard_claims.py
@pytest.mark.parametrize("way", ["folder", "exchange"])
def test_killed_at_random_moments_the_recording_is_that_of_one_process(tiny_model_folder, tmp_path, way):
    """Two processes share a folder, or a URL alone. One of them is killed and in part of the cases started again."""
    command = [
        sys.executable,
        "-m",
        "tests.recording.kill_workers",
        str(tiny_model_folder),
        str(tmp_path),
        "0",
        str(KILLS),
        way,
    ]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=200 + 60 * KILLS)
    assert done.returncode == 0, done.stderr
    assert f"{KILLS} kills" in done.stdout


@pytest.mark.thorough
def test_a_process_ends_with_the_torchrun_that_started_it(tmp_path):
    """It waits for a second process that never comes, and torchrun is killed so that it ends nobody."""
    waiting = (
        "import os, sys; from pathlib import Path; from learn2pd.recording.processes import Processes, SharedFolder\n"
        "processes = Processes(); Path('worker').write_text(str(os.getpid()))\n"
        "processes.meet({}, SharedFolder(Path('.')))\n"
    )
    (tmp_path / "waiting.py").write_text(waiting)
    launcher = (
        "import os, subprocess, sys\n"
        "variables = dict(WORLD_SIZE='2', RANK='0', LOCAL_RANK='0', TORCHELASTIC_RUN_ID='x', "
        "MASTER_ADDR='localhost', MASTER_PORT='0')\n"
        "subprocess.run([sys.executable, 'waiting.py'], env=os.environ | variables)\n"
    )
    with open(tmp_path / "errors", "wb") as errors:
        command = [sys.executable, "-c", launcher]
        torchrun = subprocess.Popen(command, cwd=tmp_path, env=ENVIRONMENT | {"PYTHONPATH": str(ROOT)}, stderr=errors)
    deadline = time.monotonic() + 120
    while not (tmp_path / "worker").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(1)  # the process begins to wait
    torchrun.kill()
    torchrun.wait()
    worker = int((tmp_path / "worker").read_text())
    try:
        while Path(f"/proc/{worker}").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not Path(f"/proc/{worker}").exists()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker, signal.SIGKILL)
    assert (tmp_path / "errors").read_text().splitlines()[-1].startswith("error: torchrun")


@pytest.fixture
def arguments(tiny_model_folder):
    return [
        "config=tiny_filter",
        "train.start=scratch",
        "data.train_prompts=9",
        "data.validation_prompts=6",
        "decode.gen_length=48",
        "record.shard_prompts=1",
        "threads=1",
        "train.max_epochs=1",
        "train.rounds=0",
        "record.labels=reference",
        "train.predictors=[]",
        "model.device=cpu",
        f"model.path={tiny_model_folder}",
    ]


@pytest.mark.thorough
def test_two_processes_by_fabric_lost_then_two_by_torchrun(arguments, tmp_path):
    """The first process is killed, and with it the one it started.

    A run of another kind then goes on, and it gives what one process gives.
    """
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    assert cli.guarded(lambda: cli.run_command("record", [*arguments, f"output_dir={alone}"])) == 0
    command = ["-m", "learn2pd", "record", *arguments, f"output_dir={shared}"]
    first = subprocess.Popen(
        [sys.executable, *command, "record.devices=2"], cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 300
    while (
        len(list((shared / "records").glob("shard-*.json"))) < 3
        and first.poll() is None
        and time.monotonic() < deadline
    ):
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    first.wait()
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "train.py"]
    further = "stages=[record,train]"  # by the first process alone
    done = subprocess.run(
        [*torchrun, *command[3:], further], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    metrics = json.loads((shared / "metrics.json").read_text())
    assert metrics["record"]["processes"] == 2
    assert metrics.keys() == {"record", "train"}
    assert files(shared / "records") == files(alone / "records")
