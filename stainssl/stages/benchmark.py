"""`benchmark`: what probes, heads and robustness gave → one table and its figures."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from stainssl.benchmark import published, table
from stainssl.benchmark.metrics import average_repeats, roc_band, scored_units
from stainssl.benchmark.table import Answer, Robustness
from stainssl.cohort import read_sheet
from stainssl.config import Config, Run
from stainssl.figures import benchmark as figures
from stainssl.paths import Paths
from stainssl.status import StainsslError
from stainssl.stores.atomic import replacing, write_text
from stainssl.stores.tables import read_table

log = logging.getLogger(__name__)


def run(config: Config, benchmark: str) -> None:
    """Write `table.csv|md|tex|html`, `comparisons.csv`, `roc.png`, `forest.png`, `robustness.png`.

    Raises:
        StainsslError: an answer is missing, or the benchmark has no slide task's head.
    """
    spec = config.benchmarks[benchmark]
    folder = Paths(config.results).benchmark(benchmark)
    answers = list(_answers(config, benchmark))
    if not answers:
        raise StainsslError(
            f"benchmarks.{benchmark}: nothing to show: its tasks are of slides or patients and it"
            " has no head. Name one in 'heads'."
        )
    robustness = list(_robustness(config, benchmark))
    long = table.long_table(answers, robustness)
    compared = table.comparisons(answers, robustness, config.seed)
    grid = table.make_grid(long, compared)
    others = published.figures_for(_questions(config, benchmark))
    markdown = table.to_markdown(grid) + published.to_markdown(others)
    tex = table.to_latex(grid) + published.to_latex(others, table.tex)
    page = table.to_html(grid, f"Benchmark {benchmark}", published.to_html(others))
    every = pd.concat([long, published.to_rows(others)], ignore_index=True) if others else long
    write_text(folder / "table.csv", every.to_csv(index=False))
    write_text(folder / "comparisons.csv", compared.to_csv(index=False))
    write_text(folder / "table.md", markdown)
    write_text(folder / "table.tex", tex)
    write_text(folder / "table.html", page)
    _save(folder / "roc.png", figures.roc(_curves(answers, config.seed), spec.encoders))
    _save(folder / "forest.png", figures.forest(long, spec.encoders))
    _save(folder / "robustness.png", figures.robustness(long, spec.encoders))
    log.info("benchmark %s\n%s", benchmark, markdown)


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
        level = config.tasks[task].level
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
                yield Answer(task, level, run.key, run.name, head, metrics, predictions, seen)


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
    # How many test patients pretraining saw; given weights leave no list, and none is counted.
    if not path.exists():
        return 0
    seen = pd.read_csv(path, dtype={"patient_id": str, "cohort": str})
    return len(tested.merge(seen[["patient_id", "cohort"]].drop_duplicates()))


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


def _curves(answers: list[Answer], seed: int) -> dict[str, dict[str, tuple[str, pd.DataFrame]]]:
    """Panel → legend label → (encoder, ROC curve) of the tasks of two classes."""
    curves: dict[str, dict[str, tuple[str, pd.DataFrame]]] = {}
    for answer in answers:
        scored = scored_units(average_repeats(answer.predictions, answer.level))
        if len(scored.classes) != 2 or len(scored.present()) < 2:
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
