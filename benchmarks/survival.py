"""Coverage of intervals of concordance in small cohorts, by simulation.

    nice -n 19 python -m benchmarks.survival --cohorts 250

Patients have 20 columns of noise, the first of which is the logarithm of the hazard if there is a
signal. Times to the event and to censoring are exponential. In five folds, a penalized Cox
regression (scikit-survival) predicts the risks; metrics and intervals are the project's own. The
truth is one half without a signal, otherwise the mean over cohorts. Takes five minutes. The numbers
in docs/statistics.md are from the lines that it prints.
"""

from __future__ import annotations

import argparse
import warnings

import numpy as np
from sklearn.model_selection import StratifiedKFold
from sksurv.linear_model import CoxPHSurvivalAnalysis
from sksurv.util import Surv

from stainssl.evaluation.follow_up import follow_up_word, horizons_of
from stainssl.evaluation.metrics import estimate, patient_weights, within_bounds
from stainssl.evaluation.predictions import FoldScores, SurvivalUnits

METRICS = ("c_index", "c_index_uno", "auroc_time")
COLUMNS, FOLDS, PENALTY = 20, 5, 20.0
TIME, CENSORING = 20.0, 30.0  # mean times without a signal


def draw(patients: int, signal: float, rng: np.random.Generator) -> SurvivalUnits:
    """Draw a cohort, with the out-of-fold risks of a Cox regression."""
    event = np.zeros(patients, bool)
    while event.sum() < FOLDS:
        x = rng.normal(size=(patients, COLUMNS))
        came = rng.exponential(TIME * np.exp(-signal * x[:, 0]))
        ended = rng.exponential(CENSORING, patients)
        time, event = np.minimum(came, ended), came <= ended
    splitter = StratifiedKFold(FOLDS, shuffle=True, random_state=int(rng.integers(2**31)))
    tests = [test for _, test in splitter.split(x, event)]
    times = horizons_of(follow_up_word(t, e) for t, e in zip(time, event, strict=True))
    p = np.full((patients, 1 + len(times)), 0.5)
    for test in tests:
        train = np.setdiff1d(np.arange(patients), test)
        model = CoxPHSurvivalAnalysis(alpha=PENALTY)
        model.fit(x[train], Surv.from_arrays(event[train], time[train]))
        p[test, 0] = model.predict(x[test])
    folds = tuple(FoldScores(0, test, p[test]) for test in tests)
    return SurvivalUnits(time, p, np.arange(patients), (), folds, event=event, times=times)


def limits(scored: SurvivalUnits) -> list[tuple[float, float, float]]:
    """Value, low and high of each metric."""
    weights = patient_weights(scored, 2000, 0)
    found = [within_bounds(m, estimate(m, scored, weights=weights)) for m in METRICS]
    return [(one.value, *one.interval) for one in found]


def main() -> None:
    """Print a line per number of patients, signal and metric."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cohorts", type=int, default=250)
    cohorts = parser.parse_args().cohorts
    warnings.simplefilter("ignore", UserWarning)  # few censored patients: some folds have none
    for patients in (20, 40, 100):
        for signal in (0.0, 1.0):
            rng = np.random.default_rng([patients, int(signal)])
            each = np.array([limits(draw(patients, signal, rng)) for _ in range(cohorts)])
            for metric, figures in zip(METRICS, each.transpose(1, 2, 0), strict=True):
                value, low, high = figures[:, np.isfinite(figures).all(axis=0)]
                truth = value.mean() if signal else 0.5
                held = ((low <= truth) & (truth <= high)).mean()
                print(
                    f"{patients} patients, signal {signal:g}: {metric} {value.mean():.3f},"
                    f" {held:.3f} of {len(value)} intervals hold {truth:.3f}, mean width"
                    f" {(high - low).mean():.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
