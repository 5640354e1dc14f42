"""Whether an encoder gives all tiles nearly the same vector, which no rank of them tells."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from stainssl.stores.atomic import write_text

FILE = "spread.json"  # in the folder of a probe or head
MAX_ALIKE = 0.995  # random weights of six backbones gave 0.26 to 0.985


def mean_cosine(blocks: Iterable[npt.NDArray[np.floating]]) -> tuple[float, int]:
    """Mean cosine of two different rows, and the number of rows; NaN of fewer than two.

    Args:
        blocks: (n, D) each, all of one D; rows of length zero are left out.
    """
    total: npt.NDArray[np.float64] | float = 0.0
    count = 0
    for block in blocks:
        vectors = np.asarray(block, np.float32)
        length = np.linalg.norm(vectors, axis=1, keepdims=True)
        is_long = length[:, 0] > 0
        total = total + (vectors[is_long] / length[is_long]).sum(axis=0, dtype=np.float64)
        count += int(is_long.sum())
    if count < 2:
        return float("nan"), count
    return float((np.square(total).sum() - count) / (count * (count - 1))), count


def write_spread(blocks: Iterable[npt.NDArray[np.floating]], *folders: Path) -> None:
    """Note in folders how much alike the vectors are that their answers were made from."""
    cosine, count = mean_cosine(blocks)
    told = {"mean_cosine": round(cosine, 6) if count > 1 else None, "tiles": count}
    for folder in folders:
        write_text(folder / FILE, json.dumps(told) + "\n")


def alike_notes(folders: Mapping[str, Iterable[Path]]) -> list[str]:
    """A note for a table where an encoder's vectors are nearly one vector.

    Args:
        folders: run → folders of its answers; those without a `FILE` say nothing.
    """
    found = {run: max(map(_cosine, places), default=0.0) for run, places in folders.items()}
    alike = [f"{run} ({cosine:.4f})" for run, cosine in found.items() if cosine > MAX_ALIKE]
    if not alike:
        return []
    return [
        f"Nearly the same vector for all tiles (mean cosine): {', '.join(alike)}. Such an encoder "
        "has hardly learned to tell tiles apart, whatever its figures."
    ]


def _cosine(folder: Path) -> float:
    file = folder / FILE
    return (json.loads(file.read_text())["mean_cosine"] or 0.0) if file.exists() else 0.0
