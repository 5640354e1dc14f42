"""Record the encoder's weights, and whether its embeddings of all tiles are nearly equal."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stainssl.stores.atomic import write_text

FILE = "spread.json"  # in the folder of a probe or head's predictions
WEIGHTS = ("recipe", "weights_sha256", "revision")
NAMED = {"recipe", "revision"}  # only pretrained weights from elsewhere have one of these
# Mean cosine above which embeddings of all tiles are nearly equal. The effective rank, computed
# on centred embeddings, does not show it. Random weights of six backbones gave 0.26 to 0.985.
MAX_ALIKE = 0.995


def mean_cosine(blocks: Iterable[npt.NDArray[np.floating]]) -> tuple[float, int]:
    """Mean cosine similarity of all pairs of rows.

    Args:
        blocks: (n, D) each, with the same D; zero vectors are left out.

    Returns:
        The mean (NaN with fewer than two rows) and the number of rows.
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


def write_mean_cosine(
    blocks: Iterable[npt.NDArray[np.floating]],
    *folders: Path,
    made_by: Mapping[str, Any] | None = None,
) -> None:
    """Write the mean cosine of embeddings, and their weights, to `FILE` in each folder.

    Args:
        blocks: embeddings, as in `mean_cosine`.
        folders: folders of the predictions made from these embeddings.
        made_by: settings of the embeddings' store, of which the keys `WEIGHTS` are written.
    """
    cosine, count = mean_cosine(blocks)
    record = {"mean_cosine": round(cosine, 6) if count > 1 else None, "tiles": count}
    record |= {key: made_by[key] for key in WEIGHTS if made_by and key in made_by}
    for folder in folders:
        write_text(folder / FILE, json.dumps(record) + "\n")


def collapse_notes(folders: Mapping[str, Iterable[Path]]) -> list[str]:
    """Note of the table on encoders whose embeddings of all tiles are nearly equal.

    Args:
        folders: run → folders of its predictions; those without `FILE` are ignored.

    Returns:
        One note, or none.
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
    """Note of the table that identifies weights that were not trained here.

    Args:
        folders: as in `collapse_notes`.
        given: runs with weights from a file; weights with a recipe or revision are recognized.

    Returns:
        One note, or none.
    """
    found = {run: next(iter(map(_read, places)), {}) for run, places in folders.items()}
    known = [
        _phrase(run, record)
        for run, record in found.items()
        if "weights_sha256" in record and (run in given or record.keys() & NAMED)
    ]
    return [f"Weights: {'; '.join(known)}."] if known else []


def _phrase(run: str, record: Mapping[str, Any]) -> str:
    """`virchow (SHA-256 0f3c…, revision 12ab…)`."""
    said = [f"SHA-256 {record['weights_sha256'][:12]}"]
    said += [f"revision {record['revision'][:12]}"] if "revision" in record else []
    recipe = record.get("recipe", run)
    name = run if run == recipe else f"{run} is {recipe}"
    return f"{name} ({', '.join(said)})"


def _cosine(folder: Path) -> float:
    return _read(folder).get("mean_cosine") or 0.0


def _read(folder: Path) -> dict[str, Any]:
    file = folder / FILE
    return json.loads(file.read_text()) if file.exists() else {}
