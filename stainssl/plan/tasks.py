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
from stainssl.evaluation.thresholds import Calls, calls_of
from stainssl.paths import Paths
from stainssl.plan.encoders import Source, given_identity, robust_tasks, source_of
from stainssl.plan.job import Job, Reads, Resource, Setting, Writes
from stainssl.plan.rows import Part, columns_of, parts_of, rows_of


@dataclass(frozen=True)
class FoldsJob(Job):
    """Training, validation and test patients of a task, drawn once.

    Attributes:
        rows: a row per slide of the task's cohorts: the columns that the split needs.
    """

    task: Resource[str]
    folds: Writes[Path]
    rows: Setting[pd.DataFrame]
    level: Setting[str]
    label: Setting[Labels]
    split: Setting[Split]
    seed: Setting[int]


def folds(config: Config, task: str) -> FoldsJob:
    """The `folds` job of a task."""
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
        split=_acting_split(spec.split),
        seed=config.seed,
    )


def _acting_split(split: Split) -> Split:
    """A split with the keys that its kind does not use at their defaults."""
    used = {"cv": {"folds", "repeats", "stratify"}, "leave-one-out": {"group"}}
    idle = set(Split.model_fields) - {"kind"} - used.get(split.kind, set())
    default = Split()
    return split.model_copy(update={key: getattr(default, key) for key in idle})


@dataclass(frozen=True)
class ProbeJob(Job):
    """Embeddings, tile labels and folds → the answers of a linear probe.

    Attributes:
        embeddings, labels: (cohort, part) → store and table.
        rows: `cohort`, `part`, `slide_id`, `patient_id`, `site`.
        center: `site`, where vectors are centred by it.
    """

    task: Resource[str]
    encoder: Resource[str]
    embeddings: Reads[dict[Part, Path]]
    labels: Reads[dict[Part, Path]]
    folds: Reads[Path]
    output: Writes[Path]
    label: Setting[Labels]
    calls: Setting[Calls]
    is_balanced: Setting[bool]
    rows: Setting[pd.DataFrame]
    center: Setting[str | None]
    seed: Setting[int]


def probe(config: Config, task: str, encoder: str) -> ProbeJob:
    """The `probe` job of a tile task under one encoder.

    Raises:
        StainsslError: the task is of another level.
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
        calls=calls_of(spec),
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
    """Pixels, tile labels, folds and a network → the answers of that network trained on them.

    Attributes:
        pixels, labels: (cohort, part) → store and table.
        model: of an encoder that is trained here.
        target: where tiles are normalized to its mean before given weights see them.
        identity: of given weights, by name and content.
        rows: `cohort`, `part`, `slide_id`, `patient_id`, `site`.
        run_seed: of the encoder's run.
        checkpoints: a folder from which a killed training goes on.
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
    calls: Setting[Calls]
    is_balanced: Setting[bool]
    tuning: Setting[FineTune]
    identity: Setting[str]
    rows: Setting[pd.DataFrame]
    seed: Setting[int]
    run_seed: Setting[int]
    source: Resource[Source]
    checkpoints: Resource[Path]


def finetune(config: Config, task: str, encoder: str) -> FinetuneJob:
    """The `finetune` job of a tile task under one encoder.

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
        calls=calls_of(spec),
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
    """How an encoder's network is trained; norms of random weights have no statistics to keep."""
    if encoder.method == "random":
        return wanted.model_copy(update={"freeze_norms": False})
    return wanted


@dataclass(frozen=True)
class MilJob(Job):
    """Embeddings, slide labels and folds → predictions, metrics, models and attention.

    Attributes:
        embeddings: (cohort, part) → store, of the task's own and its external cohorts.
        pixels: likewise of its own cohorts, for the stain of the slides; none where features are
            imported, or tiles not kept.
        rows: `cohort`, `part`, `slide_id`, `patient_id`, `site` and the label, of its own cohorts.
        external: cohort → its rows likewise.
        center: `site`, where vectors are centred by it.
        clinical: columns of its own rows that a second head takes beside the tiles; none: there is
            no second head.
        scratch: a folder for what does not fit in memory.
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
    calls: Setting[Calls]
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
    """The `mil` job of a slide or patient task under one encoder and head.

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
    is_imported = config.encoders[config.origin(run.key)].features is not None
    has_pixels = config.slides.keep_pixels and not is_imported
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
        calls=calls_of(spec),
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
    """Tasks × encoders × heads: one table and its figures.

    Attributes:
        made: the folders that the jobs of the tasks write.
        answers: (task, run, head) → the folder of the answer, one of `made` or in it; of tile
            tasks the head is `probe` or `fine-tune`. A task of several labels is a task a label
            here.
        robustness: run → its folder.
        folds: task → its folds.
        labels: (cohort, part) → tile labels of the tile tasks' parts.
        seen: run → the patients that its pretraining saw.
        tasks: the benchmark's tasks, without the keys of their split.
        runs: encoder → the names of its runs.
        rows: cohort → a row per slide: `part`, `slide_id`, `patient_id`, where it was made, and
            the labels and clinical columns of the tasks.
        releases: cohort → the public data set that it is.
        given: runs of encoders whose weights are given.
        warnings: sentences on encoders whose tiles are unlike those that they were trained on, or
            whose weights are another's.
    """

    name: Resource[str]
    made: Reads[list[Path]]
    answers: Resource[dict[tuple[str, str, str], Path]]
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
    """The `benchmark` job."""
    spec, paths = config.benchmarks[benchmark], config.paths
    runs = {key: [run.name for run in config.runs_of(key)] for key in spec.encoders}
    names = [name for several in runs.values() for name in several]
    # Of several labels each is judged as a task.
    tasks = {n: q for name in spec.tasks for n, q in config.tasks[name].questions(name).items()}
    sources = {question: config.sources()[question] for question in tasks}
    whole = {question: (name, "") for question, (name, _) in sources.items()}
    tiled = [task for task in tasks.values() if task.level == "tile"]
    cohorts = list(dict.fromkeys(c for task in tasks.values() for c in task.cohorts))
    labelled = parts_of(config, list(dict.fromkeys(c for task in tiled for c in task.cohorts)))
    folder = paths.benchmark(benchmark)
    is_robust = {key for key in runs if spec.robustness and robust_tasks(config, key)}
    return BenchmarkJob(
        name=benchmark,
        made=list(_answers(paths, spec, tasks, names, whole).values()),
        answers=_answers(paths, spec, tasks, names, sources),
        robustness={n: paths.robustness(n) for key in runs if key in is_robust for n in runs[key]},
        folds={question: paths.folds(name) for question, (name, _) in sources.items()},
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
    """Run → the patients that its pretraining, or that of the one it is made from, saw."""
    found: dict[str, Path] = {}
    for name in runs:
        run = config.run(name)
        while (other := config.origin_run(run)) is not None:
            run = other
        if run.encoder.method:
            found[name] = config.paths.seen(run.name)
    return found


def _answers(
    paths: Paths,
    spec: Benchmark,
    tasks: dict[str, Task],
    runs: list[str],
    sources: dict[str, tuple[str, str]],
) -> dict[tuple[str, str, str], Path]:
    """Where each answer is: of one of several labels in the folder of its task's head."""
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
