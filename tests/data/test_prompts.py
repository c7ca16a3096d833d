"""From the records of files to prompts with splits, through the configuration of a run."""

from __future__ import annotations

import ast
import json
import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import learn2pd.data
from learn2pd.cli.config import load_config
from learn2pd.cli.stages.components import check_prompts, prompts_of, usable_prompts
from learn2pd.data.prompts import Prompt, deal, encoded, prompts_digest, task_prompts
from learn2pd.data.tasks import SPLITS
from learn2pd.errors import UserError
from learn2pd.registry import GENERATED_TASKS, TASKS, build_task
from tests.data.helpers import RECORDS, questions, write

COUNTS = {"train": 6, "validation": 2, "test": 2}


def config_of(path, *overrides, counts=COUNTS):
    """The configuration of a run whose prompts come from a file."""
    sizes = [f"data.{split}_prompts={count}" for split, count in counts.items()]
    return load_config("tiny_filter", ["data.source=jsonl", f"data.path={path}", *sizes, *overrides])


def run(path, *overrides, counts=COUNTS):
    """The prompts that a run takes from a file."""
    return prompts_of(config_of(path, *overrides, counts=counts))


def sizes_of(prompts):
    """The number of prompts in each split."""
    return {split: sum(prompt.split == split for prompt in prompts) for split in SPLITS}


def texts_of(prompts, split):
    """The texts of one split's prompts."""
    return {prompt.text for prompt in prompts if prompt.split == split}


def test_data_imports_neither_the_registry_nor_the_embedded_models():
    for path in Path(learn2pd.data.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = (
                [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else []
            )
            ours = [name for name in names if name.startswith("learn2pd")]
            shared = ("learn2pd.errors", "learn2pd.files")
            assert all(name in shared or name.startswith("learn2pd.data") for name in ours), (path, ours)


# ---- splits


def test_every_prompt_is_in_one_split_and_counts_are_kept(tmp_path):
    prompts = run(write(tmp_path / "p.jsonl", questions()))
    assert len({prompt.id for prompt in prompts}) == len(prompts) == 10
    assert sizes_of(prompts) == COUNTS


def test_splits_depend_on_the_seed_and_not_on_the_order_of_the_lines(tmp_path):
    lines = questions()
    first, reversed_lines = run(write(tmp_path / "a.jsonl", lines)), run(write(tmp_path / "b.jsonl", lines[::-1]))
    assert first == reversed_lines
    assert first != run(tmp_path / "a.jsonl", "seed=1")


def test_fewer_prompts_than_asked_keep_the_proportions(tmp_path, caplog):
    prompts = run(write(tmp_path / "p.jsonl", questions(10)), counts={"train": 60, "validation": 20, "test": 20})
    assert sizes_of(prompts) == COUNTS
    assert "100 prompts asked for, 10 available" in caplog.text


@pytest.mark.parametrize("counts", [(1, 1000, 1000), (1, 1000, 1), (1000, 1, 1), (1, 1, 1000)])
@pytest.mark.parametrize("available", [3, 4, 10])
def test_every_split_has_a_prompt_however_few_there_are(tmp_path, counts, available):
    prompts = run(write(tmp_path / "p.jsonl", questions(available)), counts=dict(zip(SPLITS, counts, strict=True)))
    assert min(sizes_of(prompts).values()) >= 1
    assert len(prompts) == available


@given(counts=st.tuples(*[st.integers(0, 12)] * 3).filter(any), available=st.integers(0, 40))
def test_a_split_of_no_prompts_stays_empty_and_every_other_has_one(counts, available):
    asked = dict(zip(SPLITS, counts, strict=True))
    common = [Prompt(str(number), f"What is {number}?", "") for number in range(available)]
    wanted = [split for split in SPLITS if asked[split]]
    if available < len(wanted):
        with pytest.raises(UserError, match=f"are too few for {' and '.join(wanted)}: expected at least {len(wanted)}"):
            deal(common, {}, asked, seed=0)
        return
    sizes = sizes_of(deal(common, {}, asked, seed=0))
    assert [split for split in SPLITS if sizes[split]] == wanted
    assert sum(sizes.values()) == min(available, sum(counts))


def test_too_few_prompts_are_an_error(tmp_path):
    with pytest.raises(
        UserError, match=r"2 different prompts are too few for train and validation and test: expected at least 3"
    ):
        run(write(tmp_path / "p.jsonl", [*questions(2), *questions(2)]))


def test_official_splits_come_from_their_own_files_alone(tmp_path, caplog):
    train, validation, test = questions(20), questions(6, first=100), [*questions(5, first=200), *questions(2, first=3)]
    paths = [
        write(tmp_path / f"{name}.jsonl", lines)
        for name, lines in (("train", train), ("validation", validation), ("test", test))
    ]
    prompts = run(
        paths[0],
        f"data.validation_path={paths[1]}",
        f"data.test_path={paths[2]}",
        counts={"train": 100, "validation": 3, "test": 100},
    )
    assert texts_of(prompts, "test") == {line["question"] for line in test}
    assert len(texts_of(prompts, "validation")) == 3
    assert texts_of(prompts, "validation") < {line["question"] for line in validation}
    assert texts_of(prompts, "train") == {line["question"] for line in train} - {line["question"] for line in test}
    assert "2 of the 20 prompts of data.path stand in data.test_path too" in caplog.text
    assert {prompt.origin.split(",")[0] for prompt in prompts if prompt.split == "test"} == {"test.jsonl"}


def test_no_prompt_of_a_test_file_is_trained_on_whatever_part_of_the_file_is_used(tmp_path):
    train, test = (
        write(tmp_path / "train.jsonl", questions(20)),
        write(tmp_path / "test.jsonl", [{"question": f" {q['question']}\n"} for q in questions(10)]),
    )
    prompts = run(train, f"data.test_path={test}", counts={"train": 100, "validation": 3, "test": 1})
    assert sizes_of(prompts) == {
        "train": 10 - sizes_of(prompts)["validation"],
        "validation": sizes_of(prompts)["validation"],
        "test": 1,
    }
    assert not (texts_of(prompts, "train") | texts_of(prompts, "validation")) & {q["question"] for q in questions(10)}


def test_of_a_prompt_in_both_files_the_test_split_keeps_its_one(tmp_path, caplog):
    files = [
        write(tmp_path / f"{name}.jsonl", questions(8, first))
        for name, first in (("train", 0), ("validation", 100), ("test", 104))
    ]
    prompts = run(
        files[0], f"data.validation_path={files[1]}", f"data.test_path={files[2]}", counts=dict.fromkeys(SPLITS, 99)
    )
    assert sizes_of(prompts) == {"train": 8, "validation": 4, "test": 8}
    assert "4 of the 8 prompts of data.validation_path stand in data.test_path too" in caplog.text


def test_a_file_that_leaves_nothing_for_a_split_is_one_line(tmp_path):
    path = write(tmp_path / "p.jsonl", questions(5))
    with pytest.raises(UserError, match="0 different prompts are too few for train and validation"):
        run(path, f"data.test_path={path}")
    with pytest.raises(UserError, match=r"data\.validation_path: no prompt is left"):
        run(write(tmp_path / "q.jsonl", questions(5, 50)), f"data.test_path={path}", f"data.validation_path={path}")
    with pytest.raises(UserError, match=r"data\.test_path='nowhere.jsonl': cannot be read"):
        run(path, "data.test_path=nowhere.jsonl")


def test_built_in_tasks_take_no_files_of_their_own():
    with pytest.raises(UserError, match=r"data\.test_path='a\.jsonl': built-in tasks bring their own splits"):
        prompts_of(load_config("tiny_filter", ["data.test_path=a.jsonl"]))


# ---- fields


@pytest.mark.parametrize("name", ["anwser", "answers", "Answer", "solution"])
def test_an_answer_field_that_no_line_has_is_refused(tmp_path, name):
    path = write(tmp_path / "p.jsonl", questions())
    with pytest.raises(UserError) as caught:
        run(path, f"data.answer_field={name}")
    assert f"data.answer_field='{name}': no line of data.path='{path}' has this field" in str(caught.value)
    assert "the fields are question, answer" in str(caught.value)
    assert ("did you mean 'answer'" in str(caught.value)) == (name != "solution")


def test_the_answer_field_of_every_file_is_checked(tmp_path):
    train, test = (
        write(tmp_path / "a.jsonl", questions()),
        write(tmp_path / "b.jsonl", [{"question": "a"}, {"question": "b"}]),
    )
    with pytest.raises(UserError, match=r"data\.answer_field='answer': no line of data\.test_path="):
        run(train, "data.answer_field=answer", f"data.test_path={test}")


def test_lines_without_an_answer_are_counted(tmp_path, caplog):
    lines = questions(10)
    del lines[2]["answer"]
    lines[4]["answer"] = None
    lines[5]["answer"] = "it depends"
    prompts = run(write(tmp_path / "p.jsonl", lines), "data.answer_field=answer")
    assert "3 lines without an answer that can be judged" in caplog.text
    for reason in (
        "line 3: no answer in the field 'answer'",
        "line 5: no answer",
        "line 6: the answer 'it depends' has no value",
    ):
        assert reason in caplog.text
    assert sum(prompt.task is None for prompt in prompts) == 3
    assert {prompt.task for prompt in prompts} == {None, "final_number"}


def test_a_prompt_field_that_no_line_has_names_its_neighbour(tmp_path):
    with pytest.raises(
        UserError,
        match=r"none of the 20 lines.*line 1.*'qestion' \(its fields: question, answer\).*did you mean 'question'",
    ):
        run(write(tmp_path / "p.jsonl", questions()), "data.prompt_field=qestion")


def test_the_answer_field_gives_the_checker_its_facts(tmp_path):
    prompts = run(write(tmp_path / "p.jsonl", questions(10, first=1000)), "data.answer_field=answer")
    assert {prompt.facts["number"] for prompt in prompts} == {1001 + n for n in range(10)}
    assert all(prompt.origin == f"p.jsonl, line {prompt.facts['number'] - 1000}" for prompt in prompts)


# ---- repeated prompts


@pytest.mark.parametrize("space", [" ", "\n", "\t\r\n", "\u00a0", "\u3000"])
def test_prompts_that_differ_in_white_space_at_their_ends_are_one(tmp_path, space):
    lines = [
        {"question": space * before + question["question"] + space * behind}
        for question in questions(4)
        for before in range(2)
        for behind in range(2)
    ]
    prompts = run(write(tmp_path / "p.jsonl", lines))
    assert len(prompts) == len({prompt.text.strip() for prompt in prompts}) == 4


def test_a_prompt_repeated_with_another_answer_is_counted_and_judged_by_neither(tmp_path, caplog):
    lines = [
        *questions(10),
        {"question": "What is 3 + 1? ", "answer": "5"},
        {"question": "What is 4 + 1?", "answer": "so 5"},
    ]
    prompts = run(write(tmp_path / "p.jsonl", lines), "data.answer_field=answer")
    assert len(prompts) == 10
    assert [prompt.text for prompt in prompts if prompt.task is None] == ["What is 3 + 1?"]
    assert "1 line repeated with different answers" in caplog.text
    assert "line 4 and line 11" in caplog.text


def test_a_prompt_repeated_with_its_answer_left_out_once_keeps_it(tmp_path):
    lines = [{"question": "What is 3 + 1?"}, *questions(10)]
    assert {prompt.task for prompt in run(write(tmp_path / "p.jsonl", lines), "data.answer_field=answer")} == {
        "final_number"
    }


# ---- conversations


def chat(*turns):
    """An entry of a file that holds messages, from pairs of role and content."""
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def test_a_column_of_messages_gives_conversations(tmp_path):
    lines = [chat(("system", "Be brief."), ("user", f"What is {n}?")) for n in range(10)]
    prompts = run(write(tmp_path / "p.jsonl", lines), "data.prompt_field=messages")
    first = next(prompt for prompt in prompts if "What is 0?" in prompt.text)
    assert first.messages == (("system", "Be brief."), ("user", "What is 0?"))
    assert first.text == "system: Be brief.\nuser: What is 0?"
    assert first.content == lines[0]["messages"]


def test_one_message_of_the_user_is_its_text(tmp_path):
    alone = run(
        write(tmp_path / "a.jsonl", [chat(("user", question["question"])) for question in questions()]),
        "data.prompt_field=messages",
    )
    assert alone == run(write(tmp_path / "b.jsonl", questions()))


def test_a_closing_turn_of_the_assistant_is_no_part_of_the_prompt(tmp_path):
    turns = [("user", "Hi"), ("assistant", "Hello"), ("user", "How are you?"), ("assistant", "Fine")]
    prompts = run(
        write(tmp_path / "p.jsonl", [chat(("system", str(n)), *turns) for n in range(4)]), "data.prompt_field=messages"
    )
    assert {prompt.messages[1:] for prompt in prompts} == {tuple(turns[:3])}


def test_conversations_are_told_from_texts_that_look_alike(tmp_path):
    lines = [chat(("system", "a"), ("user", "b")), {"messages": "system: a\nuser: b"}, {"messages": "c"}]
    prompts = run(write(tmp_path / "p.jsonl", lines), "data.prompt_field=messages")
    assert len({prompt.id for prompt in prompts}) == 3


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [{}],
        [{"role": "user"}],
        [{"role": "user", "content": None}],
        [{"role": "user", "content": " "}],
        [{"role": 1, "content": "a"}],
        [{"role": "system", "content": "a"}],
        [{"role": "assistant", "content": "a"}],
        [{"role": "user", "content": "\ud83d"}],
        ["a"],
        {"role": "user"},
    ],
)
def test_what_is_no_conversation_is_counted(tmp_path, caplog, messages):
    lines = [chat(("user", f"What is {n}?")) for n in range(10)]
    prompts = run(write(tmp_path / "p.jsonl", [*lines, {"messages": messages}]), "data.prompt_field=messages")
    assert len(prompts) == 10
    assert "1 line skipped, 10 prompts left" in caplog.text
    assert "line 11: " in caplog.text


def test_a_prompt_is_encoded_once(tiny_model):
    """A stage gets the token ids that the check has made, and encodes no prompt that carries them."""
    conversation = Prompt("a", "x", "train", messages=(("system", "four"), ("user", "fives")))
    prompts = [conversation, Prompt("b", "text", "validation"), Prompt("c", "pears", "test")]
    expected = [tiny_model.encode(prompt.content) for prompt in prompts]
    assert encoded(tiny_model, prompts) == expected
    assert encoded(None, check_prompts(tiny_model, prompts, 16)) == expected


# ---- what a model takes


def prompts_in(**texts):
    """`train="a b"` is a prompt of the training split."""
    return [
        Prompt(split, text, split, origin=f"p.jsonl, line {number}")
        for number, (split, text) in enumerate(texts.items(), 1)
    ]


@pytest.mark.parametrize("split", SPLITS)
def test_a_prompt_that_is_too_long_is_named_by_file_and_line_in_any_split(tiny_model, split):
    prompts = prompts_in(**({name: f"Mia has {name}" for name in SPLITS} | {split: "pear " * 900}))
    with pytest.raises(UserError) as caught:
        check_prompts(tiny_model, prompts, 16)
    line = SPLITS.index(split) + 1
    for part in (
        "1 of 3 prompts are too long",
        f"p.jsonl, line {line} ('pear pear",
        "decode.gen_length=16",
        "512",
        "data.skip_long=true",
    ):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_long_prompts_are_skipped_and_counted_where_that_is_asked(tiny_model, caplog):
    prompts = prompts_in(train="Mia has 3 pears", validation="Mia has 4", test="Mia has 5")
    long = Prompt("long", "pear " * 900, "test", origin="p.jsonl, line 9")
    assert check_prompts(tiny_model, [*prompts, long], 16, skip_long=True) == prompts
    assert "1 of 4 prompts skipped because they are too long: p.jsonl, line 9" in caplog.text


def test_a_split_of_long_prompts_alone_is_an_error(tiny_model):
    with pytest.raises(UserError, match="no test prompt is left"):
        check_prompts(tiny_model, prompts_in(train="a b", validation="b c", test="pear " * 900), 16, skip_long=True)


def test_a_run_refuses_a_long_test_prompt_before_it_does_anything(tmp_path, tiny_model, tiny_model_folder):
    lines = [*questions(11), {"question": "pear " * 900}]
    path = write(tmp_path / "p.jsonl", lines)
    config = config_of(path, "decode.gen_length=16", counts={"train": 8, "validation": 2, "test": 2})
    with pytest.raises(UserError, match=r"p\.jsonl, line 12"):
        usable_prompts(config, tiny_model)
    config.data.skip_long = True
    assert len(usable_prompts(config, tiny_model)) == 11


@pytest.mark.parametrize("kept", ["test", "validation"])
def test_prompts_that_are_the_same_tokens_are_in_one_split(tiny_model, caplog, kept):
    """As where a tokenizer or a chat template leaves out what tells their texts apart."""
    prompts = prompts_in(train="a b", validation="b c", test="c d")
    prompts += [Prompt("x", "the same", "train"), Prompt("y", "the same", kept)]
    usable = check_prompts(tiny_model, prompts, 16)
    assert [prompt.id for prompt in usable] == ["train", "validation", "test", "y"]
    assert "1 prompts skipped: to the model they are the same tokens" in caplog.text


# ---- tasks


def test_built_in_tasks_share_the_counts_and_never_a_prompt():
    tasks = [build_task(name) for name in GENERATED_TASKS]
    prompts = task_prompts(tasks, {"train": 10, "validation": 4, "test": 5}, seed=0)
    assert sizes_of(prompts) == {"train": 10, "validation": 4, "test": 5}
    assert len({prompt.id for prompt in prompts}) == 19


def test_an_unknown_task_names_its_neighbour(tmp_path):
    with pytest.raises(UserError, match=r"data\.tasks: unknown task 'maths'; did you mean 'math'"):
        prompts_of(load_config("tiny_filter", ["data.tasks=[maths]"]))
    with pytest.raises(
        UserError, match=r"data\.task='slot': unknown task; did you mean 'slots'; expected one of .*final_number"
    ):
        run(write(tmp_path / "p.jsonl", questions()), "data.task=slot")
    with pytest.raises(UserError, match=r"data\.task='no.such:Thing'.*cannot be imported"):
        run(tmp_path / "p.jsonl", "data.task=no.such:Thing")
    with pytest.raises(UserError, match=r"data\.task='pathlib:Path': it has no facts, check, so it judges no answers"):
        run(tmp_path / "p.jsonl", "data.task=pathlib:Path")


@pytest.mark.parametrize("name", TASKS)
def test_every_task_of_the_table_can_be_built_and_judges(name):
    task = build_task(name, run_generated_code=True)
    assert callable(task.facts)
    assert callable(task.check)


def test_a_task_judges_the_answers_that_its_name_is_given_for(tmp_path):
    prompts = run(
        write(tmp_path / "p.jsonl", RECORDS), "data.prompt_field=prompt", "data.answer_field=answer", "data.task=slots"
    )
    assert {prompt.task for prompt in prompts} == {"slots"}
    assert all(prompt.facts["record"]["track"] in prompt.text for prompt in prompts)


def test_an_answer_may_be_the_record_itself(tmp_path):
    lines = [line | {"answer": json.loads(line["answer"])} for line in RECORDS]
    options = ("data.prompt_field=prompt", "data.answer_field=answer", "data.task=slots")
    assert run(write(tmp_path / "a.jsonl", lines), *options) == run(write(tmp_path / "b.jsonl", RECORDS), *options)


@pytest.mark.parametrize("answer", ["not json", "NaN", '{"x": 1, "x": 2}', "[" * 100_000, "1" * 5000])
def test_the_task_json_skips_a_line_whose_answer_is_no_json(tmp_path, caplog, answer):
    lines = [*RECORDS, {"prompt": "play something", "answer": answer}]
    prompts = run(
        write(tmp_path / "p.jsonl", lines), "data.prompt_field=prompt", "data.answer_field=answer", "data.task=json"
    )
    assert len(prompts) == 10
    assert "1 line skipped, 10 prompts left" in caplog.text


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("not json", "Expecting value"),
        ('{"track": "song"}', "no 'intent'"),
        ('{"intent": "a", "intent": "b"}', "'intent' stands twice"),
        ('{"intent": "PlayMusic", "track": "elsewhere"}', "'track' does not stand in the request"),
        ('{"intent": "PlayMusic", "track": 7}', "neither a text nor a list"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_a_reference_that_the_task_refuses_costs_its_line(tmp_path, caplog, answer, reason):
    lines = [*RECORDS, {"prompt": "play something", "answer": answer}]
    prompts = run(
        write(tmp_path / "p.jsonl", lines), "data.prompt_field=prompt", "data.answer_field=answer", "data.task=slots"
    )
    assert len(prompts) == 10
    assert "1 line skipped, 10 prompts left" in caplog.text
    assert reason in caplog.text


def test_a_task_that_knows_only_its_own_problems_says_so(tmp_path):
    with pytest.raises(UserError, match=r"none of the 20 lines.*'math' judges the problems of its own generator only"):
        run(write(tmp_path / "p.jsonl", questions()), "data.answer_field=answer", "data.task=math")


def test_warnings_are_given_once_a_process(tmp_path, caplog):
    path = write(tmp_path / "p.jsonl", [*questions(), "{"])
    with caplog.at_level(logging.WARNING):
        assert run(path) == run(path)
    assert caplog.text.count("1 line skipped") == 1


def test_the_digest_of_prompts_does_not_depend_on_where_they_come_from():
    one, other = (
        Prompt("a", "text", "test", origin="a.jsonl, line 1"),
        Prompt("a", "text", "test", origin="b.jsonl, line 2"),
    )
    assert one == other
    assert prompts_digest([one]) == prompts_digest([other])
