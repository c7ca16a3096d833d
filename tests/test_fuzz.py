"""Random lines and random policy files: no traceback, and whatever is taken is what stands there.

`LEARN2PD_FUZZ` is the number of examples of each test; a few thousand take minutes.
"""

from __future__ import annotations

import copy
import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from learn2pd import FilterPolicy, Method, Predictor, UserError, decode, load_policy
from learn2pd.data.prompts import record_prompts
from learn2pd.data.reading import read_records
from learn2pd.predictors.networks import Conv
from learn2pd.predictors.saving import Contract, Setting
from learn2pd.registry import build_task

EXAMPLES = int(os.environ.get("LEARN2PD_FUZZ", "60"))
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**30), 10**30),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["\ud83d", "0.5", "filter", "prompt", "", " ", "<|endoftext|>", "\u2028"]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner)),
    max_leaves=6,
)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {}, optional={"role": st.sampled_from(["user", "system", "assistant", 1]), "content": VALUES}
    ),
    max_size=3,
)
NAMES = st.sampled_from(["question", "answer", "x"])
OBJECTS = st.dictionaries(NAMES, st.one_of(VALUES, MESSAGES, st.just("How many?"), st.just("#### 7")), max_size=3)


@st.composite
def line(draw) -> bytes:
    """One line: an object most of the time, sometimes damaged, another value, or any bytes."""
    kind = draw(st.sampled_from(["object"] * 4 + ["damaged", "value", "bytes", "twice", "deep"]))
    if kind == "bytes":
        return draw(st.binary(max_size=12))
    if kind == "twice":
        return b'{"question": "a", "question": "b"}'
    if kind == "deep":
        return b'{"question": ' + b"[" * draw(st.sampled_from([3, 5000, 100_000]))
    written = json.dumps(draw(OBJECTS if kind != "value" else VALUES), ensure_ascii=draw(st.booleans()))
    text = written.encode("utf-8", "surrogatepass")
    if kind == "damaged" and text:
        place = draw(st.integers(0, len(text) - 1))
        return text[:place] + draw(st.sampled_from([b"", b"\xff", b'"', b"}", b"\x00"])) + text[place + 1 :]
    return text


def attempt(action: Callable[[], Any]) -> tuple[Any, str]:
    """What an action returns, or the one line with which it refuses."""
    try:
        return action(), ""
    except UserError as error:
        line = str(error)
    assert line
    assert "\n" not in line
    return None, line


def expected(pieces: list[bytes]) -> dict[int, Any]:
    """The objects of the lines by their numbers, as plain JSON says; lines that repeat a key are left out."""
    objects = {}
    for number, piece in enumerate(pieces, 1):
        try:
            value = json.loads(piece.decode("utf-8").removeprefix("\ufeff"), object_pairs_hook=list)
            if isinstance(value, list) and piece.strip().removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"{":
                named = dict(value)
                if len(named) == len(value):
                    objects[number] = piece
        except (ValueError, RecursionError):
            continue
    return objects


@settings(max_examples=EXAMPLES)
@example([b'{"\\n": null}'], b"\n", False, False)  # the name of a field breaks the line
@given(st.lists(line(), min_size=1, max_size=6), st.sampled_from([b"\n", b"\r\n", b"\r"]), st.booleans(), st.booleans())
def test_lines_are_read_as_they_stand_or_named(tmp_path_factory, lines, end, mark, packed):
    raw = (b"\xef\xbb\xbf" if mark else b"") + end.join(lines) + end
    path = tmp_path_factory.getbasetemp() / "fuzz.jsonl"
    path.write_bytes(gzip.compress(raw) if packed else raw)
    records, refusal = attempt(lambda: read_records(path))
    if refusal or records.unit != "line" or raw[:4] == b"PAR1":
        return
    pieces = raw.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    wanted = expected(pieces)
    assert [row.place for row in records.rows] == [f"line {number}" for number in wanted]
    for row, piece in zip(records.rows, wanted.values(), strict=True):
        plain = json.loads(piece.decode("utf-8").removeprefix("\ufeff"))
        assert repr(row.fields) == repr(plain)  # by their repr, since nan is not equal to itself
    full = sum(bool(piece.strip().removeprefix(b"\xef\xbb\xbf").strip()) for piece in pieces)
    assert len(records.rows) + len(records.complaints) >= min(full, 1)
    checker = build_task("final_number")
    prompts, _ = attempt(lambda: record_prompts(records, "question", "answer", "final_number", checker))
    asked = [row.fields.get("question") for row in records.rows]
    turns = [each[0] for each in asked if isinstance(each, list) and len(each) == 1]  # one turn is like its text
    asked += [turn.get("content") for turn in turns if isinstance(turn, dict)]
    for prompt in prompts or ():
        assert prompt.content in asked or isinstance(prompt.content, list)


@pytest.fixture(scope="module")
def saved(tiny_model, tmp_path_factory) -> tuple[Path, dict[str, Any], bytes]:
    """A folder to damage, and the whole files of a policy."""
    folder = tmp_path_factory.mktemp("policy")
    curve = (Setting(0.9, 1.5, 0.99, None, 0.02), Setting(0.5, 2.5, 0.9, 0.1, 0.15))
    contract = Contract.of(tiny_model.spec, delimiter_ids=(7, 9))
    network = Conv(hidden=4, layers=1, kernel=3)
    FilterPolicy(Predictor("filter", network, 0.6, contract, curve, {"auroc": 0.5})).save_pretrained(folder)
    described = json.loads((folder / "policy.json").read_text(encoding="utf-8"))
    return folder, described, (folder / "model.safetensors").read_bytes()


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values inside a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, entry in inner for place in [(*path, key), *places(entry, (*path, key))]]


@st.composite
def damage(draw, described: dict[str, Any]) -> bytes:
    """policy.json with some values replaced, removed or added, or with damaged bytes."""
    damaged = copy.deepcopy(described)
    for _ in range(draw(st.integers(1, 2))):
        path = draw(st.sampled_from(places(damaged)))
        owner = damaged
        for key in path[:-1]:
            owner = owner[key]
        action = draw(st.sampled_from(["replace", "replace", "near", "remove", "add"]))
        if action == "remove":
            del owner[path[-1]]
        elif action == "add" and isinstance(owner, dict):
            owner[draw(st.text(max_size=4))] = draw(VALUES)
        elif action == "near" and type(owner[path[-1]]) in (int, float):
            owner[path[-1]] = draw(st.sampled_from([0, 1, -1, 2, 0.5, 10**9, 10**30, True, "1", float("nan")]))
        else:
            owner[path[-1]] = draw(VALUES)
        if not places(damaged):
            break
    raw = json.dumps(damaged).encode("utf-8", "surrogatepass")
    if draw(st.integers(0, 9)) == 0:
        place = draw(st.integers(0, len(raw)))
        return raw[:place] + draw(st.binary(max_size=3)) + raw[place + draw(st.integers(0, 3)) :]
    return raw


@settings(max_examples=EXAMPLES)
@given(st.data())
def test_policy_files_are_refused_or_used_as_they_stand(saved, tiny_model, data):
    folder, described, weights = saved
    raw = data.draw(damage(described))
    (folder / "policy.json").write_bytes(raw)
    cut = data.draw(st.sampled_from([None] * 6 + [0, 7, 40, len(weights) - 4]))
    (folder / "model.safetensors").write_bytes(weights if cut is None else weights[:cut])
    policy, refusal = attempt(lambda: load_policy(folder))
    if refusal:
        assert str(folder) in refusal
        return
    stands = json.loads(raw)
    assert (cut, stands["kind"], stands["threshold"]) == (None, "filter", policy.threshold)
    assert [setting["threshold"] for setting in stands["curve"]] == [each.threshold for each in policy.predictor.curve]
    for name, value in stands["contract"].items():
        kept = getattr(policy.predictor.contract, name)
        assert (list(kept) if isinstance(kept, tuple) else kept) == value
    policy.save_pretrained(folder)
    assert load_policy(folder).predictor.fingerprint == policy.predictor.fingerprint
    _, refusal = attempt(lambda: Method(policy).check(tiny_model.spec))
    if not refusal:
        assert not decode(tiny_model, [[20, 21, 22]], policy=policy, gen_length=6).failed.any()
