"""Which releases there are; light, because the config asks it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stainssl.releases.release import Release

RELEASES: dict[str, str] = {
    "camelyon17-wilds": "stainssl.releases.camelyon17_wilds",
    "camelyon17": "stainssl.releases.camelyon17",
    "pcam": "stainssl.releases.pcam",
    "bracs-roi": "stainssl.releases.bracs_roi",
    "bracs-wsi": "stainssl.releases.bracs_wsi",
    "her2-yale": "stainssl.releases.her2_yale",
    "response-yale": "stainssl.releases.response_yale",
    "tcga-her2": "stainssl.releases.tcga_her2",
    "impress": "stainssl.releases.impress",
    "bcnb": "stainssl.releases.bcnb",
    "herohe": "stainssl.releases.herohe",
}
"""Config word → module with a `RELEASE`."""


def find(name: str) -> Release:
    """The release of that name.

    Raises:
        KeyError: there is none; `RELEASES` has the names.
    """
    found: Release = import_module(RELEASES[name]).RELEASE
    return found
