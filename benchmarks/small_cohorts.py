"""Simulation of small cohorts: behavior of AUROC, intervals and tests with and without a signal.

    nice -n 19 python -m benchmarks.small_cohorts --cohorts 400 --work WORK
    python -m benchmarks.small_cohorts --work WORK --write

A cohort has patients at one to three sites. Their features are noise plus a shift of the site and,
with a signal, a shift of the class in one feature. Two encoders give features that share half of
the noise variance. Folds, probe, metrics and comparisons are the project's own. Each block of
cohorts of a cell of the design is one line of `WORK/blocks.jsonl`, written when it is done, so that
an interrupted run can be resumed and the results so far can be written at any time. With `--work`,
`--write` first updates `benchmarks/results/small_cohorts.json`; it writes the tables of
`docs/benchmarks.md`.

The true AUROC of every model is known: for a linear score of Gaussian features, the probability
that a positive patient ranks above a negative one of the same test part is a normal integral. The
truth of a cell is the mean over its cohorts.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import norm

from stainssl.evaluation.compare import floor_p, paired_difference
from stainssl.evaluation.folds import each_fold, make_folds
from stainssl.evaluation.metrics import METRICS, estimate, patient_weights
from stainssl.evaluation.predictions import FoldScores, ScoredUnits
from stainssl.evaluation.probe import fit_linear
from stainssl.stores.atomic import write_text
from tools.pages import between, marks

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "small_cohorts.json"
DOCS = ROOT / "docs" / "benchmarks.md"
DIM = 32
PENALTY = 0.1  # of the probe; fixed, so that each fold needs one fit
SHARED = 0.5  # share of the noise variance common to both encoders
RESAMPLES = 200  # for the percentile interval of the pooled AUROC
BLOCK = 10  # cohorts per block
SIGNAL = 2.0  # distance of the classes along the first feature, in standard deviations
MEAN_AIM, RATE_AIM = 0.02, (0.02, 0.09)  # of |mean AUROC - 0.5|, and of rates over cohorts
RATES = {"missed": "intervals exclude 0.5 in", "p_below_5_percent": "paired p < 0.05 in"}
UNEVEN = {1: (0.5,), 2: (0.25, 0.75), 3: (0.25, 0.5, 0.75)}  # share of positives at each site
log = logging.getLogger("small_cohorts")
Floats = NDArray[np.float64]
Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Cell:
    """One cell of the design.

    Attributes:
        patients: number of patients.
        sites: number of sites, over which patients are spread evenly.
        effect: length of the shift of a site, in standard deviations of a feature.
        even: whether all sites have the same share of positives.
        split: `cv`, `cv, 3 repeats`, `cv balanced by site`, `site left out` or `one split`.
        signal: distance of the classes; 0 without a signal.
    """

    patients: int
    sites: int
    effect: float
    even: bool
    split: str
    signal: float = 0.0

    @property
    def site_is_a_signal(self) -> bool:
        """Whether the site predicts the class, and patients of different sites are ranked."""
        return not self.even and self.effect > 0 and self.split != "site left out"


def design() -> Iterator[Cell]:
    """All cells: first without a signal, then with a known one."""
    for signal in (0.0, SIGNAL):
        for patients in (16, 32, 100):
            for split in ("cv", "cv, 3 repeats", "one split"):
                yield Cell(patients, 1, 0.0, True, split, signal)
            for sites in (2, 3):
                for effect in (0.0, 0.5, 2.0):
                    for even in (True, False):
                        if signal and not even:
                            continue
                        for split in ("cv", "site left out"):
                            yield Cell(patients, sites, effect, even, split, signal)
            if not signal:
                yield Cell(patients, 2, 2.0, True, "cv balanced by site")


@dataclass(frozen=True)
class Cohort:
    """(N,) class, (N,) site, the (N, D) features of two encoders, and the (S, D) site shifts."""

    y: NDArray[np.int64]
    site: NDArray[np.int64]
    features: tuple[Floats, Floats]
    shifts: Floats


def draw(cell: Cell, rng: np.random.Generator) -> Cohort:
    """Draw a cohort."""
    n = cell.patients
    site = np.sort(np.arange(n) % cell.sites)
    shares = (0.5,) * cell.sites if cell.even else UNEVEN[cell.sites]
    y = np.zeros(n, np.int64)
    for s, share in enumerate(shares):
        members = rng.permutation(np.flatnonzero(site == s))
        y[members[: max(round(share * len(members)), 1)]] = 1
    directions = rng.normal(size=(cell.sites, DIM))
    directions *= cell.effect / np.linalg.norm(directions, axis=1, keepdims=True)
    common = rng.normal(size=(n, DIM))
    features = []
    for _ in range(2):
        noise = SHARED**0.5 * common + (1 - SHARED) ** 0.5 * rng.normal(size=(n, DIM))
        noise[:, 0] += cell.signal * y
        features.append(noise + directions[site])
    return Cohort(y, site, (features[0], features[1]), directions)


def folds_of(cell: Cell, cohort: Cohort, seed: int) -> pd.DataFrame:
    """Folds of a cohort, by `make_folds`."""
    ids = [f"p{i:03d}" for i in range(cell.patients)]
    patients = pd.DataFrame(
        {"patient_id": ids, "label": cohort.y.astype(str), "site": cohort.site.astype(str)}
    )
    if cell.split == "site left out":
        return make_folds(patients, kind="leave-one-out", group="site", seed=seed)
    if cell.split == "one split":
        rng = np.random.default_rng(seed)
        test = np.concatenate([rng.permutation(np.flatnonzero(cohort.y == k))[::2] for k in (0, 1)])
        split = np.where(np.isin(np.arange(cell.patients), test), "test", "train")
        return make_folds(patients.assign(split=split), kind="sheet", seed=seed)
    repeats = 3 if "repeats" in cell.split else 1
    stratify = ["site"] if "by site" in cell.split else []
    return make_folds(patients, kind="cv", folds=4, repeats=repeats, stratify=stratify, seed=seed)


def true_auroc(weights: Floats, cell: Cell, cohort: Cohort, test: NDArray[np.int64]) -> float:
    """AUROC of a linear score in the population of the test patients."""
    level = cohort.shifts @ weights
    spread = np.sqrt(2) * np.linalg.norm(weights)
    pos, neg = (cohort.site[test[cohort.y[test] == k]] for k in (1, 0))
    gaps = cell.signal * weights[0] + level[pos][:, None] - level[neg][None]
    return float(norm.cdf(gaps / spread).mean()) if gaps.size else float("nan")


def parts_of(cell: Cell, folds: pd.DataFrame) -> list[tuple[int, Indices, Indices]]:
    """(repeat, training patients, test patients) of every fold."""
    ids = np.array([f"p{i:03d}" for i in range(cell.patients)])
    return [
        (repeat, *(np.flatnonzero(np.isin(ids, sorted(p))) for p in (train, role["test"])))
        for repeat, _, role in each_fold(folds)
        for train in [role["train"] | role["val"]]
    ]


def answer(
    cell: Cell, cohort: Cohort, features: Floats, parts: list[tuple[int, Indices, Indices]]
) -> tuple[ScoredUnits, float]:
    """Test predictions of one encoder, and the true AUROC of its models, weighted by pairs."""
    answers, truths, pairs = [], [], []
    for repeat, train, test in parts:
        model = fit_linear(features[train].astype(np.float32), cohort.y[train], 2, PENALTY)
        answers.append(FoldScores(repeat, test, model(features[test].astype(np.float32))))
        weights = model.model.coef_[0] / model.scaler.scale_
        truths.append(true_auroc(weights, cell, cohort, test))
        pairs.append(int(cohort.y[test].sum() * (1 - cohort.y[test]).sum()))
    known = np.array(pairs) > 0
    truth = np.average(np.array(truths)[known], weights=np.array(pairs)[known])
    sums, counts = np.zeros((cell.patients, 2)), np.zeros(cell.patients)
    for fold in answers:
        sums[fold.unit] += fold.p
        counts[fold.unit] += 1
    p = sums / np.maximum(counts, 1)[:, None]
    whole = ScoredUnits(cohort.y, p, np.arange(cell.patients), ("0", "1"), tuple(answers))
    return whole.take(counts > 0), float(truth)


def one_cohort(cell: Cell, seed: int) -> dict[str, float]:
    """Simulate one cohort; returns the values that are stored."""
    rng = np.random.default_rng([seed, cell.patients, cell.sites])
    cohort = draw(cell, rng)
    parts = parts_of(cell, folds_of(cell, cohort, seed))
    (first, truth), (second, _) = (
        answer(cell, cohort, features, parts) for features in cohort.features
    )
    found = estimate("auroc", first)
    low, high = found.interval
    ends = paired_difference([first], [second], metric="auroc").interval
    is_apart = ends[0] > 0 or ends[1] < 0
    differ = is_apart and floor_p("auroc", [first], [second]) < 0.05  # p-value below 5 %
    pooled = METRICS["auroc_pooled"].value(first)
    pooled_low, pooled_high = _percentiles(first, seed)
    return {
        "auroc": found.value, "low": low, "high": high,
        "truth": truth, "differ": float(differ),
        "pooled": pooled, "pooled_low": pooled_low, "pooled_high": pooled_high,
    }  # fmt: skip


def _percentiles(scored: ScoredUnits, seed: int) -> tuple[float, float]:
    """The usual percentile interval of the pooled AUROC."""
    weights = patient_weights(scored, RESAMPLES, seed)
    drawn = METRICS["auroc_pooled"].resampled(scored, weights)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)


def summary(cell: Cell, rows: pd.DataFrame) -> dict[str, Any]:
    """Summarize the cohorts of a cell."""
    rows = rows[rows["auroc"].notna()]
    truth = float(rows["truth"].mean())
    missed = (rows["low"] > truth) | (rows["high"] < truth)
    pooled_missed = (rows["pooled_low"] > truth) | (rows["pooled_high"] < truth)
    return {
        **asdict(cell), "site_is_a_signal": cell.site_is_a_signal, "cohorts": len(rows),
        "truth": truth, "auroc": float(rows["auroc"].mean()), "missed": float(missed.mean()),
        "auroc_error": float(rows["auroc"].sem()),
        "p_below_5_percent": float(rows["differ"].mean()),
        "pooled": float(rows["pooled"].mean()), "pooled_missed": float(pooled_missed.mean()),
    }  # fmt: skip


def run(work: Path, cohorts: int, cells: list[Cell]) -> None:
    """Simulate the blocks of some cells that are not in `work` yet."""
    work.mkdir(parents=True, exist_ok=True)
    file = work / "blocks.jsonl"
    known = {(_key(one["cell"]), one["block"]) for one in _read(file)}
    for block in range(cohorts // BLOCK):
        for cell in cells:
            if (_key(asdict(cell)), block) in known:
                continue
            seeds = range(block * BLOCK, (block + 1) * BLOCK)
            rows = pd.DataFrame([one_cohort(cell, seed) for seed in seeds])
            record = {"cell": asdict(cell), "block": block, "rows": rows.round(5).to_dict("list")}
            with file.open("a") as out:
                out.write(json.dumps(record) + "\n")
            log.info("block %d, %s", block, cell)


def _read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def _key(one: dict[str, Any]) -> tuple:
    return tuple(one[name] for name in Cell.__dataclass_fields__)


# --- the tables -------------------------------------------------------------------------------


def collect(work: Path) -> None:
    """Update the results file from a work folder; cells with more cohorts there are kept."""
    blocks: dict[tuple, list[pd.DataFrame]] = {}
    for one in _read(work / "blocks.jsonl"):
        blocks.setdefault(_key(one["cell"]), []).append(pd.DataFrame(one["rows"]))
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    cells = {_key(one): one for one in known}
    for key, rows in blocks.items():
        made = summary(Cell(*key), pd.concat(rows))
        if made["cohorts"] >= cells.get(key, made)["cohorts"]:
            cells[key] = made
    rounded = [
        {k: round(v, 4) if isinstance(v, float) else v for k, v in c.items()}
        for c in cells.values()
    ]
    text = ",\n ".join(json.dumps(cell) for cell in rounded)
    write_text(RESULTS, f"[{text}]\n")


def _least_most(values: pd.Series) -> str:
    low, high = values.min(), values.max()
    return f"{low:.2f}" if f"{low:.2f}" == f"{high:.2f}" else f"{low:.2f} to {high:.2f}"


def _rate(rows: pd.DataFrame, column: str) -> str:
    """Rate over the cohorts of a row, with the range over its cells if there are several."""
    rate = float(np.average(rows[column], weights=rows["cohorts"]))
    if len(rows) == 1:
        return f"{rate:.1%}".replace("%", " %")
    return f"{rate:.1%} ({rows[column].min():.0%} to {rows[column].max():.0%})".replace("%", " %")


def _lines(cells: pd.DataFrame, is_null: bool) -> Iterator[str]:
    for (patients, split), rows in cells.groupby(["patients", "split"], sort=False):
        base = 0.0 if is_null else rows["truth"]
        parts = [
            str(patients), str(split), str(len(rows)), str(rows["cohorts"].sum()),
            _least_most(rows["auroc"] - base), _rate(rows, "missed"),
            _rate(rows, "p_below_5_percent"),
            _least_most(rows["pooled"] - base), _rate(rows, "pooled_missed"),
        ]  # fmt: skip
        yield "| " + " | ".join(parts) + " |"


def outside(cells: pd.DataFrame) -> list[str]:
    """List the cells without a signal that miss a target by more than two standard errors."""
    found = []
    for cell in cells.to_dict("records"):
        told = []
        off, error = abs(cell["auroc"] - 0.5), cell["auroc_error"]
        if off - 2 * error > MEAN_AIM:  # False if the error is NaN
            told.append(f"mean AUROC {cell['auroc']:.3f} ± {error:.3f}")
        for column, title in RATES.items():
            rate, n = cell[column], cell["cohorts"]
            errors = [np.sqrt(aim * (1 - aim) / n) for aim in RATE_AIM]
            if rate > RATE_AIM[1] + 2 * errors[1] or rate < RATE_AIM[0] - 2 * errors[0]:
                told.append(f"{title} {rate:.1%}".replace("%", " %"))
        if told:
            labels = "balanced" if cell["even"] else "unbalanced"
            name = f"{cell['patients']} patients, {cell['sites']} site(s) of effect"
            found.append(
                f"{name} {cell['effect']:g}, {labels} labels, {cell['split']}"
                f" ({cell['cohorts']} cohorts): {', '.join(told)}"
            )
    return found


def tables(cells: list[dict[str, Any]]) -> str:
    """The generated text of `docs/benchmarks.md`."""
    frame = pd.DataFrame(cells)
    null = frame[(frame["signal"] == 0) & ~frame["site_is_a_signal"]]
    known = frame[(frame["signal"] > 0) & ~frame["site_is_a_signal"]]
    told = frame[frame["site_is_a_signal"]]
    head = (
        "| patients | split | cells | cohorts | {} | intervals that exclude {} |"
        " paired p < 0.05 | pooled: {} | pooled, percentiles: exclude {} |\n|" + " --- |" * 9
    )
    parts = [
        "A row summarizes cells that differ in their number of sites, the site effect and, without"
        " a signal, in whether labels are balanced over sites; in brackets are the minimum and"
        " maximum over its cells, whose cohorts share random draws. The last two columns are common"
        " practice: predictions of all folds ranked together, with a percentile bootstrap.",
        "",
        "No signal:",
        "",
        head.format("mean AUROC", "0.5", "mean AUROC", "0.5"),
        *_lines(null, True),
        "",
        "A known signal (the same for both encoders):",
        "",
        head.format("mean AUROC minus truth", "the truth", "mean minus truth", "the truth"),
        *_lines(known, False),
    ]
    if "auroc_error" not in null:
        null = null.assign(auroc_error=float("nan"))
    missing = outside(null)
    parts += [
        "",
        f"Without a signal, {len(missing)} of {len(null)} cells miss a target (mean AUROC within"
        f" {MEAN_AIM}, rates within {RATE_AIM[0]:.0%} to {RATE_AIM[1]:.0%}) by more than two"
        " standard errors of the simulation:".replace("%", " %"),
        "",
        *(f"- {line}" for line in missing),
    ]
    if len(told):
        parts += [
            "",
            f"In {len(told)} further cells the site itself predicts the label, and patients of"
            " several sites are ranked together: AUROC is"
            f" {_least_most(told['auroc'])} there although the tissue carries no"
            " information. `site only` reveals this in the benchmark's table;"
            " leave-one-site-out splits avoid it.",
        ]
    return "\n".join(parts)


def write(docs: Path = DOCS) -> str:
    """Return the page with the tables of the results file."""
    made = tables(json.loads(RESULTS.read_text()))
    return between(docs.read_text(), marks(RESULTS.stem), f"\n\n{made}\n\n")


def main() -> None:
    """Simulate, or write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--cohorts", type=int, default=400)
    parser.add_argument("--patients", type=int, nargs="+", default=[16, 32, 100])
    parser.add_argument("--null", action="store_true", help="cells without a signal alone")
    parser.add_argument("--write", action="store_true")
    asked = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    if not asked.write:
        asked_cells = [c for c in design() if c.patients in asked.patients]
        run(asked.work, asked.cohorts, [c for c in asked_cells if not (asked.null and c.signal)])
        return
    if asked.work:
        collect(asked.work)
    write_text(DOCS, write())


if __name__ == "__main__":
    main()
