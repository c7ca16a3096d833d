"""An adapter of peft's beside a dLLM: what it computes is what peft computes, and another adapter is another model."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, PrefixTuningConfig, XLoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from learn2pd import DualCache, NoCache, PrefixCache, ThresholdPolicy, UserError, decode, load_model, load_verifier
from learn2pd.cli import main as cli
from tests.models.helpers import edit_json, refusal, write_checkpoint

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@dataclass(frozen=True)
class Family:
    """A checkpoint of a family, and the hub's names of its layers."""

    folder: Path
    targets: list[str]  # every linear layer
    layer: str  # where the hub keeps the layers
    attention: str  # and in a layer the projections


@pytest.fixture(scope="module", params=["tiny_model", "tiny_dream"])
def family(request) -> Family:
    folder = Path(request.getfixturevalue(request.param).adapter.network.name_or_path)
    if request.param == "tiny_model":
        return Family(
            folder,
            ["q_proj", "k_proj", "v_proj", "attn_out", "ff_proj", "up_proj", "ff_out"],
            "model.transformer.blocks",
            "",
        )
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"]
    return Family(folder, names, "model.layers", "self_attn.")


# What is refused before any layer is looked at is tried with one family.
one_family = pytest.mark.parametrize("family", ["tiny_model"], indirect=True)


def network_of(folder: Path):
    """The network in a folder."""
    return load_model(str(folder), device="cpu").adapter.network


def make_adapter(base: Path, folder: Path, config) -> Path:
    """As a user's training leaves it, with values drawn at random."""
    torch.manual_seed(1)
    get_peft_model(network_of(base), config).save_pretrained(folder, save_embedding_layers=False)
    return folder


@pytest.fixture(scope="module")
def made(family, tmp_path_factory) -> Path:
    return make_adapter(
        family.folder,
        tmp_path_factory.mktemp("made") / "lora",
        LoraConfig(r=4, lora_alpha=32, target_modules=family.targets, init_lora_weights=False),
    )


@pytest.fixture
def lora(made, tmp_path) -> Path:
    """An adapter that the test may change."""
    return Path(shutil.copytree(made, tmp_path / "lora"))


def edit_weights(folder: Path, change: Callable[[dict], object]) -> None:
    """Let a function change the tensors of an adapter, by name, and write them back."""
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def logits(network) -> torch.Tensor:
    """The logits of some fixed tokens."""
    with torch.inference_mode():
        return network(torch.arange(10, 50)[None]).logits


def apart(first: torch.Tensor, second: torch.Tensor) -> float:
    """The largest difference of two tensors, as a share of the largest value of the second."""
    return float((first - second).abs().max() / second.abs().max())


def settings(family: Family) -> dict:
    """Of peft, by a name for each: what its users do beside plain LoRA."""
    common = {"r": 4, "lora_alpha": 16, "target_modules": family.targets[:3], "init_lora_weights": False}
    head = "ff_out" if "blocks" in family.layer else "lm_head"
    return {
        "every layer": LoraConfig(**common | {"target_modules": family.targets}),
        "rank-stabilised": LoraConfig(**common, use_rslora=True),
        "dora": LoraConfig(**common, use_dora=True),
        "ranks by layer": LoraConfig(**common, rank_pattern={"q_proj": 2}),
        "some layers": LoraConfig(**common, layers_to_transform=[1], layers_pattern=family.layer.rpartition(".")[2]),
        "head saved whole": LoraConfig(
            **common, modules_to_save=[f"{'transformer.' if head == 'ff_out' else ''}{head}"]
        ),
        "all-linear": LoraConfig(**common | {"target_modules": "all-linear"}),
        "ia3": IA3Config(target_modules=family.targets[:3], feedforward_modules=[], init_ia3_weights=False),
    }


@pytest.mark.parametrize("name", list(settings(Family(Path(), [], "", ""))))
def test_merged_is_unmerged(family, tmp_path, name):
    folder = make_adapter(family.folder, tmp_path, settings(family)[name])
    plain = network_of(family.folder)
    unmerged = logits(PeftModel.from_pretrained(network_of(family.folder), folder).eval())
    merged = load_model(str(family.folder), device="cpu", adapter=str(folder)).adapter.network
    assert apart(logits(merged), unmerged) < 1e-5
    assert apart(logits(merged), logits(plain)) > 1e-2
    assert {key: value.shape for key, value in merged.state_dict().items()} == {
        key: value.shape for key, value in plain.state_dict().items()
    }
    assert not merged.training


def test_an_adapter_of_the_authors_classes_is_added_as_lora_says(family, tmp_path):
    """An adapter that is written out by hand is merged as W + alpha / r * B A, and no other weight changes.

    It has the hub's names and a task, which peft alone would not load.
    """
    plain, tensors, expected = network_of(family.folder).state_dict(), {}, {}
    for name in ("q_proj", "v_proj"):
        for layer in range(2):
            module = f"{family.layer}.{layer}.{family.attention}{name}"
            weight = plain[f"{module}.weight"]
            a, b = torch.randn(3, weight.shape[1]), torch.randn(weight.shape[0], 3)
            tensors |= {f"base_model.model.{module}.lora_A.weight": a, f"base_model.model.{module}.lora_B.weight": b}
            expected[f"{module}.weight"] = weight + 12 / 3 * b @ a
    save_file(tensors, tmp_path / WEIGHTS)
    described = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": 3,
        "lora_alpha": 12,
        "target_modules": ["v_proj", "q_proj"],
        "bias": "none",
    }
    (tmp_path / CONFIG).write_text(
        json.dumps(described | {"base_model_name_or_path": "GSAI-ML/LLaDA-8B-Instruct", "lora_dropout": 0.05})
    )
    merged = load_model(str(family.folder), device="cpu", adapter=str(tmp_path)).adapter.network.state_dict()
    assert merged.keys() == plain.keys()
    for name, value in merged.items():
        assert torch.allclose(value, expected.get(name, plain[name]), atol=1e-5), name


@pytest.mark.parametrize("cache", [NoCache(), PrefixCache(), DualCache()], ids=lambda cache: cache.name)
def test_the_adapter_changes_the_decode_and_costs_it_no_forwards(family, lora, make_prompts, cache):
    prompts = make_prompts([4, 11, 7])
    plain = load_model(str(family.folder), device="cpu")
    adapted = load_model(str(family.folder), device="cpu", adapter=str(lora))
    first, second = (
        decode(model, prompts, policy=ThresholdPolicy(0.6), cache=cache, gen_length=16) for model in (plain, adapted)
    )
    assert not second.failed.any()
    assert (first.tokens != second.tokens).any(1).all()
    assert (second.tokens != adapted.spec.mask_id).all()


def test_a_merged_model_saved_and_loaded_is_the_same(family, lora, tmp_path):
    model = load_model(str(family.folder), device="cpu", adapter=str(lora))
    model.adapter.network.save_pretrained(tmp_path / "merged")
    model.tokenizer.save_pretrained(tmp_path / "merged")
    assert logits(network_of(tmp_path / "merged")).equal(logits(model.adapter.network))


def test_half_precision_is_full_precision_within_its_rounding(family, lora):
    full, half = (
        load_model(str(family.folder), dtype=dtype, device="cpu", adapter=str(lora)).adapter.network
        for dtype in ("float32", "bfloat16")
    )
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    for name, value in full.state_dict().items():
        assert (half.state_dict()[name].float() - value).abs().mean() < 0.01 * value.abs().mean() + 1e-6, name


def test_base_and_adapter_are_both_in_the_name(family, lora):
    assert load_model(str(family.folder), device="cpu", adapter=str(lora)).spec.name == f"{family.folder.name}+lora"


def fingerprint(family: Family, folder: Path | None) -> str:
    """The fingerprint of a family's model with an adapter, or without one."""
    return load_model(
        str(family.folder), device="cpu", adapter=None if folder is None else str(folder)
    ).spec.fingerprint


def test_the_fingerprint_is_that_of_base_and_adapter_together(family, lora, tmp_path):
    """A single last value of one B reaches neither the first values of any weight nor, as rounded, all of its row."""
    again = shutil.copytree(lora, tmp_path / "again")
    edit_json(again / CONFIG, base_model_name_or_path="elsewhere/else", peft_version="0.0.1", inference_mode=False)
    assert fingerprint(family, again) == fingerprint(family, lora)
    name = sorted(name for name in load_file(lora / WEIGHTS) if "lora_B" in name)[-1]
    edit_weights(again, lambda tensors: tensors[name][-1, -1:].add_(1e-3))
    scaled = shutil.copytree(lora, tmp_path / "scaled")
    edit_json(scaled / CONFIG, lora_alpha=33)
    zeros = shutil.copytree(lora, tmp_path / "zeros")
    edit_weights(zeros, lambda tensors: [tensor.zero_() for key, tensor in tensors.items() if "lora_B" in key])
    assert len({fingerprint(family, folder) for folder in (None, lora, again, scaled, zeros)}) == 5


def test_another_base_gives_another_fingerprint(tiny_model_folder, tmp_path):
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    folder = make_adapter(tiny_model_folder, tmp_path / "lora", config)
    base = shutil.copytree(tiny_model_folder, tmp_path / "base")
    edit_json(base / "config.json", rope_theta=10_000.0)
    first, second = (
        load_model(str(path), device="cpu", adapter=str(folder)).spec for path in (tiny_model_folder, base)
    )
    assert first.fingerprint != second.fingerprint


def test_a_recording_is_made_and_labelled_with_the_adapter(tiny_model_folder, tmp_path, capsys):
    folder = make_adapter(
        tiny_model_folder, tmp_path / "lora", LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    )
    arguments = [
        "config=tiny_filter",
        "train.start=scratch",
        f"model.path={tiny_model_folder}",
        "model.device=cpu",
        "data.train_prompts=3",
        "data.validation_prompts=3",
        "data.test_prompts=3",
        "decode.gen_length=32",
        "record.shard_prompts=6",
        "threads=1",
        f"output_dir={tmp_path / 'out'}",
    ]
    assert cli.guarded(lambda: cli.run_command("record", [*arguments, f"model.adapter={folder}"])) == 0
    spec = load_model(str(tiny_model_folder), device="cpu", adapter=str(folder)).spec
    written = [path.read_text() for path in (tmp_path / "out").rglob("*.json")]
    assert any(spec.fingerprint in text and spec.name in text for text in written)
    capsys.readouterr()
    assert cli.guarded(lambda: cli.run_command("record", [*arguments, "resume=true"])) == 2  # without it: another model
    assert "lora" in capsys.readouterr().err


@one_family
def test_another_name_of_the_base_is_only_a_warning(family, lora, caplog):
    for stated, warned in (
        (str(family.folder), False),
        (f"somewhere/{family.folder.name}/", False),
        (None, False),
        ("hub/Other-8B", True),
    ):
        caplog.clear()
        edit_json(lora / CONFIG, base_model_name_or_path=stated)
        with caplog.at_level(logging.WARNING):
            load_model(str(family.folder), device="cpu", adapter=str(lora))
        lines = [record.getMessage() for record in caplog.records if record.name.startswith("learn2pd")]
        assert [("Other-8B" in line and family.folder.name in line) for line in lines] == [True] * warned, stated


def refused(family: Family, folder: Path | str) -> str:
    """The one line with which an adapter is refused."""
    line = refusal(family.folder, adapter=str(folder))
    assert line.startswith("adapter=")
    assert str(folder) in line
    return line


@one_family
def test_a_missing_folder_is_named(family, tmp_path):
    line = refused(family, tmp_path / "nowhere")
    assert "does not exist" in line
    assert CONFIG in line
    assert WEIGHTS in line


@one_family
def test_a_folder_that_is_no_adapter_is_named(family):
    assert f"holds no {CONFIG}" in refused(family, family.folder)


@one_family
@pytest.mark.parametrize(
    "text", ["{", "", "[]", "\x00", '"LORA"', "{}", '{"peft_type": "UNHEARD"}', '{"peft_type": 7}']
)
def test_unreadable_settings_are_refused(family, lora, text):
    (lora / CONFIG).write_text(text)
    assert CONFIG in refused(family, lora)


@one_family
@pytest.mark.parametrize(
    ("field", "value"), [("r", 0), ("r", "many"), ("lora_alpha", "x"), ("target_modules", 5), ("target_modules", None)]
)
def test_settings_that_make_no_adapter_are_refused(family, lora, field, value):
    edit_json(lora / CONFIG, **{field: value})
    refused(family, lora)


@one_family
def test_pickled_weights_are_not_loaded(family, lora, monkeypatch):
    torch.save(load_file(lora / WEIGHTS), lora / "adapter_model.bin")
    (lora / WEIGHTS).unlink()
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("torch.load was called"))
    line = refused(family, lora)
    assert WEIGHTS in line
    assert "pickle" in line


@one_family
def test_weights_cut_short_are_refused(family, lora):
    path = lora / WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])
    assert WEIGHTS in refused(family, lora)


@one_family
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(family, lora, value):
    edit_weights(lora, lambda tensors: next(iter(tensors.values()))[0, :1].fill_(value))
    assert "merged" in refused(family, lora)


def test_target_modules_that_do_not_exist_are_named(family, lora):
    edit_json(lora / CONFIG, target_modules=["c_attn"])
    line = refused(family, lora)
    assert "c_attn" in line
    assert str(family.folder) in line


@pytest.mark.parametrize("kind", ["missing", "unknown", "misshapen"])
def test_tensors_of_another_base_are_named(family, lora, kind):
    name = sorted(load_file(lora / WEIGHTS))[0]
    other = "base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight"
    change = {
        "missing": lambda tensors: tensors.pop(name),
        "unknown": lambda tensors: tensors.update({other: torch.zeros(4, 32)}),
        "misshapen": lambda tensors: tensors.update({name: torch.zeros(4, 48)}),
    }[kind]
    edit_weights(lora, change)
    line = refused(family, lora)
    assert f"1 {kind} tensors, first {other if kind == 'unknown' else name}" in line
    assert str(family.folder) in line


def test_an_adapter_of_the_other_family_is_refused(tiny_model, tiny_dream, tmp_path):
    """Both have a q_proj in every layer, of equal shape."""
    folders = [Path(model.adapter.network.name_or_path) for model in (tiny_model, tiny_dream)]
    for base, other in (folders, folders[::-1]):
        folder = make_adapter(
            base, tmp_path / base.name, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
        )
        assert "4 missing tensors" in refusal(other, adapter=str(folder))


def test_an_adapter_of_a_deeper_or_wider_base_is_refused(tokenizer, tiny_model_folder, tmp_path):
    for number, (changes, kind) in enumerate(
        [({"n_layers": 3}, "unknown"), ({"n_layers": 1}, "missing"), ({"d_model": 48}, "misshapen")]
    ):
        base = tmp_path / f"base{number}"
        base.mkdir()
        write_checkpoint(base, tokenizer, mask_token_id=1, **changes)
        folder = make_adapter(
            base, tmp_path / f"lora{number}", LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
        )
        assert kind in refusal(tiny_model_folder, adapter=str(folder))


@one_family
@pytest.mark.parametrize(
    "config",
    [
        PrefixTuningConfig(num_virtual_tokens=3, token_dim=32, num_layers=2, num_attention_heads=4),
        XLoraConfig(hidden_size=32, adapters={"first": "nowhere"}),
    ],
    ids=lambda config: config.peft_type.value,
)
def test_an_adapter_that_is_no_change_of_weights_is_refused(family, lora, config):
    config.save_pretrained(lora)
    assert config.peft_type.value in refused(family, lora)


def test_an_adapted_embedding_that_is_also_the_head_is_refused(tokenizer, tmp_path):
    base = tmp_path / "tied"
    base.mkdir()
    write_checkpoint(base, tokenizer)
    folder = make_adapter(base, tmp_path / "lora", LoraConfig(r=2, target_modules=["wte"], init_lora_weights=False))
    assert "head" in refusal(base, adapter=str(folder))
    layers = make_adapter(
        base, tmp_path / "layers", LoraConfig(r=2, target_modules=["q_proj", "ff_out"], init_lora_weights=False)
    )
    network = load_model(str(base), device="cpu", adapter=str(layers)).adapter.network
    assert network.get_output_embeddings() is network.get_input_embeddings()


@pytest.mark.parametrize("load", [load_model, load_verifier])
def test_a_model_with_an_adapter_beside_it_is_refused(lora, tiny_model_folder, tmp_path, load):
    """Where peft is installed, transformers would attach it, or take the weights of the base that it names."""
    both = shutil.copytree(tiny_model_folder, tmp_path / "both")
    shutil.copy(lora / CONFIG, both)
    with pytest.raises(UserError, match=r"^[^\n]*adapter_config.json[^\n]*$"):
        load(str(both), device="cpu")
