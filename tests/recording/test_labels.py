"""Labels by continuing recorded states: what they call right, what they cost, and their shards."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path

import pytest
import torch

from learn2pd.cli import main as cli
from learn2pd.cli.config import load_config
from learn2pd.cli.stages.planning import label_cost
from learn2pd.cli.stages.recording import check_labels
from learn2pd.data.prompts import Prompt
from learn2pd.decoding import decode
from learn2pd.errors import UserError
from learn2pd.method import Method
from learn2pd.models.loading import load_model
from learn2pd.policies.fixed import FixedPolicy
from learn2pd.policies.oracle import GuidedPolicy
from learn2pd.policies.threshold import ThresholdPolicy
from learn2pd.predictors.filter import Final
from learn2pd.recording.estimate import LabelCost, estimate
from learn2pd.recording.labels import Sample, labelled_tables
from learn2pd.recording.reading import Recording
from learn2pd.recording.recorder import oracle_tables, rollout_tables
from learn2pd.recording.schema import read_recording
from learn2pd.registry import build_task
from learn2pd.schedulers.blocks import BlocksScheduler
from learn2pd.stops.eot import EotStop
from learn2pd.types import Window
from tests.recording.helpers import BATCH, BLOCK, GEN, SHARD, files, make

ONE_A_STEP = Method(FixedPolicy(), BlocksScheduler(BLOCK), stop=EotStop(0.0))
BOLD = Method(ThresholdPolicy(0.1), BlocksScheduler(BLOCK), stop=EotStop(0.0))
ALL = Sample(states=0, positions=0, seed=0)


def never(prompts, texts):
    return [False] * len(texts)


def some(prompts, texts):
    """A checker that accepts about every second text."""
    return [sum(map(ord, text)) % 2 == 0 for text in texts]


@pytest.fixture(scope="module")
def visited(tiny_model, prompts, recording, tmp_path_factory):
    """Folders of recordings by what led into their states, on the first prompts."""

    def rollout(method):
        folder = tmp_path_factory.mktemp("visited")

        def produce(model, picked):
            references = recording.references_of([prompt.id for prompt in picked])
            options = {"batch_size": BATCH, "delimiter_ids": recording.description["delimiter_ids"]}
            return rollout_tables(model, picked, references, method, **options)

        make(tiny_model, prompts[:SHARD], folder, produce=produce)
        return Recording.load(folder)

    return {"one a step": rollout(ONE_A_STEP), "bold": rollout(BOLD), "oracle": recording}


def relabelled(model, prompts, recording, judge=None, sample=ALL, methods=(ONE_A_STEP,)):
    return labelled_tables(model, prompts, recording, methods, judge, sample, batch_size=8)


def test_on_the_trajectory_of_the_reference_a_continuation_is_the_reference(tiny_model, prompts, visited):
    base = visited["one a step"]
    picked = prompts[:SHARD]
    tables = relabelled(tiny_model, picked, base)
    _, states = base.states_of([prompt.id for prompt in picked])
    assert tables.states["label"].equal(states["label"])
    assert tables.states["label"].any()
    assert not tables.states["label"].all()
    for name, values in states.items():  # the states are the same
        assert values == tables.states[name] if isinstance(values, list) else values.equal(tables.states[name])


@pytest.mark.parametrize("states", ["oracle", "bold"])
def test_a_continuation_is_what_one_token_a_step_writes_from_the_state(tiny_model, prompts, visited, states):
    """Decoded anew, a row at a time, with the committed tokens as the only given ones."""
    base = visited[states]
    picked = prompts[:2]
    sample = Sample(3, 0, 1)
    tables = relabelled(tiny_model, picked, base, sample=sample)
    references = dict(zip(base.references["prompt_id"], base.references["tokens"], strict=True))
    text = {prompt.id: prompt.text for prompt in picked}
    for row, name in enumerate(tables.states["prompt_id"]):
        canvas = torch.where(tables.states["masked"][row], -1, torch.tensor(references[name]))
        ended = (canvas == tiny_model.spec.eot_ids[0]).nonzero()[:, 0].tolist()
        if ended:  # behind an end-of-text everything is closed
            canvas[ended[0] :] = tiny_model.spec.eot_ids[0]
        own = decode(tiny_model, [text[name]], ONE_A_STEP, gen_length=GEN, given=canvas[None]).tokens[0]
        first = (own == tiny_model.spec.eot_ids[0]).nonzero()[:, 0].tolist()
        if first:
            own[first[0] :] = tiny_model.spec.eot_ids[0]
        right = (tables.states["confidence"][row] > 0) & (tables.states["proposal"][row] == own)
        assert tables.states["label"][row].equal(right)


@pytest.mark.parametrize(
    ("judge", "methods"),
    [
        (never, (ONE_A_STEP,)),
        (some, (BOLD, ONE_A_STEP)),
        pytest.param(some, (ONE_A_STEP,), marks=pytest.mark.thorough),
        pytest.param(never, (BOLD, ONE_A_STEP), marks=pytest.mark.thorough),
    ],
)
def test_checked_accepts_what_a_right_continuation_writes_and_says_nothing_of_lost_states(
    tiny_model, prompts, visited, judge, methods
):
    base = visited["bold"]
    picked = prompts[:SHARD]
    sample = Sample(4, 6, 0)
    written = relabelled(tiny_model, picked, base, sample=sample, methods=methods)
    checked = relabelled(tiny_model, picked, base, judge, sample, methods)
    place = {key: row for row, key in enumerate(keys(written.states))}
    rows = [place[key] for key in keys(checked.states)]
    known = checked.states["labelled"]
    window = Window(checked.states["start"], checked.states["stop"]).mask(GEN)
    assert not (known & ~(checked.states["masked"] & window)).any()
    assert (known.sum(1) <= 6).all()
    assert known.any(1).all()
    right = [set(texts) for texts in checked.references["wordings"]]
    assert all(texts == sorted(texts) for texts in checked.references["wordings"])
    if len(methods) == 1:  # the state's own continuation was right, or its labels would not be known
        accepted = written.states["label"][rows] & known
        assert accepted.any()
        assert (checked.states["label"] & accepted).equal(accepted)
    assert len(place) >= len(rows) > 0
    assert any(right)


def keys(states):
    return list(zip(states["prompt_id"], states["step"].tolist(), strict=True))


def test_the_draw_of_a_prompt_depends_on_nothing_but_the_prompt_and_the_seed(tiny_model, prompts, visited):
    base = visited["bold"]
    together = relabelled(tiny_model, prompts[:SHARD], base, some, Sample(3, 4, 5))
    alone = relabelled(tiny_model, prompts[1:2], base, some, Sample(3, 4, 5))
    rows = [row for row, name in enumerate(together.states["prompt_id"]) if name == prompts[1].id]
    assert keys(alone.states) == [keys(together.states)[row] for row in rows]
    assert alone.states["label"].equal(together.states["label"][rows])
    assert alone.states["labelled"].equal(together.states["labelled"][rows])
    assert alone.references["wordings"] == together.references["wordings"][1:2]


def labelled_recording(model, prompts, base, folder: Path, **more):
    def produce(model, picked):
        return relabelled(model, picked, base, some, Sample(2, 3, 0))

    return make(model, prompts, folder, produce=produce, labels="checked", **more)


def test_shards_of_labels_are_made_again_like_all_others(tiny_model, prompts, recording, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    labelled_recording(tiny_model, prompts, recording, whole)
    shutil.copytree(whole, broken)
    (broken / "shard-00001.json").unlink()
    (broken / "shard-00000.states.arrow").write_bytes(b"ARROW")
    (broken / "manifest.json").unlink()
    figures = labelled_recording(tiny_model, prompts, recording, broken)
    assert figures["prompts_recorded_now"] == 2 * SHARD
    assert files(whole) == files(broken)
    read = Recording.load(whole)
    assert read.description["schema"] == 3
    assert json.loads((whole / "manifest.json").read_text())["schema"] == 3
    assert read.columns(0, ("label", "labelled", "length"), "train")["labelled"].dtype == torch.bool
    assert read.references["wordings"][0] == sorted(read.references["wordings"][0])


def test_recordings_with_the_labels_of_the_reference_are_those_of_earlier_versions(recording):
    """A folder of such a recording is read and continued, since its description and its columns have not changed."""
    assert read_recording(recording.folder)["schema"] == 2
    assert not {"labels", "label_states", "continued_by"} & recording.description.keys()
    assert "labelled" not in recording.states.column_names
    assert "label_forwards" not in recording.references.column_names


def test_a_label_that_is_not_known_moves_no_loss():
    masked = torch.tensor([[True, True, False, True]])
    labelled = torch.tensor([[True, False, True, False]])
    columns = {"masked": masked, "labelled": labelled, "length": torch.tensor([9])}
    question = Final.of({"labels": "checked"}, "masked")
    assert "labelled" in question.columns
    assert question.counted(columns).tolist() == question.judged(columns).tolist() == [[True, False, False, False]]
    assert Final.of({"labels": "checked"}, "all").counted(columns).equal(labelled)
    assert Final.of({"labels": "continuation"}, "masked").counted(columns).equal(masked)
    assert "labelled" not in Final.of({}, "masked").columns


@pytest.mark.parametrize(("judge", "sample"), [(None, ALL), (some, Sample(2, 3, 0)), (None, Sample(2, 0, 0))])
def test_the_stated_cost_is_a_bound(tiny_model, prompts, recording, judge, sample):
    taken = relabelled(tiny_model, prompts[:2], recording, judge, sample).references["label_forwards"]
    cost = LabelCost("", 1, "", sample.states, None if judge is None else sample.positions)
    assert 0 < int(taken.max()) <= cost.forwards(GEN)


def test_a_dry_run_says_what_labels_cost_and_who_continues(tiny_model):
    options = {"gen_length": GEN, "block_length": BLOCK, "batch_size": BATCH, "shard_prompts": SHARD}
    cost = LabelCost("checked", 2, "the filter", 8, 4, 2)
    text = estimate(tiny_model, ["Mia has 3 pears."] * 3, **options, labels=cost)
    assert f"labels:   checked: at most {2 * 3 * cost.forwards(GEN):,} more forwards" in text
    assert "in 2 recordings (8 states of a prompt, 4 positions of each), continued by the filter" in text
    assert "labels:" not in estimate(tiny_model, ["Mia has 3 pears."], **options)


@pytest.mark.parametrize("start", ["scratch", "full"])
@pytest.mark.parametrize("rounds", [0, 2])
@pytest.mark.parametrize("labels", ["reference", "own_answer", "continuation", "checked", "checked_together"])
def test_the_stated_cost_is_that_of_the_states_that_a_filter_is_trained_on(labels, rounds, start):
    given = [f"record.labels={labels}", f"train.rounds={rounds}", f"train.start={start}"]
    cost = label_cost(load_config("tiny_filter", given))
    if labels == "reference":
        assert cost is None
    else:
        trains_on_oracle = labels != "own_answer" and (start == "scratch" or rounds == 0)
        assert cost.recordings == rounds + trains_on_oracle
        assert ("filter" in cost.continued_by) is (labels not in ("reference", "continuation"))


def test_own_answers_take_the_place_of_references_where_they_are_right(tiny_model, prompts, recording):
    picked = prompts[:SHARD]
    references = recording.references_of([prompt.id for prompt in picked])
    options = {"batch_size": BATCH, "delimiter_ids": recording.description["delimiter_ids"]}
    tables = rollout_tables(
        tiny_model, picked, references, BOLD, judge=lambda some, texts: [True, False, True], **options
    )
    texts = [prompt.text for prompt in picked]
    own = decode(tiny_model, texts, BOLD, gen_length=GEN, batch_size=BATCH)
    tokens = torch.tensor(references["tokens"])
    tokens[[0, 2]] = own.tokens[[0, 2]]
    assert not tokens.equal(torch.tensor(references["tokens"]))
    assert tables.references["tokens"].tolist() == tokens.tolist()
    guided = Method(GuidedPolicy(BOLD.policy, tokens), BOLD.scheduler, stop=BOLD.stop)
    decoded = decode(tiny_model, texts, guided, gen_length=GEN, batch_size=BATCH)
    assert decoded.tokens.equal(tokens)  # a right answer is met again, a wrong one is corrected
    assert decoded.forwards[[0, 2]].equal(own.forwards[[0, 2]])
    assert tables.references["oracle_forwards"].equal(decoded.forwards)


@pytest.fixture(scope="module")
def shipped():
    return load_model("checkpoints/tiny-llada", device="cpu")


@pytest.mark.parametrize("together", [False, True])
def test_another_order_of_the_keys_is_wrong_by_the_reference_and_right_when_checked(shipped, tmp_path, together):
    task = build_task("json")
    facts = {"record": {"name": "Leo", "age": 22, "city": "Lima"}}
    question = "A person named Leo. He is 22. He is from Lima. Give the JSON record."
    prompts = [Prompt("one", question, "train", "json", facts)]
    options = {"gen_length": 48, "block_length": 32}
    produce = functools.partial(oracle_tables, batch_size=1, delimiter_ids=(), **options)
    make(shipped, prompts, tmp_path, produce=produce, **options)
    recording = Recording.load(tmp_path)
    method = Method(FixedPolicy(), BlocksScheduler(32), stop=EotStop(0.0))
    tables = labelled_tables(
        shipped,
        prompts,
        recording,
        [method],
        lambda some, texts: [task.check(facts, text).correct for text in texts],
        Sample(1, 0, 0),
        together=together,
        batch_size=32,
    )
    wordings = [json.loads(text) for text in tables.references["wordings"][0]]
    assert len({tuple(record) for record in wordings}) > 1
    assert all(record == facts["record"] for record in wordings)
    _, states = recording.states_of(["one"])
    wrong = ~states["label"][tables.states["step"].long()] & tables.states["labelled"]
    assert (wrong & tables.states["label"]).any()


def test_labels_without_a_checker_are_refused_in_one_line_before_anything_is_recorded(
    tiny_model_folder, tmp_path, capsys
):
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps({"question": f"How many is {number}?"}) + "\n" for number in range(6)))
    arguments = [
        "config=tiny_filter",
        f"model.path={tiny_model_folder}",
        "data.source=jsonl",
        f"data.path={path}",
        "data.train_prompts=3",
        "data.validation_prompts=1",
        "data.test_prompts=1",
        "train.start=scratch",
        f"output_dir={tmp_path / 'out'}",
        "record.labels=checked",
    ]
    assert cli.guarded(lambda: cli.run_command("record", arguments)) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert "record.labels=checked needs a checker, and 4 of 4 train and validation prompts have none" in errors[0]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("given", ["record.labels=correct", "record.label_states=-1", "record.label_positions=some"])
def test_what_no_label_is_refused_by_its_key(given):
    with pytest.raises(UserError, match=given.partition("=")[0]):
        load_config("tiny_filter", [given])


@pytest.mark.parametrize("labels", ["checked", "checked_together"])
def test_every_recorded_prompt_needs_a_checker(labels):
    config = load_config("tiny_filter", [f"record.labels={labels}", "train.rounds=1"])
    prompts = [Prompt("a", "x", "train", "json"), Prompt("b", "y", "validation"), Prompt("c", "z", "test")]
    with pytest.raises(UserError, match="1 of 2 train and validation prompts have none, such as b"):
        check_labels(config, prompts)
    check_labels(config, prompts[:1])
    check_labels(load_config("tiny_filter", ["record.labels=continuation"]), prompts)


def test_own_answers_of_prompts_without_a_checker_are_only_a_warning(caplog):
    prompts = [Prompt("a", "x", "train", "json"), Prompt("b", "y", "validation"), Prompt("c", "z", "test")]
    for judged, warned in ((prompts, True), (prompts[:1], False)):
        caplog.clear()
        check_labels(load_config("tiny_filter", ["record.labels=own_answer"]), judged)
        assert ("1 of 2" in caplog.text) == warned


def test_own_answers_need_a_round():
    with pytest.raises(UserError, match=r"train\.rounds=0"):
        check_labels(load_config("tiny_filter", ["record.labels=own_answer", "train.rounds=0"]), [])
