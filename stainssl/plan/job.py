"""Base class of jobs: the files a stage reads and writes, and the settings its result depends on.

A stage receives only its job, so it cannot read anything that the job does not declare.
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
    """Role of a field of a job."""

    READS = "reads"
    WRITES = "writes"
    SETTING = "setting"
    RESOURCE = "resource"
    INCLUDES = "includes"


Reads = Annotated[T, Role.READS]
"""Files that the job reads: a path or None, or a list or dictionary of paths."""
Writes = Annotated[T, Role.WRITES]
"""Files that the job writes."""
Setting = Annotated[T, Role.SETTING]
"""Affects the result: if it changes, the job runs again."""
Resource = Annotated[T, Role.RESOURCE]
"""Does not affect the result: a name for messages, a scratch folder, a limit of the machine."""

Includes = Annotated[T, Role.INCLUDES]
"""Another job, or None, whose work this job does too: its inputs and settings are this job's."""


@cache
def _roles(kind: Hashable) -> dict[str, Role]:
    hints = get_type_hints(kind, include_extras=True)
    return {name: hint.__metadata__[0] for name, hint in hints.items()}


@dataclass(frozen=True)
class Job:
    """Inputs, outputs and settings of one run of a stage; each stage has its own subclass."""

    def _of_role(self, role: Role) -> Iterator[tuple[str, Any]]:
        for name, own in _roles(type(self)).items():  # type: ignore[arg-type]
            if own is role:
                yield name, getattr(self, name)

    def inputs(self) -> dict[str, list[str]]:
        """Map each input field to its files, in order and without duplicates."""
        own = {name: _files(value) for name, value in self._of_role(Role.READS)}
        return {
            name: files for job in self._included() for name, files in job.inputs().items()
        } | own

    def outputs(self) -> dict[str, list[str]]:
        """Map each output field to its files, in order and without duplicates."""
        return {name: _files(value) for name, value in self._of_role(Role.WRITES)}

    def settings(self) -> dict[str, str]:
        """Map each setting to a text that changes if and only if the setting does."""
        own = {name: as_text(value) for name, value in self._of_role(Role.SETTING)}
        return {
            name: text for job in self._included() for name, text in job.settings().items()
        } | own

    def _included(self) -> list[Job]:
        return [job for _, job in self._of_role(Role.INCLUDES) if job is not None]

    def param(self) -> str:
        """Return all settings as one JSON text, for the `params` of a rule."""
        return json.dumps(self.settings(), sort_keys=True)


def _files(value: Any) -> list[str]:
    if value is None:
        return []
    if isinstance(value, Path):
        return [str(value)]
    values = value.values() if isinstance(value, Mapping) else value
    return list(dict.fromkeys(file for one in values for file in _files(one)))


def as_text(value: Any) -> str:
    """Return a value as JSON; a table as its length, its columns and a digest of its cells."""
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
