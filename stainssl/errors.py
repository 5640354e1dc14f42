"""What happened to a slide, and whose fault an error is."""

from __future__ import annotations

from enum import StrEnum


class Status(StrEnum):
    """What a slide ended as; the column `status` of the `qc` table."""

    OK = "ok"
    EMPTY = "empty"
    UNREADABLE = "unreadable"
    TRUNCATED = "truncated"
    NO_MPP = "no-mpp"
    ABSURD_MPP = "absurd-mpp"
    TOO_SMALL = "too-small"
    TOO_COARSE = "too-coarse"
    NOT_BRIGHTFIELD = "not-brightfield"
    CHANGED = "changed"
    MISSING = "missing"
    UNSUPPORTED = "unsupported"


class StainsslError(Exception):
    """The user can fix this: the message says what was found, where, and what to do."""


class SlideError(Exception):
    """One slide's own fault: it costs that slide, never the run.

    Args:
        status: what the slide ends as; never `ok`.
        detail: one sentence for the `detail` column of the `qc` table.
    """

    def __init__(self, status: Status, detail: str) -> None:
        super().__init__(f"{status.value}: {detail}")
        self.status = status
        self.detail = detail
