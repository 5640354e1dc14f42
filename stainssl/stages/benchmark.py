"""`benchmark`: collect the results of probes, heads and robustness in one table with figures."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from stainssl.cohort import site_columns
from stainssl.config import Task
from stainssl.errors import StainsslError
from stainssl.evaluation import baselines, fusion, published, table_formats
from stainssl.evaluation.collapse import collapse_notes, weights_notes
from stainssl.evaluation.evaluate import evaluate
from stainssl.evaluation.folds import read_folds
from stainssl.evaluation.grid import (
    REGRESSION_SITE_METRICS,
    TITLES,
    format_interval,
    make_grid,
    make_site_grid,
)
from stainssl.evaluation.kinds import labels_of
from stainssl.evaluation.long_table import comparisons, long_table, robustness_tree, side_name
from stainssl.evaluation.predictions import RegressionUnits, SurvivalUnits, ensemble
from stainssl.evaluation.projection import project
from stainssl.evaluation.published import Published
from stainssl.evaluation.ranking import classes_ranked
from stainssl.evaluation.risk_groups import RiskGroups
from stainssl.evaluation.roc import roc_band
from stainssl.evaluation.table import LINEAR, ResultGrid, Robustness, TaskResult
from stainssl.figures import benchmark as figures
from stainssl.figures.survival import survival_figure
from stainssl.plan.encoders import tasks_of_robustness
from stainssl.plan.tasks import PROBE, BenchmarkJob
from stainssl.stages.probe import part_labels
from stainssl.stores.atomic import replacing, write_text
from stainssl.stores.tables import read_table

log = logging.getLogger(__name__)


def run(job: BenchmarkJob) -> None:
    """Write the tables and figures of a benchmark.

    The files are `table.csv|md|tex|html`, `comparisons.csv`, `robustness.json`, and in `figures/`
    the applicable figures as PNG.

    Raises:
        StainsslError: a result is missing, or all tasks need a head and the benchmark has none.
    """
    encoders, files = list(job.runs), job.files
    results = list(_results(job))
    columns = [one for task in job.tasks for one in _baselines(job, task, results)]
    if not results:
        raise StainsslError(
            f"benchmarks.{job.name}: no results: its tasks are at slide or patient level and it"
            " has no head. Name one in 'heads'."
        )
    robustness = list(_robustness(job))
    results += list(_fused(job, results, columns))
    long = long_table([*results, *columns], robustness)
    compared = comparisons([*results, *_clinical(job, columns)], robustness, job.seed)
    grid = make_grid(long, compared, {a.task: a.shown for a in results})
    grid = replace(grid, notes=[*grid.notes, *_notes(job, compared)])
    others = published.figures_for(_questions(job))
    every = pd.concat([long, published.to_rows(others)], ignore_index=True) if others else long
    markdown = table_formats.to_markdown(grid) + published.to_markdown(others)
    write_text(files["table.csv"], every.to_csv(index=False))
    write_text(files["comparisons.csv"], compared.to_csv(index=False))
    pages = _pages(job.name, grid, make_site_grid(long), markdown, others)
    for name, text in pages.items():
        write_text(files[name], text)
    tree = robustness_tree(robustness)
    write_text(files["robustness.json"], json.dumps(tree, indent=1, allow_nan=False))
    _save(job.figures, _figures(job, long, results, _shown(encoders, columns)))
    log.info("benchmark %s\n%s", job.name, markdown)


def _figures(
    job: BenchmarkJob, long: pd.DataFrame, results: list[TaskResult], shown: list[str]
) -> dict[str, Figure | str]:
    """Draw the figures (file name → figure, or the reason why there is none).

    Args:
        shown: names of the encoders and baselines in the forest plot.
    """
    encoders = list(job.runs)
    return {
        "roc": figures.roc(_curves(results, job.seed), encoders),
        "calibration": figures.calibration(_calibrations(results), encoders),
        "scatter": figures.scatter(_scatters(results), encoders),
        "forest": figures.forest(long, shown),
        "robustness": figures.robustness(long, encoders),
        "few_shot": figures.few_shot({task: _few_shots(job, task) for task in job.tasks}, encoders),
        "umap": figures.umap(_umap(job)),
        "survival": survival_figure(_risk_groups(job, results)),
    }


def _pages(
    benchmark: str,
    grid: ResultGrid,
    sites: ResultGrid,
    markdown: str,
    others: list[tuple[str, Published]],
) -> dict[str, str]:
    """Format the table (file name → text): results, published results, results by site.

    Args:
        markdown: the first two in Markdown.
    """
    tex = table_formats.to_latex(grid) + published.to_latex(others, table_formats.tex)
    below = published.to_html(others)
    if sites.rows:
        markdown += f"\n## By site\n\n{table_formats.to_markdown(sites)}"
        tex += f"\n{table_formats.to_latex(sites)}"
        below += table_formats.html_table(sites, "By site")
    page = table_formats.to_html(grid, f"Benchmark {benchmark}", below)
    return {"table.md": markdown, "table.tex": tex, "table.html": page}


def _questions(job: BenchmarkJob) -> Iterator[tuple[str, str, str]]:
    """(task, release, label) of each task and each of its cohorts that is a release."""
    for name, task in job.tasks.items():
        for cohort in task.cohorts:
            if task.label and (release := job.releases.get(cohort)):
                yield name, release, task.label


def _save(folder: Path, drawn: dict[str, Figure | str]) -> None:
    with replacing(folder) as made:
        made.mkdir()
        for name, figure in drawn.items():
            if isinstance(figure, str):
                log.info("%s: %s", name, figure)
            else:
                figure.savefig(made / f"{name}.png", format="png")


def _folders_by_run(job: BenchmarkJob) -> dict[str, list[Path]]:
    folders: dict[str, list[Path]] = {}
    for (_, run, _), folder in job.prediction_folders.items():
        folders.setdefault(run, []).append(folder)
    return folders


def _results(job: BenchmarkJob) -> Iterator[TaskResult]:
    keys = {run: key for key, runs in job.runs.items() for run in runs}
    for (name, run, head), folder in job.prediction_folders.items():
        task = job.tasks[name]
        head = {PROBE: LINEAR}.get(head, head)
        cohorts = _cohort_patients(job, task)
        predictions = read_table(folder / "predictions.parquet", "predictions")
        tested = cohorts[cohorts["patient_id"].isin(predictions["patient_id"])]
        metrics = _read_metrics(folder / "metrics.csv")
        seen = _seen(job, run, tested)
        yield TaskResult(
            name, task.level, keys[run], run, head, metrics, predictions, seen, task.metrics
        )
        for cohort in task.external:
            yield _external_result(job, name, cohort, (keys[run], run, head), folder)


def _external_result(
    job: BenchmarkJob, task: str, cohort: str, who: tuple[str, str, str], folder: Path
) -> TaskResult:
    """Results of a task's models on an external cohort, as a separate task.

    Args:
        who: encoder, run and head.
    """
    spec = job.tasks[task]
    found = read_table(folder / f"external-{cohort}.parquet", "predictions")
    predictions = ensemble(found, spec.level)
    metrics = _read_metrics(folder / f"external-{cohort}.csv")
    tested = predictions[["patient_id"]].drop_duplicates().assign(cohort=cohort)
    seen = _seen(job, who[1], tested)
    name = f"{task} on {cohort}"
    return TaskResult(name, spec.level, *who, metrics, predictions, seen, spec.metrics)


def _baselines(job: BenchmarkJob, task: str, results: list[TaskResult]) -> Iterator[TaskResult]:
    """Results of a task's baselines, on the units for which all `results` have a prediction.

    The baselines use the sheet's columns of site and scanner, or the clinical columns, if these
    columns vary, and for some kinds of label no column (such as `mean of training`).
    """
    spec = job.tasks[task]
    predicted = [result.predictions for result in results if result.task == task]
    units = _units(job, spec)
    folds = read_folds(job.folds[task])
    asked: dict[str, list[str]] = {
        baselines.SITE: site_columns(units),
        baselines.CLINICAL: spec.clinical,
    }
    told = {n: c for n, c in asked.items() if c and units[c].astype(str).nunique().max() > 1}
    baseline, labels = baselines.BASELINES[spec.kind], labels_of(spec)
    if baseline.floor is not None:
        told = {baseline.floor: [], **told}
    for name, columns in told.items():
        predictions = baseline.predict(units, columns, folds, job.seed, labels)
        predictions = baselines.same_rows(predictions, predicted, spec.level)
        metrics = evaluate(predictions, spec.level, job.seed)
        if name == baselines.SITE:  # constant within a site
            metrics = metrics[metrics["group"] == "all"]
        yield TaskResult(task, spec.level, name, name, baselines.HEAD, metrics, predictions)


def _clinical(job: BenchmarkJob, columns: list[TaskResult]) -> list[TaskResult]:
    """Clinical baselines (among the baselines `columns`) of the tasks with `fusion`."""
    asking = [name for name, task in job.tasks.items() if task.fusion != "none"]
    return [a for a in columns if a.encoder == baselines.CLINICAL and a.task in asking]


def _fused(
    job: BenchmarkJob, results: list[TaskResult], columns: list[TaskResult]
) -> Iterator[TaskResult]:
    """Results of encoders combined with clinical columns, for the tasks with `fusion`."""
    for known in _clinical(job, columns):
        for result in results:
            if result.task == known.task:
                both = _together(job, result, known)
                metrics = evaluate(both, result.level, job.seed)
                head = result.head + fusion.ADDED
                yield replace(result, head=head, predictions=both, metrics=metrics)


def _together(job: BenchmarkJob, result: TaskResult, known: TaskResult) -> pd.DataFrame:
    """Combined predictions: of a gated head, or pooled from slides and clinical columns (late)."""
    if job.tasks[result.task].fusion == "late":
        return fusion.late(result.predictions, known.predictions, result.level)
    folder = job.prediction_folders[result.task, result.run, result.head] / fusion.FOLDER
    return read_table(folder / "predictions.parquet", "predictions")


def _notes(job: BenchmarkJob, compared: pd.DataFrame) -> list[str]:
    """Notes below the table, on tasks and encoders."""
    of_tasks = [note for name, task in job.tasks.items() for note in labels_of(task).notes(name)]
    clinical = side_name(baselines.CLINICAL, baselines.HEAD)
    added = fusion.added_notes(compared, clinical)
    folders = _folders_by_run(job)
    of_encoders = [*weights_notes(folders, job.given), *job.warnings, *collapse_notes(folders)]
    return [*of_tasks, *added, *of_encoders]


def _units(job: BenchmarkJob, task: Task) -> pd.DataFrame:
    """One row per labelled tile, slide or patient of a task, with the sheet's columns."""
    if task.level == "tile":
        return pd.concat(_labelled_tiles(job, task), ignore_index=True)
    slides = pd.concat([job.rows[name] for name in task.cohorts], ignore_index=True)
    slides = slides.assign(label=labels_of(task).words_of(slides)).query("label != ''")
    if task.level == "patient":
        slides = slides.drop_duplicates("patient_id").assign(slide_id="")
    return slides.reset_index(drop=True)


def _labelled_tiles(job: BenchmarkJob, task: Task) -> Iterator[pd.DataFrame]:
    for cohort in task.cohorts:
        for part, sheet in job.rows[cohort].groupby("part", sort=False):
            labels = part_labels(job.labels[cohort, str(part)], labels_of(task))
            columns = sheet.drop(columns="label", errors="ignore")
            yield labels[labels["label"] != ""].merge(columns, on="slide_id")


def _shown(encoders: list[str], results: list[TaskResult]) -> list[str]:
    return list(dict.fromkeys([*encoders, *(result.encoder for result in results)]))


def _read_metrics(path: Path) -> pd.DataFrame:
    try:
        return pd.read_csv(path)
    except FileNotFoundError:
        raise StainsslError(f"{path} is missing: the stage that makes it has not run.") from None


def _cohort_patients(job: BenchmarkJob, task: Task) -> pd.DataFrame:
    # `cohort` and `patient_id` of all patients in the task's sheets.
    sheets = [job.rows[name][["patient_id"]].assign(cohort=name) for name in task.cohorts]
    return pd.concat(sheets).drop_duplicates()


def _seen(job: BenchmarkJob, run: str, tested: pd.DataFrame) -> int:
    # Number of test patients seen in pretraining, in any cohort; 0 for pretrained weights from
    # elsewhere, whose patients are unknown.
    if run not in job.seen or not job.seen[run].exists():
        return 0
    seen = pd.read_csv(job.seen[run], dtype={"patient_id": str}, keep_default_na=False)
    return len(set(tested["patient_id"]) & set(seen["patient_id"]))


def _tile_tasks(job: BenchmarkJob) -> list[str]:
    return [name for name, task in job.tasks.items() if task.level == "tile"]


def _robustness(job: BenchmarkJob) -> Iterator[Robustness]:
    tasks = tasks_of_robustness(job.tasks)
    for key, runs in job.runs.items():
        for run in runs:
            if run not in job.robustness:
                continue
            folder = job.robustness[run]
            metrics = _read_metrics(folder / "metrics.csv")
            metrics = metrics[metrics["task"].isin(tasks)]
            if metrics.empty:  # not measurable on the tiles of these tasks
                continue
            confounded = read_table(folder / "confounded.parquet", "predictions")
            yield Robustness(key, run, metrics, confounded[confounded["task"].isin(tasks)])


def _few_shots(job: BenchmarkJob, task: str) -> dict[str, pd.DataFrame]:
    """Few-shot results of a probed task over all seeds (encoder → rows); empty for other tasks."""
    if job.tasks[task].level != "tile" or job.tasks[task].is_fine_tuned:
        return {}
    found = {}
    for key, runs in job.runs.items():
        files = [job.prediction_folders[task, run, PROBE] / "few_shot.csv" for run in runs]
        found[key] = pd.concat([_read_metrics(file) for file in files])
    return found


def _umap(job: BenchmarkJob) -> dict[str, dict[str, pd.DataFrame]]:
    """UMAP of sampled tiles (task → encoder → rows with `x`, `y`, `site`, `label`).

    Of an encoder with several seeds, the first is used.
    """
    tasks = _tile_tasks(job)
    coordinates: dict[str, dict[str, pd.DataFrame]] = {}
    for key, runs in job.runs.items():
        if runs[0] not in job.robustness:
            continue
        sample = read_table(job.robustness[runs[0]] / "sample.parquet", "sample")
        for task, rows in sample[sample["task"].isin(tasks)].groupby("task", sort=False):
            x, y = project(np.stack(rows["vector"].to_list()), job.seed).T
            coordinates.setdefault(str(task), {})[key] = rows.assign(x=x, y=y)
    return coordinates


def _curves(results: list[TaskResult], seed: int) -> dict[str, dict[str, tuple[str, pd.DataFrame]]]:
    """ROC curves of the tasks with two classes (panel → legend label → (encoder, curve))."""
    curves: dict[str, dict[str, tuple[str, pd.DataFrame]]] = {}
    for result in results:
        scored = result.scored
        if len(scored.classes) != 2 or not classes_ranked(scored):
            continue
        panel = f"{result.task}, {scored.patients} patients"
        auroc = result.metrics.query("metric == 'auroc' and group == 'all'").iloc[0]
        said = format_interval(*(float(auroc[c]) for c in ("value", "low", "high")))
        label = f"{_row_name(result)}  {said}"
        curve = roc_band(scored, seed=seed)
        curves.setdefault(panel, {})[label] = (result.encoder, curve)
    return curves


def _calibrations(results: list[TaskResult]) -> dict[str, dict[str, figures.BinaryPredictions]]:
    """Calibration data of the tasks with two classes (panel → legend label → data).

    The data are the encoder, (N,) bool (whether positive) and (N,) probabilities.
    """
    found: dict[str, dict[str, figures.BinaryPredictions]] = {}
    for result in results:
        scored = result.scored
        if len(scored.classes) != 2 or len(scored.present()) < 2:
            continue
        panel = f"{result.task}, {scored.patients} patients"
        units = (result.encoder, scored.y == 1, scored.p[:, 1])
        found.setdefault(panel, {})[_row_name(result)] = units
    return found


def _scatters(results: list[TaskResult]) -> dict[str, dict[str, figures.NumericPredictions]]:
    """Scatter plot data of the regression tasks (task → legend label → data).

    The data are the encoder, (N,) true values and (N,) predicted values.
    """
    found: dict[str, dict[str, figures.NumericPredictions]] = {}
    for result in results:
        scored = result.scored
        if not isinstance(scored, RegressionUnits):
            continue
        rows = result.metrics[result.metrics["group"] == "all"].set_index("metric")
        figure = rows[["value", "low", "high"]].astype(float)
        said = [
            f"{TITLES[m]} {format_interval(*figure.loc[m], between=' to ')}"
            for m in REGRESSION_SITE_METRICS
        ]
        units = (result.encoder, scored.y.astype(float), scored.value)
        found.setdefault(result.task, {})["\n".join([_row_name(result), *said])] = units
    return found


def _risk_groups(job: BenchmarkJob, results: list[TaskResult]) -> dict[str, RiskGroups]:
    """Risk groups for each result of the survival tasks (title → groups)."""
    found = {}
    for result in results:
        scored = result.scored
        if not isinstance(scored, SurvivalUnits) or scored.threshold is None:
            continue
        rows = result.metrics[result.metrics["group"] == "all"].set_index("metric")
        said = format_interval(*rows.loc["c_index", ["value", "low", "high"]].astype(float))
        name = next(n for n in job.tasks if result.task == n or result.task.startswith(f"{n} on "))
        title = f"{result.task}: {_row_name(result)}\n{TITLES['c_index']} {said}"
        found[title] = RiskGroups.of(scored, job.tasks[name].time)
    return found


def _row_name(result: TaskResult) -> str:
    return side_name(result.run, result.head)
