"""Embedding and training on a CPU, by how the memory of tensors is allocated.

    python -m benchmarks.allocation --work FOLDER
    python -m benchmarks.allocation --write

By default glibc returns the memory of each large tensor to the system, which maps and zeroes pages
of 4 kB again at the next step. With `THP_MEM_ALLOC_ENABLE=1` PyTorch asks for pages of 2 MB, as all
jobs of this package do; and variables of glibc (mallopt(3)) make the process keep its memory. Each
measurement is a process of its own with one thread and four steps of a network on tiles in memory,
of which the first is not counted. The first command writes `benchmarks/results/allocation.json`,
the second the table of `docs/benchmarks.md`.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch

from benchmarks.evidence_table import table
from benchmarks.machine import processor
from benchmarks.threads import measure_or_write
from stainssl.pretrain.depthwise import speed_up

REPO = Path(__file__).resolve().parent.parent
RESULTS = REPO / "benchmarks" / "results" / "allocation.json"
# What is done, timm architecture, images per step, side in px.
CASES = (
    ("embedding", "tf_efficientnet_lite0", 64, 224),
    ("embedding", "vit_small_patch16_224", 64, 224),
    ("training", "tf_efficientnet_lite0", 128, 64),
    ("training", "tf_efficientnet_lite0", 128, 128),
    ("training", "resnet18", 128, 128),
)
STEPS = 4
# Column of the table → environment variables.
MODES = {
    "4 kB pages": {"THP_MEM_ALLOC_ENABLE": "0"},
    "2 MB pages": {"THP_MEM_ALLOC_ENABLE": "1"},
    "kept": {
        "THP_MEM_ALLOC_ENABLE": "0", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "-1"
    },
}  # fmt: skip


def one_process(case: str) -> None:
    """Print seconds per step and peak memory (bytes) of a case, as JSON."""
    what, name, count, side = CASES[int(case)]
    torch.set_num_threads(1)
    torch.manual_seed(0)
    is_training = what == "training"
    network = timm.create_model(name, num_classes=0).to(memory_format=torch.channels_last)
    network.train(is_training)
    speed_up(network)
    images = torch.rand(count, 3, side, side).to(memory_format=torch.channels_last)
    taken = []
    for _ in range(STEPS):
        start = time.perf_counter()
        with torch.set_grad_enabled(is_training):
            vectors = network(images)
        if is_training:
            vectors.square().mean().backward()
        taken.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": statistics.median(taken[1:]), "peak": peak}))


def measure(_work: Path) -> dict[str, Any]:
    """Measure all cases in all modes."""
    rows = []
    for number, (what, name, count, side) in enumerate(CASES):
        row = {"what": what, "network": name, "count": count, "side": side}
        rows.append(row | {mode: run(number, mode) for mode in MODES})
    return {"rows": rows, "machine": processor()}


def run(number: int, mode: str) -> dict[str, float]:
    """Run a case in a process with the environment variables of a mode."""
    variables = os.environ | MODES[mode] | {"CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "benchmarks.allocation", "case", str(number)]
    ran = subprocess.run(command, env=variables, stdout=subprocess.PIPE, check=True, cwd=REPO)
    found: dict[str, float] = json.loads(ran.stdout)
    return found


def section(found: Mapping[str, Any]) -> str:
    """Markdown table of a record."""
    head = ["seconds per step, peak memory", "images per step", *MODES]
    rows = [
        [
            f"{row['what']}, `{row['network']}`", f"{row['count']} of {row['side']} px",
            *(f"{row[mode]['seconds']:.2f} s, {row[mode]['peak'] / 1e9:.1f} GB" for mode in MODES),
        ]
        for row in found["rows"]
    ]  # fmt: skip
    return "\n".join([f"One thread of {found['machine']}.", "", *table(head, rows)])


def main() -> None:
    """Measure, or write the table."""
    if sys.argv[1:2] == ["case"]:
        one_process(sys.argv[2])
    else:
        measure_or_write(__doc__ or "", RESULTS, measure, section)


if __name__ == "__main__":
    main()
