"""Names of all releases; imports nothing heavy, since the config imports it."""

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
"""Name in the config → module with a `RELEASE`."""


def find(name: str) -> Release:
    """Import a release by name.

    Raises:
        KeyError: the name is not in `RELEASES`.
    """
    found: Release = import_module(RELEASES[name]).RELEASE
    return found
