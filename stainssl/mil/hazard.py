"""Survival target: hazards in intervals of time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stainssl.errors import StainsslError
from stainssl.evaluation.folds import RISK
from stainssl.evaluation.follow_up import follow_up, follow_up_word, horizons_of, time_lost
from stainssl.evaluation.predictions import SURVIVAL, THRESHOLD
from stainssl.evaluation.thresholds import DecisionRule
from stainssl.mil.bags import Bag
from stainssl.mil.head import Loss
from stainssl.mil.target import Target

INTERVALS = 8  # at most, with equal numbers of training events
EVENTS = 3  # per interval at least
LEAST, MOST = 0.01, 0.99  # limits of the training bags' hazards, so that logits are finite
STEPS = 200  # of the survival curve that is integrated to the time lost


@dataclass(frozen=True)
class FollowUps(Target):
    """Base class of survival targets.

    Labels of bags are times, negative if censored (-0.0 at time 0).

    Attributes:
        times: times at which survival is predicted, increasing; the last is the horizon.
    """

    unknown = float("nan")
    thresholds_use_training = True
    times: tuple[float, ...]

    @classmethod
    def of(cls, words: pd.Series) -> Self:
        """Choose `times` from the known follow-ups of a task (see `horizons_of`).

        Raises:
            StainsslError: no event after time 0.
        """
        if not (times := horizons_of(words.unique())):
            raise StainsslError(
                "no patient has an event after time 0: a survival model needs events."
            )
        return cls(times)

    def codes(self, words: pd.Series) -> pd.Series:
        """See `Target.codes`."""
        time, event = follow_up(words)
        return pd.Series(np.where(event, time, np.negative(time)), words.index)

    def unseen_labels(self, words: Sequence[str]) -> str:
        """See `Target.unseen_labels`: every time can be evaluated."""
        del words
        return ""

    def prediction_columns(self, predictions: np.ndarray) -> dict[str, np.ndarray]:
        """See `Target.prediction_columns`: `risk` and `s_<time>`."""
        names = [RISK, *(f"{SURVIVAL}{time:g}" for time in self.times)]
        return {name: predictions[:, i].astype(np.float32) for i, name in enumerate(names)}

    def true_values(self, bags: Sequence[Bag]) -> list[str]:
        """See `Target.true_values`: follow-ups such as `12` or, censored, `12+`; "" if unknown."""
        return [
            "" if np.isnan(bag.label) else follow_up_word(abs(bag.label), not np.signbit(bag.label))
            for bag in bags
        ]

    def thresholds(
        self, rule: DecisionRule, labels: Sequence[float], predictions: np.ndarray
    ) -> dict[str, float]:
        """See `Target.thresholds`: the median risk, from which on the group of high risk starts."""
        del rule, labels
        return {THRESHOLD: float(np.median(predictions[:, 0]))} if len(predictions) else {}


@dataclass(frozen=True)
class Hazards(FollowUps):
    r"""A time to an event, learnt as the hazard :math:`h_k` in each interval of time.

    Gensheimer and Narasimhan, PeerJ 2019; Zadeh and Schmid, IEEE TPAMI 2021. The hazard is the
    probability of the event in an interval, given that it has not occurred before. A bag with the
    event in interval k has the loss :math:`-\log h_k - \sum_{j<k} \log(1 - h_j)`; for a censored
    bag the sum is over the intervals of which it was followed up at least half. The loss of a bag
    does not depend on others, so that a batch may have any size. Outputs are added to the logits of
    the training bags' hazards: a head whose outputs are 0 predicts the survival of all of them.

    Attributes:
        times: see `FollowUps`.
        ends: ends of the K intervals, increasing; the first starts at 0. Empty before `fitted`.
        base: K logits of the training bags' hazards.
    """

    ends: tuple[float, ...] = ()
    base: tuple[float, ...] = ()

    @property
    def outputs(self) -> int:
        """See `Target.outputs`: one per interval."""
        return len(self.ends)

    def fitted(self, train: Sequence[Bag]) -> Hazards:
        """See `Target.fitted`; sets intervals with equal numbers of events, and their hazards."""
        labels = np.array([bag.label for bag in train], np.float32)
        events = labels[~np.signbit(labels)]
        if not len(events):
            raise StainsslError(
                f"a head needs a training bag with an event but got {len(train)} without. Use"
                " fewer folds, or add patients."
            )
        count = int(np.clip(len(events) // EVENTS, 1, INTERVALS))
        shares = np.arange(1, count + 1) / count
        ends = np.unique(np.quantile(events, shares, method="inverted_cdf")).tolist()
        fitted = replace(self, ends=tuple(ends))
        at_risk, came = fitted.counts(torch.from_numpy(labels))
        hazard = (came.sum(dim=0) / at_risk.sum(dim=0).clamp(min=1)).clamp(LEAST, MOST)
        return replace(fitted, base=tuple(torch.logit(hazard.double()).tolist()))

    def counts(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Intervals in which each bag was at risk, and in which it had the event.

        A bag with an event after the last interval was at risk in all of them.

        Args:
            labels: (B,) float32 times, negative if censored.

        Returns:
            Two (B, K) float32 arrays of 0 and 1.
        """
        ends = torch.tensor(self.ends)
        begins = torch.cat([torch.zeros(1), ends[:-1]])
        time, event = labels.abs()[:, None], ~torch.signbit(labels)[:, None]
        first = torch.arange(len(ends)) == 0
        came = event & (time <= ends) & ((time > begins) | (first & (time == begins)))
        reached = torch.where(event, (time > begins) | came, time >= (begins + ends) / 2)
        return reached.float(), came.float()

    def loss(self) -> Loss:
        """See `Target.loss`: negative log-likelihood over the intervals."""
        base = torch.tensor(self.base)

        def likelihood(outputs: Tensor, labels: Tensor) -> Tensor:
            reached, came = self.counts(labels.to(torch.float32))
            each = nn.functional.binary_cross_entropy_with_logits(
                outputs + base, came, reduction="none"
            )
            return (each * reached).sum(dim=1)

        return likelihood

    def predict(self, outputs: Tensor) -> np.ndarray:
        """See `Target.predict`: (1 + T,) time lost until the horizon, then survival at `times`."""
        hazard = torch.sigmoid(outputs.double() + torch.tensor(self.base).double()).numpy()
        grid = np.linspace(0, self.times[-1], STEPS + 1)
        lost = time_lost(grid, self._survival(hazard, grid)[None])
        return np.r_[lost, self._survival(hazard, np.array(self.times))].astype(np.float32)

    def _survival(self, hazard: NDArray[np.float64], times: np.ndarray) -> np.ndarray:
        """Survival at some times: constant hazard within an interval, constant after the last."""
        points = np.r_[0.0, self.ends]
        log_survival = np.r_[0.0, np.cumsum(np.log1p(-np.minimum(hazard, 1 - 1e-12)))]
        return np.exp(np.interp(times, points, log_survival))

    def to_dict(self) -> dict[str, Any]:
        """See `Target.to_dict`."""
        kept = {"times": self.times, "ends": self.ends, "base": self.base}
        return {"hazards": {name: list(values) for name, values in kept.items()}}
