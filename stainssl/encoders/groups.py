"""Readings: which given encoders embed a cohort together, so that its tiles are decoded once."""

from __future__ import annotations

import json
from pathlib import Path

from stainssl.config import Config
from stainssl.plan.paths import Paths
from stainssl.stores.atomic import write_text

EncoderGroup = dict[str, str]  # encoder → its weights when the reading was planned


def plan(config: Config, known: dict[str, list[EncoderGroup]]) -> dict[str, list[EncoderGroup]]:
    """The readings of each cohort: those known, and one of all given encoders that are in none.

    An encoder that is added, or gets other weights, is in a new reading, so that what the others
    embedded stays as it is. Encoders that are trained here are in none: they would hold up the
    others.

    Args:
        known: an earlier plan; a reading of which nothing was embedded is planned anew.
    """
    return {cohort: _plan(config, cohort, known.get(cohort, [])) for cohort in config.cohorts}


def _plan(config: Config, cohort: str, known: list[EncoderGroup]) -> list[EncoderGroup]:
    given = {r.name: r.encoder.weights for r in config.runs_on(cohort) if r.encoder.weights}
    kept = [one for one in known if members(config, cohort, one) and _begun(config, cohort, one)]
    placed = {name for one in kept for name in members(config, cohort, one)}
    fresh = {name: weights for name, weights in given.items() if name not in placed}
    return [*kept, fresh] if fresh else kept


def members(config: Config, cohort: str, reading: EncoderGroup) -> list[str]:
    """The encoders of a reading that the cohort still asks for, with the same weights."""
    given = {run.name: run.encoder.weights for run in config.runs_on(cohort)}
    return [name for name, weights in reading.items() if given.get(name) == weights]


def _begun(config: Config, cohort: str, reading: EncoderGroup) -> bool:
    paths, tiling = Paths(config.results), config.cohorts[cohort].tiling
    return any(paths.embeddings(cohort, tiling, name, "").parent.exists() for name in reading)


def read(path: Path) -> dict[str, list[EncoderGroup]]:
    """The plan that `write` wrote; none where there is no file."""
    return json.loads(path.read_text()) if path.exists() else {}


def write(path: Path, readings: dict[str, list[EncoderGroup]]) -> None:
    """Write a plan where it differs from what is there."""
    if readings != read(path):
        write_text(path, json.dumps(readings, indent=1))
