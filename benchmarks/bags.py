"""Speed of loading bags and of training heads, compared with .pt and h5 files and CLAM's own loop.

    OMP_NUM_THREADS=1 python benchmarks/bags.py WHAT --work FOLDER [--clam CLONE] [--slides N] ...

WHAT is one of

- `loading`: 64 slides of 10,000 tiles × 1,024 features from our store (parts of 32 slides, read as
  by `mil`), from one .pt file per slide (float16, and float32 as CLAM writes them) and from h5
  files with chunks of one row (as CLAM and TRIDENT write them), first after dropping them from the
  page cache (cold) and then again (warm).
- `epoch`: one epoch of gated attention on the same bags: CLAM's `train_loop_clam` with its CLAM_SB,
  reading .pt files (`--clam` is a clone of its repository), ours with the same width on all tiles,
  and ours with the config's defaults.
- `folds`: 5 folds × 5 repeats of one task, encoder and head on 200 slides of 5,000 tiles × 512
  features, through the command `mil`.
- `huge`: 6 bags of 500,000 tiles × 1,024 features through the command `mil`; the peak memory.

`--slides` and `--tiles` change the sizes. Features are random. Prints a table and writes
`bags-WHAT.json` to the work folder.
"""

from __future__ import annotations

import argparse
import ast
import json
import logging
import os
import shutil
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import torch
import yaml

from stainssl.config import Config, parse
from stainssl.mil.bags import Bag, SlideTiles
from stainssl.mil.targets import Classes
from stainssl.mil.train import HeadSettings, fit
from stainssl.plan import tasks as plan_tasks
from stainssl.stages import mil, run_stage
from stainssl.stores.embeddings import write_embeddings

RUNS, PART = 5, 32  # rounds; slides per part
SLIDES = {"loading": 64, "epoch": 48, "folds": 200, "huge": 6}
Rows = list[dict[str, Any]]


def vectors(rng: np.random.Generator, n: int, dim: int) -> np.ndarray:
    """(n, dim) float16; rows are repeated, since drawing random numbers is slow."""
    return np.resize(rng.normal(size=(min(n, 4096), dim)).astype(np.float16), (n, dim))


def write_store(path: Path, names: list[str], n: int, dim: int, rng: np.random.Generator) -> None:
    """Write a part of embeddings with `n` tiles per slide."""
    index = np.tile(np.arange(n), len(names))
    write_embeddings(
        path, slide_id=names, counts=[n] * len(names), dim=dim,
        blocks=(vectors(rng, n, dim) for _ in names), tile=index.astype(np.int32), x=index,
        y=index, settings={},
    )  # fmt: skip


def drop(path: Path) -> None:
    """Drop a file or folder from the page cache."""
    for file in [path] if path.is_file() else [f for f in path.rglob("*") if f.is_file()]:
        handle = os.open(file, os.O_RDONLY)
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def loading(work: Path, slides: int, tiles: int = 10_000, dim: int = 1024) -> Rows:
    rng, names = np.random.default_rng(0), [f"s{i}" for i in range(slides)]
    config = cohort(work, slides, tiles, dim, {"kind": "cv", "folds": 2})
    job = plan_tasks.mil(config, "her2", "e", "abmil")
    sheet = mil.labelled_slides(job.rows, job.label)
    for name in names:
        half = torch.from_numpy(vectors(rng, tiles, dim))
        torch.save(half, work / f"{name}-half.pt")
        torch.save(half.float(), work / f"{name}-single.pt")
        with h5py.File(work / f"{name}.h5", "w") as h5:
            h5.create_dataset("features", data=half.float().numpy(), chunks=(1, dim))

    def ours() -> None:  # also reads positions of tiles and drops tiles without a vector
        read = mil.slide_reader(job.embeddings, sheet)
        for name in names:
            read(name)

    def pt(kind: str) -> Callable[[], None]:
        def read() -> None:
            for name in names:
                torch.load(work / f"{name}-{kind}.pt")

        return read

    def h5() -> None:
        for name in names:
            with h5py.File(work / f"{name}.h5") as file:
                file["features"][:]

    readers: dict[str, tuple[Callable[[], Any], list[Path]]] = {
        "ours (float16)": (ours, [config.paths.results / "cohorts"]),
        ".pt float16": (pt("half"), [work / f"{n}-half.pt" for n in names]),
        ".pt float32": (pt("single"), [work / f"{n}-single.pt" for n in names]),
        "h5, a row a chunk": (h5, [work / f"{n}.h5" for n in names]),
    }
    found: dict[str, dict[str, list[float]]] = {n: {"cold": [], "warm": []} for n in readers}
    for _ in range(RUNS):  # alternating, so that other load on the machine affects all alike
        for name, (read, files) in readers.items():
            for file in files:
                drop(file)
            for kind in ("cold", "warm"):
                found[name][kind].append(seconds(read))
    return [
        {"reader": name} | {f"{kind} ms a slide": round(1e3 * statistics.median(s) / slides, 1)
                            for kind, s in times.items()}
        for name, times in found.items()
    ]  # fmt: skip


def clam_loop(clone: Path) -> tuple[Any, Any]:
    """CLAM's own model class and training loop, without the other imports of their files."""
    scope: dict[str, Any] = {"torch": torch, "np": np, "nn": torch.nn, "device": "cpu",
                             "F": torch.nn.functional}  # fmt: skip
    wanted = {
        clone / "models/model_clam.py": ("Attn_Net_Gated", "CLAM_SB"),
        clone / "utils/core_utils.py": ("Accuracy_Logger", "train_loop_clam"),
        clone / "utils/utils.py": ("calculate_error",),
    }
    for file, names in wanted.items():
        tree = ast.parse(file.read_text())
        kept = [node for node in tree.body if getattr(node, "name", None) in names]
        exec(compile(ast.Module(kept, []), str(file), "exec"), scope)
    return scope["CLAM_SB"], scope["train_loop_clam"]


def epoch(work: Path, slides: int, tiles: int = 2000, clone: Path | None = None) -> Rows:
    dim, rng = 1024, np.random.default_rng(0)
    index = np.arange(tiles)
    bags = []
    for i in range(slides):
        features = vectors(rng, tiles, dim)
        torch.save(torch.from_numpy(features.astype(np.float32)), work / f"{i}.pt")
        held = SlideTiles(features, index.astype(np.int32), index, index)
        bags.append(Bag(f"p{i}", "", "a", i % 2, (f"s{i}",), (held,)))

    def ours(**words: Any) -> float:
        def train(epochs: int) -> float:
            settings = HeadSettings(epochs=epochs, **words)
            return seconds(lambda: fit(bags, [], Classes(("0", "1")), settings, 0))

        return (train(3) - train(1)) / 2  # without the setup

    found: dict[str, list[float]] = {}
    wide = {"kind": "abmil", "hidden": 512, "max_tiles": tiles}
    for _ in range(3):
        if clone:
            found.setdefault("CLAM's loop, CLAM_SB", []).append(_clam_epoch(work, clone, slides))
        for name, words in {
            "ours, abmil, CLAM's width, all tiles": wide,
            "ours, clam, CLAM's width, all tiles": wide | {"kind": "clam"},
            "ours, abmil, defaults": {},
        }.items():
            found.setdefault(name, []).append(ours(**words))
    return [{"epoch of": n, "s": round(statistics.median(s), 2)} for n, s in found.items()]


def _clam_epoch(work: Path, clone: Path, slides: int) -> float:
    model_class, loop = clam_loop(clone)
    model = model_class(dropout=0.25)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-4, weight_decay=1e-5)

    class Bags(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return slides

        def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
            return torch.load(work / f"{i}.pt"), i % 2

    def collate(batch: list[tuple[torch.Tensor, int]]) -> list[torch.Tensor]:
        return [torch.cat([x for x, _ in batch]), torch.LongTensor([y for _, y in batch])]

    loader = torch.utils.data.DataLoader(Bags(), batch_size=1, shuffle=True, collate_fn=collate)
    loss = torch.nn.CrossEntropyLoss()
    return seconds(lambda: loop(0, model, loader, optimizer, 2, 0.7, None, loss))


def cohort(work: Path, slides: int, tiles: int, dim: int, split: dict[str, Any]) -> Config:
    """Write a sheet and embeddings of `slides` patients for the command `mil`."""
    rows = [{"slide_id": f"s{i}", "patient_id": f"p{i}", "path": "x", "her2": i % 2}
            for i in range(slides)]  # fmt: skip
    pd.DataFrame(rows).to_csv(work / "slides.csv", index=False)
    text = yaml.safe_dump({
        "results": str(work / "results"), "slides": {"part_size": PART},
        "cohorts": {"c": {"sheet": str(work / "slides.csv"), "root": str(work)}},
        "encoders": {"e": {"method": "random"}},
        "tasks": {"her2": {"level": "patient", "label": "her2", "cohorts": ["c"], "split": split}},
        "heads": {"abmil": {"kind": "abmil"}},
    })  # fmt: skip
    config = parse(yaml.safe_load(text))
    rng = np.random.default_rng(0)
    for part in range(-(-slides // PART)):
        names = [f"s{i}" for i in range(part * PART, min(slides, (part + 1) * PART))]
        path = config.paths.embeddings("c", "e", f"all-{part:04d}")
        write_store(path, names, tiles, dim, rng)
    run_stage("folds", config, "her2")
    return config


def run_folds(work: Path, slides: int, tiles: int = 5000, dim: int = 512) -> Rows:
    config = cohort(work, slides, tiles, dim, {"kind": "cv", "folds": 5, "repeats": 5})
    taken = seconds(lambda: run_stage("mil", config, "her2", "e", "abmil"))
    return [{"slides": slides, "tiles": tiles, "dim": dim, "models": 25, "s": round(taken, 1)}]


def huge(work: Path, slides: int, tiles: int = 500_000, dim: int = 1024) -> Rows:
    config = cohort(work, slides, tiles, dim, {"kind": "cv", "folds": 2})
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak memory
    taken = seconds(lambda: run_stage("mil", config, "her2", "e", "abmil"))
    peak = Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]
    size = slides * tiles * dim * 2 / 1e9
    return [{"bags": slides, "tiles": tiles, "dim": dim, "embeddings GB": round(size, 1),
             "most memory GB": round(int(peak) / 1e6, 1), "s": round(taken, 1)}]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["loading", "epoch", "folds", "huge"])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--clam", type=Path, help="a clone of CLAM's repository")
    parser.add_argument("--slides", type=int)
    parser.add_argument("--tiles", type=int, help="of a slide")
    words = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "0")) or os.cpu_count() or 1)
    folder = words.work / words.what
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    sizes = {"slides": words.slides or SLIDES[words.what]}
    sizes |= {"tiles": words.tiles} if words.tiles else {}
    runs: dict[str, Callable[..., Rows]] = {
        "loading": loading, "epoch": partial(epoch, clone=words.clam), "folds": run_folds,
        "huge": huge,
    }  # fmt: skip
    rows: Rows = runs[words.what](folder, **sizes)
    shutil.rmtree(folder)
    print(pd.DataFrame(rows).to_string(index=False))
    text = json.dumps({"torch_threads": torch.get_num_threads(), "rows": rows}, indent=1)
    (words.work / f"bags-{words.what}.json").write_text(text)


if __name__ == "__main__":
    main()
