"""What a change of stain or site does to an encoder's vectors, and to a probe on them."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stainssl.errors import StainsslError
from stainssl.evaluation.folds import class_order, each_fold, make_folds
from stainssl.evaluation.intervals import combine, drawn_estimate
from stainssl.evaluation.metrics import (
    RESAMPLES,
    estimate,
    evaluate,
    patient_weights,
    weighted_mean,
)
from stainssl.evaluation.predictions import Floats, ScoredUnits, read_scored
from stainssl.evaluation.probe import balanced_sample, linear_probe

Vectors = NDArray[np.float32]
Ints = NDArray[np.int64]
CONFOUNDING = 0.9  # share of training tiles whose stain goes with their label; tested reversed
RETRIEVAL_RANKS = (1, 10)
CROMA_NEIGHBOURS = (5, 11, 21)
CROMA_TILES = 600  # the package searches and filters neighbours at length: a third of a minute
JACKKNIFE_GROUPS = 20
log = logging.getLogger(__name__)


class Figure(NamedTuple):
    """A row of `metrics.csv`: a figure with its 95 % interval over patients."""

    metric: str
    group: str
    value: float
    low: float
    high: float
    patients: int
    units: int


@dataclass(frozen=True)
class Stainings:
    """The same N tiles as they are and under two stainings, as one encoder sees them.

    Args:
        original, first, second: (N, D) vectors, finite.
        table: N rows: `patient_id`, `slide_id`, `tile`, `site`, `label` (class word).
    """

    original: Vectors
    first: Vectors
    second: Vectors
    table: pd.DataFrame

    @property
    def patient(self) -> Ints:
        """(N,) index of the tile's patient."""
        return _index(self.table["patient_id"])


def _index(words: pd.Series) -> Ints:
    return np.unique(words.to_numpy(str), return_inverse=True)[1]


def unit_length(vectors: Vectors) -> Vectors:
    """(N, D) vectors of length one; a zero vector stays zero."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


# --- intervals over patients ------------------------------------------------------------------


def _plain_weights(patient: Ints, seed: int) -> Floats:
    one_class = np.zeros(len(patient), np.int64)
    scored = ScoredUnits(one_class, np.zeros((len(patient), 2)), patient, ("0", "1"))
    return patient_weights(scored, RESAMPLES, seed)


def _figure(
    metric: str, value: float, resampled: Floats, patient: Ints, group: str = "all"
) -> Figure:
    patients = len(np.unique(patient))
    low, high = drawn_estimate(float(value), resampled, patients).interval
    return Figure(metric, group, float(value), low, high, patients, len(patient))


def mean_figure(metric: str, values: NDArray[Any], patient: Ints, seed: int) -> Figure:
    """Mean of (N,) tile values with its bootstrap interval over patients."""
    drawn = weighted_mean(np.asarray(values, float), patient, _plain_weights(patient, seed))
    return _figure(metric, float(np.mean(values)), drawn, patient)


def median_figure(metric: str, values: NDArray[Any], patient: Ints, seed: int) -> Figure:
    """Median of (N,) tile values with its bootstrap interval over patients."""
    order = np.argsort(values)
    cumulative = np.cumsum(_plain_weights(patient, seed)[:, patient[order]], axis=1)
    place = (cumulative < cumulative[:, -1:] / 2).sum(axis=1)
    return _figure(
        metric, float(np.median(values)), np.asarray(values, float)[order][place], patient
    )


def jackknife_figure(
    metric: str, value_of: Callable[[NDArray[np.bool_]], float], patient: Ints
) -> Figure:
    """A figure that cannot be resampled with repeats, with a delete-a-group jackknife interval.

    Duplicated patients would lower a rank and feed neighbours to themselves, so groups of
    patients are left out in turn instead (Efron and Tibshirani, 1993, chapter 11).

    Args:
        value_of: the figure of the tiles where (N,) is True.
        patient: (N,) index of the tile's patient.
    """
    everything = np.ones(len(patient), bool)
    value = value_of(everything)
    patients = len(np.unique(patient))
    groups = min(patients, JACKKNIFE_GROUPS)
    if groups < 3:
        return Figure(metric, "all", value, float("nan"), float("nan"), patients, len(patient))
    left_out = np.array([value_of(patient % groups != group) for group in range(groups)])
    error = np.sqrt((groups - 1) / groups * ((left_out - left_out.mean()) ** 2).sum())
    return Figure(
        metric, "all", value, value - 1.96 * error, value + 1.96 * error, patients, len(patient)
    )


# --- geometry ----------------------------------------------------------------


def similarity(stainings: Stainings, seed: int) -> Iterator[Figure]:
    """Cosine of a tile with itself under the other stain, with other tiles, and the margin."""
    first, second = unit_length(stainings.first), unit_length(stainings.second)
    cosine = first @ second.T
    same = np.diagonal(cosine)
    other = (cosine.sum(axis=1) - same) / max(len(cosine) - 1, 1)
    patient = stainings.patient
    yield mean_figure("stain_cosine", same, patient, seed)
    yield mean_figure("other_cosine", other, patient, seed)
    yield mean_figure("stain_margin", same - other, patient, seed)


def retrieval(stainings: Stainings, seed: int) -> Iterator[Figure]:
    """How often a tile finds itself among all tiles under the other stain (both ways, mean)."""
    cosine = unit_length(stainings.first) @ unit_length(stainings.second).T
    same = np.diagonal(cosine)
    # Ties count against the tile: a collapsed encoder, to which all are alike, finds nothing.
    rank = [(matrix >= same[:, None]).sum(axis=1) for matrix in (cosine, cosine.T)]
    patient = stainings.patient
    for top in RETRIEVAL_RANKS:
        hits = np.mean([r <= top for r in rank], axis=0)
        yield mean_figure(f"stain_retrieval_top{top}", hits, patient, seed)


def effective_rank(vectors: Vectors) -> float:
    """Exponential of the entropy of the singular values (Roy and Vetterli, 2007), centred."""
    centred = vectors - vectors.mean(axis=0)
    gram = centred.T @ centred if len(vectors) > vectors.shape[1] else centred @ centred.T
    singular = np.sqrt(np.clip(np.linalg.eigvalsh(gram.astype(np.float64)), 0, None))
    if singular.sum() <= 1e-12:
        return 1.0
    share = singular / singular.sum()
    return float(np.exp(-(share * np.log(np.maximum(share, 1e-12))).sum()))


def geometry(stainings: Stainings, seed: int) -> Iterator[Figure]:
    """Effective rank of the originals; alignment and uniformity (Wang and Isola, 2020).

    Alignment is the mean squared distance of the two stainings of a tile, uniformity the
    logarithm of the mean Gaussian kernel of two different tiles, both of vectors of length one.
    """
    patient = stainings.patient
    original = stainings.original
    yield jackknife_figure("effective_rank", lambda kept: effective_rank(original[kept]), patient)
    first, second = unit_length(stainings.first), unit_length(stainings.second)
    yield mean_figure("alignment", ((first - second) ** 2).sum(axis=1), patient, seed)
    yield _uniformity(unit_length(original), patient, seed)


def _uniformity(vectors: Vectors, patient: Ints, seed: int) -> Figure:
    kernel = np.exp(4 * (vectors @ vectors.T).astype(np.float64) - 4)  # exp(-2 |x - y|²)
    np.fill_diagonal(kernel, 0)
    member = np.eye(patient.max() + 1)[patient]
    sums = member.T @ kernel @ member  # by pair of patients
    count = member.sum(axis=0)
    pairs = np.outer(count, count) - np.diag(count)
    weights = np.r_[np.ones((1, len(count))), _plain_weights(patient, seed)]
    top, bottom = (
        np.einsum("rp,pq,rq->r", weights, m, weights, optimize=True) for m in (sums, pairs)
    )
    values = np.log(np.maximum(top, 1e-300) / np.maximum(bottom, 1))
    return _figure("uniformity", float(values[0]), values[1:], patient)


# --- sites ------------------------------------------------------------------------------------


def site_probe(stainings: Stainings, seed: int) -> Iterator[Figure]:
    """Balanced accuracy of a linear probe that tells the site, patients held out; and chance."""
    sites = stainings.table.groupby("patient_id")["site"].first()
    sites = sites[sites != ""]
    counts = sites.value_counts()
    sites = sites[sites.map(counts) >= 3]  # a site tests, validates and trains
    if sites.nunique() < 2:
        log.info("site probe left out: two sites of three patients are needed")
        return
    patients = pd.DataFrame({"patient_id": sites.index, "label": sites.to_numpy()})
    folds = int(min(5, patients["label"].value_counts().min()))
    kept = stainings.table["patient_id"].isin(set(sites.index)).to_numpy()
    table = stainings.table[kept].assign(label=stainings.table.loc[kept, "site"])
    split = make_folds(patients, kind="cv", folds=folds, seed=seed)
    predicted = _probe_predictions(
        stainings.original[kept], stainings.original[kept], table, split, seed
    )
    row = evaluate(predicted.drop(columns="site"), "tile", seed).set_index("metric")
    found = row.loc["balanced_accuracy"]
    yield Figure("site_predictability", *found[_REST])
    chance = 1 / sites.nunique()
    yield Figure("site_chance", "all", chance, chance, chance, *found[["patients", "units"]])


_REST = ["group", "value", "low", "high", "patients", "units"]


def robustness_indices(stainings: Stainings, seed: int) -> Iterator[Figure]:
    """Robustness index (PathoROB) and CRoMa by the package `croma`: do labels or sites rule?

    Tiles of known site are used; those of one patient are never each other's neighbours. Left
    out, with the reason in the log, where no label stands at two sites.
    """
    table = stainings.table
    known = np.flatnonzero(table["site"] != "")
    rng = np.random.default_rng(seed)
    patient = table["patient_id"].to_numpy(str)
    known = known[balanced_sample(patient[known], CROMA_TILES, rng)]
    table = table.iloc[known]
    crossed = table.groupby("label")["site"].nunique()
    if len(crossed) < 2 or crossed.min() < 2:
        log.info("robustness index left out: each of two labels must stand at two sites")
        return
    try:
        yield from _croma(stainings.original[known], table, _index(table["patient_id"]), seed)
    except (ValueError, RuntimeError) as error:  # too few neighbours of a kind, or none apart
        log.info("robustness index left out: %s", error)


def _croma(vectors: Vectors, table: pd.DataFrame, patient: Ints, seed: int) -> Iterator[Figure]:
    from croma import RI, CRoMa

    manifest = pd.DataFrame(
        {
            "sample_id": np.arange(len(table)).astype(str),
            "image_path": "",
            "label": table["label"].to_numpy(),
            "group_id": table["patient_id"].to_numpy(),
            "site": table["site"].to_numpy(),
        }
    )
    features = vectors.astype(np.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of thin support, which is a figure below
        ri = RI.compute(features, manifest, confounder_column="site", k_candidates=CROMA_NEIGHBOURS)

    def index_of(kept: NDArray[np.bool_]) -> float:
        part = manifest[kept].reset_index(drop=True)
        return RI.compute_curve(features[kept], part, confounder_column="site", k_values=[ri.k])[
            ri.k
        ]

    yield jackknife_figure("robustness_index", index_of, patient)
    yield mean_figure(
        "robustness_index_support", np.isfinite(ri.sample_values_aligned), patient, seed
    )
    margin = CRoMa.compute(features, manifest, confounder_column="site")
    yield median_figure("croma", margin.sample_values_aligned, patient, seed)


# --- probes -----------------------------------------------------------------------------------


def _probe_predictions(
    train: Vectors, test: Vectors, table: pd.DataFrame, folds: pd.DataFrame, seed: int
) -> pd.DataFrame:
    # A linear probe for `label` of every fold: fitted on rows of `train`, scored on rows of
    # `test`, both (N, D) with the rows of `table`.
    classes = class_order(table["label"].unique().tolist())
    y = table["label"].map({name: i for i, name in enumerate(classes)}).to_numpy()
    patient = table["patient_id"].to_numpy()
    parts = []
    for repeat, fold, role in each_fold(folds):
        fit = np.isin(patient, sorted(role["train"] | role["val"]))
        tested = np.isin(patient, sorted(role["test"]))
        val = np.isin(patient[fit], sorted(role["val"]))
        model, _ = linear_probe(train[fit], y[fit], patient[fit], val, len(classes), seed)
        p = pd.DataFrame(model(test[tested]), columns=[f"p_{name}" for name in classes])
        rows = table[tested].reset_index(drop=True).rename(columns={"label": "y"})
        parts.append(pd.concat([rows.assign(repeat=repeat, fold=fold), p], axis=1))
    return pd.concat(parts, ignore_index=True)


def _auroc_figures(metric: str, predictions: pd.DataFrame, seed: int) -> list[Figure]:
    rows = evaluate(predictions, "tile", seed)
    rows = rows[rows["metric"] == "auroc"]
    return [Figure(metric, *row) for row in rows[_REST].itertuples(index=False)]


def confounded_vectors(
    stainings: Stainings, share: float, seed: int, positive: str
) -> tuple[Vectors, Vectors]:
    """Training and test vectors where the stain goes with the label, and where it is reversed.

    Args:
        share: of tiles whose stain goes with the label in training: the first staining with the
            positive class. 0.5 is no confounding.
        seed: of the draw, which depends on nothing else: every encoder sees the same tiles.
        positive: class word.

    Returns:
        (N, D) each; the training and test patients' rows are to be taken of them.
    """
    rng = np.random.default_rng(seed)
    is_positive = (stainings.table["label"] == positive).to_numpy()
    follows = rng.random(len(is_positive)) < share
    first_in_training = is_positive == follows
    both = stainings.first, stainings.second
    train, test = (
        np.where(first[:, None], *both) for first in (first_in_training, ~first_in_training)
    )
    return train, test


def confounded_test(
    stainings: Stainings, folds: pd.DataFrame, seed: int
) -> tuple[list[Figure], pd.DataFrame]:
    """A probe trained with stain going with the label 90 % of the time, tested with it reversed.

    Beside it the same with stain and label independent (`mixed_auroc`): the difference is what the
    shortcut costs, not what re-staining costs.

    Args:
        folds: of the task; the rows' patients are in them.

    Returns:
        Figures `confounded_auroc` and `mixed_auroc`, over all and per site, and the confounded
        test's predictions. Nothing where the task has not two classes.
    """
    classes = class_order(stainings.table["label"].unique().tolist())
    if len(classes) != 2:
        log.info("confounded test left out: it needs two classes, found %d", len(classes))
        return [], pd.DataFrame()
    figures, kept = [], pd.DataFrame()
    for name, share in (("mixed_auroc", 0.5), ("confounded_auroc", CONFOUNDING)):
        train, test = confounded_vectors(stainings, share, seed, classes[1])
        kept = _probe_predictions(train, test, stainings.table, folds, seed)
        figures += _auroc_figures(name, kept, seed)
    return figures, kept


def site_figures(stainings: Stainings, folds: pd.DataFrame, seed: int) -> list[Figure]:
    """AUROC of a probe on the tiles as they are, per site, of the worst site, and its drop.

    The drop is to sites that training has not seen: the out-of-fold AUROC on the training patients
    less that on the test patients; it is left out where the folds test at sites that they train at.
    """
    predicted = _probe_predictions(
        stainings.original, stainings.original, stainings.table, folds, seed
    )
    figures = _auroc_figures("clean_auroc", predicted, seed)
    per_site = [f for f in figures if f.group != "all" and np.isfinite(f.value)]
    if per_site:
        worst = min(per_site, key=lambda figure: figure.value)
        figures.append(worst._replace(metric="worst_site_auroc"))
    return figures + _site_drop(stainings, folds, predicted, seed)


def _site_drop(
    stainings: Stainings, folds: pd.DataFrame, unseen: pd.DataFrame, seed: int
) -> list[Figure]:
    first = folds[(folds["repeat"] == folds["repeat"].min()) & (folds["fold"] == 0)]
    one_fold = len(folds) == len(first)
    role = stainings.table["patient_id"].map(first.set_index("patient_id")["role"])
    tested, sites = (role == "test").to_numpy(), stainings.table["site"]
    if not one_fold or set(sites[tested]) & set(sites[~tested]):
        log.info("drop to unseen sites left out: it needs one fold whose test sites train nothing")
        return []
    seen = _seen_predictions(stainings, ~tested, seed)
    if seen is None:
        return []
    drop = combine(
        [
            estimate("auroc", read_scored(rows, "tile"), seed=own_seed)
            for rows, own_seed in ((seen, seed), (unseen, seed + 1))
        ],
        [1, -1],
    )
    patients = stainings.patient[role.notna().to_numpy()]
    return [*_auroc_figures("seen_site_auroc", seen.drop(columns="site"), seed),
            Figure("site_drop", "all", drop.value, *drop.interval,
                   len(np.unique(patients)), len(patients))]  # fmt: skip


def _seen_predictions(
    stainings: Stainings, training: NDArray[np.bool_], seed: int
) -> pd.DataFrame | None:
    # Out-of-fold predictions on the training patients, in folds of their own.
    table = stainings.table[training]
    by_patient = table.groupby("patient_id")
    patients = by_patient[["label", "site"]].agg({"label": "max", "site": "first"}).reset_index()
    try:
        folds = make_folds(
            patients.assign(label=""), kind="cv", folds=5, stratify=["site"], seed=seed
        )
        vectors = stainings.original[training]
        return _probe_predictions(vectors, vectors, table, folds, seed)
    except StainsslError as error:
        log.info("drop to unseen sites left out: %s", error)
        return None


def measure_unlabelled(stainings: Stainings, *, seed: int = 0) -> list[Figure]:
    """Every robustness figure that asks for no label: of two stainings, and whether sites show."""
    return [
        figure
        for part in (similarity, retrieval, geometry, site_probe)
        for figure in part(stainings, seed)
    ]


def measure(
    stainings: Stainings, folds: pd.DataFrame, *, seed: int = 0
) -> tuple[list[Figure], pd.DataFrame]:
    """Every robustness figure of one encoder on one task's tiles.

    Args:
        stainings: tiles of patients that `folds` names.
        folds: of the task.
        seed: of resamples and draws.

    Returns:
        Figures, and the predictions of the confounded test (empty where it does not apply).
    """
    figures = [*measure_unlabelled(stainings, seed=seed), *robustness_indices(stainings, seed)]
    tests, predictions = confounded_test(stainings, folds, seed)
    return [*figures, *tests, *site_figures(stainings, folds, seed)], predictions


def most_different(coordinates: NDArray[Any], names: Sequence[str]) -> tuple[str, str]:
    """The two names whose (G, D) coordinates lie farthest apart, in order of the names."""
    distance = np.linalg.norm(coordinates[:, None] - coordinates[None], axis=-1)
    i, j = np.unravel_index(int(np.argmax(np.triu(distance))), distance.shape)
    return names[int(i)], names[int(j)]
