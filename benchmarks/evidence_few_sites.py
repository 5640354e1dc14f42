"""Training on one or two sites and testing on each of the others, on the real tiles of AMi-Br.

    python -m benchmarks.evidence_few_sites measure --root AMi-Br --input-size 128 \
        --json docs/evidence/few_sites-128-px.json --encoder NAME=SOURCE …
    python -m benchmarks.evidence_few_sites docs --json docs/evidence/few_sites-128-px.json

A linear probe learns `atypical` from the tiles of some of the five sites, a fifth of whose cases
choose its penalty, and is tested at each of the others. Trained on one site that gives twenty
results, on two sites thirty; their means are compared. Intervals are over cases, with the same
resamples for all results.

SOURCE and names of seeds are as in `evidence_confounded.py`: networks were trained on all sites
without labels, or on none.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from benchmarks import evidence_table
from benchmarks.evidence_amibr import Vectors
from benchmarks.evidence_confounded import (
    Tiles,
    answered,
    case_folds,
    command,
    drawn_cases,
    measured_on,
)
from benchmarks.evidence_table import Estimates, Seeds, mean_of, seeds_of, share, span, table

TRAINED_ON = {"two": 2, "one": 1}  # name in the record → number of sites


def of_run(tiles: Tiles, vectors: Vectors) -> dict[str, Estimates]:
    """AUROC at each other site, e.g. `two` → `midog-xr, tupac-1-23: midog-cs2`."""
    figure = drawn_cases(tiles)
    sites = np.unique(tiles.site).tolist()
    return {
        name: {
            f"{', '.join(some)}: {site}": figure("auroc", of_site)
            for some in combinations(sites, count)
            for site, of_site in answers(tiles, vectors, some).items()
        }
        for name, count in TRAINED_ON.items()
    }


def answers(tiles: Tiles, vectors: Vectors, some: Sequence[str]) -> dict[str, pd.DataFrame]:
    """Predictions of a probe trained on some of the sites, by test site."""
    learnt = np.isin(tiles.site, some)
    _, val, _ = next(case_folds(tiles))
    roles = learnt & ~val, learnt & val, ~learnt
    found = answered(tiles, vectors, tiles.atypical, roles, 0)
    site = tiles.site[~learnt]
    return {name: found[site == name] for name in np.unique(site).tolist()}


def record(runs: Mapping[str, Mapping[str, Estimates]]) -> dict[str, Any]:
    """The record as JSON; the seeds of an encoder are averaged."""
    seeds = {count: seeds_of(runs, count) for count in TRAINED_ON}
    encoders = {
        name: {"seeds": len(found), **{count: figures(seeds[count][name]) for count in TRAINED_ON}}
        for name, found in seeds["two"].items()
    }
    return {
        "encoders": encoders,
        "differences": {count: evidence_table.differences(of) for count, of in seeds.items()},
    }


def figures(found: Seeds) -> dict[str, Any]:
    """Mean over the results, and each of them."""
    each = {key: share(mean_of(found, key)) for key in found[0]}
    return {"auroc": share(mean_of(found)), "each": each}


def section(made: Mapping[str, Any]) -> str:
    """The section as Markdown."""
    lines = [
        f"{measured_on(made)} Order by the results of training on two sites.",
        "",
        *table(*means(made)),
    ]
    for count, differences in made["differences"].items():
        title = f"AUROC, trained on {count}, paired"
        lines += evidence_table.pairs(by_mean(made), differences, title)
    return "\n".join(lines)


def by_mean(made: Mapping[str, Any]) -> list[str]:
    """Encoders in the order of their results of training on two sites, best first."""
    found = made["encoders"]
    return sorted(found, key=lambda name: -found[name]["two"]["auroc"]["value"])


def means(made: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table of encoders."""
    head, rows = ["encoder", "seeds"], []
    for count in made["differences"]:
        results = len(next(iter(made["encoders"].values()))[count]["each"])
        head += [f"trained on {count}: AUROC, mean of {results}", "lowest"]
    for name in by_mean(made):
        one = made["encoders"][name]
        rows.append([f"`{name}`", str(one["seeds"])])
        for count in made["differences"]:
            lowest = min(one[count]["each"].values(), key=lambda found: found["value"])
            rows[-1] += [span(one[count]["auroc"]), span(lowest)]
    return head, rows


def main(words: Sequence[str] | None = None) -> None:
    """Measure, or write the section of docs/results.md."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    command(parser, words, of_run, record, section)


if __name__ == "__main__":
    main()
