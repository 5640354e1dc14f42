"""Metrics of classification: ranking, predicted classes and probabilities."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stainssl.evaluation.intervals import (
    SQUARED_THRESHOLD_CORRELATION,
    Estimate,
    auroc_estimate,
    combine,
    cross_validation_factor,
    share_estimate,
    squared_rank_correlation,
    widened,
)
from stainssl.evaluation.metric import Metric, Resampled, weighted_mean, weighted_share
from stainssl.evaluation.predictions import Floats, ScoredUnits
from stainssl.evaluation.ranking import (
    classes_ranked,
    folds_with_pairs,
    macro,
    pairs_of,
    safe_divide,
    weighted_auprc,
    weighted_auroc,
)

CALIBRATION_BINS = 10  # of equal width


@dataclass(frozen=True)
class Proportion:
    """A proportion of units: masks of the denominator (`of`) and the numerator (`hits`)."""

    of: Callable[[ScoredUnits], NDArray[np.bool_]]
    hits: Callable[[ScoredUnits], NDArray[np.bool_]]

    def resampled(self, scored: ScoredUnits, weights: Floats) -> Floats:
        """(R,) values under (R, P) patient weights."""
        hits, of = self.hits(scored).astype(float), self.of(scored).astype(float)
        return weighted_share(hits, of, scored.patient, weights)

    def exact(self, scored: ScoredUnits) -> Estimate:
        """Estimate with Wilson's interval; requires one unit per patient."""
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


def _recall(k: int) -> Proportion:
    return Proportion(lambda s: s.y == k, _right)


ACCURACY = Proportion(_everything, _right)
SHARES = {
    "sensitivity": Proportion(lambda s: s.y == 1, lambda s: s.predicted == 1),
    "specificity": Proportion(lambda s: s.y == 0, lambda s: s.predicted == 0),
    "ppv": Proportion(lambda s: s.predicted == 1, lambda s: s.y == 1),
    "npv": Proportion(lambda s: s.predicted == 0, lambda s: s.y == 0),
}
RULE_OUT_SHARES = {
    "sensitivity_rule_out": Proportion(lambda s: s.y == 1, _ruled_in),
    "specificity_rule_out": Proportion(lambda s: s.y == 0, lambda s: ~_ruled_in(s)),
    "ppv_rule_out": Proportion(_ruled_in, lambda s: s.y == 1),
    "npv_rule_out": Proportion(lambda s: ~_ruled_in(s), lambda s: s.y == 0),
}


def _balanced_accuracy(scored: ScoredUnits, weights: Floats) -> Floats:
    return np.mean([_recall(k).resampled(scored, weights) for k in scored.present()], axis=0)


def confusion(scored: ScoredUnits, weights: Floats) -> Floats:
    """(R, K, K) confusion matrices (true class, predicted class) under (R, P) patient weights."""
    k = len(scored.classes)
    per_patient = np.zeros((scored.patients, k * k))
    np.add.at(per_patient, (scored.patient, scored.y * k + scored.predicted), 1.0)
    return (weights @ per_patient).reshape(-1, k, k)


def _f1(scored: ScoredUnits, weights: Floats) -> tuple[Floats, Floats]:
    # (R, K) F1 of each class (0 if it neither occurs nor is predicted) and its weight.
    table = confusion(scored, weights)
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
    # (R,) expected calibration error (Guo et al., 2017): of the positive class's probability with
    # two classes, otherwise of the most probable class's.
    stated, came_true = scored.p.max(axis=1), scored.p.argmax(axis=1) == scored.y
    if len(scored.classes) == 2:
        stated, came_true = scored.p[:, 1], scored.y == 1
    place = np.minimum((stated * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    gaps = np.zeros((scored.patients, CALIBRATION_BINS))
    np.add.at(gaps, (scored.patient, place), stated - came_true)
    units = np.bincount(scored.patient, minlength=scored.patients)
    return safe_divide(np.abs(weights @ gaps).sum(axis=1), weights @ units)


def _squared_rank_correlation(scored: ScoredUnits, classes: list[int]) -> float:
    # 0 if no repeat has two folds that rank: then no test patient trained another's model.
    folds = {id(fold): fold for k in classes for fold, _ in folds_with_pairs(scored, k)}
    if len(folds) <= len({fold.repeat for fold in folds.values()}):
        return 0.0
    return squared_rank_correlation(float(np.mean([len(fold.unit) for fold in folds.values()])))


def _auroc_exact(scored: ScoredUnits) -> Estimate:
    classes = classes_ranked(scored)
    squared_correlation = _squared_rank_correlation(scored, classes)
    each = [auroc_estimate(pairs_of(scored, k), squared_correlation) for k in classes]
    return combine(each, [1 / len(each)] * len(each))


def _widened_if_cross_validated(scored: ScoredUnits, estimate: Estimate) -> Estimate:
    if not scored.is_cross_validated or not np.isfinite(estimate.value):
        return estimate
    return widened(estimate, cross_validation_factor(estimate.value, SQUARED_THRESHOLD_CORRELATION))


def _accuracy_exact(scored: ScoredUnits) -> Estimate:
    return _widened_if_cross_validated(scored, ACCURACY.exact(scored))


def _balanced_accuracy_exact(scored: ScoredUnits) -> Estimate:
    recalls = [_recall(k).exact(scored) for k in scored.present()]
    mean = combine(recalls, [1 / len(recalls)] * len(recalls), independent=True)
    return _widened_if_cross_validated(scored, mean)


def _pooled(metric: Resampled) -> Resampled:
    return lambda scored, weights: metric(scored.pooled(), weights)


def _is_given(_scored: ScoredUnits) -> bool:
    return True


def has_two_classes(scored: ScoredUnits) -> bool:
    """Whether at least two classes occur among the units."""
    return len(scored.present()) > 1


def _is_ranked(scored: ScoredUnits) -> bool:
    return bool(classes_ranked(scored)) and has_two_classes(scored)


def _variance_factor(scored: ScoredUnits, _value: float) -> float:
    # The factor follows from the AUROC, for AUPRC too.
    auroc = float(_auroc(scored, np.ones((1, scored.patients)))[0])
    return cross_validation_factor(auroc, _squared_rank_correlation(scored, classes_ranked(scored)))


def _share_metric(share: Proportion) -> Metric:
    return Metric(share.resampled, has_two_classes, share.exact)


_auroc, _auprc = macro(weighted_auroc), macro(weighted_auprc)
CLASS_METRICS: dict[str, Metric] = {
    "auroc": Metric(_auroc, _is_ranked, _auroc_exact, _variance_factor),
    "auprc": Metric(_auprc, _is_ranked, variance_factor=_variance_factor),
    "auroc_pooled": Metric(_pooled(_auroc), has_two_classes),
    "auprc_pooled": Metric(_pooled(_auprc), has_two_classes),
    "accuracy": Metric(ACCURACY.resampled, has_two_classes, _accuracy_exact),
    "balanced_accuracy": Metric(_balanced_accuracy, has_two_classes, _balanced_accuracy_exact),
    "f1_macro": Metric(_f1_macro, has_two_classes),
    "f1_weighted": Metric(_f1_weighted, has_two_classes),
    "brier": Metric(_brier, _is_given, higher_is_better=False),
    "calibration_error": Metric(_calibration_error, _is_given, higher_is_better=False),
    **{name: _share_metric(share) for name, share in SHARES.items()},
    **{name: _share_metric(share) for name, share in RULE_OUT_SHARES.items()},
}
