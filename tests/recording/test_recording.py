"""What is recorded: labels mean what they say, and the states are those of the decode.

A table of columns gives them back.
"""

import itertools

import pytest
import torch

from learn2pd.decoding import decode
from learn2pd.models.delimiters import newline_ids
from learn2pd.policies.fixed import FixedPolicy
from learn2pd.policies.oracle import OraclePolicy
from learn2pd.policies.threshold import ThresholdPolicy
from learn2pd.recording.recorder import StateRecorder, oracle_tables
from learn2pd.schedulers.blocks import BlocksScheduler
from learn2pd.stops.eot import EotStop
from learn2pd.stops.none import NoStop
from learn2pd.types import Window
from tests.recording.helpers import BATCH, BLOCK, GEN
from tests.reference.network import full_proposals

CANVAS = ("masked", "proposal", "confidence", "margin", "entropy", "unchanged", "end_of_text", "delimiter", "label")


def inside(rows):
    """[N, G] bool: the window of each state."""
    return Window(rows["start"], rows["stop"]).mask(GEN)


@pytest.fixture(scope="module")
def by_prompt(recording):
    """Prompt id -> its states in order, every column a tensor."""
    rows = recording.states.with_format("torch")[:]
    names = recording.states["prompt_id"]
    columns = ("step", "start", "stop", *CANVAS)
    return {
        name: {
            column: rows[column][[place for place, other in enumerate(names) if other == name]] for column in columns
        }
        for name in recording.references["prompt_id"]
    }


def test_references_are_the_one_token_a_step_decode(tiny_model, prompts, recording):
    some = prompts[:3]
    alone = decode(
        tiny_model,
        [prompt.text for prompt in some],
        policy=FixedPolicy(),
        stop=EotStop(0.0),
        gen_length=GEN,
        scheduler=BlocksScheduler(BLOCK),
        batch_size=1,
    )
    references = recording.references[: len(some)]
    assert references["prompt_id"] == [prompt.id for prompt in some]
    assert torch.equal(torch.tensor(references["tokens"]), alone.tokens)
    assert references["forwards"] == alone.forwards.tolist()
    assert references["length"] == alone.lengths.tolist()


def obvious_reference(network, prompt, spec):
    """One row is decoded with one token a step, the whole canvas to its end.

    From a committed end-of-text on, whatever follows it is end-of-text.
    """
    canvas, masked = [spec.mask_id] * GEN, [True] * GEN
    for start in range(0, GEN, BLOCK):
        block = range(start, min(start + BLOCK, GEN))
        while any(masked[position] for position in block):
            proposals = full_proposals(network, prompt + canvas, spec.mask_id)[len(prompt) :]
            best = max(
                (position for position in block if masked[position]), key=lambda position: proposals[position][1]
            )
            canvas[best], masked[best] = proposals[best][0], False
            if canvas[best] in spec.eot_ids:
                canvas[best + 1 :], masked[best + 1 :] = (
                    [spec.eot_ids[0]] * (GEN - best - 1),
                    [False] * (GEN - best - 1),
                )
    return canvas


def test_stopping_early_in_batches_changes_no_label(tiny_model, prompts, recording):
    network = tiny_model.adapter.network
    for prompt, recorded in zip(prompts, recording.references["tokens"], strict=True):
        assert recorded == obvious_reference(network, tiny_model.encode(prompt.text), tiny_model.spec)
    assert min(recording.references["length"]) < GEN  # some answers do end early


@pytest.mark.parametrize("block_length", [1, BLOCK])
def test_up_to_the_block_of_its_end_of_text_an_answer_is_that_of_the_whole_canvas(tiny_model, prompts, block_length):
    """What is behind an end-of-text becomes end-of-text, which only masks of the same block can see."""
    options = {
        "policy": FixedPolicy(),
        "gen_length": GEN,
        "scheduler": BlocksScheduler(block_length),
        "batch_size": BATCH,
    }
    early, whole = (
        decode(tiny_model, [prompt.text for prompt in prompts], stop=stop, **options)
        for stop in (EotStop(0.0), NoStop())
    )
    for length, ended, tokens in zip(early.lengths.tolist(), early.tokens.tolist(), whole.tokens.tolist(), strict=True):
        end = (length + 1) // block_length * block_length
        assert ended[:end] == tokens[:end]
        assert set(ended[length:]) <= set(tiny_model.spec.eot_ids)
    assert int(early.lengths.min()) < GEN


def test_a_label_is_true_exactly_where_the_proposal_is_the_final_token(by_prompt, tokens):
    for name, rows in by_prompt.items():
        scored = rows["confidence"] > 0
        assert torch.equal(rows["label"].bool(), scored & (rows["proposal"] == tokens[name]))


def test_proposals_are_there_for_every_mask_and_for_the_whole_window(by_prompt):
    for rows in by_prompt.values():
        window = inside(rows)
        assert torch.equal(rows["confidence"] > 0, rows["masked"].bool() | window)
        outside = ~(rows["masked"].bool() | window)
        for column in ("proposal", "confidence", "margin", "entropy", "unchanged", "label"):
            assert not rows[column][outside].any()


def test_states_follow_the_oracle(tiny_model, prompts, recording, by_prompt):
    """What is right in the window is committed in the next state, and there are as many states as forwards."""
    reference = torch.tensor(recording.references["tokens"])
    oracle = decode(
        tiny_model,
        [prompt.text for prompt in prompts],
        policy=OraclePolicy(reference),
        stop=NoStop(),
        gen_length=GEN,
        scheduler=BlocksScheduler(BLOCK),
        batch_size=1,
    )
    assert recording.references["oracle_forwards"] == oracle.forwards.tolist()
    for prompt, forwards in zip(prompts, oracle.forwards.tolist(), strict=True):
        rows = by_prompt[prompt.id]
        assert rows["step"].tolist() == list(range(forwards))
        window = inside(rows)
        right = window & rows["label"].bool()
        for before, after in itertools.pairwise(range(forwards)):
            taken = right[before] & rows["masked"][before].bool()
            taken = taken if taken.any() else window[before]  # the stall rule
            assert torch.equal(rows["masked"][after].bool(), rows["masked"][before].bool() & ~taken)


def test_unchanged_compares_with_the_window_of_the_step_before(by_prompt):
    seen = 0
    for rows in by_prompt.values():
        scored, unchanged = rows["confidence"] > 0, rows["unchanged"].bool()
        assert not unchanged[0].any()
        position = torch.arange(scored.shape[1])
        inside = (position >= rows["start"][:, None]) & (position < rows["stop"][:, None])
        same = scored[1:] & (scored & inside)[:-1] & (rows["proposal"][1:] == rows["proposal"][:-1])
        assert torch.equal(unchanged[1:], same)
        seen += int(same.sum())
    assert seen


def test_end_of_text_and_delimiter_mark_the_proposals(tiny_model, by_prompt, recording):
    marked = {"end_of_text": tiny_model.spec.eot_ids, "delimiter": newline_ids(tiny_model.tokenizer)}
    assert recording.description["delimiter_ids"] == list(marked["delimiter"])
    assert recording.description["eot_ids"] == list(marked["end_of_text"])
    for rows in by_prompt.values():
        masked = rows["masked"].bool()
        for column, ids in marked.items():
            assert torch.equal(rows[column][masked].bool(), torch.isin(rows["proposal"], torch.tensor(ids))[masked])


def test_confidence_margin_and_entropy_are_probabilities_of_the_right_order(by_prompt):
    for rows in by_prompt.values():
        assert (rows["margin"] >= 0).all()
        assert (rows["margin"] <= rows["confidence"] + 1e-6).all()
        assert (rows["confidence"] <= 1 + 1e-6).all()
        assert (rows["entropy"] >= -1e-6).all()


def test_batches_do_not_matter(tiny_model, prompts):
    """One recorder sees batches one after another; each begins anew."""
    options = {"gen_length": GEN, "block_length": BLOCK, "delimiter_ids": newline_ids(tiny_model.tokenizer)}
    some = prompts[:3]
    one, all_of_them = (oracle_tables(tiny_model, some, batch_size=size, **options) for size in (1, len(some)))
    for name in CANVAS:
        left, right = one.states[name], all_of_them.states[name]
        assert torch.equal(left, right) if not left.is_floating_point() else torch.allclose(left, right, atol=1e-5)


def test_watching_does_not_change_the_decode(tiny_model, prompts):
    texts, options = (
        [prompt.text for prompt in prompts],
        {"policy": ThresholdPolicy(0.5), "gen_length": GEN, "scheduler": BlocksScheduler(BLOCK)},
    )
    watched = decode(
        tiny_model,
        texts,
        **options,
        observer=StateRecorder(torch.zeros(len(texts), GEN).long(), tiny_model.spec.eot_ids, ()),
    )
    alone = decode(tiny_model, texts, **options)
    assert torch.equal(watched.tokens, alone.tokens)
    assert torch.equal(watched.forwards, alone.forwards)
