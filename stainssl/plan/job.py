"""A job of a stage: the files it reads, the files it writes, and all that its result depends on.

A stage is handed its job and nothing else, so that what a job does not declare cannot be read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import pandas as pd
from pydantic import BaseModel

T = TypeVar("T")


class Role(Enum):
    """What a field of a job is to it."""

    READS = "reads"
    WRITES = "writes"
    SETTING = "setting"
    RESOURCE = "resource"


Reads = Annotated[T, Role.READS]
"""Files that the job reads: a path, or paths in a list or a dictionary."""
Writes = Annotated[T, Role.WRITES]
"""Files that the job writes."""
Setting = Annotated[T, Role.SETTING]
"""Decides the result: where it changes, the job is run again."""
Resource = Annotated[T, Role.RESOURCE]
"""Does not change the result: a name for messages, a scratch folder, a limit of the machine."""


@cache
def _roles(kind: Hashable) -> dict[str, Role]:
    hints = get_type_hints(kind, include_extras=True)
    return {name: hint.__metadata__[0] for name, hint in hints.items()}


@dataclass(frozen=True)
class Job:
    """What one run of a stage reads, writes and depends on; a subclass a stage."""

    def _of_role(self, role: Role) -> Iterator[tuple[str, Any]]:
        for name, own in _roles(type(self)).items():  # type: ignore[arg-type]
            if own is role:
                yield name, getattr(self, name)

    def inputs(self) -> dict[str, list[str]]:
        """Field → the files that it names, in order, each once."""
        return {name: _files(value) for name, value in self._of_role(Role.READS)}

    def outputs(self) -> dict[str, list[str]]:
        """Field → the files that are written."""
        return {name: _files(value) for name, value in self._of_role(Role.WRITES)}

    def settings(self) -> dict[str, str]:
        """Field → a text that changes when, and only when, the setting does."""
        return {name: as_text(value) for name, value in self._of_role(Role.SETTING)}

    def param(self) -> str:
        """All settings in one text, for a rule's `params`."""
        return json.dumps(self.settings(), sort_keys=True)


def _files(value: Any) -> list[str]:
    if value is None:
        return []
    if isinstance(value, Path):
        return [str(value)]
    values = value.values() if isinstance(value, Mapping) else value
    return list(dict.fromkeys(file for one in values for file in _files(one)))


def as_text(value: Any) -> str:
    """A value as text. A table is shown by its columns, its length and a digest of its cells."""
    if isinstance(value, pd.DataFrame):
        columns = ", ".join(map(str, value.columns))
        cells = json.dumps(value.values.tolist(), default=str)
        return f"{len(value)} rows of {columns}: {hashlib.sha256(cells.encode()).hexdigest()[:16]}"
    return json.dumps(_plain(value), sort_keys=True, default=str)


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, pd.DataFrame):
        return as_text(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        plain = [_plain(one) for one in value]
        return sorted(plain) if isinstance(value, (set, frozenset)) else plain
    return value
