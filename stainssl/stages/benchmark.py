"""`benchmark`: what probes, heads and robustness gave → one table and its figures."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from stainssl.cohort import parts, read_sheet, site_columns
from stainssl.config import Config, Run, Task
from stainssl.errors import StainsslError
from stainssl.evaluation import baselines, published, table
from stainssl.evaluation.folds import read_folds
from stainssl.evaluation.labels import labels_of
from stainssl.evaluation.metrics import evaluate, roc_band
from stainssl.evaluation.predictions import ensemble, read_scored
from stainssl.evaluation.projection import project
from stainssl.evaluation.published import Published
from stainssl.evaluation.ranking import classes_ranked
from stainssl.evaluation.table import Answer, ResultGrid, Robustness
from stainssl.figures import benchmark as figures
from stainssl.plan.paths import Paths
from stainssl.stages.probe import part_labels
from stainssl.stores.atomic import replacing, write_text
from stainssl.stores.tables import read_table

log = logging.getLogger(__name__)


def run(config: Config, benchmark: str) -> None:
    """Write `table.csv|md|tex|html`, `comparisons.csv`, `robustness.json` and the figures: `roc`,
    `forest`, `robustness`, `few_shot` and `umap`, each a PNG.

    Raises:
        StainsslError: an answer is missing, or the benchmark has no slide task's head.
    """
    spec = config.benchmarks[benchmark]
    folder = Paths(config.results).benchmark(benchmark)
    answers = list(_answers(config, benchmark))
    columns = [one for task in spec.tasks for one in _baselines(config, task, answers)]
    if not answers:
        raise StainsslError(
            f"benchmarks.{benchmark}: nothing to show: its tasks are of slides or patients and it"
            " has no head. Name one in 'heads'."
        )
    robustness = list(_robustness(config, benchmark))
    long = table.long_table([*answers, *columns], robustness)
    compared = table.comparisons(answers, robustness, config.seed)
    grid = table.make_grid(long, compared, {a.task: a.shown for a in answers})
    others = published.figures_for(_questions(config, benchmark))
    every = pd.concat([long, published.to_rows(others)], ignore_index=True) if others else long
    markdown = table.to_markdown(grid) + published.to_markdown(others)
    write_text(folder / "table.csv", every.to_csv(index=False))
    write_text(folder / "comparisons.csv", compared.to_csv(index=False))
    pages = _pages(benchmark, grid, table.make_site_grid(long), markdown, others)
    for name, text in pages.items():
        write_text(folder / name, text)
    tree = table.robustness_tree(robustness)
    write_text(folder / "robustness.json", json.dumps(tree, indent=1, allow_nan=False))
    _save(folder / "roc.png", figures.roc(_curves(answers, config.seed), spec.encoders))
    _save(folder / "forest.png", figures.forest(long, _shown(spec.encoders, columns)))
    _save(folder / "robustness.png", figures.robustness(long, spec.encoders))
    curves = {task: _few_shots(config, benchmark, task) for task in spec.tasks}
    _save(folder / "few_shot.png", figures.few_shot(curves, spec.encoders))
    _save(folder / "umap.png", figures.planes(_planes(config, benchmark)))
    log.info("benchmark %s\n%s", benchmark, markdown)


def _pages(
    benchmark: str,
    grid: ResultGrid,
    sites: ResultGrid,
    markdown: str,
    others: list[tuple[str, Published]],
) -> dict[str, str]:
    """File name → the table in each format: figures, published ones, then by site.

    `markdown` is of the first two.
    """
    tex = table.to_latex(grid) + published.to_latex(others, table.tex)
    below = published.to_html(others)
    if sites.rows:
        markdown += f"\n## By site\n\n{table.to_markdown(sites)}"
        tex += f"\n{table.to_latex(sites)}"
        below += table.html_table(sites, "By site")
    page = table.to_html(grid, f"Benchmark {benchmark}", below)
    return {"table.md": markdown, "table.tex": tex, "table.html": page}


def _questions(config: Config, benchmark: str) -> Iterator[tuple[str, str, str]]:
    """(task, release, label) of every task that asks a release."""
    for name in config.benchmarks[benchmark].tasks:
        task = config.tasks[name]
        for cohort in task.cohorts:
            if release := config.cohorts[cohort].release:
                yield name, release, task.label


def _save(path: Path, figure: figures.Figure) -> None:
    with replacing(path) as made:
        figure.savefig(made, format="png")


def _runs(config: Config, benchmark: str) -> list[Run]:
    return [run for key in config.benchmarks[benchmark].encoders for run in config.runs_of(key)]


def _answers(config: Config, benchmark: str) -> Iterator[Answer]:
    spec, paths = config.benchmarks[benchmark], Paths(config.results)
    for task in spec.tasks:
        level, shown = config.tasks[task].level, config.tasks[task].metrics
        cohorts = _cohort_patients(config, task)
        for run in _runs(config, benchmark):
            folders = {head: paths.mil(task, run.name, head) for head in spec.heads}
            if level == "tile":
                folders = {table.LINEAR: paths.probe(task, run.name)}
            for head, folder in folders.items():
                predictions = read_table(folder / "predictions.parquet", "predictions")
                tested = cohorts[cohorts["patient_id"].isin(predictions["patient_id"])]
                metrics = _read_metrics(folder / "metrics.csv")
                seen = _seen(paths.seen(run.name), tested)
                yield Answer(
                    task, level, run.key, run.name, head, metrics, predictions, seen, shown
                )
                yield from _external_answers(config, task, run, head, folder)


def _external_answers(
    config: Config, task: str, run: Run, head: str, folder: Path
) -> Iterator[Answer]:
    """A task's answers on cohorts that none of its models was trained on, as tasks of their own."""
    spec = config.tasks[task]
    for cohort in spec.external:
        found = read_table(folder / f"external-{cohort}.parquet", "predictions")
        predictions = ensemble(found, spec.level)
        metrics = _read_metrics(folder / f"external-{cohort}.csv")
        tested = predictions[["patient_id"]].drop_duplicates().assign(cohort=cohort)
        seen = _seen(Paths(config.results).seen(run.name), tested)
        name = f"{task} on {cohort}"
        yield Answer(
            name, spec.level, run.key, run.name, head, metrics, predictions, seen, spec.metrics
        )


def _baselines(config: Config, task: str, answers: list[Answer]) -> Iterator[Answer]:
    """What the sheet's columns alone say of a task, as far as it has them.

    They are judged on what all of the task's `answers` were judged on.
    """
    spec = config.tasks[task]
    answered = [answer.predictions for answer in answers if answer.task == task]
    units = _units(config, spec)
    folds = read_folds(Paths(config.results).folds(task))
    asked = {
        baselines.SITE: site_columns(units),
        baselines.CLINICAL: spec.clinical,
    }
    for name, columns in asked.items():
        if not columns or units[columns].astype(str).nunique().max() < 2:
            continue
        predictions = baselines.predict_from_columns(
            units, columns, folds, config.seed, labels_of(spec).order(units["label"])
        )
        predictions = baselines.same_rows(predictions, answered, spec.level)
        metrics = evaluate(predictions, spec.level, config.seed)
        if name == baselines.SITE:  # within one site it says the same of everybody
            metrics = metrics[metrics["group"] == "all"]
        yield Answer(task, spec.level, name, name, baselines.HEAD, metrics, predictions)


def _units(config: Config, task: Task) -> pd.DataFrame:
    """A row per labelled tile, slide or patient of a task, with the sheet's columns."""
    if task.level == "tile":
        return pd.concat(_labelled_tiles(config, task), ignore_index=True)
    sheets = [read_sheet(config, name) for name in task.cohorts]
    slides = pd.concat(sheets, ignore_index=True)
    slides = slides.assign(label=labels_of(task).words(slides[task.label])).query("label != ''")
    if task.level == "patient":
        slides = slides.drop_duplicates("patient_id").assign(slide_id="")
    return slides.reset_index(drop=True)


def _labelled_tiles(config: Config, task: Task) -> Iterator[pd.DataFrame]:
    for cohort in task.cohorts:
        for part, sheet in parts(config, cohort).items():
            labels = part_labels(config, task, cohort, part)
            columns = sheet.drop(columns="label", errors="ignore")
            yield labels[labels["label"] != ""].merge(columns, on="slide_id")


def _shown(encoders: list[str], answers: list[Answer]) -> list[str]:
    return list(dict.fromkeys([*encoders, *(answer.encoder for answer in answers)]))


def _read_metrics(path: Path) -> pd.DataFrame:
    try:
        return pd.read_csv(path)
    except FileNotFoundError:
        raise StainsslError(f"{path} is missing: the stage that makes it has not run.") from None


def _cohort_patients(config: Config, task: str) -> pd.DataFrame:
    # `cohort` and `patient_id` of everybody in the task's sheets.
    cohorts = config.tasks[task].cohorts
    sheets = [read_sheet(config, name)[["patient_id"]].assign(cohort=name) for name in cohorts]
    return pd.concat(sheets).drop_duplicates()


def _seen(path: Path, tested: pd.DataFrame) -> int:
    # How many test patients pretraining saw, in whatever cohort; given weights leave no list, and
    # none is counted.
    if not path.exists():
        return 0
    seen = pd.read_csv(path, dtype={"patient_id": str}, keep_default_na=False)
    return len(set(tested["patient_id"]) & set(seen["patient_id"]))


def _robustness(config: Config, benchmark: str) -> Iterator[Robustness]:
    spec, paths = config.benchmarks[benchmark], Paths(config.results)
    tasks = [task for task in spec.tasks if config.tasks[task].level == "tile"]
    if not (spec.robustness and tasks):
        return
    for run in _runs(config, benchmark):
        folder = paths.robustness(run.name)
        metrics = _read_metrics(folder / "metrics.csv")
        confounded = read_table(folder / "confounded.parquet", "predictions")
        yield Robustness(
            run.key,
            run.name,
            metrics[metrics["task"].isin(tasks)],
            confounded[confounded["task"].isin(tasks)],
        )


def _few_shots(config: Config, benchmark: str, task: str) -> dict[str, pd.DataFrame]:
    """Encoder → its few-shot rows of a tile task, seeds together; empty for other tasks."""
    if config.tasks[task].level != "tile":
        return {}
    paths, found = Paths(config.results), {}
    for key in config.benchmarks[benchmark].encoders:
        files = [paths.probe(task, run.name) / "few_shot.csv" for run in config.runs_of(key)]
        found[key] = pd.concat([_read_metrics(file) for file in files])
    return found


def _planes(config: Config, benchmark: str) -> dict[str, dict[str, pd.DataFrame]]:
    """Task → encoder → `x`, `y`, `site` and `label` of some tiles, its first seed's."""
    spec, paths = config.benchmarks[benchmark], Paths(config.results)
    tasks = [task for task in spec.tasks if config.tasks[task].level == "tile"]
    planes: dict[str, dict[str, pd.DataFrame]] = {}
    if not spec.robustness:
        return planes
    for key in spec.encoders if tasks else []:
        folder = paths.robustness(config.runs_of(key)[0].name)
        sample = read_table(folder / "sample.parquet", "sample")
        for task, rows in sample[sample["task"].isin(tasks)].groupby("task", sort=False):
            x, y = project(np.stack(rows["vector"].to_list()), config.seed).T
            planes.setdefault(str(task), {})[key] = rows.assign(x=x, y=y)
    return planes


def _curves(answers: list[Answer], seed: int) -> dict[str, dict[str, tuple[str, pd.DataFrame]]]:
    """Panel → legend label → (encoder, ROC curve) of the tasks of two classes."""
    curves: dict[str, dict[str, tuple[str, pd.DataFrame]]] = {}
    for answer in answers:
        scored = read_scored(answer.predictions, answer.level)
        if len(scored.classes) != 2 or not classes_ranked(scored):
            continue
        panel = f"{answer.task}, {scored.patients} patients"
        auroc = answer.metrics.query("metric == 'auroc' and group == 'all'").iloc[0]
        said = table.number(*(float(auroc[c]) for c in ("value", "low", "high")))
        label = f"{_row_name(answer)}  {said}"
        curve = roc_band(scored, seed=seed)
        curves.setdefault(panel, {})[label] = (answer.encoder, curve)
    return curves


def _row_name(answer: Answer) -> str:
    return table.side_name(answer.run, answer.head)
