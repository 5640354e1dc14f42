"""Groups: which given encoders embed a cohort together, so that its tiles are decoded once."""

from __future__ import annotations

import json
from pathlib import Path

from stainssl.config import Config
from stainssl.plan.encoders import given_identity

EncoderGroup = dict[str, str]  # encoder → its weights and what they were when the group was planned


def plan(config: Config, known: dict[str, list[EncoderGroup]]) -> dict[str, list[EncoderGroup]]:
    """The groups of each cohort: those known, and one of all given encoders that are in none.

    An encoder that is added, or gets other weights, is in a new group, so that what the others
    embedded stays as it is. Encoders that are trained here are in none, nor those whose
    tiles are normalized to a target of their own: they would hold up the others.

    Args:
        known: an earlier plan; a group of which nothing was embedded is planned anew.
    """
    return {cohort: _plan(config, cohort, known.get(cohort, [])) for cohort in config.cohorts}


def _plan(config: Config, cohort: str, known: list[EncoderGroup]) -> list[EncoderGroup]:
    given = _given(config, cohort)
    kept = [one for one in known if members(config, cohort, one) and _begun(config, cohort, one)]
    placed = {name for one in kept for name in members(config, cohort, one)}
    fresh = {name: weights for name, weights in given.items() if name not in placed}
    return [*kept, fresh] if fresh else kept


def _given(config: Config, cohort: str) -> dict[str, str]:
    """The given encoders that a cohort is embedded by, and what their weights are."""
    runs = (run for run in config.runs_on(cohort) if run.encoder.sees_tiles)
    given = ((run.name, run.encoder) for run in runs)
    return {name: given_identity(e) for name, e in given if e.weights and not e.needs_target}


def members(config: Config, cohort: str, group: EncoderGroup) -> list[str]:
    """The encoders of a group that the cohort still asks for, with the same weights."""
    given = _given(config, cohort)
    return [name for name, weights in group.items() if given.get(name) == weights]


def _begun(config: Config, cohort: str, group: EncoderGroup) -> bool:
    return any(config.paths.embeddings(cohort, name, "").parent.exists() for name in group)


def read(path: Path) -> dict[str, list[EncoderGroup]]:
    """The groups of earlier runs; none where there is no file."""
    return json.loads(path.read_text()) if path.exists() else {}
