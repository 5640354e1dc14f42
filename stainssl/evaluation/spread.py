"""What predictions were made from: which weights, and whether all vectors are nearly equal."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stainssl.stores.atomic import write_text

FILE = "spread.json"  # in the folder of a probe or head
WEIGHTS = ("recipe", "weights_sha256", "revision")
NAMED = {"recipe", "revision"}  # one of which only weights have that come from elsewhere
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


def write_spread(
    blocks: Iterable[npt.NDArray[np.floating]],
    *folders: Path,
    made_by: Mapping[str, Any] | None = None,
) -> None:
    """Note in folders how much alike the vectors are that their answers were made from.

    Args:
        blocks: as `mean_cosine` takes them.
        made_by: the settings of their store, of which `WEIGHTS` are kept.
    """
    cosine, count = mean_cosine(blocks)
    told = {"mean_cosine": round(cosine, 6) if count > 1 else None, "tiles": count}
    told |= {key: made_by[key] for key in WEIGHTS if made_by and key in made_by}
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
        f"Nearly the same embedding for all tiles (mean cosine): {', '.join(alike)}. Such an "
        "encoder has hardly learned to distinguish tiles, whatever its results."
    ]


def weights_notes(folders: Mapping[str, Iterable[Path]], given: Collection[str] = ()) -> list[str]:
    """A note for a table on the weights that were not trained here: which they are.

    Args:
        folders: as `alike_notes` takes them.
        given: runs of given weights; those that have a recipe or are of the hub are known as such.
    """
    found = {run: next(iter(map(_told, places)), {}) for run, places in folders.items()}
    known = [
        _phrase(run, told)
        for run, told in found.items()
        if "weights_sha256" in told and (run in given or told.keys() & NAMED)
    ]
    return [f"Weights: {'; '.join(known)}."] if known else []


def _phrase(run: str, told: Mapping[str, Any]) -> str:
    """`virchow (SHA-256 0f3c…, revision 12ab…)`."""
    said = [f"SHA-256 {told['weights_sha256'][:12]}"]
    said += [f"revision {told['revision'][:12]}"] if "revision" in told else []
    recipe = told.get("recipe", run)
    name = run if run == recipe else f"{run} is {recipe}"
    return f"{name} ({', '.join(said)})"


def _cosine(folder: Path) -> float:
    return _told(folder).get("mean_cosine") or 0.0


def _told(folder: Path) -> dict[str, Any]:
    file = folder / FILE
    return json.loads(file.read_text()) if file.exists() else {}
