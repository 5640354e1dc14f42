"""Speed and agreement of the stain engine beside tiatoolbox, one thread: a table and JSON.

    OMP_NUM_THREADS=1 python benchmarks/stain.py REAL_DATA [--out stain.json]

Speed: CPU time of 64 tiles of 128 and of 224 px, cut from the CAMELYON17 tiles, median of several
rounds, the two sides by turns. Agreement: mean absolute difference in grey levels on 15 tiles of
256 px, normalised to one target image by each side's own estimates and constants.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from stainssl.stain import Constants, estimate, normalize

ROUNDS = 5
METHODS = ("macenko", "ruifrok", "reinhard")
# What tiatoolbox uses: OD against 255 without an offset; Reinhard over all pixels.
THEIR_CONSTANTS = {
    "macenko": Constants(io=255, offset=0.5, max_pixels=None),
    "ruifrok": Constants(io=255, offset=0.5, max_pixels=None),
    "reinhard": Constants(beta=-torch.inf, max_pixels=None),
}


def read(path: Path) -> Tensor:
    """(3, H, W) uint8."""
    return torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)


def crops(real_data: Path, size: int, count: int) -> Tensor:
    """(count, 3, size, size) uint8, from all centres by turns."""
    images = [read(path) for path in sorted((real_data / "camelyon17-centres").glob("*.png"))]
    places = [(y, x) for y in range(0, 513 - size, size) for x in range(0, 513 - size, size)]
    cut = [image[:, y : y + size, x : x + size] for y, x in places for image in images]
    return torch.stack([cut[i % len(cut)] for i in range(count)])


def arrays(images: Tensor) -> list[np.ndarray]:
    """The images as tiatoolbox takes them: (H, W, 3) uint8 each."""
    return [np.ascontiguousarray(image.permute(1, 2, 0).numpy()) for image in images]


def milliseconds(work: dict[str, Callable[[], Any]], tiles: int) -> dict[str, float]:
    """Median time a tile of each piece of work, in turns so that a busy machine hits all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(ROUNDS + 1):
        for name, run in work.items():
            start = time.process_time()
            run()
            seconds[name].append(time.process_time() - start)
    return {name: 1e3 * statistics.median(s[1:]) / tiles for name, s in seconds.items()}


def theirs(method: str, target: Tensor) -> Any:
    """tiatoolbox's normaliser, fitted."""
    from tiatoolbox.tools.stainnorm import get_normalizer

    normalizer = get_normalizer(method)
    normalizer.fit(arrays(target[None])[0])
    return normalizer


def their_estimate(normalizer: Any, method: str, image: np.ndarray) -> None:
    """What tiatoolbox does to know one image's stain."""
    if method == "reinhard":
        normalizer.get_mean_std(image.copy())
        return
    matrix = normalizer.extractor.get_stain_matrix(image.copy())
    np.percentile(normalizer.get_concentrations(image.copy(), matrix), 99, axis=0)


def speed(real_data: Path, size: int, method: str, target: Tensor) -> dict[str, Any]:
    """Milliseconds a tile. tiatoolbox always estimates when it transforms."""
    images = crops(real_data, size, 64)
    listed, normalizer = arrays(images), theirs(method, target)
    own, goal = estimate(images, method), estimate(target[None], method)[0]
    found = milliseconds(
        {
            "estimate": lambda: estimate(images, method),
            "normalise": lambda: normalize(images, own, goal),
            "tiatoolbox estimate": lambda: [their_estimate(normalizer, method, a) for a in listed],
            "tiatoolbox transform": lambda: [normalizer.transform(a.copy()) for a in listed],
        },
        len(images),
    )
    return {"method": method, "size_px": size, **{k: round(v, 3) for k, v in found.items()}}


def agreement(real_data: Path, method: str, target: Tensor) -> dict[str, Any]:
    """Grey levels between the two outputs, tile by tile, over our valid ones."""
    images, constants = crops(real_data, 256, 15), THEIR_CONSTANTS[method]
    own = estimate(images, method, constants)
    goal = estimate(target[None], method, constants)[0]
    ours = normalize(images, own, goal, constants=constants)
    normalizer = theirs(method, target)
    expected = torch.from_numpy(np.stack([normalizer.transform(a) for a in arrays(images)]))
    errors = (ours.float() - expected.permute(0, 3, 1, 2)).abs().mean((1, 2, 3))[own.valid]
    return {
        "method": method,
        "tiles": len(errors),
        "median_mae": round(float(errors.median()), 2),
        "largest_mae": round(float(errors.max()), 2),
    }


def show(rows: list[dict[str, Any]]) -> None:
    """Print rows of one table."""
    print("  ".join(f"{name:>20}" for name in rows[0]))
    for row in rows:
        print("  ".join(f"{value!s:>20}" for value in row.values()))
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("real_data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("stain.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    target = read(options.real_data / "stain-reference" / "target.png")
    speeds = [speed(options.real_data, s, m, target) for s in (128, 224) for m in METHODS]
    agreements = [agreement(options.real_data, m, target) for m in METHODS]
    show(speeds)
    show(agreements)
    options.out.write_text(json.dumps({"ms_per_tile": speeds, "agreement": agreements}, indent=1))


if __name__ == "__main__":
    main()
