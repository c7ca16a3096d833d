"""Files that are written whole or not at all, and that everybody may read who may read the others."""

from __future__ import annotations

import os
import stat

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from learn2pd.files import read_json, whole_file, write_json


def mode_of(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_a_file_has_the_mode_of_any_other_new_file(tmp_path, umask):
    before = os.umask(umask)
    try:
        (tmp_path / "plain").write_text("x")
        write_json(tmp_path / "a.json", {"a": 1})
        with whole_file(tmp_path / "a.safetensors") as partial:
            save_file({"a": np.ones(3)}, partial)
    finally:
        os.umask(before)
    assert read_json(tmp_path / "a.json") == {"a": 1}
    assert load_file(tmp_path / "a.safetensors")["a"].tolist() == [1, 1, 1]
    assert {mode_of(path) for path in tmp_path.iterdir()} == {0o666 & ~umask}


@pytest.mark.parametrize("exists", [False, True])
@pytest.mark.parametrize("value", [{"a": object()}, {(1, 2): 3}], ids=["no JSON", "no key"])
def test_a_failure_leaves_the_old_file_and_nothing_beside_it(tmp_path, exists, value):
    path = tmp_path / "a.json"
    if exists:
        write_json(path, {"old": 1})
    with pytest.raises((TypeError, ValueError)):
        write_json(path, value)
    with pytest.raises(TypeError), whole_file(path) as partial:
        partial.write_bytes("a text")
    assert read_json(path) == ({"old": 1} if exists else None)
    assert [entry.name for entry in tmp_path.iterdir()] == (["a.json"] if exists else [])
