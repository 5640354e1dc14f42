"""A follow-up as one word, as survival tables print it: `412` is an event, `412+` is censored."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from stainssl.evaluation.folds import class_name

CENSORED = "+"  # after a time until which nothing had happened
HORIZONS = 9  # times at which survival is said
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def follow_up_word(time: float, event: bool) -> str:
    """The word of a follow-up."""
    return class_name(time) + ("" if event else CENSORED)


def follow_up(words: Iterable[object]) -> tuple[Floats, Bools]:
    """(N,) times and (N,) whether the event came then, of words."""
    text = [str(word) for word in words]
    time = np.array([float(word.removesuffix(CENSORED)) for word in text], float)
    return time, np.array([not word.endswith(CENSORED) for word in text], bool)


def is_comparable(time: Floats, event: Bools) -> bool:
    """Whether somebody is known to have outlived an event of somebody else."""
    if not event.any():
        return False
    first = time[event].min()
    return bool(((time > first) | ((time == first) & ~event)).any())


def horizons_of(words: Iterable[object]) -> tuple[float, ...]:
    """The times at which survival is predicted and evaluated: deciles of the different event times.

    Four significant digits; the last is the horizon, until which survival is integrated. Of words
    that stand there twice, as of several slides of a patient, the answer is the same.

    Args:
        words: the known words of a task.

    Returns:
        Rising and above 0; none without an event after 0.
    """
    time, event = follow_up(words)
    events = np.unique(time[event & (time > 0)])
    if not len(events):
        return ()
    deciles = np.quantile(events, np.arange(1, HORIZONS + 1) / (HORIZONS + 1))
    return tuple(sorted({float(f"{decile:.4g}") for decile in deciles}))


def time_lost(times: Floats, survival: Floats) -> Floats:
    """Restricted mean time lost: the time until the last of `times`, less its expected part alive.

    Royston and Parmar, BMC Medical Research Methodology 2013. By trapezoids.

    Args:
        times: (T,) rising, from 0.
        survival: (N, T) survival then.

    Returns:
        (N,), from 0 to the last time, in its unit.
    """
    return np.asarray(np.trapezoid(1 - survival, times, axis=1))
