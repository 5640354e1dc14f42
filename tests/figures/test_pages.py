"""HTML pages of tables: width in a browser, and the order of slides."""

from __future__ import annotations

import pandas as pd
import pytest

from stainssl.evaluation.table import Cell, ResultGrid
from stainssl.evaluation.table_formats import to_html
from stainssl.figures.pages import slides_page

LONG = "The file says that it has 1,234,567,890 bytes: /data/archive/" + "without_any_break" * 8


def overflow_px(browser: object, html: str, width: int) -> int:
    """Width in px by which a page, or a table in it, exceeds the window."""
    page = browser.new_page(viewport={"width": width, "height": 600})  # type: ignore[attr-defined]
    page.set_content(html)
    script = "[document.documentElement, ...document.querySelectorAll('.wide')]"
    overflow = page.evaluate(f"Math.max(...{script}.map(e => e.scrollWidth - e.clientWidth))")
    page.close()
    return int(overflow)


@pytest.mark.parametrize("width", [800, 1300])
def test_the_page_of_slides_fits_the_window(browser: object, width: int) -> None:
    row = {
        "slide_id": "TCGA-A1-A0SB-01Z-00-DX1.B34C9D26-7A6B-4CE7-9C79-012345678901",
        "status": "truncated", "detail": LONG, "tiles_kept": 12345, "tissue_mm2": 123.4,
        "mpp": 0.2527, "mpp_source": "tiff-resolution", "patient_id": "TCGA-A1-A0SB",
        "site": "Memorial Sloan Kettering", "part": "train-0000",
    }  # fmt: skip
    assert overflow_px(browser, slides_page(pd.DataFrame([row] * 3), "clinic"), width) == 0


def test_the_table_of_a_benchmark_fits_the_window(browser: object) -> None:
    columns = [f"her2: AUROC at site {site} (32 patients)" for site in "abcdef"]
    cells = [Cell("0.95 (0.93–0.97)") for _ in columns]
    grid = ResultGrid(columns, [("stain-invariant", "linear")], [cells])
    assert overflow_px(browser, to_html(grid, "Benchmark main"), 900) == 0


def test_unusable_slides_come_first_and_then_slides_with_a_note() -> None:
    rows = [("a", "ok", ""), ("b", "ok", "too little light"), ("c", "empty", "no tissue")]
    page = slides_page(pd.DataFrame(rows, columns=["slide_id", "status", "detail"]), "clinic")
    assert "2 ok, 1 empty; 1 ok with a note" in page
    assert (
        page.index(">c<") < page.index("<tr class=noted>") < page.index(">b<") < page.index(">a<")
    )
