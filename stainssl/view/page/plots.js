"use strict";
// Small SVG plots: lines and points on two axes, and the UMAP.

const PLOT_PX = 300;
const EDGE = { left: 44, right: 18, top: 10, bottom: 40 };
// Okabe and Ito's palette for color-blind readers; repeated if there are more groups.
const PALETTE = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#000000"];

function svg(tag, given = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(given)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (key === "text") made.textContent = value;
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

// Round numbers within a range, four to eight of them; for 0 to 1, quarters.
function ticks(from, to) {
  const rough = (to - from) / 4;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [5, 2.5, 2, 1].find((round) => round * power <= rough * 1.0001);
  const first = Math.ceil(from / step - 1e-9);
  const last = Math.floor(to / step + 1e-9);
  return Array.from({ length: last - first + 1 }, (_, i) => Number(((first + i) * step).toPrecision(12)));
}

// A plot with axes from `xs[0]` to `xs[1]` and `ys[0]` to `ys[1]`, by default 0 to 1.
class UnitPlot {
  constructor(label, xTitle, yTitle, xs = [0, 1], ys = [0, 1]) {
    this.xs = xs;
    this.ys = ys;
    this.inner = PLOT_PX - EDGE.left - EDGE.right;
    this.high = PLOT_PX - EDGE.top - EDGE.bottom;
    this.told = el("p", { class: "hint told", "aria-live": "polite", text: " " });
    this.svg = svg("svg", { viewBox: `0 0 ${PLOT_PX} ${PLOT_PX}`, width: PLOT_PX, height: PLOT_PX, role: "img", "aria-label": label });
    this.axes(xTitle, yTitle);
    this.element = el("figure", {}, el("figcaption", { text: label }), this.svg, this.told);
  }

  x(value) { return EDGE.left + ((value - this.xs[0]) / (this.xs[1] - this.xs[0])) * this.inner; }

  y(value) { return EDGE.top + (1 - (value - this.ys[0]) / (this.ys[1] - this.ys[0])) * this.high; }

  axes(xTitle, yTitle) {
    const [left, right, low, high] = [this.x(this.xs[0]), this.x(this.xs[1]), this.y(this.ys[0]), this.y(this.ys[1])];
    for (const at of ticks(...this.xs)) {
      this.svg.append(
        svg("line", { x1: this.x(at), x2: this.x(at), y1: low, y2: high, class: "grid" }),
        svg("text", { x: this.x(at), y: low + 14, "text-anchor": "middle", text: String(at) }));
    }
    for (const of of ticks(...this.ys)) {
      this.svg.append(
        svg("line", { x1: left, x2: right, y1: this.y(of), y2: this.y(of), class: "grid" }),
        svg("text", { x: left - 5, y: this.y(of) + 4, "text-anchor": "end", text: String(of) }));
    }
    this.svg.append(
      svg("text", { x: (left + right) / 2, y: PLOT_PX - 6, "text-anchor": "middle", text: xTitle }),
      svg("text", { transform: `translate(11 ${(low + high) / 2}) rotate(-90)`, "text-anchor": "middle", text: yTitle }));
  }

  diagonal() {
    const [from, to] = this.xs;
    this.svg.append(svg("line", { x1: this.x(from), x2: this.x(to), y1: this.y(from), y2: this.y(to), class: "chance" }));
  }

  path(xs, ys) {
    return xs.map((x, i) => `${i ? "L" : "M"}${this.x(x)} ${this.y(ys[i])}`).join("");
  }

  band(xs, low, high) {
    if (low.some((v) => v === null)) return;
    const back = [...xs].reverse();
    this.svg.append(svg("path", { class: "band", d: `${this.path(xs, high)}${this.path(back, [...low].reverse()).replace("M", "L")}Z` }));
  }

  line(xs, ys, color) {
    const drawn = svg("path", { class: "line", d: this.path(xs, ys) });
    if (color) drawn.style.stroke = color;
    this.svg.append(drawn);
  }

  // Points that show `text(i)` on hover; an invisible circle enlarges the target of small ones.
  points(xs, ys, text, radius, act) {
    xs.forEach((x, i) => {
      const tell = () => { this.told.textContent = text(i); };
      const place = { cx: this.x(x), cy: this.y(ys[i]) };
      this.svg.append(svg("circle", { ...place, r: radius, class: radius ? "point" : "unseen" }),
        svg("circle", { ...place, r: Math.max(radius, 6), class: act ? "unseen active" : "unseen", onpointerenter: tell, ...(act ? { onclick: () => act(i) } : {}) }));
    });
  }
}

// `act(i)` is called on a click on a point.
function rocPlot(roc, label, act) {
  const plot = new UnitPlot(`ROC, ${label}`, "false positive rate", "sensitivity");
  plot.diagonal();
  plot.band(roc.fpr, roc.low, roc.high);
  plot.line(roc.fpr, roc.tpr);
  const bounds = (i) => (roc.low[i] === null ? "" : ` (${shown(roc.low[i], 2)}–${shown(roc.high[i], 2)})`);
  plot.points(roc.fpr, roc.tpr, (i) => `false positive rate ${shown(roc.fpr[i], 2)}: sensitivity ${shown(roc.tpr[i], 2)}${bounds(i)}; click to list the cases predicted positive`, 0, act);
  return plot.element;
}

// `act(i)` is called on a click on a point.
function calibrationPlot(found, label, act) {
  const plot = new UnitPlot(`Calibration, ${label}`, "mean predicted probability", "observed share");
  plot.diagonal();
  plot.line(found.said, found.came);
  plot.points(found.said, found.came, (i) => `predicted ${shown(found.said[i], 2)}, observed ${shown(found.came[i], 2)}, ${shown(found.units[i])} units; click to list them`, 4, act);
  return plot.element;
}

// Predicted against true values; `act(i)` is called on a click on a case.
function scatterPlot(cases, name, act) {
  const every = [...cases.truth, ...cases.predicted];
  const [low, high] = [Math.min(...every), Math.max(...every)];
  const margin = 0.04 * (high - low || 1);
  const range = [low - margin, high + margin];
  const plot = new UnitPlot("Predicted and true values", "true", "predicted", range, range);
  plot.diagonal();
  plot.points(cases.truth, cases.predicted, (i) => `${name(i)}: true ${shown(cases.truth[i])}, predicted ${shown(cases.predicted[i])}; click to show the case`, 3, act);
  return plot.element;
}

// Kaplan–Meier curves of the groups of low and high risk. `test` is the result of the log-rank test
// as text; `act(group)` is called on a click on a step.
function survivalPlot(groups, test, act) {
  const end = Math.max(...Object.values(groups).flatMap((group) => group.time));
  const plot = new UnitPlot("Survival by risk group", Object.values(groups)[0].unit, "survival", [0, end || 1]);
  Object.entries(groups).forEach(([name, group], i) => {
    const { time, survival } = group;
    const stepped = time.flatMap((t, j) => (j ? [[t, survival[j - 1]], [t, survival[j]]] : [[t, survival[j]]]));
    plot.line(stepped.map((p) => p[0]), stepped.map((p) => p[1]), PALETTE[i]);
    const told = (j) => `${name} risk: ${shown(survival[j], 2)} at ${shown(time[j], 1)}, ${shown(group.at_risk[j])} at risk; click to list the group`;
    plot.points(time, survival, told, 0, () => act(name));
  });
  const legend = el("ul", { class: "legend" }, ...Object.keys(groups).map((name, i) => el("li", {}, el("i", { style: { background: PALETTE[i] } }), `${name} risk: ${groups[name].events} events of ${groups[name].units}`)));
  plot.element.append(legend, el("p", { class: "hint", text: test }), atRiskTable(groups, ticks(...plot.xs)));
  return plot.element;
}

// Numbers at risk of each group at some times. Curves have a step at every time of the group, so
// that the first step at or after a time gives the number.
function atRiskTable(groups, times) {
  const count = ({ time, at_risk: left }, t) => left[time.findIndex((step) => step >= t)] ?? 0;
  const head = el("tr", {}, el("th", { scope: "col", text: "at risk" }), ...times.map((t) => el("th", { scope: "col", text: String(t) })));
  const rows = Object.entries(groups).map(([name, group]) => el("tr", {}, el("th", { scope: "row", text: name }), ...times.map((t) => el("td", { text: String(count(group, t)) }))));
  return el("table", { class: "at-risk" }, el("thead", {}, head), el("tbody", {}, ...rows));
}

// Probability of the true class by stain distance; `units` is the number of all units.
function stainPlot(cases, units, name, act) {
  const known = cases.stain_distance.map((_, i) => i).filter((i) => cases.stain_distance[i] !== null);
  if (!known.length) return null;
  const x = known.map((i) => cases.stain_distance[i]);
  const right = Math.ceil(Math.max(...x)) || 1;
  const worst = cases.stain_distance.length < units ? `, the ${shown(cases.stain_distance.length)} worst` : "";
  const unknown = x.length < cases.stain_distance.length ? `, ${shown(cases.stain_distance.length - x.length)} of unknown stain not shown` : "";
  const plot = new UnitPlot(`Predictions by stain distance${worst}${unknown}`, "distance from the median stain (median 1)", "probability of the true class", [0, right]);
  const told = (j) => `${name(known[j])}: stain distance ${shown(cases.stain_distance[known[j]], 2)}, probability of the true class ${shown(cases.p_truth[known[j]], 2)}; click to show the case`;
  plot.points(x, known.map((i) => cases.p_truth[i]), told, 3, (j) => act(known[j]));
  return plot.element;
}

// UMAP of tiles colored by a column; calls `tell(i)` on hover and `open(i)` on a click.
function umapPlot(found, by, tell, open) {
  const side = 520;
  const { x, y } = found;
  const [left, right, low, high] = [Math.min(...x), Math.max(...x), Math.min(...y), Math.max(...y)];
  const groups = [...new Set(found[by])].sort();
  const color = new Map(groups.map((group, i) => [group, PALETTE[i % PALETTE.length]]));
  const at = (v, from, to) => 8 + ((v - from) / (to - from || 1)) * (side - 16);
  const dots = x.map((_, i) => svg("circle", {
    cx: at(x[i], left, right), cy: side - at(y[i], low, high), r: 4, fill: color.get(found[by][i]), class: "dot",
    onpointerenter: () => tell(i), onclick: () => open(i),
  }));
  const picture = svg("svg", { viewBox: `0 0 ${side} ${side}`, width: side, height: side, role: "img", "aria-label": `UMAP of tiles, colored by ${titleOf(by)}` }, ...dots);
  const legend = groups.length > 12 ? el("p", { class: "legend", text: `${groups.length} groups; colors repeat` })
    : el("ul", { class: "legend" }, ...groups.map((group) => el("li", {}, el("i", { style: { background: color.get(group) } }), String(group === "" ? "not given" : group))));
  return el("div", {}, legend, picture);
}
