"""Which traces are collected from which roots, and which of them are skipped."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from tests.parity.ship import RUNS
from tests.parity.traces import SHIPPED, RootError, all_roots, collect, read_trace, unsupported_family, weights

TRACE = "traces/llada_tiny/dsb_const_nocache.json"
BYTES_ALLOWED = 2_000_000
COVERED = (  # a part of a name of a trace for every policy, scheduler, cache, stop rule and model
    *("steps_half", "thr0.7", "factor", "localleap", "l2p_thr", "l2p_oracle", "apd", "leftright"),
    *("adablock_nocache", "dsb_const_nocache", "dsb_greedy_nocache"),
    *("prefix", "dual", "dsb_const_cache", "dsb_greedy_cache", "W16"),
    *("eot_only", "l2p_eot"),
    *("wino", "klass", "eb_", "credit", "hierarchy", "dawn", "dparallel", "slowfast", "prophet", "apple_policy"),
    *("llada_tiny/", "llada_tiny_gqa/", "dream_tiny/"),
)


def write_root(folder, **changes):
    """A root with one trace and no model; `changes` replace fields of the trace's only run."""
    stored = read_trace(SHIPPED / f"{TRACE}.gz")
    stored["runs"] = [stored["runs"][0] | changes]
    path = folder / TRACE
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(stored))
    return folder


def test_without_the_variable_the_shipped_traces_are_run_and_all_of_them_are_supported():
    for value in (None, ""):
        traces = collect(all_roots(value))
        assert sorted(trace.identity for trace in traces) == sorted(f"traces/{name}.json" for name in RUNS)
        assert [trace.unsupported() for trace in traces] == [None] * len(traces)


def test_the_shipped_traces_are_small_and_have_one_of_every_component():
    size = sum(path.stat().st_size for path in SHIPPED.rglob("*") if path.is_file())
    assert size <= BYTES_ALLOWED
    names = " ".join(RUNS)
    assert [part for part in COVERED if part not in names] == []


def test_a_root_that_holds_only_traces_finds_its_model_in_another_root(tmp_path):
    root = write_root(tmp_path / "only_traces", nfe=1)
    (trace, *_) = collect(all_roots(str(root)))
    assert trace.root == root
    assert trace.model == SHIPPED / "llada_tiny"
    assert weights(trace.model)


def test_a_model_in_the_traces_own_root_comes_first(tmp_path):
    root = write_root(tmp_path / "own", nfe=1)
    shutil.copytree(SHIPPED / "llada_tiny", root / "llada_tiny")
    (trace, *_) = collect(all_roots(str(root)))
    assert trace.model == root / "llada_tiny"


def test_every_run_is_collected_once_however_many_roots_hold_it(tmp_path):
    copy = write_root(tmp_path / "copy")
    other = write_root(tmp_path / "other", nfe=1)
    again = write_root(tmp_path / "again", nfe=1)
    roots = all_roots(os.pathsep.join(map(str, [copy, other, again, copy])))
    traces = [trace for trace in collect(roots) if trace.method == "dsb_const_nocache"]
    assert [trace.root for trace in traces] == [copy, other, SHIPPED]
    assert [trace.identity for trace in traces] == [TRACE, f"{TRACE}@other", f"{TRACE}@golden"]
    whole = all_roots(str(SHIPPED))
    assert len(collect(whole)) == len(RUNS)


@pytest.mark.parametrize("words", [["not a folder"], ["no traces", "traces/*/*.json"]])
def test_a_root_that_is_missing_or_empty_is_an_error_that_names_it(words, tmp_path):
    root = tmp_path / "root"
    if words[0] == "no traces":
        root.mkdir()
    with pytest.raises(RootError) as error:
        all_roots(os.pathsep.join([str(SHIPPED), str(root)]))
    assert all(word in str(error.value) for word in [str(root), "LEARN2PD_GOLDEN", *words])


def test_a_trace_whose_model_is_nowhere_is_an_error_that_names_the_model(tmp_path):
    root = write_root(tmp_path / "root", nfe=1)
    (root / "traces" / "llada_tiny").rename(root / "traces" / "nowhere_tiny")
    (trace, *_) = collect(all_roots(str(root)))
    with pytest.raises(RootError, match="nowhere_tiny"):
        trace.unsupported()


UNKNOWN = [({"fn": "lopa"}, "lopa"), ({"threshold": 0.5}, "saber"), ({"fn": "generate", "top_x": 1}, "top_x")]


@pytest.mark.parametrize(("params", "word"), UNKNOWN)
def test_a_trace_of_a_method_that_the_package_lacks_is_skipped_by_name(params, word, tmp_path):
    root = write_root(tmp_path / "root", nfe=1)
    stored = json.loads((root / TRACE).read_text()) | {"params": params}
    (root / TRACE).unlink()
    (root / "traces" / "llada_tiny" / "saber_0.5.json").write_text(json.dumps(stored))
    (trace, *_) = collect(all_roots(str(root)))
    assert "saber_0.5" in trace.unsupported()
    assert word in trace.unsupported()


@pytest.mark.parametrize(("model_type", "architecture"), [("sdar", "SDARForCausalLM"), ("llada", "LLaDAMoEModelLM")])
def test_a_model_of_a_family_that_the_package_lacks_is_skipped_by_name(model_type, architecture, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type, "architectures": [architecture]}))
    reason = unsupported_family(tmp_path)
    if reason is not None:  # the package may learn the family
        assert architecture in reason
        assert model_type in reason
