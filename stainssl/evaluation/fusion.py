"""Late fusion of predictions from slides and from clinical columns.

The predictions of two models on the same folds are pooled with equal weights, so that nothing is
trained. The head of `fusion: gated`, which takes both as input, is in `mil.gated`.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from stainssl.evaluation.folds import GRADE
from stainssl.evaluation.predictions import FOLD, RULE_OUT, THRESHOLD, UNIT, prediction_columns

ADDED = " + clinical"  # appended to a head's name
FOLDER = "clinical"  # in a head's folder: predictions of the head that also takes columns
_OTHER = "_of_columns"
_LEAST = 1e-6  # lower limit of probabilities, so that a 0 does not override the other model


def late(slides: pd.DataFrame, columns: pd.DataFrame, level: str) -> pd.DataFrame:
    """Pool the test predictions of two models on the same folds.

    Class probabilities are pooled by the mean of their logarithms (the logarithmic opinion pool;
    Genest and Zidek, *Combining probability distributions*, Statistical Science 1986); numbers,
    risks and survival by their mean. Thresholds, which were chosen for one of the models, are
    dropped, so that the most probable class is predicted.

    Args:
        slides: test predictions of a head.
        columns: test predictions of a baseline on columns of the sheet, for the same units and
            folds.
        level: `slide` or `patient`.

    Returns:
        The rows of `slides` that `columns` has too, without thresholds.
    """
    keys, names = [*UNIT[level], *FOLD], prediction_columns(slides)
    one = slides.drop(columns=[THRESHOLD, RULE_OUT], errors="ignore")
    both = one.merge(columns[[*keys, *names]], on=keys, suffixes=("", _OTHER))
    first, second = (both[[name + end for name in names]].to_numpy(float) for end in ("", _OTHER))
    is_of_classes = all(name.startswith("p_") for name in names)
    pooled = _pooled_logs(first, second) if is_of_classes else (first + second) / 2
    made = both[list(one)].assign(**dict(zip(names, pooled.T, strict=True)))
    return made.assign(**{GRADE: pooled @ np.arange(len(names))}) if GRADE in made else made


def _pooled_logs(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Normalized geometric mean of two (N, K) arrays of probabilities."""
    found = np.sqrt(np.maximum(first, _LEAST) * np.maximum(second, _LEAST))
    return np.asarray(found / found.sum(axis=1, keepdims=True))


def added_notes(compared: pd.DataFrame, clinical: str) -> list[str]:
    """Notes with the difference between each fused model and the clinical columns alone.

    Args:
        compared: `task`, `test` and `compare.COLUMNS`.
        clinical: name of the side with the clinical columns alone.
    """
    notes = []
    for row in compared.to_dict("records"):
        sides = row["first"], row["second"]
        if clinical not in sides or not any(side.endswith(ADDED) for side in sides):
            continue
        sign = -1 if sides[0] == clinical else 1
        low, high = sorted((sign * row["low"], sign * row["high"]))
        fused = next(side for side in sides if side != clinical)
        notes.append(
            f"{row['task']}, {row['metric']}: {fused} minus {clinical.partition(' + ')[0]}:"
            f" {sign * row['difference']:+.2f} ({low:+.2f} to {high:+.2f}),"
            f" p {row['p_holm']:.3f} (Holm)."
        )
    return notes
