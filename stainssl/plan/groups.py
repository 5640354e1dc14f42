"""Groups of pretrained encoders that embed a cohort together, so that tiles are decoded once."""

from __future__ import annotations

import json
from pathlib import Path

from stainssl.config import Config
from stainssl.plan.encoders import given_identity

EncoderGroup = dict[str, str]  # encoder → identity of its weights when the group was planned


def plan(config: Config, known: dict[str, list[EncoderGroup]]) -> dict[str, list[EncoderGroup]]:
    """Plan the groups of each cohort: the known ones, and one for the remaining encoders.

    An encoder that is added, or whose weights change, goes into a new group, so that the
    embeddings of the other encoders remain valid. Encoders that are trained here, or whose tiles
    are normalized to a target of their own, are in no group: the others would wait for them.

    Args:
        known: groups of an earlier plan; those without any embedding are planned again.

    Returns:
        Cohort → groups.
    """
    return {cohort: _plan(config, cohort, known.get(cohort, [])) for cohort in config.cohorts}


def _plan(config: Config, cohort: str, known: list[EncoderGroup]) -> list[EncoderGroup]:
    given = _given(config, cohort)
    kept = [one for one in known if members(config, cohort, one) and _begun(config, cohort, one)]
    placed = {name for one in kept for name in members(config, cohort, one)}
    fresh = {name: weights for name, weights in given.items() if name not in placed}
    return [*kept, fresh] if fresh else kept


def _given(config: Config, cohort: str) -> dict[str, str]:
    """Pretrained encoders of a cohort that can be grouped → identity of their weights."""
    runs = (run for run in config.runs_on(cohort) if run.encoder.sees_tiles)
    given = ((run.name, run.encoder) for run in runs)
    return {name: given_identity(e) for name, e in given if e.weights and not e.needs_target}


def members(config: Config, cohort: str, group: EncoderGroup) -> list[str]:
    """Return the encoders of a group that the cohort still uses, with the same weights."""
    given = _given(config, cohort)
    return [name for name, weights in group.items() if given.get(name) == weights]


def _begun(config: Config, cohort: str, group: EncoderGroup) -> bool:
    return any(config.paths.embeddings(cohort, name, "").parent.exists() for name in group)


def read(path: Path) -> dict[str, list[EncoderGroup]]:
    """Read the groups of earlier runs; empty if the file does not exist."""
    return json.loads(path.read_text()) if path.exists() else {}
