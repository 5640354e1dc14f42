"""Speed-up of `tile`, `pixels` and embedding by a second thread, and utilization of fast devices.

    python -m benchmarks.threads --work FOLDER
    python -m benchmarks.threads --write

A part of eight slides of 12,288 px and a part of one slide of 40,000 px are processed by the
commands as in the workflow, but in this process, so that imports are not counted. One and two
threads alternate, on as many cores as threads (since a job with one thread reads ahead if it has
another core), and the median of the rounds is reported. Embedding is measured with a network that
takes no time, compared with decoding alone in as many threads, and with one that sleeps as long as
a device of 2,000 or 8,000 tiles per second would compute; its utilization should be near 1. The
first command writes `benchmarks/results/threads.json`, the second the table of
`docs/benchmarks.md`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import torch
import yaml
from typer.main import get_command

from benchmarks import large_slide
from benchmarks.embed import store
from benchmarks.evidence_table import table
from benchmarks.machine import processor
from stainssl.cli import app
from stainssl.encoders.embedding import embed_pixels
from stainssl.encoders.loading import LoadedEncoder
from stainssl.runtime.parallel import set_job_threads
from stainssl.stores.atomic import write_text
from stainssl.stores.pixels import Pixels, decode
from tools.pages import fill, marks

COMMAND = get_command(app)  # made once, since it is part of the start of a process
REPO = Path(__file__).resolve().parent.parent
RESULTS = REPO / "benchmarks" / "results" / "threads.json"
PAGE = REPO / "docs" / "benchmarks.md"
COHORTS = {"eight": (8, 12_288), "one": (1, 40_000)}  # slides, side in px
AIMS = {"eight": 1.8, "one": 1.7}
DEVICES = (2_000, 8_000)  # tiles per second
PART = "all-0000"
TILES, SIDE_PX, ROUNDS = 4_096, 224, 2
PROCESS_ROUNDS = 9
THREADS = (1, 2)


class SleepingNetwork(torch.nn.Module):
    """Network that sleeps for `seconds_a_tile` per tile, as if computing on a device.

    Attributes:
        asked_s: total seconds in `forward`.
    """

    def __init__(self, seconds_a_tile: float) -> None:
        super().__init__()
        self.seconds_a_tile, self.asked_s = seconds_a_tile, 0.0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return ones, (B, 8), for images (B, 3, H, W)."""
        start = time.perf_counter()
        time.sleep(len(images) * self.seconds_a_tile)
        self.asked_s += time.perf_counter() - start
        return torch.ones(len(images), 8)


class Unprepared(LoadedEncoder):
    """Encoder without preprocessing, to measure only how it is supplied with tiles."""

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Return (B, 8) for images (B, 3, H, W) uint8."""
        return self.model(images)


def encoder(seconds_a_tile: float = 0.0) -> tuple[LoadedEncoder, SleepingNetwork]:
    """An encoder that sleeps for some seconds per tile, and its network."""
    network = SleepingNetwork(seconds_a_tile)
    zeros = torch.zeros(1, 3, 1, 1)
    cpu = torch.device("cpu")
    return Unprepared(network, 8, SIDE_PX, zeros, zeros + 1, "bilinear", cpu), network


def write_cohorts(work: Path) -> Path:
    """Write slides, sheets and a config; returns its path."""
    cohorts = {}
    for name, (count, side) in COHORTS.items():
        paths = [work / "slides" / f"{name}-{i}.svs" for i in range(count)]
        paths[0].parent.mkdir(parents=True, exist_ok=True)
        for seed, path in enumerate(paths):
            if not path.exists():
                large_slide.write(path, side, seed=seed)
        rows = {"slide_id": [p.stem for p in paths], "patient_id": [p.stem for p in paths]}
        sheet = pd.DataFrame(rows | {"path": [str(p) for p in paths]})
        sheet.to_csv(work / f"{name}.csv", index=False)
        cohorts[name] = {"sheet": str(work / f"{name}.csv")}
    config = {
        "results": str(work / "results"), "slides": {"part_size": 8}, "cohorts": cohorts,
        "tilings": {"default": {"mpp": 0.5, "size": 224}},
    }  # fmt: skip
    write_text(work / "config.yaml", yaml.safe_dump(config))
    return work / "config.yaml"


def verb(name: str, config: Path, cohort: str, threads: int, *more: str) -> None:
    """Run a command on the only part of a cohort, as in the workflow, with further arguments."""
    words = [name, "--config", str(config), "--cohort", cohort, "--part", PART]
    COMMAND([*words, "--threads", str(threads), *more], standalone_mode=False)


def seconds(run: Callable[[], Any]) -> float:
    """Duration of a call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def on_cores(count: int) -> None:
    """Restrict all threads of this process to the first cores."""
    for thread in os.listdir("/proc/self/task"):
        with suppress(ProcessLookupError):  # the thread has ended
            os.sched_setaffinity(int(thread), set(range(count)))


def by_turns(run: Callable[[int], Any]) -> dict[int, float]:
    """Threads → median seconds of `run(threads)`, after a warm-up round."""
    run(THREADS[-1])
    found: dict[int, list[float]] = {threads: [] for threads in THREADS}
    for _ in range(ROUNDS):
        for threads, taken in found.items():
            on_cores(threads)
            taken.append(seconds(partial(run, threads)))
    on_cores(THREADS[-1])
    return {threads: statistics.median(taken) for threads, taken in found.items()}


def _in_own_process(config: Path, core: int) -> float:
    """Median seconds of `tile` of the eight slides on one core, into its own results."""
    os.sched_setaffinity(0, {core})
    cv2.setNumThreads(1)
    keys = yaml.safe_load(config.read_text(encoding="utf-8"))
    own = config.with_name(f"process-{core}.yaml")
    write_text(own, yaml.safe_dump(keys | {"results": f"{keys['results']}-{core}"}))
    run = partial(verb, "tile", own, "eight", 1)
    run()  # counts for nothing
    return statistics.median(seconds(run) for _ in range(PROCESS_ROUNDS))


def side_by_side(config: Path) -> dict[int, float]:
    """Number of processes that run at the same time → median seconds of each, for one part."""
    found = {}
    for count in THREADS:
        with ProcessPoolExecutor(count, get_context("spawn")) as pool:
            each = list(pool.map(partial(_in_own_process, config), range(count)))
        found[count] = statistics.mean(each)
    return found


def embedded(pixels: Pixels, threads: int, seconds_a_tile: float = 0.0) -> float:
    """Embed a store with some threads; returns the seconds spent in the network."""
    set_job_threads(threads)
    one, network = encoder(seconds_a_tile)
    for _ in embed_pixels([one], pixels):
        pass
    return network.asked_s


def decoded(pixels: Pixels, threads: int) -> None:
    """Decode all tiles and do nothing else, in some threads."""
    jpegs = pixels.jpegs(0, len(pixels))

    def work(rows: np.ndarray) -> None:
        image = np.empty((pixels.size_px, pixels.size_px, 3), np.uint8)
        for row in rows:
            decode(jpegs[row], image)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, np.array_split(np.arange(len(jpegs)), threads)))


def fed(pixels: Pixels, rate: int) -> dict[str, float]:
    """Utilization of a device of `rate` tiles per second with two decoding threads."""
    seconds_a_tile, asked, whole = 1 / rate, [], []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        asked.append(embedded(pixels, THREADS[-1], seconds_a_tile))
        whole.append(time.perf_counter() - start)
    return {"busy": statistics.median(np.divide(asked, whole)), "tiles_per_s": rate}


def measure(work: Path) -> dict[str, Any]:
    """Measure everything; returns the record, in seconds by number of threads."""
    config = write_cohorts(work)
    found: dict[str, Any] = {}
    for cohort in COHORTS:
        for name in ("tile", "pixels"):
            found[f"{name} {cohort}"] = by_turns(partial(verb, name, config, cohort))
    found["processes"] = side_by_side(config)
    pixels = store(work / "tiles.zarr", TILES, SIDE_PX)
    found["embed"] = by_turns(partial(embedded, pixels))
    found["decode"] = by_turns(partial(decoded, pixels))
    found["fed"] = [fed(pixels, rate) for rate in DEVICES]
    return found | {
        "tiles": TILES,
        "side_px": SIDE_PX,
        "machine": processor(),
        "cores": os.cpu_count(),
    }


def section(found: Mapping[str, Any]) -> str:
    """Markdown table of a record."""
    one, two = (str(threads) for threads in THREADS)
    rows = [
        [f"`{name}`, {_what(cohort)}", _gain(found[f"{name} {cohort}"]), f"≥ {AIMS[cohort]}"]
        for cohort in COHORTS
        for name in ("tile", "pixels")
    ]
    embed, decode_alone = found["embed"], found["decode"]
    alone, each = (found["processes"][count] for count in (one, two))
    rows += [
        ["two jobs of `tile` at the same time relative to one after the other, one thread each",
         f"{2 * alone / each:.2f} ({2 * alone:.1f} s, {each:.1f} s)", ""]
    ]  # fmt: skip
    rows += [
        ["`embed`, a network that costs nothing", _gain(embed), "≥ 1.8"],
        *(
            [f"the same relative to decoding alone, {n} thread(s)",
             f"{decode_alone[n] / embed[n]:.2f}", "≥ 0.9"]
            for n in (one, two)
        ),
        *(
            [f"utilization of a device of {row['tiles_per_s']:,} tiles/s, decoding at "
             f"{found['tiles'] / decode_alone[two]:,.0f}", f"{row['busy']:.2f}",
             "≥ 0.95 if decoding allows it"]
            for row in found["fed"]
        ),
    ]  # fmt: skip
    head = ["two threads relative to one", "speed-up (seconds)", "target"]
    lines = [
        f"{found['cores']} cores of {found['machine']}; tiles of {found['side_px']} px.",
        "",
        *table(head, rows),
    ]
    return "\n".join(lines)


def _what(cohort: str) -> str:
    count, side = COHORTS[cohort]
    return f"{count} slide{'s' if count > 1 else ''} of {side:,} px"


def _gain(seconds_by_threads: Mapping[str, float]) -> str:
    one, two = (seconds_by_threads[str(threads)] for threads in THREADS)
    return f"{one / two:.2f} ({one:.1f} s, {two:.1f} s)"


def measure_or_write(
    doc: str, results: Path, measure: Callable[[Path], Any], section: Callable[[Any], str]
) -> None:
    """Command line of a benchmark: `--work FOLDER` measures, `--write` writes the page's table."""
    parser = argparse.ArgumentParser(description=doc.split("\n")[0])
    parser.add_argument("--work", type=Path)
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    cv2.setNumThreads(1)
    if given.work:
        given.work.mkdir(parents=True, exist_ok=True)
        write_text(results, json.dumps(measure(given.work.resolve()), indent=1) + "\n")
    if given.write:
        made = section(json.loads(results.read_text(encoding="utf-8")))
        fill(PAGE, marks(results.stem), f"\n\n{made}\n")


def main() -> None:
    """Measure, or write the table."""
    torch.set_num_threads(1)
    measure_or_write(__doc__ or "", RESULTS, measure, section)


if __name__ == "__main__":
    main()
