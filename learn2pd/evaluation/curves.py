"""Families of settings as curves of accuracy over tokens per forward: areas, the fastest setting within a margin, comparisons in pairs.

The *curve* of a family at x tokens per forward is the best accuracy on the straight lines between two of its settings, one slower and one
faster than x, or of a setting that is faster than x anyway: the upper hull of its settings, which never rises. Nothing is known past its
fastest setting. The *area* is the mean height of the curve from one token a step's tokens per forward to the oracle's (without an oracle:
the fastest setting's of the field), 0 past the family's fastest setting; between 0 and 1, and 1 for all questions right at the oracle's
speed. Accuracy under parallelism (AUP, arXiv 2601.07568) is a relative: it weights the area by a penalty for lost accuracy, has no common
range and leaves out what is more than 5 points below the slowest setting.

Accuracy is agreement with one token a step where nothing judges. Everything, the choice of a setting included, is worked out anew in
every resample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from learn2pd.evaluation.compare import Measured, first_marked
from learn2pd.statistics.bootstrap import Values, better, interval, point

ROUNDING = 1e-9  # an accuracy at the margin itself is within it


@dataclass(frozen=True, eq=False)
class Entry:
    """One line of a table: what it is about, its values, and what else is worth writing down."""

    labels: dict[str, Any]  # of a line that seeds of one recipe share: all but the family
    values: dict[str, Values]
    family: str
    group: str | None
    notes: dict[str, Any] = field(default_factory=dict)

    def written(self) -> dict[str, Any]:
        """As it stands in compare.json: each value with its interval, each difference with the share of resamples in which it is above 0."""
        found: dict[str, Any] = {"family": self.family, "group": self.group} | self.labels | self.notes
        for name, values in self.values.items():
            found |= {name: point(values), f"{name}_interval": interval(values)}
            if name.endswith("difference"):
                found[f"{name}_better"] = better(values)
        return found


@dataclass(frozen=True, eq=False)
class Family:
    """Settings that differ in one option, S of them."""

    settings: list[Measured]
    speed: Values  # [1 + R, S] tokens per forward
    quality: Values  # [1 + R, S] accuracy, or agreement

    @property
    def name(self) -> str:
        return self.settings[0].labels.family

    @property
    def kind(self) -> str:
        return self.settings[0].kind

    @property
    def second_model(self) -> bool:
        return any(setting.second_model for setting in self.settings)

    def labels(self) -> dict[str, Any]:
        first = self.settings[0].labels
        return {"kind": self.kind, "second_model": self.second_model, "stop": first.stop, "task": first.task}


@dataclass(frozen=True, eq=False)
class Field:
    """All families under one stop rule and on one task, and the marks that they are held against."""

    families: list[Family]
    measure: str  # accuracy, or agreement where nothing judges
    plain_speed: Values  # of one token a step
    plain_quality: Values
    oracle_speed: Values | None
    fastest_speed: Values  # of any setting

    @property
    def top_speed(self) -> Values:
        return self.fastest_speed if self.oracle_speed is None else self.oracle_speed


@dataclass(frozen=True, eq=False)
class Within:
    """The fastest setting of a family within the margin; one token a step where it has none."""

    family: Family
    chosen: int | None  # setting, on the whole sample
    met: float  # share of the resamples in which there is one
    speed: Values  # of the setting chosen anew in every resample
    chosen_speed: Values  # of the setting chosen on the whole sample
    chosen_quality: Values


def compare_families(fields: Sequence[Sequence[Measured]], margin: float) -> dict[str, Any]:
    """What compare.json says of families: `curves`, `fastest`, `pairs`, and `seeds`, their means over the seeds of a recipe.

    Fields without a one-token-a-step decode (policy `fixed`) are left out: it is what the margin and the range refer to.

    Args:
        margin: accuracy that may be lost against one token a step, share of the prompts.
    """
    tables: dict[str, list[Entry]] = {"settings": [], "curves": [], "fastest": [], "pairs": []}
    for measured in fields:
        found = build_field(measured)
        if found is None:
            continue
        within = [fastest_within(family, found, margin) for family in found.families]
        areas = {family.name: area(family, found) for family in found.families if len(family.settings) > 1}
        tables["settings"] += [
            _setting(family, number) for family in found.families for number in range(len(family.settings))
        ]
        tables["curves"] += [
            _curve(family, found, areas[family.name]) for family in found.families if family.name in areas
        ]
        tables["fastest"] += [_fastest(entry, within, found) for entry in within]
        tables["pairs"] += [
            _pair(entry, rival, areas)
            for entry in within if entry.family.kind == "learned"
            for rival in found.families if rival.kind == "training-free"
        ]  # fmt: skip
    written = {name: [entry.written() for entry in tables[name]] for name in ("curves", "fastest", "pairs")}
    return written | {"seeds": {name: over_seeds(entries) for name, entries in tables.items()}}


def build_field(measured: Sequence[Measured]) -> Field | None:
    """The families of a field, None where it has no one-token-a-step decode."""
    plain, oracle = first_marked("reference", measured), first_marked("oracle", measured)
    if plain is None:
        return None
    judged = all(entry.accuracy is not None for entry in measured)

    def quality(entry: Measured) -> Values:
        values = entry.accuracy if judged else entry.agreement
        assert values is not None, "agreement is there wherever one token a step is"
        return values

    groups: dict[str, list[Measured]] = {}
    for entry in measured:
        groups.setdefault(entry.labels.family, []).append(entry)
    families = [
        Family(
            settings, np.stack([s.tokens_per_forward for s in settings], 1), np.stack([quality(s) for s in settings], 1)
        )
        for settings in groups.values()
    ]
    return Field(
        families,
        "accuracy" if judged else "agreement",
        plain.tokens_per_forward,
        quality(plain),
        oracle.tokens_per_forward if oracle else None,
        np.max([family.speed.max(1) for family in families], axis=0),
    )


def curve(speed: Values, quality: Values, at: Values) -> Values:
    """Heights of curves, row by row.

    Args:
        speed, quality: [B, S], the settings.
        at: [B, Q] tokens per forward.

    Returns:
        [B, Q], -inf past the fastest setting.
    """
    order = speed.argsort(1)
    x, y = np.take_along_axis(speed, order, 1), np.take_along_axis(quality, order, 1)
    height = np.full(at.shape, -np.inf)
    for faster in range(x.shape[1]):
        right_x, right_y = x[:, faster, None], y[:, faster, None]
        height = np.where(at <= right_x, np.maximum(height, right_y), height)
        for slower in range(faster):
            left_x, left_y = x[:, slower, None], y[:, slower, None]
            between = (left_x <= at) & (at <= right_x) & (left_x < right_x)
            line = left_y + (right_y - left_y) * (at - left_x) / np.where(between, right_x - left_x, 1)
            height = np.where(between, np.maximum(height, line), height)
    return height


def area(family: Family, found: Field) -> Values:
    """[1 + R] mean height of the family's curve over the range of the field, 0 past its fastest setting; exact."""
    low, high = found.plain_speed[:, None], found.top_speed[:, None]
    corners = np.concatenate((low, np.clip(np.sort(family.speed, 1), low, np.maximum(low, high))), axis=1)
    height = curve(family.speed, family.quality, corners)
    height = np.where(np.isfinite(height), height, 0)
    with np.errstate(divide="ignore", invalid="ignore"):  # the oracle may be no faster than one token a step
        values: Values = (np.diff(corners, axis=1) * (height[:, 1:] + height[:, :-1]) / 2).sum(1) / (high - low)[:, 0]
    return values


def fastest_within(family: Family, found: Field, margin: float) -> Within:
    """The fastest setting whose accuracy is at most `margin` under one token a step's."""
    allowed = family.quality >= found.plain_quality[:, None] - margin - ROUNDING
    speed = np.where(allowed, family.speed, -np.inf)
    best = speed.max(1)
    some = np.isfinite(best)
    chosen = int(speed[0].argmax()) if some[0] else None
    return Within(
        family,
        chosen,
        met=float(some[1:].mean()),
        speed=np.where(some, best, found.plain_speed),
        chosen_speed=found.plain_speed if chosen is None else family.speed[:, chosen],
        chosen_quality=found.plain_quality if chosen is None else family.quality[:, chosen],
    )


def _entry(family: Family, values: dict[str, Values], notes: dict[str, Any], **labels: Any) -> Entry:
    return Entry(family.labels() | labels, values, family.name, family.settings[0].labels.group, notes)


def _setting(family: Family, number: int) -> Entry:
    setting = family.settings[number]
    values = {
        "accuracy": setting.accuracy,
        "agreement": setting.agreement,
        "tokens_per_forward": setting.tokens_per_forward,
    }
    kept = {name: value for name, value in values.items() if value is not None}
    return _entry(family, kept, {}, setting=setting.labels.setting)


def _curve(family: Family, found: Field, values: Values) -> Entry:
    height = curve(family.speed[:1], family.quality[:1], family.speed[:1])[0]
    points: list[dict[str, Any]] = [
        {
            "method": setting.labels.method,
            "setting": setting.labels.setting,
            "tokens_per_forward": float(setting.tokens_per_forward[0]),
            "accuracy": None if setting.accuracy is None else point(setting.accuracy),
            "agreement": None if setting.agreement is None else point(setting.agreement),
            "on_hull": bool(family.quality[0, number] >= height[number] - ROUNDING),
        }
        for number, setting in enumerate(family.settings)
    ]
    shown = {"measure": found.measure, "range": [float(found.plain_speed[0]), float(found.top_speed[0])]}
    return _entry(
        family, {"area": values}, shown | {"points": sorted(points, key=lambda each: each["tokens_per_forward"])}
    )


def _fastest(entry: Within, within: Sequence[Within], found: Field) -> Entry:
    """Ratios are to the best training-free family under the same condition: of those with one model, and of all."""
    family = entry.family
    values = {
        "tokens_per_forward": entry.speed,
        "accuracy": entry.chosen_quality,
        "accuracy_difference": entry.chosen_quality - found.plain_quality,
    }
    notes: dict[str, Any] = {"measure": found.measure, "method": None, "setting": None, "met": entry.met}
    if entry.chosen is not None:
        labels = family.settings[entry.chosen].labels
        notes |= {"method": labels.method, "setting": labels.setting}
    rivals = [rival for rival in within if rival.family.kind == "training-free"]
    with np.errstate(divide="ignore", invalid="ignore"):  # answers may all be empty
        for suffix, chosen in (
            ("", [rival for rival in rivals if not rival.family.second_model]),
            ("_second_model", rivals),
        ):
            speeds = np.stack([rival.speed for rival in chosen], 1)  # one token a step is always among them
            notes[f"rival{suffix}"] = chosen[int(speeds[0].argmax())].family.name
            values[f"ratio{suffix}"] = entry.speed / speeds.max(1)
        if found.oracle_speed is not None:
            values["oracle_share"] = entry.speed / found.oracle_speed
    return _entry(family, values, notes)


def _pair(entry: Within, rival: Family, areas: dict[str, Values]) -> Entry:
    """A learned family beside a rival at equal tokens per forward: at its setting within the margin, at all of them, and in area.

    Where the rival is slower than that even at its fastest, its fastest setting's accuracy is taken, in its favour.
    """
    family = entry.family
    at = np.column_stack((entry.chosen_speed, family.speed))  # [1 + R, 1 + S]
    difference = np.column_stack((entry.chosen_quality, family.quality)) - curve(
        rival.speed, rival.quality, np.minimum(at, rival.speed.max(1)[:, None])
    )
    points = [
        {
            "method": setting.labels.method,
            "tokens_per_forward": float(family.speed[0, number]),
            "difference": point(difference[:, number + 1]),
            "difference_interval": interval(difference[:, number + 1]),
            "better": better(difference[:, number + 1]),
            "past_rival": bool(family.speed[0, number] > rival.speed[0].max()),
        }
        for number, setting in enumerate(family.settings)
    ]
    values = {"difference": difference[:, 0]}
    if family.name in areas and rival.name in areas:
        values["area_difference"] = areas[family.name] - areas[rival.name]
    notes = {
        "method": None if entry.chosen is None else family.settings[entry.chosen].labels.method,
        "tokens_per_forward": float(at[0, 0]),
        "past_rival": bool(at[0, 0] > rival.speed[0].max()),
        "points": points,
    }
    return _entry(family, values, notes, rival=rival.name, rival_second_model=rival.second_model)


def over_seeds(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Means over the families of a group, with the interval over prompts and the spread (least and largest) over the seeds."""
    groups: dict[tuple[Any, ...], list[Entry]] = {}
    for entry in entries:
        if entry.group is not None:
            groups.setdefault((entry.group, *entry.labels.values()), []).append(entry)
    found = []
    for members in groups.values():
        line: dict[str, Any] = {"group": members[0].group} | members[0].labels | {"seeds": len(members)}
        for name in members[0].values:
            each = [member.values[name] for member in members if name in member.values]
            mean = np.mean(each, axis=0)
            line |= {name: point(mean), f"{name}_interval": interval(mean)}
            points = [float(values[0]) for values in each]
            line[f"{name}_spread"] = [min(points), max(points)] if np.isfinite(points).all() else None
            if name.endswith("difference"):
                line[f"{name}_better"] = better(mean)
        found.append(line)
    return found
