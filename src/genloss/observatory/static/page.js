"use strict";
// What a reader of the page can do without: texts side by side, tables of figures, a filter, hover and zoom.
// Everything from the data becomes text of a node, never markup.
const data = JSON.parse(document.getElementById("data").textContent);

function node(name, text, kind) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (kind) made.className = kind;
  return made;
}

function number(value) {
  return value === null || value === undefined ? "" : String(Number(value.toPrecision(4)));
}

// -- texts ------------------------------------------------------------------------------------------------------------

function filled(cell) {
  const [, , pieces, said] = cell;
  const box = node("div", undefined, "text");
  box.dir = "auto";
  for (const [text, marks] of pieces) {
    const piece = node(marks ? "mark" : "span", text, marks);
    if (marks) piece.title = marks;
    box.append(piece);
  }
  const all = [box];
  if (said && said !== "end") all.push(node("div", said === "length" ? "cut off at the longest length" : said, "said"));
  return all;
}

function side_by_side(prompt, i) {
  const { arms, rounds } = data.texts;
  const outer = node("details");
  outer.open = i === 0;
  const summary = node("summary", `record ${i + 1}`);
  if (prompt.text) {
    const text = node("bdi", prompt.text);
    summary.replaceChildren(node("b", `prompt ${i + 1}: `), text);
  }
  const scroll = node("div", undefined, "scroll");
  scroll.tabIndex = 0;
  const table = node("table");
  const head = table.createTHead().insertRow();
  for (const name of ["round", ...arms]) {
    const cell = node("th", name);
    cell.scope = "col";
    head.append(cell);
  }
  const body = table.createTBody();
  for (const n of rounds) {
    const row = body.insertRow();
    const first = node("th", String(n));
    first.scope = "row";
    row.append(first);
    arms.forEach((_, arm) => {
      const cell = prompt.cells.find((c) => c[0] === arm && c[1] === n);
      const td = row.insertCell();
      if (cell) td.append(...filled(cell));
    });
  }
  scroll.append(table);
  outer.append(summary, scroll);
  return outer;
}

const prompts = document.getElementById("prompts");
if (prompts) prompts.append(...data.texts.prompts.map(side_by_side));

// -- tables of figures ------------------------------------------------------------------------------------------------

function numbers(chart) {
  const table = node("table");
  const all = [...chart.series, ...chart.guides];
  const rounds = [...new Set(all.flatMap((s) => s.x))].sort((a, b) => a - b);
  const head = table.createTHead().insertRow();
  for (const name of [chart.unit || "arm", ...rounds]) head.append(node("th", String(name)));
  const rows = all.map((s) => [s.name, new Map(s.x.map((x, i) => [x, [s.y, s.low, s.high].map((v) => v?.[i])]))]);
  const body = table.createTBody();
  for (const [name, values] of rows) {
    const row = body.insertRow();
    row.append(node("th", name));
    for (const n of rounds) {
      const [y, low, high] = values.get(n) ?? [];
      const cell = row.insertCell();
      cell.textContent = number(y);
      cell.className = "n";
      if (typeof low === "number") cell.title = `${number(low)} to ${number(high)}`;
    }
  }
  const scroll = node("div", undefined, "scroll");
  scroll.append(table);
  return scroll;
}

for (const figure of document.querySelectorAll("figure[data-metric]")) {
  const chart = data.charts[figure.dataset.metric];
  const details = figure.querySelector("details");
  details.addEventListener("toggle", () => {
    if (details.open && details.children.length === 1) details.append(numbers(chart));
  });
  figure.querySelector("button.zoom").addEventListener("click", () => zoom(figure, chart));
}

const filter = document.getElementById("filter");
if (filter) filter.addEventListener("input", () => {
  const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
  for (const figure of document.querySelectorAll("figure[data-metric]")) {
    const said = figure.querySelector("figcaption").textContent.toLowerCase();
    figure.hidden = !words.every((word) => said.includes(word));
  }
  for (const more of document.querySelectorAll("details.more")) {
    if (words.length) more.open = Boolean(more.querySelector("figure:not([hidden])"));
  }
});

// arms of the legend that are chosen, one by a click or some by their names: the others fade
const legend = [...document.querySelectorAll("button.only")];
const named = document.getElementById("arms-named");
function keep(some) {
  const kept = new Set(some.map((button) => button.dataset.style));
  for (const button of legend) button.setAttribute("aria-pressed", String(kept.has(button.dataset.style)));
  for (const drawn of document.querySelectorAll("#metrics svg.chart [class*=' s']")) {
    drawn.classList.toggle("dim", kept.size > 0 && ![...drawn.classList].some((name) => kept.has(name)));
  }
}
for (const button of legend) button.addEventListener("click", () => {
  const alone = legend.every((other) => (other.getAttribute("aria-pressed") === "true") === (other === button));
  if (named) named.value = "";
  keep(alone ? [] : [button]);
});
if (named) named.addEventListener("input", () => {
  const words = named.value.toLowerCase().split(/\s+/).filter(Boolean);
  const fits = (button) => words.every((word) => button.textContent.toLowerCase().includes(word));
  keep(words.length ? legend.filter(fits) : []);
});

// -- hover and zoom ---------------------------------------------------------------------------------------------------

const dialog = document.getElementById("zoom");
const dashes = [[], [6, 3], [2, 3], [9, 3, 2, 3], [12, 4]];
const guided = { floor: [1, 4], theory0: [5, 3], theory1: [7, 3, 2, 3], theory2: [2, 3] };  // as in page.css
let plot = null;

function zoom(figure, chart) {
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(name).trim();
  const all = [...chart.series, ...chart.guides];
  const rounds = [...new Set(all.flatMap((s) => s.x))].sort((a, b) => a - b);
  const columns = [rounds], series = [{ label: "round" }], bands = [];
  for (const s of all) {
    const at = (x) => (s.kind && s.x.length === 1 ? 0 : s.x.indexOf(x));  // a guide of one round goes across
    const aligned = (y) => rounds.map((n) => (at(n) < 0 ? null : y[at(n)]));
    const stroke = colour(s.style === null ? "--soft" : `--c${s.style % 8}`);
    const value = (_, y, __, i) => {
      const j = i === null ? -1 : at(rounds[i]);
      const low = s.low?.[j], ends = typeof low === "number" ? ` (${number(low)} to ${number(s.high[j])})` : "";
      return number(y) + ends;
    };
    const drawn = s.kind ? { dash: guided[s.kind], width: 1.5, points: { show: false } }
      : { dash: dashes[s.style % dashes.length], width: s.dots ? 0 : 2, points: { show: true, size: 6, fill: stroke } };
    series.push({ label: s.name, stroke, spanGaps: true, value, ...drawn });
    columns.push(aligned(s.y));
    if (!s.low) continue;
    const first = columns.length;
    for (let i = 0; i < 2; i++) series.push({ stroke, width: 0, points: { show: false }, class: "end" });
    columns.push(aligned(s.high), aligned(s.low));
    bands.push({ series: [first, first + 1], fill: `color-mix(in srgb, ${stroke} 15%, transparent)` });
  }
  document.getElementById("zoom-title").textContent = figure.querySelector("figcaption").textContent;
  dialog.showModal();
  const axis = { stroke: colour("--soft"), grid: { stroke: colour("--line"), width: 1 }, ticks: { stroke: colour("--line") } };
  const width = document.getElementById("plot").clientWidth;
  const options = {
    width, height: Math.max(220, Math.min(460, innerHeight * 0.55)), series, bands,
    scales: { x: { time: false } },
    cursor: { points: { size: (u, i) => (u.series[i].class === "end" ? 0 : 8) } },
    hooks: { setSeries: [(u, i, { show }) => {  // a band goes with its line
      if (i === null || show === undefined || u.series[i].class === "end") return;
      for (const j of [i + 1, i + 2]) if (u.series[j]?.class === "end") u.setSeries(j, { show });
    }] },
    axes: [
      { ...axis, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000], label: "round", labelSize: 20 },
      { ...axis, size: 70, label: chart.unit || undefined, labelSize: 20 },
    ],
  };
  plot?.destroy();
  plot = new uPlot(options, columns, document.getElementById("plot"));
}

dialog.addEventListener("close", () => { plot?.destroy(); plot = null; });
dialog.addEventListener("keydown", (event) => {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!step || !plot) return;
  event.preventDefault();
  const rounds = plot.data[0], now = plot.cursor.idx;
  const at = Math.min(rounds.length - 1, Math.max(0, now === null || now === undefined ? 0 : now + step));
  plot.setCursor({ left: plot.valToPos(rounds[at], "x"), top: plot.over.clientHeight / 2 });
});

// -- print: what is folded is printed too -----------------------------------------------------------------------------

let folded = [];
addEventListener("beforeprint", () => {
  folded = [...document.querySelectorAll("main > section > details, #prompts > details")].filter((d) => !d.open);
  for (const details of folded) details.open = true;
});
addEventListener("afterprint", () => { for (const details of folded) details.open = false; });
