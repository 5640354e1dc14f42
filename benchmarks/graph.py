"""Dry-run of a sheet of 10,000 slides, and Snakemake's overhead per job.

    python -m benchmarks.graph [--slides 10000] [--cores 2] [--subsample 20] [--no-run]
        [--demo] [--clone FOLDER] [--row NAME] [--json FILE]

The slides are empty files. The dry-run uses the Snakefile as it is, with the bytecode of all
modules compiled, as in an installed package. For the run, the workflow is copied and every shell
line is replaced by one that only creates the job's outputs, so that only Snakemake's own time is
measured.

`--demo` uses the demo's config instead. `--clone` measures another clone of the repository. `--row`
stores the results of the dry-run under that name in `benchmarks/results/graph.json`, and writes the
table of docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import yaml

from stainssl.stores.atomic import write_text
from tools.pages import fill, marks

REPO = Path(__file__).resolve().parent.parent
RESULTS, PAGE = REPO / "benchmarks" / "results" / "graph.json", REPO / "docs" / "benchmarks.md"
MAKE = (
    "for o in {output}; do case $o in *.zarr) mkdir -p $o;; *.*) touch $o;; *) mkdir -p $o;; esac;"
    " done"
)
ENCODERS = 6
TUMOR = {
    "type": "Feature",
    "properties": {"classification": {"name": "tumor"}},
    "geometry": {"type": "Polygon", "coordinates": [[[0, 0], [9, 0], [9, 9], [0, 0]]]},
}


def write_cohort(folder: Path, slides: int) -> None:
    """Write empty slides, their sheet, and a config of one cohort, six encoders and two tasks."""
    (folder / "slides").mkdir()
    (folder / "truth").mkdir()
    (folder / "truth" / "s00000.geojson").write_text(json.dumps(TUMOR))
    names = [f"s{i:05d}" for i in range(slides)]
    for name in names:
        (folder / "slides" / f"{name}.svs").touch()
    rows = pd.DataFrame(
        {"slide_id": names, "patient_id": [f"p{i // 2:05d}" for i in range(slides)]}
    )
    rows["path"] = "slides/" + rows["slide_id"] + ".svs"
    rows["site"] = [f"site-{i // 2 % 7}" for i in range(slides)]
    rows["split"] = [("train", "train", "test")[i // 2 % 3] for i in range(slides)]
    rows["her2"] = [i // 2 % 2 for i in range(slides)]
    rows.to_csv(folder / "slides.csv", index=False)
    encoders = {"simclr": {"method": "simclr", "train": {"cohorts": ["c"]}}}
    encoders |= {f"given-{i}": {"weights": f"resnet{i}"} for i in range(1, ENCODERS)}
    tasks = {
        "tumor": {"level": "tile", "label": "tumor", "cohorts": ["c"], "split": {"kind": "sheet"}},
        "her2": {"level": "patient", "label": "her2", "cohorts": ["c"]},
    }
    config = {
        "cohorts": {"c": {"sheet": "slides.csv", "annotations": "truth/{slide_id}.geojson"}},
        "encoders": encoders,
        "tasks": tasks,
        "heads": {"abmil": {"kind": "abmil"}},
        "benchmarks": {
            "main": {"tasks": list(tasks), "encoders": list(encoders), "heads": ["abmil"]}
        },
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


def copy_workflow(folder: Path) -> Path:
    """Copy the workflow, with shell lines that only create outputs; returns its Snakefile."""
    shutil.copy(REPO / "Snakefile", folder)
    for name in ("workflow", "stainssl"):
        shutil.copytree(REPO / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for file in (folder / "workflow" / "rules").glob("*.smk"):
        make = rf'\1shell:\n\1    "{MAKE}"\n'
        text = re.sub(r"(?m)^( +)shell:\n(?:\1    .*\n?)+", make, file.read_text())
        file.write_text(text)
    return folder / "Snakefile"


def run(
    snakefile: Path, folder: Path, given: argparse.Namespace, *words: str
) -> tuple[float, float, float, str]:
    """Run Snakemake.

    Returns:
        Elapsed seconds, CPU seconds, peak resident GB of all children so far, and the output.
    """
    command = [sys.executable, "-m", "snakemake", "-s", str(snakefile), "--directory", str(folder)]
    command += ["--configfile", str(folder / "config.yaml"), "--cores", str(given.cores)]
    command += ["--scheduler", "greedy", "--scheduler-subsample", str(given.subsample)]
    command += words
    env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    env |= {"PYTHONPYCACHEPREFIX": str(folder / "bytecode"), "PYTHONPATH": str(snakefile.parent)}
    home = snakefile.parent  # `python -m` also searches the working directory
    start, before = time.monotonic(), core_seconds()
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env, cwd=home)
    seconds = time.monotonic() - start
    if done.returncode:
        raise SystemExit(done.stdout[-2000:] + done.stderr[-2000:])
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
    return seconds, core_seconds() - before, peak, done.stdout + done.stderr


def core_seconds() -> float:
    """CPU seconds of finished children, less affected by other load than elapsed time."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def dry_run(folder: Path, given: argparse.Namespace) -> dict[str, float]:
    """Jobs, seconds, CPU seconds and GB of a dry-run, after a first call that compiles bytecode."""
    snakefile, words = given.clone / "Snakefile", ("-n", "--quiet", "rules")
    if given.demo:
        shutil.copy(given.clone / "config.yaml", folder)
    else:
        write_cohort(folder, given.slides)
    run(snakefile, folder, given, "--list-rules")
    seconds, used, peak, text = run(snakefile, folder, given, *words)
    jobs = int(re.findall(r"^total\s+(\d+)", text, re.M)[-1])
    return {"jobs": jobs, "s": round(seconds, 1), "core_s": round(used, 1), "gb": round(peak, 2)}


def section(found: dict[str, dict[str, float]]) -> str:
    """Markdown table of the dry-runs."""
    lines = ["| dry-run of | jobs | CPU seconds | memory |", "|---|---|---|---|"]
    lines += [
        f"| {name} | {row['jobs']:,} | {row['core_s']:.1f} | {row['gb']:.2f} GB |"
        for name, row in found.items()
    ]
    return "\n\n" + "\n".join(lines) + "\n\n"


def keep(name: str, found: dict[str, float]) -> None:
    """Add the results of a dry-run to the record, and write the table of the page."""
    kept = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    kept[name] = found
    write_text(RESULTS, json.dumps(kept, indent=1) + "\n")
    fill(PAGE, marks("graph"), section(kept))


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slides", type=int, default=10_000)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--subsample", type=int, default=20, help="ready jobs considered at once")
    parser.add_argument("--no-run", action="store_true")
    parser.add_argument("--demo", action="store_true")
    parser.add_argument("--clone", type=Path, default=REPO)
    parser.add_argument("--row")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main() -> None:
    given = arguments()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found = dry_run(folder, given)
        if given.row:
            keep(given.row, found)
        if not given.no_run:
            (folder / "copy").mkdir()
            snakefile = copy_workflow(folder / "copy")
            seconds, _, peak, _ = run(snakefile, folder, given, "--quiet", "all")
            found |= {"run_s": round(seconds, 1), "s_a_job": round(seconds / found["jobs"], 3)}
            found["run_gb"] = round(peak, 2)
    print("\n".join(f"{key:12} {value}" for key, value in found.items()))
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
