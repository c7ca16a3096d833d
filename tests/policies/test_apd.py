"""Adaptive parallel decoding against the same rule with one row, no caches and plain loops; and what it refuses."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from learn2pd import AnywhereStop, APDPolicy, LookaheadCache, LookaheadScheduler, UserError, decode
from learn2pd.policies.apd import load_apd
from learn2pd.policies.verifier import Verifier, load_verifier
from tests.contract.helpers import GEN, MODELS, outcome, run, tiny_verifier


@pytest.fixture(params=MODELS)
def model(request):
    return request.getfixturevalue(request.param)


def reference(model, verifier, prompt, weight, lookahead):
    """Canvas and number of forwards, at temperature 0."""
    spec, network = model.spec, model.adapter.network
    canvas, done, forwards = [spec.mask_id] * GEN, 0, 0
    with torch.inference_mode():
        while done < GEN:
            right = min(done + lookahead, GEN)
            logits = network(torch.tensor([prompt + canvas])).logits[0].clone()
            logits[:, spec.mask_id] = -torch.inf
            forwards += 1
            places = range(len(prompt) + done, len(prompt) + right)
            mine = [logits[place - spec.shifted_logits] for place in places]
            draft = [int(row.argmax()) for row in mine]
            read = verifier.network(torch.tensor([prompt + canvas[:done] + draft])).logits[0]
            for number, place in enumerate(places):
                target = int((weight * mine[number] + (1 - weight) * read[place - 1]).argmax())
                if number > 0 and target != draft[number]:
                    break
                canvas[done] = draft[number]
                done += 1
    return canvas, forwards


@pytest.mark.parametrize(
    ("weight", "lookahead"),
    [
        pytest.param(weight, lookahead, marks=pytest.mark.thorough if (one + other) % 2 else [])
        for one, weight in enumerate([0.3, 0.7, 1.0])
        for other, lookahead in enumerate([1, 6, GEN])
    ],
)
def test_a_batch_equals_the_rule_written_down(weight, lookahead, model, make_prompts):
    prompts, verifier = make_prompts([3, 17, 9]), tiny_verifier()
    state = run(model, prompts, APDPolicy(verifier, weight), scheduler=LookaheadScheduler(lookahead))
    for row, prompt in enumerate(prompts):
        canvas, forwards = reference(model, verifier, prompt, weight, lookahead)
        assert state.canvas[row].tolist() == canvas
        assert int(state.forwards[row]) == int(state.auxiliary_forwards[row]) == forwards


def test_trusting_the_dllm_alone_accepts_every_draft(model, make_prompts):
    state = run(model, make_prompts([4, 8]), APDPolicy(tiny_verifier(), 1.0), scheduler=LookaheadScheduler(5))
    assert state.forwards.tolist() == [GEN // 5] * 2


def test_draft_and_target_are_drawn_with_the_same_noise(model, make_prompts):
    """With the dLLM's own distribution as the target they agree at every temperature."""
    state = run(
        model, make_prompts([4, 8]), APDPolicy(tiny_verifier(), 1.0), scheduler=LookaheadScheduler(5), temperature=1.0
    )
    assert state.forwards.tolist() == [GEN // 5] * 2


def test_a_row_that_has_ended_leaves_the_verifier_and_the_others_go_on(model, make_prompts):
    prompts = make_prompts([2, 30, 11, 5, 19, 7])
    parts = {"scheduler": LookaheadScheduler(6), "cache": LookaheadCache(4), "stop": AnywhereStop()}
    policy = APDPolicy(tiny_verifier(), 0.7)
    together = outcome(run(model, prompts, policy, **parts), model)
    for number, prompt in enumerate(prompts):
        alone = outcome(run(model, [prompt], policy, index=[number], **parts), model)
        assert {key: [rows[number]] for key, rows in together.items()} == alone


def other_tokenizer(tokenizer, changed):
    """The same tokenizer but for two tokens that have changed places."""
    text = tokenizer.backend_tokenizer.to_str()
    first, second = changed
    swapped = (
        text.replace(f'"{first}":', '"\0":').replace(f'"{second}":', f'"{first}":').replace('"\0":', f'"{second}":')
    )
    return PreTrainedTokenizerFast(tokenizer_object=type(tokenizer.backend_tokenizer).from_str(swapped))


def test_a_verifier_with_another_tokenizer_is_refused(tiny_model, tokenizer):
    network = LlamaForCausalLM(
        LlamaConfig(vocab_size=400, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    )
    Verifier(network, tokenizer).check(tiny_model.spec)
    with pytest.raises(UserError, match=r"another vocabulary.*same tokenizer"):
        decode(
            tiny_model,
            [[5]],
            policy=APDPolicy(Verifier(network, other_tokenizer(tokenizer, ("a", "b")))),
            scheduler=LookaheadScheduler(),
        )


def test_a_verifier_with_a_larger_vocabulary_is_refused(tiny_model):
    with pytest.raises(UserError, match="has 500 tokens"):
        decode(tiny_model, [[5]], policy=APDPolicy(tiny_verifier(500)), scheduler=LookaheadScheduler())


def test_a_verifier_on_another_device_is_refused(tiny_model, tokenizer):
    network = LlamaForCausalLM(
        LlamaConfig(vocab_size=400, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    )
    policy = APDPolicy(Verifier(network.to("meta"), tokenizer))
    with pytest.raises(UserError, match=r"on meta.*on cpu"):
        decode(tiny_model, [[5]], policy=policy, scheduler=LookaheadScheduler())


def test_a_verifier_is_read_from_a_folder(tokenizer, tiny_model, tmp_path):
    tiny_verifier().network.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    verifier = load_verifier(str(tmp_path), device="cpu")
    verifier.check(tiny_model.spec)
    tokens = torch.tensor([[5, 6, 7]])
    assert torch.allclose(verifier.network(tokens).logits, tiny_verifier().network(tokens).logits)


def test_a_verifier_that_is_not_there_is_refused_before_the_hub_is_asked(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        load_verifier(str(tmp_path / "nowhere"))


@pytest.mark.parametrize("weight", [0, -0.5, 1.1])
def test_a_mixture_weight_out_of_range_is_refused(weight):
    with pytest.raises(ValueError, match="mixture_weight"):
        APDPolicy(tiny_verifier(), weight)


def test_a_verifier_that_is_named_twice_is_loaded_once_and_again_when_its_files_change(tmp_path, tokenizer):
    tiny_verifier().network.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    first, again = load_apd(str(tmp_path), 0.3), load_apd(str(tmp_path), 0.7)
    assert first.verifier is again.verifier
    assert (first.mixture_weight, again.mixture_weight) == (0.3, 0.7)
    (tmp_path / "config.json").write_text((tmp_path / "config.json").read_text() + "\n")
    assert load_apd(str(tmp_path)).verifier is not first.verifier
