"use strict";
// The table of a benchmark, the curves and cases behind a row, and the UMAP of tiles.

const HIGHEST_UNIT = 1.0001; // metrics between 0 and this are drawn on an axis from 0 to 1

// Rounds as the benchmark's own table does.
function rounded(value) {
  return value === null ? "–" : value.toFixed(2);
}

// The cases predicted as the last class at a point of the ROC curve.
function predictedAt(found, point) {
  const { fpr } = found.roc;
  const from = found.cases.called_from;
  const has = (i) => from[i] !== null && from[i] <= fpr[point] + 1e-9;
  return { title: `Cases predicted ${found.classes.at(-1)} at a false positive rate of ${shown(fpr[point], 2)}`, has };
}

function caseName(found, i) {
  const c = found.cases;
  return found.level === "patient" ? c.patient_id[i] : found.level === "slide" ? c.slide_id[i] : `${c.slide_id[i]}, tile ${c.tile[i]}`;
}

// The cases in one bin of the calibration curve.
function casesIn(found, bin) {
  const { low, high } = found.calibration;
  const p = found.cases.p_last;
  return { title: `Cases with predicted probability ${shown(low[bin], 2)} to ${shown(high[bin], 2)}`, has: (i) => p[i] >= low[bin] && p[i] <= high[bin] };
}

class BenchmarkView {
  constructor(name, data, query) {
    this.name = name;
    this.data = data;
    this.columns = data.columns;
    this.task = query.get("task") || this.columns.task[0];
    this.metric = query.get("metric") || "auroc";
    this.sort = query.get("sort") || "-value";
    this.group = query.get("group") || "all";
    this.open = query.get("open") || "";
    this.umap = query.get("plane") || "";
    this.by = query.get("by") || "site";
  }

  build() {
    const main = document.getElementById("main");
    this.box = el("div", { class: "bench scroller plain", tabindex: "0", role: "region", "aria-label": "Benchmark" });
    main.replaceChildren(el("h1", { text: `Benchmark ${this.name}` }), this.box);
    this.tableBox = el("div");
    this.behind = el("section", { "aria-label": "Details of a row" });
    this.umapBox = el("section", { "aria-label": "UMAP of tiles" });
    this.box.append(this.tableBox, this.behind, this.umapBox);
    this.draw();
    if (this.open) this.show(this.open);
    this.chooseUmap();
  }

  keep() {
    const { task, metric, group, sort, open, umap, by } = this;
    address.keep(["benchmark", this.name], { task, metric, group, sort, open, plane: umap, by: umap ? by : "" });
  }

  unique(name, rows) {
    return [...new Set(rows.map((i) => this.columns[name][i]))];
  }

  rows() {
    const c = this.columns;
    const all = c.task.map((_, i) => i);
    const ofTask = all.filter((i) => c.task[i] === this.task);
    const metrics = this.unique("metric", ofTask);
    if (!metrics.includes(this.metric)) this.metric = metrics.includes("auroc") ? "auroc" : metrics[0];
    const ofMetric = ofTask.filter((i) => c.metric[i] === this.metric);
    const groups = this.unique("group", ofMetric);
    if (!groups.includes(this.group)) this.group = "all";
    const found = ofMetric.filter((i) => c.group[i] === this.group);
    const falling = this.sort.startsWith("-");
    const values = c[this.sort.replace(/^-/, "")] || c.value;
    found.sort((i, j) => {
      const [a, b] = [values[i], values[j]];
      if (a === null) return 1;
      if (b === null) return -1;
      const way = typeof a === "number" ? a - b : String(a).localeCompare(String(b));
      return falling ? -way : way;
    });
    return { tasks: this.unique("task", all), metrics, groups, found };
  }

  select(label, id, options, value, act, title = (o) => o) {
    return [el("label", { for: id, text: label }), el("select", { id, onchange: (event) => act(event.target.value) },
      ...options.map((o) => el("option", { value: o, text: title(o), selected: o === value })))];
  }

  draw() {
    const { tasks, metrics, groups, found } = this.rows();
    this.keep();
    const controls = el("div", { class: "controls" },
      ...this.select("Task", "task", tasks, this.task, (v) => { this.task = v; this.draw(); }),
      ...this.select("Metric", "metric", metrics, this.metric, (v) => { this.metric = v; this.draw(); }, titleOf),
      ...this.select("Patients", "group", groups, this.group, (v) => { this.group = v; this.draw(); }, (o) => o.replace(/^site=/, "site ")));
    const heads = [["encoder", "encoder"], ["head", "head"], ["value", titleOf(this.metric)], ["patients", "patients"]].map(([key, title]) => {
      const way = this.sort === key ? "ascending" : this.sort === `-${key}` ? "descending" : "none";
      const arrow = { ascending: " ▲", descending: " ▼", none: "" }[way];
      return el("th", { scope: "col", "aria-sort": way }, el("button", { type: "button", text: title + arrow, onclick: () => { this.sort = this.sort === `-${key}` ? key : `-${key}`; this.draw(); } }));
    });
    const table = el("table", { class: "slides" }, el("thead", {}, el("tr", {}, ...heads, el("th", { scope: "col", text: "95 % interval" }), el("th", { scope: "col", text: "details" }))), el("tbody", {}, ...found.map((i) => this.row(i, found))));
    this.tableBox.replaceChildren(controls, table, el("p", { class: "hint", text: "In brackets and drawn: 95 % intervals over patients, from the benchmark." }));
  }

  row(i, found) {
    const c = this.columns;
    const interval = c.low[i] === null ? "" : ` (${rounded(c.low[i])}${c.low[i] < 0 ? " to " : "–"}${rounded(c.high[i])})`;
    const key = [c.task[i], c.run[i], c.head[i]].join("~");
    const behind = c.answer[i] ? el("button", { type: "button", text: "curves and cases", "aria-label": `curves and cases of ${c.encoder[i]}, ${c.head[i]}, ${c.task[i]}`, onclick: () => this.show(key) }) : "–";
    return el("tr", {}, el("th", { scope: "row", text: c.encoder[i] }), el("td", { text: c.head[i] }),
      el("td", { class: "number", text: rounded(c.value[i]) + interval }), el("td", { class: "number", text: shown(c.patients[i]) }),
      el("td", {}, this.bar(i, found)), el("td", {}, behind));
  }

  // Draws the value and interval of a row on an axis common to all rows.
  bar(i, found) {
    const c = this.columns;
    const all = found.flatMap((j) => [c.value[j], c.low[j], c.high[j]]).filter((v) => v !== null);
    const isShare = Math.min(...all) >= 0 && Math.max(...all) <= HIGHEST_UNIT;
    const [from, to] = isShare ? [0, 1] : [Math.min(...all), Math.max(...all)];
    const at = (v) => 4 + (152 * (v - from)) / (to - from || 1);
    const made = svg("svg", { width: 160, height: 16, "aria-hidden": "true" }, svg("line", { x1: at(from), x2: at(to), y1: 8, y2: 8, class: "grid" }));
    if (isShare) made.append(svg("line", { x1: at(0.5), x2: at(0.5), y1: 2, y2: 14, class: "grid" }));
    if (c.low[i] !== null) made.append(svg("line", { x1: at(c.low[i]), x2: at(c.high[i]), y1: 8, y2: 8, class: "line" }));
    if (c.value[i] !== null) made.append(svg("circle", { cx: at(c.value[i]), cy: 8, r: 4, class: "point" }));
    return made;
  }

  async show(key) {
    this.open = key;
    this.keep();
    const [task, run, head] = key.split("~");
    const title = el("h2", { tabindex: "-1", text: `${task}: ${head} on ${run}` });
    this.behind.replaceChildren(title, el("p", { class: "hint", text: "…" }));
    const found = await stainssl.data("answer", task, run, head);
    if (this.open !== key) return;
    if (found.problem) {
      this.behind.replaceChildren(title, problem(found.problem));
      return;
    }
    const cases = el("div");
    const list = (some) => cases.replaceChildren(this.cases(found, key, some, () => list(null)));
    const plots = this.plots(found, list);
    list(null);
    this.behind.replaceChildren(title, el("div", { class: "plots" }, ...plots), cases);
    title.scrollIntoView({ block: "start" });
    title.focus({ preventScroll: true });
  }

  // A click on a plot calls `list({title, has(i)})` with the cases to show.
  plots(found, list) {
    const name = (i) => caseName(found, i);
    const one = (i) => list({ title: `Case ${name(i)}`, has: (j) => j === i });
    if (found.survival) {
      const group = (risk) => list({ title: `Cases of ${risk} risk`, has: (i) => found.cases.predicted[i] === risk });
      return [survivalPlot(found.survival, found.log_rank, group)];
    }
    if (!found.calibration) return [scatterPlot(found.cases, name, one)];
    const label = `class ${found.classes.at(-1)}`;
    const made = found.roc ? [rocPlot(found.roc, label, (i) => list(predictedAt(found, i)))] : [];
    made.push(calibrationPlot(found.calibration, label, (bin) => list(casesIn(found, bin))));
    const stains = stainPlot(found.cases, found.units, name, one);
    return stains ? [...made, stains] : made;
  }

  // The table of all cases, or of those selected by `some`: null or `{title, has(i)}`.
  cases(found, answer, some, all) {
    const c = found.cases;
    const chosen = c.truth.map((_, i) => i).filter((i) => some === null || some.has(i));
    const wrong = c.wrong ? `, ${shown(chosen.filter((i) => c.wrong[i]).length)} wrong` : "";
    const names = ["patient_id", "site", "truth", "predicted"];
    const score = ["p_truth", "error", "risk"].find((key) => key in c);
    const heads = [...names.map(titleOf), score === "p_truth" ? "p of the true class" : score, "slides"].map((text) => el("th", { scope: "col", text }));
    heads[names.length].className = "number";
    const rows = chosen.map((i) => el("tr", { class: c.wrong && c.wrong[i] ? "wrong" : null },
      ...names.map((name) => el("td", { text: shown(c[name][i]) })), el("td", { class: "number", text: shown(c[score][i], 2) }),
      el("td", {}, ...this.links(found, i, answer))));
    const of = some !== null ? some.title : score === "risk" ? "Cases, highest risk first" : "Cases, worst first";
    const said = el("h3", { text: `${of}: ${shown(rows.length)} of ${shown(found.units)}${wrong}` });
    const back = some === null ? null : el("button", { type: "button", text: "Show all cases", onclick: all });
    const table = el("table", { class: "slides" }, el("thead", {}, el("tr", {}, ...heads)), el("tbody", {}, ...rows));
    return el("div", {}, said, back, el("div", { class: "cases", tabindex: "0", role: "region", "aria-label": "Cases" }, table));
  }

  links(found, i, answer) {
    const tile = found.level === "tile" ? found.cases.tile[i] : "";
    return found.cases.slides[i].flatMap(([cohort, slide]) => {
      const query = found.level === "tile" ? { tile, go: 1 } : { answer };
      return [el("a", { href: address.make(["slide", cohort, slide], query), text: tile === "" ? slide : `${slide}, tile ${tile}` }), " "];
    });
  }

  chooseUmap() {
    if (!this.data.samples.length || stainssl.exported) return;
    const samples = ["", ...this.data.samples];
    const select = el("select", { id: "plane", onchange: (event) => { this.umap = event.target.value; this.showUmap(); } },
      ...samples.map((name) => el("option", { value: name, text: name || "none", selected: name === this.umap })));
    const by = el("select", { id: "by", onchange: (event) => { this.by = event.target.value; this.showUmap(); } },
      ...["site", "label", "patient_id"].map((name) => el("option", { value: name, text: titleOf(name), selected: name === this.by })));
    this.umapShown = el("div");
    this.umapBox.replaceChildren(el("h2", { text: "UMAP of tiles" }), el("div", { class: "controls" }, el("label", { for: "plane", text: "Encoder" }), select, el("label", { for: "by", text: "Colors" }), by), this.umapShown);
    if (this.umap) this.showUmap();
  }

  async showUmap() {
    this.keep();
    this.umapShown.replaceChildren();
    if (!this.umap) return;
    this.umapShown.append(el("p", { class: "hint", text: "The first UMAP takes some seconds." }));
    const asked = this.umap;
    const found = await stainssl.data("plane", asked);
    if (this.umap !== asked) return;
    if (found.problem) {
      this.umapShown.replaceChildren(problem(found.problem));
      return;
    }
    const c = found.columns;
    const card = el("div", { class: "card" }, el("p", { class: "hint", text: "Hover over a tile to see it; click to open it on its slide." }));
    const link = (i) => address.make(["slide", c.cohort[i], c.slide_id[i]], { tile: c.tile[i], go: 1 });
    const tell = (i) => card.replaceChildren(
      el("img", { class: "tile", alt: "", src: stainssl.picture("tile", c.cohort[i], c.slide_id[i], c.tile[i]) }),
      el("p", {}, el("a", { href: link(i), text: `${c.slide_id[i]}, tile ${c.tile[i]}` }), ` · patient ${c.patient_id[i]} · site ${c.site[i]} · ${found.task} ${c.label[i]}`));
    const plot = umapPlot(c, this.by, tell, (i) => { location.hash = link(i); });
    this.umapShown.replaceChildren(el("div", { class: "plots" }, plot, card), el("p", { class: "hint", text: "Neighborhoods are meaningful, distances between groups are not." }));
  }
}

async function showBenchmark(name, query) {
  document.title = `benchmark ${name} – stainssl`;
  const data = await stainssl.data("benchmark", name);
  if (data.problem) document.getElementById("main").replaceChildren(el("h1", { text: name }), problem(data.problem));
  else new BenchmarkView(name, data, query).build();
}
