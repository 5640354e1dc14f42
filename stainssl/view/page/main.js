"use strict";
// Opens the page given by the URL.

async function open() {
  const { words, query } = address.read();
  const [kind, ...rest] = words;
  const main = document.getElementById("main");
  document.querySelectorAll("#cohorts a").forEach((link) => {
    if (link.hash.startsWith(`#${kind === "benchmark" ? kind : "cohort"}/`) && link.dataset.name === rest[0]) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  });
  if (current) {
    for (const pane of current.panes) pane.viewer?.destroy();
    current = null;
  }
  main.dataset.ready = "no";
  if (kind === "cohort" && rest.length === 1) await showCohort(rest[0], query);
  else if (kind === "slide" && rest.length === 2) await showSlide(rest[0], rest[1], query);
  else if (kind === "stain" && rest.length === 3) await showStains(...rest, query);
  else if (kind === "benchmark" && rest.length === 1) await showBenchmark(rest[0], query);
  else await showFirst();
  main.dataset.ready = "yes";
}

async function showFirst() {
  const overview = await stainssl.data("overview");
  const main = document.getElementById("main");
  if (overview.problem) main.replaceChildren(problem(overview.problem));
  else if (overview.cohorts.length === 1 && !overview.cohorts[0].problem) location.replace(address.make(["cohort", overview.cohorts[0].name]));
  else {
    main.replaceChildren(el("h1", { text: "Cohorts" }), el("ul", { class: "cohorts" }, ...overview.cohorts.map((c) =>
      el("li", {}, el("a", { href: address.make(["cohort", c.name]), text: c.name }), ` ${shown(c.slides)} slides`, c.problem ? problem(c.problem) : null))));
  }
}

async function begin() {
  const overview = await stainssl.data("overview");
  const links = (overview.cohorts || []).map((c) => el("a", { href: address.make(["cohort", c.name]), "data-name": c.name, text: c.name }));
  links.push(...(overview.benchmarks || []).map((name) => el("a", { href: address.make(["benchmark", name]), "data-name": name, text: `benchmark ${name}` })));
  document.getElementById("cohorts").replaceChildren(...links);
  document.getElementById("copy").addEventListener("click", copyLink);
  document.getElementById("skip").addEventListener("click", (event) => {
    event.preventDefault();
    document.getElementById("main").focus();
  });
  window.addEventListener("hashchange", open);
  await open();
}

async function copyLink() {
  try {
    await navigator.clipboard.writeText(location.href);
    announce("Link copied.");
  } catch {
    announce("Could not copy: take the link from the address bar.");
  }
}

begin();
