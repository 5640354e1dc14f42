"""Command line; each command imports what it needs when called, so that `--help` is fast."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stainssl import __version__

if TYPE_CHECKING:
    from stainssl.config import Config

app = typer.Typer(
    help="Stain-invariant pretraining and benchmarking for breast H&E whole-slide images.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
cohort_app = typer.Typer(help="Check, import and summarize cohorts.", no_args_is_help=True)
app.add_typer(cohort_app, name="cohort")

ConfigFile = Annotated[Path, typer.Option("--config", "-c", help="Config file.")]
CohortName = Annotated[str, typer.Option("--cohort", help="Cohort, as named under `cohorts`.")]
PartName = Annotated[str, typer.Option("--part", help="Part, such as train-0000.")]
EncoderName = Annotated[str, typer.Option("--encoder", help="Encoder, such as simclr or simclr.1.")]
TaskName = Annotated[str, typer.Option("--task", help="Task, as named under `tasks`.")]
HeadName = Annotated[str, typer.Option("--head", help="Head, as named under `heads`.")]
BenchmarkName = Annotated[
    str, typer.Option("--benchmark", help="Benchmark, as named under `benchmarks`.")
]
Threads = Annotated[int, typer.Option("--threads", help="Number of cores; 0: all.")]
Gpus = Annotated[int, typer.Option("--gpus", help="Number of visible GPUs to use; 0: all.")]
DEFAULT = Path("config.yaml")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _all_verbs(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version and exit.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    # Libraries (tiatoolbox) would otherwise add handlers to the root logger.
    logging.basicConfig(format="%(message)s")


def _load(path: Path) -> Config:
    from stainssl.config import load
    from stainssl.plan.run import restore

    restore(path)
    return load(path)


def _prepare_libraries(threads: int) -> None:
    """Limit the threads of numpy, OpenCV and torch before their import, and of this package.

    OpenCV gets one thread, since its calls run in parallel already. torch is told to ask Linux for
    large pages, since mapping small ones takes much of the time of a network on a CPU.

    Args:
        threads: number of threads; 0: all cores.
    """
    from stainssl.runtime.parallel import set_job_threads

    count = threads or os.cpu_count() or 1
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(count)
    os.environ["OPENCV_FOR_THREADS_NUM"] = "1"
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    set_job_threads(count)


def _check_names(config: Config, names: dict[str, Any]) -> None:
    """Raise a `StainsslError` for a name that is not in the config, with the nearest known one."""
    from stainssl.cohort import parts
    from stainssl.config import nearest
    from stainssl.errors import StainsslError

    known: dict[str, Any] = {
        "cohort": config.cohorts,
        "encoder": [run.name for run in config.runs()],
        "task": config.tasks,
        "head": config.heads,
        "benchmark": config.benchmarks,
    }
    for option in known.keys() & names.keys():
        given = names[option]
        for name in given if isinstance(given, list) else [given]:
            if name not in known[option]:
                ending = nearest(name, list(known[option]))
                raise StainsslError(f"--{option}: no such name {name!r}{ending}")
    if "part" in names and names["part"] not in (found := parts(config, names["cohort"])):
        ending = nearest(names["part"], list(found))
        raise StainsslError(f"--part: {names['cohort']} has no part {names['part']!r}{ending}")


def _begin(verb: str, config: Path, threads: int, names: dict[str, Any]) -> Config:
    """Load the config, check the names, and start log lines with the verb and the names."""
    _prepare_libraries(threads)
    loaded = _load(config)
    _check_names(loaded, names)
    shown = " ".join([verb, *_words(names.values())])
    logging.basicConfig(
        level=logging.INFO,
        format=f"%(asctime)s {shown}: %(message)s",
        datefmt="%H:%M:%S",
        force=True,
    )
    return loaded


def _words(names: Iterable[Any]) -> Iterator[str]:
    """Yield names as shown in log lines; lists are flattened, numbers left out."""
    for name in names:
        if isinstance(name, list):
            yield from name
        elif not isinstance(name, int):
            yield str(name)


def _run_job(
    verb: str,
    config: Path,
    names: dict[str, Any] | None = None,
    threads: int = 1,
    **options: Any,
) -> None:
    """Plan the job of a verb and run its stage."""
    from stainssl.stages import run_stage

    loaded = _begin(verb, config, threads, names or {})
    run_stage(verb, loaded, *(names or {}).values(), **options)


@app.command()
def demo(config: ConfigFile = DEFAULT, threads: Threads = 0) -> None:
    """Create the synthetic cohort: slides, sheet and ground-truth polygons."""
    _run_job("demo", config, processes=threads or os.cpu_count() or 1)


@cohort_app.command("check")
def cohort_check(
    config: ConfigFile = DEFAULT,
    open_to: Annotated[
        Path | None,
        typer.Option(
            "--open",
            metavar="FOLDER",
            help="Also open every slide, and write its status and pictures to this folder.",
        ),
    ] = None,
    threads: Threads = 0,
) -> None:
    """Check the config and its sheets; list all problems and exit with code 1 if there are any."""
    from stainssl.cohort import (
        check,
        encoder_checks,
        encoder_warnings,
        feature_warnings,
        installed,
        sheet_report,
        task_summary,
    )
    from stainssl.errors import StainsslError

    _prepare_libraries(threads)
    loaded = _load(config)
    if problems := [*check(loaded, thorough=True), *encoder_checks.problems(loaded)]:
        raise StainsslError("\n".join(problems))
    for name in loaded.cohorts:
        for sentence in sheet_report(loaded, name):
            typer.echo(sentence)
    for sentence in [
        *encoder_warnings.warnings(loaded),
        *encoder_checks.resized(loaded),
        *feature_warnings(loaded),
        *installed.missing(loaded, thorough=True),
    ]:
        typer.echo(f"warning: {sentence}")
    for name in loaded.tasks:
        typer.echo(f"task {name}:")
        for sentence in task_summary(loaded, name):
            typer.echo(f"  {sentence}")
    if open_to is not None:
        _open_slides(loaded, open_to)


def _open_slides(config: Config, folder: Path) -> None:
    """Report on the slides of all cohorts; problems are raised once all have been opened."""
    from stainssl.errors import StainsslError
    from stainssl.stages import check_slides

    problems = []
    for name in config.cohorts:
        try:
            for sentence in check_slides.run(config, name, folder / name):
                typer.echo(sentence)
        except StainsslError as error:
            problems.append(str(error))
    if problems:
        raise StainsslError("\n".join(problems))


@app.command()
def encoders() -> None:
    """List the encoders available by name, and which of them are on this machine."""
    from stainssl.encoders.listing import lines

    for line in lines():
        typer.echo(line)


@cohort_app.command("import")
def cohort_import(
    release: Annotated[str, typer.Argument(help="Public data set, such as camelyon17-wilds.")],
    root: Annotated[Path, typer.Option("--root", help="Folder of the unpacked data set.")],
    sheet: Annotated[
        Path | None, typer.Option("--sheet", help="CSV file to write; default: RELEASE.csv.")
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option("--option", help="Option of the release, as key=value; may be repeated."),
    ] = None,
) -> None:
    """Write the sheet of a public data set and report problems in its folder."""
    from stainssl.datasets.importing import run

    for line in run(release, root, sheet or Path(f"{release}.csv"), option or []):
        typer.echo(line)


@cohort_app.command("statuses")
def cohort_statuses(cohort: CohortName, config: ConfigFile = DEFAULT) -> None:
    """Collect the status of each slide: table, HTML page and picture of the tissue masks."""
    _run_job("statuses", config, {"cohort": cohort})


@cohort_app.command("gate")
def cohort_gate(cohort: CohortName, config: ConfigFile = DEFAULT) -> None:
    """Fail if more slides are bad than `slides.max_bad_slides` allows."""
    _run_job("gate", config, {"cohort": cohort})


@cohort_app.command("embedded")
def cohort_embedded(cohort: CohortName, encoder: EncoderName, config: ConfigFile = DEFAULT) -> None:
    """Count the tiles of each slide with an embedding, and those that were lost."""
    _run_job("embedded", config, {"cohort": cohort, "encoder": encoder})


@app.command()
def tile(
    cohort: CohortName, part: PartName, config: ConfigFile = DEFAULT, threads: Threads = 1
) -> None:
    """Segment tissue and lay out tiles: slides of a part → tiles, qc, previews."""
    _run_job("tile", config, {"cohort": cohort, "part": part}, threads)


@app.command()
def label(cohort: CohortName, part: PartName, config: ConfigFile = DEFAULT) -> None:
    """Label the tiles of a part from annotations or the sheet."""
    _run_job("label", config, {"cohort": cohort, "part": part})


@app.command()
def pixels(
    cohort: CohortName, part: PartName, config: ConfigFile = DEFAULT, threads: Threads = 1
) -> None:
    """Read and encode the tiles of a part, and estimate their stain profiles."""
    _run_job("pixels", config, {"cohort": cohort, "part": part}, threads)


@app.command()
def target(encoder: EncoderName, config: ConfigFile = DEFAULT, threads: Threads = 1) -> None:
    """Choose the stain target of an encoder from its training parts."""
    _run_job("target", config, {"encoder": encoder}, threads)


@app.command()
def pretrain(
    encoder: EncoderName, config: ConfigFile = DEFAULT, threads: Threads = 1, gpus: Gpus = 0
) -> None:
    """Train an encoder; an interrupted run resumes from its last checkpoint."""
    _run_job("pretrain", config, {"encoder": encoder}, threads, gpus=gpus)


@app.command()
def embed(
    cohort: CohortName,
    part: PartName,
    encoder: Annotated[list[str], typer.Option("--encoder", help="Encoder; may be repeated.")],
    config: ConfigFile = DEFAULT,
    threads: Threads = 1,
) -> None:
    """Embed the tiles of a part with one or several encoders, reading the tiles once."""
    _run_job("embed", config, {"cohort": cohort, "encoder": encoder, "part": part}, threads)


@app.command()
def folds(task: TaskName, config: ConfigFile = DEFAULT) -> None:
    """Draw the training, validation and test patients of a task."""
    _run_job("folds", config, {"task": task})


@app.command()
def probe(
    task: TaskName, encoder: EncoderName, config: ConfigFile = DEFAULT, threads: Threads = 1
) -> None:
    """Train and evaluate a linear probe on a tile task."""
    _run_job("probe", config, {"task": task, "encoder": encoder}, threads)


@app.command()
def finetune(
    task: TaskName, encoder: EncoderName, config: ConfigFile = DEFAULT, threads: Threads = 1
) -> None:
    """Fine-tune an encoder on the labels of a tile task; resumes if interrupted."""
    _run_job("finetune", config, {"task": task, "encoder": encoder}, threads)


@app.command()
def mil(
    task: TaskName,
    encoder: EncoderName,
    head: HeadName,
    config: ConfigFile = DEFAULT,
    threads: Threads = 1,
) -> None:
    """Train and evaluate a multiple-instance learning head on a slide or patient task."""
    _run_job("mil", config, {"task": task, "encoder": encoder, "head": head}, threads)


@app.command()
def robustness(
    encoder: Annotated[str | None, typer.Option("--encoder", help="Encoder of the config.")] = None,
    weights: Annotated[
        list[str] | None,
        typer.Option("--weights", help="Name or source of weights; may be repeated."),
    ] = None,
    tiles: Annotated[
        Path | None, typer.Option("--tiles", help="Folder of tile images, with --weights.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Output folder, with --weights.")] = Path(
        "robustness"
    ),
    folders: Annotated[
        str | None,
        typer.Option(
            "--folders",
            help="Meaning of the sub-folder levels: site, patient, label or -, such as"
            " site/patient; default: site.",
        ),
    ] = None,
    paired: Annotated[
        bool,
        typer.Option(
            "--paired", help="Tiles of the same name at several sites show the same tissue."
        ),
    ] = False,
    mpp: Annotated[
        float | None,
        typer.Option("--mpp", help="µm/px of the tiles; warns if it does not suit the encoder."),
    ] = None,
    stain_method: Annotated[
        str,
        typer.Option(
            "--stain-method", help="Re-staining method: reinhard, macenko, vahadane or ruifrok."
        ),
    ] = "reinhard",
    max_tiles: Annotated[
        int, typer.Option("--max-tiles", help="Maximum number of tiles to compare.")
    ] = 500,
    seed: Annotated[int, typer.Option("--seed", help="Seed for sampling tiles.")] = 0,
    config: ConfigFile = DEFAULT,
    threads: Annotated[
        int | None,
        typer.Option("--threads", help="Number of cores; default: 1, with --weights all (0)."),
    ] = None,
) -> None:
    """Measure robustness to stain, of an encoder of the config or of weights on a tile folder."""
    if weights and tiles and not encoder:
        asked = {"weights": weights, "tiles": tiles, "out": out, "paired": paired, "mpp": mpp}
        asked |= {"method": stain_method, "max_tiles": max_tiles, "seed": seed}
        return _robustness_on_tiles(asked, folders, threads or 0)
    if weights or tiles or not encoder:
        from stainssl.errors import StainsslError

        raise StainsslError(
            "Give --weights and --tiles, or --encoder, an encoder of the config: see"
            " docs/howto/robustness.md."
        )
    return _run_job("robustness", config, {"encoder": encoder}, 1 if threads is None else threads)


def _robustness_on_tiles(asked: dict[str, Any], folders: str | None, threads: int) -> None:
    _prepare_libraries(threads)
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    from stainssl.stages.tile_robustness import TileOptions, run

    levels = None if folders is None else [word for word in folders.split("/") if word]
    for line in run(TileOptions(levels=levels, **asked)):
        typer.echo(line)


@app.command()
def benchmark(benchmark: BenchmarkName, config: ConfigFile = DEFAULT, threads: Threads = 1) -> None:
    """Write the table and figures of a benchmark."""
    _run_job("benchmark", config, {"benchmark": benchmark}, threads)


@app.command()
def predict(
    task: TaskName,
    encoder: EncoderName,
    head: HeadName,
    sheet: Annotated[Path, typer.Option("--sheet", help="CSV with slide_id, patient_id, path.")],
    out: Annotated[Path, typer.Option("--out", help="Output folder.")],
    root: Annotated[
        Path, typer.Option("--root", help="Folder that paths in the sheet are relative to.")
    ] = Path("."),
    pictures: Annotated[bool, typer.Option(help="Also draw attention maps as pictures.")] = True,
    outside_root: Annotated[
        bool, typer.Option("--outside-root", help="Allow paths in the sheet outside --root.")
    ] = False,
    config: ConfigFile = DEFAULT,
    threads: Threads = 1,
) -> None:
    """Predict new slides with a trained task: tile, embed, and score with all fold models."""
    from stainssl.stages.predict import run

    names = {"task": task, "encoder": encoder, "head": head}
    loaded = _begin("predict", config, threads, names)
    run(
        loaded, **names, sheet=sheet, root=root, out=out, pictures=pictures,
        outside_root=outside_root,
    )  # fmt: skip


@app.command()
def export(
    to: Annotated[
        str, typer.Option("--to", help="Format: clam, trident, stamp, spatialdata or qupath.")
    ],
    cohort: CohortName,
    encoder: EncoderName,
    out: Annotated[Path, typer.Option("--out", help="Output folder.")],
    task: Annotated[
        str | None, typer.Option("--task", help="qupath: task whose attention is written.")
    ] = None,
    head: Annotated[
        str | None, typer.Option("--head", help="qupath: head whose attention is written.")
    ] = None,
    pictures: Annotated[bool, typer.Option(help="qupath: also draw attention maps.")] = True,
    config: ConfigFile = DEFAULT,
) -> None:
    """Write embeddings, or attention, in the format of another tool."""
    from stainssl.stages.export import run

    asked = {"cohort": cohort, "encoder": encoder, "task": task, "head": head}
    names = {option: name for option, name in asked.items() if name is not None}
    run(_begin("export", config, 1, names), to=to, out=out, pictures=pictures, **names)


@app.command("import")
def import_features(
    cohort: CohortName,
    encoder: EncoderName,
    part: Annotated[str | None, typer.Option("--part", help="Part; default: all.")] = None,
    config: ConfigFile = DEFAULT,
) -> None:
    """Import feature files of CLAM or TRIDENT (`features`) as embeddings of a cohort."""
    from stainssl.cohort import parts
    from stainssl.errors import StainsslError

    loaded = _begin("import", config, 1, {"cohort": cohort, "encoder": encoder})
    if loaded.run(encoder).encoder.features is None:
        raise StainsslError(f"encoders.{encoder} has no 'features: clam:FOLDER' to import.")
    for name in parts(loaded, cohort) if part is None else [part]:
        _run_job("embed", config, {"cohort": cohort, "encoder": encoder, "part": name})


@app.command(
    "run",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    options_metavar="[--config FILE] [SNAKEMAKE'S OPTIONS]",
)
def run_workflow(context: typer.Context) -> None:
    """Run the workflow in this folder; accepts `--config my.yaml` and all Snakemake options.

    Without `--config`, the file is config.yaml. `stainssl run -n` shows what would run,
    `stainssl run --cores all` runs it, `stainssl run --profile profiles/slurm` uses a cluster.
    `snakemake --help` lists the options; `--config KEY=VALUE` is passed on as well.
    """
    from stainssl.launch import run

    run(context.args)


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="Output folder; created if needed.")] = Path("."),
    demo: Annotated[bool, typer.Option("--demo", help="Write only the demo's config.")] = False,
) -> None:
    """Write a config to edit, an example sheet and profiles, without overwriting files."""
    from stainssl.launch import init as write_starters

    for path in write_starters(folder, demo):
        typer.echo(f"wrote {path}")


@app.command()
def view(
    results: Annotated[
        Path | None,
        typer.Argument(help="Output folder of `predict` or of a run, instead of --config."),
    ] = None,
    config: ConfigFile = DEFAULT,
    host: Annotated[
        str, typer.Option("--host", help="Host; if not loopback, access requires a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="Port; 0: any free port.")] = 8765,
    token: Annotated[
        bool,
        typer.Option(
            "--token", help="Require a token on loopback too, on machines with other users."
        ),
    ] = False,
    export: Annotated[
        Path | None, typer.Option("--export", help="Write static files to this folder instead.")
    ] = None,
    slide: Annotated[
        list[str] | None,
        typer.Option("--slide", help="Slide to export; may be repeated; default: all."),
    ] = None,
) -> None:
    """Show slides in a browser, with tissue, tiles, attention and stain as overlays."""
    from stainssl.view.run import run

    run(results, config, host, port, token, export, slide or [], typer.echo)


@app.command()
def slide(
    file: Annotated[Path, typer.Argument(help="Slide file.")],
    mpp: Annotated[
        float, typer.Option("--mpp", help="µm/px, if the slide states none or a wrong one.")
    ] = float("nan"),
    reader: Annotated[str, typer.Option("--reader", help="Reader, as `slides.reader`.")] = "auto",
    picture: Annotated[
        Path | None, typer.Option("--picture", help="PNG of tissue, ink and tiles to write.")
    ] = None,
    threads: Threads = 1,
) -> None:
    """Describe one slide, with the tissue and tiles found by the default tiling."""
    _prepare_libraries(threads)
    from stainssl.stages.slide import run

    for line in run(file, mpp, reader, picture):
        typer.echo(line)


@app.command()
def times(config: ConfigFile = DEFAULT) -> None:
    """Summarize job durations by rule, and write `results/times.html`."""
    from stainssl.figures.times import times_by_rule, times_page, times_text
    from stainssl.stores.atomic import write_text

    results = _load(config).results
    found = times_by_rule(results / "times", results / "logs")
    write_text(results / "times.html", times_page(found))
    typer.echo(times_text(found) if len(found) else "no job yet")
    typer.echo(f"{results / 'times.html'}")


@app.command()
def doctor() -> None:
    """Report installed packages, readers by format, the device, and problems."""
    from stainssl.doctor import report

    raise typer.Exit(report())


def main() -> None:
    """Run the command line; errors that the user can fix are printed, with exit code 1."""
    from stainssl.runtime.limits import exit_without_waiting
    from stainssl.runtime.orphans import end_with_snakemake

    end_with_snakemake()
    with exit_without_waiting():
        sys.exit(_exit_code())


def _exit_code() -> int:
    from stainssl.errors import StainsslError
    from stainssl.extras import advice, extra_of

    try:
        app()
    except StainsslError as error:
        for line in str(error).split("\n"):
            print(f"error: {line}", file=sys.stderr)
    except ModuleNotFoundError as error:
        if (extra := extra_of(error.name)) is None:
            raise
        print(f"error: {error.name} is not installed: {advice(extra)}", file=sys.stderr)
    return 1
