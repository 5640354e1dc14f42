"""What a task was trained on, slide by slide, and how far from it a new slide lies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from stainssl.mil.bags import Bag

NEIGHBOURS = 3  # one odd slide among those trained on must not make its like familiar
SHARE = 0.99  # of the slides trained on, that lie within the limit
Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Reference:
    """The S slides that a task's fold models were trained on.

    Attributes:
        patient_id: (S,) whose they are.
        points: (S, D) where each lies: its mean tile embedding, or its stain's coordinates; NaN
            where that is not known.
        scale: (D,) divides each coordinate before distances are taken.
    """

    patient_id: npt.NDArray[np.str_]
    points: Vectors
    scale: Vectors

    def distances(self, points: Vectors) -> Vectors:
        """How far new slides lie from those trained on, relative to distances among the latter.

        The distance is that to the third nearest slide (Sun et al., *Out-of-distribution detection
        with deep nearest neighbors*, ICML 2022); for a slide trained on, to the third nearest of
        other patients. It is divided by the 99th percentile of the latter.

        Args:
            points: (M, D) of the new slides.

        Returns:
            (M,) float32: above 1, a slide is further out than 99 % of those trained on (than all
            of them, where there are fewer than 100); NaN where either side is not known.
        """
        known = np.isfinite(self.points).all(axis=1)
        ours, patient = self.points[known] / self.scale, self.patient_id[known]
        within = _to_neighbour(ours, ours, patient[:, None] != patient[None])
        within = within[np.isfinite(within)]
        if not len(within):
            return np.full(len(points), np.nan, np.float32)
        limit = max(float(np.quantile(within, SHARE, method="higher")), 1e-12)
        new = points / self.scale
        return _to_neighbour(new, ours, np.ones((len(new), len(ours)), bool)) / np.float32(limit)


def _to_neighbour(points: Vectors, known: Vectors, allowed: npt.NDArray[np.bool_]) -> Vectors:
    """(M,) distance of each point to its third nearest allowed one, or the furthest of fewer."""
    squares = (points**2).sum(1)[:, None] + (known**2).sum(1)[None] - 2 * points @ known.T
    distance = np.sqrt(np.maximum(squares, 0.0))
    ordered = np.sort(np.where(allowed, distance, np.inf), axis=1)[:, :NEIGHBOURS]
    ordered = np.where(np.isfinite(ordered), ordered, -np.inf).max(axis=1)
    return np.where(np.isfinite(ordered), ordered, np.nan).astype(np.float32)


def slide_means(bag: Bag) -> Vectors:
    """(slides of the bag, D) float32 mean tile embedding of each, as `SlideTiles.moments` tells."""
    return np.stack([tiles.moments[0] for tiles in bag.tiles]).astype(np.float32)


def reference_table(
    bags: Sequence[Bag], trained: set[str], stain: Mapping[str, Vectors]
) -> pd.DataFrame:
    """Rows of `reference.parquet`: the slides of patients that trained or validated a fold.

    Args:
        bags: the task's bags.
        trained: patients of the training parts.
        stain: slide → coordinates of its stain profile; slides may be absent.

    Returns:
        `slide_id`, `patient_id`, `features` (a list of D float32) and `stain` (a list, empty where
        it is not known).
    """
    none = np.empty(0, np.float32)
    rows = [
        {"slide_id": slide, "patient_id": bag.patient_id, "features": mean,
         "stain": stain.get(slide, none)}
        for bag in bags if bag.patient_id in trained
        for slide, mean in zip(bag.slides, slide_means(bag), strict=True)
    ]  # fmt: skip
    columns = ["slide_id", "patient_id", "features", "stain"]
    return pd.DataFrame(rows, columns=columns).drop_duplicates("slide_id")


def references(table: pd.DataFrame) -> tuple[Reference, Reference]:
    """The features and the stain of `reference_table`'s slides."""
    patient = table["patient_id"].to_numpy(str)
    features, stain = stacked(table["features"]), stacked(table["stain"])
    # A feature counts by how much slides differ in it; degrees of stain are comparable as they are.
    spread = features.std(axis=0) if len(features) else np.ones(features.shape[1], np.float32)
    spread = np.where(spread > 1e-6, spread, 1.0).astype(np.float32)
    return (
        Reference(patient, features, spread),
        Reference(patient, stain, np.ones(stain.shape[1], np.float32)),
    )


def stacked(lists: Sequence[Vectors] | pd.Series) -> Vectors:
    """(S, D) float32 of S lists of D numbers; a row of NaN for an empty list."""
    width = max((len(one) for one in lists), default=0)
    out = np.full((len(lists), max(width, 1)), np.nan, np.float32)
    for row, one in zip(out, lists, strict=True):
        if len(one):
            row[:] = one
    return out
