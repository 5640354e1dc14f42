"""Ten slides to embeddings on disk: stainssl, TRIDENT, slide2vec, lazyslide and CLAM's scripts.

    python -m benchmarks.end_to_end --work FOLDER [--rivals FOLDER] [--slides 10] [--rounds 3]
    python -m benchmarks.end_to_end --write

`--rivals` is a folder with an environment per tool (`trident/`, `slide2vec/`, `lazyslide/`,
`clam/`) and clones of TRIDENT's and CLAM's repositories, named with their commits
(`TRIDENT-a91fa84/`). Slides of 10,000 px are made once in the work folder. The tools run
alternately, each in its own process (settings: `end_to_end_tool.py`), and the median over rounds is
reported. Some embeddings of each tool are compared with our encoder's at the same positions. The
first command writes `benchmarks/results/end_to_end.json`, the second the table of
`docs/benchmarks.md`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import timm
import torch
from safetensors.torch import save_file

from benchmarks import large_slide
from benchmarks.end_to_end_tool import MPP, NETWORK, SIDE_PX, TOOLS
from benchmarks.evidence_table import table
from benchmarks.machine import processor
from stainssl.encoders.loading import load
from stainssl.slides.readers import open_slide
from stainssl.slides.scale import read_square
from stainssl.stores.atomic import write_text
from tools.pages import fill, marks

REPO = Path(__file__).resolve().parent.parent
RESULTS = REPO / "benchmarks" / "results" / "end_to_end.json"
PAGE = REPO / "docs" / "benchmarks.md"
SLIDE_PX, COMPARED = 10_000, 4  # side of a slide; tiles per slide whose embeddings are compared
CLONES = {"trident": "TRIDENT-*", "clam": "CLAM-*"}
OURS = "stainssl"
Rounds = dict[str, list[dict[str, Any]]]


def prepare(work: Path, count: int) -> None:
    """Write the slides that do not exist yet, and the network."""
    (work / "slides").mkdir(parents=True, exist_ok=True)
    for seed in range(count):
        path = work / "slides" / f"s{seed}.svs"
        if not path.exists():
            large_slide.write(path, SLIDE_PX, MPP, seed=seed)
    torch.manual_seed(0)
    network = timm.create_model(NETWORK, num_classes=0)
    save_file(network.state_dict(), work / "network.safetensors")


def command(tool: str, work: Path, rivals: Path) -> list[str] | None:
    """The command that runs a tool, or None if it is not installed."""
    python = Path(sys.executable) if tool == OURS else rivals / tool / "bin" / "python"
    clones = sorted(rivals.glob(CLONES[tool])) if tool in CLONES else []
    if not python.exists() or (tool in CLONES and not clones):
        return None
    script = Path(__file__).with_name("end_to_end_tool.py")
    words = [str(python), "-P", str(script), tool, str(work)]  # -P: not this folder's modules
    return [*words, *(f"--clone={clone}" for clone in clones[:1])]


def run(tool: str, words: list[str]) -> dict[str, Any]:
    """Run a tool; returns its JSON, with the seconds of the whole process as `process_s`."""
    environment = os.environ | {"OMP_NUM_THREADS": str(len(os.sched_getaffinity(0)))}
    environment["PYTHONPATH"] = str(REPO) if tool == OURS else ""
    start = time.perf_counter()
    done = subprocess.run(
        words, capture_output=True, text=True, check=False, env=environment, cwd=words[4]
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{tool} failed:\n{done.stderr[-3000:]}")
    account: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return account | {"process_s": time.perf_counter() - start}


def cosines(tool: str, work: Path) -> list[float]:
    """Cosines of some embeddings of a tool to those of our encoder at the same positions."""
    found = np.load(work / tool / "vectors.npz")
    encoder, said = load(f"{NETWORK}@{work / 'network.safetensors'}"), []
    for name in sorted({key.rpartition("/")[0] for key in found}):
        corners, vectors = found[f"{name}/0"], found[f"{name}/1"].astype(np.float32)
        rows = np.linspace(0, len(corners) - 1, COMPARED).astype(int)
        with open_slide(work / "slides" / f"{name}.svs") as slide:
            places = corners[rows].astype(int).tolist()
            images = [read_square(slide, x, y, SIDE_PX, SIDE_PX) for x, y in places]
        ours = encoder(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)).numpy()
        theirs = vectors[rows] / np.linalg.norm(vectors[rows], axis=1, keepdims=True)
        said += (theirs * ours / np.linalg.norm(ours, axis=1, keepdims=True)).sum(axis=1).tolist()
    return said


def measure(work: Path, rivals: Path, tools: list[str], rounds: int) -> dict[str, Any]:
    """Run every installed tool, alternately; returns the record."""
    known = {tool: command(tool, work, rivals) for tool in tools}
    found: Rounds = {tool: [] for tool, words in known.items() if words}
    for tool in known.keys() - found.keys():
        print(f"{tool}: no environment or clone in {rivals}")
    for number in range(rounds):
        for tool, done in found.items():
            words = known[tool]
            assert words
            done.append(run(tool, words))
            print(f"round {number + 1}, {tool}: {done[-1]}", flush=True)
    return {
        "tools": [summary(tool, done, cosines(tool, work)) for tool, done in found.items()],
        "slides": len(list((work / "slides").iterdir())), "side_px": SLIDE_PX, "network": NETWORK,
        "rounds": rounds, "machine": processor(), "cores": len(os.sched_getaffinity(0)),
    }  # fmt: skip


def summary(tool: str, rounds: list[dict[str, Any]], same: list[float]) -> dict[str, Any]:
    """Summarize the rounds of a tool by their medians, and its lowest cosine."""
    middle = {
        key: statistics.median(one[key] for one in rounds) for key in ("seconds", "process_s")
    }
    return {"tool": tool, **rounds[0], **middle, "least_cosine": min(same)}


def section(found: Mapping[str, Any]) -> str:
    """Markdown table of a record."""
    tools = {row["tool"]: row for row in found["tools"]}
    ours = tools[OURS]
    rows = [
        [
            f"{name} {row['version']}", f"{row['tiles']:,}", f"{row['seconds']:.1f}",
            f"{row['tiles'] / row['seconds']:.0f}", f"{row['process_s']:.1f}",
            f"{row['seconds'] / ours['seconds']:.1f}",
            f"{(ours['tiles'] / ours['seconds']) / (row['tiles'] / row['seconds']):.1f}",
            f"{row['least_cosine']:.4f}",
        ]
        for name, row in tools.items()
    ]  # fmt: skip
    head = [
        "tool",
        "tiles",
        "seconds",
        "tiles per second",
        "seconds including imports",
        "time relative to stainssl",
        "stainssl's speed-up in tiles per second",
        "lowest cosine to stainssl",
    ]
    lines = [
        f"{found['slides']} slides of {found['side_px']:,} px, tiles of {SIDE_PX} px at {MPP}"
        f" µm/px, `{found['network']}` with random weights; {found['cores']} cores of"
        f" {found['machine']}, {found['rounds']} round(s), alternating; median.",
        "",
        *table(head, rows),
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure, or write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--work", type=Path)
    parser.add_argument("--rivals", type=Path, default=Path())
    parser.add_argument("--tools", default=",".join(TOOLS))
    parser.add_argument("--slides", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    cv2.setNumThreads(1)
    if given.work:
        work = given.work.resolve()
        prepare(work, given.slides)
        found = measure(work, given.rivals.resolve(), given.tools.split(","), given.rounds)
        write_text(RESULTS, json.dumps(found, indent=1) + "\n")
    if given.write:
        made = section(json.loads(RESULTS.read_text(encoding="utf-8")))
        fill(PAGE, marks(RESULTS.stem), f"\n\n{made}\n")


if __name__ == "__main__":
    main()
