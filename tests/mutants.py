"""Wrong versions of rules and caches, each of which the tests must notice without any stored trace.

    python tests/mutants.py [--list] [--check] [--only WORD ...] [--last COUNT] [--everything] [--skip-unchanged]

A mutant is one change of one file. The script copies package and tests to a temporary folder. For each mutant it makes
the change there, runs the tests that the mutant names, and takes the change back. A mutant is *killed* when a test
fails and has *survived* when none does. With `--everything`, all of the default tests of decoding, policies and
contract are run where the named ones pass. Before all mutants the named tests are run on the unchanged copy, since a
failure says nothing of a mutant where the tests fail anyway; `--skip-unchanged` leaves that out.

Every run of pytest is a fork of the script's process, which has loaded torch, transformers and pytest, and nothing of
the package. So a mutant costs little more than its tests.

`--check` runs no test. It says of every mutant whether its text is still in its file exactly once and whether the
changed file is still Python; `tests/test_mutants.py` asks the same in the suite.

`tests/parity` is never run, neither the shipped traces nor those that LEARN2PD_GOLDEN names. The authors' traces are
the second net, and this script tests the first.

The exit code is 0 when every mutant is killed. It is 1 when one survives, when the text that a mutant replaces is not
in its file exactly once, when pytest cannot collect the changed copy, or when the unchanged copy fails. The script is
not collected by pytest.
"""

from __future__ import annotations

import argparse
import ast
import compileall
import importlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[1]
FILES = {  # the name of a file in the mutants below -> where it is; the only place to change when modules move
    "accepting": "learn2pd/predictors/accepting.py",
    "adablock": "learn2pd/schedulers/adablock.py",
    "adapter": "learn2pd/models/adapter.py",
    "anywhere": "learn2pd/stops/anywhere.py",
    "apd": "learn2pd/policies/apd.py",
    "apple": "learn2pd/policies/apple.py",
    "block_cache": "learn2pd/caches/fast_dllm.py",
    "blocks": "learn2pd/schedulers/blocks.py",
    "causal_cache": "learn2pd/caches/causal_block.py",
    "checked_block": "learn2pd/policies/checked_block.py",
    "commits": "learn2pd/loop/commits.py",
    "credit": "learn2pd/policies/credit.py",
    "dawn": "learn2pd/policies/dawn.py",
    "dparallel": "learn2pd/policies/dparallel.py",
    "dsb": "learn2pd/schedulers/dsb.py",
    "dsb_cache": "learn2pd/caches/dsb.py",
    "edit": "learn2pd/policies/edit.py",
    "entropy_bound": "learn2pd/policies/entropy_bound.py",
    "eot": "learn2pd/stops/eot.py",
    "eotp": "learn2pd/stops/eotp.py",
    "factor": "learn2pd/policies/factor.py",
    "filter": "learn2pd/predictors/filter.py",
    "fixed": "learn2pd/policies/fixed.py",
    "keep": "learn2pd/predictors/keep.py",
    "hierarchical": "learn2pd/policies/hierarchical.py",
    "klass": "learn2pd/policies/klass.py",
    "localleap": "learn2pd/policies/localleap.py",
    "lookahead": "learn2pd/schedulers/lookahead.py",
    "lookahead_cache": "learn2pd/caches/lookahead.py",
    "mean_field": "learn2pd/policies/mean_field.py",
    "oracle": "learn2pd/policies/oracle.py",
    "plans": "learn2pd/loop/plans.py",
    "prophet": "learn2pd/policies/prophet.py",
    "proposals": "learn2pd/loop/proposals.py",
    "remask": "learn2pd/policies/remask.py",
    "slowfast": "learn2pd/policies/slowfast.py",
    "step": "learn2pd/loop/step.py",
    "tensors": "learn2pd/tensors.py",
    "threshold": "learn2pd/policies/threshold.py",
    "types": "learn2pd/types.py",
    "wino": "learn2pd/policies/wino.py",
}
WINDOWS = "tests/loop/test_schedulers.py"
REFERENCES = "tests/loop/test_references.py"
CACHE_COLUMNS = "tests/loop/test_caches.py"
PROPOSALS = "tests/loop/test_proposals.py"
STOPS = "tests/loop/test_stops.py"
LATER_RULES = "tests/loop/test_later_rules.py"
RULES = "tests/policies/test_rules.py"
APD = "tests/policies/test_apd.py"
APPLE = "tests/policies/test_apple.py"
LOOP = "tests/contract/test_loop.py"
PRODUCT = "tests/contract/test_product.py"
REVISION = "tests/contract/test_revision.py"
FIXED_TOKENS = "tests/contract/test_fixed_tokens.py"
CAUSAL_BLOCKS = "tests/contract/test_causal_blocks.py"
ROW_MEMORY = "tests/contract/test_row_memory.py"
EVERYTHING = ("tests/loop", "tests/policies", "tests/contract")
COPIED = ("learn2pd", "tests", "pyproject.toml")
LINKED = ("configs", "data", "checkpoints", "docs", "README.md", "train.py", "benchmarks")
LOADED = ("torch", "transformers.models.llama", "tokenizers", "hypothesis", "pytest")  # before the first fork
OPTIONS = ("-x", "-q", "--tb=line", "-p", "no:cacheprovider", "--ignore=tests/parity", "--hypothesis-profile=plain")
FAILED = 1  # pytest's exit code when a test failed


@dataclass(frozen=True)
class Mutant:
    """One wrong version.

    Attributes:
        name: What is wrong.
        file: A key of FILES.
        old: The text that is replaced; the file has it exactly once.
        new: The text that replaces it.
        tests: The test files that are run.
        only: What the ids of the tests that are run have, as for pytest's -k; nothing is all of them.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    only: str = ""


MUTANTS = (
    Mutant(
        "blocks end one position late",
        "blocks",
        "torch.minimum(start + self.block_length, state.end)",
        "torch.minimum(start + self.block_length + 1, state.end)",
        (WINDOWS,),
    ),
    Mutant(
        "adablock takes the least confident delimiter",
        "adablock",
        "confidence, place = prediction.confidence.masked_fill(~delimiter, -1.0).max(1)\n"
        "        return place + 1, confidence >= self.delimiter_threshold",
        "confidence, place = prediction.confidence.masked_fill(~delimiter, 2.0).min(1)\n"
        "        return place + 1, (confidence >= self.delimiter_threshold) & (confidence <= 1)",
        (WINDOWS,),
    ),
    Mutant("adablock searches 60% of the canvas", "adablock", "SEARCH_SHARE = 0.25", "SEARCH_SHARE = 0.6", (WINDOWS,)),
    Mutant(
        "adablock ends one position behind the delimiter",
        "adablock",
        "return place + 1, confidence >= self.delimiter_threshold",
        "return place + 2, confidence >= self.delimiter_threshold",
        (WINDOWS,),
    ),
    Mutant(
        "adablock wants more than the delimiter threshold",
        "adablock",
        "return place + 1, confidence >= self.delimiter_threshold",
        "return place + 1, confidence > self.delimiter_threshold",
        (WINDOWS,),
    ),
    Mutant(
        "adablock decides again in every step",
        "adablock",
        "opens = (state.masked | state.given | ~window.mask(state.gen_length)).all(1)",
        "opens = state.open",
        (REFERENCES,),
        "adablock-none",
    ),
    Mutant(
        "dsb opens twice the block length",
        "dsb",
        "stop = (before < self.block_length).sum(1)",
        "stop = (before < 2 * self.block_length).sum(1)",
        (WINDOWS,),
    ),
    Mutant("dsb greedy is const", "dsb", 'if self.mode == "const":', "if self.mode:", (WINDOWS,)),
    Mutant("dsb const is greedy", "dsb", 'if self.mode == "const":', 'if self.mode == "":', (WINDOWS,)),
    Mutant(
        "lookahead sees one position more",
        "lookahead",
        "torch.minimum(start + self.max_lookahead, state.end)",
        "torch.minimum(start + self.max_lookahead + 1, state.end)",
        (WINDOWS,),
    ),
    Mutant(
        "localleap has a radius of one more",
        "localleap",
        "2 * radius + 1, stride=1, padding=radius)",
        "2 * radius + 3, stride=1, padding=radius + 1)",
        (RULES,),
    ),
    Mutant(
        "localleap relaxes everywhere",
        "localleap",
        "(eligible & near & (prediction.confidence >= self.relaxed_threshold))",
        "(eligible & (prediction.confidence >= self.relaxed_threshold))",
        (RULES,),
    ),
    Mutant(
        "factor is off by one rank",
        "factor",
        "1 - self.factor / (rank + 1)",
        "1 - self.factor / (rank + 2)",
        (RULES,),
    ),
    Mutant("factor wants more than the bound", "factor", "(ordered >= 1 -", "(ordered > 1 -", (RULES,)),
    Mutant(
        "threshold wants more than the threshold",
        "threshold",
        "accepted = eligible & (prediction.confidence >= self.threshold)",
        "accepted = eligible & (prediction.confidence > self.threshold)",
        (RULES,),
    ),
    Mutant(
        "fixed by entropy takes the most uncertain",
        "fixed",
        'certainty = -certainty if self.rank == "entropy" else certainty',
        'certainty = -certainty if self.rank == "" else certainty',
        (RULES,),
    ),
    Mutant(
        "fixed gives one step more than its share an extra token",
        "fixed",
        "(memory.step < memory.masks % memory.steps)",
        "(memory.step <= memory.masks % memory.steps)",
        (LOOP,),
    ),
    Mutant(
        "the most confident is the last among equals",
        "tensors",
        "best = confidence.masked_fill(~eligible, -torch.inf).argmax(1, keepdim=True)",
        "best = confidence.shape[1] - 1 - confidence.masked_fill(~eligible, -1.0).flip(1).argmax(1, keepdim=True)",
        (RULES,),
    ),
    Mutant(
        "at least one takes the least confident",
        "commits",
        "most_confident(prediction.confidence, eligible) & missing",
        "most_confident(-prediction.confidence, eligible) & missing",
        (RULES,),
    ),
    Mutant(
        "at least one takes the last eligible position",
        "commits",
        "most_confident(prediction.confidence, eligible) & missing",
        "most_confident(eligible.cumsum(1).float(), eligible) & missing",
        (RULES,),
    ),
    Mutant(
        "at least one takes one in every step",
        "commits",
        "most_confident(prediction.confidence, eligible) & missing",
        "most_confident(prediction.confidence, eligible) & ~commit.mask",
        (RULES,),
    ),
    Mutant(
        "the oracle does not fill a window in which nothing is right",
        "oracle",
        "return Commit(right | (eligible & stalled), tokens=memory.tokens, forced=eligible & stalled)",
        "return Commit(right, tokens=memory.tokens, forced=right & stalled)",
        (RULES,),
    ),
    Mutant(
        "the paper's filter forgets the most confident position",
        "accepting",
        "return Commit(accepted | surest, forced=surest & ~accepted)",
        "return Commit(accepted)",
        (LOOP,),
    ),
    Mutant(
        "the filter takes back as many as it commits",
        "filter",
        "commit.mask.sum(1) - 1",
        "commit.mask.sum(1)",
        (LATER_RULES,),
        "filter",
    ),
    Mutant(
        "the filter commits what it took back as easily as before",
        "filter",
        "(surer | new)",
        "(surer | True)",
        (LATER_RULES,),
        "filter",
    ),
    Mutant(
        "one more position is committed whatever its probability",
        "filter",
        "left & (final > self.one_more)",
        "left",
        (LATER_RULES,),
        "filter",
    ),
    Mutant(
        "the model's own confidence commits what was taken back",
        "filter",
        "self.confidence_threshold) & new",
        "self.confidence_threshold)",
        (LATER_RULES,),
        "filter",
    ),
    Mutant(
        "the predictor keep sees no committed tokens",
        "keep",
        "committed=True",
        "committed=False",
        ("tests/predictors/test_keep.py",),
    ),
    Mutant(
        "apd mixes with the weights exchanged",
        "apd",
        "self.mixture_weight * part.logits[:, :width] + (1 - self.mixture_weight) * joint[:, :width]",
        "(1 - self.mixture_weight) * part.logits[:, :width] + self.mixture_weight * joint[:, :width]",
        (APD,),
    ),
    Mutant(
        "block caches never refresh after the first block",
        "block_cache",
        "opens = state.open & (start != memory.start)",
        "opens = state.open & (memory.start < 0)",
        (REFERENCES,),
        "blocks-dual",
    ),
    Mutant(
        "block caches refresh one step late",
        "block_cache",
        "opens = state.open & (start != memory.start)",
        "underway = ~(state.masked | ~state.window.mask(state.gen_length)).all(1)\n"
        "        opens = state.open & (start != memory.start) & ((memory.start < 0) | underway)",
        (REFERENCES,),
        "blocks-dual",
    ),
    Mutant(
        "the prefix cache keeps the suffix stale, as the dual cache does",
        "block_cache",
        "return state.visible",
        "return state.window.stop",
        (REFERENCES,),
        "blocks-prefix",
    ),
    Mutant(
        "the dual cache recomputes one position behind its block",
        "block_cache",
        "return state.window.stop",
        "return torch.minimum(state.window.stop + 1, state.visible)",
        (REFERENCES,),
        "blocks-dual",
    ),
    Mutant(
        "block caches forget the column that proposes a block's first token",
        "block_cache",
        "score, state.visible, state.spec.shift",
        "score, state.visible, 0",
        (REFERENCES,),
        "blocks-dual and dream",
    ),
    Mutant(
        "the dsb cache recomputes one column more before the window",
        "dsb_cache",
        "first = torch.maximum(start - before, state.pad - state.prompt_width)",
        "first = torch.maximum(start - before - 1, state.pad - state.prompt_width)",
        (REFERENCES,),
        "dsb_greedy-dsb",
    ),
    Mutant(
        "the dsb cache ignores how far the window moved",
        "dsb_cache",
        "before = torch.maximum(start - memory.start, torch.full_like(start, self.prefix_window))",
        "before = torch.full_like(start, self.prefix_window)",
        (REFERENCES,),
        "dsb_greedy-dsb",
    ),
    Mutant(
        "the dsb cache ignores its suffix window",
        "dsb_cache",
        "last = torch.minimum(stop + self.suffix_window, state.visible)",
        "last = torch.minimum(stop, state.visible)",
        (CACHE_COLUMNS,),
        "recomputed",
    ),
    Mutant(
        "the dsb cache refreshes one token late",
        "dsb_cache",
        "refresh = state.open & ((memory.commits < 0) | (since >= self.refresh_tokens))",
        "refresh = state.open & ((memory.commits < 0) | (since > self.refresh_tokens))",
        (REFERENCES,),
        "dsb_greedy-dsb",
    ),
    Mutant(
        "the lookahead cache freezes one column less",
        "lookahead_cache",
        "frozen = torch.maximum(memory.start - self.kv_window + 1, everything)",
        "frozen = torch.maximum(memory.start - self.kv_window, everything)",
        (REFERENCES,),
        "lookahead-lookahead",
    ),
    Mutant(
        "the lookahead cache freezes one column more",
        "lookahead_cache",
        "frozen = torch.maximum(memory.start - self.kv_window + 1, everything)",
        "frozen = torch.maximum(memory.start - self.kv_window + 2, everything)",
        (REFERENCES,),
        "lookahead-lookahead",
    ),
    Mutant(
        "positions of a cached forward count the padding",
        "plans",
        "column, column - pad[:, None], mask, wanted, end - begin",
        "column, column, mask, wanted, end - begin",
        (REFERENCES,),
        "blocks-dual",
    ),
    Mutant(
        "padding is attended to",
        "plans",
        "(column >= pad[:, None]) & (column < stop[:, None])",
        "(column >= 0) & (column < stop[:, None])",
        (REFERENCES,),
        "blocks-none",
    ),
    Mutant(
        "the floor of the end-of-text stop is ignored",
        "eot",
        "ended = ended & (prediction.confidence >= self.floor)",
        "ended = ended & (prediction.confidence >= 0)",
        (STOPS,),
    ),
    Mutant(
        "a stop rule ends at an end of text before a given token",
        "tensors",
        "is_among(tokens, state.spec.eot_ids) & state.behind_given",
        "is_among(tokens, state.spec.eot_ids) & (state.behind_given | ~state.behind_given)",
        (STOPS,),
    ),
    Mutant(
        "a stop rule ends before the end of text",
        "tensors",
        "behind = torch.arange(1, mask.shape[1] + 1, device=mask.device)",
        "behind = torch.arange(mask.shape[1], device=mask.device)",
        (STOPS,),
    ),
    Mutant(
        "the paper's stop takes a forced commit for an accepted one",
        "eotp",
        "accepted = accepted & ~commit.forced",
        "accepted = accepted & (commit.forced | ~commit.forced)",
        (STOPS,),
    ),
    Mutant(
        "anywhere looks at proposals that were not committed",
        "anywhere",
        "(commit.mask & may_end(state, after.canvas)).cumsum(1) > 0",
        "may_end(state, commit.tokens_or(prediction.tokens)).cumsum(1) > 0",
        (STOPS,),
    ),
    Mutant(
        "the temperature is applied twice",
        "types",
        "restrict(logits.double() / self.sampling.temperature, self.sampling)",
        "restrict(logits.double() / self.sampling.temperature**2, self.sampling)",
        (PROPOSALS,),
    ),
    Mutant(
        "all rows of a batch draw from the first row's generator",
        "proposals",
        "generator=generator, dtype",
        "generator=generators[0], dtype",
        (PRODUCT,),
    ),
    Mutant(
        "the mask token may be proposed",
        "step",
        "logits[:, self.model.spec.mask_id] = -torch.inf",
        "logits[:, self.model.spec.mask_id] += 0",
        (REFERENCES, PRODUCT),
        "none",
    ),
    Mutant(
        "a revocation outside the window is not refused",
        "tensors",
        "state.window.mask(state.gen_length) & state.decided & ~state.given",
        "state.decided & ~state.given",
        (REVISION,),
        "may_not",
    ),
    Mutant(
        "a given token may be overwritten",
        "tensors",
        "state.window.mask(state.gen_length) & state.decided & ~state.given",
        "state.window.mask(state.gen_length) & state.decided",
        (FIXED_TOKENS,),
        "overwrites",
    ),
    Mutant(
        "revoked commits are not counted",
        "types",
        "revoked = revoked + commit.revoke.sum(1)",
        "revoked = revoked + 0 * commit.revoke.sum(1)",
        (REVISION,),
        "counted",
    ),
    Mutant(
        "allowed ids are ignored",
        "step",
        "return logits if state.allowed is None else restrict_ids(logits, state.allowed[rows, positions])",
        "return logits",
        (FIXED_TOKENS,),
        "allowed_ids",
    ),
    Mutant(
        "shadow columns see their own original",
        "adapter",
        "of_shadow = keys[:, None] != plan.shadow[..., None]",
        "of_shadow = keys[:, None] != plan.shadow[..., None] - 10**6",
        (REVISION,),
        "leave_one_out",
    ),
    Mutant(
        "the causal-block cache forgets to recompute the block before",
        "causal_cache",
        "partial_plan(state, rows, memory.start, stop, score, stop, state.spec.shift)",
        "partial_plan(state, rows, block, stop, score, stop, state.spec.shift)",
        (CAUSAL_BLOCKS,),
        "exact_cache",
    ),
    Mutant(
        "a row's memory is that of the batch's first rows",
        "types",
        "return value[index.to(value.device)] if isinstance(value, Tensor) else value",
        "return value[: len(index)] if isinstance(value, Tensor) else value",
        (ROW_MEMORY,),
    ),
    Mutant(
        "the entropy bound counts the largest entropy too",
        "entropy_bound",
        "others = ordered.cumsum(1) - ordered",
        "others = ordered.cumsum(1)",
        (LATER_RULES,),
        "entropy_bound",
    ),
    Mutant(
        "dparallel commits what is uncertain",
        "dparallel",
        "entropy <= self.threshold",
        "entropy >= self.threshold",
        (LATER_RULES,),
        "dparallel",
    ),
    Mutant(
        "hierarchical decoding takes the best of the window for the best of the segment",
        "hierarchical",
        "number = (~eligible).cumsum(1)",
        "number = 0 * (~eligible).cumsum(1)",
        (LATER_RULES,),
        "hierarchical",
    ),
    Mutant(
        "hierarchical decoding takes back as much as it commits",
        "hierarchical",
        "missing = doubtful.sum(1) + 1 - committed.sum(1)",
        "missing = doubtful.sum(1) - committed.sum(1)",
        (LATER_RULES,),
        "hierarchical",
    ),
    Mutant(
        "credits do not decay",
        "credit",
        "credits[at] * self.decay",
        "credits[at] * self.decay**0",
        (LATER_RULES,),
        "credit",
    ),
    Mutant(
        "klass measures the divergence the other way round",
        "klass",
        "change = (now * ((now",
        "change = (before * ((now",
        (LATER_RULES,),
        "klass",
    ),
    Mutant(
        "klass does not wait at the start of a block",
        "klass",
        "(step >= self.history - 1)",
        "(step >= 0)",
        (LATER_RULES,),
        "klass",
    ),
    Mutant(
        "slowfast takes the last estimate that agrees",
        "slowfast",
        "slow & agree & (cycle.length == 0)",
        "slow & agree",
        (LATER_RULES,),
        "slowfast",
    ),
    Mutant(
        "prophet fills the window alone",
        "prophet",
        "state.masked & prediction.valid & certain",
        "eligible & certain",
        (LATER_RULES,),
        "prophet",
    ),
    Mutant(
        "prophet counts the steps from 0",
        "prophet",
        "(state.step + 1).double()",
        "state.step.double()",
        (LATER_RULES,),
        "prophet",
    ),
    Mutant(
        "dawn forgets the sinks",
        "dawn",
        "sinks[:, None] | itself",
        "itself",
        (LATER_RULES,),
        "dawn",
    ),
    Mutant(
        "dawn takes every confident position for independent",
        "dawn",
        "left = left & ~best & ~(among & best[:, None]).any(2)",
        "left = left & ~best",
        (LATER_RULES,),
        "dawn",
    ),
    Mutant(
        "mean field forgets that a certain position holds nobody back",
        "mean_field",
        "overlaps * ((1 - confidence) * exists)",
        "overlaps * ((1 - 0 * confidence) * exists)",
        (LATER_RULES,),
        "mean_field",
    ),
    Mutant(
        "wino takes back as many as the step before drafted",
        "wino",
        "memory.count - 1",
        "memory.count",
        (LATER_RULES,),
        "wino",
    ),
    Mutant(
        "wino takes back after a single draft",
        "wino",
        "(count > 1)",
        "(count > 0)",
        (LATER_RULES,),
        "wino",
    ),
    Mutant(
        "a checked block is left when its last mask is committed",
        "checked_block",
        "stay=changed &",
        "stay=changed & ~changed &",
        (LATER_RULES,),
        "edit",
    ),
    Mutant(
        "editing overwrites whatever differs",
        "edit",
        "differs & (prediction.confidence > self.editing_threshold)",
        "differs & (prediction.confidence > -1)",
        (LATER_RULES,),
        "edit",
    ),
    Mutant(
        "remasking takes back a position without end",
        "remask",
        "& (memory.times_taken_back < self.per_position)",
        "& (memory.times_taken_back >= 0)",
        (LATER_RULES,),
        "remask",
    ),
    Mutant(
        "flip-flops are not counted",
        "types",
        "flip_flops=self.flip_flops + again.sum(1)",
        "flip_flops=self.flip_flops + 0 * again.sum(1)",
        (LATER_RULES,),
        "remask",
    ),
    Mutant(
        "apple's network reads the time as whole steps",
        "apple",
        "time = state.step / state.gen_length",
        "time = state.step + 0.0",
        (APPLE,),
    ),
)


def path_of(mutant: Mutant, root: Path) -> Path:
    """The file that a mutant changes, in a copy at `root`."""
    return root / FILES[mutant.file]


def fault_of(mutant: Mutant) -> str | None:
    """Why a mutant no longer applies, or None where it does."""
    path = path_of(mutant, ROOT)
    if not path.is_file():
        return f"{FILES[mutant.file]} does not exist"
    text = path.read_text(encoding="utf-8")
    count = text.count(mutant.old)
    if count != 1:
        return f"{FILES[mutant.file]} has the text {count} times, expected once: {mutant.old.splitlines()[0]}"
    try:
        ast.parse(text.replace(mutant.old, mutant.new))
    except SyntaxError as error:
        return f"{FILES[mutant.file]} is no Python after the change: {error.msg} in line {error.lineno}"
    missing = [test for test in mutant.tests if not (ROOT / test).is_file()]
    return f"{missing[0]} does not exist" if missing else None


def check_applies(mutants: Sequence[Mutant]) -> bool:
    """Whether every mutant still applies; those that do not are printed."""
    faults = {mutant.name: fault_of(mutant) for mutant in mutants}
    for name, fault in faults.items():
        if fault is not None:
            print(f"{name}: does not apply: {fault}")
    applying = sum(fault is None for fault in faults.values())
    print(f"{applying} of {len(mutants)} mutants apply")
    return applying == len(mutants)


def make_copy(folder: Path) -> None:
    """Package and tests as copies, compiled and without the stored traces; what they read as links."""
    ignored = shutil.ignore_patterns("__pycache__", "golden")
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=ignored)
        else:
            shutil.copy(source, folder / name)
    for name in LINKED:
        if (ROOT / name).exists():
            (folder / name).symlink_to(ROOT / name)
    compileall.compile_dir(folder / "learn2pd", quiet=1)
    compileall.compile_dir(folder / "tests", quiet=1)


def run_tests(folder: Path, tests: Sequence[str]) -> tuple[int, str]:
    """The exit code of pytest in a copy, and the end of what it printed; a failing example is not made smaller."""
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        child = os.fork()
        if not child:
            for stream in (1, 2):
                os.dup2(output.fileno(), stream)
            become_pytest(folder, tests)
        _, status = os.waitpid(child, 0)
        output.seek(0)
        return os.waitstatus_to_exitcode(status), output.read()[-4000:]


def become_pytest(folder: Path, tests: Sequence[str]) -> NoReturn:
    """Run pytest in a copy, in a process that has imported nothing of the package, and end the process."""
    os.chdir(folder)
    os.environ["PYTHONPATH"] = str(folder)
    os.environ.pop("LEARN2PD_GOLDEN", None)
    sys.dont_write_bytecode = True
    sys.path[:] = [str(folder), *(entry for entry in sys.path if not Path(entry).resolve().is_relative_to(ROOT))]
    for name in [name for name in sys.modules if name.partition(".")[0] in ("learn2pd", "tests")]:
        del sys.modules[name]
    code = 70  # where pytest itself fails
    try:
        code = int(importlib.import_module("pytest").main(["-n", "0", *OPTIONS, *tests]))
    finally:
        sys.stdout.flush()
        os._exit(code)


def killer(output: str) -> str:
    """The test that failed, as pytest names it."""
    named = [line.removeprefix("FAILED ") for line in output.splitlines() if line.startswith("FAILED ")]
    return named[0].split(" - ")[0] if named else "a test"


def judge(mutant: Mutant, folder: Path, everything: bool) -> tuple[bool, str]:
    """Whether a mutant is killed in a copy, and a line that says by what or why not."""
    fault = fault_of(mutant)
    if fault is not None:
        return False, f"does not apply: {fault}"
    path = path_of(mutant, folder)
    path.write_text(path.read_text(encoding="utf-8").replace(mutant.old, mutant.new), encoding="utf-8")
    try:
        for tests in ((*mutant.tests, "-k", mutant.only), EVERYTHING if everything else ()):
            code, output = run_tests(folder, tests) if tests else (0, "")
            if code == FAILED:
                return True, f"killed by {killer(output)}"
            if code != 0:
                return False, f"pytest ends with code {code}:\n{output}"
    finally:
        shutil.copy2(path_of(mutant, ROOT), path)  # with its time, so that what was compiled is valid again
    return False, "SURVIVED"


def check_unchanged(mutants: Sequence[Mutant], folder: Path) -> bool:
    """Whether the tests that the mutants name pass on an unchanged copy. Each group of tests is run once."""
    for tests, only in sorted({(mutant.tests, mutant.only) for mutant in mutants}):
        code, output = run_tests(folder, (*tests, "-k", only))
        if code != 0:
            print(f"the unchanged copy fails:\n{output}")
            return False
    return True


def report(mutant: Mutant, folder: Path, everything: bool) -> bool:
    """Judge a mutant and print the line about it; whether it is killed."""
    started = time.perf_counter()
    killed, line = judge(mutant, folder, everything)
    print(f"{mutant.name}: {line} ({time.perf_counter() - started:.0f} s)", flush=True)
    return killed


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the mutants and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="print the names of the mutants and end")
    parser.add_argument("--only", nargs="+", metavar="WORD", default=[], help="run mutants whose name has one of these")
    parser.add_argument("--last", type=int, metavar="COUNT", help="run the newest COUNT mutants")
    parser.add_argument("--everything", action="store_true", help="run further tests where the named ones pass")
    parser.add_argument("--check", action="store_true", help="say whether all mutants still apply, run nothing and end")
    parser.add_argument("--skip-unchanged", action="store_true", help="do not run the tests on an unchanged copy first")
    options = parser.parse_args(arguments)
    mutants = [mutant for mutant in MUTANTS if not options.only or any(word in mutant.name for word in options.only)]
    if options.last:
        mutants = mutants[-options.last :]
    if options.list:
        print("\n".join(f"{mutant.name} ({FILES[mutant.file]})" for mutant in mutants))
        return 0
    if not mutants:
        print(f"no mutant has one of these words in its name: {', '.join(options.only)}")
        return 1
    if options.check:
        return 0 if check_applies(mutants) else 1
    for name in LOADED:
        importlib.import_module(name)
    with tempfile.TemporaryDirectory(prefix="mutants-") as name:
        folder = Path(name)
        make_copy(folder)
        if not options.skip_unchanged and not check_unchanged(mutants, folder):
            return 1
        killed = sum(report(mutant, folder, options.everything) for mutant in mutants)
    print(f"{killed} of {len(mutants)} mutants killed")
    return 0 if killed == len(mutants) else 1


if __name__ == "__main__":
    sys.exit(main())
