"""Features from columns of the sheet."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stainssl.evaluation.labels import unknown_cells
from stainssl.evaluation.probe import Vectors


def column_features(
    table: pd.DataFrame, columns: Sequence[str], training: NDArray[np.bool_] | None = None
) -> Vectors:
    """Encode columns of the sheet as features.

    A numeric column gives two features: the number, with unknown values set to the median of the
    training rows, and an indicator of unknown values. Any other column is one-hot encoded, with
    unknown as a category. Unknown is defined by `labels.is_unknown`.

    Args:
        table: one row per unit.
        columns: names of columns of the table.
        training: (N,) mask of the rows of which the median is computed; None: all.

    Returns:
        (N, F) float32.
    """
    training = np.ones(len(table), bool) if training is None else training
    parts: list[np.ndarray] = []
    for column in columns:
        unknown = unknown_cells(table[column]).to_numpy()
        words = table[column].astype(str).str.strip().mask(unknown, "")
        numbers = pd.to_numeric(words.mask(unknown), errors="coerce").to_numpy(float)
        if not unknown.all() and np.isfinite(numbers[~unknown]).all():
            known = numbers[training & ~unknown]
            middle = np.median(known) if len(known) else 0.0
            parts += [np.where(unknown, middle, numbers), unknown]
        else:
            parts += [(words == word).to_numpy() for word in sorted(set(words))]
    return np.stack(parts, axis=1).astype(np.float32)
