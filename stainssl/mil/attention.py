"""Attention weights of a task's tiles, from fold models that were not trained on the patient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from stainssl.mil.bags import Bag

COLUMNS = ["slide_id", "tile", "x", "y", "attention"]


class AttentionMean:
    """Mean attention of each bag over the repeats in which it was tested."""

    def __init__(self) -> None:
        self._total: dict[tuple[str, str], np.ndarray] = {}
        self._count: dict[tuple[str, str], int] = {}

    def add(self, bag: Bag, attention: np.ndarray) -> None:
        """Add the (N,) attention of one fold model for a bag of N tiles."""
        key = (bag.patient_id, bag.slide_id)
        self._total[key] = self._total.get(key, 0.0) + attention.astype(np.float64)
        self._count[key] = self._count.get(key, 0) + 1

    def means(self) -> Mapping[tuple[str, str], np.ndarray]:
        """(patient_id, slide_id) of each bag → (N,) float64 mean attention."""
        return {key: total / self._count[key] for key, total in self._total.items()}


def attention_table(
    bags: Sequence[Bag], means: Mapping[tuple[str, str], np.ndarray]
) -> pd.DataFrame:
    """Rows of `attention.parquet`: the percentile rank of each tile's attention in its slide.

    Args:
        bags: the task's bags; those that were never tested are left out.
        means: see `AttentionMean.means`.

    Returns:
        Columns `slide_id`, `tile` (int32), `x`, `y` (level-0 px, int64) and `attention` (float32 in
        (0, 1]: share of the slide's tiles with at most this attention; ties have the mean rank).
    """
    tables = []
    for bag in bags:
        attention = means.get((bag.patient_id, bag.slide_id))
        if attention is None:
            continue
        parts = np.split(attention, np.cumsum([len(tiles) for tiles in bag.tiles])[:-1])
        tables += [
            pd.DataFrame(
                {
                    "slide_id": slide,
                    "tile": tiles.tile,
                    "x": tiles.x_level0_px,
                    "y": tiles.y_level0_px,
                    "attention": percentile_ranks(part),
                }
            )
            for slide, tiles, part in zip(bag.slides, bag.tiles, parts, strict=True)
        ]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=COLUMNS)


def percentile_ranks(values: np.ndarray) -> np.ndarray:
    """(n,) numbers → (n,) float32 percentile ranks in (0, 1]; ties have their mean rank."""
    return pd.Series(values).rank(method="average", pct=True).to_numpy(np.float32)
