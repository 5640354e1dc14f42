"""Baselines without images: predict a label from columns of the sheet."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stainssl.errors import StainsslError
from stainssl.evaluation.columns import column_features
from stainssl.evaluation.folds import GRADE, RISK, VALUE, each_fold
from stainssl.evaluation.follow_up import Floats, follow_up, horizons_of, time_lost
from stainssl.evaluation.labels import Labels
from stainssl.evaluation.predictions import FOLD, SURVIVAL, THRESHOLD, UNIT
from stainssl.evaluation.probe import Vectors, linear_probe

SITE, CLINICAL = "site only", "clinical only"  # names in the table
MEAN = "mean of training"  # for numeric labels
KAPLAN_MEIER = "Kaplan-Meier of training"  # for times to an event
COX_PENALTY = 0.1  # on squared coefficients of standardized columns
_STEPS = 200  # of the time grid on which time lost is integrated
PENALTIES = np.logspace(-3, 4, 15)  # of ridge regression, for standardized columns
HEAD = "columns"


def same_rows(
    predictions: pd.DataFrame, others: Sequence[pd.DataFrame], level: str
) -> pd.DataFrame:
    """Restrict predictions to the units and folds that all `others` have, too.

    Baselines are thus evaluated on the same patients as the encoders. The sheet may have more, such
    as slides without usable tiles.
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

    The penalty is chosen on validation patients, as for tiles. Probabilities are divided by the
    class frequencies of the training part and normalized. Uninformative columns then give equal
    probabilities in every fold, rather than frequencies that depend on the patients left out.

    Args:
        units: one row per tile, slide or patient: `patient_id`, `slide_id`, `site`, `label` (class
            name), `tile` at level tile, and the columns.
        columns: at least one.
        folds: as returned by `make_folds`.
        seed: of the samples of units that limit the computing time.
        classes: in order; of two, the last is positive.

    Returns:
        `patient_id`, `slide_id`, `tile`, `site` (if present), `repeat`, `fold`, `y`, `p_<class>`.

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
        normalized = (odds / odds.sum(axis=1, keepdims=True)).T
        p = {f"p_{name}": column for name, column in zip(classes, normalized, strict=True)}
        tables.append(units.iloc[test][names].assign(
            repeat=repeat, fold=fold, y=units["label"].to_numpy()[test], **p
        ))  # fmt: skip
    if not tables:
        raise StainsslError("No test patient has a known label: check labels and split.")
    return pd.concat(tables, ignore_index=True)


def _over_folds(
    units: pd.DataFrame,
    folds: pd.DataFrame,
    predict: Callable[[NDArray[np.bool_]], dict[str, Vectors]],
) -> pd.DataFrame:
    """Test predictions of a model fitted on the training part of each fold.

    Args:
        units: one row per unit, as in the callers.
        folds: as returned by `make_folds`.
        predict: mask (N,) of the training units → column → (N,) values for all units.

    Returns:
        `patient_id`, `slide_id`, `site`, `repeat`, `fold` and the columns.

    Raises:
        StainsslError: nothing is tested.
    """
    patient = units["patient_id"].to_numpy()
    names = [c for c in ("patient_id", "slide_id", "site") if c in units]
    tables = []
    for repeat, fold, role in each_fold(folds):
        training = np.isin(patient, sorted(role["train"] | role["val"]))
        test = np.isin(patient, sorted(role["test"]))
        if test.any():
            said = {name: column[test] for name, column in predict(training).items()}
            tables.append(units.loc[test, names].assign(repeat=repeat, fold=fold, **said))
    if not tables:
        raise StainsslError("No test patient has a known label: check labels and split.")
    return pd.concat(tables, ignore_index=True)


def predict_number_from_columns(
    units: pd.DataFrame, columns: Sequence[str], folds: pd.DataFrame
) -> pd.DataFrame:
    """Test predictions of a ridge regression on columns of the sheet.

    The penalty is chosen by leave-one-out cross-validation over the units of the training part.

    Args:
        units: one row per slide or patient: `patient_id`, `slide_id`, `site`, `label` (a number,
            also as text), and the columns.
        columns: if empty, the mean of the training part is predicted for all.
        folds: as returned by `make_folds`.

    Returns:
        `patient_id`, `slide_id`, `site`, `repeat`, `fold`, `y` and `value`.

    Raises:
        StainsslError: nothing is tested.
    """
    y = pd.to_numeric(units["label"]).to_numpy(float)

    def predict(training: NDArray[np.bool_]) -> dict[str, Vectors]:
        features = column_features(units, columns, training) if columns else None
        return {"y": y, VALUE: _fitted_numbers(features, y, training)}

    return _over_folds(units, folds, predict)


def _fitted_numbers(features: Vectors | None, y: Vectors, training: NDArray[np.bool_]) -> Vectors:
    """(N,) predictions for all units by a model fitted on the training units."""
    if features is None:
        return np.full(len(y), y[training].mean())
    from sklearn.linear_model import RidgeCV  # takes half a second; only regression needs it
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), RidgeCV(PENALTIES))
    return np.asarray(model.fit(features[training], y[training]).predict(features))


def predict_survival_from_columns(
    units: pd.DataFrame, columns: Sequence[str], folds: pd.DataFrame
) -> pd.DataFrame:
    """Test predictions of a penalized Cox regression on columns of the sheet.

    Args:
        units: one row per slide or patient: `patient_id`, `slide_id`, `site`, `label` (a follow-up
            as text, such as `412+`), and the columns.
        columns: if empty, or constant in the training part, the Kaplan–Meier curve of the training
            part is predicted for all.
        folds: as returned by `make_folds`.

    Returns:
        `patient_id`, `slide_id`, `site`, `repeat`, `fold`, `y`, `risk`, `s_<time>` and `threshold`
        (median risk of the training part), as for a head of `mil.hazard`.

    Raises:
        StainsslError: nothing is tested.
    """
    time, event = follow_up(units["label"])
    times = np.array(horizons_of(units["label"].unique()))
    grid = np.linspace(0, times[-1], _STEPS + 1)

    def predict(training: NDArray[np.bool_]) -> dict[str, Any]:
        features = (
            column_features(units, columns, training) if columns else np.empty((len(time), 0))
        )
        curves = _cox_curves(features, time, event, training, np.r_[grid, times])
        risk = time_lost(grid, curves[:, : len(grid)])
        survival = curves[:, len(grid) :].T
        return {
            "y": units["label"].to_numpy(object), RISK: risk,
            **{f"{SURVIVAL}{at:g}": said for at, said in zip(times, survival, strict=True)},
            THRESHOLD: np.full(len(risk), np.median(risk[training])),
        }  # fmt: skip

    return _over_folds(units, folds, predict)


def _cox_curves(
    features: NDArray[Any], time: Floats, event: NDArray[np.bool_], training: NDArray[np.bool_],
    at: Floats,
) -> Floats:  # fmt: skip
    """(N, T) survival of all units at times `at`, by a model fitted on the training units."""
    varied = features[training].std(axis=0) > 0
    if not varied.any():
        return np.tile(_kaplan_meier(time[training], event[training], at), (len(time), 1))
    from lifelines import CoxPHFitter  # takes a second; only survival needs it

    known = features[:, varied].astype(float)
    # Clipped to the range of the training part: far outside, the exponential would overflow.
    known = np.clip(known, known[training].min(axis=0), known[training].max(axis=0))
    table = pd.DataFrame(known).add_prefix("x")
    own = table[training].assign(time=time[training], event=event[training])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an uninformative column is not an error
        model = CoxPHFitter(penalizer=COX_PENALTY).fit(own, "time", "event")
    return np.asarray(model.predict_survival_function(table, times=at).to_numpy().T)


def _kaplan_meier(time: Floats, event: NDArray[np.bool_], at: Floats) -> Floats:
    from scipy.stats import CensoredData, ecdf

    return np.asarray(ecdf(CensoredData.right_censored(time, ~event)).sf.evaluate(at))


# --- by kind of label --------------------------------------------------------------------------


def _classes(
    units: pd.DataFrame, columns: Sequence[str], folds: pd.DataFrame, seed: int, labels: Labels
) -> pd.DataFrame:
    return predict_from_columns(units, columns, folds, seed, labels.order(units["label"]))


def _ordered(
    units: pd.DataFrame, columns: Sequence[str], folds: pd.DataFrame, seed: int, labels: Labels
) -> pd.DataFrame:
    said = _classes(units, columns, folds, seed, labels)
    p = said[[f"p_{name}" for name in labels.order(units["label"])]].to_numpy(float)
    return said.assign(**{GRADE: p @ np.arange(p.shape[1])})


@dataclass(frozen=True)
class Baseline:
    """Baselines for a kind of label.

    Attributes:
        predict: units, columns, folds, seed, and how the label is read → test predictions.
        floor: name in the table of the prediction without columns; None: there is none.
        note: note of the table about that prediction.
    """

    predict: Callable[[pd.DataFrame, Sequence[str], pd.DataFrame, int, Labels], pd.DataFrame]
    floor: str | None = None
    note: str = ""


BASELINES: dict[str, Baseline] = {
    "classification": Baseline(_classes),
    "ordinal": Baseline(_ordered),
    "regression": Baseline(
        lambda units, columns, folds, *_: predict_number_from_columns(units, columns, folds),
        MEAN,
        f"{MEAN}: the training patients' mean, predicted for every patient.",
    ),
    "survival": Baseline(
        lambda units, columns, folds, *_: predict_survival_from_columns(units, columns, folds),
        KAPLAN_MEIER,
        f"{KAPLAN_MEIER}: the training patients' survival curve, predicted for every patient.",
    ),
}
FLOORS = {one.floor: one.note for one in BASELINES.values() if one.floor is not None}
