"""A label confounded with the site on the real tiles of AMi-Br: does stain mislead an encoder?

    python -m benchmarks.evidence_confounded measure --root AMi-Br --input-size 64 \
        --json docs/evidence/confounded.json --encoder NAME=SOURCE …
    python -m benchmarks.evidence_confounded docs --json docs/evidence/confounded.json

The five sites form two groups, those of MIDOG 2021 and those of TUPAC16. In training, 90 % of the
atypical tiles are from one group and 90 % of the normal ones from the other, with as many tiles of
each class. Test tiles are those with the opposite combination, from other cases (five folds of
cases). Both directions are measured, and their mean. In addition, a probe predicts the site of a
tile from its embedding (chance 0.2). One of the five parts of cases chooses the penalty.

SOURCE is as in `evidence_amibr.py`, without `{site}`, since every site is used in training.
`NAME.0`, `NAME.1` are seeds of one encoder.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold

from benchmarks import evidence_table
from benchmarks.evidence_amibr import LABEL, Embedder, Vectors, described_source, read_tiles
from benchmarks.evidence_table import Estimates, mean_of, seeds_of, share, span, table
from stainssl.evaluation.intervals import Estimate
from stainssl.evaluation.metrics import estimate
from stainssl.evaluation.predictions import read_scored
from stainssl.evaluation.probe import linear_probe
from stainssl.stores.atomic import write_text

WAYS = ("midog", "tupac")  # group of most atypical tiles in training
FOLDS, RARE, RESAMPLES = 5, 0.1, 10_000
SITE = "site"

Mask = NDArray[np.bool_]
OfRun = Callable[["Tiles", Vectors], dict[str, Estimates]]
Record = Callable[[Mapping[str, Mapping[str, Estimates]]], dict[str, Any]]


class Tiles(NamedTuple):
    """Label, site and case of each tile, (N,) each."""

    atypical: NDArray[np.int64]
    site: NDArray[np.str_]
    case: NDArray[np.str_]

    @classmethod
    def of(cls, sheet: pd.DataFrame) -> Tiles:
        """Read them from the sheet of the release."""
        atypical = (sheet[LABEL] == "1").to_numpy(np.int64)
        return cls(atypical, sheet["site"].to_numpy(str), sheet["patient_id"].to_numpy(str))

    def goes_with(self, way: str) -> Mask:
        """Mark atypical tiles of the group `way`, and normal ones of the other: (N,) bool."""
        return (self.atypical == 1) == np.char.startswith(self.site, way)


def case_folds(tiles: Tiles) -> Iterator[tuple[Mask, Mask, Mask]]:
    """Training, validation and test tiles of each fold; cases are never split."""
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0)
    parts = [test for _, test in folds.split(tiles.site, tiles.site, tiles.case)]
    for number, test in enumerate(parts):
        role = np.zeros(len(tiles.site), int)
        role[test], role[parts[(number + 1) % FOLDS]] = 2, 1
        yield role == 0, role == 1, role == 2


def confounded(tiles: Tiles, among: Mask, way: str, rng: np.random.Generator) -> Mask:
    """Draw as many tiles of each label from `among`, 90 % of which fulfil `goes_with(way)`."""
    with_group = tiles.goes_with(way)
    pools = {
        (label, goes): np.flatnonzero(among & (tiles.atypical == label) & (with_group == goes))
        for label in (0, 1)
        for goes in (True, False)
    }
    most = min(len(pools[label, True]) for label in (0, 1))
    most = min(most, *(int(len(pools[label, False]) * (1 - RARE) / RARE) for label in (0, 1)))
    chosen = np.zeros(len(among), bool)
    for (_, goes), pool in pools.items():
        count = most if goes else round(most * RARE / (1 - RARE))
        chosen[rng.choice(pool, count, replace=False)] = True
    return chosen


def answers(tiles: Tiles, vectors: Vectors, way: str) -> pd.DataFrame:
    """Predictions of the tiles with the opposite combination, one row per tile."""
    found = []
    for number, (train, val, test) in enumerate(case_folds(tiles)):
        rng = np.random.default_rng(number)
        train, val = (confounded(tiles, part, way, rng) for part in (train, val))
        tested = test & ~tiles.goes_with(way)
        found.append(answered(tiles, vectors, tiles.atypical, (train, val, tested), number))
    return pd.concat(found, ignore_index=True)


def site_predictions(tiles: Tiles, vectors: Vectors) -> pd.DataFrame:
    """Predictions of the site of every tile, one row per tile."""
    site = np.unique(tiles.site, return_inverse=True)[1]
    found = [
        answered(tiles, vectors, site, roles, number)
        for number, roles in enumerate(case_folds(tiles))
    ]
    return pd.concat(found, ignore_index=True)


def answered(
    tiles: Tiles, vectors: Vectors, y: NDArray[Any], roles: tuple[Mask, Mask, Mask], fold: int
) -> pd.DataFrame:
    """Predictions of a linear probe, one row per test tile.

    Args:
        tiles, vectors: the N tiles and their (N, D) embeddings.
        y: (N,) class of each tile.
        roles: masks of training, validation and test tiles.
        fold: number of the fold.
    """
    train, val, test = roles
    both, classes = train | val, int(y.max()) + 1
    model, _ = linear_probe(vectors[both], y[both], tiles.case[both], val[both], classes, seed=0)
    p = model(vectors[test])
    made = pd.DataFrame({f"p_{k}": p[:, k] for k in range(classes)})
    return made.assign(
        y=y[test].astype(str), patient_id=tiles.case[test],
        slide_id=np.flatnonzero(test).astype(str), tile=0, repeat=0, fold=fold,
    )  # fmt: skip


def drawn_cases(tiles: Tiles) -> Callable[[str, pd.DataFrame], Estimate]:
    """Return a function (metric, predictions) → estimate, which always uses the same resamples."""
    cases = np.unique(tiles.case)
    drawn = np.random.default_rng(0).multinomial(
        len(cases), np.full(len(cases), 1 / len(cases)), RESAMPLES
    )

    def one(metric: str, predictions: pd.DataFrame) -> Estimate:
        there = np.searchsorted(cases, np.unique(predictions["patient_id"].to_numpy(str)))
        weights = drawn[:, there].astype(float)
        return estimate(metric, read_scored(predictions, "tile"), weights=weights)

    return one


def of_run(tiles: Tiles, vectors: Vectors) -> dict[str, Estimates]:
    """AUROC in both directions (`auroc`), and balanced accuracy of the site (`site`)."""
    one = drawn_cases(tiles)
    return {
        "auroc": {way: one("auroc", answers(tiles, vectors, way)) for way in WAYS},
        SITE: {SITE: one("balanced_accuracy", site_predictions(tiles, vectors))},
    }


def record(runs: Mapping[str, Mapping[str, Estimates]]) -> dict[str, Any]:
    """The record as JSON; the seeds of an encoder are averaged."""
    seeds = {metric: seeds_of(runs, metric) for metric in ("auroc", SITE)}
    encoders = {
        name: {
            "seeds": len(found),
            "auroc": share(mean_of(found)),
            **{way: share(mean_of(found, way)) for way in WAYS},
            SITE: share(mean_of(seeds[SITE][name])),
        }
        for name, found in seeds["auroc"].items()
    }
    return {
        "encoders": encoders,
        "differences": {metric: evidence_table.differences(of) for metric, of in seeds.items()},
    }


def measured_on(made: Mapping[str, Any]) -> str:
    """Sentence with the numbers of cases, tiles and resamples of a record."""
    return (
        f"{made['cases']} cases, {made['tiles']:,} tiles, networks at {made['input_size']} px; "
        f"95 % intervals over cases, {made['resamples']:,} resamples."
    )


def section(made: Mapping[str, Any]) -> str:
    """The section as Markdown."""
    order = sorted(made["encoders"], key=lambda name: -made["encoders"][name]["auroc"]["value"])
    pairs = made["differences"]["auroc"]
    ways = [f"atypical mostly of `{way}`" for way in WAYS]
    head = ["encoder", "seeds", "AUROC, mean of both ways", *ways]
    head.append("site predictability (chance 0.2)")
    rows = [
        [f"`{name}`", str(one["seeds"]), *(span(one[key]) for key in ("auroc", *WAYS, SITE))]
        for name in order
        for one in [made["encoders"][name]]
    ]
    lines = [
        f"{measured_on(made)} Below 0.5 the probe follows the site. "
        f"With {len(pairs)} pairs of encoders and this many resamples, the lowest "
        f"corrected p-value is {2 / made['resamples'] * len(pairs):.3f}.",
        "",
        *table(head, rows),
        *evidence_table.pairs(order, pairs, "AUROC, paired"),
    ]
    return "\n".join(lines)


def measure(given: argparse.Namespace, of_run: OfRun, record: Record) -> dict[str, Any]:
    """Measure every encoder; returns the record."""
    sheet, images = read_tiles(given.root, None)
    tiles, runs, sources = Tiles.of(sheet), {}, {}
    for name, source in (word.split("=", 1) for word in given.encoder):
        vectors = Embedder(source, images, given.input_size)("", np.ones(len(sheet), bool))
        runs[name], sources[name] = of_run(tiles, vectors), described_source(source)
    counts = {"cases": len(np.unique(tiles.case)), "tiles": len(sheet)}
    settings = {"input_size": given.input_size, "resamples": RESAMPLES, "sources": sources}
    return record(runs) | counts | settings


def command(
    parser: argparse.ArgumentParser,
    words: Sequence[str] | None,
    of_run: OfRun,
    record: Record,
    section: Callable[[Any], str],
) -> None:
    """Run the command `measure`, or `docs`, which writes the section of docs/results.md.

    Args:
        parser: parser to which the commands are added.
        words: words of the command line; None uses `sys.argv`.
        of_run: computes the estimates of a run from its embeddings.
        record: makes the record from the estimates of all runs.
        section: makes the Markdown of a record.
    """
    verbs = parser.add_subparsers(dest="verb", required=True)
    one = verbs.add_parser("measure", help="measure and write the JSON")
    one.add_argument("--root", type=Path, required=True, help="the release's folder")
    one.add_argument("--json", type=Path, required=True)
    one.add_argument("--encoder", nargs="+", required=True, metavar="NAME=SOURCE")
    one.add_argument("--input-size", type=int, default=64, help="side in px of every network")
    evidence_table.add_docs_verb(verbs)
    given = parser.parse_args(words)
    if given.verb == "measure":
        made = measure(given, of_run, record)
        write_text(given.json, json.dumps(made, indent=1) + "\n")
        return
    evidence_table.write_section(given, section)


def main(words: Sequence[str] | None = None) -> None:
    """Measure, or write the section of docs/results.md."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    command(parser, words, of_run, record, section)


if __name__ == "__main__":
    main()
