"""Config and encoder groups of a run, fixed when it starts.

The process that parses the Snakefile puts them into the environment of the jobs that it starts,
and the first job writes them. Parsing alone, as for a dry-run or a report, therefore writes
nothing, and a later change of the config does not affect a running job.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stainssl.stores.atomic import write_text

RUN, LATEST = "STAINSSL_RUN_", "STAINSSL_LATEST_"
Groups = dict[str, list[dict[str, str]]]  # see `stainssl.plan.groups`


def short_digest(text: str) -> str:
    """Return the first 12 hex digits of the SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class FixedRun:
    """State shared by all jobs of one run.

    Attributes:
        config: the resolved config, as YAML.
        groups: cohort → groups of encoders.
        groups_file: file that `groups` are written to.
        revisions: source of pretrained weights → commits used in these results.
        revisions_file: file that `revisions` are written to.
        started: start time in seconds since 1970.
    """

    config: str
    groups: Groups
    groups_file: str
    revisions: dict[str, list[str]] = field(default_factory=dict)
    revisions_file: str = ""
    started: float = 0.0

    def to_environment(self, folder: str) -> None:
        """Pass the run to the jobs that this process starts, whose results are in `folder`."""
        packed = zlib.compress(json.dumps(vars(self)).encode(), 9)
        os.environ[RUN + short_digest(self.config)] = base64.b85encode(packed).decode()
        os.environ[LATEST + short_digest(folder)] = short_digest(self.config)

    def write(self, config_file: Path) -> None:
        """Write the config to `config_file` and as the latest, the groups and the revisions."""
        write_text(config_file, self.config)
        write_text(config_file.parent.parent / "config.yaml", self.config)
        if any(self.groups.values()):
            _write_changed(Path(self.groups_file), self.groups)
        if self.revisions:
            _write_changed(Path(self.revisions_file), self.revisions)


def _write_changed(file: Path, content: Any) -> None:
    text = json.dumps(content, indent=1)
    if not (file.exists() and file.read_text() == text):
        write_text(file, text)


def from_environment(name: str) -> FixedRun | None:
    """Return the run with this digest if a parent process passed it on, otherwise None."""
    packed = os.environ.get(RUN + name)
    if packed is None:
        return None
    return FixedRun(**json.loads(zlib.decompress(base64.b85decode(packed))))


def latest(folder: str) -> FixedRun | None:
    """Return the run that a parent process passed on for a results folder, otherwise None."""
    name = os.environ.get(LATEST + short_digest(folder))
    return from_environment(name) if name else None


def restore(config_file: Path) -> None:
    """Write the config of a run if this is its first job to need it."""
    run = from_environment(config_file.stem)
    if run and not (config_file.exists() and config_file.stat().st_mtime >= run.started):
        run.write(config_file)
