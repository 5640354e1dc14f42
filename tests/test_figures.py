"""Names in pictures are names."""

from __future__ import annotations

import io

from matplotlib.figure import Figure

import stainssl.figures  # noqa: F401  (sets how text is read)


def test_a_name_with_dollars_is_no_formula() -> None:
    figure = Figure()
    figure.text(0, 0, r"$site$ with $x^{ and \frac{")
    figure.savefig(io.BytesIO())
