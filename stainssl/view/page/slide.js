"use strict";
// The page of a slide: layers, the selected tile, and an optional synchronised second view.

const STRIP = 12; // tiles of highest and of lowest attention; as in export.py

class SlideView {
  constructor(data, scale, query) {
    this.data = data;
    this.scale = scale;
    this.words = ["slide", data.cohort, data.slide];
    this.on = new Map((query.get("layers") || "tissue:1").split(",").filter(Boolean).map((part) => {
      const [name, opacity] = part.split(":");
      return [name, Number(opacity) || 0.6];
    }));
    const known = (name, list) => (list.includes(query.get(name)) ? query.get(name) : "");
    this.views = [new ViewModel(data, known("answer", data.answers.map((a) => a.name)), known("probe", data.tile_answers))];
    this.beside = query.get("beside") || "";
    this.encoder = known("encoder", data.encoders) || data.encoders[0] || "";
    this.tile = query.has("tile") ? Number(query.get("tile")) : null;
    this.start = query.has("z") ? ["x", "y", "z"].map((k) => Number(query.get(k))) : null;
    this.drawn = 0;
  }

  get tiles() { return this.views[0].tiles; }

  get answer() { return this.views[0].answer; }

  async build() {
    const { data } = this;
    document.title = `${data.slide} – stainssl`;
    this.side = el("aside", { class: "side", "aria-label": "Layers and details" });
    this.panes = [];
    const main = document.getElementById("main");
    const problems = data.problems.map((text) => problem(text));
    if (data.remark) problems.push(el("p", { class: "note", text: data.remark }));
    if (!data.tiled) problems.push(el("p", { class: "note", text: "Not tiled yet: layers that need results are not available." }));
    main.replaceChildren(this.title(), ...problems, el("div", { class: "work" }, this.place = el("div", { class: "panes" }), this.side), this.strip = el("section", { class: this.answer && this.tiles ? "strip waits" : "strip", "aria-label": "Tiles by attention" }));
    if (!data.geometry) {
      this.place.append(el("p", { class: "empty", text: "Nothing to show for this slide." }));
      this.side.append(this.details());
      return;
    }
    this.side.append(this.layersBox = el("section", { "aria-label": "Layers" }), this.tileBox = el("section", { class: "tilebox", "aria-label": "Tile" }), this.details());
    await this.openPanes();
    this.buildLayers();
    this.showStrip();
    if (this.tile !== null) this.choose(this.tile, false);
    else this.tileBox.append(el("h2", { text: "Tile" }), el("p", { class: "hint", text: this.tiles?.count ? "Click a tile on the slide or in the strip." : "This slide has no tiles." }));
  }

  title() {
    const { cohort, slide, sheet } = this.data;
    return el("div", { class: "title" },
      el("h1", {}, el("a", { href: address.make(["cohort", cohort]), text: cohort }), ` / ${slide}`),
      el("p", { text: [sheet.patient_id && `patient ${sheet.patient_id}`, sheet.site && `site ${sheet.site}`].filter(Boolean).join(" · ") }));
  }

  // Opens one view, or two if "side by side" is selected.
  async openPanes() {
    const at = this.panes.length ? Object.values(this.panes[0].where()) : this.start;
    for (const pane of this.panes) pane.viewer.destroy();
    const second = await this.second();
    this.views = second ? [this.views[0], second] : [this.views[0]];
    this.panes = this.views.map(({ data }, i) => new Pane(data.geometry, data.cohort, data.slide, this.scale, i ? "Slide, second view" : "Slide"));
    this.place.replaceChildren(...this.panes.map((pane) => pane.element));
    await Promise.all(this.panes.map((pane) => pane.open()));
    if (at) this.panes[0].go(...at, true);
    if (second) {
      synchronise(...this.panes);
      this.panes[1].viewer.viewport.fitBounds(this.panes[0].viewer.viewport.getBounds(true), true);
    }
    for (const pane of this.panes) {
      pane.viewer.addHandler("canvas-click", (event) => this.click(pane, event));
      pane.viewer.addHandler("animation-finish", () => this.remember());
    }
  }

  // Content of the second view: another model of this cohort, or `cohort/slide/model` of another
  // cohort with the same slide; null if `beside` is empty or unknown.
  async second() {
    if (!this.besideOptions().some((option) => option.name === this.beside)) this.beside = "";
    if (!this.beside) return null;
    const [cohort, slide, model] = this.beside.split("/").map(decodeURIComponent);
    if (slide === undefined) return ViewModel.of(this.data, this.beside);
    const data = await stainssl.data("slide", cohort, slide);
    if (!data.problem && data.geometry) return ViewModel.of(data, model);
    announce(data.problem || data.problems[0]);
    this.beside = "";
    return null;
  }

  besideOptions() {
    const own = ViewModel.models(this.data);
    const others = this.data.twins.flatMap((other) => {
      const models = ViewModel.models(other);
      const name = (model) => [other.cohort, other.slide, model].map(encodeURIComponent).join("/");
      if (!models.length) return [{ name: name(""), title: `${other.cohort}: tiles` }];
      return models.map((model) => ({ name: name(model.name), title: `${other.cohort}: ${model.title}` }));
    });
    return own.length < 2 && !others.length ? [] : [...own, ...others];
  }

  remember() {
    address.keep(this.words, this.query());
  }

  query() {
    const { x, y, z } = this.panes[0].where();
    const layers = [...this.on].map(([name, opacity]) => `${name}:${opacity}`).join(",");
    return {
      x: Math.round(x), y: Math.round(y), z: z.toPrecision(4), layers: layers || "none:0",
      answer: this.answer, beside: this.beside, probe: this.views[0].probe, encoder: this.encoder, tile: this.tile,
    };
  }

  // --- layers ---

  // Name → layer, from the first view that has it.
  specs() {
    const found = new Map();
    for (const spec of this.views.flatMap((view) => view.specs())) if (!found.has(spec.name)) found.set(spec.name, spec);
    return found;
  }

  buildLayers() {
    const rows = [...this.specs().values()].map((spec) => this.switchOf(spec));
    const scaled = el("p", { class: "hint", text: "Colors: viridis." });
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
      const [first] = this.views;
      if (first[key]) more.push(this.chooser(`${spec.title}: model`, options, first[key], (value) => { first[key] = value; this.redraw(); if (key === "answer") this.showStrip(); }));
    }
    return el("div", { class: "layer" }, el("div", { class: "switch" }, box, el("label", { for: id, text: spec.title }), range), ...more, el("div", { class: "under", id: `under-${spec.name}` }));
  }

  chooser(label, options, value, act) {
    return el("select", { "aria-label": label, onchange: (event) => act(event.target.value) },
      ...options.map((o) => el("option", { value: o.name, text: o.title, selected: o.name === value })));
  }

  sideBySide() {
    const options = this.besideOptions();
    if (!options.length) return [];
    return [el("h2", { text: "Side by side" }), this.chooser("Second view", [{ name: "", title: "none" }, ...options], this.beside, async (value) => {
      this.beside = value;
      await this.openPanes();
      const { answer, probe } = this.views.at(-1);
      const model = this.beside.split("/").map(decodeURIComponent).at(-1);
      const layer = { [answer]: "attention", [probe]: "probability" }[model];
      if (model && layer && !this.on.has(layer)) this.on.set(layer, 0.6);
      this.buildLayers();
      if (this.tile !== null) this.choose(this.tile, false);
    })];
  }

  // Loads and draws the selected layers; stops if a newer call has started.
  async redraw() {
    const turn = ++this.drawn;
    this.remember();
    const captions = this.views.map((view) => (this.views.length > 1 ? view.caption(this.on) : ""));
    this.panes.forEach((pane, i) => pane.name(captions[i]));
    for (const name of this.specs().keys()) await this.redrawLayer(name, turn);
  }

  async redrawLayer(name, turn) {
    const notes = [];
    let ends = null; // of the color map, common to both views
    for (const [number, view] of this.views.entries()) {
      const spec = this.on.has(name) ? view.specs().find((one) => one.name === name) : null;
      const found = spec ? await spec.load() : null;
      if (turn !== this.drawn) return;
      const isThere = found && !found.problem;
      if (isThere && spec.value && !ends) {
        ends = spec.ends(found);
        notes.push(colorLegend(this.scale, ends, found.said));
      }
      if (isThere && spec.legend && view.data !== this.views[number - 1]?.data) {
        if (number) notes.push(el("p", { class: "hint", text: "right:" }));
        notes.push(spec.legend());
      }
      if (found?.problem) notes.push(problem(found.problem));
      this.panes[number].overlay.set(name, isThere ? this.layerOf(spec, view, found, ends) : null);
    }
    document.getElementById(`under-${name}`)?.replaceChildren(...notes);
  }

  layerOf(spec, view, found, ends) {
    const opacity = this.on.get(spec.name);
    if (spec.make) return spec.make(found, opacity);
    return valuesLayer(view.tiles, found, spec.value(found), ends, this.scale, opacity);
  }

  // --- the tile ---

  click(pane, event) {
    if (!event.quick || !this.tiles) return;
    const item = pane.viewer.world.getItemAt(0);
    const point = item.viewerElementToImageCoordinates(event.position);
    const scale = this.data.geometry.width / pane.geometry.width; // another cohort may have a different scan
    const row = this.tiles.under(point.x * scale, point.y * scale);
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
    for (const pane of this.panes) {
      const isSame = pane.geometry.width === this.data.geometry.width;
      pane.overlay.set("chosen", isSame ? chosenLayer(this.tiles, row) : null);
    }
    if (go) this.panes[0].go(x + side / 2, y + side / 2, Math.min(2, 220 / side));
    this.remember();
    const facts = el("dl");
    const image = el("img", { class: "tile", alt: `tile ${tile}`, src: this.tilePicture(tile), onerror: (event) => event.target.remove() });
    const near = el("div", { class: "near" });
    this.tileBox.replaceChildren(el("h2", { text: `Tile ${tile}` }), image, facts, near);
    this.fact(facts, "place", this.placeOf(x, y, side));
    this.fact(facts, "status", this.tiles.reason[row] ? `left out: ${REASON_WORDS[this.tiles.reason[row]] || this.tiles.reason[row]}` : "kept");
    this.fact(facts, "tissue", `${shown(100 * this.tiles.tissue[row], 3)} %`);
    this.fact(facts, "sharpness", shown(this.tiles.sharpness[row]));
    await this.numbersOf(row, facts);
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

  // Adds the values of a tile, and those of the second view's tile at the same position.
  async numbersOf(row, facts) {
    const { tile, x, y, side } = this.tiles;
    for (const [number, one] of this.views.entries()) {
      const at = number ? (one.tiles?.under(x[row] + side / 2, y[row] + side / 2) ?? -1) : row;
      if (at < 0) continue;
      const asked = one.numbers().filter(([name]) => !number || name !== "stain");
      for (const [name, words, text] of asked) {
        const found = await stainssl.data(...words);
        const found_at = found.problem ? -1 : found.tile.indexOf(one.tiles.tile[at]);
        if (found_at >= 0 && this.tile === tile[row]) this.fact(facts, number ? `${name}, right` : name, text(found, found_at));
      }
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
      near.append(el("h4", { text: `site ${site || "not given"}${site === this.data.sheet.site ? ", same as this slide" : ""}` }), el("div", { class: "tiles" }, ...links));
    }
    near.append(el("p", { class: "hint", text: `Cosine of embeddings by ${this.encoder}; ${shown(found.searched)} of ${shown(found.total)} tiles searched, at most two per slide shown.` }));
  }

  neighbor(columns, i) {
    const [cohort, slide, tile] = [columns.cohort[i], columns.slide_id[i], columns.tile[i]];
    const cosine = columns.cosine[i].toFixed(2);
    const name = `${slide}, patient ${columns.patient_id[i]}, tile ${tile}, cosine ${cosine}`;
    return el("a", { href: address.make(["slide", cohort, slide], { tile, encoder: this.encoder, go: 1 }), title: name, "aria-label": name },
      el("img", { src: this.tilePicture(tile, cohort, slide), alt: "", loading: "lazy" }), el("span", { text: cosine }));
  }

  // --- tiles of highest and lowest attention ---

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
    if (!count) this.strip.replaceChildren(el("p", { class: "hint", text: `${found.title || "This model"} has no attention values for this slide.` }));
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
      this.fact(list, "pixel size", geometry.mpp ? `${shown(geometry.mpp, 4)} µm` : "unknown");
      if (geometry.objective) this.fact(list, "objective", `${shown(geometry.objective)}×`);
      this.fact(list, "format", `${geometry.vendor} (reader ${geometry.reader})`);
    }
    return el("section", { "aria-label": "Slide" }, el("h2", { text: "Slide" }), list);
  }
}

let current = null; // the open SlideView; also used by tests

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
