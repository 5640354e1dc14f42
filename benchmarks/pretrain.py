"""Speed of pretraining: cost of the stain target, lightly's SimCLR, loader and scale.

    OMP_NUM_THREADS=1 python benchmarks/pretrain.py REAL_DATA [--only step lightly loader scale]

`step`: a step of `stain-invariant` compared with one of `simclr` on the same tiles, alternating.
`lightly`: images per second of our SimCLR compared with lightly's own example (its SimCLRTransform
on PIL images in a DataLoader, its loss and head) on the same tiles and backbone, on all cores.
`loader`: tiles per second of the shuffled loader compared with decoding alone in as many threads.
`scale`: time and memory to open 1,000 stores with 10 million tiles, and to draw an epoch's order.
Prints a table and writes `pretrain.json`. Compare ratios between machines, not seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from lightly.loss import NTXentLoss
from lightly.models.modules import SimCLRProjectionHead
from lightly.transforms import SimCLRTransform
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from stainssl.encoders.loading import new_backbone, vector_length
from stainssl.pretrain.data import Batch, Stream, TrainTiles
from stainssl.pretrain.methods import (
    PRETRAINING_METHODS,
    NormalizerState,
    StainTargets,
    ViewSettings,
)
from stainssl.pretrain.objectives import OBJECTIVES
from stainssl.pretrain.train import Learner, Preprocessing, TrainSettings
from stainssl.stain import StainProfile, estimate
from stainssl.stain.targets import BatchTarget
from stainssl.stores.pixels import SlidePixels, decode, encode, open_pixels, write_pixels

ROUNDS = 5
EPOCHS = 5  # of the loader, which allocates the memory of batches in the first only
EVEN = Preprocessing((0.5,) * 3, (0.5,) * 3)
SETTINGS = TrainSettings(steps=1000, lr=1e-3, weight_decay=1e-4)
STORES, TILES_A_STORE = 1000, 10_000


def tiles_of(real_data: Path, count: int, size: int) -> np.ndarray:
    """(count, size, size, 3) uint8 RGB: BreakHis tiles of 112 px, resized to `size`."""
    with zipfile.ZipFile(real_data / "breakhis-tiles.zip") as found:
        names = [n for n in found.namelist() if n.endswith(".jpg")][:count]
        images = [decode(found.read(name)) for name in names]
    return np.stack([cv2.resize(images[i % len(images)], (size, size)) for i in range(count)])


def write_store(path: Path, images: np.ndarray) -> None:
    """Write a store of tiles with their Macenko profiles, as `pixels` does."""
    found = estimate(torch.from_numpy(images).permute(0, 3, 1, 2), "macenko")
    slide = SlidePixels(
        "s", np.arange(len(images), dtype=np.int32), [encode(image) for image in images],
        {"macenko": found.to_arrays()}, {"macenko": found.pooled().to_arrays()},
    )  # fmt: skip
    write_pixels(path, [slide], size_px=images.shape[1], mpp=1.0, settings={})


def learner(name: str, backbone: str, size: int, stain: StainTargets | None, color: str) -> Learner:
    """A `Learner` with a new network."""
    torch.manual_seed(0)
    network, _ = new_backbone(backbone, size)
    objective = OBJECTIVES["nt-xent"](network, vector_length(network, size), 0.2, 0)
    method = PRETRAINING_METHODS[name](ViewSettings(size, color, 0), stain)
    return Learner(network, objective, method, EVEN, SETTINGS)


class Stepper:
    """A training step of ours without lightning, whose overhead is not measured."""

    def __init__(self, module: Learner, half: bool = False) -> None:
        self._module, self._step, self._half = module, 0, half
        self._optimiser = module.configure_optimizers()["optimizer"]

    def __call__(self, batch: Batch) -> None:
        views = torch.cat(self._module.views(batch, self._step))
        with torch.autocast("cpu", torch.bfloat16, enabled=self._half):  # as `precision: bf16`
            loss, _ = self._module.objective(self._module.backbone, views)
        self._optimiser.zero_grad()
        loss.backward()
        self._optimiser.step()
        self._step += 1


def by_turns(work: dict[str, Callable[[], Any]], clock: Callable[[], float]) -> dict[str, float]:
    """Median seconds of each piece of work, alternating, so that other load affects all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(ROUNDS + 1):
        for name, run in work.items():
            start = clock()
            run()
            seconds[name].append(clock() - start)
    return {name: statistics.median(s[1:]) for name, s in seconds.items()}


def step_cost(real_data: Path) -> list[dict[str, Any]]:
    """CPU seconds of a step of both methods, for three backbones."""
    rows = []
    for backbone, size, count, color in (
        ("resnet18", 96, 64, "weak"), ("resnet50", 224, 8, "weak"), ("lcnet_050", 96, 128, "weak"),
    ):  # fmt: skip
        images = torch.from_numpy(tiles_of(real_data, count, size)).permute(0, 3, 1, 2).contiguous()
        known = estimate(images, "macenko")
        stain = StainTargets(
            [NormalizerState(known, BatchTarget(known.pooled()))], lambda t: [""] * len(t)
        )
        number = np.arange(count)
        batch = Batch(images, number, number)
        steps = {
            name: Stepper(learner(name, backbone, size, stain, color))
            for name in ("simclr", "stain-invariant")
        }
        work = {name: partial(step, batch) for name, step in steps.items()}
        found = by_turns(work, time.process_time)
        ratio = found["stain-invariant"] / found["simclr"]
        rows.append({"backbone": backbone, "px": size, **found, "ratio": ratio, "wanted": 1.10})
    return rows


class Files(Dataset):
    """Image files with lightly's own transform."""

    def __init__(self, files: list[Path], size: int) -> None:
        # Its defaults except for the size, to which the blur is proportional, as in ours.
        self._files, self._transform = files, SimCLRTransform(input_size=size)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> list[torch.Tensor]:
        return self._transform(Image.open(self._files[index]).convert("RGB"))


def lightly_rate(files: list[Path], backbone: str, size: int, count: int, workers: int) -> float:
    """Images per second of an epoch of lightly's SimCLR example."""
    torch.manual_seed(0)
    network, _ = new_backbone(backbone, size)
    dim = vector_length(network, size)
    head, loss_of = SimCLRProjectionHead(dim, dim, 128), NTXentLoss(temperature=0.5)
    optimiser = torch.optim.SGD([*network.parameters(), *head.parameters()], lr=0.06)
    loader = DataLoader(
        Files(files, size), count, shuffle=True, drop_last=True, num_workers=workers
    )
    start, images = time.perf_counter(), 0
    for first, second in loader:
        loss = loss_of(head(network(first)), head(network(second)))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        images += len(first)
    return images / (time.perf_counter() - start)


def our_rate(store: Path, backbone: str, size: int, count: int, half: bool) -> float:
    """Images per second of an epoch of ours, with strong color jitter and no cache."""
    tiles = TrainTiles([open_pixels(store)], cache_bytes=0, workers=torch.get_num_threads())
    step, images = Stepper(learner("simclr", backbone, size, None, "strong"), half), 0
    start = time.perf_counter()
    for batch in Stream(tiles, count, len(tiles) // count, seed=0):
        step(batch)
        images += len(batch.tile)
    return images / (time.perf_counter() - start)


def against_lightly(real_data: Path, work: Path) -> list[dict[str, Any]]:
    """Rates on all cores; for lightly, the better of two numbers of workers."""
    cores = os.cpu_count() or 1
    images = tiles_of(real_data, 1024, 112)
    files = [work / f"{i}.jpg" for i in range(len(images))]
    for file, image in zip(files, images, strict=True):
        file.write_bytes(encode(image, 95))
    write_store(work / "lightly.zarr", images)
    torch.set_num_threads(cores)
    rows = []
    for backbone, size, count in (
        ("resnet18", 64, 128),
        ("resnet18", 112, 64),
        ("lcnet_050", 64, 128),
    ):
        rates: dict[str, list[float]] = {"ours": [], "ours, bf16": [], "lightly": []}
        for _ in range(2):
            for name, half in (("ours", False), ("ours, bf16", True)):
                rates[name].append(our_rate(work / "lightly.zarr", backbone, size, count, half))
            rates["lightly"] += [lightly_rate(files, backbone, size, count, w) for w in (0, cores)]
        best = {name: max(found) for name, found in rates.items()}
        ratios = {f"ratio of {name}": best[name] / best["lightly"] for name in list(best)[:2]}
        rows.append({"backbone": backbone, "px": size, **best, **ratios, "wanted": 1.3})
    torch.set_num_threads(1)
    return rows


def loader_rate(real_data: Path, work: Path) -> list[dict[str, Any]]:
    """Tiles per second of the loader and of decoding alone."""
    rows = []
    for size in (112, 224):
        path = work / f"loader-{size}.zarr"
        write_store(path, tiles_of(real_data, 2048, size))
        store = open_pixels(path)
        jpegs = store.jpegs(0, len(store))
        for threads in dict.fromkeys((1, os.cpu_count() or 1)):
            found = _rates(path, jpegs, threads)
            rows.append({"px": size, "threads": threads, **found, "wanted": 0.85})
    return rows


def _rates(path: Path, jpegs: list[bytes], threads: int) -> dict[str, float]:
    pool = ThreadPoolExecutor(threads)

    def some(first: int) -> None:
        for jpeg in jpegs[first::threads]:
            decode(jpeg)

    def bare() -> None:
        for _ in range(EPOCHS):
            list(pool.map(some, range(threads)))

    def loader() -> None:
        tiles = TrainTiles([open_pixels(path)], cache_bytes=0, workers=threads)
        for _ in Stream(tiles, 256, EPOCHS * (len(tiles) // 256), seed=0):
            pass

    seconds = by_turns({"decode": bare, "loader": loader}, time.perf_counter)
    rates = {name: EPOCHS * len(jpegs) / s for name, s in seconds.items()}
    return {**rates, "ratio": rates["loader"] / rates["decode"]}


def write_empty_stores(folder: Path) -> None:
    """Write 1,000 stores with the small arrays of 10,000 tiles each, and JPEGs of one byte."""
    known = StainProfile.reference("macenko").batched()[[0] * TILES_A_STORE]
    first = folder / "0000.zarr"
    slides = [
        SlidePixels(f"slide-{i}", np.arange(1000, dtype=np.int32), [b"x"] * 1000,
                    {"macenko": known[:1000].to_arrays()}, {"macenko": known[0].to_arrays()})
        for i in range(TILES_A_STORE // 1000)
    ]  # fmt: skip
    write_pixels(first, slides, size_px=256, mpp=0.5, settings={})
    for number in range(1, STORES):
        subprocess.run(["cp", "-r", str(first), str(folder / f"{number:04d}.zarr")], check=True)


SCALE = """
import json, sys, time
from pathlib import Path
import stainssl.pretrain.train
from stainssl.pretrain.data import Stream, TrainTiles
from stainssl.pretrain.tile_metadata import profiles
from stainssl.stores.pixels import open_pixels
def peak():  # of this process alone: getrusage also counts what its parent had
    line = next(l for l in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in l)
    return int(line.split()[1]) / 2**20
base, start = peak(), time.perf_counter()
stores = [open_pixels(path) for path in sorted(Path(sys.argv[1]).glob("*.zarr"))]
tiles = TrainTiles(stores, workers=2)
opened = time.perf_counter() - start
known = profiles(stores, "macenko")
profiled = time.perf_counter() - start
Stream(tiles, 256, 10**9, seed=0).index(20_000)
ordered = time.perf_counter() - start
print(json.dumps({"stores": len(stores), "tiles": len(tiles), "imports_gb": base, "open_s": opened,
                  "with_profiles_s": profiled, "with_an_order_s": ordered, "peak_gb": peak()}))
"""


def scale(work: Path) -> list[dict[str, Any]]:
    """Open the stores in a new process, with files still in the page cache."""
    folder = work / "scale"
    folder.mkdir()
    write_empty_stores(folder)
    done = subprocess.run(
        [sys.executable, "-c", SCALE, str(folder)], capture_output=True, text=True, check=True
    )
    return [json.loads(done.stdout.splitlines()[-1]) | {"wanted": "10 s, 2 GB"}]


def show(name: str, rows: list[dict[str, Any]]) -> None:
    """Print the rows of one benchmark."""
    print(f"\n{name}")
    for row in rows:
        values = (f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items())
        print("  " + ", ".join(values))


def questions(
    real_data: Path, work: Path
) -> Iterator[tuple[str, Callable[[], list[dict[str, Any]]]]]:
    """Yield the name and function of each benchmark."""
    yield "step", lambda: step_cost(real_data)
    yield "lightly", lambda: against_lightly(real_data, work)
    yield "loader", lambda: loader_rate(real_data, work)
    yield "scale", lambda: scale(work)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("real_data", type=Path)
    parser.add_argument("--only", nargs="*", default=["step", "lightly", "loader", "scale"])
    parser.add_argument("--out", type=Path, default=Path("pretrain.json"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    record: dict[str, Any] = {"torch": torch.__version__, "cores": os.cpu_count()}
    with tempfile.TemporaryDirectory() as work:
        for name, measure in questions(given.real_data, Path(work)):
            if name in given.only:
                record[name] = measure()
                show(name, record[name])
    given.out.write_text(json.dumps(record, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
