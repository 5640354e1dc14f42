"""Benchmark tables, the curves and cases behind a row, and UMAPs of tiles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stainssl.errors import StainsslError
from stainssl.stores.tables import read_table
from stainssl.view.handles import LRUCache
from stainssl.view.records import Json, Records, columns, versions

if TYPE_CHECKING:
    from stainssl.evaluation.predictions import RegressionUnits, ScoredUnits, SurvivalUnits
    from stainssl.evaluation.risk_groups import RiskGroups

SHOWN = ["encoder", "run", "head", "task", "metric", "group", "value", "low", "high", "patients",
         "units"]  # fmt: skip
MAX_CASES = 500  # units listed per task, worst first
BINS = 10  # bins of the calibration curve, with equal numbers of units
MIN_IN_BIN = 5
UMAPS_KEPT = 64
LINEAR = "linear"  # head of a probe in the table
FINE_TUNE = "fine-tune"  # head of a fine-tuned network in the table


class Benchmarks:
    """Benchmarks of a config that have a table.

    Args:
        records: access to the results and sheets.
    """

    def __init__(self, records: Records) -> None:
        self._records = records
        self._umaps: LRUCache[Json] = LRUCache(UMAPS_KEPT, lambda _: 1)

    def names(self) -> list[str]:
        """Return the names of the benchmarks that have a table."""
        return [name for name in self._records.config.benchmarks if self._table(name).exists()]

    def _table(self, name: str) -> Path:
        return self._records.paths.benchmark(name) / "table.csv"

    def table(self, name: str) -> Json:
        """Return a benchmark's metrics with their intervals, for all patients and by group.

        Raises:
            KeyError: unknown benchmark, or it has no table.
        """
        if name not in self.names():
            raise KeyError(name)
        found = pd.read_csv(self._table(name), dtype={"run": str, "head": str})
        has = [self._has_predictions(*row) for row in found[["task", "run", "head"]].to_numpy()]
        runs = [run.name for run in self._records.config.runs()]
        samples = [run for run in runs if self._sample(run).exists()]
        kept = [c for c in SHOWN if c in found]
        return {"columns": columns(found[kept].assign(answer=has)), "samples": samples}

    def _folder(self, task: str, run: str, head: str) -> Path:
        if head == LINEAR:
            return self._records.paths.probe(task, run)
        if head == FINE_TUNE:
            return self._records.paths.fine_tuned(task, run)
        source, label = self._records.config.sources()[task]
        return self._records.paths.mil(source, run, head, label)

    def _has_predictions(self, task: str, run: str, head: str) -> bool:
        try:
            self._known(task, run, head)
        except KeyError:
            return False
        return (self._folder(task, run, head) / "predictions.parquet").exists()

    def _known(self, task: str, run: str, head: str) -> None:
        config = self._records.config
        runs = {r.name for r in config.runs()}
        heads = {LINEAR, FINE_TUNE, *config.heads}
        if task not in config.per_label_tasks() or run not in runs or head not in heads:
            raise KeyError((task, run, head))

    def predictions(self, task: str, run: str, head: str) -> Json:
        """Return the cases of a task, encoder and head, and the curves of its kind of label.

        ROC and calibration are of the last class against the rest. Cases are ordered by the
        probability of their true class, lowest first: wrong ones, then uncertain ones. Numbers are
        ordered by absolute error, largest first. Times to an event are ordered by risk, highest
        first, with Kaplan–Meier curves of the risk groups.

        Raises:
            KeyError: unknown task, encoder or head.
            StainsslError: the predictions are missing or incomplete.
        """
        # Imported here: scipy's statistics take as much memory as everything else for a slide.
        from stainssl.evaluation.predictions import (
            RegressionUnits,
            SurvivalUnits,
            average_repeats,
            scored_units,
        )

        self._known(task, run, head)
        level = self._records.config.per_label_tasks()[task].level
        path = self._folder(task, run, head) / "predictions.parquet"
        predictions = read_table(path, "predictions")
        units = average_repeats(predictions, level)
        scored = scored_units(units, predictions, level)
        units = units.assign(slides=self._slides(task, level, units))
        found: Json = {"level": level, "classes": list(scored.classes), "units": len(units)}
        if isinstance(scored, RegressionUnits):
            return found | self._of_numbers(task, units, scored)
        if isinstance(scored, SurvivalUnits):
            return found | self._of_times(task, units, scored)
        return found | self._of_classes(task, units, scored)

    def _of_numbers(self, task: str, units: pd.DataFrame, scored: RegressionUnits) -> Json:
        error = scored.value - scored.y
        cases = units.assign(truth=scored.y.astype(float), predicted=scored.value, error=error)
        return {"cases": self._cases(task, cases, np.abs(error), ["error"])}

    def _of_times(self, task: str, units: pd.DataFrame, scored: SurvivalUnits) -> Json:
        from stainssl.evaluation.predictions import RISK_GROUPS
        from stainssl.evaluation.risk_groups import RiskGroups

        called = np.array(RISK_GROUPS, object)[scored.is_high.astype(int)]
        risk = scored.p[:, 0]
        cases = units.assign(truth=units["y"], predicted=called, risk=risk)
        groups = RiskGroups.of(scored, self._records.config.per_label_tasks()[task].time)
        curves = {"survival": survival_curves(groups), "log_rank": groups.test()}
        return {"cases": self._cases(task, cases, risk, ["risk"]), **curves}

    def _of_classes(self, task: str, units: pd.DataFrame, scored: ScoredUnits) -> Json:
        from stainssl.evaluation.roc import roc_band

        names = np.asarray(scored.classes, object)
        of_truth = scored.p[np.arange(len(units)), scored.y]
        cases = units.assign(
            truth=names[scored.y],
            predicted=names[scored.predicted],
            p_truth=of_truth,
            p_last=scored.p[:, -1],
            called_from=fpr_threshold(scored),
            wrong=scored.predicted != scored.y,
        )
        # To the median of all cases, not only of those that are listed.
        cases["stain_distance"] = stain_distances(cases["slides"].tolist(), self._stains(task))
        shown = ["p_truth", "p_last", "called_from", "wrong", "stain_distance"]
        found = {
            "cases": self._cases(task, cases, -of_truth, shown),
            "calibration": columns(calibration(scored)),
        }
        if len(scored.classes) == 2 and len(scored.present()) == 2:
            found["roc"] = columns(roc_band(scored, seed=self._records.config.seed))
        return found

    def _cases(
        self, task: str, units: pd.DataFrame, first: NDArray[np.float64], extra: list[str]
    ) -> Json:
        """At most `MAX_CASES` units by decreasing `first`: columns `extra`, and their slides."""
        from stainssl.evaluation.predictions import UNIT

        level = self._records.config.per_label_tasks()[task].level
        names = dict.fromkeys([*UNIT[level], "patient_id", "site", "truth", "predicted", *extra])
        order = np.argsort(-first, kind="stable")[:MAX_CASES]
        cases = units.iloc[order]
        listed = cases[[name for name in names if name in units]]
        return columns(listed) | {"slides": cases["slides"].tolist()}

    def _stains(self, task: str) -> dict[tuple[str, str], NDArray[np.float64]]:
        cohorts = self._records.config.per_label_tasks()[task].cohorts
        return {(c, s): at for c in cohorts for s, at in self._records.stains(c).items()}

    def _slides(self, task: str, level: str, cases: pd.DataFrame) -> list[list[list[str]]]:
        """(cohort, slide) of the slides of each case."""
        unit = "patient_id" if level == "patient" else "slide_id"
        places: dict[str, list[list[str]]] = {}
        for cohort in self._records.config.per_label_tasks()[task].cohorts:
            for slide, name in self._records.sheet(cohort)[["slide_id", unit]].to_numpy():
                places.setdefault(str(name), []).append([cohort, str(slide)])
        return [places.get(str(name), []) for name in cases[unit]]

    def _sample(self, run: str) -> Path:
        return self._records.paths.robustness(run) / "sample.parquet"

    def umap(self, run: str) -> Json:
        """Return the UMAP of an encoder's sample of tiles, those of the first tile task in it.

        Raises:
            KeyError: unknown encoder.
            StainsslError: its sample of tiles is missing or empty.
        """
        if run not in {r.name for r in self._records.config.runs()}:
            raise KeyError(run)
        stamp = versions(path for path in [self._sample(run)] if path.exists())
        return self._umaps.get((run, stamp), lambda: self._umap_of(run))

    def _umap_of(self, run: str) -> Json:
        sample = read_table(self._sample(run), "sample")
        task = sample["task"].iloc[0] if len(sample) else ""
        sample = sample[sample["task"] == task].reset_index(drop=True)
        if sample.empty:
            raise StainsslError(f"The sample of {run} has no tiles.")
        from stainssl.evaluation.projection import project

        x, y = project(np.stack(sample["vector"].to_list()), self._records.config.seed).T
        kept = ["slide_id", "tile", "label", "patient_id", "site"]
        places = self._slides(str(task), "tile", sample)
        cohorts = [found[0][0] if found else "" for found in places]
        shown = sample[kept].assign(x=x.astype(float), y=y.astype(float), cohort=cohorts)
        return {"task": str(task), "columns": columns(shown)}


def fpr_threshold(scored: ScoredUnits) -> NDArray[np.float64]:
    """Return the false positive rate from which each unit is predicted as the last class.

    Returns:
        (N,) share of the units of other classes in the same fold with at least as high a
        probability, averaged over repeats; NaN if the unit's folds have no such units.
    """
    rates = np.full((len(scored.y), len(scored.folds)), np.nan)
    for at, fold in enumerate(scored.folds):
        p, others = fold.p[:, -1], scored.y[fold.unit] < len(scored.classes) - 1
        if others.any():
            higher = np.searchsorted(np.sort(p[others]), p, side="left")
            rates[fold.unit, at] = 1 - higher / others.sum()
    known = np.isfinite(rates).sum(axis=1)
    return np.where(known > 0, np.nansum(rates, axis=1) / np.maximum(known, 1), np.nan)


def stain_distances(
    slides: Sequence[Sequence[Sequence[str]]], stains: Mapping[tuple[str, str], NDArray[np.float64]]
) -> NDArray[np.float64]:
    """Compute the distance of each case's stain from the median stain of the cases.

    Args:
        slides: (cohort, slide) of the slides of each of the N cases.
        stains: (cohort, slide) → (D,) coordinates of its mean stain, for slides with a known one.

    Returns:
        (N,) Euclidean distance from the median of each coordinate, divided by the median distance;
        NaN for a case without a slide of known stain.
    """
    known = [[stains[c, s] for c, s in of_case if (c, s) in stains] for of_case in slides]
    size = len(next(iter(stains.values()))) if stains else 1
    points = np.array([np.mean(k, axis=0) if k else np.full(size, np.nan) for k in known])
    known = np.isfinite(points).all(axis=1)
    if not known.any():
        return np.full(len(points), np.nan)
    distance = np.linalg.norm(points - np.median(points[known], axis=0), axis=1)
    return np.asarray(distance / max(float(np.median(distance[known])), 1e-12))


def survival_curves(groups: RiskGroups) -> Json:
    """Compute the Kaplan–Meier curve of each risk group that has units.

    Returns:
        Group → `time` and `survival` of the steps from 0 on, number `at_risk` at each, numbers of
        `events` and `units`, and `unit` of time.
    """
    from stainssl.evaluation.predictions import RISK_GROUPS

    found: Json = {}
    for name in RISK_GROUPS:
        time, event = groups.group(name)
        if not len(time):
            continue
        at, said = groups.survival(name)
        found[name] = {
            "time": at.tolist(), "survival": said.tolist(), "at_risk": groups.at_risk(name, at),
            "events": int(event.sum()), "units": len(time), "unit": groups.unit,
        }  # fmt: skip
    return found


def calibration(scored: ScoredUnits) -> pd.DataFrame:
    """Compute the calibration of the last class's probability, in bins of equal size.

    Returns:
        A row per bin: `said` (mean probability), `came` (observed share of the class), `units`,
        `low` and `high` (range of probabilities).
    """
    said = scored.p[:, -1]
    came = (scored.y == len(scored.classes) - 1).astype(float)
    bins = max(1, min(BINS, len(said) // MIN_IN_BIN))
    rows = [
        (said[part].mean(), came[part].mean(), len(part), said[part].min(), said[part].max())
        for part in np.array_split(np.argsort(said, kind="stable"), bins)
        if len(part)
    ]
    return pd.DataFrame(rows, columns=["said", "came", "units", "low", "high"])
