"""benchmarks/peers.py on a checkout that is none, and on a made-up one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from benchmarks import peers
from learn2pd import NoCache, ThresholdPolicy


@pytest.mark.parametrize("made", ["", "no/such/folder", "empty", "file", "other"])
def test_a_folder_that_is_no_checkout_is_refused_in_one_line(made, tmp_path, capsys):
    path = Path(made) if made in ("", "no/such/folder") else tmp_path / made
    if made == "file":
        path.write_text("llada/generate.py")
    elif made in ("empty", "other"):
        path.mkdir()
    if made == "other":
        (path / "llada").mkdir()
        (path / "llada" / "generate.py").write_text("def generate(model): ...")
    assert peers.main([f"peer={'' if not made else path}"]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "is no checkout of a known peer" in message
    assert all(peer.name in message for peer in peers.PEERS)


@pytest.mark.parametrize("peer", peers.PEERS, ids=lambda peer: peer.name)
def test_a_checkout_is_known_by_its_files(peer, tmp_path):
    path = tmp_path / peer.file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{peer.mark}model):\n    ...\ndef generate_with_dual_cache(model):\n    ...\n")
    assert peers.peer_of(str(tmp_path)) == (peer, tmp_path.resolve())


def test_answers_that_differ_end_the_comparison(tiny_model, make_prompts):
    ours = {"policy": ThresholdPolicy(0.9), "cache": NoCache()}
    prompts = make_prompts([5, 5])

    def same(prompt):
        answer = peers.decode(tiny_model, prompt.tolist(), stop=peers.NoStop(), gen_length=8, **ours).tokens
        return torch.cat((prompt, answer), dim=1)

    for batches in ([[prompts[0]], [prompts[1]]], [prompts]):
        measured = peers.measure(peers.Setting(ours, same), tiny_model, batches, 8)
        assert len(measured.seconds) == len(batches)
        assert all(seconds > 0 for pair in measured.seconds for seconds in pair)
        assert all(mib > 0 for mib in measured.mib)
        assert peers.row_of(measured).count("equal") == 1
    with pytest.raises(peers.Unequal, match="8 of 8 tokens differ"):
        peers.measure(peers.Setting(ours, lambda prompt: same(prompt) + 1), tiny_model, [[prompts[0]]], 8)


def test_the_network_under_sdars_loop_forwards_block_by_block_what_it_forwards_at_once(tiny_family):
    model = tiny_family("sdar")
    block = model.spec.causal_block
    tokens = torch.arange(10, 10 + 3 * block)[None]
    network = peers.StoringNetwork(model)
    with torch.inference_mode():
        expected = model.adapter.network(tokens).logits
        for _ in range(2):  # a second prompt finds nothing of the first
            network.eval()
            for start in range(0, 3 * block, block):
                part = torch.arange(start, start + block)[None]
                seen = torch.ones(1, block, start + block)
                assert network(tokens[:, part[0]] * 0 + 5, seen, part, store_kv=True).logits is None
                logits = network(tokens[:, part[0]], seen, part, store_kv=False).logits
                assert torch.allclose(logits, expected[:, part[0]])


def test_a_model_that_a_peer_cannot_decode_is_named(tmp_path, capsys):
    (tmp_path / "generate.py").write_text("def block_diffusion_generate(model): ...")
    assert peers.main([f"peer={tmp_path}", "model=checkpoints/tiny-llada"]) == 2
    assert "SDAR needs a block-causal model" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", ["settings=x", "gen_length=20"])
def test_an_option_that_cannot_be_used_is_named(wrong, tmp_path, monkeypatch, capsys):
    (tmp_path / "llada").mkdir()
    (tmp_path / "llada" / "generate.py").write_text("def generate_dsb(model): ...")
    monkeypatch.setattr(peers, "PEERS", (peers.Peer("DSB", "llada/generate.py", "def generate_dsb(", lambda *_: {}),))
    assert peers.main([f"peer={tmp_path}", "model=checkpoints/tiny-llada", wrong]) == 2
    assert wrong in capsys.readouterr().err


def test_a_library_that_the_peer_lacks_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "llada").mkdir()
    (tmp_path / "llada" / "generate.py").write_text("def generate_dsb(model): ...")
    assert peers.main([f"peer={tmp_path}", "model=checkpoints/tiny-llada"]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "No module named" in message
