"""Commits of weights from the hub: a new commit in the cache leads to new embeddings.

A first run may find nothing in the cache and download the weights. The stores record the commit of
their embeddings, so that the next run knows it although it is not in the settings of the jobs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from stainssl.cohort import part_names
from stainssl.config import Config, Encoder
from stainssl.encoders import revisions

Commits = dict[str, list[str]]  # source → commits used in these results, the current one last


def plan(config: Config, known: Mapping[str, list[str]]) -> Commits:
    """List the commits of every hub source, and append a commit that is new in the cache.

    Args:
        known: commits of earlier runs.
    """
    found: Commits = {}
    for key in config.encoders:
        source = _source(config, key)
        if source is None or revisions.repository_of(source) is None:
            continue
        past = list(known.get(source) or _embedded(config, key))
        now = revisions.commit(source)
        found[source] = past if now in (None, *past[-1:]) else [*past, str(now)]
    return {source: commits for source, commits in found.items() if commits}


def pin_revisions(config: Config, commits: Mapping[str, list[str]]) -> Config:
    """Pin weights that have changed since their first use to their new commit.

    Other weights are left as in the config, so that their results remain valid.
    """
    if not any(len(past) > 1 for past in commits.values()):
        return config
    made = {
        key: _pin_revision(config, key, encoder, commits)
        for key, encoder in config.encoders.items()
    }
    return config.model_copy(update={"encoders": made})


def _pin_revision(
    config: Config, key: str, encoder: Encoder, commits: Mapping[str, list[str]]
) -> Encoder:
    past = commits.get(_source(config, key) or "", [])
    return encoder.model_copy(update={"revision": past[-1]}) if len(past) > 1 else encoder


def _source(config: Config, key: str) -> str | None:
    """Source of an encoder's own weights; None if it starts from an encoder of the config."""
    encoder = config.encoders[key]
    return None if encoder.init in config.encoders else encoder.source


def _embedded(config: Config, key: str) -> list[str]:
    """Commit recorded in the first existing store of an encoder; empty without one."""
    stores = (
        config.paths.embeddings(cohort, run.name, part)
        for run in config.runs_of(key)
        for cohort in config.cohorts
        for part in part_names(config, cohort)
    )
    files = (store / "zarr.json" for store in stores)
    return next((_commit(file) for file in files if file.exists()), [])


def _commit(file: Path) -> list[str]:
    attributes = json.loads(file.read_text(encoding="utf-8")).get("attributes", {})
    found = attributes.get("settings", {}).get("revision")
    return [found] if found else []


def read(path: Path) -> Commits:
    """Read the commits of earlier runs; empty if the file does not exist."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
