"use strict";
// One tile under other stains, and the cosines of its embeddings to those of the original.

const GROUPS = { site: "as stained at site", normalizer: "normalized to the mean of all slides by", target: "target of" };

// Cell colors: background from white at the median cosine to other tiles to dark at 1.
function cosineColors(value, other) {
  const low = other ?? Math.min(value, 0.5);
  const share = Math.max(0, Math.min(1, (value - low) / (1 - low || 1)));
  return { background: `rgb(${[94, 60, 153].map((c) => Math.round(255 - share * (255 - c))).join(",")})`, color: share > 0.55 ? "#fff" : "#1d1b22" };
}

async function showStains(cohort, slide, tile, query) {
  const main = document.getElementById("main");
  document.title = `${slide}, tile ${tile}: stains – stainssl`;
  const back = el("h1", {}, el("a", { href: address.make(["slide", cohort, slide], { tile, go: 1 }), text: slide }), ` / tile ${tile} under other stains`);
  main.replaceChildren(back, el("p", { class: "hint", text: "…" }));
  const found = await stainssl.data("stains", cohort, slide, tile);
  if (found.problem) {
    main.replaceChildren(back, problem(found.problem));
    return;
  }
  const untold = Object.entries(found.told).filter(([, told]) => !told).map(([method]) => method);
  const notes = untold.length ? [problem(`The tile has no valid ${untold.join(" or ")} profile: there it is shown unchanged, except for color that two stains cannot produce.`)] : [];
  main.replaceChildren(back, el("p", { text: "Numbers: cosine between the embeddings of the re-stained and the original tile; 1 is no change. Colors run from the median cosine with other tiles (white) to 1." }), ...notes, fieldSwitch(cohort, slide, tile, query), stainTable(found, cohort, slide, tile, query.has("field")));
}

function fieldSwitch(cohort, slide, tile, query) {
  const words = ["stain", cohort, slide, tile];
  const box = el("input", { type: "checkbox", id: "field", checked: query.has("field"), onchange: () => { location.hash = address.make(words, box.checked ? { field: 1 } : {}); } });
  return el("div", { class: "controls" }, box, el("label", { for: "field", text: "Show the field around the tile (numbers are still of the tile)" }));
}

function stainTable(found, cohort, slide, tile, isField) {
  const side = isField ? 224 : 112;
  const image = (name, title) => el("img", { src: stainssl.picture(isField ? "field" : "stained", cohort, slide, tile, name), alt: `the tile: ${title}`, width: side });
  const groups = [...new Set(found.stains.map((s) => s.group))];
  const above = el("tr", {}, el("td"), el("th", { scope: "col", text: "original" }), ...groups.map((group) =>
    el("th", { scope: "colgroup", colspan: found.stains.filter((s) => s.group === group).length, text: GROUPS[group] })), el("td"));
  const heads = el("tr", {}, el("td"), el("td", {}, image("original", "original")), ...found.stains.map((s) =>
    el("th", { scope: "col" }, image(s.name, `${GROUPS[s.group]} ${s.title}`), el("span", { text: s.title }))), el("th", { scope: "col", class: "other", text: "other tiles (median)" }));
  const rows = found.encoders.map((encoder) => {
    const name = el("th", { scope: "row", text: encoder.name });
    if (encoder.problem) return el("tr", {}, name, el("td", { colspan: found.stains.length + 2 }, problem(encoder.problem)));
    const cells = encoder.cosine.map((value) => el("td", { class: "number", style: cosineColors(value, encoder.other), text: value.toFixed(3) }));
    return el("tr", {}, name, el("td", { class: "number", text: "1" }), ...cells, el("td", { class: "number other", text: encoder.other === null ? "–" : encoder.other.toFixed(3) }));
  });
  if (!rows.length) rows.push(el("tr", {}, el("td", { colspan: found.stains.length + 3, text: "No encoder has its weights on this machine." })));
  return el("div", { class: "scroller plain", tabindex: "0", role: "region", "aria-label": "Stains" }, el("table", { class: "stains" }, el("thead", {}, above, heads), el("tbody", {}, ...rows)));
}
