"use strict";
const DATA = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
function make(name, attributes = {}, ...children) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}
function element(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}
const percent = (value) => (value === null ? "n/a" : (100 * value).toFixed(1));

// ---- tables
document.querySelectorAll("table.sortable").forEach((table) => {
  const body = table.tBodies[0];
  const headings = [...table.tHead.rows[0].cells];
  const number = (text) => {
    const found = text.replace(/[>+]/g, " ").match(/-?\d+(\.\d+)?/);
    return found && /^[\s>+\-\d.]/.test(text) ? parseFloat(found[0]) : null;
  };
  headings.forEach((heading, column) => {
    const cells = [...body.rows].map((row) => row.cells[column].textContent);
    const numeric = cells.every((text) => text === "n/a" || number(text) !== null);
    if (!numeric) {
      heading.classList.add("text");
      [...body.rows].forEach((row) => row.cells[column].classList.add("text"));
    }
    if (/^(method|family|recipe)$/.test(heading.textContent)) {
      [...body.rows].forEach((row) => row.cells[column].classList.add("name"));
    }
    heading.querySelector("button").addEventListener("click", () => {
      const falling = numeric ? heading.getAttribute("aria-sort") !== "descending" : heading.getAttribute("aria-sort") === "ascending";
      headings.forEach((other) => other.setAttribute("aria-sort", "none"));
      heading.setAttribute("aria-sort", falling ? "descending" : "ascending");
      const key = (row) => row.cells[column].textContent;
      const rows = [...body.rows].sort((a, b) => {
        if (!numeric) return key(a).localeCompare(key(b)) * (falling ? -1 : 1);
        const one = number(key(a)), two = number(key(b));
        if (one === null || two === null) return (one === null) - (two === null);
        return falling ? two - one : one - two;
      });
      body.append(...rows);
    });
  });
});
if (byId("rows-task")) {
  const filter = () => document.querySelectorAll("#methods tbody tr").forEach((row) => {
    row.hidden = byId("rows-task").value !== "" && row.dataset.task !== byId("rows-task").value;
  });
  byId("rows-task").addEventListener("change", filter);
  filter();
}

// ---- axes
function ticks(low, high, count) {
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough);
  const marks = [];
  for (let value = Math.ceil(low / step) * step; value <= high + 1e-9; value += step) marks.push(Number(value.toFixed(6)));
  return marks;
}
function axes(svg, box, x, y, xName, yName, xTicks, yTicks, form) {
  for (const value of xTicks) {
    svg.append(make("line", { class: "grid", x1: x(value), x2: x(value), y1: box.top, y2: box.bottom }));
    svg.append(make("text", { x: x(value), y: box.bottom + 18, "text-anchor": "middle" }, String(value)));
  }
  for (const value of yTicks) {
    svg.append(make("line", { class: "grid", x1: box.left, x2: box.right, y1: y(value), y2: y(value) }));
    svg.append(make("text", { x: box.left - 8, y: y(value) + 4, "text-anchor": "end" }, form(value)));
  }
  svg.append(make("path", { class: "axis", fill: "none", d: `M${box.left} ${box.top}V${box.bottom}H${box.right}` }));
  svg.append(make("text", { x: (box.left + box.right) / 2, y: box.bottom + 38, "text-anchor": "middle" }, xName));
  svg.append(make("text", { x: 0, y: 0, transform: `translate(16 ${(box.top + box.bottom) / 2}) rotate(-90)`, "text-anchor": "middle" }, yName));
}

// ---- the curve
const dark = matchMedia("(prefers-color-scheme: dark)");
const SHAPES = [
  (r) => `M${-r} 0a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0z`,
  (r) => `M${-r} ${-r}H${r}V${r}H${-r}z`,
  (r) => `M0 ${-1.25 * r}L${1.15 * r} ${0.9 * r}H${-1.15 * r}z`,
  (r) => `M0 ${-1.35 * r}L${1.35 * r} 0L0 ${1.35 * r}L${-1.35 * r} 0z`,
  (r) => `M0 ${1.25 * r}L${1.15 * r} ${-0.9 * r}H${-1.15 * r}z`,
];
const STAR = (r) => "M" + [...Array(10).keys()].map((k) => {
  const size = k % 2 ? 0.7 * r : 1.7 * r, angle = (Math.PI * k) / 5;
  return `${(size * Math.sin(angle)).toFixed(2)} ${(-size * Math.cos(angle)).toFixed(2)}`;
}).join("L") + "z";
function colours() {
  return dark.matches
    ? { learned: ["#ff8a80", "#7db7f0", "#7fd69a", "#d0a7f5", "#ffb86b", "#6fd6d6"], plain: ["#aab2bb", "#8d959e", "#b3a899", "#93a893", "#9aa6bf", "#b59fb0"], ink: "#e6e8ea" }
    : { learned: ["#b3261e", "#0b5cad", "#1d7a3e", "#7a3fb0", "#b85c00", "#0b7a80"], plain: ["#59616a", "#8a929b", "#8a7a63", "#6b8a6b", "#66779a", "#8d6f86"], ink: "#1c1e21" };
}
const hiddenFamilies = new Set();
let points = [], current = -1;
function styles() {
  const recipes = new Map(), palette = colours(), counts = {};
  for (const row of DATA.rows) {
    if (recipes.has(row.recipe)) continue;
    const place = (counts[row.kind] = (counts[row.kind] ?? -1) + 1);
    const table = row.kind === "learned" ? palette.learned : palette.plain;
    recipes.set(row.recipe, row.kind === "oracle" || row.mark === "reference"
      ? { colour: palette.ink, shape: STAR, width: 0, hollow: row.mark === "reference" }
      : { colour: table[place % table.length], shape: SHAPES[place % SHAPES.length], width: row.kind === "learned" ? 2.4 : 1.3, dash: row.kind === "learned" ? "" : ["", "5 3", "2 3"][Math.floor(place / table.length) % 3] });
  }
  return recipes;
}
function describe(row) {
  const lines = [["tokens per forward", row.speed.toFixed(2), row.speed_interval, 2, 1], [row.measure, percent(row.quality) + "%", row.quality_interval, 1, 100],
    ["forwards", row.forwards.toFixed(1)], ["tokens per second", row.tokens_per_second.toFixed(1)]];
  if (row.speedup !== null) lines.push(["speedup in forwards", row.speedup.toFixed(2) + "x"]);
  if (row.revoked) lines.push(["taken back per answer", row.revoked.toFixed(2)]);
  return lines.map(([name, value, range, digits, scale]) => [name, range ? `${value} [${range.map((edge) => (scale * edge).toFixed(digits)).join(", ")}]` : value]);
}
function drawChart() {
  const svg = byId("chart"), width = 1000, height = 480;
  const box = { left: 64, right: width - 24, top: 22, bottom: height - 52 };
  const task = byId("task").value, stop = byId("stop").value, recipes = styles();
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.replaceChildren();
  const every = DATA.rows.filter((row) => row.task === task && row.stop === stop && row.quality !== null);
  const rows = every.filter((row) => !hiddenFamilies.has(row.recipe));
  const reference = every.find((row) => row.mark === "reference");
  const floor = reference && !byId("whole").checked ? reference.quality - DATA.depth : -1;
  const shown = rows.filter((row) => row.quality >= floor);
  const below = rows.filter((row) => row.quality < floor);
  byId("below").textContent = below.length ? `Not drawn, more than ${100 * DATA.depth} points below one token a step: ${below.map((row) => `${row.method} (${percent(row.quality)}% at ${row.speed.toFixed(1)})`).join(", ")}.` : "";
  points = [];
  current = -1;
  byId("tip").hidden = true;
  if (!shown.length) {
    svg.append(make("text", { x: width / 2, y: height / 2, "text-anchor": "middle" }, "no family is shown"));
    return;
  }
  const edges = (name, range) => shown.flatMap((row) => [row[name], ...(row[range] ?? [])]);
  const speeds = edges("speed", "speed_interval"), qualities = edges("quality", "quality_interval");
  const xLow = Math.max(0, Math.min(...speeds) - 0.3), xHigh = Math.max(...speeds) * 1.04 + 0.1;
  const yLow = Math.max(0, Math.max(Math.min(...qualities), floor) - 0.02), yHigh = Math.min(1.01, Math.max(...qualities) + 0.02);
  const x = (value) => box.left + ((value - xLow) / (xHigh - xLow)) * (box.right - box.left);
  const y = (value) => box.bottom - ((Math.max(value, yLow) - yLow) / (yHigh - yLow)) * (box.bottom - box.top);
  axes(svg, box, x, y, "tokens per forward (answer tokens only)", `${shown[0].measure}, %`, ticks(xLow, xHigh, 9), ticks(yLow, yHigh, 6), (value) => (100 * value).toFixed(0));
  if (reference) {
    svg.append(make("rect", { x: box.left, width: box.right - box.left, y: y(reference.quality), height: Math.max(1, y(reference.quality - DATA.margin) - y(reference.quality)), fill: "var(--accent)", opacity: 0.14 }));
    svg.append(make("text", { x: box.right - 4, y: y(reference.quality - DATA.margin) + 16, "text-anchor": "end" }, `one token a step; the band is ${100 * DATA.margin} points`));
  }
  for (const oracle of shown.filter((row) => row.kind === "oracle")) {
    svg.append(make("line", { x1: x(oracle.speed), x2: x(oracle.speed), y1: box.top, y2: box.bottom, stroke: "var(--soft)", "stroke-dasharray": "2 4" }));
    svg.append(make("text", { x: x(oracle.speed) - 5, y: box.top + 12, "text-anchor": "end" }, "oracle"));
  }
  const families = new Map();
  for (const row of shown) families.set(row.family, [...(families.get(row.family) ?? []), row]);
  for (const family of families.values()) {
    const style = recipes.get(family[0].recipe);
    const line = family.filter((row) => row.hull).sort((a, b) => a.speed - b.speed);
    if (line.length > 1) svg.append(make("path", { fill: "none", stroke: style.colour, "stroke-width": style.width, "stroke-dasharray": style.dash, d: "M" + line.map((row) => `${x(row.speed)} ${y(row.quality)}`).join("L") }));
  }
  const ordered = [...shown].sort((a, b) => a.speed - b.speed || a.quality - b.quality);
  for (const row of ordered) {
    const style = recipes.get(row.recipe), place = `translate(${x(row.speed)} ${y(row.quality)})`;
    if (row.speed_interval) svg.append(make("line", { class: "whisker", stroke: style.colour, x1: x(row.speed_interval[0]), x2: x(row.speed_interval[1]), y1: y(row.quality), y2: y(row.quality) }));
    if (row.quality_interval) svg.append(make("line", { class: "whisker", stroke: style.colour, x1: x(row.speed), x2: x(row.speed), y1: y(row.quality_interval[0]), y2: y(row.quality_interval[1]) }));
    const mark = make("path", { class: "point", d: style.shape(row.kind === "learned" ? 6 : 5), transform: place, fill: style.hollow ? "var(--raised)" : style.colour });
    if (style.hollow) mark.style.stroke = style.colour;
    const number = points.push({ row, mark, x: x(row.speed) / width, y: y(row.quality) / height }) - 1;
    const hit = make("circle", { r: 13, transform: place, fill: "transparent", "data-method": row.method });
    hit.addEventListener("pointerenter", () => select(number));
    hit.addEventListener("click", () => goToRow(number));
    svg.append(mark, hit);
  }
}
function select(number) {
  points.forEach((point) => point.mark.classList.remove("on"));
  document.querySelectorAll("tr.on").forEach((row) => row.classList.remove("on"));
  current = number;
  const tip = byId("tip");
  tip.hidden = number < 0;
  if (number < 0) return;
  const { row, mark, x, y } = points[number];
  mark.classList.add("on");
  document.querySelectorAll(`tr[data-row="${row.number}"]`).forEach((line) => line.classList.add("on"));
  const list = element("dl");
  for (const [name, value] of describe(row)) list.append(element("dt", {}, name), element("dd", {}, value));
  tip.replaceChildren(element("b", {}, row.method), `cache ${row.cache}, stop ${row.stop}`, list);
  const area = byId("chart").getBoundingClientRect();
  tip.style.left = x > 0.6 ? "auto" : `${x * area.width + 16}px`;
  tip.style.right = x > 0.6 ? `${(1 - x) * area.width + 16}px` : "auto";
  tip.style.top = `${Math.min(y * area.height, Math.max(0, area.height - tip.offsetHeight - 8))}px`;
}
function goToRow(number) {
  const line = byId(`row-${points[number].row.number}`);
  line.hidden = false;
  line.closest("details").open = true;
  line.scrollIntoView({ block: "center" });
}
function drawLegend() {
  const recipes = styles();
  byId("legend").replaceChildren(...[...recipes].map(([name, style]) => {
    const button = element("button", { type: "button", "aria-pressed": String(!hiddenFamilies.has(name)) });
    const mark = make("path", { d: style.shape(4.5), transform: "translate(11 6)", fill: style.hollow ? "none" : style.colour, stroke: style.colour });
    button.append(make("svg", { viewBox: "0 0 22 12", "aria-hidden": "true" }, make("line", { x1: 0, x2: 22, y1: 6, y2: 6, stroke: style.colour, "stroke-width": style.width, "stroke-dasharray": style.dash ?? "" }), mark), name);
    button.addEventListener("click", () => {
      hiddenFamilies.has(name) ? hiddenFamilies.delete(name) : hiddenFamilies.add(name);
      button.setAttribute("aria-pressed", String(!hiddenFamilies.has(name)));
      drawChart();
    });
    return button;
  }));
}
if (byId("chart")) {
  for (const id of ["task", "stop", "whole"]) byId(id).addEventListener("change", drawChart);
  byId("chart").addEventListener("pointerleave", () => select(-1));
  byId("chart").addEventListener("blur", () => select(-1));
  byId("chart").addEventListener("keydown", (event) => {
    const move = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (move) select((current + move + points.length + (current < 0 && move < 0 ? 1 : 0)) % points.length);
    else if (event.key === "Enter" && current >= 0) goToRow(current);
    else if (event.key === "Escape") select(-1);
    else return;
    event.preventDefault();
  });
  const redraw = () => { drawLegend(); drawChart(); };
  dark.addEventListener("change", redraw);
  redraw();
}

// ---- the replay
const VIRIDIS = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
function viridis(share) {
  const place = Math.min(Math.max(share, 0), 1) * (VIRIDIS.length - 1), low = Math.min(Math.floor(place), VIRIDIS.length - 2);
  return `rgb(${VIRIDIS[low].map((part, k) => Math.round(part + (VIRIDIS[low + 1][k] - part) * (place - low))).join(" ")})`;
}
function canvasAfter(run, length, count) {
  // The canvas after `count` forwards, with what the last of them did.
  const cells = Array.from({ length }, () => ({ state: "mask" }));
  for (const [place, token] of run.given) cells[place] = { state: "given", token };
  let end = length;
  const step = count ? run.steps[count - 1] : null;
  for (let number = 0; number < count; number++) {
    const { commit, revoked = [], forced = [] } = run.steps[number], last = number === count - 1;
    for (const place of revoked) cells[place] = last ? { state: "gone", token: cells[place].token } : { state: "mask" };
    for (const [place, token] of commit) {
      const before = cells[place];
      const kind = forced.includes(place) ? "forced" : before.state === "done" || before.state === "now" ? "edit" : "now";
      cells[place] = { state: last ? kind : "done", token, forward: number + 1 };
    }
    end = run.steps[number].end;
  }
  if (step) step.at.forEach((place, k) => {
    const cell = cells[place];
    if (cell.state === "mask") cells[place] = { state: "prop", token: step.token[k], sure: step.sure[k] };
    else cell.sure = step.sure[k];
  });
  return { cells, end, step };
}
const stateNames = { now: "committed now", forced: "committed because nothing else was", edit: "overwritten now", gone: "taken back now", prop: "proposed", done: "committed", given: "given", mask: "masked" };
function drawSide(side, replay, run, forwards, last) {
  const count = Math.min(forwards, run.steps.length);
  const { cells, end, step } = canvasAfter(run, replay.gen_length, count);
  const spans = [];
  cells.slice(0, end).forEach((cell, place) => {
    const text = cell.token === undefined ? "\u00b7" : run.texts[cell.token];
    const special = /^<\|.*\|>$/.test(text);
    const span = element("span", { class: `tok ${cell.state}${special ? " end" : ""}` }, special ? text.slice(2, -2) : text === "\n" ? "\u21b5\n" : text);
    if (cell.state === "prop") span.style.setProperty("--sure", `${cell.sure / 10}%`);
    span.title = `position ${place + 1}: ${stateNames[cell.state]}${cell.sure === undefined ? "" : `, confidence ${(cell.sure / 1000).toFixed(3)}`}${cell.forward ? `, forward ${cell.forward}` : ""}`;
    spans.push(span);
  });
  byId(`canvas-${side}`).replaceChildren(...spans);
  byId(`name-${side}`).textContent = run.method;
  const settled = cells.slice(0, end).filter((cell) => !["mask", "prop", "gone"].includes(cell.state)).length;
  const parts = [`forward ${count} of ${run.steps.length}`, `${settled} settled`];
  if (step) {
    parts.push(`${step.commit.length} committed now`);
    if (step.revoked) parts.push(`${step.revoked.length} taken back now`);
  }
  if (count === run.steps.length) parts.push(`done: ${run.tokens} tokens, ${(run.tokens / run.forwards).toFixed(2)} per forward${run.revoked ? `, ${run.revoked} taken back` : ""}${run.edited ? `, ${run.edited} overwritten` : ""}`);
  byId(`count-${side}`).textContent = parts.join(" \u00b7 ");
  const spoken = `${run.method}: ${parts.slice(1).join(", ")}`;
  const map = byId(`map-${side}`), finalEnd = run.steps.at(-1)?.end ?? replay.gen_length, shown = Math.max(finalEnd, 1);
  map.setAttribute("viewBox", `0 0 ${shown} 1`);
  map.setAttribute("aria-label", `step map: forward of the commit of each of ${shown} positions`);
  map.replaceChildren(...cells.slice(0, shown).map((cell, place) => {
    const rect = make("rect", { x: place, width: 0.92, y: 0, height: 1 }, make("title", {}, `position ${place + 1}: ${cell.forward ? `forward ${cell.forward}` : stateNames[cell.state]}`));
    if (cell.forward) rect.setAttribute("fill", viridis((cell.forward - 1) / Math.max(last - 1, 1)));
    else rect.setAttribute("class", "open");
    return rect;
  }));
  return spoken;
}
if (byId("replay")) {
  const slider = byId("step");
  let timer = 0;
  const chosen = () => DATA.replays[Number(byId("replay-task").value)];
  const runOf = (id) => chosen().runs[Number(byId(id).value)];
  function draw() {
    const last = Math.max(runOf("left").steps.length, runOf("right").steps.length), value = Math.min(Number(slider.value), last);
    slider.max = last;
    byId("now").textContent = `forward ${value} of ${last}`;
    byId("last").textContent = String(last);
    const spoken = [drawSide("a", chosen(), runOf("left"), value, last), drawSide("b", chosen(), runOf("right"), value, last)];
    slider.setAttribute("aria-valuetext", [`forward ${value} of ${last}`, ...spoken].join("; "));
  }
  function stop() {
    clearInterval(timer);
    timer = 0;
    byId("play").textContent = "play";
    byId("play").setAttribute("aria-pressed", "false");
  }
  function go(value) {
    slider.value = value;
    draw();
  }
  function open() {
    stop();
    const { runs, prompt, pair } = chosen();
    byId("prompt").textContent = prompt;
    ["left", "right"].forEach((id, side) => {
      byId(id).replaceChildren(...runs.map((run, number) => element("option", { value: number }, run.method)));
      byId(id).value = pair[side];
    });
    slider.max = 1e6;
    go(0);
  }
  byId("replay-task").addEventListener("change", open);
  for (const id of ["left", "right"]) byId(id).addEventListener("change", draw);
  slider.addEventListener("input", () => { stop(); draw(); });
  byId("back").addEventListener("click", () => { stop(); go(Number(slider.value) - 1); });
  byId("forth").addEventListener("click", () => { stop(); go(Number(slider.value) + 1); });
  byId("play").addEventListener("click", () => {
    if (timer) return stop();
    if (Number(slider.value) >= Number(slider.max)) go(0);
    byId("play").textContent = "pause";
    byId("play").setAttribute("aria-pressed", "true");
    timer = setInterval(() => {
      go(Number(slider.value) + 1);
      if (Number(slider.value) >= Number(slider.max)) stop();
    }, 220);
  });
  byId("scale").style.background = `linear-gradient(90deg, ${[0, 0.25, 0.5, 0.75, 1].map(viridis).join(", ")})`;
  open();
}

// ---- reliability
if (byId("reliability-chart")) {
  const svg = byId("reliability-chart"), { bins, threshold } = DATA.reliability;
  const box = { left: 52, right: 348, top: 12, bottom: 250 };
  const x = (value) => box.left + value * (box.right - box.left), y = (value) => box.bottom - value * (box.bottom - box.top);
  axes(svg, box, x, y, "", "share that is final", [0, 0.2, 0.4, 0.6, 0.8, 1], [0, 0.2, 0.4, 0.6, 0.8, 1], String);
  svg.append(make("path", { d: `M${x(0)} ${y(0)}L${x(1)} ${y(1)}`, stroke: "var(--soft)", "stroke-dasharray": "4 4" }));
  svg.append(make("path", { d: "M" + bins.map((bin) => `${x(bin.probability)} ${y(bin.right)}`).join("L"), stroke: "var(--learned)", "stroke-width": 2, fill: "none" }));
  const most = Math.log10(1 + Math.max(...bins.map((bin) => bin.count)));
  for (const bin of bins) {
    const words = `probability ${bin.probability.toFixed(3)}: ${(100 * bin.right).toFixed(1)}% of ${bin.count} are final`;
    svg.append(make("circle", { cx: x(bin.probability), cy: y(bin.right), r: 4.5, fill: "var(--learned)" }, make("title", {}, words)));
    const high = (50 * Math.log10(1 + bin.count)) / most;
    svg.append(make("rect", { x: x(bin.probability) - 9, width: 18, y: 335 - high, height: high, fill: "var(--accent)", opacity: 0.55 }, make("title", {}, words)));
  }
  svg.append(make("line", { x1: x(threshold), x2: x(threshold), y1: box.top, y2: 335, stroke: "var(--ink)", "stroke-dasharray": "2 3" }));
  svg.append(make("text", { x: x(threshold) - 5, y: box.top + 12, "text-anchor": "end" }, `threshold ${threshold}`));
  svg.append(make("text", { x: (box.left + box.right) / 2, y: 353, "text-anchor": "middle" }, "probability given by the filter"));
  svg.append(make("text", { x: (box.left + box.right) / 2, y: 372, "text-anchor": "middle" }, "bars: number of positions, on a log scale"));
}
