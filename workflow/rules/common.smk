"""What the stages share: config, paths, and functions that name inputs and params."""

import json
import sys

# In a clone its own package, whatever else is installed; in a wheel the workflow is inside of it.
CLONE = Path(str(workflow.current_basedir)).parents[1]
if (CLONE / "stainssl" / "cli.py").is_file():
    sys.path.insert(0, str(CLONE))

from stainssl import cohort as cohorts
from stainssl import config as models
from stainssl import extras, launch
from stainssl.encoders import groups as readings
from stainssl.plan.paths import Paths
from stainssl.slides.hdf5_patch import file_of
from stainssl.errors import StainsslError
from stainssl.stores.atomic import write_text

DEPLOYMENT = set(map(str, workflow.deployment_settings.deployment_method))


def resolve_config():
    """The config as typed models; every problem is told at once, before any job."""
    try:
        for path in workflow.configfiles:
            models.read_yaml(
                path
            )  # Snakemake itself lets the last of two equal keys win
        resolved = models.parse(config, "config")
        problems = cohorts.check(resolved) if workflow.is_main_process else []
        problems += [] if DEPLOYMENT else extras.problems(resolved)
    except StainsslError as error:
        problems = str(error).split("\n")
    if problems:
        raise WorkflowError(
            f"{len(problems)} problem(s), nothing was run:\n  " + "\n  ".join(problems)
        )
    return resolved


def write_resolved():
    """Write the resolved config for the jobs, where it changed; returns its path."""
    path, text = PATHS.config(), models.dump(CONFIG)
    if workflow.is_main_process and (not path.exists() or path.read_text() != text):
        write_text(path, text)
    return path


CONFIG = resolve_config()
PATHS = Paths(CONFIG.results)
shell.prefix(launch.shell_prefix(DEPLOYMENT, PATHS.results))
RESOLVED = write_resolved()
PARTS = {name: cohorts.parts(CONFIG, name) for name in CONFIG.cohorts}
MISSING = {
    name: set(cohorts.missing_files(CONFIG, name)["path"]) for name in CONFIG.cohorts
}
RUNS = {run.name: run for run in CONFIG.runs()}
TRAIN = {name: cohorts.train_parts(CONFIG, run.encoder) for name, run in RUNS.items()}
LOGS = PATHS.results / "logs"
TIMES = PATHS.results / "times"
CONDA = "../envs/stainssl.yaml"


wildcard_constraints:
    cohort=models.NAME,
    tiling=models.NAME,
    part=models.NAME,
    encoder=models.NAME,
    task=models.NAME,
    head=models.NAME,
    benchmark=models.NAME,


def plan_readings():
    """(rule, reading, its encoders, the cohorts that it reads) of readings of several encoders."""
    if workflow.is_main_process:
        readings.write(
            PATHS.readings(), readings.plan(CONFIG, readings.read(PATHS.readings()))
        )
    found = {}
    for cohort, planned in readings.read(PATHS.readings()).items():
        for reading in planned if cohort in CONFIG.cohorts else ():
            encoders = tuple(readings.members(CONFIG, cohort, reading))
            if len(reading) > 1 and encoders:
                found.setdefault((as_param(reading), encoders), []).append(cohort)
    return [
        (f"embed_together_{i}" if i else "embed_together", *key, cohorts)
        for i, (key, cohorts) in enumerate(found.items())
    ]


def as_param(value):
    """A value as text that changes when, and only when, the value does."""
    return json.dumps(value, sort_keys=True, default=str)


def settings_of(model, *keys):
    """Some keys of a part of the config, as a param."""
    return as_param(model.model_dump(mode="json", include=set(keys) or None))


def rows_of(cohort, part, *columns):
    """Some columns of a part's rows, as a param."""
    rows = PARTS[cohort][part]
    return as_param(rows[[c for c in columns if c in rows]].values.tolist())


def each_part(names):
    """(cohort, tiling, part) of every part of some cohorts."""
    return [
        (name, CONFIG.cohorts[name].tiling, part)
        for name in names
        for part in PARTS[name]
    ]


def train_parts_of(encoder):
    """(cohort, tiling, part) of every part that an encoder is trained on."""
    tiling = RUNS[encoder].encoder.tiling
    return [(c, tiling, p) for c, p in TRAIN[encoder]]


def demo_files(kind):
    """Files that `stainssl demo` makes: `slides`, or `truth`."""
    demos = [name for name, one in CONFIG.cohorts.items() if one.demo]
    rows = [rows for name in demos for rows in PARTS[name].values()]
    if kind == "slides":
        return [path for frame in rows for path in frame["path"]]
    folder = PATHS.demo() / "truth"
    return [str(folder / f"{slide}.geojson") for f in rows for slide in f["slide_id"]]


def slide_files(wildcards):
    """The slides of a part that exist, or that the demo makes."""
    paths = PARTS[wildcards.cohort][wildcards.part]["path"]
    there = [path for path in paths if path not in MISSING[wildcards.cohort]]
    return list(dict.fromkeys(str(file_of(path)) for path in there))


def files_by_slide(cohort, part, pattern):
    """The files of a pattern with {slide_id} that exist for a part's slides."""
    if pattern is None:
        return []
    slides = PARTS[cohort][part]["slide_id"]
    files = [Path(pattern.format(slide_id=slide)) for slide in slides]
    made = CONFIG.cohorts[cohort].demo is not None
    return [str(file) for file in files if made or file.exists()]


def region_files(wildcards):
    """The outlines in which the tiles of a part's slides stand."""
    pattern = CONFIG.cohorts[wildcards.cohort].regions
    return files_by_slide(wildcards.cohort, wildcards.part, pattern)


def tile_rows(wildcards):
    """What `tile` reads of the sheet: which slides, where, at what scale."""
    return rows_of(wildcards.cohort, wildcards.part, "slide_id", "path", "mpp")


def tiling_settings(wildcards):
    """The tiling, as a param."""
    return settings_of(CONFIG.tilings[wildcards.tiling])


def qc_of_cohort(wildcards):
    """The qc tables of all parts of a cohort."""
    return [PATHS.qc(*key) for key in each_part([wildcards.cohort])]


def tile_labels(cohort):
    """The labels of the tile tasks that ask a cohort."""
    return sorted(
        {
            task.label
            for task in CONFIG.tasks.values()
            if task.level == "tile" and cohort in task.cohorts
        }
    )


def annotation_files(wildcards):
    """The annotations of a part's slides that exist, or that the demo makes."""
    pattern = CONFIG.cohorts[wildcards.cohort].annotations
    return files_by_slide(wildcards.cohort, wildcards.part, pattern)


def label_rows(wildcards):
    """What `label` reads of the sheet and the cohort: labels, and the classes that make them."""
    labels = tile_labels(wildcards.cohort)
    outlines = settings_of(CONFIG.cohorts[wildcards.cohort], "outlines")
    rows = rows_of(wildcards.cohort, wildcards.part, *labels)
    return as_param(labels) + outlines + rows


def train_pixels(wildcards):
    """The pixels that an encoder is trained on."""
    return [PATHS.pixels(*key) for key in train_parts_of(wildcards.encoder)]


def train_labels(wildcards):
    """The tile labels that an encoder learns from, or is watched by."""
    if RUNS[wildcards.encoder].encoder.label is None:
        return []
    return [PATHS.labels(*key) for key in train_parts_of(wildcards.encoder)]


def train_rows(wildcards):
    """What training reads of the sheets: who and where each slide is from."""
    return "".join(
        rows_of(cohort, part, "slide_id", "patient_id", "site")
        for cohort, _, part in train_parts_of(wildcards.encoder)
    )


def target_of(wildcards):
    """The target of an encoder that normalizes to one."""
    needs = RUNS[wildcards.encoder].encoder.needs_target
    return [PATHS.target(wildcards.encoder)] if needs else []


TARGET_KEYS = ("target", "normalizer", "tiling")


def target_settings(wildcards):
    """The keys of an encoder that `target` reads, and its seed."""
    run = RUNS[wildcards.encoder]
    return settings_of(run.encoder, *TARGET_KEYS) + as_param(run.seed)


def pretrain_settings(wildcards):
    """The keys of an encoder that `pretrain` reads, and its seed."""
    run = RUNS[wildcards.encoder]
    keys = set(type(run.encoder).model_fields) - {"seeds", "frozen", "train", "weights"}
    other = CONFIG.initial_run(run)
    given = other.encoder.weights if other else None
    return settings_of(run.encoder, *keys) + as_param([run.seed, CONFIG.seed, given])


def initial_model_of(wildcards):
    """The model that training starts from, where it is another encoder's of this config."""
    other = CONFIG.initial_run(RUNS[wildcards.encoder])
    return [PATHS.model(other.name)] if other and other.encoder.method else []


def trainable(names):
    """A pattern that matches the encoders that a rule may build, and no frozen or given one."""
    built = [n for n in names if RUNS[n].encoder.method and not RUNS[n].encoder.frozen]
    return "|".join(map(re.escape, built)) or "(?!)"


def model_of(wildcards):
    """The model of an encoder that has one here; `weights` from elsewhere are no file."""
    if RUNS[wildcards.encoder].encoder.method:
        return [PATHS.model(wildcards.encoder)]
    return []


def weights_of(wildcards):
    """The name of given weights, or of feature files, as a param."""
    encoder = RUNS[wildcards.encoder].encoder
    return encoder.weights or encoder.features or ""


def embedded_pixels(wildcards):
    """The pixels that `embed` reads; features that are imported need none."""
    if RUNS[wildcards.encoder].encoder.features:
        return []
    return [PATHS.pixels(wildcards.cohort, wildcards.tiling, wildcards.part)]


def embedded_tiles(wildcards):
    """The tiles that `embed` reads; features that are imported need none."""
    if RUNS[wildcards.encoder].encoder.features:
        return []
    return [PATHS.tiles(wildcards.cohort, wildcards.tiling, wildcards.part)]


def embeddings_of_cohort(wildcards):
    """The embeddings of all parts of a cohort under one encoder."""
    keys = each_part([wildcards.cohort])
    return [PATHS.embeddings(c, t, wildcards.encoder, p) for c, t, p in keys]


def tiles_of_cohort(wildcards):
    """The tiles of all parts of a cohort; features that are imported have none."""
    if RUNS[wildcards.encoder].encoder.features:
        return []
    return [PATHS.tiles(*key) for key in each_part([wildcards.cohort])]


def task_rows(wildcards):
    """What `folds` reads of the sheets: patients, labels, sites and splits."""
    task = CONFIG.tasks[wildcards.task]
    columns = {"slide_id", "patient_id", "site", "split", task.label}
    columns |= {*task.split.stratify, task.split.group}
    return "".join(
        rows_of(cohort, part, *sorted(columns))
        for cohort, _, part in each_part(task.cohorts)
    )


def external_rows(wildcards):
    """What `mil` reads of the sheets of external cohorts: patients and labels."""
    task = CONFIG.tasks[wildcards.task]
    return "".join(
        rows_of(cohort, part, "slide_id", "patient_id", "site", task.label)
        for cohort, _, part in each_part(task.external)
    )


def task_settings(wildcards):
    """A task, as a param."""
    return settings_of(CONFIG.tasks[wildcards.task]) + as_param(CONFIG.seed)


def task_embeddings(wildcards):
    """The embeddings that a task asks, under one encoder."""
    task = CONFIG.tasks[wildcards.task]
    keys = each_part([*task.cohorts, *task.external])
    return [PATHS.embeddings(c, t, wildcards.encoder, p) for c, t, p in keys]


def task_labels(wildcards):
    """The tile labels that a task asks."""
    return [
        PATHS.labels(*key) for key in each_part(CONFIG.tasks[wildcards.task].cohorts)
    ]


def head_settings(wildcards):
    """A head, as a param."""
    return settings_of(CONFIG.heads[wildcards.head])


def robust_tasks(encoder):
    """The tile tasks of the benchmarks that ask how robust an encoder is."""
    key = RUNS[encoder].key
    if RUNS[encoder].encoder.features:  # there is no network to show tiles to
        return []
    asked = [
        b for b in CONFIG.benchmarks.values() if b.robustness and key in b.encoders
    ]
    names = {name for benchmark in asked for name in benchmark.tasks}
    return sorted(name for name in names if CONFIG.tasks[name].level == "tile")


def robust_inputs(wildcards):
    """Pixels, labels, embeddings and folds of the tile tasks of an encoder."""
    files = []
    for name in robust_tasks(wildcards.encoder):
        files.append(PATHS.folds(name))
        for c, t, p in each_part(CONFIG.tasks[name].cohorts):
            files += [PATHS.pixels(c, t, p), PATHS.labels(c, t, p)]
            files.append(PATHS.embeddings(c, t, wildcards.encoder, p))
    return list(dict.fromkeys(files))


def benchmark_runs(name):
    """The runs of the encoders of a benchmark."""
    return [
        r.name for key in CONFIG.benchmarks[name].encoders for r in CONFIG.runs_of(key)
    ]


def benchmark_answers(wildcards):
    """The folders that a benchmark's table is made of."""
    found = CONFIG.benchmarks[wildcards.benchmark]
    folders = []
    for run in benchmark_runs(wildcards.benchmark):
        for task in found.tasks:
            if CONFIG.tasks[task].level == "tile":
                folders.append(PATHS.probe(task, run))
            else:
                folders += [PATHS.mil(task, run, head) for head in found.heads]
        if found.robustness and robust_tasks(run):
            folders.append(PATHS.robustness(run))
    return folders


def benchmark_seen(wildcards):
    """Which patients each encoder of a benchmark saw in pretraining."""
    runs = [RUNS[name] for name in benchmark_runs(wildcards.benchmark)]
    return [PATHS.seen(run.name) for run in runs if run.encoder.method]


def benchmark_settings(wildcards):
    """A benchmark, as a param."""
    return settings_of(CONFIG.benchmarks[wildcards.benchmark]) + as_param(CONFIG.seed)


def benchmark_rows(wildcards):
    """What the baselines of a benchmark read of the sheets: where slides are from, and who."""
    tasks = [
        CONFIG.tasks[name] for name in CONFIG.benchmarks[wildcards.benchmark].tasks
    ]
    clinical = {column for task in tasks for column in task.clinical}
    keys = each_part(dict.fromkeys(c for task in tasks for c in task.cohorts))
    return "".join(
        rows_of(c, p, "slide_id", *cohorts.site_columns(PARTS[c][p]), *sorted(clinical))
        for c, _, p in keys
    )


def wanted_files():
    """What a plain run makes: tables, and what no table asks for but the config names."""
    files = [PATHS.benchmark(name) / "table.csv" for name in CONFIG.benchmarks]
    for cohort, one in CONFIG.cohorts.items() if CONFIG.needs_slides else ():
        files += [PATHS.gate(cohort, one.tiling), PATHS.overview(cohort, one.tiling)]
    for cohort, one in CONFIG.cohorts.items():
        runs = CONFIG.runs_on(cohort)
        files += [PATHS.embedded(cohort, one.tiling, run.name) for run in runs]
    for run in RUNS.values():
        if run.encoder.is_trained:
            files.append(PATHS.curves(run.name))
    if not CONFIG.benchmarks:
        keys = each_part(CONFIG.cohorts)
        files += [PATHS.pixels(*key) for key in keys if CONFIG.needs_slides]
    return files
