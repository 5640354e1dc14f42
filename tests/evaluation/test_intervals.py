"""Confidence intervals: known values, coverage in small cohorts, and combination."""

import warnings

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from stainssl.evaluation.grid import format_interval
from stainssl.evaluation.intervals import (
    Estimate,
    auroc_estimate,
    combine,
    drawn_estimate,
    p_value,
    share_estimate,
    squared_rank_correlation,
    widened,
    with_seeds,
)
from stainssl.evaluation.metrics import confidence_interval, estimate
from stainssl.evaluation.predictions import ScoredUnits
from stainssl.evaluation.ranking import pairs_of
from tools.generated import ROOT


def _scored(y, score):
    p = np.asarray(score, float)
    return ScoredUnits(np.asarray(y), np.stack([1 - p, p], 1), np.arange(len(p)), ("0", "1"))


def _normal(rng, n, auroc):
    shift = np.sqrt(2) * stats.norm.ppf(auroc)
    score = np.r_[rng.normal(size=n), rng.normal(shift, 1, n)]
    return _scored(np.repeat([0, 1], n), stats.norm.cdf(score))


def test_proportions_have_wilsons_interval():
    hits, of = np.r_[np.ones(7), np.zeros(13)], np.r_[np.ones(18), 0, 0]
    found = share_estimate(hits, of)
    assert found.value == pytest.approx(7 / 18)
    assert found.interval == pytest.approx(stats.binomtest(7, 18).proportion_ci(method="wilson"))
    assert np.isnan(share_estimate(hits, np.zeros(20)).value)


def test_p_value_of_auroc_equals_the_mann_whitney_test(rng):
    y = np.repeat([0, 1], [9, 7])
    for _ in range(20):
        score = rng.normal(size=16)
        found = auroc_estimate(pairs_of(_scored(y, stats.norm.cdf(score)), 1))
        test = stats.mannwhitneyu(
            score[y == 1], score[y == 0], method="asymptotic", use_continuity=False
        )
        # At one half the variance is that of the test, for any class sizes.
        assert p_value(Estimate(found.value - 0.5, _shifted(found))) == pytest.approx(
            test.pvalue, abs=1e-6
        )


def _shifted(found):
    def limits(z):
        low, high = found.limits(z)
        return low - 0.5, high - 0.5

    return limits


def test_interval_of_auroc_equals_delong_for_many_patients(rng):
    scored = _normal(rng, 1000, 0.8)
    pairs = pairs_of(scored, 1)
    error = np.sqrt((pairs.influence**2).sum())  # DeLong's, except for n - 1
    low, high = confidence_interval("auroc", scored)
    assert low == pytest.approx(pairs.value - 1.96 * error, abs=2e-3)
    assert high == pytest.approx(pairs.value + 1.96 * error, abs=2e-3)


@pytest.mark.parametrize("n", [3, 5, 20])
def test_perfect_predictions_of_few_patients_have_a_wide_interval(n):
    scored = _scored(np.repeat([0, 1], n), np.repeat([0.2, 0.8], n))
    low, high = confidence_interval("auroc", scored)
    assert high == pytest.approx(1.0)
    assert 0.4 < low < 1 - 1 / n
    if n == 3:
        page = (ROOT / "docs" / "statistics.md").read_text()
        assert format_interval(1.0, low, high) in " ".join(page.split())
    assert np.isnan(confidence_interval("brier", scored)).all()  # all resamples are equal
    for metric in ("auprc", "f1_macro"):  # likewise, but Wilson's interval is used
        wilson = stats.binomtest(2 * n, 2 * n).proportion_ci(method="wilson")
        assert confidence_interval(metric, scored) == pytest.approx(tuple(wilson))


def test_bca_has_no_limits_for_perfect_predictions():
    """The reason why BCa is not used: all resamples and all jackknife values are equal."""
    p, y = np.linspace(0, 1, 12), np.repeat([0, 1], 6)

    def auroc(rows):
        return roc_auc_score(y[rows], p[rows]) if len(set(y[rows])) == 2 else 1.0

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = stats.bootstrap(
            (np.arange(12),), auroc, vectorized=False, n_resamples=99, method="BCa",
            rng=np.random.default_rng(0),
        )  # fmt: skip
    assert not np.isfinite(found.confidence_interval).any()


@pytest.mark.parametrize("n", [3, 6, 20])
def test_interval_of_auroc_has_nominal_coverage_in_small_cohorts(n):
    rng = np.random.default_rng(n)
    intervals = [confidence_interval("auroc", _normal(rng, n, 0.9)) for _ in range(200)]
    covered = np.mean([low <= 0.9 <= high for low, high in intervals])
    assert 0.92 <= covered <= 0.995


def test_cross_validation_doubles_the_variance_at_one_half_and_not_at_one():
    flat = pairs_of(_scored([0, 1] * 300, np.full(600, 0.5)), 1)
    widths = [
        np.diff(auroc_estimate(flat, squared_correlation).interval)[0]
        for squared_correlation in (0, 1)
    ]
    assert widths[1] / widths[0] == pytest.approx(np.sqrt(2), rel=0.01)
    perfect = pairs_of(_scored([0, 1] * 20, [0.1, 0.9] * 20), 1)
    assert auroc_estimate(perfect, 1.0).interval[1] == pytest.approx(1.0)


def test_percentile_interval_is_expanded_for_few_patients(rng):
    draws = rng.normal(size=20_000)
    many, few = (drawn_estimate(0.0, draws, n).interval for n in (10_000, 8))
    assert many == pytest.approx((-1.96, 1.96), abs=0.06)
    wide = stats.t.ppf(0.975, 7) * np.sqrt(8 / 7)
    assert few == pytest.approx((-wide, wide), abs=0.12)
    assert np.isnan(drawn_estimate(0.7, np.full(100, 0.7), 8).interval).all()
    assert np.isnan(drawn_estimate(1.0, draws, 1).interval).all()


@pytest.mark.parametrize("other", [0.0, 1.0])
def test_a_difference_of_constant_resamples_has_no_limits(other):
    one, two = (drawn_estimate(value, np.full(100, value), 30) for value in (1.0, other))
    difference = combine([one, two], [1, -1])
    assert np.isnan(difference.interval).all()
    np.testing.assert_equal(p_value(difference), 1.0 if other == 1 else np.nan)
    assert combine([one, one], [0.5, 0.5]).interval == one.interval


def _normal_estimate(value, error, influence):
    return Estimate(value, lambda z: (value - z * error, value + z * error), influence)


def test_combine_adds_variances_with_their_correlation():
    a, b = np.array([3.0, 0.0, 4.0]), np.array([3.0, 4.0, 0.0])  # correlation 9 / 25
    parts = [_normal_estimate(0.8, 0.05, a), _normal_estimate(0.7, 0.05, b)]
    found = combine(parts, [1, -1])
    error = 0.05 * np.sqrt(2 - 2 * 9 / 25)
    assert found.value == pytest.approx(0.1)
    assert found.interval == pytest.approx((0.1 - 1.959964 * error, 0.1 + 1.959964 * error))
    assert p_value(found) == pytest.approx(2 * stats.norm.sf(0.1 / error), rel=1e-4)
    alone = combine(parts[:1], [1])
    assert alone.interval == pytest.approx(parts[0].interval)


def test_difference_of_an_estimate_and_itself_is_zero(rng):
    one = estimate("auroc", _normal(rng, 10, 0.8))
    same = combine([one, one], [1, -1])
    assert same.value == 0
    assert p_value(same) == 1.0


def test_widened_multiplies_the_variance():
    assert widened(_normal_estimate(0.5, 0.1, np.ones(1)), 4.0).interval == pytest.approx(
        (0.5 - 2 * 0.1959964, 0.5 + 2 * 0.1959964)
    )


def test_with_seeds_adds_the_error_of_seeds_to_that_of_patients():
    patients = _normal_estimate(0.8, 0.03, np.ones(1))
    values = [0.78, 0.80, 0.82]
    reach = stats.t.ppf(0.975, 2) * 0.02 / np.sqrt(3)
    low, high = with_seeds(patients, [values]).interval
    assert 0.8 - low == pytest.approx(np.hypot(1.959964 * 0.03, reach))
    assert high - 0.8 == pytest.approx(np.hypot(1.959964 * 0.03, reach))
    assert with_seeds(patients, [[0.8]]) is patients


def test_p_value_is_at_least_two_divided_by_the_number_of_resamples():
    difference = drawn_estimate(0.5, 0.5 + 0.01 * np.random.default_rng(0).normal(size=999), 40)
    assert p_value(difference) == pytest.approx(2 / 1000)
    assert np.isnan(p_value(drawn_estimate(0.5, np.full(99, np.nan), 40)))


@pytest.mark.parametrize("units", [2, 5, 40])
def test_squared_rank_correlation_equals_a_simulation(units):
    scores = np.random.default_rng(0).normal(size=(40_000, units))
    ranks = stats.rankdata(scores, axis=1)
    centered = scores - scores.mean(axis=1, keepdims=True)
    correlation = np.corrcoef(centered.ravel(), ranks.ravel())[0, 1]
    assert squared_rank_correlation(units) == pytest.approx(correlation**2, abs=0.01)
