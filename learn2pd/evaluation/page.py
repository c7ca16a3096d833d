"""The report page: one HTML file that shows a run, holds all of its data and loads nothing.

The functions take the plain data of a run's files and decode nothing. The page stays below `LIMIT_BYTES`: where it
would grow above, replays are left out, the longest first, and then the lines about single tasks; the page says so.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from learn2pd.data.tasks import SPLITS
from learn2pd.evaluation import tables
from learn2pd.evaluation.plots import DEPTH

LIMIT_BYTES = 1_000_000
FILES = Path(__file__).parent / "page_files"
Line = dict[str, Any]
SECTIONS = {  # the headings of the page, each with the part of the data without which its section is left out
    "curve": ("The curve", "comparison"),
    "methods": ("Tables", "comparison"),
    "replay": ("Replay", "replays"),
    "reliability": ("Reliability", "calibration"),
    "rounds": ("Rounds", "rounds"),
    "run": ("What was run", ""),
}
THRESHOLDS = {
    "threshold": tables.number("threshold", "{:g}"),
    "agreement %": tables.share("agreement"),
    "accuracy drop, points": tables.share("accuracy_drop"),
    "bound of the loss %": tables.share("loss_bound"),
    "tokens/forward": tables.number("tokens_per_forward"),
}
ROUNDS = {
    "round": tables.text("round"),
    "epochs": tables.number("epochs", "{:.0f}"),
    "validation loss": tables.number("val_loss", "{:.4f}"),
    "AUROC": tables.number("val_auroc", "{:.4f}"),
    "agreement %": tables.share("agreement"),
    "accuracy drop, points": tables.share("accuracy_drop"),
    "tokens/forward": tables.number("tokens_per_forward"),
    "states recorded by it": tables.number("rows", "{:,.0f}"),
    "training s": tables.number("train_seconds", "{:.0f}"),
}


@dataclass(frozen=True)
class RunData:
    """What a page shows, as the files of a run hold it. What the run has not made is empty."""

    title: str
    version: str
    described: Line = field(default_factory=dict)  # run.json
    metrics: Line = field(default_factory=dict)  # metrics.json
    comparison: Line = field(default_factory=dict)  # compare.json
    replays: Sequence[Line] = ()  # replays.json
    missing: Sequence[str] = ()  # a sentence for each part that the run has not made


def page(run: RunData) -> str:
    """Write the page.

    Args:
        run: the data of the run.

    Returns:
        The HTML.
    """
    replays = list(run.replays)
    left_out: list[str] = []
    comparison = run.comparison
    while True:
        html = _render(run, comparison, replays, left_out)
        if len(html.encode()) <= LIMIT_BYTES:
            return html
        if replays:
            longest = max(range(len(replays)), key=lambda number: len(json.dumps(replays[number])))
            left_out.append(replays.pop(longest)["task"])
        elif any(row["task"] != "all" for row in comparison.get("rows", ())):
            comparison = _of_all_tasks(comparison)
        else:
            return html


def _of_all_tasks(comparison: Line) -> Line:
    """Leave out the lines about single tasks."""
    return {
        name: [line for line in lines if line["task"] == "all"] if isinstance(lines, list) else lines
        for name, lines in comparison.items()
    }


@functools.cache
def _templates() -> Environment:
    """The templates of the page, each of which is compiled once."""
    return Environment(
        loader=FileSystemLoader(FILES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _render(run: RunData, comparison: Line, replays: Sequence[Line], left_out: Sequence[str]) -> str:
    calibrated = run.metrics.get("calibrate", {}).get("filter", {})
    rounds = run.metrics.get("train", {}).get("rounds", [])
    shown: Line = {
        "comparison": bool(comparison.get("rows")),
        "replays": replays,
        "calibration": _calibration(calibrated),
        "rounds": _rounds(rounds),
    }
    rows = comparison.get("rows", [])
    note = ""
    if left_out:
        note = f"Replays of {', '.join(left_out)} are left out, because the page would be larger than 1 MB."
    template = _templates().get_template("page.html.j2")
    return template.render(
        shown,
        title=run.title,
        version=run.version,
        lead=_lead(run),
        headings={anchor: heading for anchor, (heading, part) in SECTIONS.items() if not part or shown[part]},
        missing=run.missing,
        headline=_headline(comparison, _margin(comparison)),
        measure_note=_measure_note(rows),
        tasks=_all_first(row["task"] for row in rows),
        stops=list(dict.fromkeys(row["stop"] for row in rows)),
        tables=_tables(comparison) if rows else [],
        left_out=note,
        facts=_facts(run),
        config=yaml.safe_dump(run.described, sort_keys=False, allow_unicode=True, width=110) if run.described else "",
        css=Markup((FILES / "page.css").read_text(encoding="utf-8")),
        script=Markup((FILES / "page.js").read_text(encoding="utf-8")),
        data=Markup(_embedded(_of_scripts(comparison, replays, calibrated))),
    )


def _of_scripts(comparison: Line, replays: Sequence[Line], calibrated: Line) -> Line:
    """Return the data that the scripts of the page read."""
    return {
        "rows": [_point(number, row, comparison["curves"]) for number, row in enumerate(comparison.get("rows", []))],
        "margin": _margin(comparison),
        "depth": DEPTH,
        "replays": replays,
        "reliability": {"bins": calibrated.get("reliability", []), "threshold": calibrated.get("threshold")},
    }


def _margin(comparison: Line) -> float:
    margin: float = comparison.get("meta", {}).get("accuracy_margin", 0.0)
    return margin


def _embedded(data: Line) -> str:
    """Write JSON that may stand within a script element: no text in it can end the element."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text.encode("utf-8", "replace").decode()  # half of a surrogate pair is no text


def _all_first(names: Any) -> list[str]:
    return sorted(dict.fromkeys(names), key=lambda name: name != "all")


def _point(number: int, row: Line, curves: Sequence[Line]) -> Line:
    """Return what the chart needs of a row."""
    measure = "agreement" if row["accuracy"] is None else "accuracy"
    settings: list[Line] = next(
        (
            line["points"]
            for line in curves
            if (line["family"], line["task"], line["stop"]) == (row["family"], row["task"], row["stop"])
        ),
        [],
    )
    return {
        "number": number,
        "recipe": row["group"] or row["family"],
        "hull": next((point["on_hull"] for point in settings if point["method"] == row["method"]), True),
        "measure": measure,
        "quality": row[measure],
        "quality_interval": row[f"{measure}_interval"],
        "speed": row["tokens_per_forward"],
        "speed_interval": row["tokens_per_forward_interval"],
        "forwards": row["forwards_mean"],
        "tokens_per_second": row["tokens_per_second"],
        "speedup": row["speedup_forwards"],
        "revoked": row["revoked_mean"],
    } | {name: row[name] for name in ("method", "family", "kind", "mark", "task", "stop", "cache")}


def _measure_note(rows: Sequence[Line]) -> str:
    if any(row["accuracy"] is None for row in rows):
        return "Agreement with one token a step stands where no checker judges the answers."
    return "Accuracy of the answers over answer tokens per forward of the model."


def _headline(comparison: Line, margin: float) -> list[Line]:
    """Return the fastest setting within the margin of each kind, over all tasks under the first stop rule."""
    lines = [line for line in comparison.get("fastest", ()) if line["task"] == "all"]
    lines = [line for line in lines if line["stop"] == lines[0]["stop"] and line["method"] is not None]
    words = {"learned": "best trained policy", "training-free": "best rule", "oracle": "oracle, which knows the answer"}
    cards = []
    for kind, what in words.items():
        best = max(
            (line for line in lines if line["kind"] == kind), key=lambda line: line["tokens_per_forward"], default=None
        )
        if best is None:
            continue
        detail = f"{100 * best['accuracy_difference']:+.1f} points of {best['measure']}"
        if kind == "learned":
            detail += f"; {best['ratio']:.2f} times the best rule"
        if best.get("oracle_share") is not None and kind != "oracle":
            detail += f"; {100 * best['oracle_share']:.0f}% of the oracle"
        condition = f" {tables.within(margin)}" if kind != "oracle" else ""
        figure = f"{best['tokens_per_forward']:.2f}"
        cards.append(
            {"what": what + condition, "figure": figure, "name": best["method"], "detail": detail, "kind": kind}
        )
    return cards


def _tables(comparison: Line) -> list[Line]:
    """Return the tables of a comparison as the page shows them. The rows of the first one have numbers."""
    return [
        {
            "anchor": table.name,
            "title": table.title,
            "note": table.note,
            "open": place == 0,
            "columns": list(table.columns),
            "lines": [
                {
                    "task": line["task"],
                    "kind": line.get("kind", ""),
                    "row": number if place == 0 else None,
                    "cells": [cell(line) for cell in table.columns.values()],
                }
                for number, line in enumerate(table.lines)
            ],
        }
        for place, table in enumerate(tables.tables_of(comparison))
    ]


def _calibration(figures: Line) -> Line | None:
    """Return the thresholds that were tried, or None where the filter is not calibrated."""
    if not figures:
        return None
    lines = [
        {
            "selected": setting["threshold"] == figures["threshold"],
            "cells": [cell(setting) for cell in THRESHOLDS.values()],
        }
        for setting in figures["curve"]
    ]
    target = (
        f"an agreement of at least {tables.share('target_agreement')(figures)}%"
        if figures["target_agreement"] is not None
        else f"an accuracy drop of at most {tables.share('max_accuracy_drop')(figures)} points"
    )
    met = "keeps to" if figures["target_met"] else "is the strictest that was tried, and no threshold keeps to"
    return {
        "note": f"The chosen threshold {figures['threshold']:g} {met} {target}, with a confidence of "
        f"{tables.share('confidence')(figures)}%, on {figures['prompts']} validation prompts. The chart shows how "
        "often a proposal of the validation prompts was final, over the probability that the filter gave it.",
        "columns": list(THRESHOLDS),
        "lines": lines,
    }


def _rounds(rounds: Sequence[Line]) -> Line | None:
    """Return the table of the rounds, or None where nothing is trained."""
    if not rounds:
        return None
    return {"columns": list(ROUNDS), "lines": [[cell(line) for cell in ROUNDS.values()] for line in rounds]}


def _lead(run: RunData) -> str:
    """Say in a sentence what the page shows."""
    meta = run.comparison.get("meta")
    if meta:
        return (
            f"{len({row['method'] for row in run.comparison['rows']})} methods on {meta['prompts']} held-out prompts, "
            f"decoded by {meta['model']} on a canvas of {meta['gen_length']} tokens."
        )
    done = [stage for stage in ("record", "train", "calibrate") if stage in run.metrics]
    return f"Stages that are done: {', '.join(done) or 'none'}."


def _facts(run: RunData) -> list[tuple[str, str]]:
    """Return the names and values of the section about the run."""
    meta = run.comparison.get("meta", {})
    described = run.described
    facts: list[tuple[str, Any]] = [("command", f"learn2pd run config={described['name']}")] if described else []
    if described:
        data, decoding = described["data"], described["decode"]
        source = data["path"] if data["source"] in ("jsonl", "hub") else ", ".join(data["tasks"])
        facts += [
            ("model", described["model"]["path"]),
            ("prompts", data["domain"] or (source if data["source"] != "humaneval" else "humaneval")),
            ("train, validation and test prompts", " / ".join(str(data[f"{s}_prompts"]) for s in SPLITS)),
            ("canvas and block", f"{decoding['gen_length']} and {decoding['block_length']} tokens"),
            ("batch", decoding["batch_size"]),
            ("seed", described["seed"]),
        ]
    if meta:
        facts += [
            ("device", f"{meta['device']}, {meta['dtype']}, {meta['threads']} threads"),
            ("model fingerprint", meta["model_fingerprint"]),
            ("bootstrap resamples", meta["bootstrap_samples"]),
        ]
    recorded = run.metrics.get("record", {})
    if recorded:
        facts += [
            ("recorded states", f"{recorded['rows']:,} of {recorded['prompts']:,} prompts"),
            (
                "forwards of a prompt in the recording",
                f"{recorded['reference_forwards_mean']:.1f} for one token a step, "
                f"{recorded['oracle_forwards_mean']:.1f} for the oracle",
            ),
        ]
    seconds = {stage: figures["stage_seconds"] for stage, figures in run.metrics.items() if "stage_seconds" in figures}
    if seconds:
        facts.append(("time", ", ".join(f"{stage} {value:.0f} s" for stage, value in seconds.items())))
    return [(name, str(value)) for name, value in facts]
