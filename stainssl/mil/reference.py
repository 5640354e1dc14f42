"""Slides that a task was trained on, and the distance of new slides from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from stainssl.mil.bags import Bag

NEIGHBOURS = 3  # the third, so that a single outlier in training makes no similar slide familiar
SHARE = 0.99  # of the training slides are within the limit
Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Reference:
    """The S slides that a task's fold models were trained on.

    Attributes:
        patient_id: (S,) patient of each slide.
        points: (S, D) mean tile embedding, or coordinates of the stain profile; NaN if unknown.
        scale: (D,) divisor of each coordinate before distances are computed.
    """

    patient_id: npt.NDArray[np.str_]
    points: Vectors
    scale: Vectors

    @property
    def is_known(self) -> bool:
        """Whether the point of any training slide is known."""
        return bool(np.isfinite(self.points).all(axis=1).any())

    def distances(self, points: Vectors) -> Vectors:
        """Distance of new slides from the training slides, relative to distances among these.

        The distance is that to the third nearest training slide (Sun et al., *Out-of-distribution
        detection with deep nearest neighbors*, ICML 2022). It is divided by the 99th percentile of
        the distances of training slides to the third nearest slide of other patients.

        Args:
            points: (M, D) points of the new slides.

        Returns:
            (M,) float32. Above 1, a slide is further out than 99 % of the training slides (than all
            of them if there are at most 100). NaN if the point is unknown, or if training points
            of fewer than two patients are known.
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
    """(M,) distance to the third nearest allowed point, or the furthest if there are fewer.

    NaN if there is none.
    """
    squares = (points**2).sum(1)[:, None] + (known**2).sum(1)[None] - 2 * points @ known.T
    distance = np.sqrt(np.maximum(squares, 0.0))
    ordered = np.sort(np.where(allowed, distance, np.inf), axis=1)[:, :NEIGHBOURS]
    ordered = np.where(np.isfinite(ordered), ordered, -np.inf).max(axis=1, initial=-np.inf)
    return np.where(np.isfinite(ordered), ordered, np.nan).astype(np.float32)


def slide_means(bag: Bag) -> Vectors:
    """(S, D) float32 mean tile embedding of each slide of a bag, from `SlideTiles.moments`."""
    return np.stack([tiles.moments[0] for tiles in bag.tiles]).astype(np.float32)


def reference_table(
    bags: Sequence[Bag], trained: set[str], stain: Mapping[str, Vectors]
) -> pd.DataFrame:
    """Rows of `reference.parquet`: the slides of all training and validation patients.

    Args:
        bags: the task's bags.
        trained: ids of the training and validation patients of any fold.
        stain: slide → coordinates of its stain profile; slides may be missing.

    Returns:
        Columns `slide_id`, `patient_id`, `features` (list of D float32) and `stain` (list, empty if
        unknown).
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
    """Two references from a `reference_table`: of features and of stain coordinates."""
    patient = table["patient_id"].to_numpy(str)
    features, stain = stacked(table["features"]), stacked(table["stain"])
    # Features are scaled by their standard deviation; stain coordinates are comparable as they are.
    spread = features.std(axis=0) if len(features) else np.ones(features.shape[1], np.float32)
    spread = np.where(spread > 1e-6, spread, 1.0).astype(np.float32)
    return (
        Reference(patient, features, spread),
        Reference(patient, stain, np.ones(stain.shape[1], np.float32)),
    )


def stacked(lists: Sequence[Vectors] | pd.Series) -> Vectors:
    """Stack S lists of D numbers to (S, D) float32; an empty list is a row of NaN."""
    width = max((len(one) for one in lists), default=0)
    out = np.full((len(lists), max(width, 1)), np.nan, np.float32)
    for row, one in zip(out, lists, strict=True):
        if len(one):
            row[:] = one
    return out
