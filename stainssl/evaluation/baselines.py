"""What a label owes to where a slide is from: columns of the sheet predict it, without tissue."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from stainssl.errors import StainsslError
from stainssl.evaluation.folds import class_order, each_fold
from stainssl.evaluation.probe import Floats, linear_probe

SITE, CLINICAL = "site only", "clinical only"  # how the table names them
HEAD = "columns"


def column_features(table: pd.DataFrame, columns: Sequence[str]) -> Floats:
    """Columns of a sheet as numbers for a linear probe.

    A column of numbers is taken as such, its unknown values at the median, and says in a second
    feature where it was unknown; any other column is a feature a word, an unknown one being a word.

    Returns:
        (N, F) float32.
    """
    parts: list[np.ndarray] = []
    for column in columns:
        words = table[column].fillna("").astype(str).str.strip()
        numbers = pd.to_numeric(words.replace("", None), errors="coerce")
        unknown = (words == "").to_numpy()
        if numbers.notna().any() and (numbers.notna() | unknown).all():
            parts += [numbers.fillna(numbers.median()).to_numpy(), unknown]
        else:
            parts += [(words == word).to_numpy() for word in sorted(set(words))]
    return np.stack(parts, axis=1).astype(np.float32)


def predict_from_columns(
    units: pd.DataFrame, columns: Sequence[str], folds: pd.DataFrame, seed: int
) -> pd.DataFrame:
    """Test predictions of a linear probe on columns of the sheet.

    The penalty is chosen by the validation patients, as for tiles. Probabilities are divided by the
    classes' shares in the training part: where columns tell nothing, each fold says one half, and
    not the share of the patients that it left out.

    Args:
        units: a row per tile, slide or patient: `patient_id`, `slide_id`, `site`, `label` (class
            word), `tile` at level tile, and the columns.
        columns: at least one.
        folds: as `make_folds` gives.
        seed: of the samples that bound the work.

    Returns:
        Rows as `probe.probe` gives them, without `label` and the columns.

    Raises:
        StainsslError: the training part of a fold has one class only, or nothing is tested.
    """
    classes = class_order(units["label"].unique().tolist())
    y = units["label"].map({name: i for i, name in enumerate(classes)}).to_numpy(np.int64)
    features, patient = column_features(units, columns), units["patient_id"].to_numpy()
    names = [c for c in ("patient_id", "slide_id", "tile", "site") if c in units]
    tables = []
    for repeat, fold, role in each_fold(folds):
        training = np.flatnonzero(np.isin(patient, sorted(role["train"] | role["val"])))
        test = np.flatnonzero(np.isin(patient, sorted(role["test"])))
        if not len(test):
            continue
        val = np.isin(patient[training], sorted(role["val"]))
        model, _ = linear_probe(
            features[training], y[training], patient[training], val, len(classes), seed
        )
        share = np.bincount(y[training], minlength=len(classes)) / len(training)
        odds = model(features[test]) / np.maximum(share, 1e-9)
        told = (odds / odds.sum(axis=1, keepdims=True)).T
        p = {f"p_{name}": column for name, column in zip(classes, told, strict=True)}
        tables.append(units.iloc[test][names].assign(
            repeat=repeat, fold=fold, y=units["label"].to_numpy()[test], **p
        ))  # fmt: skip
    if not tables:
        raise StainsslError("No test patient has a known label: check labels and split.")
    return pd.concat(tables, ignore_index=True)
