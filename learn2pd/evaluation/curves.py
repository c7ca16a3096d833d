"""Families of settings as curves of accuracy over tokens per forward.

The comparisons are areas under the curves, the fastest setting within a margin, and differences between pairs of
families.

The *curve* of a family is the upper hull of its settings. Its height at x tokens per forward is the best accuracy among
two kinds of points: the points at x on straight lines between two settings, one of them slower and one faster than x,
and the accuracies of settings that are at least as fast as x. The curve therefore never rises with x. It has no height
past the family's fastest setting, since nothing was measured there.

The *area* of a family is the mean height of its curve, from the tokens per forward of one token a step to those of the
oracle (without an oracle: to those of the field's fastest setting). Past the family's fastest setting the height counts
as 0. The area lies between 0 and 1, and is 1 if all answers are right at the oracle's speed. Accuracy under parallelism
(AUP, arXiv 2601.07568) is a related measure: it weights the area by a penalty for lost accuracy, has no common range,
and leaves out settings that are more than 5 points below the slowest one.

Where no checker judges the answers, agreement with one token a step takes the place of accuracy. Everything, including
the selection of a setting, is computed anew in every resample.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from learn2pd.evaluation.compare import MethodStatistics, first_marked
from learn2pd.statistics.bootstrap import Values, better, interval, point

ROUNDING = 1e-9  # allowed error of an accuracy, so that one exactly at the margin is within it


@dataclass(frozen=True, eq=False)
class Entry:
    """One line of a table: its labels, its values with their resamples, and further notes."""

    labels: dict[str, Any]  # labels that the seeds of one recipe share: all but the name of the family
    values: dict[str, Values]
    family: str
    group: str | None
    notes: dict[str, Any] = dataclasses.field(default_factory=dict)

    def written(self) -> dict[str, Any]:
        """Return the line as compare.json holds it.

        Each value comes with its interval. A difference also comes with the share of the resamples in which it is above
        0.
        """
        line: dict[str, Any] = {"family": self.family, "group": self.group} | self.labels | self.notes
        for name, values in self.values.items():
            line |= {name: point(values), f"{name}_interval": interval(values)}
            if name.endswith("difference"):
                line[f"{name}_better"] = better(values)
        return line


@dataclass(frozen=True, eq=False)
class Family:
    """Settings of one method that differ in the value of one option, S of them."""

    settings: list[MethodStatistics]
    speed: Values  # [1 + R, S] tokens per forward
    quality: Values  # [1 + R, S] accuracy, or agreement where no checker judges

    @property
    def name(self) -> str:
        """The name of the family."""
        return self.settings[0].labels.family

    @property
    def kind(self) -> str:
        """The kind of the family's methods: `oracle`, `learned` or `training-free`."""
        return self.settings[0].kind

    @property
    def second_model(self) -> bool:
        """Whether any setting also ran forwards of another model."""
        return any(setting.second_model for setting in self.settings)

    def labels(self) -> dict[str, Any]:
        """Return the labels that every table shows for this family."""
        first = self.settings[0].labels
        return {"kind": self.kind, "second_model": self.second_model, "stop": first.stop, "task": first.task}


@dataclass(frozen=True, eq=False)
class Field:
    """All families under one stop rule and on one task, and the values that they are compared with."""

    families: list[Family]
    measure: str  # `accuracy`, or `agreement` where no checker judges
    plain_speed: Values  # tokens per forward of one token a step
    plain_quality: Values  # accuracy (or agreement) of one token a step
    oracle_speed: Values | None  # tokens per forward of the oracle
    fastest_speed: Values  # tokens per forward of the fastest setting of any family

    @property
    def top_speed(self) -> Values:
        """The upper end of the range of an area: the oracle's speed, or without an oracle the speed of the fastest
        setting.
        """
        return self.fastest_speed if self.oracle_speed is None else self.oracle_speed


@dataclass(frozen=True, eq=False)
class Within:
    """The fastest setting of a family within the margin, or one token a step where the family has no such setting."""

    family: Family
    setting: int | None  # number of the setting that is selected on the whole sample
    met: float  # share of the resamples in which the family has such a setting
    speed: Values  # tokens per forward of the setting that is selected anew in every resample
    setting_speed: Values  # tokens per forward of the setting that is selected on the whole sample
    setting_quality: Values  # accuracy (or agreement) of the setting that is selected on the whole sample


def compare_families(fields: Sequence[Sequence[MethodStatistics]], margin: float) -> dict[str, Any]:
    """Compare the families of all fields.

    A field without a decode of one token a step (policy `fixed`) is left out, because the margin and the range of the
    area refer to that decode.

    Args:
        fields: the fields that `measure` returns.
        margin: accuracy that may be lost against one token a step, as a share of the prompts.

    Returns:
        The entries of compare.json about families: `curves`, `fastest`, `equal`, `pairs`, and `seeds`, which holds the
        means over the seeds of a recipe.
    """
    tables: dict[str, list[Entry]] = {"settings": [], "curves": [], "fastest": [], "equal": [], "pairs": []}
    for methods in fields:
        # a forward of an autoregressive model is no forward of the dLLM
        compared = build_field([entry for entry in methods if not entry.labels.model])
        if compared is None:
            continue
        within = [within_margin(family, compared, margin) for family in compared.families]
        areas = {family.name: area(family, compared) for family in compared.families if len(family.settings) > 1}
        tables["settings"] += [
            _setting(family, number) for family in compared.families for number in range(len(family.settings))
        ]
        tables["curves"] += [
            _curve(family, compared, areas[family.name]) for family in compared.families if family.name in areas
        ]
        tables["fastest"] += [_fastest(entry, within, compared) for entry in within]
        tables["equal"] += [
            _equal(family, number, compared)
            for family in compared.families
            if family.kind == "learned"
            for number in range(len(family.settings))
        ]
        learned = [entry for entry in within if entry.family.kind == "learned"]
        rivals = [family for family in compared.families if family.kind == "training-free"]
        tables["pairs"] += [_pair(entry, rival, areas) for entry in learned for rival in rivals]
    written = {name: [entry.written() for entry in tables[name]] for name in ("curves", "fastest", "equal", "pairs")}
    return written | {"seeds": {name: over_seeds(entries) for name, entries in tables.items()}}


def build_field(methods: Sequence[MethodStatistics]) -> Field | None:
    """Build the families of a field.

    Args:
        methods: the statistics of the field's methods.

    Returns:
        The field, or None where it has no decode of one token a step.
    """
    plain = first_marked("reference", methods)
    oracle = first_marked("oracle", methods)
    if plain is None:
        return None
    judged = all(entry.accuracy is not None for entry in methods)

    def quality(entry: MethodStatistics) -> Values:
        values = entry.accuracy if judged else entry.agreement
        assert values is not None, "a field with one token a step has the agreement of every method"
        return values

    groups: dict[str, list[MethodStatistics]] = {}
    for entry in methods:
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
    """Compute the heights of curves, row by row.

    Args:
        speed: [B, S] tokens per forward of the settings.
        quality: [B, S] accuracy of the settings.
        at: [B, Q] tokens per forward at which the heights are computed.

    Returns:
        [B, Q] heights, -inf past the fastest setting.
    """
    order = speed.argsort(1)
    x = np.take_along_axis(speed, order, 1)
    y = np.take_along_axis(quality, order, 1)
    height = np.full(at.shape, -np.inf)
    for faster in range(x.shape[1]):
        right_x = x[:, faster, None]
        right_y = y[:, faster, None]
        height = np.where(at <= right_x, np.maximum(height, right_y), height)
        for slower in range(faster):
            left_x = x[:, slower, None]
            left_y = y[:, slower, None]
            between = (left_x <= at) & (at <= right_x) & (left_x < right_x)
            line = left_y + (right_y - left_y) * (at - left_x) / np.where(between, right_x - left_x, 1)
            height = np.where(between, np.maximum(height, line), height)
    return height


def speed_at(speed: Values, quality: Values, wanted: Values) -> Values:
    """Compute how fast curves still have a height, row by row.

    Args:
        speed: [B, S] tokens per forward of the settings.
        quality: [B, S] accuracy of the settings.
        wanted: [B] the height.

    Returns:
        [B] the most tokens per forward at which the curve is at least that high, -inf where it is nowhere.
    """
    order = speed.argsort(1)
    x = np.take_along_axis(speed, order, 1)
    y = np.take_along_axis(quality, order, 1)
    enough = y >= wanted[:, None] - ROUNDING
    best = np.where(enough, x, -np.inf).max(1)
    for faster in range(x.shape[1]):
        for slower in range(faster):
            falls = enough[:, slower] & ~enough[:, faster]
            height = np.where(falls, y[:, slower] - y[:, faster], 1)
            along = (y[:, slower] - wanted) / height
            crossing = x[:, slower] + np.clip(along, 0, 1) * (x[:, faster] - x[:, slower])
            best = np.where(falls, np.maximum(best, crossing), best)
    return best


def area(family: Family, field: Field) -> Values:
    """Compute the area under a family's curve.

    The value is exact: the curve is integrated between its corners, and its height counts as 0 past the family's
    fastest setting.

    Args:
        family: the family.
        field: the field of the family, which defines the range.

    Returns:
        [1 + R] mean heights.
    """
    low = field.plain_speed[:, None]
    high = field.top_speed[:, None]
    corners = np.concatenate((low, np.clip(np.sort(family.speed, 1), low, np.maximum(low, high))), axis=1)
    height = curve(family.speed, family.quality, corners)
    height = np.where(np.isfinite(height), height, 0)
    with np.errstate(divide="ignore", invalid="ignore"):  # the oracle may be no faster than one token a step
        trapezoids = np.diff(corners, axis=1) * (height[:, 1:] + height[:, :-1]) / 2
        values: Values = trapezoids.sum(1) / (high - low)[:, 0]
    return values


def within_margin(family: Family, field: Field, margin: float) -> Within:
    """Find the fastest setting whose accuracy is at most `margin` below that of one token a step.

    Args:
        family: the family.
        field: the field of the family.
        margin: accuracy that may be lost, as a share of the prompts.

    Returns:
        The setting, found on the whole sample and found anew in every resample.
    """
    allowed = family.quality >= field.plain_quality[:, None] - margin - ROUNDING
    speed = np.where(allowed, family.speed, -np.inf)
    best = speed.max(1)
    met = np.isfinite(best)
    setting = int(speed[0].argmax()) if met[0] else None
    return Within(
        family,
        setting,
        met=float(met[1:].mean()),
        speed=np.where(met, best, field.plain_speed),
        setting_speed=field.plain_speed if setting is None else family.speed[:, setting],
        setting_quality=field.plain_quality if setting is None else family.quality[:, setting],
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


def _curve(family: Family, field: Field, values: Values) -> Entry:
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
    shown = {"measure": field.measure, "range": [float(field.plain_speed[0]), float(field.top_speed[0])]}
    return _entry(
        family, {"area": values}, shown | {"points": sorted(points, key=lambda each: each["tokens_per_forward"])}
    )


def _fastest(entry: Within, within: Sequence[Within], field: Field) -> Entry:
    """Compare the fastest setting within the margin with the best training-free family under the same condition.

    One ratio compares it with the best of the families that use one model, the other with the best of all training-free
    families.
    """
    family = entry.family
    values = {
        "tokens_per_forward": entry.speed,
        "accuracy": entry.setting_quality,
        "accuracy_difference": entry.setting_quality - field.plain_quality,
    }
    notes: dict[str, Any] = {"measure": field.measure, "method": None, "setting": None, "met": entry.met}
    if entry.setting is not None:
        labels = family.settings[entry.setting].labels
        notes |= {"method": labels.method, "setting": labels.setting}
    rivals = [rival for rival in within if rival.family.kind == "training-free"]
    with np.errstate(divide="ignore", invalid="ignore"):  # all answers may be empty
        one_model = [rival for rival in rivals if not rival.family.second_model]
        for suffix, candidates in (("", one_model), ("_second_model", rivals)):
            speeds = np.stack([rival.speed for rival in candidates], 1)  # one token a step is always a candidate
            notes[f"rival{suffix}"] = candidates[int(speeds[0].argmax())].family.name
            values[f"ratio{suffix}"] = entry.speed / speeds.max(1)
        if field.oracle_speed is not None:
            values["oracle_share"] = entry.speed / field.oracle_speed
    return _entry(family, values, notes)


def _equal(family: Family, number: int, field: Field) -> Entry:
    """Compare a setting with the training-free families of one model at equal accuracy.

    Every rival's curve begins with one token a step. Where a rival is less accurate than the setting everywhere, its
    most accurate point is taken, which favours the rival.
    """
    accuracy = family.quality[:, number]
    tokens_per_forward = family.speed[:, number]
    rivals = [rival for rival in field.families if rival.kind == "training-free" and not rival.second_model]
    speeds = []
    for rival in rivals:
        speed = np.column_stack((field.plain_speed, rival.speed))
        quality = np.column_stack((field.plain_quality, rival.quality))
        speeds.append(speed_at(speed, quality, np.minimum(accuracy, quality.max(1))))
    with np.errstate(divide="ignore", invalid="ignore"):  # all answers may be empty
        ratios = tokens_per_forward[:, None] / np.stack(speeds, 1)  # one token a step is always a rival
    best = int(ratios[0].argmin())
    values = {
        "accuracy": accuracy,
        "accuracy_difference": accuracy - field.plain_quality,
        "tokens_per_forward": tokens_per_forward,
        "ratio": ratios.min(1),
    }
    baseline = [place for place, rival in enumerate(rivals) if rival.settings[0].labels.mark == "baseline"]
    if baseline:
        values["ratio_baseline"] = ratios[:, baseline[0]]
    notes = {"measure": field.measure, "rival": rivals[best].name}
    return _entry(family, values, notes, setting=family.settings[number].labels.setting)


def _pair(entry: Within, rival: Family, areas: dict[str, Values]) -> Entry:
    """Compare a learned family with a rival at equal tokens per forward.

    The comparison is made at the learned family's setting within the margin, at all of its settings, and in area. Where
    even the rival's fastest setting is slower than the learned setting, the accuracy of the rival's fastest setting is
    taken, which favours the rival.
    """
    family = entry.family
    at = np.column_stack((entry.setting_speed, family.speed))  # [1 + R, 1 + S]
    difference = np.column_stack((entry.setting_quality, family.quality)) - curve(
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
        "method": None if entry.setting is None else family.settings[entry.setting].labels.method,
        "tokens_per_forward": float(at[0, 0]),
        "past_rival": bool(at[0, 0] > rival.speed[0].max()),
        "points": points,
    }
    return _entry(family, values, notes, rival=rival.name, rival_second_model=rival.second_model)


def over_seeds(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Compute means over the families of a group, which differ in the seed of their training only.

    Args:
        entries: the lines of one table.

    Returns:
        A line for each group, with the intervals over prompts and with the spread (the least and the largest value)
        over the seeds.
    """
    groups: dict[tuple[Any, ...], list[Entry]] = {}
    for entry in entries:
        if entry.group is not None:
            groups.setdefault((entry.group, *entry.labels.values()), []).append(entry)
    lines = []
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
        lines.append(line)
    return lines
