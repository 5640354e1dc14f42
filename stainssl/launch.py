"""Run the workflow from any folder: its files, the Snakemake command, and starter files."""

from __future__ import annotations

import csv
import os
import shlex
import sys
from base64 import urlsafe_b64encode
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

from stainssl.errors import StainsslError
from stainssl.runtime.orphans import STAT
from stainssl.stores.atomic import write_text

PACKAGE = Path(__file__).resolve().parent
CONFIG = "config.yaml"
# File of the workflow → file in the user's folder.
STARTERS = {
    "config/config.yaml": CONFIG,
    "config/slides.csv": "slides.csv",
    "profiles/local/config.yaml": "profiles/local/config.yaml",
    "profiles/slurm/config.yaml": "profiles/slurm/config.yaml",
}
LOGS_ONLY = "STAINSSL_LOGS_ONLY"  # environment variable: jobs write only to their log files
SHELL = 'set -euo pipefail; stainssl() {{{{ {call} -m stainssl "$@"; }}}}; {logged} '
PARENT = f"{STAT}=$(cat /proc/$PPID/stat 2>/dev/null) "  # the parent of a job's shell is Snakemake
# `logged FILE COMMAND ...`: output to a file, and also to the terminal without a progress bar.
LOGGED = (
    'logged() {{ local log="$1"; shift; if [ -n "${{' + LOGS_ONLY + ':-}}" ]; '
    'then "$@" > "$log" 2>&1; else "$@" 2>&1 | tee "$log"; fi; }};'
)
BAR = "--logger=stainssl"
OTHER_OUTPUT = ("--logger", "--verbose", "--dry-run", "--dryrun", "-n")
_RECORD_NAME = 254  # characters; Snakemake splits longer names of records
PLACES_OF_CONFIG = ("--configfile", "--configfiles", "--directory", "-d")


def workflow_files() -> Path:
    """Return the folder of `workflow/`, `config/` and `profiles/`, in the wheel or the clone."""
    bundled = PACKAGE / "bundled"
    return bundled if bundled.is_dir() else PACKAGE.parent


def snakemake_command(arguments: Sequence[str], folder: Path) -> list[str]:
    """Return the command that runs the workflow of this package.

    Args:
        arguments: options and targets of Snakemake, passed on unchanged, except that
            `--config my.yaml` becomes `--configfile my.yaml`.
        folder: working folder of the command.

    Raises:
        StainsslError: Snakemake is not installed, or there is no config file.
    """
    if find_spec("snakemake") is None:
        raise StainsslError("Snakemake is not installed: pip install 'stainssl[workflow]'")
    passed = _config_as_configfile(list(arguments))
    _check_config(passed, folder)
    snakefile = workflow_files() / "workflow" / "Snakefile"
    bar = [] if {word.split("=")[0] for word in passed} & {*OTHER_OUTPUT} else [BAR]
    return [sys.executable, "-m", "snakemake", "--snakefile", str(snakefile), *bar, *passed]


def _config_as_configfile(arguments: list[str]) -> list[str]:
    """Replace `--config FILE` and `--config=FILE` by Snakemake's `--configfile FILE`."""
    passed: list[str] = []
    for word, following in zip(arguments, [*arguments[1:], ""], strict=True):
        if word == "--config" and following and "=" not in following:
            passed.append("--configfile")
        elif word.startswith("--config=") and word.count("=") == 1:
            passed += ["--configfile", word.removeprefix("--config=")]
        else:
            passed.append(word)
    return passed


def _check_config(arguments: list[str], folder: Path) -> None:
    """Raise a `StainsslError` if there is no config file; Snakemake's message is less clear."""
    for word, following in pairwise(arguments):
        if word == "--configfile" and not (folder / following).is_file():
            raise StainsslError(f"--config: no such file {following}")
    if (folder / CONFIG).is_file() or any(w.split("=")[0] in PLACES_OF_CONFIG for w in arguments):
        return
    raise StainsslError(
        f"there is no {CONFIG} in {folder.resolve()}: `stainssl init` writes one, "
        "`stainssl init --demo` that of the demo; or name yours: --config my.yaml"
    )


def run(arguments: Sequence[str]) -> None:
    """Replace this process by Snakemake, with this workflow, in the working folder.

    Raises:
        StainsslError: as in `snakemake_command`.
    """
    command = snakemake_command(arguments, Path.cwd())
    os.execv(command[0], command)  # signals reach Snakemake, and the exit code is its own


def left_out(tables: Mapping[str, Path]) -> list[str]:
    """Return a sentence for each cohort with slides that are left out: how many, by status.

    Args:
        tables: cohort → its `slides.csv`; one that does not exist is skipped.
    """
    sentences = []
    for cohort, path in tables.items():
        if not path.is_file():
            continue
        with path.open(encoding="utf-8", newline="") as file:
            statuses = Counter(row["status"] for row in csv.DictReader(file))
        bad = [(count, status) for status, count in statuses.items() if status != "ok"]
        if bad:
            named = ", ".join(f"{count} {status}" for count, status in sorted(bad, reverse=True))
            total = sum(count for count, _ in bad)
            sentences.append(
                f"{cohort}: {total} of {statuses.total()} slides are left out ({named}):"
                f" the reasons are in {path}"
            )
    return sentences


def not_recorded(results: Path, folder: Path) -> str:
    """Return a warning if Snakemake has no record of how existing results were made.

    It then runs what is missing, but notices no change of the config since. This happens if
    `.snakemake` was deleted, or if results were moved or copied to another folder.

    Args:
        results: the results folder, as in the config.
        folder: working folder of the run.
    """
    records = folder / ".snakemake"
    place = folder / results
    found = [results / p.relative_to(place) for p in place.glob("cohorts/*/*/qc/*.parquet")]
    missing = [p for p in sorted(found) if not _is_recorded(records, str(p))]
    if not missing:
        return ""
    return (
        f"{results}: Snakemake has no record here of how {len(missing)} of {len(found)} tiled parts"
        f" were made, such as {missing[0]} (.snakemake was deleted, or the results were moved or"
        " copied): a change of the config since then is not noticed. Where it has changed, use"
        " another results folder, or --forceall."
    )


def _is_recorded(records: Path, path: str) -> bool:
    """Whether Snakemake has a record of an output, or is making it."""
    name = urlsafe_b64encode(path.encode()).decode()
    pieces = [name[i : i + _RECORD_NAME] for i in range(0, len(name), _RECORD_NAME)]
    place = Path(*(f"@{piece}" for piece in pieces[:-1]), pieces[-1])
    return any((records / kind / place).exists() for kind in ("metadata", "incomplete"))


def shell_prefix(deployment: Collection[str], results: Path) -> str:
    """Return a prefix for shell commands of jobs, which makes `stainssl VERB` call this package.

    Args:
        deployment: software deployment methods in use: conda, apptainer.
        results: the results folder.

    Returns:
        Shell code with braces doubled for Snakemake. A container has its own copy of the package;
        a conda environment has the dependencies and uses this copy; otherwise this Python is used.
        The prefix replaces Snakemake's shell options and repeats them, so that `verb | tee` fails
        if the verb does.
    """
    if "conda" in deployment:
        call = f"PYTHONPATH={quoted(_package_alone(results))} python"
    elif "apptainer" in deployment:
        call = "python"
    else:
        call = f"PYTHONPATH={quoted(PACKAGE.parent)} {quoted(sys.executable)}"
    parent = "" if "apptainer" in deployment else PARENT  # in a container it is another process
    return SHELL.format(call=parent + call, logged=LOGGED)


def quoted(path: Path | str) -> str:
    """Quote a path for a shell command that Snakemake formats."""
    return shlex.quote(str(path)).replace("{", "{{").replace("}", "}}")


def _package_alone(results: Path) -> Path:
    """Return a folder with this package but not the other packages installed beside it."""
    if not (PACKAGE / "bundled").is_dir():
        return PACKAGE.parent  # a clone
    folder = results.resolve() / ".package"
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / "stainssl"
    if not link.exists() or link.resolve() != PACKAGE:
        link.unlink(missing_ok=True)
        link.symlink_to(PACKAGE)
    return folder


def starter_texts(demo: bool) -> dict[str, str]:
    """Return file name → text of the starter files: config, sheet and profiles.

    Args:
        demo: only the demo's config.
    """
    files = workflow_files()
    if demo:
        return {CONFIG: (files / CONFIG).read_text()}
    texts = {name: (files / source).read_text() for source, name in STARTERS.items()}
    texts[CONFIG] = texts[CONFIG].replace("config/slides.csv", "slides.csv")
    return texts


def init(folder: Path, demo: bool = False) -> list[Path]:
    """Write a config to edit, an example sheet and profiles; return the files written.

    Args:
        folder: output folder, created if needed; other files in it are kept.
        demo: write only the demo's config, which needs no slides.

    Raises:
        StainsslError: one of the files exists already; then none is written.
    """
    texts = starter_texts(demo)
    if there := [name for name in texts if (folder / name).exists()]:
        raise StainsslError(f"{folder.resolve()} has {', '.join(there)} already: nothing written")
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_text(folder / name, text)
    return [folder / name for name in texts]
