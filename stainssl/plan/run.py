"""What a run is fixed to when it starts: its config, and which encoders read together.

Both travel in the environment of the process that parsed the Snakefile to the jobs that it starts,
and are written by the first of them: parsing alone, as for a dry-run or a report, writes nothing,
and no later config takes the place of the one that a running job was started with.
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
    """Twelve hex digits that name a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class FixedRun:
    """What the jobs of one run are started with.

    Attributes:
        config: as YAML, resolved.
        groups: cohort → groups of encoders.
        groups_file: where the groups are kept.
        revisions: source of given weights → the commits of the hub that it has had here.
        revisions_file: where these are kept.
        started: when, in seconds since 1970.
    """

    config: str
    groups: Groups
    groups_file: str
    revisions: dict[str, list[str]] = field(default_factory=dict)
    revisions_file: str = ""
    started: float = 0.0

    def announce(self, folder: str) -> None:
        """Hand it to the jobs that this process starts, whose results are in `folder`."""
        packed = zlib.compress(json.dumps(vars(self)).encode(), 9)
        os.environ[RUN + short_digest(self.config)] = base64.b85encode(packed).decode()
        os.environ[LATEST + short_digest(folder)] = short_digest(self.config)

    def write(self, config_file: Path) -> None:
        """Write the config under its own name and as the latest, the groups and the revisions."""
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


def announced(name: str) -> FixedRun | None:
    """The run of that digest, where a process above this one announced it."""
    packed = os.environ.get(RUN + name)
    if packed is None:
        return None
    return FixedRun(**json.loads(zlib.decompress(base64.b85decode(packed))))


def latest(folder: str) -> FixedRun | None:
    """The run that a process above this one announced for a folder of results."""
    name = os.environ.get(LATEST + short_digest(folder))
    return announced(name) if name else None


def restore(config_file: Path) -> None:
    """Write the config of a run where one of its jobs asks for it first."""
    run = announced(config_file.stem)
    if run and not (config_file.exists() and config_file.stat().st_mtime >= run.started):
        run.write(config_file)
