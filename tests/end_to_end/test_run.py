"""The main job at tiny size, through the command line: once whole, then broken in every way a user can break it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from learn2pd import load_policy, save_policy
from learn2pd.cli import main as cli
from learn2pd.cli import stages
from learn2pd.cli.stages.run_folder import LOCK_FILE
from learn2pd.predictors.filter import FilterPolicy
from learn2pd.predictors.networks import MLP
from learn2pd.predictors.saving import Contract, Predictor
from learn2pd.recording.reading import Recording

SMALL = [
    "config=tiny_filter",
    "train.start=scratch",
    "data.train_prompts=9",
    "data.validation_prompts=6",
    "data.test_prompts=3",
    "decode.gen_length=24",
    "decode.block_length=16",
    "record.shard_prompts=5",
    "train.max_epochs=2",
    "train.keep_threshold=0.6",
    "calibrate.target_agreement=0.5",
    "calibrate.max_accuracy_drop=null",
    "calibrate.thresholds=[0.6,0.9]",
    "compare.bootstrap_samples=20",
    "compare.stops=[none]",
    """compare.methods=[
        {name: vanilla, policy: fixed},
        {name: threshold, policy: threshold, sweep: {threshold: [0.5, 0.9]}},
        {name: learn2pd filter, policy: filter, sweep: {threshold: [0.5, 0.9]}},
        {name: learn2pd takes back, policy: filter, options: {take_back: 0.3, one_more: 0.8}},
        {name: learn2pd keep, policy: keep},
        {name: oracle, policy: oracle},
    ]""",
    "compare.likelihood=true",
    "model.device=cpu",
    "threads=1",
]
pytestmark = pytest.mark.usefixtures("undrawn_plots")  # the run of `finished` draws them, which is made before
STOPS, METHODS, TASKS = 1, 8, 4  # methods: two of them in curves of two settings; tasks: three and `all`


@pytest.fixture(scope="module")
def arguments(tiny_model_folder):
    return [*SMALL, f"model.path={tiny_model_folder}"]


@pytest.fixture(scope="module")
def finished(arguments, tmp_path_factory):
    output = tmp_path_factory.mktemp("run") / "out"
    assert cli.run([*arguments, f"output_dir={output}"]) == 0
    return output


def failing(capsys, arguments, command=None):
    """Run something that must fail with one line; give the line."""
    code = cli.run(arguments) if command is None else cli.guarded(lambda: cli.run_command(command, arguments))
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert code == 2
    assert len(error) == 1
    return error[0]


def test_the_run_leaves_everything_it_promises(finished):
    for name in (
        "run.json",
        "metrics.json",
        "compare.json",
        "compare.md",
        "report.html",
        "replays.json",
        "policy/policy.json",
        "policy/model.safetensors",
        "policy/keep/policy.json",
        "policy/keep/model.safetensors",
        "plots/tradeoff.png",
        "plots/reliability.png",
        "plots/commit_steps.png",
    ):
        assert (finished / name).stat().st_size > 0, name
    assert len({path.stat().st_mode for path in finished.rglob("*") if path.is_file() and path.name != LOCK_FILE}) == 1
    rows = json.loads((finished / "compare.json").read_text())["rows"]
    assert len(rows) == STOPS * METHODS * TASKS
    vanilla = next(row for row in rows if row["method"] == "vanilla" and row["stop"] == "none" and row["task"] == "all")
    assert vanilla["agreement"] == 1
    assert vanilla["forwards_mean"] == 24
    assert vanilla["joint_commit_nats_per_token"] == pytest.approx(0, abs=1e-9)
    assert all(row["nats_per_token"] > 0 for row in rows)
    replays = json.loads((finished / "replays.json").read_text())
    assert replays["stage"] == "compare"
    assert sorted(replay["task"] for replay in replays["replays"]) == ["code", "json", "math"]
    assert {"vanilla", "oracle"} <= {run["method"] for run in replays["replays"][0]["runs"]}
    assert "What is missing" not in (finished / "report.html").read_text()
    metrics = json.loads((finished / "metrics.json").read_text())
    calibrated = metrics["calibrate"]["filter"]
    assert load_policy(finished / "policy").threshold == calibrated["threshold"]
    assert {
        "auroc",
        "average_precision",
        "precision",
        "recall",
        "false_commit_rate",
        "calibration_error",
    } <= calibrated["states"].keys()
    assert [setting["threshold"] for setting in calibrated["curve"]] == [0.9, 0.6]
    assert [entry["round"] for entry in metrics["train"]["rounds"]] == [0, 1]


def test_a_finished_run_started_again_does_nothing_twice(arguments, finished):
    before = {
        path: path.stat().st_mtime_ns
        for name in ("records", "rounds", "train", "compare")
        for path in (finished / name).rglob("*")
        if path.is_file()
    }
    comparison = json.loads((finished / "compare.json").read_text())
    assert cli.run([*arguments, f"output_dir={finished}"]) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert json.loads((finished / "compare.json").read_text()) == comparison


def test_quiet_writes_nothing_but_results(arguments, finished, capsys):
    quiet = [*arguments, f"output_dir={finished}", "--quiet"]
    assert cli.guarded(lambda: cli.run_command("compare", quiet)) == 0
    assert cli.guarded(lambda: cli.run_command("report", quiet)) == 0
    written = capsys.readouterr()
    assert written.err == ""
    assert written.out.strip() == str(finished / "report.html")


@pytest.mark.parametrize(("stage", "second"), [("record", "oracle"), ("train", "filter of round 1 at 0.98")])
def test_a_stage_alone_ends_in_a_report_with_a_replay(arguments, finished, tmp_path, stage, second):
    output = Path(shutil.copytree(finished, tmp_path / "out"))
    assert cli.guarded(lambda: cli.run_command(stage, [*arguments, f"output_dir={output}"])) == 0
    replays = json.loads((output / "replays.json").read_text())["replays"]
    assert [run["method"] for run in replays[0]["runs"]] == ["one token a step", second]


def test_an_interrupted_run_leaves_a_report_of_what_there_is(arguments, tmp_path, monkeypatch):
    def interrupted(config, output, processes):
        raise KeyboardInterrupt

    monkeypatch.setitem(stages.SHARED, "train", interrupted)
    assert cli.run([*arguments, f"output_dir={tmp_path}", "data.train_prompts=3"]) == 130
    assert "The stage train is not finished" in (tmp_path / "report.html").read_text()


@pytest.mark.thorough  # tests/training fits adapters
def test_a_filter_is_fine_tuned_for_a_domain_and_its_adapter_fits_the_base_alone(arguments, finished, tmp_path, capsys):
    output, base = tmp_path / "tuned", finished / "policy"
    tuning = [
        "data.domain=json",
        "train.start=lora",
        f"policy={base}",
        "train.rounds=0",
        "record.labels=reference",
        "stages=[record,train,calibrate]",
    ]
    assert cli.run([*arguments, f"output_dir={output}", *tuning]) == 0
    assert len({path.stat().st_mode for path in (output / "adapter").iterdir()}) == 1
    merged, adapted = load_policy(output / "policy"), load_policy(base, adapter=output / "adapter")
    assert adapted.threshold == merged.threshold
    assert adapted.predictor.contract == merged.predictor.contract
    for name, tensor in merged.predictor.network.state_dict().items():
        assert torch.allclose(tensor, adapted.predictor.network.state_dict()[name], atol=1e-6), name
    assert merged.predictor.fingerprint != load_policy(base).predictor.fingerprint
    assert {name.split("/")[0] for name in Recording.load(output / "records").references["prompt_id"]} == {"json"}


@pytest.mark.thorough
def test_a_fine_tuned_policy_learns_from_the_states_that_its_base_leads_into(arguments, finished, tmp_path):
    output, base = tmp_path / "tuned", finished / "policy"
    tuning = [
        "data.domain=json",
        "train.start=lora",
        f"policy={base}",
        "train.rounds=1",
        "stages=[record,train]",
        "train.predictors=[]",
    ]
    assert cli.run([*arguments, f"output_dir={output}", *tuning]) == 0
    assert (
        Recording.load(output / "rounds" / "1").description["policy_fingerprint"]
        == load_policy(base).predictor.weights_fingerprint
    )
    assert [path.name for path in (output / "train").iterdir()] == ["round-1"]


def test_a_filter_of_another_geometry_is_not_fine_tuned(arguments, tmp_path, capsys, tiny_model):
    base = save_policy(
        FilterPolicy(
            Predictor("filter", MLP(32), 0.5, Contract.of(tiny_model.spec, block_length=32, alignment="prompt"))
        ),
        tmp_path / "p",
    )
    line = failing(
        capsys,
        [*arguments, f"output_dir={tmp_path / 'out'}", "train.start=full", f"policy={base}", "stages=[record,train]"],
    )
    assert "block_length=32" in line
    assert "16" in line


def test_another_configuration_in_the_same_folder_is_refused_until_told(arguments, finished, capsys):
    line = failing(capsys, [*arguments, f"output_dir={finished}", "calibrate.confidence=0.8"])
    assert "calibrate.confidence: 0.9 -> 0.8" in line
    assert "resume=true" in line
    assert "overwrite=true" in line


@pytest.mark.thorough  # tests/end_to_end/test_resume.py overwrites too
def test_overwrite_starts_again(arguments, tmp_path):
    output = tmp_path / "out"
    assert cli.run([*arguments, f"output_dir={output}", "stages=[record]"]) == 0
    first = next((output / "records").rglob("*.arrow")).stat().st_mtime_ns
    assert cli.run([*arguments, f"output_dir={output}", "stages=[record]", "seed=1", "overwrite=true"]) == 0
    assert next((output / "records").rglob("*.arrow")).stat().st_mtime_ns > first


def test_a_second_run_in_the_same_folder_is_refused_and_harms_nothing(arguments, tmp_path, capsys):
    output = tmp_path / "out"
    output.mkdir()
    with FileLock(output / ".lock"):
        assert "another run" in failing(
            capsys, [*arguments, f"output_dir={output}", "stages=[record]", "overwrite=true"]
        )
    assert cli.run([*arguments, f"output_dir={output}", "stages=[record]"]) == 0


def test_stages_out_of_order_say_which_comes_first(arguments, tmp_path, capsys):
    assert "stage 'record' first" in failing(capsys, [*arguments, f"output_dir={tmp_path / 'a'}"], "train")
    assert "stage 'train' first" in failing(capsys, [*arguments, f"output_dir={tmp_path / 'b'}"], "calibrate")


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        (["model.path=nowhere/at/all"], ["model.path", "nowhere/at/all", "config.json"]),
        (["data.source=jsonl"], ["data.path"]),
        (["data.tasks=[maths]"], ["maths", "math"]),
        (["decode.gen_length=600"], ["600", "512"]),
        (
            ["compare.methods=[{name: x, policy: treshold}]", "stages=[compare]"],
            ["treshold", "did you mean 'threshold'"],
        ),
        (
            ["compare.methods=[{name: x, policy: threshold, options: {thresh: 1}}]", "stages=[compare]"],
            ["thresh", "did you mean 'threshold'"],
        ),
        (
            ["compare.methods=[{name: x, policy: threshold, options: {threshold: 7}}]", "stages=[compare]"],
            ["threshold=7", "0 to 1"],
        ),
        (["compare.methods=[{name: x, policy: oracle}]", "stages=[compare]"], ["oracle", "fixed"]),
        (
            [
                "compare.methods=[{name: v, policy: fixed}, {name: x, policy: fixed, scheduler: dsb, cache: dual}]",
                "stages=[compare]",
            ],
            ["dual", "dsb"],
        ),
        (
            ["compare.methods=[{name: x, policy: fixed, scheduler: bloks}]", "stages=[compare]"],
            ["bloks", "did you mean 'blocks'"],
        ),
        (
            ["compare.methods=[{name: x, policy: fixed, cache: dul}]", "stages=[compare]"],
            ["dul", "did you mean 'dual'"],
        ),
        (
            ["compare.methods=[{name: x, policy: threshold, sweep: {threshold: 0.5}}]", "stages=[compare]"],
            ["sweep", "list of values"],
        ),
        (
            ["compare.methods=[{name: x, policy: threshold, shceduler: dsb}]", "stages=[compare]"],
            ["shceduler", "did you mean 'scheduler'"],
        ),
        (
            ["calibrate.target_agreement=0.99"],
            ["target_agreement=0.99", "at least 230", "there are 6", "data.validation_prompts"],
        ),
        (
            ["calibrate.max_accuracy_drop=0.1"],
            ["calibrate.target_agreement=0.5", "calibrate.max_accuracy_drop=0.1", "one of them"],
        ),
        (["filter=lstm"], ["lstm", "transformer"]),
        (["filter_options={depth: 2}"], ["depth", "layers"]),
        (["train.predictors=[end]"], ["end_of_text", "boundary"]),
        (["train.start=lora", "policy=null"], ["policy=FOLDER"]),
        (["train.start=lora", "policy=nowhere"], ["nowhere", "policy.json"]),
        (["data.domain=poems"], ["poems", "json", ".jsonl"]),
        (["decode.top_p=0", "stages=[compare]", "compare.methods=[{name: v, policy: fixed}]"], ["decode.top_p=0"]),
        (["compare.stops=[never]", "stages=[compare]", "compare.methods=[{name: v, policy: fixed}]"], ["never", "eot"]),
        (
            ["data.run_generated_code=false", "stages=[compare]", "compare.methods=[{name: v, policy: fixed}]"],
            ["data.run_generated_code=true"],
        ),
    ],
)
def test_what_cannot_run_is_one_line(arguments, tmp_path, capsys, extra, named):
    kept = [
        argument for argument in arguments if argument.split("=")[0] not in {entry.split("=")[0] for entry in extra}
    ]
    line = failing(capsys, [*kept, f"output_dir={tmp_path / 'out'}", *extra])
    for part in named:
        assert part in line


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        (["compare.methods=[{name: x, policy: treshold}]"], ["treshold", "did you mean 'threshold'"]),
        (["compare.methods=[{name: f, policy: filter, options: {aggresiveness: 1}}]"], ["aggresiveness"]),
        (["compare.methods=[{name: f, policy: filter, options: {folder: nowhere}}]"], ["nowhere", "policy.json"]),
        (["compare.methods=[{name: v, policy: fixed}, {name: v, policy: fixed}]"], ["'v'"]),
        (["compare.methods=[{name: o, policy: oracle}]"], ["oracle", "fixed"]),
        (["compare.methods=[]"], ["compare.methods is empty"]),
        (["compare.stops=[]"], ["compare.stops is empty"]),
        (["compare.stops=[never]"], ["never"]),
        (["compare.policy=nowhere"], ["nowhere", "policy.json"]),
        (["calibrate.thresholds=[]"], ["calibrate.thresholds is empty"]),
        (["calibrate.thresholds=[0.5, 1.5]"], ["calibrate.thresholds[1]=1.5", "from 0 to 1"]),
        (["train.learning_rate=.nan"], ["train.learning_rate=nan"]),
        (["train.learning_rate=-1"], ["train.learning_rate=-1"]),
        (["train.learning_rate=0"], ["train.learning_rate=0"]),
        (["train.weight_decay=-1"], ["train.weight_decay=-1"]),
        (["filter=mlp", "filter_options={width: 32}"], ["filter_options.width=32", "decode.block_length=16"]),
        (["filter_options={hidden: x}"], ["hidden='x'", "whole number"]),
        (["filter_options={hidden: 30}"], ["hidden=30", "multiple"]),
        (["model.device=cuda:99"], ["cuda:99"]),
        (["model.device=gpu"], ["gpu"]),
        (["record.devices=0"], ["record.devices=0"]),
        (["record.devices=many"], ["record.devices='many'"]),
        (["record.devices=2", "record.strategy=dpd"], ["record.strategy='dpd'"]),
        (["decode.temperature=-1"], ["decode.temperature=-1"]),
        (["decode.top_k=-1"], ["decode.top_k=-1"]),
    ],
)
def test_what_a_later_stage_would_refuse_is_refused_before_the_first_one(arguments, tmp_path, capsys, extra, named):
    kept = [
        argument for argument in arguments if argument.split("=")[0] not in {entry.split("=")[0] for entry in extra}
    ]
    line = failing(capsys, [*kept, f"output_dir={tmp_path / 'out'}", *extra])
    for part in named:
        assert part in line
    assert not (tmp_path / "out").exists()


LAUNCHERS = {
    "Slurm": {
        "SLURM_NTASKS": "4",
        "SLURM_JOB_ID": "1",
        "SLURM_JOB_NAME": "job",
        "SLURM_PROCID": "0",
        "SLURM_NODEID": "0",
    },
    "Slurm, another node": {
        "SLURM_NTASKS": "2",
        "SLURM_JOB_NAME": "job",
        "SLURM_NNODES": "7",
        "SLURM_NTASKS_PER_NODE": "3",
    },
    "LSF": {
        "LSB_JOBID": "1",
        "LSB_DJOB_RANKFILE": "/dev/null",
        "JSM_NAMESPACE_LOCAL_RANK": "0",
        "JSM_NAMESPACE_SIZE": "2",
    },
    "half of torchrun": {"LOCAL_RANK": "1", "NODE_RANK": "x", "WORLD_SIZE": "2"},
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_the_variables_of_a_launcher_do_not_disturb_a_training(arguments, tmp_path, monkeypatch, launcher):
    for name, value in LAUNCHERS[launcher].items():
        monkeypatch.setenv(name, value)
    kept = [argument for argument in arguments if not argument.startswith(("data.", "decode.", "train."))]
    small = ["data.tasks=[math]", "data.train_prompts=3", "data.validation_prompts=3"]
    small += ["decode.gen_length=8", "decode.block_length=8"]
    own = [
        *kept,
        *small,
        "train.rounds=0",
        "record.labels=reference",
        "train.max_epochs=1",
        "filter=mlp",
        "stages=[record,train]",
    ]
    own += ["train.start=scratch", "train.predictors=[]"]
    assert cli.run([*own, f"output_dir={tmp_path / 'out'}"]) == 0


@pytest.mark.parametrize("launcher", ["Slurm", "LSF"])
def test_several_processes_that_do_not_fit_the_launcher_are_one_line(
    arguments, tmp_path, monkeypatch, capsys, launcher
):
    for name, value in LAUNCHERS[launcher].items():
        monkeypatch.setenv(name, value)
    line = failing(capsys, [*arguments, f"output_dir={tmp_path / 'out'}", "record.devices=2"])
    assert "record.devices=2" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK", "SLURM_PROCID"])
def test_a_number_of_a_process_that_is_none_is_one_line(arguments, monkeypatch, capsys, name):
    monkeypatch.setenv(name, "first")
    assert f"{name}='first'" in failing(capsys, arguments)


@pytest.mark.thorough  # the stages are those of the run above; questions are read in tests/data
def test_gsm8k_style_questions_go_through(arguments, tmp_path):
    lines = [
        {"question": f"Ann has {n} apples — she buys £{n + 2} worth. How many?", "answer": f"so\n#### {2 * n + 2}"}
        for n in range(12)
    ]
    path = tmp_path / "questions.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    output = tmp_path / "out"
    extra = [
        "data.source=jsonl",
        f"data.path={path}",
        "data.answer_field=answer",
        "compare.methods=[{name: v, policy: fixed}]",
        "compare.stops=[eot]",
        "train.rounds=0",
        "record.labels=reference",
    ]
    own = [entry for entry in arguments if not entry.startswith("compare.")]
    assert cli.run([*own, f"output_dir={output}", *extra]) == 0
    row = json.loads((output / "compare.json").read_text())["rows"][0]
    assert (row["task"], row["accuracy"]) == ("final_number", 0.0)


EVERY_ROLE = """compare.methods=[
    {name: vanilla, policy: fixed},
    {name: entropy, policy: fixed, options: {rank: entropy}},
    {name: dual, policy: threshold, cache: dual},
    {name: ada, policy: threshold, scheduler: adablock, cache: prefix},
    {name: dsb, policy: threshold, scheduler: dsb, scheduler_options: {mode: const}, cache: dsb,
     cache_options: {prefix_window: 4}},
    {name: curve, policy: threshold, sweep: {threshold: [0.3, 0.9]}},
    {name: oracle, policy: oracle},
]"""


def test_a_comparison_takes_every_role_and_a_sweep(arguments, tmp_path):
    output = tmp_path / "out"
    extra = ["data.tasks=[math]", "data.test_prompts=2", "compare.stops=[eot]", "stages=[compare]", EVERY_ROLE]
    assert cli.run([*arguments, f"output_dir={output}", *extra]) == 0
    rows = {
        row["method"]: row for row in json.loads((output / "compare.json").read_text())["rows"] if row["task"] == "all"
    }
    assert [rows[name]["family"] for name in ("curve 0.3", "curve 0.9", "dual")] == ["curve", "curve", "dual"]
    assert (rows["dsb"]["scheduler"], rows["dsb"]["cache"]) == ("dsb", "dsb")
    assert rows["curve 0.3"]["forwards_mean"] < rows["curve 0.9"]["forwards_mean"] <= rows["vanilla"]["forwards_mean"]
    assert rows["oracle"]["agreement"] == 1


def test_decode_takes_every_role(arguments, capsys):
    own = [
        "policy=threshold",
        "options={threshold: 0.5}",
        "scheduler=dsb",
        "scheduler_options={mode: const}",
        "cache=dsb",
        "stop=none",
    ]
    assert (
        cli.guarded(
            lambda: cli.run_command("decode", [*arguments, "prompt=Mia has 3 pears.", "decode.temperature=0.5", *own])
        )
        == 0
    )
    assert "mapping" in failing(capsys, [*arguments, "prompt=x", "policy=threshold", "options=3"], "decode")


def test_decode_prints_the_answer(arguments, finished, capsys):
    code = cli.guarded(
        lambda: cli.run_command(
            "decode", [*arguments, f"output_dir={finished}", "prompt=Mia has 3 pears.", "live=true"]
        )
    )
    assert code == 0
    assert capsys.readouterr().out.endswith("\n")
    assert "empty" in failing(capsys, [*arguments, "prompt= "], "decode")
    assert "true or false" in failing(capsys, [*arguments, "prompt=x", "live=2"], "decode")
    assert "policy.json" in failing(capsys, [*arguments, "prompt=x", "policy=nowhere"], "decode")


def test_unknown_command_names_its_neighbour(capsys):
    assert "did you mean 'record'" in failing(capsys, ["config=tiny_filter"], "recrod")


@pytest.fixture(scope="module")
def uninterrupted(arguments, tmp_path_factory):
    output = tmp_path_factory.mktemp("uninterrupted")
    assert (
        cli.guarded(lambda: cli.run_command("record", [*arguments, f"output_dir={output}", "record.shard_prompts=1"]))
        == 0
    )
    return Recording.load(output / "records")


@pytest.mark.thorough  # tests/recording/test_kill.py kills by the dozen, and below a command, at less cost
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_stopped_from_outside_while_recording_and_started_again(arguments, uninterrupted, tmp_path, sent):
    """Ctrl-C ends a run with a line and the code 130, and a kill ends it with nothing.

    Either way the same command goes on, and the result is that of a run without an interruption.
    """
    output = tmp_path / "out"
    command = [sys.executable, "-m", "learn2pd", "record", *arguments, f"output_dir={output}", "record.shard_prompts=1"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command,
        cwd=Path(__file__).parents[2],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        # A suite that was started in the background ignores the interrupt and hands that on to its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 300
    while (
        not (output / "records" / "shard-00001.json").exists()
        and process.poll() is None
        and time.monotonic() < deadline
    ):
        time.sleep(0.02)
    process.send_signal(sent)
    _, error = process.communicate(timeout=300)
    if sent == signal.SIGINT:
        assert process.returncode == 130
        assert "interrupted" in error
    kept = {path: path.stat().st_mtime_ns for path in (output / "records").glob("shard-?????.json")}
    assert 2 <= len(kept) < 15
    assert cli.guarded(lambda: cli.run_command("record", command[4:])) == 0
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    again = Recording.load(output / "records")
    assert again.states.to_dict() == uninterrupted.states.to_dict()
    assert again.references.to_dict() == uninterrupted.references.to_dict()
