import itertools
import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learn2pd.evaluation import plots as report
from learn2pd.evaluation import tables
from learn2pd.evaluation.compare import build_rows, measure
from learn2pd.evaluation.curves import compare_families, curve, speed_at
from learn2pd.statistics.bootstrap import Bootstrap
from tests.evaluation.synthetic import exact, outcome, table_of

PLAIN, ORACLE = exact("vanilla", "fixed", 1, 0.8), exact("oracle", "oracle", 5, 0.8)


def families_of(outcomes, margin=0.005, samples=100):
    """The comparison of the families of these outcomes."""
    return compare_families(measure(outcomes, Bootstrap(samples, 0)), margin)


def line_of(lines, family, **where):
    """The only line of a family that has the given values."""
    (only,) = [
        line for line in lines if line["family"] == family and all(line[key] == value for key, value in where.items())
    ]
    return only


def swept(family, policy, points, **options):
    """Outcomes of a policy at several settings, from pairs of speed and accuracy."""
    return [exact(family, policy, speed, accuracy, setting=str(speed), **options) for speed, accuracy in points]


POINTS = st.lists(st.tuples(st.integers(1, 60), st.integers(0, 100)), min_size=1, max_size=6)


def height(points, at):
    """The height of the hull of some points at the given speeds."""
    x, y = np.array(points, float).T
    return curve(x[None], y[None], np.asarray(at, float)[None])[0]


@given(POINTS, POINTS)
def test_a_curve_never_rises_holds_its_settings_and_gains_by_more_of_them(points, more):
    at = np.arange(1, 62)
    heights, larger = height(points, at), height(points + more, at)
    assert (np.diff(heights[np.isfinite(heights)]) <= 1e-9).all()
    assert all(height(points, [x])[0] >= y - 1e-9 for x, y in points)
    assert (larger >= heights - 1e-9).all()
    assert np.isneginf(heights).tolist() == (at > max(x for x, _ in points)).tolist()
    assert heights.max() <= max(y for _, y in points)


@given(POINTS)
def test_a_curve_is_the_best_straight_line_between_settings(points):
    """The slow, obvious way."""
    for at in range(1, 62):
        best = max((y for x, y in points if x >= at), default=-np.inf)
        for (left, above), (right, below) in itertools.product(points, points):
            if left <= at <= right and left < right:
                best = max(best, above + (below - above) * (at - left) / (right - left))
        assert height(points, [at])[0] == pytest.approx(best)


@given(POINTS, st.integers(0, 100))
def test_the_speed_at_a_height_is_where_the_curve_is_last_that_high(points, wanted):
    """The slow, obvious way: the settings that are high enough, and the crossings of all lines that fall below."""
    high = [x for x, y in points if y >= wanted]
    for (left, above), (right, below) in itertools.product(points, points):
        if left < right and above >= wanted > below:
            high.append(left + (above - wanted) / (above - below) * (right - left))
    x, y = np.array(points, float).T
    speed = speed_at(x[None], y[None], np.array([float(wanted)]))[0]
    assert speed == pytest.approx(max(high, default=-np.inf))


def test_trained_settings_at_equal_accuracy():
    outcomes = [
        exact("vanilla", "fixed", 1, 0.8),
        *swept("rule", "threshold", [(2, 0.8), (3, 0.6)]),
        *swept("other", "factor", [(2.5, 0.7)]),
        *swept("mine", "filter", [(3, 0.9), (5, 0.7), (6, 0.1)]),
    ]
    lines = {line["setting"]: line for line in families_of(outcomes)["equal"]}
    assert {name: (line["ratio_baseline"], line["ratio"], line["rival"]) for name, line in lines.items()} == {
        "3": (1.5, 1.5, "rule"),  # more accurate than the rule everywhere
        "5": (2, 2, "rule"),  # the rule's curve has 0.7 at 2.5
        "6": (2, 2, "rule"),
    }


def test_areas_of_straight_lines():
    line = swept("line", "threshold", [(1, 0.8), (3, 0.6), (5, 0.4)])
    short = swept("short", "factor", [(2, 0.8), (3, 0.8)])
    dominated = swept("dominated", "localleap", [(1, 0.8), (2, 0.3), (5, 0.4)])
    fast = swept("fast", "filter", [(5, 1.0), (9, 0.0)])
    families = families_of([PLAIN, ORACLE, *line, *short, *dominated, *fast])
    assert {entry["family"] for entry in families["curves"]} == {"line", "short", "dominated", "fast"}
    areas = {entry["family"]: entry["area"] for entry in families["curves"]}
    assert areas == pytest.approx({"line": 0.6, "short": 0.8 * 2 / 4, "dominated": 0.6, "fast": 1.0})
    entry = line_of(families["curves"], "line")
    assert entry["range"] == [1, 5]
    assert entry["area_interval"][0] < 0.6 < entry["area_interval"][1]
    assert [point["on_hull"] for point in line_of(families["curves"], "dominated")["points"]] == [True, False, True]


def test_an_area_is_that_of_the_drawn_curve():
    rng = np.random.default_rng(0)
    columns = [
        {"forwards": rng.integers(5, 30, 60), "lengths": rng.integers(10, 40, 60), "correct": rng.random(60) < 0.6}
        for _ in range(6)
    ]
    outcomes = [outcome("filter", "filter", setting=str(place), **column) for place, column in enumerate(columns)]
    fields = measure(
        [exact("vanilla", "fixed", 0.5, 0.9, prompts=60), exact("oracle", "oracle", 4, 0.9, prompts=60), *outcomes],
        Bootstrap(20, 0),
    )
    filters = line_of(compare_families(fields, 0.005)["curves"], "filter")
    at = np.linspace(*filters["range"], 20001)
    drawn = height([(point["tokens_per_forward"], point["accuracy"]) for point in filters["points"]], at)
    assert filters["area"] == pytest.approx(np.where(np.isfinite(drawn), drawn, 0).mean(), abs=1e-3)


def test_the_fastest_setting_within_the_margin():
    rule = swept("rule", "threshold", [(2, 0.8), (2.5, 0.79), (4, 0.6)])
    mine = swept("mine", "filter", [(3, 0.8), (4, 0.79)])
    apd = swept("apd", "apd", [(4, 0.9)], auxiliary=3)
    poor = swept("poor", "factor", [(3, 0.5)])
    fastest = families_of([PLAIN, ORACLE, *rule, *mine, *apd, *poor])["fastest"]
    fastest_mine = line_of(fastest, "mine")
    assert (
        fastest_mine["setting"],
        fastest_mine["tokens_per_forward"],
        fastest_mine["kind"],
        fastest_mine["rival"],
    ) == (
        "3",
        3,
        "learned",
        "rule",
    )
    assert fastest_mine["ratio"] == pytest.approx(3 / 2)
    assert (fastest_mine["rival_second_model"], fastest_mine["ratio_second_model"]) == ("apd", pytest.approx(3 / 4))
    assert fastest_mine["oracle_share"] == pytest.approx(3 / 5)
    assert (fastest_mine["accuracy_difference"], fastest_mine["met"]) == (0, 1)
    assert line_of(fastest, "apd")["second_model"]
    assert line_of(fastest, "oracle")["oracle_share"] == 1
    none = line_of(fastest, "poor")
    assert (none["method"], none["tokens_per_forward"], none["met"]) == (None, 1, 0)


def test_an_accuracy_at_the_margin_is_within_it():
    outcomes = [PLAIN, *swept("rule", "threshold", [(2, 0.79), (3, 0.78)])]
    assert [line_of(families_of(outcomes, margin)["fastest"], "rule")["setting"] for margin in (0.005, 0.01, 0.02)] == [
        None,
        "2",
        "3",
    ]


def test_a_choice_that_hangs_on_few_prompts_has_a_wide_interval():
    skill = np.random.default_rng(0).random(200)
    rows = [outcome("vanilla", "fixed", forwards=[100] * 200, lengths=[100], correct=skill < 0.7)]
    shaky = np.random.default_rng(1).random(200)
    rows.append(
        outcome(
            "rule",
            "threshold",
            setting="a",
            forwards=[100] * 200,
            lengths=[300],
            correct=shaky < np.quantile(shaky, (skill < 0.7).mean()),
        )
    )
    fastest_rule = line_of(families_of(rows, samples=500)["fastest"], "rule")
    assert fastest_rule["tokens_per_forward"] == 3
    assert fastest_rule["tokens_per_forward_interval"] == [1, 3]
    assert 0.2 < fastest_rule["met"] < 0.8


def test_pairs_at_equal_tokens_per_forward():
    rule = swept("rule", "threshold", [(2, 0.8), (4, 0.6)])
    mine = swept("mine", "filter", [(3, 0.8), (4, 0.7), (5, 0.5)])
    pair = line_of(families_of([PLAIN, ORACLE, *rule, *mine])["pairs"], "mine", rival="rule")
    assert (pair["method"], pair["tokens_per_forward"]) == ("mine 3", 3)
    assert pair["difference"] == pytest.approx(0.1)
    assert [point["difference"] for point in pair["points"]] == pytest.approx([0.1, 0.1, -0.1])
    assert [point["past_rival"] for point in pair["points"]] == [False, False, True]
    mine_area, rule_area = (2 * 0.8 + (0.8 + 0.7) / 2 + (0.7 + 0.5) / 2) / 4, (0.8 + 2 * 0.7) / 4
    assert pair["area_difference"] == pytest.approx(mine_area - rule_area)
    assert pair["area_difference_interval"][0] <= pair["area_difference"] <= pair["area_difference_interval"][1]


def test_a_family_that_is_better_everywhere_is_better_in_every_resample():
    """The prompts are compared in pairs, so the interval is far narrower than that of either accuracy.

    The right answers of the rival are a part of ours.
    """
    rule = swept("rule", "threshold", [(2, 0.7), (4, 0.5)])
    mine = swept("mine", "filter", [(2, 0.8), (4, 0.7)])
    pair = line_of(families_of([PLAIN, ORACLE, *rule, *mine], samples=400)["pairs"], "mine", rival="rule")
    assert (pair["difference_better"], pair["area_difference_better"]) == (1, 1)
    assert pair["difference_interval"][0] > 0
    same = line_of(
        families_of([PLAIN, ORACLE, *rule, *swept("mine", "filter", [(2, 0.7), (4, 0.5)])])["pairs"],
        "mine",
        rival="rule",
    )
    assert (same["area_difference"], same["area_difference_better"]) == (0, 0.5)


def test_a_trained_scheduler_is_learned_and_every_rule_is_a_rival():
    outcomes = [
        PLAIN,
        ORACLE,
        exact("blocks", "threshold", 2, 0.8, scheduler="adablock_learned"),
        exact("ada", "threshold", 2, 0.8, scheduler="adablock"),
    ]
    assert [(line["family"], line["rival"]) for line in families_of(outcomes)["pairs"]] == [
        ("blocks", "vanilla"),
        ("blocks", "ada"),
    ]


def test_seeds_of_one_recipe_have_a_mean_and_a_spread():
    seeds = [
        entry
        for seed, (speed, accuracy) in enumerate([(2, 0.8), (3, 0.9), (4, 0.6)])
        for entry in (
            exact(f"seed {seed}", "filter", speed, accuracy, setting="0.9", group="mine"),
            exact(f"seed {seed}", "filter", speed + 1, 0.3, setting="0.5", group="mine"),
        )
    ]
    over_seeds = families_of([PLAIN, ORACLE, exact("rule", "threshold", 2, 0.8), *seeds])["seeds"]
    setting = next(line for line in over_seeds["settings"] if line["setting"] == "0.9")
    assert (setting["group"], setting["seeds"]) == ("mine", 3)
    assert setting["tokens_per_forward"] == pytest.approx(3)
    assert setting["tokens_per_forward_spread"] == [2, 4]
    assert setting["accuracy_spread"] == [0.6, 0.9]
    (fastest,) = over_seeds["fastest"]
    assert fastest["tokens_per_forward"] == pytest.approx(
        (2 + 3 + 1) / 3
    )  # the third seed has no setting within the margin
    assert fastest["ratio_spread"] == [0.5, 1.5]
    assert {line["rival"]: line["seeds"] for line in over_seeds["pairs"]} == {"vanilla": 3, "rule": 3}
    assert (
        over_seeds["curves"][0]["area_spread"][0]
        < over_seeds["curves"][0]["area"]
        < over_seeds["curves"][0]["area_spread"][1]
    )


def test_stop_rules_and_tasks_are_worlds_of_their_own():
    outcomes = [
        entry
        for stop, speed in (("none", 1.5), ("eot", 3))
        for task in ("math", "all")
        for entry in (
            exact("vanilla", "fixed", 1, 0.8, stop=stop, task=task),
            exact("mine", "filter", speed, 0.8, stop=stop, task=task),
        )
    ]
    fastest = families_of(outcomes)["fastest"]
    assert {(line["stop"], line["task"]): line["ratio"] for line in fastest if line["family"] == "mine"} == {
        ("none", "math"): 1.5,
        ("none", "all"): 1.5,
        ("eot", "math"): 3,
        ("eot", "all"): 3,
    }


def test_what_is_missing_is_left_out():
    """Each figure that needs a missing part is left out.

    Without a decode of one token a step no reference is known, and without an oracle no share of it. Where nothing is
    judged, agreement takes the place of accuracy.
    """
    assert families_of([exact("rule", "threshold", 2, 0.8)])["fastest"] == []
    outcomes = [exact("vanilla", "fixed", 1, 0), *swept("rule", "threshold", [(2, 0), (3, 0)])]
    for entry in outcomes:
        entry.correct.fill(np.nan)
    families = families_of(outcomes)
    assert (line_of(families["curves"], "rule")["measure"], line_of(families["curves"], "rule")["range"]) == (
        "agreement",
        [1, 3],
    )
    fastest_rule = line_of(families["fastest"], "rule")
    assert (fastest_rule["setting"], fastest_rule["accuracy"], "oracle_share" in fastest_rule) == ("3", 1, False)


@pytest.fixture(scope="module")
def comparison():
    outcomes = [
        entry
        for stop, task in itertools.product(("none", "eot"), ("math", "json", "all"))
        for entry in (
            exact("$$ vanilla", "fixed", 1, 0.8, stop=stop, task=task),
            exact("oracle", "oracle", 5, 0.8, stop=stop, task=task),
            *swept("rule_$x", "threshold", [(2, 0.8), (3, 0.5)], stop=stop, task=task),
            *swept("seed 0", "filter", [(2, 0.8), (4, 0.7)], group="mine", stop=stop, task=task),
            *swept("seed 1", "filter", [(2, 0.8), (4, 0.6)], group="mine", stop=stop, task=task),
            exact("poor", "factor", 3, 0.4, stop=stop, task=task, auxiliary=1),
        )
    ]
    fields = measure(outcomes, Bootstrap(30, 0))
    return {"meta": META, "rows": build_rows(fields)} | compare_families(fields, 0.005)


META = {
    "model": "m",
    "prompts": 100,
    "seed": 0,
    "gen_length": 4,
    "block_length": 4,
    "batch_size": 2,
    "device": "cpu",
    "dtype": "float32",
    "bootstrap_samples": 30,
    "accuracy_margin": 0.005,
}


def test_every_line_of_the_comparison_is_in_its_table(comparison):
    json.loads(json.dumps(comparison, allow_nan=False))
    text = tables.markdown(comparison)
    sections = {section.split("\n")[0]: section.count("\n|") - 2 for section in text.split("## ")}
    assert sections["Fastest setting within 0.5 points of one token a step"] == len(comparison["fastest"])
    assert sections["Area under the curve"] == len(comparison["curves"])
    assert sections["Trained against training-free families at equal tokens per forward"] == len(comparison["pairs"])
    seeds = [line for lines in comparison["seeds"].values() for line in lines]
    assert sum(lines for name, lines in sections.items() if name.startswith("Seeds: ")) == len(seeds)
    assert "json" not in tables.summary(comparison)
    for line in text.splitlines():
        assert not line.startswith("|") or line.endswith("|")


@given(st.lists(st.text("ab|\\ \n\r\u2028") | st.sampled_from(["a|b", "a\\|b", "\\", "|"]), min_size=1, max_size=3))
def test_a_row_has_a_cell_for_each_column_whatever_the_methods_are_called(names):
    rows = build_rows(measure([exact(f"{name}x", "fixed", 1, 0.8) for name in dict.fromkeys(names)], Bootstrap(2, 0)))
    heading, _, *lines = table_of("methods-table", rows=rows).split("\n")
    cells = [re.findall(r"(?:\\.|[^|\\])+", line) for line in (heading, *lines)]
    assert {len(row) for row in cells} == {len(tables.METHODS)}
    shown = [re.sub(r"\\(.)", r"\1", row[1])[1:-1] for row in cells[1:]]
    assert shown == [" ".join(row["method"].splitlines()) for row in rows]


def test_plots_are_drawn(comparison, tmp_path):
    report.plot_tradeoff(comparison, tmp_path / "stops.png", 0.005)
    report.plot_tradeoff(comparison, tmp_path / "tasks.png", 0.005, by_task=True)
    report.plot_fastest(comparison, tmp_path / "fastest.png", 0.005)
    bare = {"rows": [row for row in comparison["rows"] if row["policy"] == "factor"], "curves": []}
    report.plot_tradeoff(bare, tmp_path / "bare.png", 0.005)
    for name in ("stops", "tasks", "fastest", "bare"):
        assert (tmp_path / f"{name}.png").stat().st_size > 0
