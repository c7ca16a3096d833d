"""A comparison as Markdown.

The functions take the plain data of compare.json and decode nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

Line = dict[str, Any]


def markdown(comparison: dict[str, Any], meta: dict[str, Any]) -> str:
    """Write all tables of a comparison.

    The table of all methods comes first and the tables of families follow (evaluation/curves.py explains their
    columns). In every table the lines about all tasks come first.

    Args:
        comparison: the rows, scores and tables of compare.json.
        meta: the description of the run in compare.json.

    Returns:
        The text of compare.md.
    """
    head = (
        f"{meta['prompts']} held-out prompts, seed {meta['seed']}, canvas {meta['gen_length']}, "
        f"block {meta['block_length']}, batch {meta['batch_size']}, {meta['device']}, {meta['dtype']}. "
        f"Brackets: 95% bootstrap ({meta['bootstrap_samples']} resamples). "
        "Speedup is in forwards, against vanilla and against threshold with the same stop rule."
    )
    parts = [f"# Comparison: {meta['model']}", head, methods_table(comparison["rows"])]
    scores = score_tables(comparison.get("scores", ()))
    if scores:
        parts += [
            "## How near the answers come",
            "Shares over the answers of a task, as its checker counts them.",
            *scores,
        ]
    parts += ["## What each method costs", COST_NOTE, cost_table(comparison)]
    revised = revision_table(comparison["rows"])
    if revised:
        parts += ["## What was taken back", REVISION_NOTE, revised]
    if comparison.get("autoregressive"):
        parts += ["## Autoregressive models", AUTOREGRESSIVE_NOTE, autoregressive_table(comparison["autoregressive"])]
    seeds = comparison["seeds"]
    if comparison["fastest"]:
        parts += [
            f"## Fastest setting within {_margin(meta)} of one token a step",
            "One token a step stands where a family has no such setting. Ratio: to the best training-free family under "
            "the same condition; then to the best of all rules, those with a second model (marked +) included. "
            "Met: share of the resamples with such a setting.",
            fastest_table(comparison["fastest"]),
        ]
    if comparison["equal"]:
        parts += ["## Trained settings at equal accuracy", EQUAL_NOTE, equal_table(comparison["equal"])]
    if comparison["curves"]:
        parts += [
            "## Area under the curve",
            "Mean height of accuracy over tokens per forward, from one token a step to the oracle; "
            "the height is 0 past a family's fastest setting.",
            _table(CURVES, comparison["curves"]),
        ]
    if comparison["pairs"]:
        parts += [
            "## Trained against training-free families at equal tokens per forward",
            "Accuracy of the trained family at its setting in the table above, less the accuracy of the rival's curve "
            "at the same tokens per forward (>: the rival has no setting as fast as that and is taken at its fastest), "
            "and the difference of the areas; each with the share of the resamples in which it is above 0.",
            _table(PAIRS, comparison["pairs"]),
        ]
    if seeds["settings"]:
        parts += [
            "## Seeds",
            "Families that differ in the seed of their training only: mean, its interval over prompts in brackets, "
            "least to largest seed in braces.",
            _table(SEED_SETTINGS, seeds["settings"]),
            _table(SEED_FASTEST, seeds["fastest"]),
        ]
        parts += [_table(SEED_EQUAL, seeds["equal"])] if seeds["equal"] else []
        parts += [_table(SEED_CURVES, seeds["curves"])] if seeds["curves"] else []
        parts += [_table(SEED_PAIRS, seeds["pairs"])] if seeds["pairs"] else []
    return "\n\n".join(parts) + "\n"


def summary(comparison: dict[str, Any], meta: dict[str, Any]) -> str:
    """Write the lines about all tasks, for the terminal.

    Args:
        comparison: the rows, scores and tables of compare.json.
        meta: the description of the run in compare.json.

    Returns:
        Markdown tables.
    """
    parts = [methods_table([row for row in comparison["rows"] if row["task"] == "all"])]
    parts += score_tables(comparison.get("scores", ()))
    revised = revision_table([row for row in comparison["rows"] if row["task"] == "all"])
    parts += ["what was taken back, for each answer:", revised] if revised else []
    others = [row for row in comparison.get("autoregressive", ()) if row["task"] == "all"]
    parts += ["autoregressive models:", autoregressive_table(others)] if others else []
    fastest = [line for line in comparison["fastest"] if line["task"] == "all"]
    if fastest:
        parts += [f"fastest setting within {_margin(meta)} of one token a step:", fastest_table(fastest)]
    equal = [line for line in comparison["equal"] if line["task"] == "all"]
    parts += ["tokens per forward against the rules at equal accuracy:", equal_table(equal)] if equal else []
    return "\n\n".join(parts)


def score_tables(rows: Sequence[Line]) -> list[str]:
    """Write a table for each set of scores; the list is empty where no checker gives scores."""
    tables = []
    for names in dict.fromkeys(tuple(row["scores"]) for row in rows):
        columns = SCORED | {f"{name} %": _number(name, **PERCENT) for name in names}
        tables.append(_table(columns, [row for row in rows if tuple(row["scores"]) == names]))
    return tables


def methods_table(rows: Sequence[Line]) -> str:
    """Write the table of all methods."""
    return _table(METHODS, rows)


def cost_table(comparison: Line) -> str:
    """Write the table of what each method costs, and of how likely its answers are."""
    return _table(COSTS, cost_lines(comparison))


def cost_lines(comparison: Line) -> list[Line]:
    """Return the rows of a comparison, each with the area under the curve of its family where the family has one."""
    areas = {(line["task"], line["stop"], line["family"]): line["area"] for line in comparison["curves"]}
    return [row | {"area": areas.get((row["task"], row["stop"], row["family"]))} for row in comparison["rows"]]


def revision_table(rows: Sequence[Line]) -> str:
    """Write the table of the methods that took back or overwrote a token; it is empty where none did."""
    revising = [row for row in rows if row["revoked_mean"] or row["edited_mean"]]
    return _table(REVISIONS, revising) if revising else ""


def autoregressive_table(rows: Sequence[Line]) -> str:
    """Write the table of the methods of autoregressive models."""
    return _table(AUTOREGRESSIVE, rows)


def fastest_table(lines: Sequence[Line]) -> str:
    """Write the table of the fastest settings within the margin."""
    return _table(FASTEST, lines)


def equal_table(lines: Sequence[Line]) -> str:
    """Write the table of trained settings at equal accuracy."""
    return _table(EQUAL, lines)


def _margin(meta: dict[str, Any]) -> str:
    return f"{100 * meta['accuracy_margin']:g} points"


def _table(columns: dict[str, Callable[[Line], str]], lines: Sequence[Line]) -> str:
    written = [_row(columns), "|" + "---|" * len(columns)]
    for line in sorted(lines, key=lambda line: line["task"] != "all"):
        written.append(_row(cell(line) for cell in columns.values()))
    return "\n".join(written)


def _row(cells: Iterable[str]) -> str:
    """Return a row of a table. The name of a method or a score may hold what would end a cell or the row."""
    one_line = (" ".join(cell.splitlines()) for cell in cells)
    return "| " + " | ".join(cell.replace("\\", "\\\\").replace("|", "\\|") for cell in one_line) + " |"


def _text(name: str) -> Callable[[Line], str]:
    return lambda line: str(line[name])


def _number(name: str, form: str = "{:.2f}", scale: float = 1) -> Callable[[Line], str]:
    """Return a function that words a value, with its [interval] and its {spread over seeds} where the line has them."""

    def cell(line: Line) -> str:
        if line.get(name) is None:
            return "n/a"
        shown = form.format(scale * line[name])
        for key, left, right, between in ((f"{name}_interval", "[", "]", ", "), (f"{name}_spread", "{", "}", "..")):
            if line.get(key) is not None:
                shown += f" {left}{between.join(form.format(scale * edge) for edge in line[key])}{right}"
        return shown

    return cell


def _family(line: Line) -> str:
    return line["family"] + (" +" if line["second_model"] else "")


def _rival(line: Line) -> str:
    return line["rival"] + (" +" if line["rival_second_model"] else "")


def _past(cell: Callable[[Line], str]) -> Callable[[Line], str]:
    return lambda line: ("> " if line["past_rival"] else "") + cell(line)


PERCENT: Any = {"form": "{:.1f}", "scale": 100}
PLACE = {"task": _text("task"), "stop": _text("stop")}
METHODS = {
    "task": _text("task"),
    "method": _text("method"),
    "cache": _text("cache"),
    "stop": _text("stop"),
    "accuracy %": _number("accuracy", **PERCENT),
    "agreement %": _number("agreement", **PERCENT),
    "forwards": lambda line: f"{line['forwards_mean']:.1f}",
    "tokens/forward": _number("tokens_per_forward"),
    "tokens/s": _number("tokens_per_second", "{:.1f}"),
    "speedup": _number("speedup_forwards", "{:.2f}x"),
    "vs threshold": _number("speedup_forwards_threshold", "{:.2f}x"),
    "cut short": _number("cut_short", "{:d}"),
}
REVISION_NOTE = (
    "Means over the answers. Columns: the positions that a forward computes, shadow columns included. Flip-flop: a "
    "token that was taken back and then committed again at the same position."
)
COST_NOTE = (
    "Effective: each token that was taken back or overwritten is subtracted from the answer tokens. Columns: the "
    "positions that a forward computes, shadow columns included. Area: the mean height of accuracy over tokens per "
    "forward of the method's family. Nats: minus the exact log-likelihood of what was written, under the model by the "
    "policy's own order, one token at a time. Joint commits: the nats that committing several tokens in one step cost "
    "(evaluation/likelihood.py). n/a: the comparison did not ask for it (compare.likelihood)."
)
COSTS = PLACE | {
    "method": _text("method"),
    "effective tokens/forward": _number("effective_tokens_per_forward"),
    "columns/forward": _number("columns_per_forward", "{:.1f}"),
    "wall s": _number("wall_seconds", "{:.1f}"),
    "wall speedup": _number("speedup_wall", "{:.2f}x"),
    "area %": _number("area", **PERCENT),
    "nats/token": _number("nats_per_token", "{:.3f}"),
    "joint commits, nats/token": _number("joint_commit_nats_per_token", "{:.3f}"),
}
REVISIONS = PLACE | {
    "method": _text("method"),
    "forwards": lambda line: f"{line['forwards_mean']:.1f}",
    "columns/forward": _number("columns_per_forward", "{:.1f}"),
    "revoked": _number("revoked_mean"),
    "edited": _number("edited_mean"),
    "flip-flops": _number("flip_flops_mean"),
}
AUTOREGRESSIVE_NOTE = (
    "In the table of all methods, forwards are those of the target, and agreement and speedup compare with plain "
    "decoding of the same model. Accepted: tokens of the draft that stand, in the mean run of it; a run ends where the "
    "draft begins anew. Measured: seconds of the whole run. Modelled: one prompt at a time, with draft and target on "
    "two devices where they overlap; first with the measured cost of a forward, then where the target's costs as much "
    "as 5 of the draft's. Nothing modelled was measured."
)
AUTOREGRESSIVE = PLACE | {
    "method": _text("method"),
    "draft length": lambda line: "n/a" if line["draft_length"] is None else str(line["draft_length"]),
    "tokens/target forward": _number("tokens_per_target_forward"),
    "accepted": _number("accepted_mean"),
    "tokens/s": _number("tokens_per_second", "{:.1f}"),
    "target ms": _number("target_ms"),
    "draft ms": _number("draft_ms"),
    "speedup, measured": _number("speedup_wall", "{:.2f}x"),
    "modelled": _number("speedup_modelled", "{:.2f}x"),
    "modelled at 1:5": _number("speedup_stated", "{:.2f}x"),
}
SCORED = PLACE | {"method": _text("method"), "prompts": _text("prompts")}
WITHIN = {
    "tokens/forward": _number("tokens_per_forward"),
    "ratio": _number("ratio", "{:.2f}x"),
    "ratio, all rules": _number("ratio_second_model", "{:.2f}x"),
    "oracle's share %": _number("oracle_share", **PERCENT),
    "accuracy lost or won %": _number("accuracy_difference", "{:+.1f}", 100),
}
FASTEST = (
    PLACE
    | {
        "family": _family,
        "kind": _text("kind"),
        "setting": lambda line: "none" if line["method"] is None else line["setting"] or line["method"],
    }
    | WITHIN
    | {
        "best rule": _text("rival"),
        "best of all rules": _text("rival_second_model"),
        "met %": _number("met", "{:.0f}", 100),
    }
)
EQUAL_NOTE = (
    "Tokens per forward of a trained setting, divided by those of a rule's curve at the same accuracy. Every curve "
    "begins with one token a step; a rule that is less accurate everywhere is taken at its most accurate point. "
    "The difference to one token a step is that of the same prompts."
)
EQUAL = PLACE | {
    "family": _family,
    "setting": _text("setting"),
    "accuracy %": _number("accuracy", **PERCENT),
    "vs one token a step %": _number("accuracy_difference", "{:+.1f}", 100),
    "tokens/forward": _number("tokens_per_forward"),
    "vs threshold's curve": _number("ratio_baseline", "{:.2f}x"),
    "vs best rule": _number("ratio", "{:.2f}x"),
    "best rule": _text("rival"),
}
CURVES = PLACE | {
    "family": _family,
    "kind": _text("kind"),
    "settings": lambda line: str(len(line["points"])),
    "area %": _number("area", **PERCENT),
}
BESIDE = {
    "accuracy difference %": _number("difference", "{:+.1f}", 100),
    "better %": _number("difference_better", "{:.0f}", 100),
    "area difference %": _number("area_difference", "{:+.1f}", 100),
    "area better %": _number("area_difference_better", "{:.0f}", 100),
}
PAIRS = PLACE | {"family": _family, "rival": _rival, "at tokens/forward": _past(_number("tokens_per_forward"))} | BESIDE
RECIPE = PLACE | {"recipe": _text("group"), "seeds": _text("seeds")}
SEED_SETTINGS = RECIPE | {
    "setting": _text("setting"),
    "accuracy %": _number("accuracy", **PERCENT),
    "agreement %": _number("agreement", **PERCENT),
    "tokens/forward": _number("tokens_per_forward"),
}
SEED_FASTEST = RECIPE | WITHIN
SEED_EQUAL = RECIPE | {
    "setting": _text("setting"),
    "accuracy %": _number("accuracy", **PERCENT),
    "vs one token a step %": _number("accuracy_difference", "{:+.1f}", 100),
    "vs threshold's curve": _number("ratio_baseline", "{:.2f}x"),
    "vs best rule": _number("ratio", "{:.2f}x"),
}
SEED_CURVES = RECIPE | {"area %": _number("area", **PERCENT)}
SEED_PAIRS = RECIPE | {"rival": _rival} | BESIDE
