"""Embedding straight from the slides, compared with a pixel store that is written and then read.

    python -m benchmarks.streaming --work FOLDER
    python -m benchmarks.streaming --write

A part of eight slides of 12,288 px is tiled, then embedded by the commands as in the workflow, but
in this process, so that imports are not counted: `pixels` and `embed` of a stored cohort, and
`embed` of a streamed one. Both alternate, with two networks that cost little, and the median of the
rounds is reported. Embeddings must be equal. The first command writes
`benchmarks/results/streaming.json`, the second the table of `docs/benchmarks.md`.
"""

from __future__ import annotations

import os
import shutil
import statistics
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import yaml
from safetensors.torch import save_file

from benchmarks.evidence_table import table
from benchmarks.machine import processor
from benchmarks.threads import PART, measure_or_write, seconds, verb, write_cohorts
from stainssl.config import Config, load
from stainssl.stores.atomic import write_text
from stainssl.stores.embeddings import open_embeddings

REPO = Path(__file__).resolve().parent.parent
RESULTS = REPO / "benchmarks" / "results" / "streaming.json"
NETWORKS = ("test_resnet", "test_vit")
COHORT, ROUNDS, THREADS = "eight", 3, 2


def write_configs(work: Path) -> dict[str, Path]:
    """Write slides, networks with random weights, and a config per mode; returns mode → config."""
    keys = yaml.safe_load(write_cohorts(work).read_text(encoding="utf-8"))
    keys["encoders"] = {}
    for name in NETWORKS:
        torch.manual_seed(0)
        save_file(timm.create_model(name).state_dict(), work / f"{name}.safetensors")
        keys["encoders"][name] = {"weights": f"{name}@{work / name}.safetensors"}
    found = {}
    for mode in ("store", "stream"):
        keys["cohorts"][COHORT]["pixels"] = mode
        found[mode] = work / f"{mode}.yaml"
        write_text(found[mode], yaml.safe_dump(keys | {"results": str(work / mode)}))
    return found


def embed(config: Path, mode: str, network: str) -> None:
    """Embed the part as in the workflow, after its tiles have been stored if it is not streamed."""
    if mode == "store":
        verb("pixels", config, COHORT, THREADS)
    verb("embed", config, COHORT, THREADS, "--encoder", network)


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _vectors(config: Config, network: str) -> np.ndarray:
    store = open_embeddings(config.paths.embeddings(COHORT, network, PART))
    return store.read(slice(0, len(store)))


def measure(work: Path) -> dict[str, Any]:
    """Measure everything; returns the record."""
    configs = write_configs(work)
    for config in configs.values():
        verb("tile", config, COHORT, THREADS)
    stored, streamed = (load(config) for config in configs.values())
    store = stored.paths.pixels(COHORT, PART)
    rows = []
    for network in NETWORKS:
        taken: dict[str, list[float]] = {mode: [] for mode in configs}
        for _ in range(ROUNDS):
            shutil.rmtree(store, ignore_errors=True)
            for mode, config in configs.items():
                taken[mode].append(seconds(partial(embed, config, mode, network)))
        one, other = _vectors(stored, network), _vectors(streamed, network)
        median = {mode: statistics.median(every) for mode, every in taken.items()}
        rows.append({"network": network, "equal": bool(np.array_equal(one, other)), **median})
    return {
        "rows": rows,
        "tiles": len(one),
        "stored_bytes": _bytes(store),
        "streamed_bytes": _bytes(streamed.paths.pixels(COHORT, PART)),
        "machine": processor(),
        "cores": os.cpu_count(),
    }


def section(found: Mapping[str, Any]) -> str:
    """Markdown table of a record."""
    head = ["network", "`pixels`, then `embed`", "`pixels: stream`", "ratio", "equal embeddings"]
    rows = [
        [f"`{row['network']}`", f"{row['store']:.1f} s", f"{row['stream']:.1f} s",
         f"{row['store'] / row['stream']:.2f}", "yes" if row["equal"] else "no"]
        for row in found["rows"]
    ]  # fmt: skip
    lines = [
        f"{found['cores']} cores of {found['machine']}, {THREADS} threads; {found['tiles']:,} tiles"
        f" of 224 px. Tiles on the disk afterwards: {found['stored_bytes'] / 1e6:.0f} MB and"
        f" {found['streamed_bytes'] / 1e6:.0f} MB.",
        "",
        *table(head, rows),
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure, or write the table."""
    torch.set_num_threads(THREADS)
    measure_or_write(__doc__ or "", RESULTS, measure, section)


if __name__ == "__main__":
    main()
