"""States that a policy leads into, its errors corrected, with the labels of a recording made before."""

import pytest
import torch

from learn2pd.decoding import decode
from learn2pd.method import Method
from learn2pd.policies.oracle import GuidedPolicy, OraclePolicy
from learn2pd.policies.threshold import ThresholdPolicy
from learn2pd.policies.wino import WinoPolicy
from learn2pd.recording.reading import Recording
from learn2pd.recording.recorder import free_tables, rollout_tables
from learn2pd.schedulers.blocks import BlocksScheduler
from learn2pd.stops.eot import EotStop
from learn2pd.stops.none import NoStop
from tests.recording.helpers import BATCH, BLOCK, GEN, files, make


def rollout(model, prompts, recording, policy, stop=None):
    """The tables of a rollout of a policy over some prompts of a recording."""
    references = recording.references_of([prompt.id for prompt in prompts])
    delimiters = recording.description["delimiter_ids"]
    return rollout_tables(
        model,
        prompts,
        references,
        Method(policy, BlocksScheduler(BLOCK), stop=stop or EotStop()),
        batch_size=BATCH,
        delimiter_ids=delimiters,
    )


def test_a_rollout_of_the_oracle_is_the_oracle_recording(tiny_model, prompts, recording, tmp_path):
    policy = {
        prompt.id: tokens for prompt, tokens in zip(prompts, torch.tensor(recording.references["tokens"]), strict=True)
    }

    def produce(model, some):
        return rollout(
            model, some, recording, OraclePolicy(torch.stack([policy[prompt.id] for prompt in some])), NoStop()
        )

    make(tiny_model, prompts, tmp_path, produce=produce)
    assert files(tmp_path) == files(recording.folder)


def test_a_rollout_has_the_states_the_policy_meets_and_the_recorded_labels(tiny_model, prompts, recording, tokens):
    three = prompts[2:5]
    tables = rollout(tiny_model, three, recording, ThresholdPolicy(0.3))
    guided = GuidedPolicy(ThresholdPolicy(0.3), torch.stack([tokens[prompt.id] for prompt in three]))
    decoded = decode(
        tiny_model,
        [prompt.text for prompt in three],
        policy=guided,
        gen_length=GEN,
        scheduler=BlocksScheduler(BLOCK),
        batch_size=BATCH,
    )
    states, references = tables.states, tables.references
    assert references["prompt_id"] == [prompt.id for prompt in three]
    assert references["oracle_forwards"].tolist() == decoded.forwards.tolist()
    assert references["forwards"].tolist() == recording.references["forwards"][2:5]
    assert references["tokens"].tolist() == recording.references["tokens"][2:5]
    assert states["prompt_id"] == [
        prompt.id for prompt, count in zip(three, decoded.forwards.tolist(), strict=True) for _ in range(count)
    ]
    right = torch.stack([tokens[name] for name in states["prompt_id"]])
    assert torch.equal(states["label"], (states["confidence"] > 0) & (states["proposal"] == right))


def free(model, prompts, recording, policy, right):
    """The tables of a free decode of some prompts of a recording; `right` holds the ids of the right answers."""
    return free_tables(
        model,
        prompts,
        recording.references_of([prompt.id for prompt in prompts]),
        Method(policy, BlocksScheduler(BLOCK)),
        lambda some, texts: [prompt.id in right for prompt in some],
        batch_size=BATCH,
        delimiter_ids=recording.description["delimiter_ids"],
    )


@pytest.mark.parametrize("right", [(), (0, 2), (0, 1, 2)])
def test_free_states_are_labelled_by_the_answer_that_is_right(tiny_model, prompts, recording, tokens, right):
    three = prompts[2:5]
    names = {three[number].id for number in right}
    policy = WinoPolicy(0.4, 0.5)
    tables = free(tiny_model, three, recording, policy, names)
    decoded = decode(
        tiny_model,
        [prompt.text for prompt in three],
        policy=policy,
        gen_length=GEN,
        scheduler=BlocksScheduler(BLOCK),
        batch_size=BATCH,
    )
    assert int(decoded.revoked.sum()) > 0
    own = {prompt.id: row for prompt, row in zip(three, decoded.tokens, strict=True)}
    accepted = {name: own[name] if name in names else tokens[name] for name in own}
    assert tables.references["tokens"].tolist() == [accepted[prompt.id].tolist() for prompt in three]
    assert tables.references["oracle_forwards"].tolist() == decoded.forwards.tolist()
    states = tables.states
    answer = torch.stack([accepted[name] for name in states["prompt_id"]])
    assert states["label"].equal((states["confidence"] > 0) & (states["proposal"] == answer))
    committed = states["age"] > 0
    assert states["holds"].equal(committed & (states["token"] == answer))
    assert not (committed & states["masked"]).any()
    inside = torch.arange(GEN) >= states["start"][:, None]
    standing = committed & inside & (torch.arange(GEN) < states["stop"][:, None])
    assert (states["leave_one_out"][standing] > 0).all()
    assert not states["leave_one_out"][states["masked"]].any()
    assert (states["committed_with"][committed] > 0).all()


def test_free_states_are_written_and_read_with_their_own_columns(tiny_model, prompts, recording, tmp_path):
    make(
        tiny_model,
        prompts,
        tmp_path,
        produce=lambda model, some: free(model, some, recording, WinoPolicy(0.4, 0.5), ()),
        committed=True,
    )
    read = Recording.load(tmp_path).columns(0, ("age", "holds", "token", "committed_with", "length"), "train")
    assert read["holds"].dtype == torch.bool
    assert len(read["age"]) > 0
