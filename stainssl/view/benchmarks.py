"""Benchmarks' tables, and what stands behind a cell: curves, cases, tiles on a plane."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stainssl.errors import StainsslError
from stainssl.stores.tables import read_table
from stainssl.view.handles import Recent
from stainssl.view.records import Json, Records, columns, json_column, versions

if TYPE_CHECKING:
    from stainssl.evaluation.predictions import NumberUnits, ScoredUnits, SurvivalUnits
    from stainssl.evaluation.risk_groups import RiskGroups

SHOWN = ["encoder", "run", "head", "task", "metric", "group", "value", "low", "high", "patients",
         "units"]  # fmt: skip
MAX_CASES = 500  # of a task's units that are listed, worst first
BINS = 10  # of equal size, of the calibration curve
MIN_IN_BIN = 5
PLANES_KEPT = 64
LINEAR = "linear"  # what the table calls the head of a probe
FINE_TUNE = "fine-tune"  # and that of a network trained on the labels


class Benchmarks:
    """The benchmarks of a config whose tables are there.

    Args:
        records: whose results and sheets are shown.
    """

    def __init__(self, records: Records) -> None:
        self._records = records
        self._planes: Recent[Json] = Recent(PLANES_KEPT, lambda _: 1)

    def names(self) -> list[str]:
        """Those that have a table."""
        return [name for name in self._records.config.benchmarks if self._table(name).exists()]

    def _table(self, name: str) -> Path:
        return self._records.paths.benchmark(name) / "table.csv"

    def table(self, name: str) -> Json:
        """A benchmark's metrics with their intervals, all patients and by site.

        Raises:
            KeyError: no such benchmark, or it has no table.
        """
        if name not in self.names():
            raise KeyError(name)
        found = pd.read_csv(self._table(name), dtype={"run": str, "head": str})
        answers = [self._has_answer(*row) for row in found[["task", "run", "head"]].to_numpy()]
        runs = [run.name for run in self._records.config.runs()]
        samples = [run for run in runs if self._sample(run).exists()]
        kept = [c for c in SHOWN if c in found]
        return {"columns": columns(found[kept].assign(answer=answers)), "samples": samples}

    def _folder(self, task: str, run: str, head: str) -> Path:
        if head == LINEAR:
            return self._records.paths.probe(task, run)
        if head == FINE_TUNE:
            return self._records.paths.fine_tuned(task, run)
        source, label = self._records.config.sources()[task]
        return self._records.paths.mil(source, run, head, label)

    def _has_answer(self, task: str, run: str, head: str) -> bool:
        try:
            self._known(task, run, head)
        except KeyError:
            return False
        return (self._folder(task, run, head) / "predictions.parquet").exists()

    def _known(self, task: str, run: str, head: str) -> None:
        config = self._records.config
        runs = {r.name for r in config.runs()}
        heads = {LINEAR, FINE_TUNE, *config.heads}
        if task not in config.questions() or run not in runs or head not in heads:
            raise KeyError((task, run, head))

    def answer(self, task: str, run: str, head: str) -> Json:
        """What stands behind one answer: cases, and the curves of its kind of label.

        ROC and calibration are of the last class against the rest, as the table's; cases are
        ordered by the probability of their true class, lowest first: wrong ones, then uncertain
        ones. Numbers are ordered by their error, the largest first; times to an event by the risk,
        with Kaplan and Meier's curves of the groups of risk.

        Raises:
            KeyError: there is no such task, encoder or head.
            StainsslError: its predictions are missing or not whole.
        """
        # Imported late: scipy's statistics take as much memory as all that a slide needs.
        from stainssl.evaluation.predictions import (
            NumberUnits,
            SurvivalUnits,
            average_repeats,
            scored_units,
        )

        self._known(task, run, head)
        level = self._records.config.questions()[task].level
        path = self._folder(task, run, head) / "predictions.parquet"
        predictions = read_table(path, "predictions")
        units = average_repeats(predictions, level)
        scored = scored_units(units, predictions, level)
        found: Json = {"level": level, "classes": list(scored.classes), "units": len(units)}
        if isinstance(scored, NumberUnits):
            return found | self._of_numbers(task, units, scored)
        if isinstance(scored, SurvivalUnits):
            return found | self._of_times(task, units, scored)
        return found | self._of_classes(task, units, scored)

    def _of_numbers(self, task: str, units: pd.DataFrame, scored: NumberUnits) -> Json:
        error = scored.value - scored.y
        told = units.assign(truth=scored.y.astype(float), predicted=scored.value, error=error)
        return {"cases": self._cases(task, told, np.abs(error), ["error"])}

    def _of_times(self, task: str, units: pd.DataFrame, scored: SurvivalUnits) -> Json:
        from stainssl.evaluation.predictions import RISK_GROUPS
        from stainssl.evaluation.risk_groups import RiskGroups

        called = np.array(RISK_GROUPS, object)[scored.is_high.astype(int)]
        risk = scored.p[:, 0]
        told = units.assign(truth=units["y"], predicted=called, risk=risk)
        groups = RiskGroups.of(scored, self._records.config.questions()[task].time)
        curves = {"survival": survival_curves(groups), "log_rank": groups.test()}
        return {"cases": self._cases(task, told, risk, ["risk"]), **curves}

    def _of_classes(self, task: str, units: pd.DataFrame, scored: ScoredUnits) -> Json:
        from stainssl.evaluation.roc import roc_band

        names = np.asarray(scored.classes, object)
        of_truth = scored.p[np.arange(len(units)), scored.y]
        told = units.assign(
            truth=names[scored.y],
            predicted=names[scored.predicted],
            p_truth=of_truth,
            p_last=scored.p[:, -1],
            called_from=called_from(scored),
            wrong=scored.predicted != scored.y,
        )
        cases = self._cases(task, told, -of_truth, ["p_truth", "p_last", "called_from", "wrong"])
        far = stain_distances(cases["slides"], self._stains(task))
        found = {"cases": cases | {"stain_distance": json_column(far)},
                 "calibration": columns(calibration(scored))}  # fmt: skip
        if len(scored.classes) == 2 and len(scored.present()) == 2:
            found["roc"] = columns(roc_band(scored, seed=self._records.config.seed))
        return found

    def _cases(
        self, task: str, units: pd.DataFrame, first: NDArray[np.float64], told: list[str]
    ) -> Json:
        """Units by falling `first`, `MAX_CASES` at most: the columns told of them, their slides."""
        from stainssl.evaluation.predictions import UNIT

        level = self._records.config.questions()[task].level
        names = dict.fromkeys([*UNIT[level], "patient_id", "site", "truth", "predicted", *told])
        order = np.argsort(-first, kind="stable")[:MAX_CASES]
        cases = units.iloc[order][[name for name in names if name in units]]
        return columns(cases) | {"slides": self._slides(task, level, cases)}

    def _stains(self, task: str) -> dict[tuple[str, str], NDArray[np.float64]]:
        cohorts = self._records.config.questions()[task].cohorts
        return {(c, s): at for c in cohorts for s, at in self._records.stains(c).items()}

    def _slides(self, task: str, level: str, cases: pd.DataFrame) -> list[list[list[str]]]:
        """(cohort, slide) of each case's slides."""
        unit = "patient_id" if level == "patient" else "slide_id"
        places: dict[str, list[list[str]]] = {}
        for cohort in self._records.config.questions()[task].cohorts:
            for slide, name in self._records.sheet(cohort)[["slide_id", unit]].to_numpy():
                places.setdefault(str(name), []).append([cohort, str(slide)])
        return [places.get(str(name), []) for name in cases[unit]]

    def _sample(self, run: str) -> Path:
        return self._records.paths.robustness(run) / "sample.parquet"

    def plane(self, run: str) -> Json:
        """Tiles on a plane (UMAP) by an encoder's vectors, those of its first tile task.

        Raises:
            KeyError: there is no such encoder.
            StainsslError: its sample of tiles is missing.
        """
        if run not in {r.name for r in self._records.config.runs()}:
            raise KeyError(run)
        stamp = versions(path for path in [self._sample(run)] if path.exists())
        return self._planes.get((run, stamp), lambda: self._laid_out(run))

    def _laid_out(self, run: str) -> Json:
        sample = read_table(self._sample(run), "sample")
        task = sample["task"].iloc[0] if len(sample) else ""
        sample = sample[sample["task"] == task].reset_index(drop=True)
        if sample.empty:
            raise StainsslError(f"The sample of {run} has no tiles.")
        from stainssl.evaluation.projection import project

        x, y = project(np.stack(sample["vector"].to_list()), self._records.config.seed).T
        told = ["slide_id", "tile", "label", "patient_id", "site"]
        places = self._slides(str(task), "tile", sample)
        cohorts = [found[0][0] if found else "" for found in places]
        shown = sample[told].assign(x=x.astype(float), y=y.astype(float), cohort=cohorts)
        return {"task": str(task), "columns": columns(shown)}


def called_from(scored: ScoredUnits) -> NDArray[np.float64]:
    """Where on the ROC curve each unit begins to be called the last class.

    Returns:
        (N,) false positive rate: the share of the other classes' units of the same fold that are
        given as high a probability at least, mean over repeats; NaN where a fold has none.
    """
    rates = np.full((len(scored.y), len(scored.folds)), np.nan)
    for at, fold in enumerate(scored.folds):
        p, others = fold.p[:, -1], scored.y[fold.unit] < len(scored.classes) - 1
        if others.any():
            higher = np.searchsorted(np.sort(p[others]), p, side="left")
            rates[fold.unit, at] = 1 - higher / others.sum()
    told = np.isfinite(rates).sum(axis=1)
    return np.where(told > 0, np.nansum(rates, axis=1) / np.maximum(told, 1), np.nan)


def stain_distances(
    slides: Sequence[Sequence[Sequence[str]]], stains: Mapping[tuple[str, str], NDArray[np.float64]]
) -> NDArray[np.float64]:
    """How far the stain of each case is from the middle of all cases' stains.

    Args:
        slides: of each case, (cohort, slide) each.
        stains: (cohort, slide) → (D,) coordinates of its mean stain, where they are known.

    Returns:
        (N,) distance from the coordinates' medians, divided by the median of these distances; NaN
        where no slide's stain is known.
    """
    known = [[stains[c, s] for c, s in of_case if (c, s) in stains] for of_case in slides]
    size = len(next(iter(stains.values()))) if stains else 1
    points = np.array([np.mean(k, axis=0) if k else np.full(size, np.nan) for k in known])
    told = np.isfinite(points).all(axis=1)
    if not told.any():
        return np.full(len(points), np.nan)
    distance = np.linalg.norm(points - np.median(points[told], axis=0), axis=1)
    return np.asarray(distance / max(float(np.median(distance[told])), 1e-12))


def survival_curves(groups: RiskGroups) -> Json:
    """Kaplan and Meier's curve of each group of risk that has units.

    Returns:
        Group → `time` and `survival` of the steps, from 0 on, `at_risk`, `events`, `units`, `unit`.
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
    """Reliability of the last class's probability, in bins of as many units each.

    Returns:
        A row per bin: `said` (mean probability), `came` (share of the class), `units`, `low` and
        `high` (least and largest probability).
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
