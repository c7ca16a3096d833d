"""The report page: what it holds, what it must not hold, and what a reader does with it in a browser."""

import json
import re
import shutil

import pytest
import torch

from learn2pd import (
    FixedPolicy,
    Method,
    OraclePolicy,
    Sampling,
    ThresholdPolicy,
    UserError,
    WinoPolicy,
    decode,
)
from learn2pd.cli import main as cli
from learn2pd.cli.stages.reporting import write_report
from learn2pd.data.prompts import Prompt
from learn2pd.evaluation.page import LIMIT_BYTES, RunData, page
from learn2pd.evaluation.replay import ReplayRecorder, replay
from learn2pd.evaluation.tables import tables_of
from learn2pd.schedulers.blocks import BlocksScheduler
from tests.evaluation.pages import HOSTILE, comparison, metrics, replays, run_of, whole_run

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def data_of(html):
    """The data that the scripts of a page read."""
    return json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', html, re.S).group(1))


@pytest.fixture(scope="module")
def html():
    return page(whole_run())


def test_the_page_has_every_section_and_loads_nothing(html):
    for anchor in ("curve", "methods", "replay", "reliability", "rounds", "run"):
        assert f'id="{anchor}"' in html
        assert f'href="#{anchor}"' in html
    assert not re.findall(r'(?:src|href)="(?!#|data:,)', html)
    assert not re.findall(r"@import|url\(|fetch\(|XMLHttpRequest|import\(", html)
    assert len(html.encode()) < LIMIT_BYTES
    assert [row["method"] for row in data_of(html)["rows"]] == [row["method"] for row in comparison()["rows"]]


def test_the_page_has_every_table_of_the_markdown(html):
    titles = [table.title for table in tables_of(comparison())]
    assert "Trained settings at equal accuracy" in titles
    assert re.findall("<summary>(.*?)</summary>", html)[: len(titles)] == titles


@pytest.mark.parametrize("field", ["title", "prompt", "method"])
def test_a_text_of_the_user_stays_text(field):
    compared, shown, title = comparison(), replays(), "tiny_filter"
    if field == "title":
        title = HOSTILE
    elif field == "prompt":
        shown = replays(HOSTILE)
    else:
        for row in compared["rows"]:
            row["method"] = HOSTILE
    html = page(whole_run(comparison=compared, replays=shown, title=title))
    assert HOSTILE not in html
    assert html.count("<script") == 2


def test_half_of_a_surrogate_pair_is_written_as_a_mark():
    assert "?" in data_of(page(whole_run(replays=replays("\ud800"))))["replays"][0]["prompt"]


@pytest.mark.parametrize(
    ("changes", "gone"),
    [
        ({"comparison": {}}, ("curve", "methods")),
        ({"replays": ()}, ("replay",)),
        ({"metrics": {}}, ("reliability", "rounds")),
        ({"metrics": {"record": metrics()["record"]}, "comparison": {}, "replays": ()}, ("curve", "replay", "rounds")),
    ],
)
def test_what_a_run_has_not_made_is_left_out_of_the_page(changes, gone):
    html = page(whole_run(**changes, missing=["The stage train is not finished."]))
    assert "The stage train is not finished." in html
    for anchor in gone:
        assert f'id="{anchor}"' not in html
        assert f'href="#{anchor}"' not in html


def test_a_page_of_nothing_is_a_page():
    assert "Stages that are done: none." in page(RunData("x", "0"))


def test_a_page_that_would_be_too_large_leaves_out_replays_and_then_single_tasks(monkeypatch):
    long = run_of("slow", replays()[0]["runs"][0]["steps"] * 2000, ["x"] * 7)
    shown = [*replays(), {"task": "json", "prompt": "p", "gen_length": 8, "runs": [long, long], "pair": [0, 1]}]
    html = page(whole_run(replays=shown))
    assert len(html.encode()) <= LIMIT_BYTES
    assert [entry["task"] for entry in data_of(html)["replays"]] == ["math"]
    assert "Replays of json are left out" in html
    monkeypatch.setattr("learn2pd.evaluation.page.LIMIT_BYTES", len(page(whole_run(replays=()))) - 1)
    crowded = data_of(page(whole_run()))
    assert crowded["replays"] == []
    assert {row["task"] for row in crowded["rows"]} == {"all"}


# ---- the replay


def test_a_replay_ends_in_the_answer_of_the_decode(tiny_model):
    prompt = Prompt(id="one", text="What is 3 plus 4?", split="test")
    blank = torch.zeros(1, 32, dtype=torch.long)
    policies = {
        "one": FixedPolicy(),
        "bold": ThresholdPolicy(0.05),
        "wino": WinoPolicy(),
        "oracle": OraclePolicy(blank),
    }
    blocks = BlocksScheduler(16)
    methods = {name: Method(policy, blocks) for name, policy in policies.items()}
    kept = replay(tiny_model, prompt, methods, gen_length=32, sampling=Sampling(), seed=0, given=None)
    assert [run["method"] for run in kept["runs"]] == list(policies)
    for run in kept["runs"]:
        canvas = {}
        for step in run["steps"]:
            for place in step.get("revoked", ()):
                del canvas[place]
            canvas |= dict(step["commit"])
        assert len(run["steps"]) == run["forwards"]
        assert sum(len(step.get("revoked", ())) for step in run["steps"]) == run["revoked"]
        if run["method"] != "oracle":
            result = decode(tiny_model, [prompt.text], methods[run["method"]], gen_length=32)
            written = {place: run["texts"][token] for place, token in canvas.items() if place < run["tokens"]}
            expected = [tiny_model.tokenizer.decode([token]) for token in result.tokens[0, : run["tokens"]].tolist()]
            assert written == dict(enumerate(expected))
    json.dumps(kept)


def test_a_replay_shows_what_was_given(tiny_model):
    recorder = ReplayRecorder(tiny_model)
    decode(tiny_model, [[5, 6]], policy=FixedPolicy(), gen_length=8, given=[["a", None]], observer=recorder)
    assert [place for place, _ in recorder.given] == [0]


# ---- files


def folder_of(path, **files):
    path.mkdir(exist_ok=True)
    for name, value in files.items():
        (path / f"{name}.json").write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def test_the_command_makes_the_page_again_from_the_files(tmp_path, capsys):
    run = whole_run()
    folder = folder_of(
        tmp_path / "run",
        run=run.described,
        metrics=run.metrics,
        compare=run.comparison,
        replays={"stage": "compare", "replays": run.replays},
    )
    assert cli.guarded(lambda: cli.run_command("report", [f"output_dir={folder}"])) == 0
    assert capsys.readouterr().out.strip() == str(folder / "report.html")
    assert "What is missing" not in (folder / "report.html").read_text()


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({}, "The stage train is not finished"),
        ({"metrics": {}}, "0 decoded outcomes are kept"),
        ({"compare": '{"meta": {'}, "compare.json is damaged"),
        ({"metrics": metrics()}, "There is no replay"),
    ],
)
def test_the_page_of_an_interrupted_run_says_what_is_missing(files, told, tmp_path):
    run = whole_run()
    folder = folder_of(tmp_path, **({"run": run.described, "metrics": {"record": run.metrics["record"]}} | files))
    html = write_report(folder).read_text()
    assert "What is missing" in html
    assert told in html


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({}, "does not exist"),
        ({"run": "{"}, "is damaged"),
        ({"run": {"name": "x"}, "metrics": {"train": {"rounds": [{"wrong": 1}]}}}, "of another version"),
        ({"run": {"name": "x"}, "compare": {"rows": [{"method": "x"}]}}, "of another version"),
        ({"run": {"name": "x"}, "metrics": "[]"}, "damaged"),
    ],
)
def test_a_folder_without_a_readable_run_is_one_line(files, told, tmp_path):
    with pytest.raises(UserError, match=told):
        write_report(folder_of(tmp_path, **files))


def damaged_metrics(**changes):
    figures = metrics()
    figures["calibrate"]["filter"] |= changes
    return figures


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("run.json", {}),
        ("run.json", {"name": "x"}),
        ("metrics.json", damaged_metrics(threshold="abc")),
        ("metrics.json", damaged_metrics(curve=[{}])),
        ("metrics.json", {"train": {"rounds": 5}}),
        ("compare.json", {"rows": [{}]}),
        ("compare.json", {"rows": 5}),
        *(("replays.json", {"replays": wrong}) for wrong in (5, [{}], [5], "abc")),
    ],
    ids=str,
)
def test_the_damaged_file_itself_is_named(file, content, tmp_path):
    run = whole_run()
    whole = {
        "run": run.described,
        "metrics": run.metrics,
        "compare": run.comparison,
        "replays": {"replays": run.replays},
    }
    folder = folder_of(tmp_path, **(whole | {file.removesuffix(".json"): content}))
    with pytest.raises(UserError, match="is damaged") as caught:
        write_report(folder)
    assert str(caught.value).startswith(str(folder / file))
    assert "\n" not in str(caught.value)


def test_a_page_that_cannot_be_written_is_one_line(tmp_path):
    folder = folder_of(tmp_path, run=whole_run().described)
    (folder / "report.html").mkdir()
    with pytest.raises(UserError, match=r"report\.html: cannot be written"):
        write_report(folder)


# ---- in a browser


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(params=["light", "dark"])
def tab(browser, html, tmp_path, request):
    """The page in a tab. At the end, nothing may have failed and nothing may have been asked for."""
    path = tmp_path / "report.html"
    path.write_text(html)
    opened = browser.new_page(color_scheme=request.param)
    failures, requests = [], []
    opened.on("pageerror", lambda error: failures.append(str(error)))
    opened.on("console", lambda message: failures.append(message.text) if message.type == "error" else None)
    opened.on("request", lambda asked: requests.append(asked.url))
    opened.goto(path.as_uri())
    yield opened
    assert failures == []
    assert [url for url in requests if url != path.as_uri() and not url.startswith("data:")] == []
    opened.close()


def test_a_reader_sorts_hovers_steps_and_uses_the_keyboard(tab):
    heading = tab.get_by_role("button", name="tokens/forward").first
    speeds = "#methods-table tbody tr:not([hidden]) td:nth-child(8)"
    heading.click()
    falling = [float(text.split()[0]) for text in tab.locator(speeds).all_inner_texts()]
    assert falling == sorted(falling, reverse=True)
    heading.press("Enter")
    assert [float(text.split()[0]) for text in tab.locator(speeds).all_inner_texts()] == sorted(falling)

    tab.locator('circle[data-method="filter 0.95"]').hover()
    assert "filter 0.95" in tab.inner_text("#tip")
    assert tab.locator("#methods-table tr.on td.name").inner_text() == "filter 0.95"
    tab.focus("#chart")
    tab.keyboard.press("Escape")
    tab.keyboard.press("ArrowRight")
    assert "vanilla" in tab.inner_text("#tip")
    tab.keyboard.press("Tab")
    assert tab.locator("#tip").is_hidden()

    shown = tab.locator("#chart path.point").count()
    tab.get_by_role("button", name="filter", exact=True).click()
    assert tab.locator("#chart path.point").count() == shown - 3
    tab.get_by_label("whole range").check()
    tab.select_option("#task", "json")
    assert tab.locator("#chart path.point").count() == shown - 3 + 1

    tab.focus("#step")
    tab.keyboard.press("ArrowRight")
    assert tab.locator("#canvas-b .now, #canvas-b .forced").all_inner_texts() == ["3", "+", "8"]
    tab.locator("#step").fill("2")
    assert tab.locator("#canvas-b .gone").inner_text() == "8"
    assert "1 taken back now" in tab.inner_text("#count-b")
    assert "1 taken back now" in tab.get_attribute("#step", "aria-valuetext")
    tab.get_by_label("one forward on").click()
    assert tab.inner_text("#canvas-b") == "3+4=7endoftext"
    assert "done: 5 tokens, 1.67 per forward, 1 taken back" in tab.inner_text("#count-b")
    assert tab.locator("#map-b rect:not(.open)").count() == 6
    tab.select_option("#right", "0")
    assert tab.inner_text("#name-b") == tab.inner_text("#name-a") == "one token a step"
    assert len(tab.screenshot(full_page=True)) > 20_000


def test_every_text_can_be_read_against_its_background(tab):
    """The contrast of text and background is at least 4.5 to 1, as WCAG asks, in both colour schemes."""
    tab.locator("#step").fill("2")
    poor = tab.evaluate(
        """() => {
          const parts = (colour) => [...colour.match(/[\\d.]+/g).map(Number), 1].slice(0, 4);
          const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
          const light = (rgb) => [0.2126, 0.7152, 0.0722].reduce((sum, w, k) => sum + w * linear(rgb[k] / 255), 0);
          const behind = (node) => {
            if (!node) return [255, 255, 255, 1];
            const own = parts(getComputedStyle(node).backgroundColor);
            return own[3] === 1 ? own : behind(node.parentElement);
          };
          const ratio = (node) => {
            const both = [light(parts(getComputedStyle(node).color)), light(behind(node))].sort((a, b) => b - a);
            return (both[0] + 0.05) / (both[1] + 0.05);
          };
          const texts = "h1, h2, h3, p, td, th, dt, dd, label, summary, select, .tok:not(.mask), a";
          return [...document.querySelectorAll(texts)]
            .filter((node) => node.offsetParent && node.innerText.trim() && ratio(node) < 4.5)
            .map((node) => [node.className || node.tagName, ratio(node)]);
        }"""
    )
    assert poor == []
