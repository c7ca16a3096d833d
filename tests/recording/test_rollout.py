"""States that a policy leads into, its errors corrected, with the labels of a recording made before."""

import torch

from learn2pd.decoding import decode
from learn2pd.method import Method
from learn2pd.policies.oracle import GuidedPolicy, OraclePolicy
from learn2pd.policies.threshold import ThresholdPolicy
from learn2pd.recording.recorder import rollout_tables
from learn2pd.schedulers.blocks import BlocksScheduler
from learn2pd.stops.eot import EotStop
from learn2pd.stops.none import NoStop
from tests.recording.helpers import BATCH, BLOCK, GEN, files, make


def rollout(model, prompts, recording, policy, stop=None):
    """The tables of a rollout of a policy over some prompts of a recording."""
    references = recording.references_of([prompt.id for prompt in prompts])
    delimiters = recording.manifest["delimiter_ids"]
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
