"""Survival target: Cox's partial likelihood."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stainssl.errors import StainsslError
from stainssl.evaluation.follow_up import time_lost
from stainssl.mil.bags import Bag
from stainssl.mil.hazard import STEPS, FollowUps
from stainssl.mil.head import Loss

MOST = 50.0  # limit of a log hazard ratio, so that no exponential overflows


@dataclass(frozen=True)
class Cox(FollowUps):
    r"""A time to an event, learnt as log hazard ratio :math:`r` by Cox's partial likelihood.

    Cox, *Regression models and life-tables* (JRSS B 1972), for networks Katzman et al., *DeepSurv*
    (BMC Medical Research Methodology 2018); ties by Efron (JASA 1977). The partial likelihood
    compares all training bags, so that each step takes all of them. Survival is :math:`S(t) =
    \exp(-H_0(t) e^{r})` with Breslow's estimate of the cumulative baseline hazard :math:`H_0` from
    the training bags.

    Attributes:
        times: see `FollowUps`.
        ends: increasing times of training events; empty before training.
        cumulative: cumulative baseline hazard at each of them.
    """

    is_joint = True
    ends: tuple[float, ...] = ()
    cumulative: tuple[float, ...] = ()

    @property
    def outputs(self) -> int:
        """See `Target.outputs`."""
        return 1

    def fitted(self, train: Sequence[Bag]) -> Cox:
        """See `Target.fitted`; raises if no bag outlived the event of another."""
        labels = torch.tensor([bag.label for bag in train], dtype=torch.float32)
        time, event = labels.abs(), ~torch.signbit(labels)
        if not (event[:, None] & (time[None] > time[:, None])).any():
            raise StainsslError(
                f"a head needs a comparable pair of training bags but got {len(train)} bags with"
                f" {int(event.sum())} event(s). Use fewer folds, or add patients."
            )
        return self

    def loss(self) -> Loss:
        """See `Target.loss`: `partial_likelihood` of all bags together."""
        return partial_likelihood

    def with_baseline(self, labels: Sequence[float], outputs: NDArray[Any]) -> Cox:
        """See `Target.with_baseline`; adds Breslow's estimate (Biometrics 1974).

        Args:
            labels: B labels of the training bags.
            outputs: (B, 1) their outputs.
        """
        known = np.array(labels, np.float32)
        time, event = np.abs(known), ~np.signbit(known)
        hazard = np.exp(np.clip(outputs[:, 0], -MOST, MOST).astype(np.float64))
        ends, deaths = np.unique(time[event], return_counts=True)
        at_risk = np.array([hazard[time >= end].sum() for end in ends])
        cumulative = np.cumsum(deaths / at_risk)
        return replace(self, ends=tuple(ends.tolist()), cumulative=tuple(cumulative.tolist()))

    def predict(self, outputs: Tensor) -> np.ndarray:
        """See `Target.predict`: (1 + T,) time lost until the horizon, then survival at `times`."""
        grid = np.linspace(0, self.times[-1], STEPS + 1)
        hazard = float(np.exp(np.clip(outputs.item(), -MOST, MOST)))
        lost = time_lost(grid, self._survival(hazard, grid)[None])
        return np.r_[lost, self._survival(hazard, np.array(self.times))].astype(np.float32)

    def _survival(self, hazard: float, times: np.ndarray) -> np.ndarray:
        """Survival at some times: a step function that falls at the times of training events."""
        place = np.searchsorted(np.array(self.ends, float), times, side="right")
        return np.asarray(np.exp(-hazard * np.r_[0.0, self.cumulative][place]))

    def to_dict(self) -> dict[str, Any]:
        """See `Target.to_dict`."""
        kept = {"times": self.times, "ends": self.ends, "cumulative": self.cumulative}
        return {"cox": {name: list(values) for name, values in kept.items()}}


def partial_likelihood(outputs: Tensor, labels: Tensor) -> Tensor:
    """Negative log partial likelihood of Cox, one term per bag; ties by Efron.

    Args:
        outputs: (B, 1) log hazard ratios.
        labels: (B,) times, negative if censored (-0.0 at time 0).

    Returns:
        (B,) terms, 0 for censored bags.
    """
    risk = outputs[:, 0].clamp(-MOST, MOST)
    labels = labels.to(torch.float32)
    time, event = labels.abs(), ~torch.signbit(labels)
    at_risk = time[None] >= time[:, None]
    tied = event[None] & (time[None] == time[:, None])
    # Efron: of D events at one time, the k-th (from 0) excludes the share k / D of them.
    before = torch.tril(tied, diagonal=-1).sum(dim=1)
    share = torch.where(event, before / tied.sum(dim=1).clamp(min=1), 0.0)
    of_all = torch.logsumexp(risk[None].masked_fill(~at_risk, -torch.inf), dim=1)
    of_tied = torch.logsumexp(risk[None].masked_fill(~(tied | _own(event)), -torch.inf), dim=1)
    left = of_all + torch.log1p(-share * torch.exp(of_tied - of_all))
    return torch.where(event, left - risk, 0.0)


def _own(event: Tensor) -> Tensor:
    """(B, B) diagonal of the censored bags, so that none of their sums is empty."""
    return torch.diag(~event)
