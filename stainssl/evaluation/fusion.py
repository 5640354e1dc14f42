"""Slides and clinical columns together: does the slide add to what is known?

Of `fusion: gated` a head takes both (`mil.gated`). Late fusion without training is here: the
answers of two models that were made on the same folds are pooled with equal weights, so that no
patient chooses how much either counts.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from stainssl.evaluation.folds import GRADE
from stainssl.evaluation.predictions import FOLD, RULE_OUT, THRESHOLD, UNIT, answer_columns

ADDED = " + clinical"  # after a head's name
FOLDER = "clinical"  # in a head's folder: the answers of the head that takes columns too
_OTHER = "_of_columns"
_LEAST = 1e-6  # probability, so that an answer of 0 does not silence the other


def late(slides: pd.DataFrame, columns: pd.DataFrame, level: str) -> pd.DataFrame:
    """The pooled predictions of two models of the same folds.

    Probabilities of classes are pooled by the mean of their logarithms (the logarithmic opinion
    pool; Genest and Zidek, *Combining probability distributions*, Statistical Science 1986);
    numbers, risks and survival by their mean. Thresholds were chosen for one of the models and are
    left out: the most probable class is called.

    Args:
        slides: test predictions of a head.
        columns: of a baseline on columns of the sheet, with the same units in the same folds.
        level: `slide` or `patient`.

    Returns:
        Rows as those of `slides`.
    """
    keys, answers = [*UNIT[level], *FOLD], answer_columns(slides)
    one = slides.drop(columns=[THRESHOLD, RULE_OUT], errors="ignore")
    both = one.merge(columns[[*keys, *answers]], on=keys, suffixes=("", _OTHER))
    first, second = (both[[name + end for name in answers]].to_numpy(float) for end in ("", _OTHER))
    is_of_classes = all(name.startswith("p_") for name in answers)
    pooled = _pooled_logs(first, second) if is_of_classes else (first + second) / 2
    made = both[list(one)].assign(**dict(zip(answers, pooled.T, strict=True)))
    return made.assign(**{GRADE: pooled @ np.arange(len(answers))}) if GRADE in made else made


def _pooled_logs(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(N, K) normalized geometric mean of two (N, K) probabilities."""
    found = np.sqrt(np.maximum(first, _LEAST) * np.maximum(second, _LEAST))
    return np.asarray(found / found.sum(axis=1, keepdims=True))


def added_notes(compared: pd.DataFrame, clinical: str) -> list[str]:
    """A sentence for each fused answer: what the slide adds to the clinical columns.

    Args:
        compared: `task`, `test` and `compare.COLUMNS`.
        clinical: the side that stands for the columns alone.
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
