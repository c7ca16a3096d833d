"""Stored traces of the authors' implementations: where they lie, which of them the package can repeat.

A *root* is a folder with `traces/MODEL/METHOD.json`, compressed by gzip or not, and, beside `traces`, the folders of
the models that the traces name. The root that ships with the repository is always read. `LEARN2PD_GOLDEN` may name more
roots, separated as in PATH. Every trace is collected once, and every model that a trace names is looked for in the
trace's own root first and then in all the others.
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load, load_file
from torch import Tensor

from learn2pd.registry import family_target

SHIPPED = Path(__file__).parent / "golden"
VARIABLE = "LEARN2PD_GOLDEN"
FUNCTIONS = (  # the authors' functions, by the name that a trace has as `fn` or `alg`
    "generate",
    "generate(local_leap=True)",
    "generate_with_prefix_cache",
    "generate_with_dual_cache",
    "generate_adablock",
    "generate_adablock_prefix_cache",
    "generate_adablock_dual_cache",
    "generate_dsb",
    "generate_dsb_cache",
    "generate_predict_eot",
    "generate_learn2parallel",
    "generate_l2p_eot",
    "apd",
    "leftright",
)
BLOCK_FUNCTIONS = (  # those of the authors of block-causal models, which `test_block_causal.py` repeats
    "generate.py",
    "opencompass/models/huggingface_bd3.py block_diffusion_generate",
    "llada2",
    "generate",
    "batch_sample",
)
# The arguments of those functions, and of the oracle's recording, that `test_golden.py` understands.
PARAMETERS = frozenset(
    {
        "fn",
        "alg",
        "steps",
        "threshold",
        "factor",
        "init_block_length",
        "delimiter_ids",
        "delimiter_threshold",
        "prefix_window",
        "suffix_window",
        "max_block_length",
        "relaxed_threshold",
        "radius",
        "accept_thres",
        "filter",
        "eot_id",
        "apd_mixture_weight",
        "kv_window",
        "max_lookahead",
        "tokens_per_step",
    }
)
BLOCK_CAUSAL = ("sdar", "llada2_moe", "Fast_dLLM_Qwen")  # the model_type of the stored block-causal models
RULES = {  # the first word of a method -> the arguments that `test_golden_rules.py` understands
    "apple": {"remasking", "thres", "temperature", "sampling_mode", "full_context", "temperature_policy"},
    "credit": {"early_stop", "maximum_unroll", "expected_tpf", "decoder", "threshold", "decoder_args"},
    "dawn": {"tau_sink", "tau_edge", "tau_induce", "tau_low"},
    "dinfer": {"early_stop", "maximum_unroll", "expected_tpf", "decoder", "threshold"},
    "dparallel": {"threshold", "cache"},
    "eb": {"gamma"},
    "hierarchy": {"early_stop", "maximum_unroll", "expected_tpf", "decoder", "threshold", "decoder_args"},
    "klass": {"alg", "kl_history_length", "unmask_strategy", "steps", "conf_threshold", "kl_threshold"},
    "llada21": {"fn", "threshold", "editing_threshold", "max_post_steps", "num_to_transfer", "eos_early_stop"},
    "prophet": {"steps", "answer_offset", "thresholds"},
    "slowfast": {
        "k_exploration_steps",
        "cycle_len_confidence_threshold",
        "cycle_length_stability_window",
        "cycle_length_stability_std_dev_threshold",
        "high_confidence_threshold",
    },
    "wino": {"threshold", "threshold_back"},
}
ORACLE = "l2p_oracle"  # the method whose traces are recorded labels, and which names no function


class RootError(Exception):
    """A root that LEARN2PD_GOLDEN names cannot be used."""


@dataclass(frozen=True)
class Trace:
    """One stored file.

    Attributes:
        path: The file.
        root: The root that it was collected from.
        identity: Its name in test ids.
        roots: All roots, the trace's own first; models are looked for in this order.
    """

    path: Path
    root: Path
    identity: str
    roots: tuple[Path, ...]

    @property
    def method(self) -> str:
        """The name of the method and of its settings, which is the name of the file."""
        return plain_name(self.path).removesuffix(".json")

    @property
    def rule(self) -> str | None:
        """The key of `RULES` that the method belongs to, or None where its traces are those of the first set."""
        word = self.method.partition("_")[0]
        return word if word in RULES else None

    @property
    def stored(self) -> dict:
        """The content of the file."""
        return read_trace(self.path)

    def folder(self, name: str) -> Path:
        """The folder of a model or filter that the trace names.

        Raises:
            RootError: No root has it.
        """
        for root in self.roots:
            if (root / name / "config.json").is_file():
                return root / name
        searched = ", ".join(str(root) for root in self.roots)
        raise RootError(f"trace {self.path} needs the model {name}, which is in none of the roots {searched}")

    @property
    def model(self) -> Path:
        """The folder of the dLLM that the trace was made with."""
        return self.folder(self.path.parent.name)

    @property
    def block_causal(self) -> bool:
        """Whether the trace is of a block-causal model."""
        return json.loads((self.model / "config.json").read_text()).get("model_type") in BLOCK_CAUSAL

    def unsupported(self) -> str | None:
        """Why the package cannot repeat the trace, or None where it can."""
        reason = unsupported_family(self.model)
        if reason is not None:
            return reason
        params = self.stored["params"]
        function = params.get("fn", params.get("alg"))
        if self.block_causal and function in BLOCK_FUNCTIONS:
            return None
        if self.rule is not None:
            unknown = sorted(set(params) - RULES[self.rule])
            return f"not supported: method {self.method} with the parameter {unknown[0]}" if unknown else None
        if self.block_causal:
            return f"not supported: method {self.method} (function {function})"
        if function not in FUNCTIONS and self.method != ORACLE:
            return f"not supported: method {self.method} (function {function})"
        unknown = sorted(set(params) - PARAMETERS)
        if unknown:
            return f"not supported: method {self.method} with the parameter {unknown[0]}"
        return None


def trace_files(root: Path) -> list[Path]:
    """The files of all traces of a root."""
    return sorted([*root.glob("traces/*/*.json"), *root.glob("traces/*/*.json.gz")])


def plain_name(path: Path) -> str:
    """The name of a trace's file before compression."""
    return path.name.removesuffix(".gz")


def read_trace(path: Path) -> dict:
    """The content of a trace's file; the shipped ones are compressed."""
    content = path.read_bytes()
    return json.loads(gzip.decompress(content) if path.suffix == ".gz" else content)


def named_roots(value: str | None) -> list[Path]:
    """The roots of a value of LEARN2PD_GOLDEN, in its order.

    Raises:
        RootError: One of them does not exist or has no traces.
    """
    roots = []
    for name in (value or "").split(os.pathsep):
        if not name:
            continue
        root = Path(name)
        if not root.is_dir():
            raise RootError(f"{VARIABLE} names {name}, which is not a folder")
        if not trace_files(root):
            raise RootError(f"{VARIABLE} names {name}, which has no traces: no file matches traces/*/*.json there")
        roots.append(root.resolve())
    return roots


def all_roots(value: str | None) -> list[Path]:
    """The named roots and then the one that ships with the repository, each once."""
    return list(dict.fromkeys([*named_roots(value), SHIPPED.resolve()]))


def collect(roots: Sequence[Path]) -> list[Trace]:
    """The traces of all roots. A file whose runs were all collected from an earlier root is left out."""
    traces: list[Trace] = []
    seen: set[tuple[str, str, str]] = set()
    identities: set[str] = set()
    for root in roots:
        order = (root, *(other for other in roots if other != root))
        for path in trace_files(root):
            stored = read_trace(path)
            model = path.parent.name
            params = json.dumps(stored.get("params"), sort_keys=True)
            runs = {(model, params, json.dumps(run, sort_keys=True)) for run in stored["runs"]}
            if runs <= seen:
                continue
            seen |= runs
            name = path.with_name(plain_name(path)).relative_to(root).as_posix()
            traces.append(Trace(path, root, unique(name, root, identities), order))
    return traces


def collect_models(roots: Sequence[Path]) -> list[tuple[str, Path]]:
    """Name for the test's id and folder of every model that logits are stored for, each folder's content once."""
    models = []
    seen: set[tuple[str, bytes, bytes]] = set()
    identities: set[str] = set()
    for root in roots:
        for path in sorted(root.glob("*/golden_logits.safetensors")):
            content = (path.parent.name, path.read_bytes(), (path.parent / "config.json").read_bytes())
            if content in seen:
                continue
            seen.add(content)
            models.append((unique(path.parent.name, root, identities), path.parent))
    return models


def unique(name: str, root: Path, taken: set[str]) -> str:
    """`name`, or `name` with its root where another root has the same name; it is added to `taken`."""
    candidates = [name, f"{name}@{root.name}", f"{name}@{root}"]
    identity = next(candidate for candidate in candidates if candidate not in taken)
    taken.add(identity)
    return identity


def unsupported_family(folder: Path) -> str | None:
    """Why the package has no network for a stored dLLM, or None where it has one."""
    fields = json.loads((folder / "config.json").read_text())
    target = family_target(fields)
    named = (fields.get("architectures") or [None])[0]
    if target is None or named != target.rpartition(":")[2]:  # LLaDA-MoE has LLaDA's model_type
        return f"not supported: family {named} (model_type {fields.get('model_type')})"
    return None


def weights(folder: Path) -> dict[str, Tensor]:
    """The tensors of a stored model; the shipped ones are compressed."""
    packed = folder / "model.safetensors.gz"
    if packed.is_file():
        return load(gzip.decompress(packed.read_bytes()))
    return load_file(folder / "model.safetensors")
