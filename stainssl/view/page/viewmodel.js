"use strict";
// Content of one view: a slide of a cohort, and the models of its attention and probability layers.

// Adds a title to the name of a model of a tile task.
function titledProbe(name) {
  return { name, title: `${name.replace("~", ": tiles by ")}` };
}

// Encoder of a model, the second word of its name.
function encoderOf(model) {
  return model.split("~")[1];
}

class ViewModel {
  constructor(data, answer, probe) {
    this.data = data;
    this.tiles = data.tiles ? new Tiles(data.tiles) : null;
    this.answer = answer || data.answers[0]?.name || "";
    this.probe = probe || data.tile_answers[0] || "";
  }

  // The view of a model; for the other layer (attention, probability), a model of the same encoder.
  static of(data, model) {
    const same = (names) => (names.includes(model) ? model : names.find((name) => encoderOf(name) === encoderOf(model)));
    return new ViewModel(data, same(data.answers.map((a) => a.name)), same(data.tile_answers));
  }

  // The models of a slide that a second view can show.
  static models({ answers, tile_answers }) {
    return [...answers, ...tile_answers.map(titledProbe)];
  }

  // Caption of a view if there are two.
  caption(on) {
    const answer = this.data.answers.find((a) => a.name === this.answer);
    const shownModels = [on.has("attention") && answer?.title, on.has("probability") && this.probe && titledProbe(this.probe).title];
    return [this.data.cohort, ...shownModels.filter(Boolean)].join(" · ");
  }

  // Values of a tile: label, name of the data, and function (data, row) that formats the value.
  numbers() {
    const { cohort, slide } = this.data;
    const asked = [];
    if (this.answer) asked.push(["attention", ["attention", cohort, slide, this.answer], (f, i) => shown(f.value[i])]);
    if (this.probe) asked.push(["probability", ["probability", cohort, slide, this.probe], (f, i) => shown(f.value[i])]);
    asked.push(["stain", ["stain", cohort, slide], (f, i) => `hematoxylin ${shown(f.hematoxylin[i])}, eosin ${shown(f.eosin[i])}`]);
    return asked;
  }

  // The available layers: how each is loaded and drawn, and its legend.
  specs() {
    const { tiles, data } = this;
    const { cohort, slide } = data;
    const outlined = (key) => async () => {
      const found = await stainssl.data("outlines", cohort, slide);
      return found.problem ? found : { rings: found[key] };
    };
    const values = (kind, ...more) => () => stainssl.data(kind, cohort, slide, ...more);
    const drawn = async () => ({});
    return [
      { name: "tissue", title: "Tissue outline", there: true, load: outlined("tissue"), make: (f, o) => ringsLayer(f.rings, COLORS.tissue, o) },
      { name: "ink", title: "Ink", there: true, load: outlined("ink"), make: (f, o) => ringsLayer(f.rings, COLORS.ink, o, true) },
      { name: "grid", title: "Tile grid", there: tiles, load: drawn, make: (_, o) => gridLayer(tiles, o), legend: () => this.gridLegend() },
      { name: "annotations", title: "Annotations", there: data.annotations?.length, load: drawn, make: (_, o) => ringsLayer(data.annotations.flatMap((a) => a.rings), COLORS.annotations, o, true), legend: () => this.annotationLegend() },
      { name: "attention", title: "Attention", there: tiles && this.answer, load: values("attention", this.answer), ends: () => [0, 1], value: (f) => f.value, choose: ["answer", data.answers] },
      { name: "probability", title: "Tile probability", there: tiles && this.probe, load: values("probability", this.probe), ends: () => [0, 1], value: (f) => f.value, choose: ["probe", data.tile_answers.map(titledProbe)] },
      { name: "hematoxylin", title: "Hematoxylin strength", there: tiles, load: values("stain"), ends: (f) => percentiles(f.hematoxylin), value: (f) => f.hematoxylin },
      { name: "eosin", title: "Eosin strength", there: tiles, load: values("stain"), ends: (f) => percentiles(f.eosin), value: (f) => f.eosin },
    ].filter((spec) => spec.there);
  }

  gridLegend() {
    const counts = new Map();
    for (const reason of this.tiles.reason) counts.set(reason, (counts.get(reason) || 0) + 1);
    const rows = [...counts].sort((a, b) => b[1] - a[1]).map(([reason, count]) =>
      el("li", {}, el("i", { style: { background: reasonColor(reason) } }), `${reason ? `left out: ${REASON_WORDS[reason] || reason}` : "kept"} (${shown(count)})`));
    return el("ul", { class: "legend" }, ...rows);
  }

  annotationLegend() {
    const names = new Set(this.data.annotations.map((a) => a.class || "no class"));
    return el("p", { class: "legend", text: [...names].join(", ") });
  }
}

// Legend of the color map from `low` to `high`, with the description of the values.
function colorLegend(scale, ends, said) {
  const [low, high] = ends;
  const stops = scale.filter((_, i) => i % 8 === 0).concat(scale.slice(-1));
  const bar = el("div", { class: "colors", role: "img", "aria-label": `colors from ${shown(low)} to ${shown(high)}`, style: { background: `linear-gradient(to right, ${stops.join(",")})` } });
  const text = !ends.arePercentiles ? said : `${said}; colors span the 1st to 99th percentile of this slide`;
  return el("div", { class: "legend" }, bar, el("div", { class: "ends" }, el("span", { text: shown(low) }), el("span", { text: shown(high) })), el("p", { text }));
}
