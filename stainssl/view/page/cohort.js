"use strict";
// The table of a cohort. Only visible rows have elements, so that 10,000 rows scroll smoothly.

const ROW_PX = 48;
const MARGIN_ROWS = 8;
const TITLES = {
  slide_id: "slide", patient_id: "patient", tissue_mm2: "tissue (mm²)", tiles_kept: "tiles",
  detail: "reason", feature_distance: "feature distance", stain_distance: "stain distance", mpp: "µm/px",
  auroc: "AUROC", auprc: "AUPRC", brier: "Brier score", f1_macro: "F1 (macro)", f1_weighted: "F1 (weighted)", knn_auroc: "k-NN AUROC",
  auroc_pooled: "AUROC (pooled)", auprc_pooled: "AUPRC (pooled)", ppv: "PPV", npv: "NPV",
  sensitivity_rule_out: "sensitivity (rule-out)", specificity_rule_out: "specificity (rule-out)",
  ppv_rule_out: "PPV (rule-out)", npv_rule_out: "NPV (rule-out)",
  pearson: "Pearson", spearman: "Spearman", mae: "MAE", r2: "R²",
  kappa: "weighted kappa", auroc_cuts: "AUROC over cuts",
  c_index: "Harrell's C", c_index_uno: "Uno's C", auroc_time: "AUROC over time", integrated_brier: "integrated Brier score",
};
const FIRST = ["slide_id", "patient_id", "site", "status"];
const NEXT = ["tissue_mm2", "tiles_kept"];
const PREDICTED = "predicted "; // prefix of the names of columns of predictions
const LAST = ["detail"];

const LATER = "not tiled"; // NOT_TILED in records.py

function statusClass(status) {
  return `status ${{ ok: "ok", [LATER]: "later" }[status] || "bad"}`;
}

function titleOf(name) {
  if (name.startsWith(`${PREDICTED}p_`)) return `p(${name.slice(PREDICTED.length + 2)})`;
  const cut = name.match(/^auroc_cut(\d+)$/);
  if (cut) return `AUROC of cut ${cut[1]}`;
  return TITLES[name] || name.replace(/_/g, " ");
}

// Returns the test of a filter: `>0.5`, `<=3` or `1..2` for numbers, otherwise a substring.
function matcher(asked) {
  const text = asked.trim().toLowerCase();
  const bound = text.match(/^(<=|>=|<|>|=)\s*(-?[\d.]+)$/);
  const range = text.match(/^(-?[\d.]+)\s*\.\.\s*(-?[\d.]+)$/);
  if (bound) {
    const limit = Number(bound[2]);
    const tests = {
      "<": (v) => v < limit, ">": (v) => v > limit, "=": (v) => v === limit,
      "<=": (v) => v <= limit, ">=": (v) => v >= limit,
    };
    return (value) => typeof value === "number" && tests[bound[1]](value);
  }
  if (range) {
    const [low, high] = [Number(range[1]), Number(range[2])];
    return (value) => typeof value === "number" && value >= low && value <= high;
  }
  return (value) => String(value ?? "").toLowerCase().includes(text);
}

class CohortTable {
  constructor(name, data, query) {
    this.name = name;
    this.columns = { ...data.columns };
    this.size = this.columns.slide_id.length;
    this.sort = query.get("sort") || "";
    this.filters = new Map();
    for (const [key, value] of query) if (key.startsWith("f.")) this.filters.set(key.slice(2), value);
    this.search = query.get("q") || "";
    this.answer = query.get("answer") || "";
    this.answers = data.answers;
    this.order = [];
  }

  names() {
    const all = Object.keys(this.columns);
    const predicted = all.filter((n) => n.startsWith(PREDICTED));
    const named = [...FIRST, ...predicted, ...NEXT, ...LAST];
    const rest = all.filter((n) => !named.includes(n));
    return [...FIRST, ...predicted, ...NEXT, ...rest, ...LAST].filter((n) => all.includes(n));
  }

  select() {
    const names = this.names();
    const tests = [...this.filters]
      .filter(([name, text]) => text && this.columns[name])
      .map(([name, text]) => [this.columns[name], matcher(text)]);
    const all = matcher(this.search);
    const rows = [];
    for (let i = 0; i < this.size; i++) {
      if (!tests.every(([values, test]) => test(values[i]))) continue;
      if (this.search && !names.some((name) => all(this.columns[name][i]))) continue;
      rows.push(i);
    }
    const falling = this.sort.startsWith("-");
    const values = this.columns[this.sort.replace(/^-/, "")];
    if (values) {
      const compare = (a, b) => (typeof a === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true }));
      rows.sort((i, j) => {
        const [a, b] = [values[i], values[j]];
        // Unknown values come last in both directions.
        if (a === null || a === "") return b === null || b === "" ? i - j : 1;
        if (b === null || b === "") return -1;
        return (falling ? -compare(a, b) : compare(a, b)) || i - j;
      });
    }
    this.order = rows;
  }

  query() {
    const out = { sort: this.sort, q: this.search, answer: this.answer };
    for (const [name, text] of this.filters) out[`f.${name}`] = text;
    return out;
  }

  // --- elements ---

  build() {
    this.scroller = el("div", { class: "scroller", tabindex: "0", role: "region", "aria-label": "Slides" });
    this.table = el("table", { class: "slides" });
    this.scroller.append(this.table);
    this.scroller.addEventListener("scroll", () => requestAnimationFrame(() => this.draw()));
    this.count = el("p", { class: "count", role: "status" });
    this.rebuild();
    return [this.controls(), this.leftOut(), this.count, this.scroller];
  }

  controls() {
    const search = el("input", {
      type: "search", value: this.search, id: "search",
      oninput: (event) => { this.search = event.target.value; this.update(); },
    });
    const parts = [el("label", { for: "search", text: "Search" }), search];
    if (this.answers.length) {
      const select = el("select", {
        id: "answer",
        onchange: (event) => { this.answer = event.target.value; this.withPredictions(); },
      }, el("option", { value: "", text: "none" }), ...this.answers.map((a) => el("option", { value: a.name, text: a.title, selected: a.name === this.answer })));
      parts.push(el("label", { for: "answer", text: "Predictions" }), select);
    }
    const hint = "Filters below the headings: text, or >0.5, <=3, 1..2 for numbers.";
    return el("div", { class: "controls" }, ...parts, el("span", { class: "hint", text: hint }));
  }

  // Numbers of slides left out: a button for each status other than ok, which filters by it.
  leftOut() {
    const counts = new Map();
    for (const status of this.columns.status) counts.set(status, (counts.get(status) || 0) + 1);
    const bad = [...counts].filter(([status]) => status !== "ok").sort((a, b) => b[1] - a[1]);
    const isLater = ([status]) => status === LATER;
    const button = ([status, count]) => el("button", {
      type: "button", class: statusClass(status),
      onclick: () => {
        this.filters.set("status", this.filters.get("status") === status ? "" : status);
        this.rebuild();
      },
    }, `${status}: ${count}`);
    const left = bad.filter((one) => !isLater(one));
    const said = left.length ? ["Left out: ", ...left.map(button)] : ["No slide was left out. "];
    return el("p", { class: "leftout" }, ...said, ...bad.filter(isLater).map(button));
  }

  async withPredictions() {
    for (const name of Object.keys(this.columns)) if (name.startsWith(PREDICTED)) delete this.columns[name];
    if (this.answer) {
      const found = await stainssl.data("predictions", this.name, this.answer);
      if (found.problem) announce(found.problem);
      else {
        this.bounds = found.columns;
        const means = Object.keys(found.columns).filter((name) => !/^(low|high)_/.test(name));
        for (const name of means) this.columns[PREDICTED + name] = found.columns[name];
      }
    }
    this.rebuild();
  }

  rebuild() {
    const names = this.names();
    this.numbers = new Set(names.filter((name) => this.columns[name].some((value) => typeof value === "number")));
    const heads = names.map((name) => {
      const way = this.sort === name ? "ascending" : this.sort === `-${name}` ? "descending" : "none";
      const arrow = { ascending: " ▲", descending: " ▼", none: "" }[way];
      return el("th", { scope: "col", "aria-sort": way, class: `c-${name}` },
        el("button", { type: "button", onclick: () => this.turn(name), text: titleOf(name) + arrow }),
        el("input", {
          type: "text", "aria-label": `Filter ${titleOf(name)}`, value: this.filters.get(name) || "",
          oninput: (event) => { this.filters.set(name, event.target.value); this.update(); },
        }));
    });
    this.head = el("thead", {}, el("tr", {}, el("th", { scope: "col", class: "thumb" }, el("span", { class: "hidden", text: "thumbnail" })), ...heads));
    this.body = el("tbody");
    this.table.replaceChildren(this.head, this.body);
    this.update();
  }

  turn(name) {
    this.sort = this.sort === name ? `-${name}` : this.sort === `-${name}` ? "" : name;
    this.rebuild();
    this.table.querySelector(`th.c-${CSS.escape(name)} button`)?.focus();
  }

  update() {
    this.select();
    this.count.textContent = `${shown(this.order.length)} of ${shown(this.size)} slides${this.answer ? "; predictions: mean, in brackets the central 95 % over repeats or fold models" : ""}`;
    this.first = -1;
    this.table.setAttribute("aria-rowcount", this.order.length + 1);
    address.keep(["cohort", this.name], this.query());
    this.draw();
  }

  draw() {
    const height = this.scroller.clientHeight || 600;
    const first = Math.max(0, Math.floor(this.scroller.scrollTop / ROW_PX) - MARGIN_ROWS);
    if (first === this.first) return;
    this.first = first;
    const last = Math.min(this.order.length, first + Math.ceil(height / ROW_PX) + 2 * MARGIN_ROWS);
    const names = this.names();
    const rows = [];
    for (let at = first; at < last; at++) rows.push(this.row(this.order[at], at, names));
    const space = (px) => el("tr", { class: "space", "aria-hidden": "true" }, el("td", { colspan: names.length + 1, style: { height: `${px}px` } }));
    this.body.replaceChildren(space(first * ROW_PX), ...rows, space((this.order.length - last) * ROW_PX));
  }

  row(i, at, names) {
    const slide = this.columns.slide_id[i];
    const link = address.make(["slide", this.name, slide], { answer: this.answer });
    const image = el("img", { src: stainssl.picture("thumbnail", this.name, slide), alt: "", loading: "lazy", onerror: (event) => event.target.remove() });
    const cells = names.map((name) => this.cell(name, i, link));
    return el("tr", { "aria-rowindex": at + 2 }, el("td", { class: "thumb" }, el("a", { href: link, tabindex: "-1", "aria-hidden": "true" }, image)), ...cells);
  }

  cell(name, i, link) {
    const value = this.columns[name][i];
    if (name === "slide_id") return el("th", { scope: "row" }, el("a", { href: link, text: value }));
    if (name === "status") {
      const why = this.columns.detail[i];
      return el("td", { title: why || null }, el("span", { class: statusClass(value), text: value }), why ? el("small", { class: "why", text: why }) : null);
    }
    if (name.startsWith(PREDICTED)) return el("td", { class: "number", text: this.withInterval(name, value, i) });
    return el("td", { class: this.numbers.has(name) ? "number" : "text", text: shown(value), title: name === "detail" ? value : null });
  }

  withInterval(name, value, i) {
    const [low, high] = ["low", "high"].map((side) => this.bounds[`${side}_${name.slice(PREDICTED.length).replace(/^p_/, "")}`]?.[i]);
    if (value === null || low === undefined || low === null) return shown(value);
    return `${value.toFixed(2)} (${low.toFixed(2)}–${high.toFixed(2)})`;
  }
}

async function showCohort(name, query) {
  const main = document.getElementById("main");
  const data = await stainssl.data("cohort", name);
  document.title = `${name} – stainssl`;
  if (data.problem) {
    main.replaceChildren(el("h1", { text: name }), problem(data.problem));
    return;
  }
  const table = new CohortTable(name, data, query);
  const missing = data.problems.length ? [el("details", { class: "missing" }, el("summary", { text: data.problems.length === 1 ? "One part of the cohort has no results yet" : `${data.problems.length} parts of the cohort have no results yet` }), ...data.problems.map((text) => el("p", { text })))] : [];
  main.replaceChildren(el("h1", { text: name }), ...missing, ...table.build());
  table.draw();
  if (table.answer) await table.withPredictions();
}
