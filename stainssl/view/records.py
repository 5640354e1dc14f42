"""Cohorts, slides and predictions from the config, its sheets and its results, in JSON types."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stainssl.cohort import parts, read_sheet, stored_pixels
from stainssl.cohort.sheet import PART
from stainssl.config import Config, Task
from stainssl.errors import StainsslError
from stainssl.evaluation.folds import RISK, VALUE
from stainssl.evaluation.labels import unknown_cells
from stainssl.paths import of_label
from stainssl.stores.tables import read_table
from stainssl.stores.tiles import read_qc
from stainssl.view.handles import LRUCache

HIDDEN = ("path", "exclude", "mpp", PART)  # sheet columns that are not shown
QC_SHOWN = ("status", "detail", "tissue_mm2", "tiles_kept", "mpp", "vendor")
DISTANCES = ("feature_distance", "stain_distance")
NUMBERS = (VALUE, RISK)  # columns of predictions that are not probabilities
NOT_TILED = "not tiled"  # status of a slide without a QC row
STAINS_KEPT = 16  # cohorts whose slides' stains are cached
INTERVAL = (0.025, 0.975)  # quantiles over repeats or fold models, as in `predict`
Json = dict[str, Any]


def json_column(values: pd.Series | np.ndarray) -> list[Any]:
    """Convert a column to JSON types: fractions have 5 digits, non-finite numbers are null."""
    series = pd.Series(values)
    if pd.api.types.is_float_dtype(series):
        return [_short(v) if np.isfinite(v) else None for v in series.tolist()]
    if pd.api.types.is_bool_dtype(series) or pd.api.types.is_integer_dtype(series):
        return list(series.tolist())
    return ["" if pd.isna(v) else str(v) for v in series]


def _short(number: float) -> float:
    return number if number.is_integer() else float(f"{number:.5g}")


def columns(frame: pd.DataFrame) -> Json:
    """Convert a table to lists by column, a third of the size of a list of rows."""
    return {str(name): json_column(frame[name]) for name in frame}


def versions(paths: Iterable[Path]) -> tuple[tuple[Path, int], ...]:
    """Return existing files or stores with their modification times, as a cache key."""
    return tuple((path, path.stat().st_mtime_ns) for path in paths)


def read_json(path: Path) -> Json:
    """Read a JSON object from a file of the results.

    Raises:
        StainsslError: the file is not complete JSON.
    """
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise StainsslError(f"{path} is incomplete ({error}). Delete it and run again.") from error


@dataclass(frozen=True)
class StoredPredictions:
    """Predictions of one head with one encoder for a task, or those of `predict`.

    Attributes:
        name: identifier in URLs, `TASK~ENCODER~HEAD` or `predictions`.
        title: name shown to the user.
        folder: folder with `attention.parquet`.
        level: `slide` or `patient`.
        predictions_folder: folder with `predictions.parquet` (`predictions.csv` of `predict`); that
            of the label if the task has several.
    """

    name: str
    title: str
    folder: Path
    level: str
    predictions_folder: Path


class Records:
    """Read-only access to the cohorts of a config and to their results.

    Args:
        config: config of a run, or the `config.yaml` in a folder written by `predict`.
    """

    def __init__(self, config: Config) -> None:
        self.config, self.paths = config, config.paths
        self._rows: dict[str, dict[str, dict[str, Any]]] = {}
        self._stains: LRUCache[dict[str, np.ndarray]] = LRUCache(STAINS_KEPT, lambda _: 1)

    def tiling(self, cohort: str) -> str:
        """Return the name of a cohort's tiling."""
        return self.config.cohorts[cohort].tiling

    def sheet(self, cohort: str) -> pd.DataFrame:
        """Return the slides of a cohort in sheet order, as `read_sheet`."""
        return read_sheet(self.config, cohort)

    def _rows_of(self, cohort: str) -> dict[str, dict[str, Any]]:
        if cohort not in self._rows:
            rows = self.sheet(cohort).to_dict("records")
            self._rows[cohort] = {str(row["slide_id"]): row for row in rows}
        return self._rows[cohort]

    def row(self, cohort: str, slide: str) -> dict[str, Any]:
        """Return the row of a slide in its sheet.

        Raises:
            KeyError: unknown cohort or slide.
            StainsslError: the cohort's sheet cannot be read.
        """
        return self._rows_of(cohort)[slide]

    def remark(self, cohort: str, slide: str) -> str:
        """Return why a slide is left out, or the note on one that is used; "" if neither.

        Raises:
            KeyError: unknown cohort or slide.
            StainsslError: the statuses of its part cannot be read.
        """
        path = self.paths.qc(cohort, self.part(cohort, slide))
        if not path.exists():
            return ""
        qc = read_qc(path)
        rows = qc.loc[qc["slide_id"] == slide, ["status", "detail"]].fillna("")
        told = [d if s == "ok" else f"Left out: {s}: {d}" for s, d in rows.itertuples(index=False)]
        return "".join(told)

    def readable(self) -> Iterator[str]:
        """Iterate over the cohorts whose sheets can be read; the others are skipped."""
        for cohort in self.config.cohorts:
            try:
                self._rows_of(cohort)
            except StainsslError:
                continue
            yield cohort

    def same_slide_elsewhere(self, cohort: str, slide: str) -> list[tuple[str, str]]:
        """Find a slide in other cohorts, by its file or by its name.

        Returns:
            (cohort, slide) pairs, at most one per cohort.

        Raises:
            KeyError: unknown cohort or slide.
        """
        path = self.row(cohort, slide)["path"]
        found: list[tuple[str, str]] = []
        for other in self.readable():
            rows = self._rows_of(other)
            names = [name for name, row in rows.items() if row["path"] == path]
            if other != cohort and (names or slide in rows):
                found.append((other, names[0] if names else slide))
        return found

    def part(self, cohort: str, slide: str) -> str:
        """Return the part of a slide. Raises as `row`."""
        return str(self.row(cohort, slide)[PART])

    def stains(self, cohort: str) -> dict[str, np.ndarray]:
        """Map each slide with a valid mean stain in its stored pixels to its (D,) coordinates."""
        from stainssl.stages.mil import stain_of_slides  # imports torch; most pages do not need it

        stores = {
            (cohort, part): path
            for part in parts(self.config, cohort)
            if (path := stored_pixels(self.config, cohort, part))
        }

        def read() -> dict[str, np.ndarray]:
            slides = self.sheet(cohort).assign(cohort=cohort)[["slide_id", "cohort", PART]]
            return stain_of_slides(stores, slides.rename(columns={PART: "part"}))

        return self._stains.get((cohort, versions(stores.values())), read)

    def encoders(self, cohort: str) -> list[str]:
        """Return the encoders with embeddings of at least one part of a cohort."""
        return [
            run.name
            for run in self.config.runs()
            if run.encoder.tiling == self.tiling(cohort)
            and any(
                self.paths.embeddings(cohort, run.name, part).exists()
                for part in parts(self.config, cohort)
            )
        ]

    def stored_predictions(self, cohort: str) -> list[StoredPredictions]:
        """Return the existing predictions, with attention, for a cohort's slides."""
        every = self._possible_predictions(cohort)
        return [one for one in every if (one.folder / "attention.parquet").exists()]

    def _possible_predictions(self, cohort: str) -> Iterator[StoredPredictions]:
        if (self.paths.results / "predictions.csv").exists():
            own = self.paths.results
            yield StoredPredictions("predictions", "predictions", own, self._predicted_level(), own)
        kinds = {name: head.kind for name, head in self.config.heads.items()}
        heads = sorted(kinds, key=lambda name: kinds[name] == "mean")  # last: uniform attention
        for task, spec in self.config.tasks.items():
            if spec.level == "tile" or cohort not in (*spec.cohorts, *spec.external):
                continue
            for run in self.config.runs():
                for head in heads:
                    folder = self.paths.mil(task, run.name, head)
                    for name, one in spec.per_label_tasks(task).items():
                        title = f"{name}: {head} on {run.name}"
                        predictions_folder = of_label(folder, one.label if spec.labels else "")
                        yield StoredPredictions(
                            f"{name}~{run.name}~{head}",
                            title,
                            folder,
                            spec.level,
                            predictions_folder,
                        )

    def _predicted_level(self) -> str:
        known = pd.read_csv(self.paths.results / "predictions.csv", nrows=0).columns
        return "slide" if "slide_id" in known else "patient"

    def tile_predictions(self, cohort: str) -> dict[str, Path]:
        """Map `TASK~ENCODER` to the file of predictions of each tile task on a cohort."""
        return {
            f"{task}~{run.name}": table
            for task, spec in self.config.tasks.items()
            if spec.level == "tile" and cohort in spec.cohorts
            for run in self.config.runs()
            if (table := self._tile_predictions_path(task, spec, run.name)).exists()
        }

    def _tile_predictions_path(self, task: str, spec: Task, run: str) -> Path:
        folder = self.paths.fine_tuned if spec.is_fine_tuned else self.paths.probe
        return folder(task, run) / "predictions.parquet"

    def overview(self) -> Json:
        """Return the cohorts with their numbers of slides, or the problem with their sheet."""
        cohorts: list[Json] = []
        for name in self.config.cohorts:
            try:
                count, problem = len(self.sheet(name)), ""
            except StainsslError as error:
                count, problem = 0, str(error)
            cohorts.append({"name": name, "slides": count, "problem": problem})
        return {"cohorts": cohorts, "results": self.paths.results.name}

    def cohort(self, name: str) -> Json:
        """Return a cohort's table, one row per slide, and the parts without results yet.

        Raises:
            KeyError: unknown cohort.
            StainsslError: the cohort's sheet cannot be read.
        """
        sheet = self.sheet(name)
        qc, problems = self._qc(name)
        shown = sheet.drop(columns=[c for c in HIDDEN if c in sheet])
        slides = with_numbers(shown).merge(qc, on="slide_id", how="left")
        slides["status"] = slides["status"].fillna(NOT_TILED)
        slides["detail"] = slides["detail"].fillna("")
        slides = self._with_distances(slides)
        empty = [c for c in slides if json_column(slides[c]).count("") == len(slides)]
        return {
            "columns": columns(slides.drop(columns=[c for c in empty if c != "detail"])),
            "answers": [{"name": a.name, "title": a.title} for a in self.stored_predictions(name)],
            "problems": problems,
        }

    def _qc(self, cohort: str) -> tuple[pd.DataFrame, list[str]]:
        tables, problems = [pd.DataFrame(columns=["slide_id", *QC_SHOWN])], []
        for part in parts(self.config, cohort):
            try:
                qc = read_qc(self.paths.qc(cohort, part))
                tables.append(qc[["slide_id", *QC_SHOWN]])
            except StainsslError as error:
                problems.append(str(error))
        frame = pd.concat([t for t in tables if len(t)] or tables[:1], ignore_index=True)
        numbers = ["tissue_mm2", "tiles_kept", "mpp"]
        return frame.astype(dict.fromkeys(numbers, float)), problems

    def _with_distances(self, slides: pd.DataFrame) -> pd.DataFrame:
        path = self.paths.results / "slides.csv"
        if not path.exists():
            return slides
        found = pd.read_csv(path, dtype={"slide_id": str})
        kept = [c for c in DISTANCES if c in found]
        return slides.merge(found[["slide_id", *kept]], on="slide_id", how="left")

    def predictions(self, cohort: str, name: str) -> Json:
        """Return the predictions by slide: means, with the central 95 % over repeats or models.

        Raises:
            KeyError: unknown cohort, or it has no such predictions.
            StainsslError: the predictions cannot be read.
        """
        stored = self.find_predictions(cohort, name)
        unit = f"{stored.level}_id"
        table = self._by_unit(stored, cohort, unit)
        slides = self.sheet(cohort)[["slide_id", "patient_id"]]
        found = slides.merge(table, left_on=unit, right_index=True, how="left")
        classes = [c.removeprefix("p_") for c in table if str(c).startswith("p_")]
        numbers = found.drop(columns=["slide_id", "patient_id"])
        return {"classes": classes, "level": stored.level, "columns": columns(numbers)}

    def find_predictions(self, cohort: str, name: str) -> StoredPredictions:
        """Return the predictions with a name.

        Raises:
            KeyError: the cohort has no such predictions.
        """
        return {a.name: a for a in self.stored_predictions(cohort)}[name]

    def _by_unit(self, stored: StoredPredictions, cohort: str, unit: str) -> pd.DataFrame:
        if stored.name == "predictions":
            table = _beside(
                pd.read_csv(stored.predictions_folder / "predictions.csv", dtype={unit: str}), unit
            )
            kind = next((name for name in NUMBERS if name in table), "")
            table = table.rename(columns={side: f"{side}_{kind}" for side in ("low", "high")})
            known = [c for c in table if c.startswith(("p_", "low_", "high_")) or c == kind]
            return table[known]
        external = stored.predictions_folder / f"external-{cohort}.parquet"
        table = read_table(
            external if external.exists() else stored.predictions_folder / "predictions.parquet",
            "predictions",
        )
        return summarized(table, unit)


def _beside(table: pd.DataFrame, unit: str) -> pd.DataFrame:
    """Index `predictions.csv` by unit; several labels become columns `p_LABEL: CLASS`."""
    if "label" not in table:
        return table.set_index(unit)
    found = [
        rows.set_index(unit).dropna(axis=1, how="all").rename(columns=partial(_of_label, label))
        for label, rows in table.groupby("label", sort=False)
    ]
    return pd.concat(found, axis=1)


def _of_label(label: str, column: str) -> str:
    kind, found, name = column.partition("_")
    return f"{kind}_{label}: {name}" if found and kind in ("p", "low", "high") else column


def with_numbers(sheet: pd.DataFrame) -> pd.DataFrame:
    """Convert columns whose known values are all numbers to float; ids, sites stay text."""
    out = sheet.copy()
    for name in sheet.columns.difference(["slide_id", "patient_id", "site", "split"]):
        unknown = unknown_cells(sheet[name])
        numbers = pd.to_numeric(sheet[name].mask(unknown), errors="coerce")
        if numbers.notna().any() and (numbers.notna() | unknown).all():
            out[name] = numbers.astype(float)
    return out


def summarized(table: pd.DataFrame, unit: str) -> pd.DataFrame:
    """Average the predictions of each unit, with quantiles if a unit has several rows.

    Args:
        table: predictions, one row per unit and repeat or fold model.
        unit: name of the column of units.

    Returns:
        Indexed by unit: `p_<class>`, and with several rows `low_<class>` and `high_<class>` (the
        central 95 %). For numbers and times to an event, the same for `value` or `risk`.
    """
    predicted = [c for c in table if str(c).startswith("p_")] or [c for c in NUMBERS if c in table]
    groups = table.groupby(unit, sort=False)[predicted]
    out = groups.mean()
    if groups.size().max() > 1:
        for side, share in zip(("low", "high"), INTERVAL, strict=True):
            bound = groups.quantile(share)
            for name in predicted:
                out[f"{side}_{name.removeprefix('p_')}"] = bound[name]
    return out
