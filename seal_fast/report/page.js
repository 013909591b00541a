"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const el = (tag, text = "", cls = "") => Object.assign(document.createElement(tag), { textContent: text, className: cls });
const groups = data.groups.map((_, i) => i); // a group is its place in data.groups
const ranked = [...groups].sort((a, b) => (data.groups[b].best.mean ?? -1) - (data.groups[a].best.mean ?? -1));
const rank = new Map(ranked.map((group, place) => [group, place]));
// A colour stands for one group on the whole page: nine that are easy to tell apart, for the best groups, then hues.
const colour = (group, place = rank.get(group)) => (place < 9 ? `var(--c${place})` : `hsl(${(place * 137.508) % 360} 60% var(--light))`);
const label = (group) => data.groups[group].label;
const marked = (tag, group, text = label(group)) => {
  const node = el(tag);
  node.append(el("span", "", "mark"), text);
  node.firstChild.style.background = colour(group);
  return node;
};
const fixed = (x, digits = 2) => (x === null || x === undefined ? "" : x.toFixed(digits));
const counted = (n, what) => `${n} ${what}${n === 1 ? "" : "s"}`;
const short = (x) => (typeof x === "number" ? String(Number(x.toPrecision(4))) : x === null ? "" : String(x));

// 2, and of a small mean as many as show three significant digits
const decimals = (x) => (x && Math.abs(x) < 0.1 ? Math.min(12, 2 - Math.floor(Math.log10(Math.abs(x)))) : 2);

function interval(cell, at, sign) {
  if (!at || at.mean === null) return;
  const show = (x) => fixed(x, decimals(at.mean));
  cell.append((sign && at.mean > 0 ? "+" : "") + show(at.mean));
  if (at.low !== null) cell.append(" ", el("small", `[${show(at.low)}, ${show(at.high)}]`));
}

// columns: {name, text?, value(row), show?(cell, row)}; rows keep their identity while they are sorted
function sortable(box, columns, rows, sorted, descending, decorate) {
  const table = box.appendChild(el("table"));
  const head = el("tr");
  const body = el("tbody");
  const order = () => {
    const compare = (a, b) => {
      const [x, y] = [a, b].map((row) => columns[sorted].value(row) ?? null);
      if (x === null || y === null) return (x === null) - (y === null);
      const d = typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y));
      return descending ? -d : d;
    };
    body.replaceChildren(...[...rows].sort(compare).map((row) => lines.get(row)));
    [...head.children].forEach((th, i) => th.setAttribute("aria-sort", i !== sorted ? "none" : descending ? "descending" : "ascending"));
  };
  const lines = new Map(rows.map((row) => {
    const line = el("tr");
    for (const column of columns) {
      const cell = line.appendChild(el("td", "", column.text ? "text" : ""));
      column.show ? column.show(cell, row) : cell.append(short(column.value(row) ?? ""));
    }
    decorate?.(line, row);
    return [row, line];
  }));
  columns.forEach(({ name, text }, i) => {
    head.appendChild(el("th", "", text ? "text" : "")).appendChild(el("button", name)).onclick = () => {
      [descending, sorted] = [i === sorted ? !descending : !text, i];
      order();
    };
  });
  table.append(el("thead"), body);
  table.tHead.append(head);
  order();
}

const mean = (name, at, sign) => ({ name, value: (r) => at(r)?.mean, show: (cell, r) => interval(cell, at(r), sign) });
const difference = (name, at) => [mean(name, at, true), { name: "p (Holm)", value: (r) => at(r).holm && Number(at(r).holm.toPrecision(2)) }];
const sides = ["first", "second"].map((side) => ({
  name: side, text: true, value: (r) => label(r[side]), show: (cell, r) => cell.append(marked("span", r[side])),
}));

const svg = (tag, attributes, parent) => {
  const node = parent.appendChild(document.createElementNS("http://www.w3.org/2000/svg", tag));
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
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
  place.replaceChildren();
  const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img" }, place);
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
  const write = (x, y, text) => (svg("text", { x, y, "text-anchor": "middle" }, root).textContent = text);
  for (const [at, name] of marks)
    write(px(at), height - bottom + 16, name.length > letters ? name.slice(0, Math.max(2, letters - 1)) + "…" : name);
  write(left + span / 2, height - 4, xLabel);
  return [root, px, py];
}

const path = (xs, ys, px, py) => xs.map((x, i) => `${i ? "L" : "M"}${px(x).toFixed(1)},${py(ys[i]).toFixed(1)}`).join("");
const range = (values) => ({ min: Math.min(...values), max: Math.max(...values) });
const percent = (value) => Math.min(100, Math.max(0, value)); // an interval over two seeds can reach beyond
const legend = (list, chosen) => list.replaceChildren(...chosen.map((group) => marked("li", group)));

// A curve for each of `series`, {group, at, mean, low?, high?}; `under` draws what lies below them.
function lines(place, height, x, from, series, xLabel, under) {
  if (!series.length) return place.replaceChildren(el("p", "No finished run is chosen."));
  const y = range([...from, ...series.flatMap((s) => [...s.mean, ...(s.low || []), ...(s.high || [])])]);
  const [root, px, py] = frame(place, height, x, y, xLabel);
  under?.(root, px);
  for (const { group, at, mean, low, high } of series) {
    const fill = colour(group);
    const back = low && path([...at].reverse(), [...high].reverse(), px, py).replace("M", "L");
    if (low) svg("path", { d: `${path(at, low, px, py)}${back}Z`, fill, opacity: 0.16 }, root);
    const drawn = svg("path", { d: path(at, mean, px, py), fill: "none", stroke: fill, "stroke-width": 1.8 }, root);
    svg("title", {}, drawn).textContent = label(group);
    if (at.length === 1) svg("circle", { cx: px(at[0]), cy: py(mean[0]), r: 3, fill }, root);
  }
  return [root, px, py];
}

const shown = new Set(ranked.filter((i) => data.groups[i].curve.epoch.length).slice(0, 5));

function drawCurves() {
  const series = [...shown].map((group) => ({ group, at: data.groups[group].curve.epoch, ...data.groups[group].curve }));
  legend($("legend"), [...shown]);
  const x = { min: 0, max: Math.max(...series.map((s) => s.at.at(-1))), flush: true };
  lines($("curves"), 340, x, [], series, "epoch", (root, px) => {
    const phases = new Map([...shown].filter((i) => data.groups[i].ascents.length).map((i) => [String(data.groups[i].ascents), i]));
    for (const i of phases.values())
      for (const [start, end] of data.groups[i].ascents) {
        const stretch = svg("rect", { x: px(start), width: px(end) - px(start), y: 8, height: 294, class: "ascent" }, root);
        if (phases.size > 1) stretch.style.fill = colour(i);
      }
  });
  drawEnds();
  const rates = [...shown].map((group) => ({ group, at: data.groups[group].throughput.generation, mean: data.groups[group].throughput.images_per_s }));
  const most = Math.max(0, ...rates.flatMap((s) => s.at));
  const generations = { min: 0, max: most, marks: ticks(0, most, Math.min(10, most || 1)).filter(Number.isInteger) };
  lines($("throughput"), 220, generations, [0], rates, "generation");
}

const several = groups.filter((i) => data.groups[i].ends); // more than one generation

function drawEnds() {
  const series = several.filter((i) => shown.has(i)).map((group) => ({ group, ...data.groups[group].ends }));
  if (!series.length) return $("ends").replaceChildren(el("p", "No finished run of several generations is chosen."));
  const x = { ...range(series.flatMap((s) => s.at)), marks: [...new Set(series.flatMap((s) => s.at))].sort((a, b) => a - b) };
  const aside = (place) => (place - (series.length - 1) / 2) * 0.008 * x.max; // so that intervals do not hide each other
  const curves = series.map(({ group, at, points }, place) => ({ group, at: at.map((g) => g + aside(place)), mean: points.map((p) => p.mean) }));
  const [root, px, py] = lines($("ends"), 300, x, reach(series.flatMap((s) => s.points)).map(percent), curves, "generation");
  curves.forEach(({ group, at }, place) => series[place].points.forEach((p, i) => dot(root, px(at[i]), py, p, group, percent)));
}

// Least and greatest value of means and their intervals.
const reach = (cells) => cells.flatMap((c) => [c.low ?? c.mean, c.high ?? c.mean]);

function dot(root, x, y, cell, group, clip = (v) => v) {
  const stroke = colour(group);
  if (cell.low !== null) svg("line", { x1: x, x2: x, y1: y(clip(cell.low)), y2: y(clip(cell.high)), stroke, opacity: 0.5 }, root);
  const circle = svg("circle", { cx: x, cy: y(cell.mean), r: 3.2, fill: stroke }, root);
  svg("title", {}, circle).textContent = `${label(group)}: ${short(cell.mean)}`;
}

// Rows from below, as deep in colour as the value from 0 to 1; a value that is not defined leaves its cell empty.
function heatMap(place, { group, name, rows, columns, values }) {
  const [width, left, bottom] = [Math.max(240, place.clientWidth), 76, 76];
  const [w, h] = [(width - left - 8) / columns.length, Math.min(30, (width - left - 8) / rows.length)];
  const height = h * rows.length + bottom;
  const caption = marked("figcaption", group);
  caption.append(`: ${name}`);
  place.replaceChildren(caption);
  const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img" }, place);
  const [px, py] = [(j) => left + j * w, (i) => 8 + (rows.length - 1 - i) * h];
  const size = Math.min(11, w, h); // of the letters
  rows.forEach((row, i) => (svg("text", { x: left - 5, y: py(i) + h / 2 + size / 3, "text-anchor": "end", "font-size": size }, root).textContent = row));
  columns.forEach((column, j) => {
    const [x, y] = [px(j) + w / 2 + size / 3, py(0) + h + 5];
    svg("text", { x, y, "text-anchor": "end", "font-size": size, transform: `rotate(-90 ${x} ${y})` }, root).textContent = column;
  });
  values.forEach((row, i) => row.forEach((value, j) => {
    const cell = svg("rect", { x: px(j), y: py(i), width: w, height: h, class: "cell", "fill-opacity": Math.max(0, value ?? 0) }, root);
    svg("title", {}, cell).textContent = `${rows[i]}, ${columns[j]}: ${value === null ? "not defined" : short(value)}`;
  }));
}

const charts = []; // draw again at a new width
const chart = (parent, draw) => {
  const figure = parent.appendChild(el("figure"));
  charts.push(() => figure.clientWidth && draw(figure)); // of what is folded, later
  return figure;
};

function addSettings() {
  const scored = groups.filter((i) => data.groups[i].best.mean !== null);
  $("settings-section").hidden = !data.varied.length || !scored.length;
  if (scored.length <= 12) legend($("setting-groups"), scored);
  for (const name of data.varied) {
    const acting = scored.filter((i) => name in data.groups[i].settings); // without effect elsewhere
    if (!acting.length) continue;
    const values = [...new Set(acting.map((i) => data.groups[i].settings[name]))];
    const numbers = values.every((v) => typeof v === "number");
    if (numbers) values.sort((a, b) => a - b);
    const log = numbers && values[0] > 0 && values.at(-1) / values[0] > 20;
    const x = numbers ? { ...range(values), log } : { names: values.map(short) };
    if (numbers && (values.length <= 6 || log)) x.marks = values.length <= 12 ? values : [0, 1, 2, 3].map((i) => values[0] * (values.at(-1) / values[0]) ** (i / 3));
    const y = range(reach(acting.map((i) => data.groups[i].best)).map(percent));
    chart($("settings"), (figure) => {
      const [root, px, py] = frame(figure, 230, x, y, name.replaceAll("_", " "));
      acting.forEach((i, place) => {
        const value = data.groups[i].settings[name];
        const aside = ((place % 5) - 2) * 2; // a little aside, so that groups at one value do not hide each other
        dot(root, px(numbers ? value : values.indexOf(value)) + aside, py, data.groups[i].best, i, percent);
      });
    }).dataset.setting = name;
  }
}

const plain = (value) => (value && typeof value === "object" ? Object.entries(value).map(([k, v]) => (Array.isArray(value) ? short(v) : `${k} ${short(v)}`)).join(", ") : short(value));
const listed = (protocol, keys) => keys.map((key) => `${key.replaceAll("_", " ")} ${plain(protocol[key] ?? null)}`).join("; ");

// Heat maps, then of each figure the groups' means and their curves.
function plots(grid, maps, figures) {
  for (const one of maps) chart(grid, (figure) => heatMap(figure, one));
  for (const { name, cells, curves } of figures) {
    if (cells.length)
      chart(grid, (figure) => {
        const [root, px, py] = frame(figure, 200, { names: cells.map((c) => label(c.group)) }, range(reach(cells)), name);
        cells.forEach((c, i) => dot(root, px(i), py, c, c.group));
      });
    if (curves.length)
      chart(grid, (figure) => {
        const series = curves.map(({ group, at, points }) => ({ group, at, mean: points.map((p) => p.mean) }));
        const x = range(curves.flatMap((c) => c.at));
        const [root, px, py] = lines(figure, 200, x, reach(curves.flatMap((c) => c.points)), series, `${name}, by generation`);
        for (const { group, at, points } of curves) points.forEach((p, i) => dot(root, px(at[i]), py, p, group));
      });
  }
  return grid.childElementCount;
}

// A section for each analysis and protocol: its first map of each group, or else its first figure; the rest is folded.
function addAnalysis({ title, protocol, differ, figures, pairs, maps }) {
  const section = $("analyses").appendChild(el("section"));
  section.append(el("h2", title));
  if (differ.length) section.append(el("p", `Not comparable with the other protocols: ${listed(protocol, differ)}.`, "differ"));
  const known = groups.filter((i) => figures.some((f) => f.cells.some((c) => c.group === i)));
  const first = maps.filter(({ name }) => name === maps[0].name);
  const open = maps.length ? 0 : 1; // of the figures
  legend(section.appendChild(el("ul", "", "legend")), known);
  plots(section.appendChild(el("div", "", "grid")), first, figures.slice(0, open));

  const rest = section.appendChild(el("details"));
  const summary = rest.appendChild(el("summary"));
  const common = Object.keys(protocol).filter((key) => !differ.includes(key) && !key.endsWith("sha256"));
  rest.append(el("p", `Protocol: ${listed(protocol, common)}.`));
  const box = () => rest.appendChild(el("div", "", "scroll"));
  const columns = known.map((i) => mean(label(i), (f) => f.cells.find((c) => c.group === i)));
  const name = { name: "figure", text: true, value: (row) => row.name };
  if (known.length) sortable(box(), [name, ...columns], figures, 0, false);
  const compared = [name, ...sides, { name: "pairs", value: (r) => r.count }, ...difference("first minus second", (r) => r)];
  if (pairs.length) sortable(box(), compared, pairs, 0, false);
  const more = plots(rest.appendChild(el("div", "", "grid")), maps.filter((one) => !first.includes(one)), figures.slice(open));
  summary.textContent = ["Protocol", ...(known.length ? ["tables"] : []), ...(more ? [counted(more, "more plot")] : [])].join(", ");
  rest.ontoggle = () => draw(); // what is folded has no width before
}

document.querySelector("h1").textContent = data.title;
$("counts").textContent = `${counted(data.runs, "finished run")} in ${counted(data.groups.length, "group")}; ${data.left_out.length} left out`;
$("chosen-on").textContent = data.chosen_on;

const names = data.varied.length ? data.varied : ["method"];
const setting = (name) => (i) => ({ method: data.groups[i].method, ...data.groups[i].settings })[name];
const columns = [
  ...names.map((name) => ({ name: name.replaceAll("_", " "), text: groups.some((i) => typeof setting(name)(i) === "string"), value: setting(name) })),
  { name: "seeds", value: (i) => data.groups[i].seeds.length },
  { name: "left out", value: (i) => data.groups[i].left_out },
  mean("best epoch", (i) => data.groups[i].best),
  mean("last epoch", (i) => data.groups[i].last),
  ...(groups.some((i) => data.groups[i].test.count) ? [mean("test", (i) => data.groups[i].test)] : []),
  { name: "epochs", value: (i) => data.groups[i].epochs },
  { name: "images/s", value: (i) => data.groups[i].images_per_s, show: (cell, i) => cell.append(fixed(data.groups[i].images_per_s, 0)) },
];
columns[0].show = (cell, i) => cell.append(marked("span", i, short(setting(names[0])(i) ?? "")));
sortable($("groups"), columns, groups, names.length + 2, true, (row, i) => {
  row.classList.toggle("on", shown.has(i));
  row.onclick = () => {
    shown.delete(i) || (data.groups[i].curve.epoch.length && shown.add(i));
    row.classList.toggle("on", shown.has(i));
    drawCurves();
  };
});

$("ends-section").hidden = !several.length;
$("same-start").textContent = data.same_start;
const ofGroup = [
  { name: "group", text: true, value: (i) => label(i), show: (cell, i) => cell.append(marked("span", i)) },
  { name: "training top-1, generation 0", value: (i) => data.groups[i].fit, show: (cell, i) => cell.append(fixed(data.groups[i].fit)) },
  { name: "generation 0", value: (i) => data.groups[i].ends.points[0].mean, show: (cell, i) => interval(cell, data.groups[i].ends.points[0]) },
  { name: "last generation", value: (i) => data.groups[i].ends.points.at(-1).mean, show: (cell, i) => interval(cell, data.groups[i].ends.points.at(-1)) },
  mean("gain", (i) => data.groups[i].gain, true),
  mean("slope", (i) => data.groups[i].slope, true),
];
sortable($("ends-table"), ofGroup, several, 3, true);

for (const name of ["pairs", "left_out", "analyses"]) $(`${name}-section`).hidden = !data[name].length;
if (data.more_pairs) $("pairs-more").textContent = `${data.more_pairs} more are in no table; Holm's adjustment counts them.`;
const sloped = data.pairs.some((r) => r.slope) ? difference("slope", (r) => r.slope ?? {}) : [];
const differences = [...difference("best epoch", (r) => r.best), ...difference("last epoch", (r) => r.last), ...sloped];
sortable($("pairs"), [...sides, { name: "pairs", value: (r) => r.best.count }, ...differences], data.pairs, 4, false);

$("left-out").append(...data.left_out.map(([name, why]) => el("li", `${name}: ${why}`)));

addSettings();
data.analyses.forEach(addAnalysis);
const draw = () => {
  drawCurves();
  for (const again of charts) again();
  for (const box of document.querySelectorAll(".scroll")) box.toggleAttribute("data-more", box.scrollWidth > box.clientWidth + 1);
};
draw();
addEventListener("resize", draw);
