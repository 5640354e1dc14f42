"use strict";
// One view of a slide in OpenSeadragon, with its scale bar, and the synchronisation of two views.

const BARS_UM = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000];
const MOST_BAR_PX = 160;
const UM_OF_10X = 1; // µm/px of a 10x objective, as in the readers

class Pane {
  constructor(geometry, cohort, slide, scale, label) {
    this.geometry = geometry;
    this.place = el("div", { class: "osd", role: "application", "aria-label": `${label}: arrow keys move, + and - zoom, 0 shows all` });
    this.bar = el("div", { class: "scalebar" }, el("span"), el("i"));
    this.zoom = el("div", { class: "zoom" });
    this.title = el("div", { class: "panetitle", hidden: true });
    this.failed = el("p", { class: "problem over", hidden: true });
    const button = (text, title, act) => el("button", { type: "button", title, "aria-label": title, onclick: act, text });
    this.buttons = el("div", { class: "zoombuttons" },
      button("+", "Zoom in", () => this.viewer.viewport.zoomBy(2)),
      button("−", "Zoom out", () => this.viewer.viewport.zoomBy(0.5)),
      button("⤢", "Show the whole slide", () => this.viewer.viewport.goHome()));
    this.element = el("div", { class: "pane" }, this.place, this.bar, this.zoom, this.buttons, this.title, this.failed);
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

  // Sets the caption; empty hides it.
  name(text) {
    this.title.textContent = text;
    this.title.hidden = !text;
  }

  async fail(event) {
    if (!this.failed.hidden) return;
    this.failed.hidden = false;
    this.failed.textContent = "Part of the slide cannot be shown.";
    if (stainssl.exported) return;
    const url = event.tile.getUrl ? event.tile.getUrl() : event.tile.url;
    const response = await fetch(url).catch(() => null);
    if (response?.ok) this.failed.hidden = true;
    else this.failed.textContent = `Part of the slide cannot be shown: ${response ? await response.text() : "no response from the server."}`;
  }

  measure() {
    const view = this.overlay.view();
    if (!view) return;
    const { mpp } = this.geometry;
    const [text, line] = this.bar.children;
    if (!mpp) {
      text.textContent = "pixel size unknown";
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

  // Center of the view in image px, and screen px per image px.
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

// Synchronises two views by their target positions. With the animated positions, each view would
// stop the other halfway.
function synchronise(first, second) {
  let isSent = false;
  for (const [from, to] of [[first, second], [second, first]]) {
    const follow = (event) => {
      if (isSent) return;
      isSent = true;
      to.viewer.viewport.fitBounds(from.viewer.viewport.getBounds(), Boolean(event.immediately));
      isSent = false;
    };
    for (const name of ["zoom", "pan"]) from.viewer.addHandler(name, follow);
  }
}
