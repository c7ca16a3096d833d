"""Recording: labels mean what they say, interruptions change nothing, foreign or damaged shards are refused."""

import errno
import itertools
import shutil

import pytest
import torch

from learn2pd.decoding.api import decode
from learn2pd.decoding.stops import EotStop, NoStop
from learn2pd.errors import UserError
from learn2pd.policies.fixed import FixedPolicy
from learn2pd.policies.oracle import OraclePolicy
from learn2pd.prompts import task_prompts
from learn2pd.recording import recorder
from learn2pd.recording.reading import load_recording
from learn2pd.recording.recorder import manifest, open_recording, record, shard_path

GEN, BLOCK = 40, 16  # the last block is shorter
GEOMETRY = {"gen_length": GEN, "block_length": BLOCK, "shard_prompts": 3}


@pytest.fixture(scope="module")
def prompts():
    return task_prompts(["math", "json", "code"], {"train": 5, "validation": 3}, seed=0)


def make(model, prompts, folder, **changes):
    geometry = GEOMETRY | changes
    open_recording(folder, manifest(model, prompts, **geometry, seed=0, config={}))
    return record(model, prompts, folder, **geometry, batch_size=2)


@pytest.fixture(scope="module")
def recorded(tiny_model, prompts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("recorded")
    make(tiny_model, prompts, folder)
    return folder


def test_references_are_the_one_token_a_step_decode(tiny_model, prompts, recorded):
    _, references, _ = load_recording(recorded)
    alone = decode(tiny_model, [prompt.text for prompt in prompts], policy=FixedPolicy(), stop=EotStop(0.0), gen_length=GEN,
                   scheduler=recorder.BlocksScheduler(BLOCK), batch_size=1)  # fmt: skip
    assert references["prompt_id"] == [prompt.id for prompt in prompts]
    assert torch.equal(torch.tensor(references["tokens"]), alone.tokens)


def test_a_label_is_true_exactly_where_the_proposal_is_the_final_token(recorded):
    rows, references, _ = load_recording(recorded)
    final = dict(zip(references["prompt_id"], references["tokens"], strict=True))
    for row in rows:
        for place, position in enumerate(row["position"]):
            if row["valid"][place]:
                assert row["label"][place] == (row["proposal"][place] == final[row["prompt_id"]][position])
            else:
                assert not row["masked"][place]
                assert row["confidence"][place] == 0


def test_rows_follow_the_oracle(tiny_model, prompts, recorded):
    """What a row says was right is committed in the next row of the same block, and there are as many rows as forwards."""
    rows, references, _ = load_recording(recorded)
    texts = [prompt.text for prompt in prompts]
    oracle = decode(tiny_model, texts, policy=OraclePolicy(torch.tensor(references["tokens"])), stop=NoStop(), gen_length=GEN,
                    scheduler=recorder.BlocksScheduler(BLOCK), batch_size=1)  # fmt: skip
    assert references["oracle_forwards"] == oracle.forwards.tolist()
    by_prompt = {prompt.id: [row for row in rows if row["prompt_id"] == prompt.id] for prompt in prompts}
    for prompt, forwards in zip(prompts, oracle.forwards.tolist(), strict=True):
        mine = by_prompt[prompt.id]
        assert [row["step"] for row in mine] == list(range(forwards))
        for before, after in itertools.pairwise(mine):
            if before["block"] == after["block"]:
                assert after["masked"] == [masked and not label for masked, label in zip(before["masked"], before["label"], strict=True)]


def test_confidence_margin_and_entropy_are_probabilities_of_the_right_order(recorded):
    rows, _, _ = load_recording(recorded)
    for row in rows:
        for place, valid in enumerate(row["valid"]):
            if valid:
                assert 0 <= row["margin"][place] <= row["confidence"][place] + 1e-6 <= 1 + 2e-6
                assert row["entropy"][place] >= -1e-6


@pytest.mark.parametrize("stop_after", [0, 1, 2])
def test_interrupted_and_started_again_gives_the_same_recording(tiny_model, prompts, recorded, tmp_path, monkeypatch, stop_after):
    write, calls = recorder._write_shard, []

    def interrupt(*arguments):
        if len(calls) == stop_after:
            raise KeyboardInterrupt
        calls.append(1)
        write(*arguments)

    monkeypatch.setattr(recorder, "_write_shard", interrupt)
    with pytest.raises(KeyboardInterrupt):
        make(tiny_model, prompts, tmp_path)
    monkeypatch.setattr(recorder, "_write_shard", write)
    with pytest.raises(UserError, match="missing"):
        load_recording(tmp_path)
    figures = make(tiny_model, prompts, tmp_path)
    assert figures["prompts_recorded_now"] == len(prompts) - stop_after * GEOMETRY["shard_prompts"]
    for again, before in zip(load_recording(tmp_path)[:2], load_recording(recorded)[:2], strict=True):
        assert again.to_dict() == before.to_dict()


def test_a_full_disk_is_one_line_and_keeps_earlier_shards(tiny_model, prompts, tmp_path, monkeypatch):
    save, calls = recorder._save, []

    def full(*arguments):
        calls.append(1)
        if len(calls) > 3:  # the second shard's second data set
            raise OSError(errno.ENOSPC, "No space left on device")
        save(*arguments)

    monkeypatch.setattr(recorder, "_save", full)
    with pytest.raises(UserError, match="no space left"):
        make(tiny_model, prompts, tmp_path)
    assert shard_path(tmp_path, 0).is_dir()
    assert not shard_path(tmp_path, 1).exists()
    assert not list(tmp_path.glob("*.partial"))


def test_another_geometry_model_or_prompt_set_is_refused_and_named(tiny_model, tiny_model_grouped, prompts, recorded):
    for model, chosen, changes, named in (
        (tiny_model, prompts, {"gen_length": 48}, "gen_length 40 there, 48 now"),
        (tiny_model, prompts, {"block_length": 8}, "block_length 16 there, 8 now"),
        (tiny_model_grouped, prompts, {}, "model_fingerprint"),
        (tiny_model, prompts[1:], {}, "prompts 8 there, 7 now"),
    ):
        with pytest.raises(UserError, match=named):
            make(model, chosen, recorded, **changes)


def test_shards_of_another_schema_version_are_refused(recorded, tmp_path):
    folder = tmp_path / "old"
    shutil.copytree(recorded, folder)
    path = folder / "recording.json"
    path.write_text(path.read_text().replace('"schema": 1', '"schema": 0'))
    with pytest.raises(UserError, match="schema 0, this version reads 1"):
        load_recording(folder)


def test_a_damaged_shard_is_named(recorded, tmp_path):
    folder = tmp_path / "damaged"
    shutil.copytree(recorded, folder)
    arrow = next((shard_path(folder, 1) / "rows").glob("*.arrow"))
    arrow.write_bytes(arrow.read_bytes()[:100])
    with pytest.raises(UserError, match="shard-00001"):
        load_recording(folder)
