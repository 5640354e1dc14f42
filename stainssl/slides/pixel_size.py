"""Whether a stated pixel size can be trusted: units, print resolutions, unequal x and y."""

from __future__ import annotations

import math

UM_PER_UNIT = {
    "inch": 25_400.0, "in": 25_400.0, "centimeter": 10_000.0, "cm": 10_000.0,
    "micron": 1.0, "um": 1.0, "µm": 1.0, "μm": 1.0, "micrometer": 1.0,
    "nm": 1e-3, "mm": 1e3, "m": 1e6, "pm": 1e-6, "Å": 1e-4,
}  # fmt: skip
"""µm in a unit of length as TIFF, Fiji and OME write it; `µ` has two code points."""

INCH_UM = UM_PER_UNIT["inch"]
PRINT_MPP = 10.0  # µm/px: a coarser resolution (below 2,540 dpi) is meant for a print or a screen
PRINT_STEP_DPI, MAX_PRINT_DPI = 600, 9600  # what scanners and printers of pages offer above that
MAX_ANISOTROPY = 1.03  # between the µm/px of x and y before pixels are not square


def is_print(mpp: float) -> bool:
    """Whether a resolution, as µm/px, is one of pages rather than of a microscope.

    TIFF has one field for both. 72 to 2,400 dpi are above 10 µm/px, where no slide is scanned;
    page scanners reach 9,600 dpi in steps of 600.
    """
    dpi = INCH_UM / mpp
    steps = dpi / PRINT_STEP_DPI
    is_step = dpi <= MAX_PRINT_DPI * 1.001 and abs(steps - round(steps)) < 1e-3 * steps
    return mpp > PRINT_MPP or is_step


def mean_mpp(x: float | None, y: float | None) -> float | None:
    """The mean of x and y in µm/px, the other where one is not stated, None where neither is."""
    known = [value for value in (x, y) if value is not None]
    return sum(known) / len(known) if known else None


def anisotropy(x: float | None, y: float | None) -> float:
    """The µm/px of the coarser axis over that of the finer one, 1 where one is not stated."""
    return max(x / y, y / x) if x and y else 1.0


def of_resolution(per_unit: float | None, unit_um: float | None) -> float | None:
    """µm/px of so many px in a unit of `unit_um` µm, None where one of them is not stated."""
    if not per_unit or not unit_um or not math.isfinite(per_unit) or per_unit < 0:
        return None
    return unit_um / per_unit


def of_size(value: object, unit: str | None) -> float | None:
    """µm/px of an OME `PhysicalSize` and its unit.

    Args:
        value: the attribute, a number or its text.
        unit: `PhysicalSizeXUnit`; None is OME's default, µm.

    Returns:
        None where the value is no positive number, or the unit no length (`pixel`,
        `reference frame`).
    """
    try:
        size = float(str(value))
    except ValueError:
        return None
    um = UM_PER_UNIT.get(unit if unit is not None else "µm")
    return size * um if um and math.isfinite(size) and size > 0 else None
