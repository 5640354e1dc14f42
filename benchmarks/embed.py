"""Speed of embedding, with reading and decoding, relative to the speed of the model alone.

    OMP_NUM_THREADS=1 python benchmarks/embed.py --work FOLDER [--backbone resnet18]

m is the rate of the encoder on tensors in memory, and d that of reading and decoding alone, in
blocks of the same size. On one core, the two share the CPU and 1 / (1/m + 1/d) is the limit; with a
GPU it is min(m, d). Two encoders in one pass are compared with one after the other. Measurements
alternate, so that other load on the machine affects all alike. Prints a table and writes
`embed.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from stainssl.encoders.embedding import BATCH, GPU_BATCH, embed_pixels
from stainssl.encoders.loading import LoadedEncoder, load, new_backbone
from stainssl.encoders.saving import save_local_dir
from stainssl.runtime.devices import reserve_device
from stainssl.stores.pixels import Pixels, SlidePixels, encode, open_pixels, write_pixels


def store(path: Path, tiles: int, side: int) -> Pixels:
    """Store tiles of smoothed noise, whose JPEGs have about the size of those of tissue."""
    rng = np.random.default_rng(0)
    few = [
        cv2.GaussianBlur(rng.integers(0, 256, (side, side, 3), dtype=np.uint8), (0, 0), 1.5)
        for _ in range(32)
    ]
    jpegs = [encode(few[i % len(few)]) for i in range(tiles)]
    slides = [SlidePixels("s", np.arange(tiles, dtype=np.int32), jpegs)]
    write_pixels(path, slides, size_px=side, mpp=0.5, settings={})
    return open_pixels(path)


def encoder(folder: Path, backbone: str, side: int, device: str) -> LoadedEncoder:
    model, args = new_backbone(backbone, side)
    save_local_dir(model, folder, backbone=backbone, input_size=side, mean=(0.7, 0.5, 0.6),
                   std=(0.2,) * 3, model_args=args, card={})  # fmt: skip
    return load(folder, device)


def rate(run: Callable[[], Any], tiles: int) -> float:
    start = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return tiles / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--tiles", type=int, default=384)
    parser.add_argument("--side", type=int, default=224)
    words = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "0")) or os.cpu_count() or 1)
    cv2.setNumThreads(1)
    device = reserve_device()
    size = GPU_BATCH if device != "cpu" else BATCH
    pixels = store(words.work / "pixels.zarr", words.tiles, words.side)
    one = encoder(words.work / "model", words.backbone, words.side, device)
    images = torch.from_numpy(pixels.images(np.arange(min(size, words.tiles))))
    images = images.permute(0, 3, 1, 2).contiguous()
    blocks = -(-words.tiles // len(images))

    def decode() -> None:
        for start in range(0, words.tiles, size):
            pixels.images(np.arange(start, min(start + size, words.tiles)))

    runs: dict[str, tuple[Callable[[], Any], int]] = {
        "m": (lambda: [one(images) for _ in range(blocks)], blocks * len(images)),
        "d": (decode, words.tiles),
        "embedding": (lambda: list(embed_pixels([one], pixels)), words.tiles),
        "two together": (lambda: list(embed_pixels([one, one], pixels)), words.tiles),
    }
    found: dict[str, list[float]] = {name: [] for name in runs}
    one(images)  # warm-up
    for _ in range(5):
        for name, (run, tiles) in runs.items():
            found[name].append(rate(run, tiles))
    speed = {name: statistics.median(rates) for name, rates in found.items()}
    shared = 1 / (1 / speed["m"] + 1 / speed["d"])
    speed["of 1/(1/m+1/d)"] = speed["embedding"] / shared
    speed["of min(m, d)"] = speed["embedding"] / min(speed["m"], speed["d"])
    speed["two: gain over one after the other"] = speed["two together"] / speed["embedding"] * 2
    for name, value in speed.items():
        print(f"{name:36} {value:10.2f}")
    report = {"device": device, "backbone": words.backbone, "tiles_per_s": speed}
    (words.work / "embed.json").write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
