"""Pixel sizes from metadata: units, print resolutions, and different sizes in x and y."""

from __future__ import annotations

import math

UM_PER_UNIT = {
    "inch": 25_400.0, "in": 25_400.0, "centimeter": 10_000.0, "cm": 10_000.0,
    "micron": 1.0, "um": 1.0, "µm": 1.0, "μm": 1.0, "micrometer": 1.0,
    "nm": 1e-3, "mm": 1e3, "m": 1e6, "pm": 1e-6, "Å": 1e-4,
}  # fmt: skip
"""µm per unit of length, as named by TIFF, Fiji and OME; `µ` has two code points."""

INCH_UM = UM_PER_UNIT["inch"]
PRINT_MPP = 10.0  # µm/px: a coarser resolution (below 2,540 dpi) is that of a print or screen
PRINT_STEP_DPI, MAX_PRINT_DPI = 600, 9600  # finer resolutions of document scanners and printers
MAX_ANISOTROPY = 1.03  # largest ratio of the µm/px of x and y for square pixels


def is_print(mpp: float) -> bool:
    """Whether a TIFF resolution, in µm/px, is that of a print or screen, not of a microscope.

    72 to 2,400 dpi are coarser than 10 µm/px, at which no slide is scanned; document scanners
    reach 9,600 dpi in steps of 600.
    """
    dpi = INCH_UM / mpp
    steps = dpi / PRINT_STEP_DPI
    is_step = dpi <= MAX_PRINT_DPI * 1.001 and abs(steps - round(steps)) < 1e-3 * steps
    return mpp > PRINT_MPP or is_step


def mean_mpp(x: float | None, y: float | None) -> float | None:
    """Mean of x and y in µm/px, or the one that is known; None if neither is."""
    known = [value for value in (x, y) if value is not None]
    return sum(known) / len(known) if known else None


def anisotropy(x: float | None, y: float | None) -> float:
    """µm/px of the coarser axis over that of the finer one; 1 if one is unknown."""
    return max(x / y, y / x) if x and y else 1.0


def of_resolution(per_unit: float | None, unit_um: float | None) -> float | None:
    """Convert a resolution, px per unit of `unit_um` µm, to µm/px; None if either is unknown."""
    if not per_unit or not unit_um or not math.isfinite(per_unit) or per_unit < 0:
        return None
    return unit_um / per_unit


def of_size(value: object, unit: str | None) -> float | None:
    """Convert an OME `PhysicalSize` with its unit to µm/px.

    Args:
        value: value of the attribute, a number or text.
        unit: `PhysicalSizeXUnit` (or Y); None is OME's default, µm.

    Returns:
        µm/px, or None if the value is not a positive number or the unit is not a length (`pixel`,
        `reference frame`).
    """
    try:
        size = float(str(value))
    except ValueError:
        return None
    um = UM_PER_UNIT.get(unit if unit is not None else "µm")
    return size * um if um and math.isfinite(size) and size > 0 else None
