"""Groups of low and high predicted risk: Kaplan–Meier curves and the log-rank test."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stainssl.evaluation.predictions import RISK_GROUPS, SurvivalUnits

Follow = tuple[NDArray[np.float64], NDArray[np.bool_]]


@dataclass(frozen=True)
class RiskGroups:
    """Follow-ups and risk groups of the test units of one model.

    Attributes:
        time: (n,) time of the event or of censoring.
        event: (n,) whether it is the event.
        is_high: (n,) whether the unit is in the high-risk group.
        unit: label of the time axis.
        is_crossed: whether predictions are cross-validated. Test units then trained the models of
            others, and the p-value of the log-rank test, which assumes independence, is too small.
    """

    time: NDArray[np.float64]
    event: NDArray[np.bool_]
    is_high: NDArray[np.bool_]
    unit: str
    is_crossed: bool = False

    @classmethod
    def of(cls, scored: SurvivalUnits, unit: str) -> RiskGroups:
        """Create from scored units with a risk threshold."""
        time = scored.y.astype(float)
        return cls(time, scored.event, scored.is_high, unit, scored.is_cross_validated)

    @property
    def end(self) -> float:
        """The longest follow-up; always above zero."""
        return max(float(self.time.max()), 1e-9)

    def group(self, name: str) -> Follow:
        """Times and events of the group `low` or `high`."""
        mine = self.is_high == (name == "high")
        return self.time[mine], self.event[mine]

    def survival(self, name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Kaplan–Meier curve of a nonempty group: times from 0 on, and survival."""
        from scipy.stats import CensoredData, ecdf  # takes a second; only survival needs it

        time, event = self.group(name)
        curve = ecdf(CensoredData.right_censored(time, ~event)).sf
        at = np.r_[0.0, curve.quantiles, time.max()]
        return at, np.r_[1.0, curve.probabilities, curve.probabilities[-1:]]

    def at_risk(self, name: str, times: NDArray[np.float64]) -> list[int]:
        """Number of units of a group at risk at each time."""
        own = self.group(name)[0]
        return [int((own >= time).sum()) for time in times]

    def p_value(self) -> float:
        """P-value of the log-rank test; NaN if a group is empty or nobody has the event."""
        from scipy.stats import CensoredData, logrank

        sides = [self.group(name) for name in RISK_GROUPS]
        if not self.event.any() or not all(len(time) for time, _ in sides):
            return float("nan")
        low, high = (CensoredData.right_censored(time, ~event) for time, event in sides)
        return float(logrank(low, high).pvalue)

    def test(self) -> str:
        """Result of the log-rank test as text for a figure."""
        p = self.p_value()
        if np.isnan(p):
            return "log-rank test: undefined"
        return f"log-rank p = {p:.2g}" + (
            " (cross-validated: too small)" if self.is_crossed else ""
        )
