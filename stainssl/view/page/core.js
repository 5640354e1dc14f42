"use strict";
// Shared by all pages: requests for data, HTML elements, and the state stored in the URL.

const stainssl = {
  // The server sends JSON. Files opened from disk cannot be fetched by a script, so an export
  // contains the same data as scripts that call `deliver`.
  exported: document.documentElement.dataset.exported === "yes",
  known: new Map(),
  waiting: new Map(),

  deliver(name, value) {
    this.waiting.get(name)?.(value);
    this.waiting.delete(name);
  },

  // Requests the JSON of a name, e.g. "slide", cohort, slide. Responses are cached, problems not.
  data(...words) {
    const name = words.join("/");
    if (!this.known.has(name)) {
      const place = words.map(encodeURIComponent).join("/");
      const asked = this.exported ? this.byScript(name, place) : this.byFetch(place);
      this.known.set(name, asked);
      asked.then((value) => {
        if (value.problem) this.known.delete(name);
      });
    }
    return this.known.get(name);
  },

  async byFetch(place) {
    try {
      const response = await fetch(`data/${place}.json`);
      if (response.ok) return await response.json();
      return { problem: await response.text() };
    } catch {
      return { problem: "No response from the server: is `stainssl view` still running?" };
    }
  },

  byScript(name, place) {
    return new Promise((resolve) => {
      const script = document.createElement("script");
      script.src = `data/${place}.js`;
      script.onerror = () => resolve({ problem: "Not included in the export." });
      script.onload = () => script.remove();
      this.waiting.set(name, resolve);
      document.head.append(script);
    });
  },

  picture(...words) {
    return `pictures/${words.map(encodeURIComponent).join("/")}.jpg`;
  },
};

// Unless an element has this attribute, OpenSeadragon adds a style element, which the content
// security policy refuses. The style is in style.css; this element has no namespace and no effect.
const mark = document.createElementNS(null, "style");
mark.setAttribute("data-openseadragon-mobile-css", "true");
document.head.append(mark);

// Creates an element. Text from sheets is never parsed as HTML.
function el(tag, given = {}, ...children) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(given)) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (key === "text") made.textContent = value;
    else if (key === "style") Object.assign(made.style, value);
    else made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

function shown(value, digits = 3) {
  if (value === null || value === undefined || value === "") return "–";
  if (typeof value !== "number") return String(value);
  if (Number.isInteger(value)) return value.toLocaleString("en-US");
  return String(Number(value.toPrecision(digits)));
}

function announce(text) {
  document.getElementById("said").textContent = text;
}

function problem(text) {
  return el("p", { class: "problem", role: "alert", text });
}

// State in the URL: #kind/word/word?key=value&…
const address = {
  read() {
    const [path, query] = location.hash.replace(/^#/, "").split("?");
    const words = path.split("/").filter(Boolean).map(decodeURIComponent);
    return { words, query: new URLSearchParams(query || "") };
  },

  make(words, query = {}) {
    const left = Object.entries(query).filter(([, v]) => v !== "" && v !== null && v !== undefined);
    const asked = new URLSearchParams(left).toString();
    return `#${words.map(encodeURIComponent).join("/")}${asked ? `?${asked}` : ""}`;
  },

  // Replaces the URL without a history entry and without opening the page again.
  keep(words, query) {
    history.replaceState(null, "", this.make(words, query));
  },
};
