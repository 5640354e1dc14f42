"""One model for several labels compared with one model per label, on simulated bags.

    nice -n 19 python -m benchmarks.several --cohorts 20
    python -m benchmarks.several --write

A patient has three correlated traits and a label for each: whether the trait is above its median.
In a third of the tiles of a bag, each trait shifts one feature, on top of noise. Labels are unknown
at random. One head predicts all labels (`labels:` of a task); alternatively one head per label is
trained on the patients for whom it is known. Both have the same training and validation patients,
settings and seed, and are compared by the AUROC of new patients with all labels known. Each cell of
the design is stored when it is done, so that an interrupted run can be resumed. `--write` writes
the table of docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import t as student
from sklearn.metrics import roc_auc_score

from stainssl.evaluation.multilabel import join_labels
from stainssl.mil.bags import Bag, valid_tiles
from stainssl.mil.predict import predict_bag
from stainssl.mil.targets import Classes, MultiLabel
from stainssl.mil.train import HeadSettings, fit
from stainssl.stores.atomic import write_text
from tools.pages import fill, marks

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "several.json"
PAGE = ROOT / "docs" / "benchmarks.md"
MARKS = marks("several")
LABELS, WORDS = ("a", "b", "c"), ("neg", "pos")
DIM, TILES, CARRYING = 32, 16, 5  # features, tiles per bag, and tiles that carry the traits
STRENGTH = 1.0  # of a trait in its feature, in standard deviations of the noise
NEW = 200  # test patients
SETTINGS = HeadSettings(kind="abmil")  # the config's defaults
TARGET = MultiLabel(tuple((label, Classes(WORDS)) for label in LABELS))


@dataclass(frozen=True)
class Cell:
    """One cell of the design.

    Attributes:
        patients: number of patients, a fifth of whom are for validation.
        correlation: correlation of any two traits.
        unknown: share of unknown labels.
    """

    patients: int
    correlation: float
    unknown: float


def design() -> list[Cell]:
    """All cells."""
    return [Cell(*one) for one in product((40, 160), (0.0, 0.7), (0.0, 0.5))]


@dataclass(frozen=True)
class Drawn:
    """Bags with the true class of each label, (n, L) of 0 and 1."""

    bags: list[Bag]
    truth: NDArray[np.int64]


def draw(count: int, correlation: float, rng: np.random.Generator) -> Drawn:
    """Draw the patients of a cohort; the labels of their bags are not set."""
    width = len(LABELS)
    spread = np.full((width, width), correlation) + (1 - correlation) * np.eye(width)
    traits = rng.multivariate_normal(np.zeros(width), spread, count)
    bags = []
    for number, trait in enumerate(traits):
        features = rng.normal(size=(TILES, DIM))
        features[:CARRYING, :width] += STRENGTH * trait
        at = np.arange(TILES)
        tiles = valid_tiles(features.astype(np.float16), np.ones(TILES, bool), at, at * 256, at * 0)
        bags.append(Bag(f"p{number}", "", "", 0, (f"s{number}",), (tiles,)))
    return Drawn(bags, (traits > 0).astype(np.int64))


def labelled(drawn: Drawn, unknown: float, rng: np.random.Generator) -> list[Bag]:
    """Bags labelled for `TARGET`, for the patients with at least one known label."""
    known = rng.random(drawn.truth.shape) >= unknown
    words = np.where(known, np.array(WORDS, dtype=object)[drawn.truth], "")
    codes = TARGET.codes(join_labels([pd.Series(column) for column in words.T]))
    return [
        replace(bag, label=int(code))
        for bag, code in zip(drawn.bags, codes, strict=True)
        if code != TARGET.unknown
    ]


def split(bags: Sequence[Bag]) -> tuple[Sequence[Bag], Sequence[Bag]]:
    """Training and validation bags, four fifths and one fifth."""
    cut = len(bags) * 4 // 5
    return bags[:cut], bags[cut:]


def one_model(bags: Sequence[Bag], new: Drawn, seed: int) -> list[float]:
    """AUROC of each label by one head for all."""
    model = fit(*split(bags), TARGET, SETTINGS, seed)
    said = np.stack([predict_bag(model, bag)[0] for bag in new.bags])
    return [roc_auc_score(new.truth[:, i], said[:, 2 * i + 1]) for i in range(len(LABELS))]


def one_each(bags: Sequence[Bag], new: Drawn, seed: int) -> list[float]:
    """AUROC of each label by its own head."""
    parts = [list(TARGET.label_tasks(part, {}, unknown=False)) for part in split(bags)]
    figures = []
    for place, (train, val) in enumerate(zip(*parts, strict=True)):
        model = fit(train.bags, val.bags, Classes(WORDS), SETTINGS, seed)
        said = [predict_bag(model, bag)[0][1] for bag in new.bags]
        figures.append(roc_auc_score(new.truth[:, place], said))
    return figures


def cohort(cell: Cell, number: int) -> tuple[float, float]:
    """Mean AUROC over labels of one model, and of one model per label."""
    rng = np.random.default_rng([cell.patients, round(100 * cell.correlation), number])
    bags = labelled(draw(cell.patients, cell.correlation, rng), cell.unknown, rng)
    new = draw(NEW, cell.correlation, rng)
    return float(np.mean(one_model(bags, new, number))), float(np.mean(one_each(bags, new, number)))


def measured(cell: Cell, cohorts: int) -> dict[str, Any]:
    """Means over the cohorts of a cell, and their paired difference with a 95 % interval."""
    found = np.array([cohort(cell, number) for number in range(cohorts)])
    together, apart = found.mean(axis=0)
    difference = found[:, 0] - found[:, 1]
    half = student.ppf(0.975, cohorts - 1) * difference.std(ddof=1) / np.sqrt(cohorts)
    return {
        **asdict(cell),
        "cohorts": cohorts,
        "one_model": together,
        "one_each": apart,
        "difference": difference.mean(),
        "low": difference.mean() - half,
        "high": difference.mean() + half,
    }


def section(found: dict[str, Any]) -> str:
    """Markdown table for docs/benchmarks.md."""
    head = (
        "| patients | correlation of the traits | labels unknown | one model | one per label |"
        " difference (95 %) |\n" + "|---" * 6 + "|"
    )
    rows = [
        f"| {one['patients']} | {one['correlation']:g} | {100 * one['unknown']:.0f} % |"
        f" {one['one_model']:.3f} | {one['one_each']:.3f} |"
        f" {signed(one['difference'])} ({signed(one['low'])} to {signed(one['high'])}) |"
        for one in found["cells"]
    ]
    cohorts = sorted({one["cohorts"] for one in found["cells"]})
    told = f"{' to '.join(map(str, cohorts))} cohorts per row, mean AUROC over three labels."
    return "\n".join(["", "", told, "", head, *rows, "", ""])


def signed(value: float) -> str:
    """Format a difference with its sign, with a minus sign instead of a hyphen."""
    return f"{value:+.3f}".replace("-", "−")


def kept() -> dict[str, Any]:
    """The cells measured so far."""
    if not RESULTS.exists():
        return {"cells": []}
    found: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8"))
    return found


def main() -> None:
    """Measure the remaining cells, or write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cohorts", type=int, default=20)
    parser.add_argument("--write", action="store_true")
    words = parser.parse_args()
    found = kept()
    if words.write:
        fill(PAGE, MARKS, section(found))
        return
    done = {Cell(*(one[key] for key in Cell.__annotations__)) for one in found["cells"]}
    for cell in design():
        if cell not in done:
            found["cells"].append(measured(cell, words.cohorts))
            print(json.dumps(found["cells"][-1]), flush=True)
            write_text(RESULTS, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
