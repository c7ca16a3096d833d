"""What ships: the embedded dLLM knows answers, the shipped filter fits it, the README's Python runs."""

import itertools
import re
from pathlib import Path

import pytest

from learn2pd import (
    APDPolicy,
    FixedPolicy,
    LookaheadCache,
    LookaheadScheduler,
    decode,
    load_model,
    load_policy,
    load_verifier,
)
from learn2pd.data.tasks import problems
from learn2pd.registry import GENERATED_TASKS, build_task

ROOT = Path(__file__).parents[2]
MODEL, POLICY = ROOT / "checkpoints" / "tiny-llada", ROOT / "checkpoints" / "tiny-llada-filter"
VERIFIER = ROOT / "checkpoints" / "tiny-ar"
GEN = 64


@pytest.fixture(scope="module")
def embedded():
    return load_model(str(MODEL), device="cpu")


def test_the_files_are_the_hubs_and_small():
    names = {path.name for path in MODEL.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md"} <= names
    assert sum(path.stat().st_size for path in MODEL.iterdir()) < 16 * 2**20


@pytest.fixture(scope="module")
def drawn():
    """Problems of all tasks that the model has not seen."""
    return [
        problem
        for name in GENERATED_TASKS
        for problem in itertools.islice(problems(build_task(name), "validation", 5), 3)
    ]


@pytest.fixture(scope="module")
def prompts(drawn):
    return [problem.prompt for problem in drawn]


@pytest.fixture(scope="module")
def one_by_one(embedded, prompts):
    """The answers with one token a step."""
    return decode(embedded, prompts, policy=FixedPolicy(), gen_length=GEN)


def test_the_model_knows_answers(drawn, one_by_one):
    """Far below the model card's figures, far above chance: catches a checkpoint that does not belong to this code."""
    right = [
        build_task(problem.task, run_generated_code=True).check(problem.facts, text).correct
        for problem, text in zip(drawn, one_by_one.texts, strict=True)
    ]
    assert sum(right) >= 4


def test_the_shipped_filter_fits_the_shipped_model_and_is_faster(embedded, prompts, one_by_one):
    quick = decode(embedded, prompts, policy=load_policy(POLICY), gen_length=GEN)
    assert quick.forwards.sum() < one_by_one.forwards.sum()


def test_the_shipped_verifier_fits_the_shipped_model_and_accepts_drafts(embedded, prompts):
    policy = APDPolicy(load_verifier(str(VERIFIER), device="cpu"), 0.7)
    result = decode(
        embedded, prompts, policy=policy, scheduler=LookaheadScheduler(), cache=LookaheadCache(16), gen_length=GEN
    )
    assert result.forwards.equal(result.auxiliary_forwards)
    assert result.forwards.sum() < 0.9 * result.lengths.sum()
    assert sum(path.stat().st_size for path in VERIFIER.iterdir()) < 8 * 2**20


def test_the_python_of_the_readme_runs(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        exec(block, {})
    assert capsys.readouterr().out.strip()


def test_the_commands_of_the_readme_name_configurations_that_exist():
    for name in re.findall(r"config=(\w+)", (ROOT / "README.md").read_text()):
        if name != "NAME":
            assert (ROOT / "configs" / f"{name}.yaml").is_file(), name
