"""A model as lm-eval sees it answers as `decode` does, and scores as `log_likelihoods` does."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch

pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance
from lm_eval.api.model import CachingLM
from lm_eval.api.registry import get_model, model_registry
from lm_eval.evaluator import evaluate

from learn2pd import EotStop, Method, NoStop, Sampling, TextStop, ThresholdPolicy, UserError, decode
from learn2pd.cli.evaluate import load_tasks
from learn2pd.harness import processes
from learn2pd.harness.likelihood import log_likelihoods
from learn2pd.harness.model import DiffusionLM, Learn2PD
from learn2pd.harness.programs import passes
from tests.fixtures import CAUSAL_BLOCK, MAX_LENGTH
from tests.harness.conftest import PROGRAM

GRID = {"block_length": CAUSAL_BLOCK, "alignment": "grid"}
METHODS = {
    "threshold": lambda: Method.from_names("threshold", options={"threshold": 0.6}),
    "fixed": lambda: Method.from_names("fixed", "blocks", "dual", "eot_filled", options={"steps": 8}),
    "factor": lambda: Method.from_names("factor", "dsb", "dsb", "none"),
    "wino": lambda: Method.from_names("wino", stop="text", stop_options={"strings": "er"}),
    "grow": lambda: Method.from_names("klass", cache="grow"),
}
CAUSAL = {
    "sdar": lambda: Method.from_names("low_confidence", "blocks", "causal_block", scheduler_options=GRID),
    "llada2": lambda: Method.from_names("edit", "blocks", "causal_block", scheduler_options=GRID),
}
QUESTIONS = ["Write 7 as JSON.", "Tom has 6 stamps. Tom doubles the number. How many stamps?", "Add 2.", "a" * 40]


def asked(context: str, number: int = 0, **options: object) -> Instance:
    return Instance("generate_until", {}, (context, {"until": []} | options), number, ("task", number, 1))


def pair(context: str, continuation: str, number: int = 0) -> Instance:
    return Instance("loglikelihood", {}, (context, continuation), number, ("task", number, 1))


@pytest.fixture
def model(request, tiny_model, tiny_family):
    return tiny_model if request.param in METHODS else tiny_family(request.param)


@pytest.mark.parametrize(
    ("model", "method"),
    [(name, method) for methods in (METHODS, CAUSAL) for name, method in methods.items()],
    indirect=["model"],
    ids=[*METHODS, *CAUSAL],
)
def test_answers_are_those_of_decode(model, method):
    built = method()
    lm = DiffusionLM(model, built, batch_size=3)
    contexts = [lm.apply_chat_template([{"role": "user", "content": text}]) for text in QUESTIONS]
    got = lm.generate_until([asked(text, max_gen_toks=24) for text in contexts], disable_tqdm=True)
    expected = decode(model, QUESTIONS, built, gen_length=24)
    assert got == expected.texts
    assert lm.figures["task"]["forwards"] == int(expected.forwards.sum())
    assert lm.figures["task"]["answers"] == len(QUESTIONS)


def test_a_context_without_a_chat_template_is_text_as_it_is(tiny_model):
    lm = DiffusionLM(tiny_model, METHODS["threshold"]())
    ids = [tiny_model.tokenizer.encode(text, add_special_tokens=False) for text in QUESTIONS]
    expected = decode(tiny_model, ids, lm.method, gen_length=16).texts
    assert lm.generate_until([asked(text, max_gen_toks=16) for text in QUESTIONS], disable_tqdm=True) == expected


@pytest.mark.parametrize("stop", [EotStop(0.3), TextStop("zq"), NoStop()], ids=lambda stop: stop.name)
def test_an_answer_ends_before_the_texts_of_its_task(tiny_model, stop):
    method = Method(ThresholdPolicy(0.6), stop=stop)
    lm = DiffusionLM(tiny_model, method)
    whole = lm.generate_until([asked(text, max_gen_toks=32) for text in QUESTIONS], disable_tqdm=True)
    untils = [[text[len(text) // 2 :][:2] or "x", "never"] for text in whole]
    before = sum(lm.figures["task"].values())
    lm.figures.clear()
    got = lm.generate_until(
        [asked(text, max_gen_toks=32, until=until) for text, until in zip(QUESTIONS, untils, strict=True)],
        disable_tqdm=True,
    )
    assert got == [text.split(until[0])[0] for text, until in zip(whole, untils, strict=True)]
    assert (sum(lm.figures["task"].values()) < before) == (stop.name != "none")  # the rule saves forwards


def test_a_context_that_is_too_long_loses_its_beginning(tiny_model, make_prompts):
    lm = DiffusionLM(tiny_model, METHODS["threshold"](), likelihood_samples=3)
    context = " ".join(QUESTIONS * 30)
    ids = lm.tok_encode(context)
    assert len(ids) > MAX_LENGTH
    got = lm.generate_until([asked(context, max_gen_toks=20)], disable_tqdm=True)
    assert got == decode(tiny_model, [ids[-(MAX_LENGTH - 20) :]], lm.method, gen_length=20).texts
    assert lm.figures["task"]["cut"] == 1
    prompt, answer = ids, ids[:9]
    ((score, _),) = lm._loglikelihood_tokens([(None, prompt, answer)], disable_tqdm=True)
    fitting = (prompt[-(MAX_LENGTH - 9) :], answer)
    assert score == log_likelihoods(tiny_model.adapter, [fitting], samples=3, rows=16, seed=0)[0]


def test_a_canvas_of_ones_own_keeps_to_the_limit_of_the_task(tiny_model):
    method = Method(ThresholdPolicy(0.6), stop=NoStop())
    lm = DiffusionLM(tiny_model, method, gen_length=40)
    (got,) = lm.generate_until([asked(QUESTIONS[0], max_gen_toks=5)], disable_tqdm=True)
    result = decode(tiny_model, [lm.tok_encode(QUESTIONS[0])], method, gen_length=40)
    kept = result.tokens[0, : min(5, int(result.lengths[0]))]
    assert got == tiny_model.tokenizer.decode(kept, skip_special_tokens=True)


def test_what_a_task_says_about_sampling_is_done(tiny_model):
    lm = DiffusionLM(tiny_model, METHODS["threshold"](), seed=5)
    drawn = {"max_gen_toks": 16, "do_sample": True, "temperature": 1.5, "top_p": 0.9}
    question = asked(QUESTIONS[1], **drawn)
    question.repeats = 3
    got = lm.generate_until([question] * 3, disable_tqdm=True)
    prompts = [lm.tok_encode(QUESTIONS[1])] * 3
    assert got == decode(tiny_model, prompts, lm.method, gen_length=16, sampling=Sampling(1.5, 0.9), seed=5).texts
    assert len(set(got)) > 1
    cold = drawn | {"do_sample": False}
    assert len(set(lm.generate_until([asked(QUESTIONS[1], **cold)] * 3, disable_tqdm=True))) == 1


def test_a_question_that_lm_eval_adds_for_another_process_is_decoded_once(tiny_model):
    lm = DiffusionLM(tiny_model, METHODS["threshold"](), seed=5)
    one, last = (asked(question, max_gen_toks=16) for question in QUESTIONS[:2])
    last.repeats = 2
    texts = lm.generate_until([one, last, last, last, last], disable_tqdm=True)
    assert texts[1] == texts[2] == texts[3] == texts[4]
    assert sum(figures["answers"] for figures in lm.figures.values()) == 3


def test_likelihoods_are_those_of_the_model_and_no_method_changes_them(tiny_model):
    pairs = [("Add 2.", " 4"), ("", "Write 7"), ("Write 7 as ", "JSON")]
    requests = [pair(*texts) for texts in pairs]
    scores = [
        DiffusionLM(tiny_model, METHODS[name](), likelihood_samples=9).loglikelihood(requests, disable_tqdm=True)
        for name in ("threshold", "fixed")
    ]
    assert scores[0] == scores[1]
    lm = DiffusionLM(tiny_model, METHODS["threshold"](), likelihood_samples=9)
    encode = lm.tok_encode
    ids = [
        (encode("Add 2."), encode("Add 2. 4")[len(encode("Add 2.")) :]),
        ([tiny_model.spec.eot_ids[0]], encode("Write 7")),
        (encode("Write 7 as"), encode("Write 7 as JSON")[len(encode("Write 7 as")) :]),
    ]
    expected = log_likelihoods(tiny_model.adapter, ids, samples=9, rows=16, seed=0)
    assert [score for score, _ in scores[0]] == pytest.approx(expected)


def test_a_whole_text_is_scored_in_windows_of_the_models_length(tiny_model):
    lm = DiffusionLM(tiny_model, METHODS["threshold"](), likelihood_samples=3, max_length=9)
    text = " ".join(QUESTIONS[:2])
    ids = lm.tok_encode(text)
    eot = tiny_model.spec.eot_ids[0]
    full, left = divmod(len(ids), 8)
    assert full > 1
    assert left
    windows = [([eot], ids[:8])]
    windows += [(ids[first - 1 : first], ids[first : first + 8]) for first in range(8, 8 * full, 8)]
    windows += [(ids[-9:-left], ids[-left:])]  # the last window keeps its length, and scores what is left
    (whole,) = lm.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (text,), 0, ("t", 0, 1))], True)
    expected = sum(log_likelihoods(tiny_model.adapter, windows, samples=3, rows=16, seed=0))
    assert whole == pytest.approx(expected)
    one = tiny_model.tokenizer.decode(ids[:1])
    (score,) = lm.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (one,), 0, ("t", 0, 1))], True)
    network = tiny_model.adapter.network
    logits = network(torch.tensor([[eot, tiny_model.spec.mask_id]])).logits[0, 1].log_softmax(-1)
    assert score == pytest.approx(float(logits[lm.tok_encode(one)[0]]))


def test_known_answers_belong_to_one_model_and_one_method(tiny_model, tmp_path):
    requests = [asked(text, max_gen_toks=12) for text in QUESTIONS]
    first = DiffusionLM(tiny_model, METHODS["threshold"]())
    answers = CachingLM(first, str(tmp_path / "answers.db")).generate_until(requests)
    again = DiffusionLM(tiny_model, METHODS["threshold"]())
    assert CachingLM(again, str(tmp_path / "answers.db")).generate_until(requests) == answers
    assert not again.figures
    for other in (
        DiffusionLM(tiny_model, METHODS["fixed"]()),
        DiffusionLM(tiny_model, METHODS["threshold"](), gen_length=30),
        DiffusionLM(tiny_model, METHODS["threshold"](), seed=1),
    ):
        with pytest.raises(UserError, match="another model or method"):
            CachingLM(other, str(tmp_path / "answers.db"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_gen_toks": MAX_LENGTH}, "gen_length"),
        ({"max_gen_toks": 0}, "gen_length"),
        ({"do_sample": True, "temperature": -1.0}, "temperature=-1.0"),
        ({"do_sample": True, "top_p": 7}, "top_p=7"),
    ],
)
def test_what_a_task_may_not_ask_is_one_line(tiny_model, options, words):
    lm = DiffusionLM(tiny_model, METHODS["threshold"]())
    with pytest.raises(UserError, match=words) as error:
        lm.generate_until([asked("Add 2.", **options)], disable_tqdm=True)
    assert "\n" not in str(error.value)
    assert "'task'" in str(error.value)


@pytest.mark.parametrize("option", ["gen_length", "batch_size", "likelihood_samples", "max_length"])
def test_a_number_that_is_too_small_is_one_line(tiny_model, option):
    with pytest.raises(UserError, match=f"{option}=0: expected at least 1"):
        DiffusionLM(tiny_model, METHODS["threshold"](), **{option: 0})


def test_a_continuation_without_tokens_is_one_line(tiny_model):
    lm = DiffusionLM(tiny_model, METHODS["threshold"]())
    with pytest.raises(UserError, match="has 0 tokens"):
        lm.loglikelihood([pair("Add 2.", "")], disable_tqdm=True)


def test_the_entry_point_is_a_model_of_lm_eval(task_folder, tiny_model_folder):
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    target = project["entry-points"]["lm_eval.models"]["learn2pd"]
    assert EntryPoint("learn2pd", target, "lm_eval.models").load() is Learn2PD
    model_registry.register("learn2pd", target=target)
    lm = get_model("learn2pd").create_from_arg_obj(
        {"pretrained": str(tiny_model_folder), "policy": "fixed", "block_length": 16, "gen_length": 16},
        {"batch_size": "auto", "device": "cuda:0", "max_batch_size": None},  # the device is lm-eval's own guess
    )
    loaded = load_tasks(["sums"], str(task_folder), None, False)
    (sample,) = evaluate(lm=lm, task_dict=loaded, limit=1, bootstrap_iters=0, apply_chat_template=True)["samples"][
        "sums"
    ]
    method = Method.from_names("fixed", scheduler_options={"block_length": 16})
    expected = decode(lm.model, [sample["doc"]["question"]], method, gen_length=16).texts[0]
    assert sample["resps"][0][0] == expected.split("\n\n")[0].split("Question:")[0]
    assert lm.get_model_info()["method"]["policy"] == "fixed"


def evaluated(lm, folder: Path) -> dict:
    loaded = load_tasks(["sums", "choices"], str(folder), None, False)
    results = evaluate(lm=lm, task_dict=loaded, bootstrap_iters=0, apply_chat_template=True)
    if results is None:
        return {}
    kept = ("doc_id", "filtered_resps")
    rows = {
        name: sorted(([sample[key] for key in kept] for sample in samples), key=lambda row: row[0])
        for name, samples in results["samples"].items()
    }
    # a batch of other rows may add numbers in another order
    return json.loads(
        json.dumps({"results": results["results"], "rows": rows}), parse_float=lambda x: round(float(x), 9)
    )


def work(rank: int, port: int, model, folder: Path, output: Path) -> None:
    os.environ |= {"TORCHELASTIC_RUN_ID": "x", "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes.join()
    lm = DiffusionLM(model, METHODS["threshold"](), gen_length=16, likelihood_samples=4)
    scores = evaluated(lm, folder)
    (output / f"{rank}.json").write_text(json.dumps([scores, lm.figures]), encoding="utf-8")
    processes.leave()


def test_two_processes_give_the_results_of_one(tiny_model, task_folder, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("fork")  # the children have everything loaded
    children = [
        context.Process(target=work, args=(rank, port, tiny_model, task_folder, tmp_path), daemon=True)
        for rank in range(2)
    ]
    for child in children:
        child.start()
    lm = DiffusionLM(tiny_model, METHODS["threshold"](), gen_length=16, likelihood_samples=4)
    alone = evaluated(lm, task_folder)
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0, 0]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text(encoding="utf-8")) for rank in range(2))
    assert first[0] == alone
    assert second[0] == {}
    assert first[1]["sums"]["answers"] == 2  # of three questions


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("    return 2 * value", 1.0),
        ("```python\ndef double(value):\n    return value + value\n```", 1.0),
        ("    return value", 0.0),
        ("no Python", 0.0),
        ("    import os\n    return os.getpid()", 0.0),
    ],
)
def test_a_program_is_judged_by_its_tests(monkeypatch, answer, right):
    monkeypatch.setenv("HF_ALLOW_CODE_EVAL", "1")
    assert passes(PROGRAM, [answer]) == {"acc": right}


def test_no_program_runs_without_permission(monkeypatch):
    monkeypatch.delenv("HF_ALLOW_CODE_EVAL", raising=False)
    with pytest.raises(UserError, match="run_generated_code"):
        passes(PROGRAM, ["    return 2 * value"])
