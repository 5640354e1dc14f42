"""Which releases there are; light, because the config asks it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stainssl.datasets.release import Release

RELEASES: dict[str, str] = {
    "camelyon17-wilds": "stainssl.datasets.camelyon17_wilds",
    "camelyon17": "stainssl.datasets.camelyon17",
    "pcam": "stainssl.datasets.pcam",
    "bracs-roi": "stainssl.datasets.bracs_roi",
    "bracs-wsi": "stainssl.datasets.bracs_wsi",
    "her2-yale": "stainssl.datasets.her2_yale",
    "response-yale": "stainssl.datasets.response_yale",
    "tcga-her2": "stainssl.datasets.tcga_her2",
    "impress": "stainssl.datasets.impress",
    "bcnb": "stainssl.datasets.bcnb",
    "herohe": "stainssl.datasets.herohe",
    "amibr": "stainssl.datasets.amibr",
}
"""Config word → module with a `RELEASE`."""


def find(name: str) -> Release:
    """The release of that name.

    Raises:
        KeyError: there is none; `RELEASES` has the names.
    """
    found: Release = import_module(RELEASES[name]).RELEASE
    return found
