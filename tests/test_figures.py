"""Names in figures are not read as formulas."""

from __future__ import annotations

import io

from matplotlib.figure import Figure

import stainssl.figures  # noqa: F401  (configures Matplotlib)


def test_dollar_signs_in_names_are_not_read_as_formulas() -> None:
    figure = Figure()
    figure.text(0, 0, r"$site$ with $x^{ and \frac{")
    figure.savefig(io.BytesIO())
