"""What a label owes to where a slide is from: columns of the sheet predict it, without tissue."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stainssl.errors import StainsslError
from stainssl.evaluation.folds import VALUE, each_fold
from stainssl.evaluation.labels import is_unknown
from stainssl.evaluation.predictions import FOLD, UNIT
from stainssl.evaluation.probe import Floats, linear_probe

SITE, CLINICAL = "site only", "clinical only"  # how the table names them
MEAN = "mean of training"  # of a label that is a number
PENALTIES = np.logspace(-3, 4, 15)  # of the ridge, for columns in standard deviations
HEAD = "columns"


def column_features(
    table: pd.DataFrame, columns: Sequence[str], training: NDArray[np.bool_] | None = None
) -> Floats:
    """Columns of a sheet as numbers for a linear probe.

    A column of numbers is taken as such, its unknown values at the median of the training rows, and
    says in a second feature where it was unknown; any other column is a feature a word, unknown
    being one. What says 'unknown' is told by `labels.is_unknown`.

    Args:
        table: a row per unit.
        columns: of the table.
        training: (N,) rows whose median is taken; None: all.

    Returns:
        (N, F) float32.
    """
    training = np.ones(len(table), bool) if training is None else training
    parts: list[np.ndarray] = []
    for column in columns:
        unknown = table[column].map(is_unknown).to_numpy(bool)
        words = table[column].astype(str).str.strip().mask(unknown, "")
        numbers = pd.to_numeric(words.mask(unknown), errors="coerce").to_numpy(float)
        if not unknown.all() and np.isfinite(numbers[~unknown]).all():
            known = numbers[training & ~unknown]
            middle = np.median(known) if len(known) else 0.0
            parts += [np.where(unknown, middle, numbers), unknown]
        else:
            parts += [(words == word).to_numpy() for word in sorted(set(words))]
    return np.stack(parts, axis=1).astype(np.float32)


def same_rows(
    predictions: pd.DataFrame, others: Sequence[pd.DataFrame], level: str
) -> pd.DataFrame:
    """The predictions of the units and folds that all other tables hold too.

    So a baseline is judged on the patients that the encoders were judged on, though the sheet has
    more: a slide without usable tiles is answered by the sheet alone.
    """
    keys = [*UNIT[level], *FOLD]
    for other in others:
        predictions = predictions.merge(other[keys].drop_duplicates(), on=keys)
    return predictions


def predict_from_columns(
    units: pd.DataFrame,
    columns: Sequence[str],
    folds: pd.DataFrame,
    seed: int,
    classes: Sequence[str],
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
        classes: in their order; of two, the last is positive.

    Returns:
        Rows as `probe.probe` gives them, without `label` and the columns.

    Raises:
        StainsslError: the training part of a fold has one class only, or nothing is tested.
    """
    y = units["label"].map({name: i for i, name in enumerate(classes)}).to_numpy(np.int64)
    patient = units["patient_id"].to_numpy()
    names = [c for c in ("patient_id", "slide_id", "tile", "site") if c in units]
    tables = []
    for repeat, fold, role in each_fold(folds):
        training = np.flatnonzero(np.isin(patient, sorted(role["train"] | role["val"])))
        test = np.flatnonzero(np.isin(patient, sorted(role["test"])))
        if not len(test):
            continue
        is_training = np.isin(np.arange(len(units)), training)
        features = column_features(units, columns, is_training)
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


def predict_number_from_columns(
    units: pd.DataFrame, columns: Sequence[str], folds: pd.DataFrame
) -> pd.DataFrame:
    """Test predictions of a ridge regression on columns of the sheet; without columns of the mean.

    The penalty is chosen by leaving out one unit of the training part at a time.

    Args:
        units: a row per slide or patient: `patient_id`, `slide_id`, `site`, `label` (a number or
            its word), and the columns.
        columns: none: the training part's mean is said of everybody.
        folds: as `make_folds` gives.

    Returns:
        `patient_id`, `slide_id`, `site`, `repeat`, `fold`, `y` and `value`.

    Raises:
        StainsslError: nothing is tested.
    """
    y = pd.to_numeric(units["label"]).to_numpy(float)
    patient = units["patient_id"].to_numpy()
    names = [c for c in ("patient_id", "slide_id", "site") if c in units]
    tables = []
    for repeat, fold, role in each_fold(folds):
        training = np.isin(patient, sorted(role["train"] | role["val"]))
        test = np.isin(patient, sorted(role["test"]))
        if not test.any():
            continue
        features = column_features(units, columns, training) if columns else None
        said = _fitted_numbers(features, y, training)[test]
        own = {"repeat": repeat, "fold": fold, "y": y[test], VALUE: said}
        tables.append(units.loc[test, names].assign(**own))
    if not tables:
        raise StainsslError("No test patient has a known label: check labels and split.")
    return pd.concat(tables, ignore_index=True)


def _fitted_numbers(features: Floats | None, y: Floats, training: NDArray[np.bool_]) -> Floats:
    """(N,) what is said of every unit by a model of the training ones."""
    if features is None:
        return np.full(len(y), y[training].mean())
    from sklearn.linear_model import RidgeCV  # half a second; only benchmarks of numbers need it
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), RidgeCV(PENALTIES))
    return np.asarray(model.fit(features[training], y[training]).predict(features))
