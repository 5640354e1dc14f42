"""Metrics of predictions, each with an interval over patients.

Ranking metrics are of pairs within a fold and repeat (`ranking`); metrics of calls and of
probabilities are averages over units, whose probabilities are averaged over repeats. Intervals
come from `intervals`: in closed form where every patient is one unit, else by resampling patients.
A resample is a row of patient weights, under which every tile or slide of a patient has the weight
of its patient, and each metric is computed exactly for many rows at once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stainssl.evaluation.folds import MAX_CUTS
from stainssl.evaluation.intervals import (
    CALL_LIKENESS,
    UNDEFINED,
    Estimate,
    auroc_estimate,
    bounded,
    combine,
    cross_validation_factor,
    drawn_estimate,
    rank_likeness,
    share_estimate,
    widened,
)
from stainssl.evaluation.metric import Metric, Resampled, weighted_mean, weighted_share
from stainssl.evaluation.number_metrics import (
    NUMBER_METRICS,
    drawn_number,
    tell_undefined_numbers,
)
from stainssl.evaluation.predictions import (
    Floats,
    FoldScores,
    NumberUnits,
    OrderedUnits,
    ScoredUnits,
    SurvivalUnits,
    average_repeats,
    scored_units,
    site_groups,
)
from stainssl.evaluation.ranking import (
    classes_ranked,
    folds_with_pairs,
    macro,
    pairs_of,
    safe_divide,
    weighted_auprc,
    weighted_auroc,
)
from stainssl.evaluation.survival_metrics import SURVIVAL_METRICS, tell_undefined_survival

RESAMPLES = 2000
CALIBRATION_BINS = 10  # of equal width
COLUMNS = ["metric", "group", "value", "low", "high", "patients", "units", "classes"]
NO_PAIRS = (
    "no fold tests units of two classes, so that nothing can be ranked; ranking figures are"
    " undefined. Leaving one patient out at a time is such a split: ask for folds of several"
    " patients ('kind: cv')"
)
log = logging.getLogger(__name__)


# --- calls and probabilities, for many resamples -----------------------------------------------


@dataclass(frozen=True)
class Share:
    """A share of units: of which it is, and which of them count for it."""

    of: Callable[[ScoredUnits], NDArray[np.bool_]]
    hits: Callable[[ScoredUnits], NDArray[np.bool_]]

    def resampled(self, scored: ScoredUnits, weights: Floats) -> Floats:
        """(R,) under each row of patient weights."""
        hits, of = self.hits(scored).astype(float), self.of(scored).astype(float)
        return weighted_share(hits, of, scored.patient, weights)

    def exact(self, scored: ScoredUnits) -> Estimate:
        """With Wilson's interval; every patient is one unit."""
        hits, of = np.zeros((2, scored.patients))
        hits[scored.patient], of[scored.patient] = self.hits(scored), self.of(scored)
        return share_estimate(hits, of)


def _everything(scored: ScoredUnits) -> NDArray[np.bool_]:
    return np.ones(len(scored.y), bool)


def _right(scored: ScoredUnits) -> NDArray[np.bool_]:
    return scored.predicted == scored.y


def _ruled_in(scored: ScoredUnits) -> NDArray[np.bool_]:
    assert scored.rule_out is not None
    return scored.p[:, 1] >= scored.rule_out


def _recall(k: int) -> Share:
    return Share(lambda s: s.y == k, _right)


ACCURACY = Share(_everything, _right)
SHARES = {
    "sensitivity": Share(lambda s: s.y == 1, lambda s: s.predicted == 1),
    "specificity": Share(lambda s: s.y == 0, lambda s: s.predicted == 0),
    "ppv": Share(lambda s: s.predicted == 1, lambda s: s.y == 1),
    "npv": Share(lambda s: s.predicted == 0, lambda s: s.y == 0),
}
RULE_OUT_SHARES = {
    "sensitivity_rule_out": Share(lambda s: s.y == 1, _ruled_in),
    "specificity_rule_out": Share(lambda s: s.y == 0, lambda s: ~_ruled_in(s)),
    "ppv_rule_out": Share(_ruled_in, lambda s: s.y == 1),
    "npv_rule_out": Share(lambda s: ~_ruled_in(s), lambda s: s.y == 0),
}


def _balanced_accuracy(scored: ScoredUnits, weights: Floats) -> Floats:
    return np.mean([_recall(k).resampled(scored, weights) for k in scored.present()], axis=0)


def _confusion(scored: ScoredUnits, weights: Floats) -> Floats:
    # (R, K, K) weight of the units of each true class that are called each class.
    k = len(scored.classes)
    per_patient = np.zeros((scored.patients, k * k))
    np.add.at(per_patient, (scored.patient, scored.y * k + scored.predicted), 1.0)
    return (weights @ per_patient).reshape(-1, k, k)


def _f1(scored: ScoredUnits, weights: Floats) -> tuple[Floats, Floats]:
    # (R, K) F1 of each class, 0 where it is neither there nor predicted, and its true weight.
    table = _confusion(scored, weights)
    hits = np.diagonal(table, axis1=1, axis2=2)
    true, guessed = table.sum(axis=2), table.sum(axis=1)
    return np.nan_to_num(safe_divide(2 * hits, true + guessed)), true


def _f1_macro(scored: ScoredUnits, weights: Floats) -> Floats:
    return _f1(scored, weights)[0].mean(axis=1)


def _f1_weighted(scored: ScoredUnits, weights: Floats) -> Floats:
    f1, true = _f1(scored, weights)
    return safe_divide((f1 * true).sum(axis=1), true.sum(axis=1))


def _brier(scored: ScoredUnits, weights: Floats) -> Floats:
    if len(scored.classes) == 2:
        errors = (scored.p[:, 1] - scored.y) ** 2
    else:
        errors = ((scored.p - np.eye(len(scored.classes))[scored.y]) ** 2).sum(axis=1)
    return weighted_mean(errors, scored.patient, weights)


def _calibration_error(scored: ScoredUnits, weights: Floats) -> Floats:
    # (R,) expected calibration error (Guo et al., 2017): how far what is said is from what comes
    # true, mean over bins of what is said. Of two classes the positive one's probability is what is
    # said; of more, that of the most probable class.
    stated, came_true = scored.p.max(axis=1), scored.p.argmax(axis=1) == scored.y
    if len(scored.classes) == 2:
        stated, came_true = scored.p[:, 1], scored.y == 1
    place = np.minimum((stated * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    gaps = np.zeros((scored.patients, CALIBRATION_BINS))
    np.add.at(gaps, (scored.patient, place), stated - came_true)
    units = np.bincount(scored.patient, minlength=scored.patients)
    return safe_divide(np.abs(weights @ gaps).sum(axis=1), weights @ units)


# --- in closed form, where every patient is one unit -------------------------------------------


def _rank_likeness(scored: ScoredUnits, classes: list[int]) -> float:
    # 0 where no repeat has two folds that rank: then nobody trained another's model.
    folds = {id(fold): fold for k in classes for fold, _ in folds_with_pairs(scored, k)}
    if len(folds) <= len({fold.repeat for fold in folds.values()}):
        return 0.0
    return rank_likeness(float(np.mean([len(fold.unit) for fold in folds.values()])))


def _auroc_exact(scored: ScoredUnits) -> Estimate:
    classes = classes_ranked(scored)
    likeness = _rank_likeness(scored, classes)
    each = [auroc_estimate(pairs_of(scored, k), likeness) for k in classes]
    return combine(each, [1 / len(each)] * len(each))


def _calls_widened(scored: ScoredUnits, estimate: Estimate) -> Estimate:
    if not scored.is_cross_validated or not np.isfinite(estimate.value):
        return estimate
    return widened(estimate, cross_validation_factor(estimate.value, CALL_LIKENESS))


def _accuracy_exact(scored: ScoredUnits) -> Estimate:
    return _calls_widened(scored, ACCURACY.exact(scored))


def _balanced_accuracy_exact(scored: ScoredUnits) -> Estimate:
    recalls = [_recall(k).exact(scored) for k in scored.present()]
    mean = combine(recalls, [1 / len(recalls)] * len(recalls), independent=True)
    return _calls_widened(scored, mean)


# --- the metrics ------------------------------------------------------------------------------


def _pooled(metric: Resampled) -> Resampled:
    return lambda scored, weights: metric(scored.pooled(), weights)


def _is_given(_scored: ScoredUnits) -> bool:
    return True


def _has_two_classes(scored: ScoredUnits) -> bool:
    return len(scored.present()) > 1


def _is_ranked(scored: ScoredUnits) -> bool:
    return bool(classes_ranked(scored)) and _has_two_classes(scored)


def _spread(scored: ScoredUnits, _value: float) -> float:
    # By the AUROC, whatever ranking figure it is.
    auroc = float(_auroc(scored, np.ones((1, scored.patients)))[0])
    return cross_validation_factor(auroc, _rank_likeness(scored, classes_ranked(scored)))


def _share_metric(share: Share) -> Metric:
    return Metric(share.resampled, _has_two_classes, share.exact)


_auroc, _auprc = macro(weighted_auroc), macro(weighted_auprc)
CLASS_METRICS: dict[str, Metric] = {
    "auroc": Metric(_auroc, _is_ranked, _auroc_exact, _spread),
    "auprc": Metric(_auprc, _is_ranked, spread=_spread),
    "auroc_pooled": Metric(_pooled(_auroc), _has_two_classes),
    "auprc_pooled": Metric(_pooled(_auprc), _has_two_classes),
    "accuracy": Metric(ACCURACY.resampled, _has_two_classes, _accuracy_exact),
    "balanced_accuracy": Metric(_balanced_accuracy, _has_two_classes, _balanced_accuracy_exact),
    "f1_macro": Metric(_f1_macro, _has_two_classes),
    "f1_weighted": Metric(_f1_weighted, _has_two_classes),
    "brier": Metric(_brier, _is_given, higher_is_better=False),
    "calibration_error": Metric(_calibration_error, _is_given, higher_is_better=False),
    **{name: _share_metric(share) for name, share in SHARES.items()},
    **{name: _share_metric(share) for name, share in RULE_OUT_SHARES.items()},
}


def _of_cut(metric: Metric, place: int) -> Metric:
    """A metric of two classes, of what lies above a cut between ordered classes."""
    exact, spread = metric.exact, metric.spread
    assert exact is not None
    assert spread is not None

    def is_defined(scored: ScoredUnits) -> bool:
        return place + 1 < len(scored.classes) and metric.is_defined(_cut_of(scored, place))

    return Metric(
        lambda scored, weights: metric.resampled(_cut_of(scored, place), weights),
        is_defined,
        lambda scored: exact(_cut_of(scored, place)),
        lambda scored, value: spread(_cut_of(scored, place), value),
    )


def _cut_of(scored: ScoredUnits, place: int) -> ScoredUnits:
    assert isinstance(scored, OrderedUnits)
    return scored.cut(place)


CUT_METRICS = {
    f"auroc_cut{place + 1}": _of_cut(CLASS_METRICS["auroc"], place) for place in range(MAX_CUTS)
}


def _cuts(scored: ScoredUnits) -> list[Metric]:
    return [metric for metric in CUT_METRICS.values() if metric.is_defined(scored)]


def _cuts_resampled(scored: ScoredUnits, weights: Floats) -> Floats:
    return np.mean([cut.resampled(scored, weights) for cut in _cuts(scored)], axis=0)


def _cuts_exact(scored: ScoredUnits) -> Estimate:
    each = [cut.exact(scored) for cut in _cuts(scored) if cut.exact is not None]
    return combine(each, [1 / len(each)] * len(each))


def _cuts_spread(scored: ScoredUnits, value: float) -> float:
    del value
    return max(cut.spread(scored, 0.0) for cut in _cuts(scored) if cut.spread is not None)


def _kappa(scored: ScoredUnits, weights: Floats) -> Floats:
    # (R,) Cohen's kappa with quadratic weights (Cohen, Psychological Bulletin 1968).
    k = len(scored.classes)
    table = _confusion(scored, weights)
    apart = (np.arange(k)[:, None] - np.arange(k)[None]) ** 2
    chance = np.einsum("ri,rj->rij", table.sum(axis=2), table.sum(axis=1))
    total = table.sum(axis=(1, 2))
    expected = safe_divide((apart * chance).sum(axis=(1, 2)), total)
    return 1 - safe_divide((apart * table).sum(axis=(1, 2)), expected)


ORDER_METRICS: dict[str, Metric] = {
    "kappa": Metric(_kappa, _has_two_classes, bounds=(-1.0, 1.0), is_share=False),
    "auroc_cuts": Metric(
        _cuts_resampled, lambda scored: bool(_cuts(scored)), _cuts_exact, _cuts_spread
    ),
    **CUT_METRICS,
}
SHARED = ("accuracy", "balanced_accuracy", "f1_macro", "brier")  # metrics of ordered classes too
METRICS: dict[str, Metric] = {
    **CLASS_METRICS, **NUMBER_METRICS, **ORDER_METRICS, **SURVIVAL_METRICS,
}  # fmt: skip


def _of_classes(scored: ScoredUnits) -> list[str]:
    absent: set[str] = set()
    if len(scored.classes) != 2:
        absent |= set(SHARES) | set(RULE_OUT_SHARES)
    if scored.rule_out is None:
        absent |= set(RULE_OUT_SHARES)
    return [name for name in CLASS_METRICS if name not in absent]


def _of_order(scored: ScoredUnits) -> list[str]:
    beyond = {f"auroc_cut{place}" for place in range(len(scored.classes), MAX_CUTS + 1)}
    return [name for name in (*ORDER_METRICS, *SHARED) if name not in beyond]


METRICS_OF: dict[type[ScoredUnits], Callable[[ScoredUnits], list[str]]] = {
    ScoredUnits: _of_classes,
    NumberUnits: lambda scored: list(NUMBER_METRICS),
    OrderedUnits: _of_order,
    SurvivalUnits: lambda scored: list(SURVIVAL_METRICS),
}


def metrics_of(scored: ScoredUnits) -> list[str]:
    """The metrics that such a task has: those of one positive class only where there are two."""
    return METRICS_OF[type(scored)](scored)


# --- intervals --------------------------------------------------------------------------------


def patient_weights(scored: ScoredUnits, resamples: int, seed: int) -> Floats:
    """How often each patient is drawn in each resample.

    Patients are drawn with replacement, within their class where every patient has one class
    only (so that a resample keeps the classes' sizes).

    Returns:
        (R, P) whole numbers as float; every row sums to P.
    """
    rng = np.random.default_rng(seed)
    strata = scored.strata
    weights = np.zeros((resamples, scored.patients))
    for stratum in np.unique(strata):
        members = np.flatnonzero(strata == stratum)
        share = np.full(len(members), 1 / len(members))
        weights[:, members] = rng.multinomial(len(members), share, size=resamples)
    return weights


def can_resample(scored: ScoredUnits) -> bool:
    """Whether patients tell of their spread: two at least, and two a class where stratified."""
    return scored.patients >= 2 and bool(np.unique(scored.strata, return_counts=True)[1].min() > 1)


def estimate(
    metric: str,
    scored: ScoredUnits,
    *,
    weights: Floats | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """A metric with its limits over patients.

    In closed form where the metric has one and every patient is one unit; else patients are
    resampled. Cross-validated ranking figures vary more than independent ones, and their resamples
    are spread accordingly (`cross_validation_factor`).

    Args:
        metric: a name of `METRICS`.
        scored: the units.
        weights: (R, P) of `patient_weights`, where many metrics share them; None: drawn here.
        resamples, seed: of the draws.

    Returns:
        `UNDEFINED` where the metric is; without limits where nothing tells the spread.
    """
    known = METRICS[metric]
    if not known.is_defined(scored):
        return UNDEFINED
    if known.exact is not None and scored.is_by_patient:
        return known.exact(scored)
    value = known.value(scored)
    if not can_resample(scored):
        return Estimate(value)
    if weights is None:
        weights = patient_weights(scored, resamples, seed)
    draws = known.resampled(scored, weights)
    if known.spread is not None:
        draws = value + (draws - value) * known.spread(scored, value) ** 0.5
    if not known.is_share:
        return drawn_number(value, draws, scored.patients, known.bounds)
    return drawn_estimate(value, draws, scored.patients)


def confidence_interval(
    metric: str, scored: ScoredUnits, *, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """95 % interval of a metric over patients, as `estimate` makes it.

    Returns:
        (low, high); NaN where the metric is undefined or patients do not tell its spread.
    """
    found = estimate(metric, scored, resamples=resamples, seed=seed)
    low, high = within_bounds(metric, found).interval
    return low, high


def within_bounds(metric: str, found: Estimate) -> Estimate:
    """A metric's own estimate with limits that it can have; of a difference they are others.

    Resamples that are spread for cross-validation may pass the largest value.
    """
    least, most = METRICS[metric].bounds
    return bounded(found, least, most) if least <= found.value <= most else found


# --- the ROC curve ----------------------------------------------------------------------------


def _fold_curve(fold: FoldScores, scored: ScoredUnits, grid: Floats, drawn: Floats) -> Floats:
    # (R, points + 1): the fold's curve on the grid, times its pairs, and the pairs.
    order = np.argsort(-fold.p[:, 1], kind="stable")
    last = np.append(np.diff(fold.p[order, 1]) != 0, True)  # of a run of equal scores
    rows = fold.unit[order]
    positive = scored.y[rows] == 1
    out = np.zeros((len(drawn), len(grid) + 1))
    for place, weights in enumerate(drawn[:, scored.patient[rows]]):
        tpr, fpr = (np.cumsum(weights * side)[last] for side in (positive, ~positive))
        if (pairs := tpr[-1] * fpr[-1]) > 0:
            curve = np.interp(grid, np.append(0, fpr / fpr[-1]), np.append(0, tpr / tpr[-1]))
            out[place] = np.append(curve * pairs, pairs)
    return out


def _mean_curve(scored: ScoredUnits, grid: Floats, drawn: Floats) -> Floats:
    # (R, points): curves of folds averaged by their pairs, and repeats averaged.
    sums: dict[int, Floats] = {}
    for fold, _ in folds_with_pairs(scored, 1):
        sums[fold.repeat] = sums.get(fold.repeat, 0.0) + _fold_curve(fold, scored, grid, drawn)
    repeats = [safe_divide(s[:, :-1], np.repeat(s[:, -1:], len(grid), 1)) for s in sums.values()]
    return np.asarray(np.nanmean(repeats, axis=0))


def roc_band(
    scored: ScoredUnits, *, points: int = 101, resamples: int = 500, seed: int = 0
) -> pd.DataFrame:
    """ROC curve of a two-class task with a pointwise 95 % band over patients.

    Sensitivities at each false positive rate are averaged over folds by their pairs (vertical
    averaging, Fawcett, Pattern Recognition Letters 2006) and over repeats, so that the area under
    the curve is the AUROC within folds.

    Returns:
        `points` rows: `fpr` (0 … 1), `tpr`, `low`, `high`; the band is NaN where patients tell no
        spread.
    """
    grid = np.linspace(0, 1, points)
    tpr = _mean_curve(scored, grid, np.ones((1, scored.patients)))[0]
    band = np.full((points, 2), np.nan)
    if can_resample(scored):
        drawn = _mean_curve(scored, grid, patient_weights(scored, resamples, seed))
        drawn = drawn[np.isfinite(drawn).all(axis=1)]
        if len(drawn) * 2 >= resamples and np.ptp(drawn, axis=0).max() > 0:
            band = np.array(
                [drawn_estimate(t, d, scored.patients).interval for t, d in zip(tpr, drawn.T,
                 strict=True)]
            )  # fmt: skip
            still = np.ptp(drawn, axis=0) == 0  # its ends, where no resample moves
            band[still] = tpr[still, None]
    return pd.DataFrame({"fpr": grid, "tpr": tpr, "low": band[:, 0], "high": band[:, 1]})


# --- from a table of predictions --------------------------------------------------------------


def evaluate(
    predictions: pd.DataFrame, level: str, seed: int, *, resamples: int = RESAMPLES
) -> pd.DataFrame:
    """Every metric of a task's predictions with its interval, over all and per site.

    Args:
        predictions: test rows, as `predictions.average_repeats` takes them.
        level: `tile`, `slide` or `patient`.
        seed: of the bootstrap.
        resamples: of the bootstrap.

    Returns:
        `metric`, `group` ("all", "site=a" …), `value`, `low`, `high` (95 % over patients),
        `patients`, `units`, `classes` (how many are among the units). A metric that is undefined
        in a group is NaN, its reason in the log.
    """
    units = average_repeats(predictions, level)
    scored = scored_units(units, predictions, level)
    rows = [
        row
        for group, mask in site_groups(units)
        for row in _group_rows(group, scored.take(mask), seed, resamples)
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def _group_rows(
    group: str, scored: ScoredUnits, seed: int, resamples: int
) -> Iterator[tuple[Any, ...]]:
    TELL_UNDEFINED.get(type(scored), _tell_undefined)(group, scored)
    weights = patient_weights(scored, resamples, seed) if can_resample(scored) else None
    counts = (scored.patients, len(scored.y), len(scored.present()))
    for name in metrics_of(scored):
        found = estimate(name, scored, weights=weights)
        yield name, group, found.value, *within_bounds(name, found).interval, *counts


def _tell_undefined(group: str, scored: ScoredUnits) -> None:
    if len(scored.present()) < 2:
        log.warning(
            "%s: one class only; all but Brier's score and calibration are undefined", group
        )
    elif not classes_ranked(scored):
        log.warning("%s: %s", group, NO_PAIRS)
    elif not can_resample(scored):
        log.warning("%s: a class has a single patient; some intervals cannot be given", group)


TELL_UNDEFINED: dict[type[ScoredUnits], Callable[[str, ScoredUnits], None]] = {
    NumberUnits: tell_undefined_numbers,
    SurvivalUnits: tell_undefined_survival,
}
