"""Outcomes with known figures."""

from __future__ import annotations

import numpy as np

from learn2pd.evaluation.outcomes import Labels, Outcome
from learn2pd.evaluation.tables import tables_of


def outcome(
    family,
    policy,
    *,
    setting="",
    group=None,
    stop="eot",
    task="math",
    scheduler="blocks",
    forwards=(10, 20),
    lengths=(10, 10),
    correct=(1, 0),
    tokens=((5, 6, 0, 0), (7, 0, 0, 0)),
    auxiliary=0,
    revoked=0,
    edited=0,
    flip_flops=0,
    wall_s=2.0,
):
    """An outcome of as many prompts as `forwards` has; shorter columns are repeated."""
    count = len(forwards)
    trained = policy == "filter" or scheduler == "adablock_learned"
    mark = {"fixed": "reference", "threshold": "baseline", "oracle": "oracle"}.get(policy, "")
    kind = "oracle" if policy == "oracle" else "learned" if trained else "training-free"
    return Outcome(
        labels=Labels(
            f"{family} {setting}".strip(), family, setting, group, scheduler, policy, "none", stop, task, mark, kind
        ),
        correct=np.resize(np.array(correct, np.float32), count),
        reasons=[""] * count,
        tokens=np.resize(np.array(tokens, np.int32), (count, 4)),
        committed_at=np.zeros((count, 4), np.int32),
        lengths=np.resize(np.array(lengths, np.int32), count),
        forwards=np.array(forwards, np.int32),
        columns=np.array(forwards, np.int64) * 30,
        auxiliary_forwards=np.full(count, auxiliary, np.int32),
        revoked=np.resize(np.array(revoked, np.int32), count),
        edited=np.resize(np.array(edited, np.int32), count),
        flip_flops=np.resize(np.array(flip_flops, np.int32), count),
        failed=np.zeros(count, bool),
        wall_s=wall_s,
        model_s=wall_s / 2,
    )


def exact(family, policy, speed, accuracy, prompts=100, **options):
    """Every prompt at the same tokens per forward, the first `accuracy` of them right."""
    correct = np.arange(prompts) < round(accuracy * prompts)
    return outcome(family, policy, forwards=[100] * prompts, lengths=[round(100 * speed)], correct=correct, **options)


def table_of(name, **parts):
    """The table of this name as Markdown; empty where a comparison that holds these parts alone has no such table."""
    nothing = dict.fromkeys(("rows", "curves", "fastest", "equal", "pairs"), ())
    seeds = dict.fromkeys(("settings", "fastest", "equal", "curves", "pairs"), ())
    comparison = nothing | {"meta": {"accuracy_margin": 0.005}, "seeds": seeds} | parts
    return next((table.markdown() for table in tables_of(comparison) if table.name == name), "")
