"""The main job on tiny block-causal models, with filters of the model's own blocks."""

from __future__ import annotations

import json

import pytest

from learn2pd.cli import main as cli
from learn2pd.recording.reading import Recording
from tests.contract.helpers import every_second
from tests.end_to_end.test_run import SMALL, failing
from tests.fixtures import save_tiny_family

pytestmark = pytest.mark.usefixtures("undrawn_plots")
OTHERWISE = ("data.", "decode.", "train.", "compare.methods", "compare.likelihood")  # keys that are set here
FILTERS = every_second([("sdar", 4, "mlp"), ("sdar", 8, "transformer"), ("fast_dllm_v2", 8, "mlp")])


@pytest.fixture
def arguments(tokenizer, tmp_path, request):
    name, block, network = request.param
    changes = {"bd_size": block} if name == "fast_dllm_v2" else {"block_size": block}
    folder = save_tiny_family(name, tmp_path / "model", tokenizer, **changes)
    methods = ", ".join(
        f"{{name: {policy} {cache}, policy: {policy}, cache: {cache}}}"
        for policy in ("fixed", "threshold", "filter")
        for cache in ("none", "causal_block")
    )
    return [
        *(entry for entry in SMALL if not entry.startswith(OTHERWISE)),
        "data.tasks=[math]",
        "data.train_prompts=4",
        "data.validation_prompts=6",
        "data.test_prompts=2",
        "decode.gen_length=16",
        "train.start=scratch",
        "train.predictors=[]",
        "train.max_epochs=1",
        "train.rounds=0",
        "record.labels=reference",
        f"model.path={folder}",
        f"decode.block_length={block}",
        f"filter={network}",
        f"compare.methods=[{methods}]",
        f"output_dir={tmp_path / 'out'}",
    ]


@pytest.mark.parametrize("arguments", FILTERS, indirect=True, ids=str)
def test_the_main_job_runs_on_the_models_own_blocks(arguments, tmp_path):
    assert cli.run(arguments) == 0
    output = tmp_path / "out"
    assert Recording.load(output / "records").description["alignment"] == "grid"
    rows = json.loads((output / "compare.json").read_text())["rows"]
    measured = {(row["method"], row["stop"], row["task"]): row for row in rows}
    for (method, stop, task), row in measured.items():
        if method.endswith(" none"):
            cached = measured[method.replace(" none", " causal_block"), stop, task]
            assert cached["agreement"] == row["agreement"]
            assert cached["forwards_mean"] == row["forwards_mean"]


@pytest.mark.parametrize("arguments", [("sdar", 4, "mlp")], indirect=True, ids=str)
def test_blocks_that_are_not_the_models_are_refused_before_anything_is_recorded(arguments, capsys, tmp_path):
    assert "reads blocks of 4 tokens" in failing(capsys, [*arguments, "decode.block_length=8"])
    assert not list((tmp_path / "out").glob("records/*.arrow"))


@pytest.mark.parametrize("arguments", [("sdar", 4, "mlp"), ("fast_dllm_v2", 8, "mlp")], indirect=True, ids=str)
def test_decode_takes_the_models_own_blocks(arguments, capsys):
    path = next(argument for argument in arguments if argument.startswith("model.path="))
    shared = ["model.device=cpu", "policy=fixed", "decode.gen_length=12", "2 + 2 ="]
    plain = [path, *shared]
    short = [path.replace("model.path=", "model="), *shared]
    answers = []
    for given in (plain, [*plain, "cache=causal_block"], short):
        assert cli.guarded(lambda given=given: cli.run_command("decode", given)) == 0
        answers.append(capsys.readouterr().out)
    assert len(set(answers)) == 1
    assert "reads blocks of" in failing(capsys, [*plain, "decode.block_length=32"], "decode")
