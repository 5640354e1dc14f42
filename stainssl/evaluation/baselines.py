"""Baselines that see no tissue: how well columns of the sheet predict a label."""

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

SITE, CLINICAL = "site only", "clinical only"  # how the table names them
MEAN = "mean of training"  # of a label that is a number
KAPLAN_MEIER = "Kaplan-Meier of training"  # of a time to an event
COX_PENALTY = 0.1  # of squared coefficients, of columns in standard deviations
_STEPS = 200  # of the curve that time lost is integrated of
PENALTIES = np.logspace(-3, 4, 15)  # of the ridge, for columns in standard deviations
HEAD = "columns"


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


def _over_folds(
    units: pd.DataFrame,
    folds: pd.DataFrame,
    answer: Callable[[NDArray[np.bool_]], dict[str, Vectors]],
) -> pd.DataFrame:
    """What a model of each fold's training part says of its test units.

    Args:
        units: as the baselines take them.
        folds: as `make_folds` gives.
        answer: (N,) which units train → column → (N,) what is said of every unit.

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
            said = {name: column[test] for name, column in answer(training).items()}
            tables.append(units.loc[test, names].assign(repeat=repeat, fold=fold, **said))
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
        columns: none: everybody gets the training part's mean.
        folds: as `make_folds` gives.

    Returns:
        `patient_id`, `slide_id`, `site`, `repeat`, `fold`, `y` and `value`.

    Raises:
        StainsslError: nothing is tested.
    """
    y = pd.to_numeric(units["label"]).to_numpy(float)

    def answer(training: NDArray[np.bool_]) -> dict[str, Vectors]:
        features = column_features(units, columns, training) if columns else None
        return {"y": y, VALUE: _fitted_numbers(features, y, training)}

    return _over_folds(units, folds, answer)


def _fitted_numbers(features: Vectors | None, y: Vectors, training: NDArray[np.bool_]) -> Vectors:
    """(N,) what is said of every unit by a model of the training ones."""
    if features is None:
        return np.full(len(y), y[training].mean())
    from sklearn.linear_model import RidgeCV  # half a second; only benchmarks of numbers need it
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), RidgeCV(PENALTIES))
    return np.asarray(model.fit(features[training], y[training]).predict(features))


def predict_survival_from_columns(
    units: pd.DataFrame, columns: Sequence[str], folds: pd.DataFrame
) -> pd.DataFrame:
    """Test predictions of Cox's regression on columns of the sheet; without columns everybody's.

    Args:
        units: a row per slide or patient: `patient_id`, `slide_id`, `site`, `label` (a word of
            `follow_up`), and the columns.
        columns: none: everybody gets Kaplan and Meier's curve of the training part.
        folds: as `make_folds` gives.

    Returns:
        `patient_id`, `slide_id`, `site`, `repeat`, `fold`, `y`, `risk`, `s_<time>` and
        `threshold`, as a head of `mil.hazard` gives them.

    Raises:
        StainsslError: nothing is tested.
    """
    time, event = follow_up(units["label"])
    times = np.array(horizons_of(units["label"].unique()))
    grid = np.linspace(0, times[-1], _STEPS + 1)

    def answer(training: NDArray[np.bool_]) -> dict[str, Any]:
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

    return _over_folds(units, folds, answer)


def _cox_curves(
    features: NDArray[Any], time: Floats, event: NDArray[np.bool_], training: NDArray[np.bool_],
    at: Floats,
) -> Floats:  # fmt: skip
    """(N, T) survival of every unit at some times, by a model of the training ones."""
    varied = features[training].std(axis=0) > 0
    if not varied.any():
        return np.tile(_kaplan_meier(time[training], event[training], at), (len(time), 1))
    from lifelines import CoxPHFitter  # a second; only benchmarks of survival need it

    known = features[:, varied].astype(float)
    # At the edge where training saw nothing beyond: far out, the exponential would overflow.
    known = np.clip(known, known[training].min(axis=0), known[training].max(axis=0))
    table = pd.DataFrame(known).add_prefix("x")
    own = table[training].assign(time=time[training], event=event[training])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a column that tells next to nothing is no fault
        model = CoxPHFitter(penalizer=COX_PENALTY).fit(own, "time", "event")
    return np.asarray(model.predict_survival_function(table, times=at).to_numpy().T)


def _kaplan_meier(time: Floats, event: NDArray[np.bool_], at: Floats) -> Floats:
    from scipy.stats import CensoredData, ecdf

    return np.asarray(ecdf(CensoredData.right_censored(time, ~event)).sf.evaluate(at))


# --- of a kind of label ------------------------------------------------------------------------


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
    """What columns of the sheet say of a kind of label.

    Attributes:
        predict: units, columns, folds, seed and how the label is read → test predictions.
        floor: the table's name for a prediction without columns; None: there is none.
        note: what the table says of that.
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
