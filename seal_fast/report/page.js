"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const el = (tag, text, cls) => {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  if (cls) node.className = cls;
  return node;
};
const methods = [...new Set(data.groups.map((g) => g.method))];
const colour = (g, i) => `var(--c${(methods.length > 1 ? methods.indexOf(g.method) : i) % 9})`;
const fixed = (x, digits = 2) => (x === null || x === undefined ? "" : x.toFixed(digits));
const counted = (n, what) => `${n} ${what}${n === 1 ? "" : "s"}`;
const short = (x) => (typeof x === "number" ? String(Number(x.toPrecision(4))) : x === null ? "" : String(x));

// --- tables ---------------------------------------------------------------------------------------------------------

function interval(cell, at, sign) {
  if (!at || at.mean === null) return;
  cell.append((sign && at.mean > 0 ? "+" : "") + fixed(at.mean));
  if (at.low !== null) cell.append(" ", el("small", `[${fixed(at.low)}, ${fixed(at.high)}]`));
}

// columns: {name, text?, value(row), show?(cell, row)}; rows keep their identity while they are sorted
function sortable(table, columns, rows, sorted, descending, decorate) {
  const head = el("tr");
  const body = el("tbody");
  const order = () => {
    const value = columns[sorted].value;
    const missing = (x) => x === null || x === undefined;
    const compare = (a, b) => {
      const [x, y] = [value(a), value(b)];
      if (missing(x) || missing(y)) return missing(x) - missing(y);
      const d = typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y));
      return descending ? -d : d;
    };
    body.replaceChildren(...[...rows].sort(compare).map((row) => lines.get(row)));
    [...head.children].forEach((th, i) =>
      i === sorted ? th.setAttribute("aria-sort", descending ? "descending" : "ascending") : th.removeAttribute("aria-sort"));
  };
  const lines = new Map(rows.map((row) => {
    const line = el("tr");
    for (const column of columns) {
      const cell = line.appendChild(el("td", undefined, column.text ? "text" : ""));
      if (column.show) column.show(cell, row);
      else cell.textContent = short(column.value(row));
    }
    if (decorate) decorate(line, row);
    return [row, line];
  }));
  columns.forEach((column, i) => {
    const button = el("button", column.name);
    button.type = "button";
    button.onclick = () => {
      descending = i === sorted ? !descending : !column.text;
      sorted = i;
      order();
    };
    head.appendChild(el("th", undefined, column.text ? "text" : "")).append(button);
  });
  table.append(el("thead"), body);
  table.tHead.append(head);
  order();
}

// --- charts ---------------------------------------------------------------------------------------------------------

const svg = (tag, attributes, parent) => {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (parent) parent.append(node);
  return node;
};

function ticks(low, high, count) {
  const raw = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= raw);
  const found = [];
  for (let t = Math.ceil(low / step) * step; t <= high + step * 1e-9; t += step) found.push(Number(t.toPrecision(12)));
  return found;
}

// A frame with axes: x is {min, max, log?} or {names}; returns [layer, x to pixels, y to pixels].
function frame(place, height, x, y, xLabel) {
  const width = Math.max(240, place.clientWidth);
  const [left, right, top, bottom] = [46, 12, 8, 38];
  const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img" });
  const pad = (y.max - y.min || 1) * 0.06;
  const [low, high] = [y.min - pad, y.max + pad];
  const py = (v) => height - bottom - ((v - low) / (high - low)) * (height - top - bottom);
  const span = width - left - right;
  const f = x.log ? Math.log : (v) => v;
  const [a, b] = x.names ? [-0.5, x.names.length - 0.5] : [f(x.min), f(x.max)];
  const inset = x.names || x.flush ? 0 : 0.04;
  const px = (v) => left + span * (inset + (1 - 2 * inset) * (b === a ? 0.5 : (f(v) - a) / (b - a)));
  for (const t of ticks(low, high, Math.max(3, height / 55))) {
    svg("line", { x1: left, x2: width - right, y1: py(t), y2: py(t), class: "axis" }, root);
    svg("text", { x: left - 6, y: py(t) + 4, "text-anchor": "end" }, root).textContent = short(t);
  }
  let marks = x.names ? x.names.map((name, i) => [i, name]) : (x.marks || ticks(x.min, x.max, Math.max(2, width / 90))).map((t) => [t, short(t)]);
  const most = Math.max(2, Math.floor(span / 58));
  if (marks.length > most) marks = marks.filter((_, i) => i % Math.ceil(marks.length / most) === 0);
  const letters = Math.floor(span / Math.max(1, marks.length) / 6.5);
  for (const [at, name] of marks)
    svg("text", { x: px(at), y: height - bottom + 16, "text-anchor": "middle" }, root).textContent =
      String(name).length > letters ? String(name).slice(0, Math.max(2, letters - 1)) + "…" : name;
  svg("text", { x: left + span / 2, y: height - 4, "text-anchor": "middle" }, root).textContent = xLabel;
  place.replaceChildren(root);
  return [root, px, py];
}

const path = (xs, ys, px, py) => xs.map((x, i) => `${i ? "L" : "M"}${px(x).toFixed(1)},${py(ys[i]).toFixed(1)}`).join("");
const range = (values) => ({ min: Math.min(...values), max: Math.max(...values) });
const percent = (value) => Math.min(100, Math.max(0, value)); // an interval over two seeds can reach beyond

function line(root, xs, ys, px, py, stroke, label) {
  const drawn = svg("path", { d: path(xs, ys, px, py), fill: "none", stroke, "stroke-width": 1.8 }, root);
  svg("title", {}, drawn).textContent = label;
  if (xs.length === 1) svg("circle", { cx: px(xs[0]), cy: py(ys[0]), r: 3, fill: stroke }, root);
}

function legend(list, entries) {
  list.replaceChildren(...entries.map(([name, stroke]) => {
    const item = el("li");
    item.append(el("span"), name);
    item.firstChild.style.background = stroke;
    return item;
  }));
}

const ranked = [...data.groups].sort((a, b) => (b.best.mean ?? -1) - (a.best.mean ?? -1));
const shown = new Set(ranked.filter((g) => g.curve.epoch.length).slice(0, 5));
// Rows of one method share its colour in the tables; curves that are on show together need their own.
const strokes = () => new Map([...shown].map((g, i) => [g, `var(--c${i % 9})`]));

function drawCurves() {
  const chosen = [...shown];
  if (!chosen.length) return $("curves").replaceChildren(el("p", "Choose a row above."));
  const x = { min: 0, max: Math.max(...chosen.map((g) => g.curve.epoch.at(-1))), flush: true };
  const y = range(chosen.flatMap((g) => [...(g.curve.low || g.curve.mean), ...(g.curve.high || g.curve.mean)]));
  const [root, px, py] = frame($("curves"), 340, x, y, "epoch");
  const stroke = strokes();
  const phases = new Map(chosen.filter((g) => g.ascents.length).map((g) => [String(g.ascents), g]));
  for (const g of phases.values())
    for (const [start, end] of g.ascents) {
      const stretch = { x: px(start), width: px(end) - px(start), y: 8, height: 294, class: "ascent" };
      svg("rect", phases.size > 1 ? { ...stretch, style: `fill:${stroke.get(g)}` } : stretch, root);
    }
  for (const g of chosen) {
    const { epoch, mean, low, high } = g.curve;
    if (low) {
      const back = path([...epoch].reverse(), [...high].reverse(), px, py).replace("M", "L");
      svg("path", { d: path(epoch, low, px, py) + back + "Z", fill: stroke.get(g), opacity: 0.16 }, root);
    }
    line(root, epoch, mean, px, py, stroke.get(g), g.label);
  }
  legend($("legend"), chosen.map((g) => [g.label, stroke.get(g)]));
}

function drawSettings() {
  const scored = data.groups.filter((g) => g.best.mean !== null);
  $("settings-section").hidden = !data.varied.length || !scored.length;
  if (methods.length > 1) legend($("setting-methods"), methods.map((m, i) => [m, `var(--c${i % 9})`]));
  const figures = data.varied.map((name) => {
    const values = [...new Set(scored.map((g) => g.settings[name]))];
    const numbers = values.every((v) => typeof v === "number");
    if (numbers) values.sort((a, b) => a - b);
    const log = numbers && values[0] > 0 && values.at(-1) / values[0] > 20;
    const x = numbers ? { ...range(values), log } : { names: values.map(short) };
    if (numbers && (values.length <= 6 || log)) x.marks = values.length <= 12 ? values : [0, 1, 2, 3].map((i) => Math.exp(Math.log(values[0]) + (i / 3) * Math.log(values.at(-1) / values[0])));
    const y = range(scored.flatMap((g) => [percent(g.best.low ?? g.best.mean), percent(g.best.high ?? g.best.mean)]));
    const figure = el("figure");
    figure.dataset.setting = name;
    $("settings").append(figure);
    return () => {
      const [root, px, py] = frame(figure, 230, x, y, name.replaceAll("_", " "));
      scored.forEach((g, i) => {
        // a little aside, so that methods at one value do not hide each other
        const aside = methods.length > 1 ? (methods.indexOf(g.method) - (methods.length - 1) / 2) * 3 : 0;
        const at = px(numbers ? g.settings[name] : values.indexOf(g.settings[name])) + aside;
        const stroke = colour(g, 0);
        if (g.best.low !== null) svg("line", { x1: at, x2: at, y1: py(percent(g.best.low)), y2: py(percent(g.best.high)), stroke, opacity: 0.5 }, root);
        const dot = svg("circle", { cx: at, cy: py(g.best.mean), r: 3.2, fill: stroke }, root);
        svg("title", {}, dot).textContent = `${g.label}: ${fixed(g.best.mean)} %`;
      });
    };
  });
  return () => figures.forEach((draw) => draw());
}

function drawThroughput() {
  const rows = data.throughput;
  if (!rows.length) return $("throughput").replaceChildren(el("p", "Nothing is measured yet."));
  const most = Math.max(...rows.flatMap((r) => r.generation));
  const x = { min: 0, max: most, marks: ticks(0, most, Math.min(10, most || 1)).filter(Number.isInteger) };
  const y = { min: 0, max: Math.max(...rows.flatMap((r) => r.images_per_s)) };
  const [root, px, py] = frame($("throughput"), 220, x, y, "generation");
  const stroke = (r) => `var(--c${methods.indexOf(r.method) % 9})`;
  for (const r of rows) line(root, r.generation, r.images_per_s, px, py, stroke(r), r.method);
  legend($("methods"), rows.map((r) => [r.method, stroke(r)]));
}

// --- the page -------------------------------------------------------------------------------------------------------

document.querySelector("h1").textContent = data.title;
const states = Object.entries(data.states).map(([state, count]) => `${count} ${state}`).join(", ");
$("counts").textContent = `${counted(data.runs, "run")}${states ? ` (${states})` : ""} in ${counted(data.groups.length, "row")}`;

sortable(
  $("groups"),
  [
    ...(data.varied.length ? data.varied : ["method"]).map((name) => ({
      name: name.replaceAll("_", " "),
      text: data.groups.some((g) => typeof (g.settings[name] ?? g.method) !== "number"),
      value: (g) => (name in g.settings ? g.settings[name] : g.method),
    })),
    { name: "seeds", value: (g) => g.seeds.length },
    { name: "best epoch", value: (g) => g.best.mean, show: (cell, g) => interval(cell, g.best) },
    { name: "last epoch", value: (g) => g.last.mean, show: (cell, g) => interval(cell, g.last) },
    { name: "epochs", value: (g) => g.epochs },
    { name: "images/s", value: (g) => g.images_per_s, show: (cell, g) => (cell.textContent = fixed(g.images_per_s, 0)) },
    ...(data.groups.some((g) => g.stopped) ? [{ name: "stopped early", value: (g) => g.stopped }] : []),
  ],
  data.groups,
  (data.varied.length || 1) + 1,
  true,
  (row, g) => {
    row.classList.toggle("on", shown.has(g));
    row.onclick = () => {
      shown.delete(g) || shown.add(g);
      row.classList.toggle("on", shown.has(g));
      drawCurves();
    };
  },
);

$("pairs-section").hidden = !data.pairs.rows.length;
$("pairs-what").textContent =
  data.pairs.what === "methods"
    ? "First minus second, in points of top-1, over runs that agree in seed and in every other setting that both vary; with the 95 % interval of the paired differences."
    : "Best row minus the other, in points of top-1, over the seeds that both have; with the 95 % interval of the paired differences.";
if (data.pairs.more) $("pairs-what").textContent += ` ${data.pairs.more} more are left out.`;
sortable(
  $("pairs"),
  [
    { name: "first", text: true, value: (r) => r.first },
    { name: "second", text: true, value: (r) => r.second },
    { name: "pairs", value: (r) => r.best.count },
    { name: "best epoch", value: (r) => r.best.mean, show: (cell, r) => interval(cell, r.best, true) },
    { name: "last epoch", value: (r) => r.last.mean, show: (cell, r) => interval(cell, r.last, true) },
  ],
  data.pairs.rows,
  3,
  true,
);

$("failed-section").hidden = !data.failed.length;
$("failed").append(...data.failed.map((f) => el("li", `${f.name}: ${f.message}`)));

const settings = drawSettings();
const draw = () => {
  drawCurves();
  settings();
  drawThroughput();
};
draw();
let width = innerWidth;
addEventListener("resize", () => {
  if (innerWidth !== width) draw();
  width = innerWidth;
});
