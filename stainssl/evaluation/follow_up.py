"""Follow-ups written as text: `412` for an event at that time, `412+` for censoring."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from stainssl.evaluation.folds import class_name

CENSORED = "+"  # suffix of a censored time
HORIZONS = 9  # number of times at which survival is predicted: deciles
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def follow_up_word(time: float, event: bool) -> str:
    """Write a follow-up as text."""
    return class_name(time) + ("" if event else CENSORED)


def follow_up(words: Iterable[object]) -> tuple[Floats, Bools]:
    """Parse follow-ups: (N,) times and (N,) whether the event occurred then."""
    text = [str(word) for word in words]
    time = np.array([float(word.removesuffix(CENSORED)) for word in text], float)
    return time, np.array([not word.endswith(CENSORED) for word in text], bool)


def is_comparable(time: Floats, event: Bools) -> bool:
    """Whether there is a comparable pair: somebody is known to have outlived another's event."""
    if not event.any():
        return False
    first = time[event].min()
    return bool(((time > first) | ((time == first) & ~event)).any())


def horizons_of(words: Iterable[object]) -> tuple[float, ...]:
    """Times at which survival is predicted and evaluated: deciles of the distinct event times.

    They have four significant digits; the last is the horizon, until which survival is integrated.
    Duplicates, such as several slides of a patient, have no influence.

    Args:
        words: known follow-ups of a task, as text.

    Returns:
        Increasing times above 0; empty without an event after time 0.
    """
    time, event = follow_up(words)
    events = np.unique(time[event & (time > 0)])
    if not len(events):
        return ()
    deciles = np.quantile(events, np.arange(1, HORIZONS + 1) / (HORIZONS + 1))
    return tuple(sorted({float(f"{decile:.4g}") for decile in deciles}))


def time_lost(times: Floats, survival: Floats) -> Floats:
    """Restricted mean time lost: the last of `times` minus the mean event-free time until then.

    Royston and Parmar, BMC Medical Research Methodology 2013; integrated by the trapezoidal rule.

    Args:
        times: (T,) increasing, from 0.
        survival: (N, T) survival at these times.

    Returns:
        (N,) between 0 and the last time, in the unit of `times`.
    """
    return np.asarray(np.trapezoid(1 - survival, times, axis=1))
