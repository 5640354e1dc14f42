"""Jobs on tasks: `folds`, `probe`, `finetune`, `mil`, `benchmark`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from stainssl.cohort import PART, read_sheet, site_columns
from stainssl.cohort.encoder_warnings import row_warnings
from stainssl.config import Benchmark, Config, Encoder, FineTune, Head, Split, Task
from stainssl.errors import StainsslError
from stainssl.evaluation.kinds import labels_of
from stainssl.evaluation.labels import Labels
from stainssl.evaluation.thresholds import DecisionRule, decision_rule_of
from stainssl.paths import Paths
from stainssl.plan.encoders import Source, given_identity, robustness_tasks_of_encoder, source_of
from stainssl.plan.job import Job, Reads, Resource, Setting, Writes
from stainssl.plan.rows import Part, columns_of, parts_of, rows_of


@dataclass(frozen=True)
class FoldsJob(Job):
    """Rows of the sheets → training, validation and test patients of a task.

    Attributes:
        rows: one row per slide of the task's cohorts, with the columns that the split needs.
    """

    task: Resource[str]
    folds: Writes[Path]
    rows: Setting[pd.DataFrame]
    level: Setting[str]
    label: Setting[Labels]
    split: Setting[Split]
    seed: Setting[int]


def folds(config: Config, task: str) -> FoldsJob:
    """Plan the `folds` job of a task."""
    spec = config.tasks[task]
    own = spec.label_columns.values()
    columns = ["slide_id", "patient_id", "split", *own, *spec.split.stratify]
    columns += [spec.split.group] if spec.split.kind == "leave-one-out" else []
    frames = [columns_of(read_sheet(config, name), *columns) for name in spec.cohorts]
    return FoldsJob(
        task=task,
        folds=config.paths.folds(task),
        rows=pd.concat(frames, ignore_index=True),
        level=spec.level,
        label=labels_of(spec),
        split=_split_without_unused_keys(spec.split),
        seed=config.seed,
    )


def _split_without_unused_keys(split: Split) -> Split:
    """Return a split with all keys that its kind does not use at their defaults."""
    used = {"cv": {"folds", "repeats", "stratify"}, "leave-one-out": {"group"}}
    idle = set(Split.model_fields) - {"kind"} - used.get(split.kind, set())
    default = Split()
    return split.model_copy(update={key: getattr(default, key) for key in idle})


@dataclass(frozen=True)
class ProbeJob(Job):
    """Embeddings, tile labels and folds → predictions and metrics of a linear probe.

    Attributes:
        embeddings: (cohort, part) → store.
        labels: (cohort, part) → table of tile labels.
        rows: `cohort`, `part`, `slide_id`, `patient_id`, `site`.
        center: `site` if embeddings are centred by site, else None.
    """

    task: Resource[str]
    encoder: Resource[str]
    embeddings: Reads[dict[Part, Path]]
    labels: Reads[dict[Part, Path]]
    folds: Reads[Path]
    output: Writes[Path]
    label: Setting[Labels]
    decision_rule: Setting[DecisionRule]
    is_balanced: Setting[bool]
    rows: Setting[pd.DataFrame]
    center: Setting[str | None]
    seed: Setting[int]


def probe(config: Config, task: str, encoder: str) -> ProbeJob:
    """Plan the `probe` job of a tile task and a run.

    Raises:
        StainsslError: the task is of another level, or its protocol is fine-tune.
    """
    paths = config.paths
    spec = _tile_task(config, task)
    if spec.is_fine_tuned:
        raise StainsslError(f"tasks.{task} has protocol fine-tune: run `finetune`.")
    found, stored = parts_of(config, spec.cohorts), config.stored_run(encoder).name
    return ProbeJob(
        task=task,
        encoder=encoder,
        embeddings={(c, p): paths.embeddings(c, stored, p) for c, p in found},
        labels={(c, p): paths.labels(c, p) for c, p in found},
        folds=paths.folds(task),
        output=paths.probe(task, encoder),
        label=labels_of(spec),
        decision_rule=decision_rule_of(spec),
        is_balanced=spec.class_weight == "balanced",
        rows=rows_of(config, found, "slide_id", "patient_id", "site"),
        center=config.run(encoder).encoder.center,
        seed=config.seed,
    )


def _tile_task(config: Config, task: str) -> Task:
    spec = config.tasks[task]
    if spec.level != "tile":
        raise StainsslError(
            f"tasks.{task} is of level {spec.level}, and probes are for tile tasks: run `mil`."
        )
    return spec


@dataclass(frozen=True)
class FinetuneJob(Job):
    """Pixels, tile labels, folds and a network → predictions and metrics after fine-tuning it.

    Attributes:
        pixels: (cohort, part) → store.
        labels: (cohort, part) → table of tile labels.
        model: folder of a model trained here.
        target: target of pretrained weights, if tiles are normalized to stains of training tiles.
        identity: name and content of pretrained weights; else empty.
        rows: `cohort`, `part`, `slide_id`, `patient_id`, `site`.
        run_seed: seed of the encoder's run.
        checkpoints: folder from which an interrupted training resumes.
    """

    task: Resource[str]
    encoder: Resource[str]
    pixels: Reads[dict[Part, Path]]
    labels: Reads[dict[Part, Path]]
    folds: Reads[Path]
    model: Reads[Path | None]
    target: Reads[Path | None]
    output: Writes[Path]
    label: Setting[Labels]
    decision_rule: Setting[DecisionRule]
    is_balanced: Setting[bool]
    tuning: Setting[FineTune]
    identity: Setting[str]
    rows: Setting[pd.DataFrame]
    seed: Setting[int]
    run_seed: Setting[int]
    source: Resource[Source]
    checkpoints: Resource[Path]


def finetune(config: Config, task: str, encoder: str) -> FinetuneJob:
    """Plan the `finetune` job of a tile task and a run.

    Raises:
        StainsslError: the task is of another level or protocol, or the encoder has no network.
    """
    spec, run, paths = _tile_task(config, task), config.run(encoder), config.paths
    if not spec.is_fine_tuned:
        raise StainsslError(f"tasks.{task} has protocol {spec.protocol}: run `probe`.")
    if not run.encoder.sees_tiles:
        raise StainsslError(f"encoders.{run.key} has no tile network to fine-tune.")
    found, is_given = parts_of(config, spec.cohorts), run.encoder.weights is not None
    return FinetuneJob(
        task=task,
        encoder=encoder,
        pixels={(c, p): paths.pixels(c, p) for c, p in found},
        labels={(c, p): paths.labels(c, p) for c, p in found},
        folds=paths.folds(task),
        model=None if is_given else paths.model(encoder),
        target=paths.target(encoder) if is_given and run.encoder.needs_target else None,
        output=paths.fine_tuned(task, encoder),
        label=labels_of(spec),
        decision_rule=decision_rule_of(spec),
        is_balanced=spec.class_weight == "balanced",
        tuning=_tuning(spec.fine_tune, run.encoder),
        identity=given_identity(run.encoder) if is_given else "",
        rows=rows_of(config, found, "slide_id", "patient_id", "site"),
        seed=config.seed,
        run_seed=run.seed,
        source=source_of(config, encoder),
        checkpoints=paths.tuning(task, encoder),
    )


def _tuning(wanted: FineTune, encoder: Encoder) -> FineTune:
    """Settings of fine-tuning; batch norms of random weights have no statistics worth keeping."""
    if encoder.method == "random":
        return wanted.model_copy(update={"freeze_norms": False})
    return wanted


@dataclass(frozen=True)
class MilJob(Job):
    """Embeddings, slide labels and folds → predictions, metrics, models and attention.

    Attributes:
        embeddings: (cohort, part) → store, for the task's own and its external cohorts.
        pixels: likewise for its own cohorts, for the stain of the slides; empty if features are
            imported or pixels are not kept.
        rows: `cohort`, `part`, `slide_id`, `patient_id`, `site` and the columns of the
            label and of `clinical`, of its own cohorts.
        external: external cohort → its rows, without clinical columns.
        center: `site` if embeddings are centred by site, else None.
        clinical: columns of `rows` that a second head uses beside the tiles; empty: no such head.
        scratch: folder for temporary data that does not fit in memory.
    """

    task: Resource[str]
    encoder: Resource[str]
    head_name: Resource[str]
    embeddings: Reads[dict[Part, Path]]
    pixels: Reads[dict[Part, Path]]
    folds: Reads[Path]
    output: Writes[Path]
    level: Setting[str]
    label: Setting[Labels]
    decision_rule: Setting[DecisionRule]
    is_balanced: Setting[bool]
    rows: Setting[pd.DataFrame]
    external: Setting[dict[str, pd.DataFrame]]
    center: Setting[str | None]
    head: Setting[Head]
    clinical: Setting[list[str]]
    hazard: Setting[str]
    seed: Setting[int]
    scratch: Resource[Path]


def mil(config: Config, task: str, encoder: str, head: str) -> MilJob:
    """Plan the `mil` job of a slide or patient task, a run and a head.

    Raises:
        StainsslError: the task is of level tile.
    """
    spec, paths = config.tasks[task], config.paths
    if spec.level == "tile":
        raise StainsslError(
            f"tasks.{task} is of level tile, and `mil` is for slides and patients: run `probe` or"
            " `finetune`."
        )
    own, every = (parts_of(config, c) for c in (spec.cohorts, [*spec.cohorts, *spec.external]))
    run, stored = config.run(encoder), config.stored_run(encoder).name
    is_imported = config.encoders[config.source_encoder(run.key)].features is not None
    is_streamed = any(config.cohorts[name].pixels == "stream" for name in spec.cohorts)
    has_pixels = config.slides.keep_pixels and not is_imported and not is_streamed
    columns = ("slide_id", "patient_id", "site", *spec.label_columns.values())
    clinical = spec.clinical if spec.fusion == "gated" else []
    return MilJob(
        task=task,
        encoder=encoder,
        head_name=head,
        embeddings={(c, p): paths.embeddings(c, stored, p) for c, p in every},
        pixels={(c, p): paths.pixels(c, p) for c, p in own if has_pixels},
        folds=paths.folds(task),
        output=paths.mil(task, encoder, head),
        level=spec.level,
        label=labels_of(spec),
        decision_rule=decision_rule_of(spec),
        is_balanced=spec.class_weight == "balanced",
        rows=rows_of(config, own, *dict.fromkeys([*columns, *clinical])),
        external={c: rows_of(config, parts_of(config, [c]), *columns) for c in spec.external},
        center=run.encoder.center,
        head=config.heads[head],
        clinical=clinical,
        hazard=spec.hazard,
        seed=config.seed,
        scratch=paths.results,
    )


@dataclass(frozen=True)
class BenchmarkJob(Job):
    """Results of tasks × encoders × heads → one table and its figures.

    Attributes:
        made: folders written by the jobs of the tasks.
        prediction_folders: (task, run, head) → folder of predictions, equal to or inside one of
            `made`; the head of a tile task is `probe` or `fine-tune`. Here and below, a task with
            several labels counts as one task per label.
        robustness: run → its folder.
        folds: task → its folds.
        labels: (cohort, part) → tile labels, for the parts of tile tasks.
        seen: run → table of the patients seen in its pretraining.
        tasks: tasks of the benchmark, with the default split.
        runs: encoder → names of its runs.
        rows: cohort → one row per slide: `part`, `slide_id`, `patient_id`, columns of site and
            scanner, and the labels and clinical columns of the tasks.
        releases: cohort → public data set, if it is one.
        given: runs of encoders with pretrained weights.
        warnings: sentences about encoders that share their weights, or whose tiles differ in
            scale or size from those they were trained on.
    """

    name: Resource[str]
    made: Reads[list[Path]]
    prediction_folders: Resource[dict[tuple[str, str, str], Path]]
    robustness: Reads[dict[str, Path]]
    folds: Reads[dict[str, Path]]
    labels: Reads[dict[Part, Path]]
    seen: Reads[dict[str, Path]]
    files: Writes[dict[str, Path]]
    figures: Writes[Path]
    benchmark: Setting[Benchmark]
    tasks: Setting[dict[str, Task]]
    runs: Setting[dict[str, list[str]]]
    rows: Setting[dict[str, pd.DataFrame]]
    releases: Setting[dict[str, str]]
    given: Setting[list[str]]
    warnings: Setting[list[str]]
    seed: Setting[int]


BENCHMARK_FILES = (
    "table.csv", "table.md", "table.tex", "table.html", "comparisons.csv", "robustness.json",
)  # fmt: skip
PROBE, FINE_TUNE = "probe", "fine-tune"


def benchmark(config: Config, benchmark: str) -> BenchmarkJob:
    """Plan the `benchmark` job."""
    spec, paths = config.benchmarks[benchmark], config.paths
    runs = {key: [run.name for run in config.runs_of(key)] for key in spec.encoders}
    names = [name for several in runs.values() for name in several]
    # Each label of a task with several is evaluated as a task of its own.
    tasks = {
        n: t for name in spec.tasks for n, t in config.tasks[name].per_label_tasks(name).items()
    }
    sources = {key: config.sources()[key] for key in tasks}
    whole = {key: (name, "") for key, (name, _) in sources.items()}
    tiled = [task for task in tasks.values() if task.level == "tile"]
    cohorts = list(dict.fromkeys(c for task in tasks.values() for c in task.cohorts))
    labelled = parts_of(config, list(dict.fromkeys(c for task in tiled for c in task.cohorts)))
    folder = paths.benchmark(benchmark)
    is_robust = {
        key for key in runs if spec.robustness and robustness_tasks_of_encoder(config, key)
    }
    return BenchmarkJob(
        name=benchmark,
        made=list(_prediction_folders(paths, spec, tasks, names, whole).values()),
        prediction_folders=_prediction_folders(paths, spec, tasks, names, sources),
        robustness={n: paths.robustness(n) for key in runs if key in is_robust for n in runs[key]},
        folds={key: paths.folds(name) for key, (name, _) in sources.items()},
        labels={(c, p): paths.labels(c, p) for c, p in labelled},
        seen=_seen(config, [n for several in runs.values() for n in several]),
        files={name: folder / name for name in BENCHMARK_FILES},
        figures=paths.figures(benchmark),
        benchmark=spec,
        tasks={name: task.model_copy(update={"split": Split()}) for name, task in tasks.items()},
        runs=runs,
        rows={cohort: _benchmark_rows(config, cohort, tasks) for cohort in cohorts},
        releases={c: r for c in cohorts if (r := config.cohorts[c].release)},
        given=[name for key in runs if config.encoders[key].weights for name in runs[key]],
        warnings=row_warnings(config, runs),
        seed=config.seed,
    )


def _seen(config: Config, runs: list[str]) -> dict[str, Path]:
    """Run → table of patients seen in pretraining, its own or that of the tile encoder it uses."""
    found: dict[str, Path] = {}
    for name in runs:
        run = config.run(name)
        while (other := config.source_run(run)) is not None:
            run = other
        if run.encoder.method:
            found[name] = config.paths.seen(run.name)
    return found


def _prediction_folders(
    paths: Paths,
    spec: Benchmark,
    tasks: dict[str, Task],
    runs: list[str],
    sources: dict[str, tuple[str, str]],
) -> dict[tuple[str, str, str], Path]:
    """(task, run, head) → folder of predictions.

    Args:
        sources: task → the config's task and the label, "" if the task has a single one.
    """
    found = {}
    for name, task in tasks.items():
        for run in runs:
            if task.is_fine_tuned:
                found[name, run, FINE_TUNE] = paths.fine_tuned(name, run)
            elif task.level == "tile":
                found[name, run, PROBE] = paths.probe(name, run)
            else:
                source, label = sources[name]
                found |= {(name, run, h): paths.mil(source, run, h, label) for h in spec.heads}
    return found


def _benchmark_rows(config: Config, cohort: str, tasks: dict[str, Task]) -> pd.DataFrame:
    rows = read_sheet(config, cohort).rename(columns={PART: "part"})
    asked = [task for task in tasks.values() if cohort in task.cohorts]
    labels = [column for task in asked for column in task.label_columns.values()]
    clinical = [column for task in asked for column in task.clinical]
    sites = site_columns(rows)
    return columns_of(rows, "part", "slide_id", "patient_id", *sites, *labels, *clinical)
