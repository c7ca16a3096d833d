"""Checkpoints that others made: some load all the same, and the others are refused.

A refusal is one line with the file's name and the real cause.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PretrainedConfig

from learn2pd.errors import UserError
from learn2pd.models.loading import load_model, load_tokenizer
from learn2pd.models.neighbours import cause, told_in_one_line
from tests.models.helpers import edit_json, edit_weights, refusal

POINTER = (
    "version https://git-lfs.github.com/spec/v1\n"
    "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\n"
    "size 12345\n"
)


@pytest.fixture
def folder(tiny_model_folder, tmp_path):
    return shutil.copytree(tiny_model_folder, tmp_path / "model")


@pytest.fixture(autouse=True)
def silent(capfd):
    """Nobody but this toolkit speaks."""
    yield
    spoken = capfd.readouterr()
    assert "LOAD REPORT" not in spoken.out + spoken.err
    assert "MISSING" not in spoken.out + spoken.err


def shard(folder: Path, parts: int = 2, **index) -> Path:
    """The weights in shards, with an index that holds what is given."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    weight_map = {}
    for part in range(parts):
        file = f"model-{part + 1:05}-of-{parts:05}.safetensors"
        inside = names[part::parts]
        save_file({name: tensors[name] for name in inside}, folder / file)
        weight_map |= dict.fromkeys(inside, file)
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": weight_map} | index))
    return path


def equal(first, second) -> bool:
    """Whether two models have the same weights, byte for byte."""
    ours, theirs = first.adapter.network.state_dict(), second.adapter.network.state_dict()
    return ours.keys() == theirs.keys() and all(ours[name].equal(theirs[name]) for name in ours)


# what loads


@pytest.mark.parametrize(
    "index", [{}, {"metadata": None}, {"metadata": {}}, {"metadata": {"total_size": 1}}, {"metadata": 3}]
)
@pytest.mark.parametrize("parts", [1, 3])
def test_an_index_loads_whatever_its_metadata_say(folder, tiny_model_folder, index, parts):
    plain = load_model(tiny_model_folder, device="cpu")
    shard(folder, parts, **index)
    model = load_model(folder, device="cpu")
    assert equal(model, plain)
    assert model.spec.fingerprint == plain.spec.fingerprint


def test_names_may_lack_the_prefix(folder, tiny_model_folder):
    tensors = load_file(folder / "model.safetensors")
    save_file({name.removeprefix("model."): tensor for name, tensor in tensors.items()}, folder / "model.safetensors")
    assert equal(load_model(folder, device="cpu"), load_model(tiny_model_folder, device="cpu"))


def test_what_old_versions_stored_and_nobody_reads_is_passed_over(folder, tiny_model_folder):
    edit_weights(
        folder, lambda tensors: tensors.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)})
    )
    assert equal(load_model(folder, device="cpu"), load_model(tiny_model_folder, device="cpu"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_every_plain_type_load(folder, dtype):
    edit_weights(folder, lambda tensors: tensors.update({name: tensor.to(dtype) for name, tensor in tensors.items()}))
    assert {tensor.dtype for tensor in load_model(folder, device="cpu").adapter.network.state_dict().values()} == {
        torch.float32
    }


def test_a_loaded_model_does_not_change_with_its_file(folder):
    network = load_model(folder, device="cpu").adapter.network
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with open(folder / "model.safetensors", "r+b") as file:
        file.write(b"\0" * (folder / "model.safetensors").stat().st_size)
    assert all(tensor.equal(before[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_type_is_given_by_name_or_as_it_is(folder, dtype):
    by_name, itself = (
        load_model(folder, dtype=dtype, device="cpu"),
        load_model(folder, dtype=getattr(torch, dtype), device=torch.device("cpu")),
    )
    assert equal(by_name, itself)
    assert by_name.spec == itself.spec
    assert by_name.adapter.network.dtype is getattr(torch, dtype)


def test_paths_are_texts_or_paths(folder, tmp_path, monkeypatch):
    expected = load_model(str(folder), device="cpu").spec
    assert load_model(folder, device="cpu").spec == expected
    monkeypatch.chdir(folder)
    assert load_model(Path("."), device="cpu").spec == expected
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_model("~/model", device="cpu").spec == expected
    assert load_model(Path("~/model"), device="cpu").spec == expected


def test_a_read_only_folder_of_links_loads(folder, tiny_model_folder, tmp_path):
    snapshot = tmp_path / "hub/models--org--tiny/snapshots/abc"
    snapshot.mkdir(parents=True)
    for path in folder.iterdir():
        (snapshot / path.name).symlink_to(path)
    snapshot.chmod(0o555)
    assert equal(load_model(snapshot, device="cpu"), load_model(tiny_model_folder, device="cpu"))
    snapshot.chmod(0o755)


def test_the_tokenizers_mask_is_taken_where_the_configuration_has_none(folder, tiny_model_folder):
    expected = load_model(tiny_model_folder, device="cpu").spec
    for absent in (..., None):
        edit_json(folder / "config.json", mask_token_id=absent, eos_token_id=absent, pad_token_id=absent)
        spec = load_model(folder, device="cpu").spec
        assert (spec.mask_id, spec.eot_ids, spec.pad_id) == (expected.mask_id, expected.eot_ids, expected.pad_id)


@pytest.mark.parametrize(("field", "token"), [("mask_token_id", "mask_token"), ("eos_token_id", "eos_token")])
@pytest.mark.parametrize("absent", [..., None])
def test_a_token_that_neither_file_names_is_told_as_absent(folder, field, token, absent):
    edit_json(folder / "config.json", **{field: absent})
    edit_json(folder / "tokenizer_config.json", **{token: ...})
    (folder / "special_tokens_map.json").unlink(missing_ok=True)
    line = refusal(folder)
    assert f"config.json names no {field}" in line
    assert f"the tokenizer has no {token}" in line
    assert "126" not in line


def test_decoded_text_keeps_its_spaces(folder):
    text = "x . y , z ! it 's do n't"
    for flag in (True, False, ...):
        edit_json(folder / "tokenizer_config.json", clean_up_tokenization_spaces=flag)
        tokenizer = load_model(folder, device="cpu").tokenizer
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert tokenizer.clean_up_tokenization_spaces is False


def test_the_templates_control_tokens_stay_control_tokens(folder, tiny_model_folder):
    expected = load_model(tiny_model_folder, device="cpu").encode("7 pears")
    edit_json(folder / "tokenizer_config.json", split_special_tokens=True)
    assert load_model(folder, device="cpu").encode("7 pears") == expected


# arguments


@pytest.mark.parametrize("value", [None, 7, True, 2.5, b"x", [], ["x"], {}, object()])
@pytest.mark.parametrize("argument", ["path", "adapter"])
def test_a_path_of_another_type_is_refused(folder, argument, value):
    if argument == "adapter" and value is None:
        return
    arguments = {"path": folder} | {argument: value}
    with pytest.raises(UserError, match=rf"^{argument}=[^\n]*{type(value).__name__}[^\n]*$"):
        load_model(**arguments, device="cpu")


@pytest.mark.parametrize(
    "value",
    [
        "",
        " ",
        "\t",
        "a\0b",
        "nowhere",
        "./nowhere",
        "/nowhere/at/all",
        "~/nowhere/at/all",
        "a/b/c",
        "checkpoints/nowhere",
    ],
)
@pytest.mark.parametrize("argument", ["path", "adapter"])
def test_a_path_that_is_nothing_is_refused(folder, argument, value):
    for given in (value, Path(value)) if value.strip() and "\0" not in value else (value,):
        with pytest.raises(UserError, match=rf"^{argument}=[^\n]*expected[^\n]*$"):
            load_model(**{"path": folder, argument: given}, device="cpu")


def test_a_file_is_no_folder(folder):
    assert "this is a file" in refusal(folder / "config.json")


@pytest.mark.parametrize(
    "dtype", ["float8", "Float32", "", None, 16, True, torch.int8, torch.float64, torch.bool, float, [torch.float32]]
)
def test_another_type_of_weights_is_refused(folder, dtype):
    line = refusal(folder, dtype=dtype)
    assert line.startswith(f"dtype={dtype!r}")
    assert "float32, bfloat16, float16" in line


@pytest.mark.parametrize("device", ["abacus", "", None, 7, 1.5, "cuda:99", "meta", torch.device("meta"), ["cpu"]])
def test_another_device_is_refused(folder, device):
    assert refusal(folder, device=device).startswith("device=")


@pytest.mark.parametrize("revision", ["", " ", 7, b"main"])
def test_another_revision_is_refused(folder, revision):
    assert refusal(folder, revision=revision).startswith("revision=")


# what a checkpoint is instead


@pytest.mark.parametrize(
    "changes",
    [
        {"architectures": ["AnotherMoEModelLM"]},
        {"num_experts": 8},
        {"n_routed_experts": 8},
        {"num_local_experts": 8},
        {"model_type": "qwen3_moe"},
    ],
)
def test_a_mixture_of_experts_is_named(folder, changes):
    edit_json(folder / "config.json", **changes)
    assert "mixture of experts" in refusal(folder)


@pytest.mark.parametrize(
    "changes",
    [{"num_experts": 0}, {"num_experts": None}, {"num_experts": 1}, {"architectures": None}, {"architectures": "x"}],
)
def test_no_experts_are_no_mixture(folder, changes):
    edit_json(folder / "config.json", **changes)
    load_model(folder, device="cpu")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"quantization": {"group_size": 64, "bits": 4}}, ["quantization", "MLX"]),
        ({"quantization_config": {"group_size": 64, "bits": 4}}, ["quantization_config", "MLX"]),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128}}, ["gptq"]),
        ({"quantization_config": {"quant_method": "awq"}}, ["awq"]),
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, ["bitsandbytes"]),
        ({"quantization_config": {"load_in_8bit": True}}, ["bitsandbytes"]),
        ({"quantization_config": {"quant_method": "fp8"}}, ["fp8"]),
        ({"compression_config": {"quant_method": "compressed-tensors"}}, ["compressed-tensors"]),
        ({"quantization_config": "x"}, ["quantization_config"]),
    ],
)
def test_quantised_configurations_are_named(folder, changes, words):
    edit_json(folder / "config.json", **changes)
    line = refusal(folder)
    assert "quantised" in line
    assert all(word in line for word in words)


PROJECTION = "model.transformer.blocks.0.q_proj"


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        (
            {
                "qweight": torch.zeros(4, 32, dtype=torch.int32),
                "scales": torch.zeros(1, 32),
                "g_idx": torch.zeros(32, dtype=torch.int32),
            },
            "GPTQ",
        ),
        ({"qweight": torch.zeros(4, 32, dtype=torch.int32), "qzeros": torch.zeros(1, 4, dtype=torch.int32)}, "AWQ"),
        (
            {
                "weight": torch.zeros(32, 4, dtype=torch.uint32),
                "scales": torch.zeros(32, 1),
                "biases": torch.zeros(32, 1),
            },
            "MLX",
        ),
        (
            {"weight": torch.zeros(512, 1, dtype=torch.uint8), "weight.absmax": torch.zeros(16, dtype=torch.uint8)},
            "bitsandbytes",
        ),
        (
            {
                "weight": torch.zeros(512, 1, dtype=torch.uint8),
                "weight.quant_state.bitsandbytes__nf4": torch.zeros(9, dtype=torch.uint8),
            },
            "bitsandbytes",
        ),
        ({"weight": torch.zeros(32, 32, dtype=torch.int8), "SCB": torch.zeros(32)}, "bitsandbytes"),
        ({"weight": torch.zeros(32, 32, dtype=torch.float8_e4m3fn), "weight_scale_inv": torch.zeros(1, 1)}, "FP8"),
    ],
)
def test_quantised_weights_are_named_without_a_word_in_the_configuration(folder, tensors, words):
    def change(stored):
        del stored[f"{PROJECTION}.weight"]
        stored.update({f"{PROJECTION}.{name}": tensor for name, tensor in tensors.items()})

    edit_weights(folder, change)
    line = refusal(folder)
    assert "quantised" in line
    assert words in line


@pytest.mark.parametrize(
    "dtype",
    [
        torch.int8,
        torch.uint8,
        torch.int16,
        torch.int32,
        torch.int64,
        torch.bool,
        torch.float8_e4m3fn,
        torch.float8_e5m2,
    ],
)
@pytest.mark.parametrize("which", ["all", "one"])
def test_weights_that_are_no_plain_numbers_are_refused(folder, dtype, which):
    edit_weights(
        folder,
        lambda tensors: tensors.update(
            {
                name: tensor.to(dtype)
                for name, tensor in tensors.items()
                if which == "all" or name.endswith("ln_f.weight")
            }
        ),
    )
    line = refusal(folder)
    assert "no scales" in line
    assert "ln_f.weight" in line or which == "all"


@pytest.mark.parametrize(
    ("name", "words"),
    [("a.gguf", "GGUF"), ("pytorch_model.bin", "pickle"), ("model.pth", "pickle"), ("other.safetensors", "names")],
)
def test_weights_in_other_files_are_named(folder, name, words):
    (folder / "model.safetensors").rename(folder / name)
    line = refusal(folder)
    assert "no weights" in line
    assert words in line


# damaged files


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize(("content", "words"), [("", "empty (0 bytes)"), (POINTER, "git lfs pull")])
def test_a_file_that_was_not_downloaded_is_named_with_what_to_do(folder, name, content, words):
    (folder / name).write_text(content)
    line = refusal(folder)
    assert name in line
    assert words in line


@pytest.mark.parametrize("kept", [1, 7, 8, 20, 1000, 10_000, -1, -100])
def test_weights_cut_short_are_told_as_such(folder, kept):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    line = refusal(folder)
    assert "model.safetensors" in line
    assert "download the file again" in line
    assert kept < 8 or "cut short" in line


HEADERS = [
    b"<!DOCTYPE html><html>not found</html>",
    b"\0" * 100,
    struct.pack("<Q", 2) + b"[]",
    struct.pack("<Q", 2) + b"{}",
    struct.pack("<Q", 4) + b'{"a"',
    struct.pack("<Q", 8) + b'{"a": 1}',
    struct.pack("<Q", 3) + b"\xff\xff\xff",
    struct.pack("<Q", 1 << 60) + b"{}",
    struct.pack("<Q", 62) + b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}} ' + b"\0" * 4,
    struct.pack("<Q", 62) + b'{"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}} ' + b"\0" * 4,
]


@pytest.mark.parametrize("content", HEADERS, ids=range(len(HEADERS)))
def test_what_is_no_safetensors_file_is_refused(folder, content):
    (folder / "model.safetensors").write_bytes(content)
    assert "path=" in refusal(folder)


@pytest.mark.parametrize(
    "index",
    [
        "",
        "{",
        "[]",
        "{}",
        POINTER,
        '{"weight_map": {}}',
        '{"weight_map": []}',
        '{"weight_map": {"a": 1}}',
        '{"weight_map": null}',
    ],
)
def test_a_damaged_index_is_named(folder, index):
    shard(folder).write_text(index)
    assert "model.safetensors.index.json" in refusal(folder)


@pytest.mark.parametrize("file", ["../model.safetensors", "/etc/passwd", "model.bin", "x/model.safetensors", ""])
def test_an_index_names_files_beside_it_alone(folder, file):
    path = shard(folder)
    fields = json.loads(path.read_text())
    fields["weight_map"][next(iter(fields["weight_map"]))] = file
    path.write_text(json.dumps(fields))
    assert repr(file) in refusal(folder)


@pytest.mark.parametrize("what", ["missing", "empty", "pointer", "cut"])
def test_a_damaged_shard_is_named(folder, what):
    shard(folder, 3)
    path = folder / "model-00002-of-00003.safetensors"
    content = path.read_bytes()
    path.unlink()
    if what != "missing":
        path.write_bytes({"empty": b"", "pointer": POINTER.encode(), "cut": content[:-50]}[what])
    assert path.name in refusal(folder)


def test_a_tensor_that_the_index_puts_into_another_file_is_named(folder):
    path = shard(folder)
    fields = json.loads(path.read_text())
    name = next(iter(fields["weight_map"]))
    fields["weight_map"][name] = "model-00002-of-00002.safetensors"
    path.write_text(json.dumps(fields))
    line = refusal(folder)
    assert name in line
    assert "model-00002-of-00002.safetensors" in line


def test_a_tensor_stored_with_and_without_the_prefix_is_refused(folder):
    edit_weights(
        folder,
        lambda tensors: tensors.update({"transformer.ln_f.weight": tensors["model.transformer.ln_f.weight"] + 1}),
    )
    assert "twice" in refusal(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", [b"\xff\xfe{\0}\0", b"\x80", b"[" * 100_000, b'{"a": }', b"null", b"7"])
def test_a_damaged_description_is_named(folder, name, content):
    (folder / name).write_bytes(content)
    line = refusal(folder)
    assert name in line
    assert "RecursionError" not in line


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_folder_in_place_of_a_file_is_refused(folder, name):
    (folder / name).unlink()
    (folder / name).mkdir()
    assert name in refusal(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_link_to_nothing_is_refused(folder, name):
    (folder / name).unlink()
    (folder / name).symlink_to(folder / "gone")
    assert name in refusal(folder)


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read everything")
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_file_that_may_not_be_read_is_named(folder, name):
    (folder / name).chmod(0)
    line = refusal(folder)
    assert "Permission denied" in line
    assert name in line


def test_a_tokenizer_alone_speaks_of_the_argument_it_belongs_to(folder):
    (folder / "tokenizer.json").write_text("")
    with pytest.raises(UserError, match=r"^verifier=[^\n]*tokenizer.json[^\n]*$"):
        load_tokenizer(folder, PretrainedConfig(), key="verifier")


# the table


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (KeyError("metadata"), "'metadata' is missing"),
        (KeyError(), "key is missing"),
        (ValueError(), "ValueError"),
        (ValueError("x"), "ValueError: x"),
        (ValueError("first\nsecond"), "ValueError: first"),
        (RuntimeError("a long\tline\n\nmore"), "a long line"),
        (FileNotFoundError(2, "No such file or directory", "a.json"), "No such file or directory: a.json"),
        (OSError("all\nof it"), "OSError: all"),
        (PermissionError(13, "Permission denied"), "Permission denied"),
        (MemoryError(), "memory"),
        (torch.OutOfMemoryError("CUDA"), "memory"),
        (RecursionError("maximum"), "nested"),
        (RuntimeError("x " * 1000), "x x"),
    ],
)
def test_whatever_a_neighbour_raises_becomes_one_line(error, words):
    assert words in cause(error)
    with pytest.raises(UserError) as raised, told_in_one_line("subject", "do this"):
        raise error
    line = str(raised.value)
    assert line.startswith("subject (")
    assert line.endswith("; do this")
    assert "\n" not in line
    assert len(line) < 400


def test_a_line_for_the_user_passes_as_it_is():
    with pytest.raises(UserError, match=r"^mine$"), told_in_one_line("subject"):
        raise UserError("mine")
    with pytest.raises(KeyboardInterrupt), told_in_one_line("subject"):
        raise KeyboardInterrupt
