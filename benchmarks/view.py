"""How quick the page is: first picture of a large slide, pictures a second, memory, bytes.

    OMP_NUM_THREADS=1 python benchmarks/view.py SLIDE.svs [--rows 10000] [--out view.json]

SLIDE.svs: as `benchmarks/large_slide.py` writes. Serves it on loopback from a process of its own
and asks for pictures of its levels as a browser would, two at a time. Memory is the server's after
all pictures, its caches included.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil

from stainssl.view.contents import PICTURES_BYTES
from stainssl.view.files import page_files

AT_ONCE = 2
ASKED = 1000  # pictures
SEED = 0


def served(folder: Path, slide: Path, rows: int) -> tuple[subprocess.Popen[str], str]:
    """The server over a sheet of `rows` rows, the first of which is the slide; its address."""
    lines = [f"s0,p0,{slide.resolve()}", *(f"s{i},p{i},{i}.svs" for i in range(1, rows))]
    (folder / "slides.csv").write_text("\n".join(["slide_id,patient_id,path", *lines]))
    (folder / "config.yaml").write_text(f"cohorts: {{c: {{sheet: {folder / 'slides.csv'}}}}}")
    verb = [sys.executable, "-m", "stainssl", "view", "--port", "0", "--config"]
    process = subprocess.Popen(
        [*verb, str(folder / "config.yaml")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    for line in process.stdout:
        if line.startswith("http"):
            return process, line.strip()
    raise RuntimeError("the server did not start")


def names(geometry: dict[str, int], count: int) -> list[str]:
    """Pictures of all levels, as many of each as there are or as fit."""
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


def measure(address: str, process: subprocess.Popen[str]) -> dict[str, float]:
    """What the server does."""
    with httpx.Client(base_url=address, timeout=60) as client:
        size = sum(len(client.get(name).content) for name in page_files() if name != "icon.svg")
        table = client.get("data/cohort/c.json")
        sent = int(table.headers.get("content-length", len(table.content)))
        begun = time.perf_counter()
        geometry = client.get("data/slide/c/s0.json").json()["geometry"]
        asked = names(geometry, ASKED)
        client.get(min(asked, key=lambda name: int(name.split("/")[4]))).raise_for_status()
        first_s = time.perf_counter() - begun
        begun = time.perf_counter()
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for response in pool.map(client.get, asked):
                response.raise_for_status()
        rate = len(asked) / (time.perf_counter() - begun)
    resident = psutil.Process(process.pid).memory_info().rss
    return {
        "first_picture_ms": 1000 * first_s,
        "pictures_per_s": rate,
        "resident_mb": resident / 1e6,
        "picture_cache_mb": PICTURES_BYTES / 1e6,
        "page_files_kb": size / 1e3,
        "table_kb": sent / 1e3,
    }


def main() -> None:
    """Serve, ask, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("slide", type=Path)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        process, address = served(Path(folder), asked.slide, asked.rows)
        try:
            found = measure(address, process)
        finally:
            process.terminate()
    text = json.dumps(found, indent=1)
    print(text)
    if asked.out:
        asked.out.write_text(text)


if __name__ == "__main__":
    main()
