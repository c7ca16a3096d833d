"""Apple's network: its files, its draws, what it reads."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from learn2pd import UserError
from learn2pd.policies.apple import ApplePolicy, load_apple
from tests.contract.helpers import outcome, random_apple, run

CONFIG = {"policy_type": "dit_confidence", "hidden_dim": 16, "feedforward_dim": 24, "num_heads": 2, "time_embed_dim": 8}


def save(folder, prefix="", **changes):
    """The random network in the authors' format."""
    (folder / "config.json").write_text(json.dumps(CONFIG | changes))
    weights = {prefix + name: tensor.clone() for name, tensor in random_apple().state_dict().items()}
    weights[f"{prefix}transformer_blocks.0.inv_freq"] = torch.ones(4)
    save_file(weights, folder / "model.safetensors")
    return str(folder)


@pytest.mark.parametrize("prefix", ["", "base_policy."])
def test_a_saved_network_decodes_as_before(prefix, tmp_path, tiny_model, make_prompts):
    prompts = make_prompts([3, 17])
    loaded = load_apple(save(tmp_path, prefix), temperature=0.5)
    assert loaded.describe() == {"folder": str(tmp_path), "full_context": True, "temperature": 0.5, "sample": True}
    own = run(tiny_model, prompts, ApplePolicy(random_apple(), temperature=0.5))
    assert outcome(run(tiny_model, prompts, loaded), tiny_model) == outcome(own, tiny_model)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"policy_type": "dit_hidden"}, "policy_type='dit_hidden'"),
        ({"confidences_top_p": 50}, "confidences_top_p=50"),
        ({"hidden_dim": "wide"}, "hidden_dim='wide'"),
        ({"hidden_dim": 32}, "model.safetensors"),
    ],
)
def test_a_folder_of_another_kind_is_refused_in_one_line(changes, word, tmp_path):
    with pytest.raises(UserError) as error:
        load_apple(save(tmp_path, **changes))
    assert word in str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_without_a_network_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no config\.json"):
        load_apple(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(UserError, match=r"model\.safetensors"):
        load_apple(str(tmp_path))


def test_the_network_reads_confidences_masks_and_the_share_of_steps(tiny_model, make_prompts):
    seen = []

    class Noting(ApplePolicy):
        def logits(self, prediction, state, network):
            hook = network.register_forward_hook(lambda module, given, out: seen.append((state, prediction, given)))
            logits = super().logits(prediction, state, network)
            hook.remove()
            return logits

    run(tiny_model, make_prompts([3, 9]), Noting(random_apple(), sample=False), gen_length=16)
    assert seen
    for state, prediction, (masked, confidence, time, real) in seen:
        assert masked.equal(state.masked)
        assert confidence.equal(prediction.confidence)  # committed positions are scored too
        assert prediction.valid[state.open].all()
        assert time.equal(state.step / 16)
        assert real.all()


def test_drawn_positions_are_not_those_of_the_tokens_and_differ_from_seed_to_seed(tiny_model, make_prompts):
    prompts = make_prompts([9])
    policy = ApplePolicy(random_apple(), temperature=5.0)
    runs = [outcome(run(tiny_model, prompts, policy, seed=seed), tiny_model)["committed_at"] for seed in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]
