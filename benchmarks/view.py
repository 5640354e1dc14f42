"""Speed of the viewer: first picture of a large slide, pictures per second, memory, bytes.

    OMP_NUM_THREADS=1 python -m benchmarks.view --work FOLDER
    python -m benchmarks.view --write

A separate process serves a slide of 40,000 × 40,000 px (written to FOLDER if it does not exist) and
a sheet of 10,000 rows on loopback. Pictures of all levels are requested as by a browser, two at a
time. This is repeated with three servers, and medians are reported. Writes
`benchmarks/results/view.json` and the table of docs/benchmarks.md; `--write` writes only the table.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks.large_slide import write
from benchmarks.machine import processor
from stainssl.stores.atomic import write_text
from stainssl.view.files import page_files
from stainssl.view.viewer_data import PICTURES_BYTES
from tools.pages import fill, marks

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "view.json"
PAGE = ROOT / "docs" / "benchmarks.md"
SIDE_PX, MPP = 40_000, 0.5
ROWS = 10_000  # of the sheet
AT_ONCE = 2  # concurrent requests
ASKED = 500  # pictures
SERVERS = 3
SEED = 0
# Quantity → name in the table, unit, target.
SHOWN = {
    "first_picture_ms": ("first image of the slide, with its metadata", "ms", "≤ 300"),
    "first_picture_cpu_ms": ("the same, in CPU time of the server", "ms", "≤ 300"),
    "pictures_per_s": ("images of 256 px per second, two at once", "", "≥ 100 on two"),
    "pictures_per_cpu_s": ("images per second of the server's CPU time", "", "≥ 50"),
    "beside_cache_mb": ("resident memory afterwards, without cached images", "MB", "≤ 300"),
    "bytes_kb": ("sent before the first image: page and table", "kB", "≤ 1,000"),
    "table_s": ("the table of 10,000 slides, to its last byte", "s", ""),
}  # fmt: skip


@contextmanager
def served(work: Path, slide: Path) -> Iterator[tuple[psutil.Process, str]]:
    """Run a server of a sheet whose first row is the slide; yields its process and address."""
    lines = [f"s0,p0,{slide.resolve()}", *(f"s{i},p{i},{i}.svs" for i in range(1, ROWS))]
    (work / "slides.csv").write_text("\n".join(["slide_id,patient_id,path", *lines]))
    (work / "config.yaml").write_text(f"cohorts: {{c: {{sheet: {work / 'slides.csv'}}}}}")
    verb = [sys.executable, "-m", "stainssl", "view", "--port", "0", "--config"]
    process = subprocess.Popen(
        [*verb, str(work / "config.yaml")], stdout=subprocess.PIPE, text=True, cwd=work
    )
    try:
        assert process.stdout
        address = next(line.strip() for line in process.stdout if line.startswith("http"))
        yield psutil.Process(process.pid), address
    finally:
        process.terminate()
        process.wait()


def first(geometry: dict[str, Any]) -> str:
    """The picture of the whole slide, which a browser requests first."""
    shrink = math.ceil(math.log2(max(geometry["width"], geometry["height"]) / geometry["picture"]))
    return f"pictures/picture/c/s0/{geometry['deepest'] - shrink}/0/0.jpg"


def names(geometry: dict[str, Any], count: int) -> list[str]:
    """Random pictures of all levels, at most `count`, more of the finer levels."""
    chosen: list[str] = []
    draw = random.Random(SEED)
    for level in range(geometry["deepest"], -1, -1):
        shrink = 2 ** (geometry["deepest"] - level) * geometry["picture"]
        columns, rows = -(-geometry["width"] // shrink), -(-geometry["height"] // shrink)
        every = [(c, r) for c in range(columns) for r in range(rows)]
        some = draw.sample(every, min(len(every), max(1, (count - len(chosen)) // 2)))
        chosen += [f"pictures/picture/c/s0/{level}/{c}/{r}.jpg" for c, r in some]
    draw.shuffle(chosen)
    return chosen


def asked(client: httpx.Client, name: str) -> httpx.Response:
    """Request a name; raises `httpx.HTTPStatusError` if it fails."""
    return client.get(name).raise_for_status()


def cpu_s(process: psutil.Process) -> float:
    """CPU time of a process so far."""
    times = process.cpu_times()
    return float(times.user + times.system)


def measure(address: str, process: psutil.Process) -> dict[str, float]:
    """Measure one server."""
    with httpx.Client(base_url=address, timeout=60) as client:
        page = [name for name in page_files() if name != "openseadragon-license.txt"]
        sent = sum(asked(client, n).num_bytes_downloaded for n in ["data/overview.json", *page])
        begun = time.perf_counter()
        sent += asked(client, "data/cohort/c.json").num_bytes_downloaded
        table_s = time.perf_counter() - begun
        begun, used = time.perf_counter(), cpu_s(process)
        description = asked(client, "data/slide/c/s0.json")
        geometry = description.json()["geometry"]
        asked(client, first(geometry))
        first_s, first_cpu_s = time.perf_counter() - begun, cpu_s(process) - used
        wanted = names(geometry, ASKED)
        begun, used = time.perf_counter(), cpu_s(process)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            sizes = [len(r.content) for r in pool.map(lambda name: asked(client, name), wanted)]
        rate, used = len(wanted) / (time.perf_counter() - begun), cpu_s(process) - used
    kept = min(sum(sizes), PICTURES_BYTES)
    return {
        "first_picture_ms": 1000 * first_s,
        "first_picture_cpu_ms": 1000 * first_cpu_s,
        "pictures_per_s": rate,
        "pictures_per_cpu_s": len(wanted) / used,
        "beside_cache_mb": (process.memory_info().rss - kept) / 1e6,
        "bytes_kb": (sent + description.num_bytes_downloaded) / 1e3,
        "table_s": table_s,
    }


def shown(value: float) -> str:
    """Format with three significant digits, or as a whole number from 100 on."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def section(found: dict[str, Any]) -> str:
    """Markdown table for docs/benchmarks.md."""
    cores = found["cores"]
    on = "one core" if cores == 1 else f"{cores} cores"
    shared = ", shared with other programs" if found["shared"] else ""
    head = "| quantity | value | target |\n|---|---|---|"
    rows = [
        f"| {name} | {shown(found['view'][key])} {unit} | {aim} |".replace("  |", " |")
        for key, (name, unit, aim) in SHOWN.items()
    ]
    said = f"Server and client process on {on} of {found['machine']}{shared}; median of {SERVERS}."
    return "\n".join(["", "", said, "", head, *rows, "", ""])


def measured(work: Path) -> dict[str, float]:
    """Medians over the servers."""
    slide = work / "large.svs"
    if not slide.exists():
        write(slide, SIDE_PX, MPP)
    runs: list[dict[str, float]] = []
    for _ in range(SERVERS):
        with served(work, slide) as (process, address):
            runs.append(measure(address, process))
        print(json.dumps(runs[-1]), flush=True)
    return {key: statistics.median(run[key] for run in runs) for key in SHOWN}


def main() -> None:
    """Measure and write the table, or write it only."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path())
    parser.add_argument("--shared", action="store_true", help="the cores are not this run's alone")
    parser.add_argument("--write", action="store_true")
    words = parser.parse_args()
    if not words.write:
        cores = len(os.sched_getaffinity(0))
        found = {"machine": processor(), "cores": cores, "shared": words.shared}
        found["view"] = measured(words.work.resolve())
        write_text(RESULTS, json.dumps(found, indent=1) + "\n")
    fill(PAGE, marks("view"), section(json.loads(RESULTS.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
