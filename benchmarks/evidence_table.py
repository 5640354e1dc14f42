"""Results of encoders at sites left out: the record, and its section of docs/results.md.

`evidence_amibr.py` makes the predictions. All numbers in the section are from the record.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import pandas as pd

from stainssl.evaluation.compare import holm
from stainssl.evaluation.intervals import Estimate, combine, p_value, with_seeds
from stainssl.evaluation.metrics import estimate, patient_weights
from stainssl.evaluation.predictions import read_scored
from tools.pages import fill, marks

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results.md"
METRICS = {"auroc": "AUROC", "balanced_accuracy": "balanced accuracy"}
# Encoders whose pairwise differences are on a page; the record has all pairs. A record that has all
# of `BRIEF` is the main one, in which the others would make too long a table.
BRIEF = {"stain-invariant-without", "stain-invariant-480-steps-without"}
SHOWN = {
    "imagenet", "macenko",
    "stain-invariant-without", "stain-invariant-all", "macenko-stain-invariant-all",
    "stain-invariant-480-steps-all",
}  # fmt: skip

FEW = 6  # a record of at most so many encoders has all pairs on its page

Runs = Mapping[str, Mapping[str, pd.DataFrame]]
Estimates = dict[str, Estimate]  # of one run, by site
Seeds = Sequence[Estimates]  # of the runs of one encoder
SEED = re.compile(r"\.\d+$")  # suffix of a run's name, as in `simclr.0`


# --- the record -----------------------------------------------------------------------------------


def site_estimates(runs: Mapping[str, pd.DataFrame], metric: str, resamples: int) -> Estimates:
    """Site → estimate; resamples are the same for all encoders and independent between sites."""
    found = {}
    for place, site in enumerate(sorted(runs)):
        scored = read_scored(runs[site].sort_values("slide_id"), "tile")
        weights = patient_weights(scored, resamples, place)
        found[site] = estimate(metric, scored, weights=weights)
    return found


def by_encoder(runs: Iterable[str]) -> dict[str, list[str]]:
    """Encoder → its runs, one per seed."""
    found: dict[str, list[str]] = {}
    for name in sorted(runs):
        found.setdefault(SEED.sub("", name), []).append(name)
    return found


def seeds_of(runs: Mapping[str, Mapping[str, Estimates]], metric: str) -> dict[str, Seeds]:
    """Encoder → estimates of a metric, one per seed.

    Args:
        runs: run → metric → estimates.
        metric: one that every run has.
    """
    return {name: [runs[run][metric] for run in of] for name, of in by_encoder(runs).items()}


def mean_of(seeds: Seeds, site: str | None = None) -> Estimate:
    """Mean over seeds and sites, with an interval over patients and seeds.

    Args:
        seeds: estimates of the runs of one encoder.
        site: only this site.
    """
    return _contrast([(seeds, 1.0)], site)


def difference(first: Seeds, second: Seeds) -> Estimate:
    """Difference of the means of two encoders over the same sites and cases."""
    return _contrast([(first, 1.0), (second, -1.0)])


def _contrast(sides: Sequence[tuple[Seeds, float]], site: str | None = None) -> Estimate:
    parts: list[Estimate] = []
    factors: list[float] = []
    by_seed: list[list[float]] = []
    for seeds, sign in sides:
        chosen = [[one[site]] if site else list(one.values()) for one in seeds]
        parts += [estimate for one in chosen for estimate in one]
        factors += [sign / len(seeds) / len(one) for one in chosen for _ in one]
        by_seed.append([sum(e.value for e in one) / len(one) for one in chosen])
    return with_seeds(combine(parts, factors), by_seed)


def figure(found: Estimate) -> dict[str, float]:
    """A value with its 95 % limits, rounded."""
    low, high = found.interval
    return {"value": round(found.value, 4), "low": round(low, 4), "high": round(high, 4)}


def share(found: Estimate) -> dict[str, float]:
    """As `figure`, with limits clipped to 0–1, which those over few seeds can exceed."""
    made = figure(found)
    return made | {"low": max(made["low"], 0.0), "high": min(made["high"], 1.0)}


def record(runs: Runs, described: Mapping[str, Any], resamples: int) -> dict[str, Any]:
    """Compute the record, as JSON.

    Args:
        runs: run → site → predictions; runs that lack a site are left out.
        described: run → description.
        resamples: number of resamples of the cases.
    """
    most = max(len(sites) for sites in runs.values())
    whole = {name: sites for name, sites in runs.items() if len(sites) == most}
    of_runs = {
        metric: {name: site_estimates(sites, metric, resamples) for name, sites in whole.items()}
        for metric in METRICS
    }
    estimates = {
        metric: {name: [found[run] for run in seeds] for name, seeds in by_encoder(found).items()}
        for metric, found in of_runs.items()
    }
    sites = list(next(iter(whole.values())))
    encoders = {
        name: {
            "seeds": len(seeds),
            "mean": {m: share(mean_of(found[name])) for m, found in estimates.items()},
            "sites": {
                m: {site: share(mean_of(found[name], site)) for site in sites}
                for m, found in estimates.items()
            },
            **described[seeds[0]],
        }
        for name, seeds in by_encoder(whole).items()
    }
    return {
        "sites": site_counts(next(iter(whole.values()))),
        "encoders": encoders,
        "differences": {m: differences(found) for m, found in estimates.items()},
        "unfinished": sorted(set(described) - set(whole)),
        "resamples": resamples,
    }


def site_counts(runs: Mapping[str, pd.DataFrame]) -> dict[str, dict[str, int]]:
    """Site → numbers of cases, tiles and atypical tiles."""
    return {
        site: {
            "cases": int(table["patient_id"].nunique()),
            "tiles": len(table),
            "atypical": int((table["y"].astype(str) == "1").sum()),
        }
        for site, table in runs.items()
    }


def differences(found: Mapping[str, Seeds]) -> list[dict[str, Any]]:
    """Differences of all pairs of encoders, with p-values corrected over all pairs (Holm)."""
    rows: list[dict[str, Any]] = []
    for first, second in combinations(found, 2):
        one = difference(found[first], found[second])
        rows.append({"first": first, "second": second, **figure(one), "p": p_value(one)})
    for row, corrected in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["p"], row["p_holm"] = round(row["p"], 4), round(corrected, 4)
    return rows


# --- the section ----------------------------------------------------------------------------------


def span(found: Mapping[str, float], signed: bool = False) -> str:
    """Format as `0.634 (0.601–0.667)`, or signed as `+0.012 (−0.010 to +0.034)`."""
    if not signed:
        return f"{found['value']:.3f} ({found['low']:.3f}–{found['high']:.3f})"
    value, low, high = (f"{found[key]:+.3f}".replace("-", "−") for key in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines] + [""]


def by_mean(made: Mapping[str, Any]) -> list[str]:
    """Encoders by decreasing mean AUROC."""
    return sorted(
        made["encoders"], key=lambda name: -made["encoders"][name]["mean"]["auroc"]["value"]
    )


def means(made: Mapping[str, Any]) -> list[str]:
    """Table of the means over sites."""
    head = [
        "encoder",
        "source",
        "seeds",
        *(f"{word}, mean over sites" for word in METRICS.values()),
    ]
    rows = [
        [
            f"`{name}`",
            f"`{one['source']}`",
            str(one["seeds"]),
            *(span(one["mean"][metric]) for metric in METRICS),
        ]
        for name in by_mean(made)
        for one in [made["encoders"][name]]
    ]
    return table(head, rows)


def at_sites(made: Mapping[str, Any]) -> list[str]:
    """Table of the AUROC at every site."""
    sites = made["sites"]
    head = ["AUROC at the site left out", *(f"`{site}`" for site in sites)]
    counts = [f"{n['cases']} cases, {n['tiles']:,} tiles, {n['atypical']} atypical"
              for n in sites.values()]  # fmt: skip
    rows = [
        [f"`{n}`", *(span(made["encoders"][n]["sites"]["auroc"][site]) for site in sites)]
        for n in by_mean(made)
    ]
    return table(head, [["tested there", *counts], *rows])


def pairs(order: Sequence[str], rows: Sequence[Mapping[str, Any]], title: str) -> list[str]:
    """Table of the pairs with a chosen encoder, or of all of few; differences follow `order`."""
    shown, known = [], set(order)
    wanted = BRIEF if known >= BRIEF else SHOWN & known
    if len(known) <= FEW or not wanted:
        wanted = known
    for row in rows:
        first, second, sign = row["first"], row["second"], 1
        if not {first, second} & wanted:
            continue
        if order.index(first) > order.index(second):
            first, second, sign = second, first, -1
        low, high = sorted((sign * row["low"], sign * row["high"]))
        found = {"value": sign * row["value"], "low": low, "high": high}
        better = "**" if low > 0 and row["p_holm"] < 0.05 else ""
        shown.append([
            f"`{first}` minus `{second}`", f"{better}{span(found, signed=True)}{better}",
            f"{row['p_holm']:.3f}",
        ])  # fmt: skip
    return table([title, "difference", "p (Holm)"], shown)


def section(made: Mapping[str, Any]) -> str:
    """The section as Markdown."""
    one = next(iter(made["encoders"].values()))
    counted = "all tiles" if one["per_case"] is None else f"at most {one['per_case']} tiles a case"
    sides = sorted({encoder["input_size"] for encoder in made["encoders"].values()})
    lines = [
        f"{one['cases']} cases, {one['tiles']:,} tiles ({counted}), networks at "
        f"{' or '.join(map(str, sides))} px; 95 % intervals over cases, "
        f"{made['resamples']:,} resamples. "
        "Best mean AUROC first; a difference is bold where its interval is above zero and its "
        "p-value, corrected over all pairs of encoders, below 0.05.",
        "",
        *means(made),
        *at_sites(made),
        *pairs(by_mean(made), made["differences"]["auroc"], "AUROC, mean over sites, paired"),
    ]
    if made["unfinished"]:
        names = ", ".join(f"`{name}`" for name in made["unfinished"])
        lines += [f"Begun and not finished at all sites, so not compared: {names}.", ""]
    return "\n".join(lines)


# --- the command line -----------------------------------------------------------------------------


def add_docs_verb(verbs: Any) -> None:
    """Add the command `docs`, which writes the section of a record, to subparsers."""
    docs = verbs.add_parser("docs", help="write the JSON's section of a page")
    docs.add_argument("--json", type=Path, required=True)
    docs.add_argument("--page", type=Path, default=RESULTS, help="default: docs/results.md")


def write_section(given: argparse.Namespace, section: Callable[[Any], str]) -> None:
    """Run the command `docs`: write the section named like the record into the page."""
    made = json.loads(given.json.read_text(encoding="utf-8"))
    fill(given.page, marks(given.json.stem), f"\n\n{section(made)}\n")


def log_to_terminal() -> None:
    """Log progress to the terminal with the time of day."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
