"""Which commits of the hub the weights of a run are of: another one in the cache embeds again.

A first run may find nothing in the cache, and downloads. The commit that its vectors are of stands
in their stores, so that the next run knows it without having it in the settings of its jobs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from stainssl.cohort import part_names
from stainssl.config import Config, Encoder
from stainssl.encoders import revisions

Commits = dict[str, list[str]]  # source → the commits that it has had here, the last one acting


def plan(config: Config, known: Mapping[str, list[str]]) -> Commits:
    """The commits of every source of the hub, one that is new in the cache at the end.

    Args:
        known: an earlier plan.
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


def settled(config: Config, commits: Mapping[str, list[str]]) -> Config:
    """A config that pins weights which changed since they were first used to their new commit.

    Those that did not are as the config has them, so that what was made of them stays.
    """
    if not any(len(past) > 1 for past in commits.values()):
        return config
    made = {
        key: _settled(config, key, encoder, commits) for key, encoder in config.encoders.items()
    }
    return config.model_copy(update={"encoders": made})


def _settled(
    config: Config, key: str, encoder: Encoder, commits: Mapping[str, list[str]]
) -> Encoder:
    past = commits.get(_source(config, key) or "", [])
    return encoder.model_copy(update={"revision": past[-1]}) if len(past) > 1 else encoder


def _source(config: Config, key: str) -> str | None:
    """The source that an encoder itself names."""
    encoder = config.encoders[key]
    return None if encoder.init in config.encoders else encoder.source


def _embedded(config: Config, key: str) -> list[str]:
    """The commit that stands in the first of an encoder's stores; none where there is no store."""
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
    """The commits of earlier runs; none where there is no file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
