"""The tables of a comparison, as Markdown and for the report page.

The functions take the object of compare.json and decode nothing. evaluation/curves.py explains the tables of families.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

Line = dict[str, Any]
Columns = Mapping[str, Callable[[Line], str]]


@dataclass(frozen=True)
class Table:
    """A table of a comparison.

    Attributes:
        name: the name by which a page refers to it.
        title: its heading.
        note: what a reader must know about its columns; empty where they speak for themselves.
        columns: functions that word the cells of a line, by the headings of the columns.
        lines: the lines.
        brief: whether its lines about all tasks stand on the terminal too.
    """

    name: str
    title: str
    note: str
    columns: Columns
    lines: Sequence[Line]
    brief: bool = False

    def markdown(self) -> str:
        """Write the table without its heading. The lines about all tasks come first."""
        written = [_row(self.columns), "|" + "---|" * len(self.columns)]
        for line in sorted(self.lines, key=lambda line: line["task"] != "all"):
            written.append(_row(cell(line) for cell in self.columns.values()))
        return "\n".join(written)


def tables_of(comparison: Line) -> list[Table]:
    """Return the tables of a comparison in their order, without those that have no line.

    Args:
        comparison: the object of compare.json.
    """
    rows = comparison["rows"]
    revising = [row for row in rows if row["revoked_mean"] or row["edited_mean"]]
    fastest = f"Fastest setting {within(comparison['meta']['accuracy_margin'])}"
    tables = [
        Table("methods-table", "All methods", "", METHODS, rows, brief=True),
        *_score_tables(comparison.get("scores", ())),
        Table("costs", "What each method costs", COST_NOTE, COSTS, _cost_lines(comparison)),
        Table("revisions", "What was taken back", REVISION_NOTE, REVISIONS, revising, brief=True),
        Table(
            "autoregressive",
            "Autoregressive models",
            AUTOREGRESSIVE_NOTE,
            AUTOREGRESSIVE,
            comparison.get("autoregressive", ()),
            brief=True,
        ),
        Table("fastest", fastest, FASTEST_NOTE, FASTEST, comparison["fastest"], brief=True),
        Table("equal", "Trained settings at equal accuracy", EQUAL_NOTE, EQUAL, comparison["equal"], brief=True),
        Table("areas", "Area under the curve", AREA_NOTE, CURVES, comparison["curves"]),
        Table(
            "pairs",
            "Trained against training-free families at equal tokens per forward",
            PAIR_NOTE,
            PAIRS,
            comparison["pairs"],
        ),
        *_seed_tables(comparison["seeds"]),
    ]
    return [table for table in tables if table.lines]


def _score_tables(rows: Sequence[Line]) -> list[Table]:
    """Return a table for each set of scores."""
    tables: list[Table] = []
    for number, names in enumerate(dict.fromkeys(tuple(row["scores"]) for row in rows)):
        lines = [row for row in rows if tuple(row["scores"]) == names]
        tasks = ", ".join(dict.fromkeys(row["task"] for row in lines))
        columns = SCORED | {f"{name} %": share(name) for name in names}
        title = f"How near the answers come: {tasks}"
        tables.append(Table(f"scores-{number}", title, SCORE_NOTE, columns, lines, brief=True))
    return tables


def _cost_lines(comparison: Line) -> list[Line]:
    """Return the rows of a comparison, each with the area under the curve of its family where the family has one."""
    areas = {(line["task"], line["stop"], line["family"]): line["area"] for line in comparison["curves"]}
    return [row | {"area": areas.get((row["task"], row["stop"], row["family"]))} for row in comparison["rows"]]


def _seed_tables(seeds: Mapping[str, Sequence[Line]]) -> list[Table]:
    """Return the tables of the means over the seeds of a recipe."""
    return [
        Table("seed-settings", "Seeds: settings", SEED_NOTE, SEED_SETTINGS, seeds["settings"]),
        Table("seed-fastest", "Seeds: fastest setting within the margin", "", SEED_FASTEST, seeds["fastest"]),
        Table("seed-equal", "Seeds: at equal accuracy", "", SEED_EQUAL, seeds["equal"]),
        Table("seed-curves", "Seeds: area under the curve", "", SEED_CURVES, seeds["curves"]),
        Table("seed-pairs", "Seeds: against training-free families", "", SEED_PAIRS, seeds["pairs"]),
    ]


def markdown(comparison: Line) -> str:
    """Write all tables of a comparison.

    Args:
        comparison: the object of compare.json.

    Returns:
        The text of compare.md.
    """
    meta = comparison["meta"]
    parts = [
        f"# Comparison: {meta['model']}",
        f"{meta['prompts']} held-out prompts, seed {meta['seed']}, canvas {meta['gen_length']}, "
        f"block {meta['block_length']}, batch {meta['batch_size']}, {meta['device']}, {meta['dtype']}. "
        f"Brackets: 95% bootstrap ({meta['bootstrap_samples']} resamples). "
        "Speedup is in forwards, against vanilla and against threshold with the same stop rule.",
    ]
    for table in tables_of(comparison):
        parts += [f"## {table.title}", *([table.note] if table.note else []), table.markdown()]
    return "\n\n".join(parts) + "\n"


def summary(comparison: Line) -> str:
    """Write some tables for the terminal: their lines about all tasks, where they have such lines.

    Args:
        comparison: the object of compare.json.

    Returns:
        Markdown tables.
    """
    parts = []
    for table in tables_of(comparison):
        if table.brief:
            lines = [line for line in table.lines if line["task"] == "all"] or table.lines
            parts += [f"{table.title}:", replace(table, lines=lines).markdown()]
    return "\n\n".join(parts)


def within(margin: float) -> str:
    """Word the condition that a setting may lose so much accuracy.

    Args:
        margin: the accuracy, as a share of the prompts.
    """
    return f"within {100 * margin:g} points of one token a step"


def _row(cells: Iterable[str]) -> str:
    """Return a row of a table. The name of a method or a score may hold what would end a cell or the row."""
    one_line = (" ".join(cell.splitlines()) for cell in cells)
    return "| " + " | ".join(cell.replace("\\", "\\\\").replace("|", "\\|") for cell in one_line) + " |"


def text(name: str) -> Callable[[Line], str]:
    """Return a function that words a value as it is."""
    return lambda line: str(line[name])


def number(name: str, form: str = "{:.2f}", scale: float = 1) -> Callable[[Line], str]:
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


def share(name: str) -> Callable[[Line], str]:
    """Return a function that words a share in percent, as `number` does."""
    return number(name, "{:.1f}", 100)


def _family(line: Line) -> str:
    return line["family"] + (" +" if line["second_model"] else "")


def _rival(line: Line) -> str:
    return line["rival"] + (" +" if line["rival_second_model"] else "")


def _past(cell: Callable[[Line], str]) -> Callable[[Line], str]:
    return lambda line: ("> " if line["past_rival"] else "") + cell(line)


PLACE = {"task": text("task"), "stop": text("stop")}
METHODS = {
    "task": text("task"),
    "method": text("method"),
    "cache": text("cache"),
    "stop": text("stop"),
    "accuracy %": share("accuracy"),
    "agreement %": share("agreement"),
    "forwards": lambda line: f"{line['forwards_mean']:.1f}",
    "tokens/forward": number("tokens_per_forward"),
    "tokens/s": number("tokens_per_second", "{:.1f}"),
    "speedup": number("speedup_forwards", "{:.2f}x"),
    "vs threshold": number("speedup_forwards_threshold", "{:.2f}x"),
    "cut short": number("cut_short", "{:d}"),
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
    "method": text("method"),
    "effective tokens/forward": number("effective_tokens_per_forward"),
    "columns/forward": number("columns_per_forward", "{:.1f}"),
    "wall s": number("wall_seconds", "{:.1f}"),
    "wall speedup": number("speedup_wall", "{:.2f}x"),
    "area %": share("area"),
    "nats/token": number("nats_per_token", "{:.3f}"),
    "joint commits, nats/token": number("joint_commit_nats_per_token", "{:.3f}"),
}
REVISIONS = PLACE | {
    "method": text("method"),
    "forwards": lambda line: f"{line['forwards_mean']:.1f}",
    "columns/forward": number("columns_per_forward", "{:.1f}"),
    "revoked": number("revoked_mean"),
    "edited": number("edited_mean"),
    "flip-flops": number("flip_flops_mean"),
}
AUTOREGRESSIVE_NOTE = (
    "In the table of all methods, forwards are those of the target, and agreement and speedup compare with plain "
    "decoding of the same model. Accepted: tokens of the draft that stand, in the mean run of it; a run ends where the "
    "draft begins anew. Measured: seconds of the whole run. Modelled: one prompt at a time, with draft and target on "
    "two devices where they overlap; first with the measured cost of a forward, then where the target's costs as much "
    "as 5 of the draft's. Nothing modelled was measured."
)
AUTOREGRESSIVE = PLACE | {
    "method": text("method"),
    "draft length": lambda line: "n/a" if line["draft_length"] is None else str(line["draft_length"]),
    "tokens/target forward": number("tokens_per_target_forward"),
    "accepted": number("accepted_mean"),
    "tokens/s": number("tokens_per_second", "{:.1f}"),
    "target ms": number("target_ms"),
    "draft ms": number("draft_ms"),
    "speedup, measured": number("speedup_wall", "{:.2f}x"),
    "modelled": number("speedup_modelled", "{:.2f}x"),
    "modelled at 1:5": number("speedup_stated", "{:.2f}x"),
}
SCORE_NOTE = "Shares over the answers of a task, as its checker counts them."
SCORED = PLACE | {"method": text("method"), "prompts": text("prompts")}
WITHIN = {
    "tokens/forward": number("tokens_per_forward"),
    "ratio": number("ratio", "{:.2f}x"),
    "ratio, all rules": number("ratio_second_model", "{:.2f}x"),
    "oracle's share %": share("oracle_share"),
    "accuracy lost or won %": number("accuracy_difference", "{:+.1f}", 100),
}
FASTEST_NOTE = (
    "One token a step stands where a family has no such setting. Ratio: to the best training-free family under "
    "the same condition; then to the best of all rules, those with a second model (marked +) included. "
    "Met: share of the resamples with such a setting."
)
FASTEST = (
    PLACE
    | {
        "family": _family,
        "kind": text("kind"),
        "setting": lambda line: "none" if line["method"] is None else line["setting"] or line["method"],
    }
    | WITHIN
    | {
        "best rule": text("rival"),
        "best of all rules": text("rival_second_model"),
        "met %": number("met", "{:.0f}", 100),
    }
)
EQUAL_NOTE = (
    "Tokens per forward of a trained setting, divided by those of a rule's curve at the same accuracy. Every curve "
    "begins with one token a step; a rule that is less accurate everywhere is taken at its most accurate point. "
    "The difference to one token a step is that of the same prompts."
)
EQUAL = PLACE | {
    "family": _family,
    "setting": text("setting"),
    "accuracy %": share("accuracy"),
    "vs one token a step %": number("accuracy_difference", "{:+.1f}", 100),
    "tokens/forward": number("tokens_per_forward"),
    "vs threshold's curve": number("ratio_baseline", "{:.2f}x"),
    "vs best rule": number("ratio", "{:.2f}x"),
    "best rule": text("rival"),
}
AREA_NOTE = (
    "Mean height of accuracy over tokens per forward, from one token a step to the oracle; "
    "the height is 0 past a family's fastest setting."
)
CURVES = PLACE | {
    "family": _family,
    "kind": text("kind"),
    "settings": lambda line: str(len(line["points"])),
    "area %": share("area"),
}
BESIDE = {
    "accuracy difference %": number("difference", "{:+.1f}", 100),
    "better %": number("difference_better", "{:.0f}", 100),
    "area difference %": number("area_difference", "{:+.1f}", 100),
    "area better %": number("area_difference_better", "{:.0f}", 100),
}
PAIR_NOTE = (
    "Accuracy of the trained family at its setting in the table of the fastest settings, less the accuracy of the "
    "rival's curve at the same tokens per forward (>: the rival has no setting as fast as that and is taken at its "
    "fastest), and the difference of the areas; each with the share of the resamples in which it is above 0."
)
PAIRS = PLACE | {"family": _family, "rival": _rival, "at tokens/forward": _past(number("tokens_per_forward"))} | BESIDE
SEED_NOTE = (
    "Families that differ in the seed of their training only: mean, its interval over prompts in brackets, "
    "least to largest seed in braces."
)
RECIPE = PLACE | {"recipe": text("group"), "seeds": text("seeds")}
SEED_SETTINGS = RECIPE | {
    "setting": text("setting"),
    "accuracy %": share("accuracy"),
    "agreement %": share("agreement"),
    "tokens/forward": number("tokens_per_forward"),
}
SEED_FASTEST = RECIPE | WITHIN
SEED_EQUAL = RECIPE | {
    "setting": text("setting"),
    "accuracy %": share("accuracy"),
    "vs one token a step %": number("accuracy_difference", "{:+.1f}", 100),
    "vs threshold's curve": number("ratio_baseline", "{:.2f}x"),
    "vs best rule": number("ratio", "{:.2f}x"),
}
SEED_CURVES = RECIPE | {"area %": share("area")}
SEED_PAIRS = RECIPE | {"rival": _rival} | BESIDE
