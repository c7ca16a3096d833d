from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from learn2pd.training.checkpoint_io import SafetensorsCheckpointIO

IO = SafetensorsCheckpointIO()
KEYS = st.integers() | st.text("abc_", max_size=3)
TREES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)


def same(one, other):
    """Whether two values of a checkpoint are equal, in type too."""
    if isinstance(one, torch.Tensor):
        return (
            isinstance(other, torch.Tensor)
            and one.dtype == other.dtype
            and one.shape == other.shape
            and one.equal(other)
        )
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


@given(tree=TREES)
def test_any_tree_of_plain_values_comes_back_with_its_types(tree, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "plain.ckpt"
    IO.save_checkpoint({"tree": tree}, path)
    assert same(IO.load_checkpoint(path), {"tree": tree})


def test_nested_tensors_come_back(tmp_path):
    shared = torch.arange(6.0)
    tree = {
        "state": {
            0: {"step": torch.tensor(3), "m": shared[:3]},
            1: {"m": shared[:3], "half": torch.ones(2, dtype=torch.bfloat16)},
        },
        "betas": (0.9, 0.98),
        "none": None,
        "turned": torch.arange(6).view(2, 3).T,
        "nothing": torch.zeros(0),
        "mask": [torch.tensor([True, False])],
        "empty": {},
    }
    IO.save_checkpoint(tree, tmp_path / "deep" / "last.ckpt")
    assert same(IO.load_checkpoint(tmp_path / "deep" / "last.ckpt"), tree)


def test_a_tree_may_use_the_names_that_tag_it(tmp_path):
    tree = {"__tensor__": "t0", "__tuple__": [1], "inner": {"__items__": []}}
    IO.save_checkpoint(tree, tmp_path / "c")
    assert same(IO.load_checkpoint(tmp_path / "c"), tree)


def test_the_file_is_safetensors_and_holds_no_pickle(tmp_path):
    IO.save_checkpoint({"w": torch.ones(2), "t": (1,)}, tmp_path / "c")
    content = (tmp_path / "c").read_bytes()
    header = content[8 : 8 + struct.unpack("<Q", content[:8])[0]]
    assert set(json.loads(header)) == {"__metadata__", "t0"}
    assert not content.startswith((b"PK", b"\x80"))


@pytest.mark.parametrize(
    "damage",
    [lambda c: c[:-3], lambda c: c[:4], lambda c: b"", lambda c: b"PK" + c[2:], lambda c: c[:40] + b"#" * 20 + c[60:]],
)
def test_a_damaged_file_is_named(damage, tmp_path):
    path = tmp_path / "last.ckpt"
    IO.save_checkpoint({"w": torch.ones(20)}, path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"last\.ckpt is damaged"):
        IO.load_checkpoint(path)


def test_a_pickle_is_refused_unread(tmp_path):
    torch.save({"w": torch.ones(2)}, tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match="damaged or not one of ours"):
        IO.load_checkpoint(tmp_path / "last.ckpt")


def test_safetensors_of_another_origin_are_refused(tmp_path):
    save_file({"w": torch.ones(2)}, tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match="damaged or not one of ours"):
        IO.load_checkpoint(tmp_path / "last.ckpt")


def test_what_cannot_be_saved_is_refused_and_leaves_the_previous_checkpoint_whole(tmp_path):
    path = tmp_path / "last.ckpt"
    IO.save_checkpoint({"w": torch.ones(2)}, path)
    with pytest.raises(TypeError, match="cannot hold a object"):
        IO.save_checkpoint({"w": torch.zeros(2), "bad": object()}, path)
    assert IO.load_checkpoint(path)["w"].tolist() == [1, 1]
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.ckpt"]


def test_paths_become_text_and_removing_twice_is_no_error(tmp_path):
    IO.save_checkpoint({"dir": Path("a/b")}, tmp_path / "c")
    assert IO.load_checkpoint(tmp_path / "c") == {"dir": "a/b"}
    IO.remove_checkpoint(tmp_path / "c")
    IO.remove_checkpoint(tmp_path / "c")
    assert not (tmp_path / "c").exists()
