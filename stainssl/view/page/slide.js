"use strict";
// One slide: its pixels by OpenSeadragon, layers over them, the tile that was clicked.

const STRIP = 12; // tiles of highest and of lowest attention
const BARS_UM = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000];
const MOST_BAR_PX = 160;
const UM_OF_10X = 1; // a 10x objective is taken as 1 µm/px, as the readers do

// --- one view of the pixels -----------------------------------------------------------------

class Pane {
  constructor(geometry, cohort, slide, scale, label) {
    this.geometry = geometry;
    this.place = el("div", { class: "osd", role: "application", "aria-label": `${label}: arrow keys move, + and - zoom, 0 shows all` });
    this.bar = el("div", { class: "scalebar" }, el("span"), el("i"));
    this.zoom = el("div", { class: "zoom" });
    this.failed = el("p", { class: "problem over", hidden: true });
    const button = (text, title, act) => el("button", { type: "button", title, "aria-label": title, onclick: act, text });
    this.buttons = el("div", { class: "zoombuttons" },
      button("+", "Zoom in", () => this.viewer.viewport.zoomBy(2)),
      button("−", "Zoom out", () => this.viewer.viewport.zoomBy(0.5)),
      button("⤢", "Show the whole slide", () => this.viewer.viewport.goHome()));
    this.element = el("div", { class: "pane" }, this.place, this.bar, this.zoom, this.buttons, this.failed);
    this.source = { cohort, slide };
    this.scale = scale;
  }

  open() {
    const { width, height, deepest, picture } = this.geometry;
    const whole = Math.max(0, Math.ceil(Math.log2(Math.max(width, height) / picture)));
    this.viewer = OpenSeadragon({
      element: this.place,
      tileSources: {
        width, height, tileSize: picture, tileOverlap: 0,
        minLevel: Math.max(0, deepest - whole), maxLevel: deepest,
        getTileUrl: (level, x, y) => stainssl.picture("picture", this.source.cohort, this.source.slide, level, x, y),
      },
      drawer: "canvas",
      showNavigationControl: false,
      showNavigator: true,
      navigatorPosition: "TOP_RIGHT",
      navigatorAutoFade: false,
      animationTime: 0.4,
      maxZoomPixelRatio: 8,
      minZoomImageRatio: 0.6,
      visibilityRatio: 0.3,
      imageLoaderLimit: 8,
      gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true },
    });
    this.overlay = new Overlay(this.viewer, this.scale);
    this.viewer.addHandler("update-viewport", () => this.measure());
    this.viewer.addHandler("tile-load-failed", (event) => this.fail(event));
    return new Promise((resolve) => this.viewer.addOnceHandler("open", resolve));
  }

  async fail(event) {
    if (!this.failed.hidden) return;
    this.failed.hidden = false;
    this.failed.textContent = "A part of the slide cannot be shown.";
    if (stainssl.exported) return;
    const url = event.tile.getUrl ? event.tile.getUrl() : event.tile.url;
    const response = await fetch(url).catch(() => null);
    if (response?.ok) this.failed.hidden = true;
    else this.failed.textContent = `A part of the slide cannot be shown: ${response ? await response.text() : "the server does not answer."}`;
  }

  measure() {
    const view = this.overlay.view();
    if (!view) return;
    const { mpp } = this.geometry;
    const [text, line] = this.bar.children;
    if (!mpp) {
      text.textContent = "no pixel size known";
      line.style.width = "0";
      this.zoom.textContent = `${shown(view.scale * 100)} %`;
      return;
    }
    const umPerPx = mpp / view.scale;
    const fits = BARS_UM.filter((um) => um / umPerPx <= MOST_BAR_PX);
    const um = fits.length ? fits[fits.length - 1] : BARS_UM[0];
    line.style.width = `${um / umPerPx}px`;
    text.textContent = um >= 1000 ? `${um / 1000} mm` : `${um} µm`;
    this.zoom.textContent = `${shown((10 * UM_OF_10X) / umPerPx, 2)}× · ${shown(umPerPx, 3)} µm/px`;
  }

  // Middle of the view in image px, and screen px per image px.
  where() {
    const view = this.overlay.view();
    return { x: (view.left + view.right) / 2, y: (view.top + view.bottom) / 2, z: view.scale };
  }

  go(x, y, z, at_once = false) {
    const item = this.viewer.world.getItemAt(0);
    const box = this.viewer.container.getBoundingClientRect();
    const [width, height] = [box.width / z, box.height / z];
    const bounds = item.imageToViewportRectangle(x - width / 2, y - height / 2, width, height);
    this.viewer.viewport.fitBounds(bounds, at_once);
  }
}

function inStep(first, second) {
  let leading = null;
  for (const [from, to] of [[first, second], [second, first]]) {
    from.viewer.addHandler("viewport-change", () => {
      if (leading) return;
      leading = from;
      to.viewer.viewport.fitBounds(from.viewer.viewport.getBounds(true), true);
      leading = null;
    });
  }
}

// --- the layers and their switches ----------------------------------------------------------

class SlideView {
  constructor(data, scale, query) {
    this.data = data;
    this.scale = scale;
    this.words = ["slide", data.cohort, data.slide];
    this.tiles = data.tiles ? new Tiles(data.tiles) : null;
    this.on = new Map((query.get("layers") || "tissue:1").split(",").filter(Boolean).map((part) => {
      const [name, opacity] = part.split(":");
      return [name, Number(opacity) || 0.6];
    }));
    const answers = data.answers.map((a) => a.name);
    const known = (name, list) => (list.includes(query.get(name)) ? query.get(name) : "");
    this.answer = known("answer", answers) || answers[0] || "";
    this.beside = known("beside", answers);
    this.probe = known("probe", data.tile_answers) || data.tile_answers[0] || "";
    this.encoder = known("encoder", data.encoders) || data.encoders[0] || "";
    this.tile = query.has("tile") ? Number(query.get("tile")) : null;
    this.start = query.has("z") ? ["x", "y", "z"].map((k) => Number(query.get(k))) : null;
    this.drawn = 0;
  }

  specs() {
    const { tiles, data } = this;
    const { cohort, slide } = data;
    const outlined = (key) => async () => {
      const found = await stainssl.data("outlines", cohort, slide);
      return found.problem ? found : { rings: found[key] };
    };
    const values = (kind, ...more) => () => stainssl.data(kind, cohort, slide, ...more);
    return [
      { name: "tissue", title: "Tissue outline", there: true, load: outlined("tissue"), make: (f, o) => ringsLayer(f.rings, COLORS.tissue, o) },
      { name: "ink", title: "Ink", there: true, load: outlined("ink"), make: (f, o) => ringsLayer(f.rings, COLORS.ink, o, true) },
      { name: "grid", title: "Tile grid", there: tiles, load: async () => ({}), make: (_, o) => gridLayer(tiles, o), legend: () => this.gridLegend() },
      { name: "annotations", title: "Annotations", there: data.annotations?.length, load: async () => ({}), make: (_, o) => ringsLayer(data.annotations.flatMap((a) => a.rings), COLORS.annotations, o, true), legend: () => this.annotationLegend() },
      { name: "attention", title: "Attention", there: tiles && data.answers.length, load: (pane) => values("attention", pane ? this.beside : this.answer)(), ends: () => [0, 1], value: (f) => f.value, choose: ["answer", data.answers] },
      { name: "probability", title: "Tile probability", there: tiles && data.tile_answers.length, load: () => values("probability", this.probe)(), ends: () => [0, 1], value: (f) => f.value, choose: ["probe", data.tile_answers.map((name) => ({ name, title: name.replace("~", " on ") }))] },
      { name: "hematoxylin", title: "Hematoxylin strength", there: tiles, load: values("stain"), ends: (f) => percentiles(f.hematoxylin), value: (f) => f.hematoxylin },
      { name: "eosin", title: "Eosin strength", there: tiles, load: values("stain"), ends: (f) => percentiles(f.eosin), value: (f) => f.eosin },
    ];
  }

  gridLegend() {
    const counts = new Map();
    for (const reason of this.tiles.reason) counts.set(reason, (counts.get(reason) || 0) + 1);
    const rows = [...counts].sort((a, b) => b[1] - a[1]).map(([reason, count]) =>
      el("li", {}, el("i", { style: { background: reasonColor(reason) } }), `${reason ? `left out: ${reason}` : "kept"} (${shown(count)})`));
    return el("ul", { class: "legend" }, ...rows);
  }

  annotationLegend() {
    const names = new Set(this.data.annotations.map((a) => a.class || "no class"));
    return el("p", { class: "legend", text: [...names].join(", ") });
  }

  colorLegend(spec, found) {
    const [low, high] = spec.ends(found);
    const stops = this.scale.filter((_, i) => i % 8 === 0).concat(this.scale.slice(-1));
    const bar = el("div", { class: "colors", role: "img", "aria-label": `colors from ${shown(low)} to ${shown(high)}`, style: { background: `linear-gradient(to right, ${stops.join(",")})` } });
    const said = spec.ends === undefined || low === 0 ? found.said : `${found.said}; colors span the 1st to 99th percentile of this slide`;
    return el("div", { class: "legend" }, bar, el("div", { class: "ends" }, el("span", { text: shown(low) }), el("span", { text: shown(high) })), el("p", { text: said }));
  }

  async build() {
    const { data } = this;
    document.title = `${data.slide} – stainssl`;
    this.side = el("aside", { class: "side", "aria-label": "Layers and details" });
    this.panes = [];
    const main = document.getElementById("main");
    const problems = data.problems.map((text) => problem(text));
    if (!data.tiled) problems.push(el("p", { class: "note", text: "Not tiled yet: the slide is shown without layers that need results." }));
    main.replaceChildren(this.title(), ...problems, el("div", { class: "work" }, this.place = el("div", { class: "panes" }), this.side), this.strip = el("section", { class: this.answer && this.tiles ? "strip waits" : "strip", "aria-label": "Tiles by attention" }));
    if (!data.geometry) {
      this.place.append(el("p", { class: "empty", text: "There is nothing to show of this slide." }));
      this.side.append(this.details());
      return;
    }
    this.side.append(this.layersBox = el("section", { "aria-label": "Layers" }), this.tileBox = el("section", { class: "tilebox", "aria-label": "Tile" }), this.details());
    await this.openPanes();
    this.buildLayers();
    this.showStrip();
    if (this.tile !== null) this.choose(this.tile, false);
    else this.tileBox.append(el("h2", { text: "Tile" }), el("p", { class: "hint", text: this.tiles?.count ? "Click a tile on the slide, or take one of the strip." : "This slide has no tiles." }));
  }

  title() {
    const { cohort, slide, sheet } = this.data;
    return el("div", { class: "title" },
      el("h1", {}, el("a", { href: address.make(["cohort", cohort]), text: cohort }), ` / ${slide}`),
      el("p", { text: [sheet.patient_id && `patient ${sheet.patient_id}`, sheet.site && `site ${sheet.site}`].filter(Boolean).join(" · ") }));
  }

  async openPanes() {
    const { geometry, cohort, slide } = this.data;
    const count = this.beside ? 2 : 1;
    const at = this.panes.length ? Object.values(this.panes[0].where()) : this.start;
    for (const pane of this.panes) pane.viewer.destroy();
    this.panes = Array.from({ length: count }, (_, i) => new Pane(geometry, cohort, slide, this.scale, i ? "Slide again" : "Slide"));
    this.place.replaceChildren(...this.panes.map((pane) => pane.element));
    await Promise.all(this.panes.map((pane) => pane.open()));
    if (at) this.panes[0].go(...at, true);
    if (count === 2) {
      inStep(...this.panes);
      this.panes[1].viewer.viewport.fitBounds(this.panes[0].viewer.viewport.getBounds(true), true);
    }
    for (const pane of this.panes) {
      pane.viewer.addHandler("canvas-click", (event) => this.click(pane, event));
      pane.viewer.addHandler("animation-finish", () => this.remember());
    }
  }

  remember() {
    address.keep(this.words, this.query());
  }

  query() {
    const { x, y, z } = this.panes[0].where();
    const layers = [...this.on].map(([name, opacity]) => `${name}:${opacity}`).join(",");
    return {
      x: Math.round(x), y: Math.round(y), z: z.toPrecision(4), layers: layers || "none:0",
      answer: this.answer, beside: this.beside, probe: this.probe, encoder: this.encoder, tile: this.tile,
    };
  }

  // --- switches ---

  buildLayers() {
    const rows = this.specs().filter((spec) => spec.there).map((spec) => this.switchOf(spec));
    const scaled = el("p", { class: "hint", text: "Colors: viridis, even in lightness." });
    this.layersBox.replaceChildren(el("h2", { text: "Layers" }), ...rows, scaled, ...this.sideBySide());
    this.redraw();
  }

  switchOf(spec) {
    const id = `layer-${spec.name}`;
    const range = el("input", {
      type: "range", min: 0.05, max: 1, step: 0.05, value: this.on.get(spec.name) || 0.6, "aria-label": `Opacity of ${spec.title}`,
      oninput: () => { if (this.on.has(spec.name)) { this.on.set(spec.name, Number(range.value)); this.redraw(); } },
    });
    const box = el("input", {
      type: "checkbox", id, checked: this.on.has(spec.name),
      onchange: () => {
        if (box.checked) this.on.set(spec.name, Number(range.value));
        else this.on.delete(spec.name);
        this.redraw();
      },
    });
    const more = [];
    if (spec.choose) {
      const [key, options] = spec.choose;
      more.push(this.chooser(`${spec.title}: of which model`, options, this[key], (value) => { this[key] = value; this.redraw(); if (key === "answer") this.showStrip(); }));
    }
    return el("div", { class: "layer" }, el("div", { class: "switch" }, box, el("label", { for: id, text: spec.title }), range), ...more, el("div", { class: "under", id: `under-${spec.name}` }));
  }

  chooser(label, options, value, act) {
    return el("select", { "aria-label": label, onchange: (event) => act(event.target.value) },
      ...options.map((o) => el("option", { value: o.name, text: o.title, selected: o.name === value })));
  }

  sideBySide() {
    const { answers } = this.data;
    if (answers.length < 2) return [];
    const options = [{ name: "", title: "nothing" }, ...answers];
    return [el("h2", { text: "Side by side" }), this.chooser("Attention of the second view", options, this.beside, async (value) => {
      const had = Boolean(this.beside);
      this.beside = value;
      if (value && !this.on.has("attention")) this.on.set("attention", 0.6);
      if (had !== Boolean(value)) await this.openPanes();
      this.buildLayers();
    })];
  }

  // Loads and draws what is switched on; an older call that is overtaken by a newer one ends.
  async redraw() {
    const turn = ++this.drawn;
    this.remember();
    for (const spec of this.specs().filter((s) => s.there)) {
      const under = document.getElementById(`under-${spec.name}`);
      if (!this.on.has(spec.name)) {
        for (const pane of this.panes) pane.overlay.set(spec.name, null);
        under?.replaceChildren();
        continue;
      }
      const notes = [];
      for (const [number, pane] of this.panes.entries()) {
        const found = await spec.load(number);
        if (turn !== this.drawn) return;
        if (found.problem) {
          pane.overlay.set(spec.name, null);
          if (!number) notes.push(problem(found.problem));
          continue;
        }
        pane.overlay.set(spec.name, this.layerOf(spec, found));
        if (number && spec.name === "attention") notes.push(el("p", { class: "hint", text: `right: ${found.title}` }));
        if (!number && spec.value) notes.push(this.colorLegend(spec, found));
        if (!number && spec.legend) notes.push(spec.legend());
      }
      under?.replaceChildren(...notes);
    }
  }

  layerOf(spec, found) {
    const opacity = this.on.get(spec.name);
    if (spec.make) return spec.make(found, opacity);
    return valuesLayer(this.tiles, found, spec.value(found), spec.ends(found), this.scale, opacity);
  }

  // --- the tile ---

  click(pane, event) {
    if (!event.quick || !this.tiles) return;
    const item = pane.viewer.world.getItemAt(0);
    const point = item.viewerElementToImageCoordinates(event.position);
    const row = this.tiles.under(point.x, point.y);
    if (row >= 0) this.choose(this.tiles.tile[row], false);
  }

  async choose(tile, go = true) {
    const row = this.tiles?.at.get(tile);
    if (row === undefined) {
      this.tileBox.replaceChildren(el("h2", { text: "Tile" }), problem(`This slide has no tile ${tile}.`));
      return;
    }
    this.tile = tile;
    const { x, y, side } = { x: this.tiles.x[row], y: this.tiles.y[row], side: this.tiles.side };
    for (const pane of this.panes) pane.overlay.set("chosen", chosenLayer(this.tiles, row));
    if (go) this.panes[0].go(x + side / 2, y + side / 2, Math.min(2, 220 / side));
    this.remember();
    const facts = el("dl");
    const image = el("img", { class: "tile", alt: `tile ${tile}`, src: this.tilePicture(tile), onerror: (event) => event.target.remove() });
    const near = el("div", { class: "near" });
    this.tileBox.replaceChildren(el("h2", { text: `Tile ${tile}` }), image, facts, near);
    this.fact(facts, "place", this.placeOf(x, y, side));
    this.fact(facts, "status", this.tiles.reason[row] ? `left out: ${this.tiles.reason[row]}` : "kept");
    this.fact(facts, "tissue", `${shown(100 * this.tiles.tissue[row], 3)} %`);
    this.fact(facts, "sharpness", shown(this.tiles.sharpness[row]));
    await this.numbersOf(tile, facts);
    if (this.tiles.reason[row] || stainssl.exported) return;
    const { cohort, slide } = this.data;
    facts.after(el("p", {}, el("a", { href: address.make(["stain", cohort, slide, tile]), text: "This tile under other stains" })));
    this.neighbors(tile, near);
  }

  tilePicture(tile, cohort = this.data.cohort, slide = this.data.slide) {
    return stainssl.picture("tile", cohort, slide, tile);
  }

  fact(list, name, value) {
    list.append(el("dt", { text: name }), el("dd", { text: value }));
  }

  placeOf(x, y, side) {
    const { mpp, left, top } = this.data.geometry;
    const px = (v) => Math.round(v).toLocaleString("en-US");
    if (!mpp) return `x ${px(x + left)}, y ${px(y + top)} px; side ${px(side)} px`;
    const um = (v) => Math.round(v * mpp).toLocaleString("en-US");
    return `x ${um(x + left)}, y ${um(y + top)} µm; side ${um(side)} µm`;
  }

  async numbersOf(tile, facts) {
    const { cohort, slide } = this.data;
    const asked = [];
    if (this.answer) asked.push(["attention", ["attention", cohort, slide, this.answer], (f, i) => shown(f.value[i])]);
    if (this.probe) asked.push(["probability", ["probability", cohort, slide, this.probe], (f, i) => shown(f.value[i])]);
    asked.push(["stain", ["stain", cohort, slide], (f, i) => `hematoxylin ${shown(f.hematoxylin[i])}, eosin ${shown(f.eosin[i])}`]);
    for (const [name, words, text] of asked) {
      const found = await stainssl.data(...words);
      const at = found.problem ? -1 : found.tile.indexOf(tile);
      if (at >= 0 && this.tile === tile) this.fact(facts, name, text(found, at));
    }
  }

  async neighbors(tile, near) {
    const { cohort, slide, encoders } = this.data;
    if (!encoders.length) return;
    const chooser = this.chooser("Encoder of the neighbors", encoders.map((name) => ({ name, title: name })), this.encoder, (value) => { this.encoder = value; this.remember(); this.neighbors(tile, near); });
    near.replaceChildren(el("h3", { text: "Nearest tiles of other slides" }), chooser, el("p", { class: "hint", text: "…" }));
    const found = await stainssl.data("neighbors", cohort, slide, this.encoder, tile);
    if (this.tile !== tile) return;
    near.lastChild.remove();
    if (found.problem) {
      near.append(problem(found.problem));
      return;
    }
    const columns = found.columns;
    const sites = [...new Set(columns.site)];
    for (const site of sites) {
      const links = columns.tile.map((_, i) => i).filter((i) => columns.site[i] === site).map((i) => this.neighbor(columns, i));
      near.append(el("h4", { text: `site ${site || "not given"}${site === this.data.sheet.site ? ", as this slide" : ""}` }), el("div", { class: "tiles" }, ...links));
    }
    near.append(el("p", { class: "hint", text: `Cosine of ${this.encoder}'s vectors; ${shown(found.searched)} of ${shown(found.total)} tiles were searched, at most two of a slide are shown.` }));
  }

  neighbor(columns, i) {
    const [cohort, slide, tile] = [columns.cohort[i], columns.slide_id[i], columns.tile[i]];
    const cosine = columns.cosine[i].toFixed(2);
    const name = `${slide}, patient ${columns.patient_id[i]}, tile ${tile}, cosine ${cosine}`;
    return el("a", { href: address.make(["slide", cohort, slide], { tile, encoder: this.encoder, go: 1 }), title: name, "aria-label": name },
      el("img", { src: this.tilePicture(tile, cohort, slide), alt: "", loading: "lazy" }), el("span", { text: cosine }));
  }

  // --- the strip ---

  async showStrip() {
    if (!this.answer || !this.tiles) return;
    const found = await stainssl.data("attention", this.data.cohort, this.data.slide, this.answer);
    if (found.problem) {
      this.strip.replaceChildren(problem(found.problem));
      return;
    }
    const order = found.value.map((_, i) => i).sort((a, b) => found.value[b] - found.value[a]);
    const count = Math.min(STRIP, Math.floor(order.length / 2));
    const row = (name, chosen) => el("div", { class: "ends" }, el("h2", { text: name }), el("div", { class: "tiles" }, ...chosen.map((i) => this.stripTile(found, i))));
    if (!count) this.strip.replaceChildren(el("p", { class: "hint", text: `${found.title || "This model"} has no attention on this slide.` }));
    else this.strip.replaceChildren(row("Highest attention", order.slice(0, count)), row("Lowest attention", order.slice(-count).reverse()));
  }

  stripTile(found, i) {
    const tile = found.tile[i];
    const rank = found.value[i].toFixed(2);
    return el("button", { type: "button", "aria-label": `tile ${tile}, attention ${rank}`, onclick: () => this.choose(tile) },
      el("img", { src: this.tilePicture(tile), alt: "", loading: "lazy" }), el("span", { text: rank }));
  }

  details() {
    const list = el("dl");
    const { sheet, geometry } = this.data;
    for (const [name, value] of Object.entries(sheet)) this.fact(list, titleOf(name), value);
    if (geometry) {
      this.fact(list, "size", `${shown(geometry.width)} × ${shown(geometry.height)} px`);
      this.fact(list, "pixel size", geometry.mpp ? `${shown(geometry.mpp, 4)} µm` : "not known");
      if (geometry.objective) this.fact(list, "objective", `${shown(geometry.objective)}×`);
      this.fact(list, "format", `${geometry.vendor} (reader ${geometry.reader})`);
    }
    return el("section", { "aria-label": "Slide" }, el("h2", { text: "Slide" }), list);
  }
}

let current = null; // the view on the screen, for tests and the console

async function showSlide(cohort, slide, query) {
  const [overview, data] = await Promise.all([stainssl.data("overview"), stainssl.data("slide", cohort, slide)]);
  const main = document.getElementById("main");
  if (data.problem) {
    main.replaceChildren(el("h1", { text: slide }), problem(data.problem));
    return;
  }
  current = new SlideView(data, overview.scale, query);
  await current.build();
  if (query.has("go") && current.tile !== null) await current.choose(current.tile, true);
}
