"""`learn2pd eval` from the command line: results, samples, known answers, and whatever is wrong in one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("lm_eval")

from lm_eval.tasks import TaskManager

from learn2pd import BlocksScheduler, UserError, decode
from learn2pd.cli import main as cli
from learn2pd.models.loading import load_model

ROOT = Path(__file__).resolve().parents[2]
FAST = ["policy=threshold", "decode.block_length=16", "likelihood_samples=2"]


@pytest.fixture
def arguments(task_folder, tiny_model_folder, tmp_path):
    return [f"include_path={task_folder}", f"model={tiny_model_folder}", f"output_dir={tmp_path / 'out'}", *FAST]


def run(capsys, *arguments) -> str:
    assert cli.guarded(lambda: cli.run_command("eval", list(arguments))) == 0
    return capsys.readouterr().out


def refusal(*arguments) -> str:
    with pytest.raises(UserError) as error:
        cli.run_command("eval", list(arguments))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_every_kind_of_task_runs_offline(arguments, tmp_path, tiny_model_folder, capsys):
    names = ["sums", "programs", "choices", "forced", "texts"]
    shown = run(capsys, f"tasks=[{', '.join(names)}]", "limit=2", "data.run_generated_code=true", *arguments)
    results = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    assert set(results["results"]) == set(names)
    for name in ("choices", "forced", "texts"):
        assert f"{name}: a score of likelihoods; policy, scheduler, cache and stop rule have no part" in shown
        assert results["learn2pd"]["tasks"][name]["policy_matters"] is False
    assert "sums: 2 answers decoded" in shown
    assert "|choices " in shown
    lines = (tmp_path / "out" / "samples" / "sums.jsonl").read_text(encoding="utf-8").splitlines()
    samples = sorted((json.loads(line) for line in lines), key=lambda sample: sample["doc_id"])
    questions = [sample["doc"]["question"] for sample in samples]
    expected = decode(
        load_model(tiny_model_folder), questions, policy="threshold", scheduler=BlocksScheduler(16), gen_length=96,
        stop_strings=["\n\n", "Question:"],
    )  # fmt: skip
    assert [sample["resps"][0][0] for sample in samples] == expected.texts


def test_known_answers_are_used_for_the_same_method_alone(arguments, capsys):
    asked = ["tasks=sums", "limit=1", "gen_length=16"]
    assert "sums: 1 answers decoded" in run(capsys, *asked, *arguments)
    assert "sums: 0 answers decoded" in run(capsys, *asked, *arguments)
    line = refusal(*asked, *arguments, "policy=fixed")
    assert "model or method differ" in line
    assert "overwrite=true" in line
    assert "sums: 1 answers decoded" in run(capsys, *asked, *arguments, "policy=fixed", "overwrite=true")
    assert "limit" in refusal(*asked, *arguments, "policy=fixed", "limit=2")
    assert "sums: 0 answers decoded" in run(capsys, *asked, *arguments, "overwrite=true")  # of the first method


def test_two_processes_of_torchrun_give_the_results_of_one(arguments, tmp_path, capsys):
    asked = ["tasks=[sums, choices]", "limit=3", "gen_length=16", *arguments]
    run(capsys, *asked)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    shared = [*asked, f"output_dir={tmp_path / 'shared'}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, "-m", "learn2pd", "eval", *shared], capture_output=True, text=True, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("results: ") == 1  # the first process alone prints
    one, two = (
        json.loads((tmp_path / name / "results.json").read_text(encoding="utf-8")) for name in ("out", "shared")
    )
    assert one["results"] == two["results"]
    assert one["learn2pd"]["tasks"] == two["learn2pd"]["tasks"]
    for task in ("sums", "choices"):
        answers = []
        for name in ("out", "shared"):
            lines = (tmp_path / name / "samples" / f"{task}.jsonl").read_text(encoding="utf-8").splitlines()
            answers.append({sample["doc_id"]: sample["filtered_resps"] for sample in map(json.loads, lines)})
        assert answers[0].keys() == answers[1].keys()
        for number, own in answers[0].items():  # likelihoods are rounded by what stands beside them in a batch
            scored = [score for score, *_ in own] if task == "choices" else None
            other = answers[1][number]
            assert scored == pytest.approx([score for score, *_ in other], rel=1e-5) if scored else own == other


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["tasks="], "tasks is empty"),
        (["tasks=[]"], "tasks is empty"),
        (["tasks=sums", "include_path=nowhere"], "include_path='nowhere': no such folder"),
        (["tasks=programs"], "data.run_generated_code=true"),
        (["tasks=sums", "limit=0"], "limit=0"),
        (["tasks=sums", "gen_length=512"], "gen_length"),
        (["tasks=sums", "policy=oracle"], "beforehand"),
        (["tasks=sums", "policy=treshold"], "did you mean 'threshold'"),
        (["tasks=sums", "model=nowhere"], "nowhere"),
        (["tasks=sums", "decode.given=[a]"], "decode.given"),
        (["tasks=sums", "task=sums"], "did you mean 'tasks'"),
        (["tasks=broken"], "'broken' could not be loaded"),
    ],
)
def test_what_is_wrong_is_one_line(arguments, task_folder, changes, words):
    broken = "task: broken\ndataset_path: json\ntest_split: test\noutput_type: generate_until\ndoc_to_text: x\n"
    (task_folder / "broken.yaml").write_text(broken + "dataset_kwargs: {data_files: {test: /nowhere.jsonl}}\n")
    try:
        assert words in refusal(*arguments, *changes)
    finally:
        (task_folder / "broken.yaml").unlink()


def test_an_unknown_task_is_one_line(arguments, task_folder, monkeypatch):
    class Own(TaskManager):  # the index of lm-eval's own tasks takes seconds
        def __init__(self, include_path=None, include_defaults=True):
            super().__init__(include_path=include_path, include_defaults=False)

    monkeypatch.setattr("lm_eval.tasks.TaskManager", Own)
    line = refusal("tasks=[sums, choicse]", *arguments)
    assert "unknown task 'choicse'; did you mean 'choices'" in line
    assert f"{task_folder} holds choices, forced, programs, sums, texts" in line


def test_a_missing_extra_is_one_line(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert 'pip install "learn2pd[eval]"' in refusal("tasks=sums")
