"""Training on two sites and testing on the other three, on the real tiles of AMi-Br.

    python -m benchmarks.evidence_two_sites measure --root AMi-Br --input-size 64 \
        --json docs/evidence/two_sites.json --encoder NAME=SOURCE …
    python -m benchmarks.evidence_two_sites docs --json docs/evidence/two_sites.json

A linear probe learns `atypical` from the tiles of two of the five sites, a fifth of whose cases
choose its penalty, and is tested at each of the other three: ten pairs of sites, thirty results and
their mean. Intervals are over cases, with the same resamples for all results.

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
from numpy.typing import NDArray

from benchmarks import evidence_table
from benchmarks.evidence_amibr import Vectors
from benchmarks.evidence_confounded import Tiles, answered, case_folds, command, drawn_cases
from benchmarks.evidence_table import Estimates, Seeds, by_encoder, mean_of, share, span, table

Mask = NDArray[np.bool_]


def of_run(tiles: Tiles, vectors: Vectors) -> dict[str, Estimates]:
    """AUROC of each pair of sites at each other site; keys as `midog-xr, tupac-1-23: midog-cs2`."""
    figure = drawn_cases(tiles)
    sites = np.unique(tiles.site)
    return {
        "auroc": {
            f"{', '.join(pair)}: {site}": figure("auroc", of_site)
            for pair in combinations(sites.tolist(), 2)
            for site, of_site in answers(tiles, vectors, pair).items()
        }
    }


def answers(tiles: Tiles, vectors: Vectors, pair: Sequence[str]) -> dict[str, pd.DataFrame]:
    """Predictions of a probe trained on a pair of sites, by test site."""
    learnt = np.isin(tiles.site, pair)
    _, val, _ = next(case_folds(tiles))
    roles = learnt & ~val, learnt & val, ~learnt
    found = answered(tiles, vectors, tiles.atypical, roles, 0)
    site = tiles.site[~learnt]
    return {name: found[site == name] for name in np.unique(site).tolist()}


def record(runs: Mapping[str, Mapping[str, Estimates]]) -> dict[str, Any]:
    """The record as JSON; the seeds of an encoder are averaged."""
    seeds: dict[str, Seeds] = {
        name: [runs[run]["auroc"] for run in found] for name, found in by_encoder(runs).items()
    }
    encoders = {
        name: {
            "seeds": len(found),
            "auroc": share(mean_of(found)),
            "each": {key: share(mean_of(found, key)) for key in found[0]},
        }
        for name, found in seeds.items()
    }
    return {"encoders": encoders, "differences": evidence_table.differences(seeds)}


def section(made: Mapping[str, Any]) -> str:
    """The section as Markdown."""
    order = sorted(made["encoders"], key=lambda name: -made["encoders"][name]["auroc"]["value"])
    head = ["encoder", "seeds", "AUROC, mean of 30", "lowest of the 30", "highest"]
    rows = []
    for name in order:
        one = made["encoders"][name]
        each = sorted(one["each"].values(), key=lambda found: found["value"])
        rows.append([
            f"`{name}`", str(one["seeds"]), span(one["auroc"]), span(each[0]), span(each[-1]),
        ])  # fmt: skip
    lines = [
        f"{made['cases']} cases, {made['tiles']:,} tiles, networks at {made['input_size']} px; "
        f"95 % intervals over cases, {made['resamples']:,} resamples.",
        "",
        *table(head, rows),
        *evidence_table.pairs(order, made["differences"], "AUROC, mean of 30, paired"),
    ]
    return "\n".join(lines)


def main(words: Sequence[str] | None = None) -> None:
    """Measure, or write the section of docs/results.md."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    command(parser, words, of_run, record, section)


if __name__ == "__main__":
    main()
