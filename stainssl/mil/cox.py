"""Heads that learn a time to an event by Cox's partial likelihood."""

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

MOST = 50.0  # of a logarithm of relative hazard, so that no exponential overflows


@dataclass(frozen=True)
class Cox(FollowUps):
    r"""A time to an event: the logarithm of the hazard relative to other bags'.

    Cox, *Regression models and life-tables* (JRSS B 1972), of bags Katzman et al., *DeepSurv* (BMC
    Medical Research Methodology 2018); ties by Efron (JASA 1977). The partial likelihood is that of
    all training bags together, not of a step's few: a step takes them all. Survival follows from
    Breslow's estimate of the cumulative hazard of the training bags, :math:`S(t) = \exp(-H_0(t)
    e^{r})`.

    Attributes:
        times: see `FollowUps`.
        ends: rising times of training events; empty: not trained yet.
        cumulative: the cumulative hazard at each of them of a bag whose output is 0.
    """

    is_joint = True
    ends: tuple[float, ...] = ()
    cumulative: tuple[float, ...] = ()

    @property
    def outputs(self) -> int:
        """See `Target.outputs`."""
        return 1

    def fitted(self, train: Sequence[Bag]) -> Cox:
        """See `Target.fitted`: there must be an event that another bag outlived."""
        labels = torch.tensor([bag.label for bag in train], dtype=torch.float32)
        time, event = labels.abs(), ~torch.signbit(labels)
        if not (event[:, None] & (time[None] > time[:, None])).any():
            raise StainsslError(
                f"a head needs a comparable pair of training bags but got {len(train)} bags with"
                f" {int(event.sum())} event(s). Use fewer folds, or add patients."
            )
        return self

    def loss(self) -> Loss:
        """See `Target.loss`: of all bags together, minus each event's term of the likelihood."""
        return partial_likelihood

    def with_baseline(self, labels: Sequence[float], outputs: NDArray[Any]) -> Cox:
        """The target with Breslow's estimate (Biometrics 1974).

        Args:
            labels: of the training bags.
            outputs: (B, 1) theirs.
        """
        known = np.array(labels, np.float32)
        time, event = np.abs(known), ~np.signbit(known)
        hazard = np.exp(np.clip(outputs[:, 0], -MOST, MOST).astype(np.float64))
        ends, deaths = np.unique(time[event], return_counts=True)
        at_risk = np.array([hazard[time >= end].sum() for end in ends])
        cumulative = np.cumsum(deaths / at_risk)
        return replace(self, ends=tuple(ends.tolist()), cumulative=tuple(cumulative.tolist()))

    def answer(self, outputs: Tensor) -> np.ndarray:
        """See `Target.answer`: (1 + T,) time lost until the horizon, and survival at `times`."""
        grid = np.linspace(0, self.times[-1], STEPS + 1)
        hazard = float(np.exp(np.clip(outputs.item(), -MOST, MOST)))
        lost = time_lost(grid, self._survival(hazard, grid)[None])
        return np.r_[lost, self._survival(hazard, np.array(self.times))].astype(np.float32)

    def _survival(self, hazard: float, times: np.ndarray) -> np.ndarray:
        """Survival at some times; it falls at training events and stays after the last."""
        place = np.searchsorted(np.array(self.ends, float), times, side="right")
        return np.asarray(np.exp(-hazard * np.r_[0.0, self.cumulative][place]))

    def card(self) -> dict[str, Any]:
        """See `Target.card`."""
        kept = {"times": self.times, "ends": self.ends, "cumulative": self.cumulative}
        return {"cox": {name: list(values) for name, values in kept.items()}}


def partial_likelihood(outputs: Tensor, labels: Tensor) -> Tensor:
    """Minus the logarithm of Cox's partial likelihood, bag by bag; ties by Efron.

    Args:
        outputs: (B, 1) logarithms of relative hazards.
        labels: (B,) times, with a minus where they are censored (at 0 too).

    Returns:
        (B,): 0 of censored bags.
    """
    risk = outputs[:, 0].clamp(-MOST, MOST)
    labels = labels.to(torch.float32)
    time, event = labels.abs(), ~torch.signbit(labels)
    at_risk = time[None] >= time[:, None]
    tied = event[None] & (time[None] == time[:, None])
    # Of D bags that have the event at one time, the k-th leaves k / D of them out.
    before = torch.tril(tied, diagonal=-1).sum(dim=1)
    share = torch.where(event, before / tied.sum(dim=1).clamp(min=1), 0.0)
    of_all = torch.logsumexp(risk[None].masked_fill(~at_risk, -torch.inf), dim=1)
    of_tied = torch.logsumexp(risk[None].masked_fill(~(tied | _own(event)), -torch.inf), dim=1)
    left = of_all + torch.log1p(-share * torch.exp(of_tied - of_all))
    return torch.where(event, left - risk, 0.0)


def _own(event: Tensor) -> Tensor:
    """(B, B): censored bags with themselves, so that no sum is of nothing."""
    return torch.diag(~event)
