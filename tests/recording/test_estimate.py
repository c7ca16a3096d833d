"""--dry-run: figures that hold, and nothing written."""

import re

import pytest

from learn2pd.cli import main as cli
from learn2pd.recording.estimate import estimate, plan
from learn2pd.recording.reading import Recording
from tests.recording.helpers import BATCH, BLOCK, GEN, SHARD, files, make, some_prompts

UNITS = {"kB": 1e3, "MB": 1e6, "GB": 1e9}


def figures(text):
    """Prompts, shards, forwards, calls, bytes, seconds of an estimate."""
    prompts, shards = re.search(r"prompts: +(\d+), in (\d+) shards", text).groups()
    forwards, calls = re.search(r"forwards: at most ([\d,]+) .* in at most ([\d,]+) calls", text).groups()
    size, unit = re.search(r"disk: +at most ([\d.]+) (\w+)", text).groups()
    each = re.search(r"\(([\d.e-]+) s a call", text).group(1)
    return (
        int(prompts),
        int(shards),
        int(forwards.replace(",", "")),
        int(calls.replace(",", "")),
        float(size) * UNITS[unit],
        float(each),
    )


def test_the_figures_are_bounds_of_what_a_recording_takes(tiny_model, tmp_path):
    prompts = some_prompts()
    make(tiny_model, prompts, tmp_path)
    options = {"gen_length": GEN, "block_length": BLOCK, "batch_size": BATCH, "shard_prompts": SHARD}
    count, shards, forwards, calls, size, each = figures(
        estimate(tiny_model, [prompt.text for prompt in prompts], **options)
    )
    recording = Recording.load(tmp_path)
    assert (count, shards) == (len(prompts), len(recording))
    assert forwards >= sum(recording.references["forwards"]) + sum(recording.references["oracle_forwards"])
    assert calls == 2 * GEN * (2 + 2 + 1)  # shards of three, three and two prompts in batches of two
    assert size >= sum(len(content) for content in files(tmp_path).values())
    assert each > 0


def test_a_plan_from_every_prompt_has_the_forwards_of_the_recording(tiny_model, tmp_path):
    prompts = some_prompts()
    make(tiny_model, prompts, tmp_path)
    options = {"gen_length": GEN, "block_length": BLOCK, "batch_size": BATCH, "shard_prompts": SHARD}
    planned = plan(tiny_model, prompts, **options, delimiter_ids=[], sample=99, devices=3)
    references = Recording.load(tmp_path).references
    assert planned.sample == len(prompts)
    assert planned.forwards == sum(references["forwards"]) + sum(references["oracle_forwards"])
    assert planned.elapsed_s == pytest.approx(planned.work_s / len(prompts) * SHARD)  # three shards, three devices
    assert planned.cost(2.0) == pytest.approx(3 * planned.elapsed_s / 3600 * 2.0)
    assert "on 3 devices" in planned.words(2.0)


def test_processes_share_the_time(tiny_model):
    options = {"gen_length": GEN, "block_length": BLOCK, "batch_size": BATCH, "shard_prompts": SHARD}
    assert "in 4 processes" in estimate(tiny_model, ["Mia has 3 pears."], **options, processes=4)


@pytest.mark.parametrize("command", ["run", "record"])
def test_a_dry_run_prints_and_writes_nothing(tiny_model_folder, tmp_path, capsys, command):
    arguments = [
        "config=tiny_filter",
        "train.start=scratch",
        f"model.path={tiny_model_folder}",
        "model.device=cpu",
        "threads=1",
        "data.train_prompts=180",
        "data.validation_prompts=60",
        f"output_dir={tmp_path / 'out'}",
        "--dry-run",
    ]
    if command == "run":
        assert cli.run(arguments) == 0
    else:
        assert cli.guarded(lambda: cli.run_command(command, arguments)) == 0
    assert figures(capsys.readouterr().out)[0] == 240
    assert not (tmp_path / "out").exists()


def dry(capsys, command, *arguments):
    """Return what a dry run of a command prints."""
    run = [f"{command}", [*arguments, "threads=1", "model.device=cpu", "--dry-run"]]
    assert cli.guarded(lambda: cli.run_command(*run)) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", ["run", "compare"])
def test_a_dry_run_of_a_comparison_counts_methods_and_records_nothing(tiny_model_folder, capsys, command):
    methods = "[{name: one, policy: fixed}, {name: some, policy: threshold, sweep: {threshold: [0.8, 0.9]}}]"
    sizes = ["data.test_prompts=30", "data.tasks=[math, json]", "decode.gen_length=64", "decode.batch_size=4"]
    told = dry(
        capsys,
        command,
        "config=tiny_compare",
        f"model.path={tiny_model_folder}",
        f"compare.methods={methods}",
        "compare.stops=[eot, none]",
        *sizes,
    )
    assert "30 test prompts, 3 methods with 2 stop rules" in told
    # 2 tasks of 15 prompts, 4 calls for each; 3 methods, 2 stop rules, 64 steps
    assert f"at most {3 * 2 * 64 * 30:,} (" in told
    assert f"at most {3 * 2 * 64 * 8:,} calls of 4 rows" in told
    assert "shards" not in told


def test_a_dry_run_names_the_stages_that_it_does_not_estimate(tiny_model_folder, capsys):
    told = dry(capsys, "run", "config=tiny_filter", "train.start=scratch", f"model.path={tiny_model_folder}")
    assert "compare:  96 test prompts" in told
    assert "not estimated: the cost of the stages train and calibrate" in told


def test_only_recording_and_comparing_have_a_dry_run(capsys):
    assert cli.guarded(lambda: cli.run_command("train", ["config=tiny_filter", "--dry-run"])) == 2
    assert "--dry-run" in capsys.readouterr().err
