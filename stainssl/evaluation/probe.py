"""Linear and nearest-neighbor probes: predict a label from the embeddings of tiles."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stainssl.errors import StainsslError
from stainssl.evaluation.centring import centred, site_means
from stainssl.evaluation.folds import each_fold
from stainssl.evaluation.recalibration import UNCHANGED, Recalibration
from stainssl.evaluation.thresholds import DecisionRule

if TYPE_CHECKING:  # takes most of a second, and heads do not need it
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

Vectors = NDArray[np.float32]
Ints = NDArray[np.int64]
# Penalties on the squared weights, relative to the mean (not summed) loss, so that they do not
# depend on the number of tiles. From strong to weak: each fit starts from the previous one.
PENALTIES = (10.0, 1.0, 0.1, 0.01, 0.001)
DEFAULT_PENALTY = 0.01  # without validation patients
MAX_TRAIN_TILES = 20_000
MAX_CHOOSING_TILES = 5_000
NEIGHBOURS = 20
SHOTS = (1, 2, 4, 8, 16, 32, 64, 128)  # training tiles per class
DRAWS = 10  # per number of shots
_BLOCK = 2048  # test tiles processed at once
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tiles:
    """Labelled tiles of a task.

    Args:
        features: (N, D) float32, finite.
        y: (N,) class, index into `classes`.
        classes: class names.
        table: N rows: `patient_id`, `slide_id`, `tile`, `site`.
        center: (N,) site whose mean is subtracted from a tile's vector; None: no centering.
    """

    features: Vectors
    y: Ints
    classes: tuple[str, ...]
    table: pd.DataFrame
    center: NDArray[Any] | None = None

    def rows(self, patients: set[str]) -> Ints:
        """Indices of the tiles of these patients."""
        return np.flatnonzero(self.table["patient_id"].isin(patients).to_numpy())

    def of_fold(self, role: Mapping[str, set[str]]) -> tuple[Tiles, Ints, Ints]:
        """Tiles of a fold, centered by site if `center` is given.

        Means are those of the training and validation patients; test tiles of a site without such
        patients are left out.

        Args:
            role: `train`, `val` and `test` → patients.

        Returns:
            The tiles, and the row indices for training (validation included) and for testing.
        """
        training, test = self.rows(role["train"] | role["val"]), self.rows(role["test"])
        if self.center is None:
            return self, training, test
        slide = self.table["slide_id"].to_numpy()
        means = site_means(self.features[training], slide[training], self.center[training])
        known = np.isin(self.center[test], list(means))
        if not known.all():
            log.warning("%d tiles of sites without training patients left out", int((~known).sum()))
        test = test[known]
        features = self.features.copy()
        both = np.concatenate([training, test])
        features[both] = centred(self.features[both], self.center[both], means)
        return replace(self, features=features), training, test


def balanced_sample(patient: NDArray[Any], count: int, rng: np.random.Generator) -> Ints:
    """Draw at most `count` rows, as evenly as possible from all patients.

    Args:
        patient: (N,) patient of each row.
        count: maximum number of rows.
        rng: random generator.

    Returns:
        Row indices in increasing order; all rows if there are at most `count`.
    """
    if len(patient) <= count:
        return np.arange(len(patient))
    shuffled = rng.permutation(len(patient))
    turn = pd.Series(patient[shuffled]).groupby(patient[shuffled]).cumcount().to_numpy()
    return np.sort(shuffled[np.argsort(turn, kind="stable")[:count]])


@dataclass(frozen=True)
class Linear:
    """Standardization and logistic regression for K classes, some possibly absent from training.

    Attributes:
        scaler: fitted standardization.
        model: fitted logistic regression.
        classes: K.
        thresholds: column of the predictions → threshold.
        recalibration: applied to the probabilities.
    """

    scaler: StandardScaler
    model: LogisticRegression
    classes: int
    thresholds: Mapping[str, float] = field(default_factory=dict)
    recalibration: Recalibration = UNCHANGED

    def __call__(self, features: Vectors) -> NDArray[np.float64]:
        """(N, K) class probabilities of (N, D) features; 0 for classes absent from training."""
        out = np.zeros((len(features), self.classes))
        out[:, self.model.classes_] = self.model.predict_proba(self.scaler.transform(features))
        return self.recalibration(out)


def _path(
    features: Vectors,
    y: Ints,
    classes: int,
    penalties: Sequence[float],
    class_weight: str | None = None,
) -> Iterator[Linear]:
    # One probe per penalty, each starting from the weights of the previous one.
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    if len(np.unique(y)) < 2:
        raise StainsslError(
            "The training tiles have one class only: a probe needs tiles of two classes in the"
            " training part. Check the labels, or use another split."
        )
    scaler = StandardScaler().fit(features)
    scaled = scaler.transform(features)
    last: LogisticRegression | None = None
    for penalty in penalties:
        model = LogisticRegression(
            C=1 / (penalty * len(y)),
            max_iter=300,
            tol=1e-3,
            warm_start=last is not None,
            class_weight=class_weight,
        )
        if last is not None:
            model.coef_, model.intercept_ = last.coef_, last.intercept_
            model.classes_ = last.classes_
        last = model.fit(scaled, y)
        yield Linear(scaler, model, classes)


def fit_linear(
    features: Vectors, y: Ints, classes: int, penalty: float, class_weight: str | None = None
) -> Linear:
    """Fit a logistic regression on standardized features.

    Args:
        features: (N, D) finite.
        y: (N,) class index, 0 … classes-1.
        classes: K.
        penalty: on the squared weights, relative to the mean loss.
        class_weight: `balanced` (equal weight of all classes) or None.

    Raises:
        StainsslError: one class only.
    """
    return next(_path(features, y, classes, (penalty,), class_weight))


def choose_penalty(
    train: tuple[Vectors, Ints],
    val: tuple[Vectors, Ints],
    classes: int,
    class_weight: str | None = None,
) -> tuple[float, Linear | None]:
    """The penalty of `PENALTIES` with the lowest log-loss on the validation tiles.

    Once the loss has increased, weaker penalties, which take longest to fit, are not tried.

    Args:
        train: (features, y) of the training tiles.
        val: (features, y) of tiles of other patients.
        classes: K.
        class_weight: `balanced` or None, for the fit and the loss.

    Returns:
        The penalty and its probe; `DEFAULT_PENALTY` and None without validation tiles.

    Raises:
        StainsslError: one class only in training.
    """
    from sklearn.metrics import log_loss
    from sklearn.utils.class_weight import compute_sample_weight

    if not len(val[1]):
        return DEFAULT_PENALTY, None
    weights = compute_sample_weight(class_weight, val[1])
    losses: list[float] = []
    models: list[Linear] = []
    for model in _path(*train, classes, PENALTIES, class_weight):
        # A copy, since the next fit starts from these weights.
        models.append(replace(model, model=deepcopy(model.model)))
        p = model(val[0])
        losses.append(log_loss(val[1], p, labels=np.arange(classes), sample_weight=weights))
        if losses[-1] > min(losses):
            break
    best = int(np.argmin(losses))
    return PENALTIES[best], models[best]


def linear_probe(
    features: Vectors,
    y: Ints,
    patient: NDArray[Any],
    val: NDArray[np.bool_],
    classes: int,
    seed: int,
    *,
    class_weight: str | None = None,
    decision_rule: DecisionRule | None = None,
) -> tuple[Linear, float]:
    """Fit a linear probe: the penalty is chosen on validation patients, then all tiles are used.

    Args:
        features: (N, D) of training and validation patients.
        y: (N,) class index.
        patient: (N,) patient of each tile.
        val: (N,) True for tiles of validation patients.
        classes: K.
        seed: of the samples of tiles, balanced over patients, that limit the computing time.
        class_weight: `balanced` or None.
        decision_rule: recalibration and thresholds, determined on predictions for validation
            patients by the probe fitted without them; None: neither.

    Returns:
        The probe and its penalty.

    Raises:
        StainsslError: one class only in training.
    """
    rng = np.random.default_rng(seed)
    of_train, of_val = np.flatnonzero(~val), np.flatnonzero(val)
    fit = of_train[balanced_sample(patient[of_train], MAX_CHOOSING_TILES, rng)]
    check = of_val[balanced_sample(patient[of_val], MAX_CHOOSING_TILES, rng)]
    train, held_out = (features[fit], y[fit]), (features[check], y[check])
    penalty, chosen = choose_penalty(train, held_out, classes, class_weight)
    final = balanced_sample(patient, MAX_TRAIN_TILES, rng)
    made = fit_linear(features[final], y[final], classes, penalty, class_weight)
    if decision_rule is None:
        return made, penalty
    predicted = chosen(held_out[0]) if chosen else np.empty((0, classes))
    line = decision_rule.recalibration(held_out[1], predicted)
    thresholds = decision_rule.thresholds(held_out[1], line(predicted))
    return replace(made, thresholds=thresholds, recalibration=line), penalty


def _unit_length(features: Vectors) -> Vectors:
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)


def nearest_neighbours(
    train: Vectors, y: Ints, test: Vectors, classes: int, k: int = NEIGHBOURS
) -> NDArray[np.float64]:
    """(M, K) share of each class among the k nearest training tiles by cosine similarity.

    Vectors are centered by the training mean.

    Args:
        train: (N, D) training vectors.
        y: (N,) class index of the training tiles.
        test: (M, D) test vectors.
        classes: K.
        k: number of neighbors; all training tiles if there are fewer.
    """
    k = min(k, len(train))
    centre = train.mean(axis=0)  # cosines of uncentered features are all near one
    known = _unit_length(train - centre)
    out = np.zeros((len(test), classes))
    for start in range(0, len(test), _BLOCK):
        near = _unit_length(test[start : start + _BLOCK] - centre) @ known.T
        nearest = np.argpartition(-near, k - 1, axis=1)[:, :k]
        for c in range(classes):
            out[start : start + _BLOCK, c] = (y[nearest] == c).mean(axis=1)
    return out


def prediction_rows(
    table: pd.DataFrame, y: Ints, classes: Sequence[str], p: NDArray[Any]
) -> pd.DataFrame:
    """Add the true class (`y`) and the predicted probabilities (`p_<class>`) to a table of tiles.

    Args:
        table: n rows: `patient_id`, `slide_id`, `tile`, `site`.
        y: (n,) class index.
        classes: K class names.
        p: (n, K) probabilities.
    """
    said = {f"p_{name}": p[:, c] for c, name in enumerate(classes)}
    return table.reset_index(drop=True).assign(y=np.asarray(classes, object)[y], **said)


def _prediction_rows(tiles: Tiles, rows: Ints, p: NDArray[Any]) -> pd.DataFrame:
    return prediction_rows(tiles.table.iloc[rows], tiles.y[rows], tiles.classes, p)


def probe(
    tiles: Tiles,
    folds: pd.DataFrame,
    *,
    seed: int = 0,
    class_weight: str | None = "balanced",
    decision_rule: DecisionRule | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Test predictions of the linear and the nearest-neighbor probe in all folds.

    Args:
        tiles: labelled tiles of the task.
        folds: as returned by `make_folds`.
        seed: of the samples of tiles that limit the computing time.
        class_weight: `balanced` or None, for the linear probe.
        decision_rule: recalibration and thresholds of the linear probe; None: `DecisionRule()`.

    Returns:
        Two tables (linear, nearest neighbors): `patient_id`, `slide_id`, `tile`, `site`, `repeat`,
        `fold`, `y` (class name), `p_<class>`, and the thresholds (linear, two classes).

    Raises:
        StainsslError: the training part of a fold has one class only, or no test tile is labelled.
    """
    linear, neighbours = [], []
    stored = tiles
    for repeat, fold, role in each_fold(folds):
        tiles, training, test = stored.of_fold(role)
        x, y = tiles.features[training], tiles.y[training]
        patient = tiles.table["patient_id"].to_numpy()[training]
        val = np.isin(patient, sorted(role["val"]))
        model, penalty = linear_probe(
            x, y, patient, val, len(tiles.classes), seed,
            class_weight=class_weight, decision_rule=decision_rule or DecisionRule(),
        )  # fmt: skip
        log.info(
            "repeat %d fold %d: %d training and %d test tiles, penalty %g",
            repeat, fold, len(training), len(test), penalty,
        )  # fmt: skip
        near = balanced_sample(patient, MAX_TRAIN_TILES, np.random.default_rng(seed))
        scored = nearest_neighbours(x[near], y[near], tiles.features[test], len(tiles.classes))
        place = {"repeat": repeat, "fold": fold}
        rows = _prediction_rows(tiles, test, model(tiles.features[test]))
        linear.append(rows.assign(**place, **model.thresholds))
        neighbours.append(_prediction_rows(tiles, test, scored).assign(**place))
    if not sum(map(len, linear)):
        raise StainsslError("No test patient has a labelled tile: check labels and split.")
    return pd.concat(linear, ignore_index=True), pd.concat(neighbours, ignore_index=True)


def few_shot(tiles: Tiles, folds: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """AUROC of linear probes trained on few labelled tiles, in the folds of the first repeat.

    Each draw takes `shots` tiles per class from the training part, as evenly as possible from all
    patients. The penalty is `DEFAULT_PENALTY`, as so few tiles do not allow choosing one. Folds
    with a single class among training or test tiles are left out.

    Args:
        tiles: labelled tiles of the task.
        folds: as returned by `make_folds`.
        seed: of the draws.

    Returns:
        `shots`, `draw` and `auroc` (one-vs-rest, mean over folds): `DRAWS` rows for each of `SHOTS`
        for which every class has enough training tiles in every fold.
    """
    first = folds[folds["repeat"] == folds["repeat"].min()]
    patient = tiles.table["patient_id"].to_numpy()
    rows, stored = [], tiles
    for _, fold, role in each_fold(first):
        tiles, training, test = stored.of_fold(role)
        rng = np.random.default_rng([seed, fold])
        test = test[balanced_sample(patient[test], MAX_CHOOSING_TILES, rng)]
        by_class = [training[tiles.y[training] == c] for c in np.unique(tiles.y[training])]
        if len(np.unique(tiles.y[test])) < 2 or len(by_class) < 2:
            continue
        for shots in (s for s in SHOTS if s <= min(map(len, by_class))):
            for draw in range(DRAWS):
                chosen = np.concatenate([
                    rows_of[balanced_sample(patient[rows_of], shots, rng)] for rows_of in by_class
                ])  # fmt: skip
                rows.append((fold, shots, draw, _shot_auroc(tiles, chosen, test)))
    table = pd.DataFrame(rows, columns=["fold", "shots", "draw", "auroc"])
    everywhere = table.groupby("shots")["fold"].transform("nunique") == table["fold"].nunique()
    table = table[everywhere]
    return table.groupby(["shots", "draw"], as_index=False)["auroc"].mean()


def _shot_auroc(tiles: Tiles, chosen: Ints, test: Ints) -> float:
    from sklearn.metrics import roc_auc_score

    model = fit_linear(tiles.features[chosen], tiles.y[chosen], len(tiles.classes), DEFAULT_PENALTY)
    p, y = model(tiles.features[test]), tiles.y[test]
    classes = [1] if len(tiles.classes) == 2 else np.unique(y).tolist()
    return float(np.mean([roc_auc_score(y == c, p[:, c]) for c in classes]))
