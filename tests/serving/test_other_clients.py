"""Clients of other projects against the server: `transformers chat`, and lm-eval's local-chat-completions."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import yaml

from learn2pd import Method, ThresholdPolicy, decode, load_model
from learn2pd.files import here_or_shipped
from tests.serving.helpers import LONGEST_S, served

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")

from learn2pd.serving.app import Server

QUESTIONS = (
    "Eva has 12 pens. She loses 5. How many pens are there in the end?",
    "Ana has 4 cups. She buys 9. How many?",
)
GEN = 96
CHAT = "import sys; from transformers.cli.transformers import main; sys.exit(main())"  # the command `transformers`


@pytest.fixture(scope="module")
def model():
    return load_model(here_or_shipped("checkpoints/tiny-llada"), device="cpu")


@pytest.fixture(scope="module")
def address(model):
    with served(Server(model, Method(ThresholdPolicy(0.9)), gen_length=GEN)) as address:
        yield address


@pytest.fixture(scope="module")
def texts(model):
    return decode(model, list(QUESTIONS), Method(ThresholdPolicy(0.9)), gen_length=GEN).texts


def test_transformers_chat_shows_the_answer(address, texts):
    pytest.importorskip("transformers.cli.chat")  # of transformers 5
    done = subprocess.run(
        [sys.executable, "-c", CHAT, "chat", "tiny-llada", address, f"max_new_tokens={GEN}"],
        input=f"{QUESTIONS[0]}\n!exit\n",
        capture_output=True,
        text=True,
        timeout=LONGEST_S,
        check=False,
        env=os.environ | {"HF_HUB_OFFLINE": "0"},  # offline, it would not ask this machine either
    )
    assert done.returncode == 0, done.stderr
    assert texts[0].rpartition("####")[2].strip() in done.stdout.partition("<tiny-llada>:")[2]


def test_lm_eval_gets_the_answers_of_decode(address, texts, tmp_path):
    pytest.importorskip("tenacity")  # lm-eval's extra `api`
    lm_eval = pytest.importorskip("lm_eval")
    rows = "".join(json.dumps({"question": question, "answer": "7"}) + "\n" for question in QUESTIONS)
    (tmp_path / "rows.jsonl").write_text(rows, encoding="utf-8")
    task = {
        "task": "asked",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.jsonl")}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["~~~~"], "max_gen_toks": GEN, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    }
    (tmp_path / "asked.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")
    results = lm_eval.simple_evaluate(
        model="local-chat-completions",
        model_args=f"model=tiny-llada,base_url={address}/v1/chat/completions,num_concurrent=2",
        tasks=["asked"],
        task_manager=lm_eval.tasks.TaskManager(include_path=str(tmp_path)),
        apply_chat_template=True,
        bootstrap_iters=0,
    )
    assert [sample["resps"][0][0] for sample in results["samples"]["asked"]] == texts
