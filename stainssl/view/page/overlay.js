"use strict";
// Draws layers on a canvas over the slide. Coordinates are in image px (see layers.py).

const COLORS = { tissue: "#0072b2", ink: "#b8860b", kept: "#009e73", annotations: "#cc4c9b", chosen: "#000000" };
// Colors and descriptions of the reasons why tiles were left out.
const REASONS = { tissue: "#7f7f7f", pen: "#b8860b", blur: "#d55e00", pale: "#56b4e9", region: "#8c6bb1" };
const REASON_WORDS = { tissue: "too little tissue", pen: "ink", blur: "out of focus", pale: "pale", region: "outside of the regions" };
const OTHER_REASON = "#e69f00";

class Overlay {
  constructor(viewer, scale) {
    this.viewer = viewer;
    this.scale = scale;
    this.layers = new Map(); // name → { opacity, draw(context, view) }
    this.canvas = el("canvas", { class: "overlay", "aria-hidden": "true" });
    viewer.canvas.append(this.canvas);
    for (const event of ["update-viewport", "open", "resize"]) viewer.addHandler(event, () => this.draw());
  }

  set(name, layer) {
    if (layer) this.layers.set(name, layer);
    else this.layers.delete(name);
    this.draw();
  }

  // Position of image px on the screen (screen px = offset + scale × image px), and visible bounds.
  view() {
    const item = this.viewer.world.getItemAt(0);
    if (!item) return null;
    const size = item.getContentSize();
    const zero = item.imageToViewerElementCoordinates(new OpenSeadragon.Point(0, 0));
    const end = item.imageToViewerElementCoordinates(new OpenSeadragon.Point(size.x, 0));
    const scale = (end.x - zero.x) / size.x;
    const box = this.viewer.container.getBoundingClientRect();
    return {
      x: zero.x, y: zero.y, scale, width: box.width, height: box.height,
      left: -zero.x / scale, top: -zero.y / scale,
      right: (box.width - zero.x) / scale, bottom: (box.height - zero.y) / scale,
    };
  }

  draw() {
    const view = this.view();
    if (!view) return;
    const ratio = window.devicePixelRatio || 1;
    const [width, height] = [Math.round(view.width * ratio), Math.round(view.height * ratio)];
    if (this.canvas.width !== width || this.canvas.height !== height) {
      this.canvas.width = width;
      this.canvas.height = height;
    }
    const context = this.canvas.getContext("2d");
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, width, height);
    for (const layer of this.layers.values()) {
      context.setTransform(ratio * view.scale, 0, 0, ratio * view.scale, ratio * view.x, ratio * view.y);
      context.globalAlpha = layer.opacity;
      layer.draw(context, view);
    }
  }
}

// Positions of the tiles of a slide, with a lookup by point.
class Tiles {
  constructor(found) {
    this.side = found.side;
    Object.assign(this, found.columns);
    this.count = this.tile.length;
    this.at = new Map(this.tile.map((tile, i) => [tile, i]));
    this.cells = new Map();
    for (let i = 0; i < this.count; i++) {
      const key = this.cell(this.x[i], this.y[i]);
      if (this.cells.has(key)) this.cells.get(key).push(i);
      else this.cells.set(key, [i]);
    }
  }

  cell(x, y) {
    return `${Math.floor(x / this.side)},${Math.floor(y / this.side)}`;
  }

  // Row of the tile under a point, or -1; of overlapping tiles, the one with the nearest center.
  under(x, y) {
    let best = -1;
    let least = Infinity;
    for (const dx of [-this.side, 0]) for (const dy of [-this.side, 0]) {
      for (const i of this.cells.get(this.cell(x + dx, y + dy)) || []) {
        const [fx, fy] = [x - this.x[i], y - this.y[i]];
        if (fx < 0 || fy < 0 || fx >= this.side || fy >= this.side) continue;
        const far = Math.hypot(fx - this.side / 2, fy - this.side / 2);
        if (far < least) [best, least] = [i, far];
      }
    }
    return best;
  }

  *inSight(view) {
    for (let i = 0; i < this.count; i++) {
      if (this.x[i] < view.right && this.y[i] < view.bottom && this.x[i] + this.side > view.left && this.y[i] + this.side > view.top) yield i;
    }
  }
}

function ringsLayer(rings, color, opacity, filled = false) {
  const path = new Path2D();
  for (const ring of rings) {
    ring.forEach(([x, y], i) => (i ? path.lineTo(x, y) : path.moveTo(x, y)));
    path.closePath();
  }
  return {
    opacity,
    draw(context, view) {
      if (filled) {
        context.fillStyle = `${color}30`;
        context.fill(path, "evenodd");
      }
      context.strokeStyle = color;
      context.lineWidth = 2 / view.scale;
      context.stroke(path);
    },
  };
}

function reasonColor(reason) {
  return reason ? REASONS[reason] || OTHER_REASON : COLORS.kept;
}

function gridLayer(tiles, opacity) {
  return {
    opacity,
    draw(context, view) {
      context.lineWidth = 1 / view.scale;
      const gap = Math.min(1 / view.scale, tiles.side / 4);
      const isSmall = tiles.side * view.scale < 5; // screen px; small tiles are filled, not outlined
      for (const i of tiles.inSight(view)) {
        const color = reasonColor(tiles.reason[i]);
        if (isSmall || tiles.reason[i]) {
          context.fillStyle = isSmall ? color : `${color}50`;
          context.fillRect(tiles.x[i], tiles.y[i], tiles.side, tiles.side);
        }
        if (isSmall) continue;
        context.strokeStyle = color;
        context.strokeRect(tiles.x[i] + gap, tiles.y[i] + gap, tiles.side - 2 * gap, tiles.side - 2 * gap);
      }
    },
  };
}

// Tiles colored by a value; `low` and `high` are the ends of the color map.
function valuesLayer(tiles, found, values, [low, high], scale, opacity) {
  const color = new Map();
  found.tile.forEach((tile, i) => {
    const row = tiles.at.get(tile);
    if (row === undefined || values[i] === null) return;
    const share = (values[i] - low) / (high - low || 1);
    color.set(row, scale[Math.max(0, Math.min(scale.length - 1, Math.round(share * (scale.length - 1))))]);
  });
  return {
    opacity,
    draw(context, view) {
      const side = tiles.side + 0.5 / view.scale; // no seams between neighbors
      for (const i of tiles.inSight(view)) {
        if (!color.has(i)) continue;
        context.fillStyle = color.get(i);
        context.fillRect(tiles.x[i], tiles.y[i], side, side);
      }
    },
  };
}

function chosenLayer(tiles, row) {
  return {
    opacity: 1,
    draw(context, view) {
      for (const [color, width] of [["#ffffff", 5], [COLORS.chosen, 2.5]]) {
        context.strokeStyle = color;
        context.lineWidth = width / view.scale;
        context.strokeRect(tiles.x[row], tiles.y[row], tiles.side, tiles.side);
      }
    },
  };
}

// The 1st and 99th percentile, used as ends of the color map.
function percentiles(values) {
  const known = values.filter((v) => v !== null).sort((a, b) => a - b);
  if (!known.length) return [0, 1];
  const at = (share) => known[Math.min(known.length - 1, Math.floor(share * known.length))];
  return Object.assign([at(0.01), at(0.99)], { arePercentiles: true });
}
