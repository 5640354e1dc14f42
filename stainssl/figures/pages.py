"""HTML pages of the report, each a self-contained file."""

from __future__ import annotations

import html
from collections.abc import Hashable, Mapping

import pandas as pd

_STYLE = """
body { font: 13px/1.4 system-ui, sans-serif; color: #1b1b1b; margin: 1.2em; }
table { border-collapse: collapse; width: 100%; }
th, td { padding: .3em .4em; text-align: left; vertical-align: top; }
tr.bad td:nth-child(2), td.number { white-space: nowrap; }
td.id, td.text { overflow-wrap: anywhere; }
td.id { min-width: 4.5em; }
td.text { min-width: 10em; }
th { position: sticky; top: 0; background: #fff; border-bottom: 2px solid #444; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
tr { border-bottom: 1px solid #ddd; }
tr.bad td:nth-child(2) { color: #a33c00; font-weight: 600; }
tr.noted td:nth-child(3) { color: #a33c00; }
"""
# Column of `slides.csv` → its title on the page, and the CSS class of its cells or the format of
# its numbers.
_COLUMNS = {
    "slide_id": ("slide", "id"),
    "status": ("status", "word"),
    "detail": ("reason", "text"),
    "tiles_kept": ("tiles", ".0f"),
    "tissue_mm2": ("tissue, mm²", ".3g"),
    "mpp": ("µm/px", ".4g"),
    "mpp_source": ("µm/px from", "word"),
    "patient_id": ("patient", "id"),
    "site": ("site", "id"),
    "part": ("part", "word"),
}


def page(title: str, body: str, style: str = _STYLE) -> str:
    """Return a complete HTML page; `body` is HTML, `title` plain text."""
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        f"<title>{html.escape(title)}</title><style>{style}</style></head><body>"
        f"<h1>{html.escape(title)}</h1>\n{body}</body></html>\n"
    )


def slides_page(slides: pd.DataFrame, cohort: str) -> str:
    """Return the page with status and reason of each slide of a cohort.

    Slides that are not ok come first, then those with a note, then the others.

    Args:
        slides: rows of `slides.csv`, one per slide.
        cohort: name of the cohort, for the title.
    """
    is_bad = slides["status"] != "ok"
    is_noted = ~is_bad & slides["detail"].fillna("").ne("")
    ordered = pd.concat([slides[is_bad], slides[is_noted], slides[~is_bad & ~is_noted]])
    shown = {name: column for name, column in _COLUMNS.items() if name in ordered}
    head = "".join(f"<th>{html.escape(title)}</th>" for title, _ in shown.values())
    rows = [
        f"<tr{_row_class(row)}>"
        + "".join(_cell(row[name], kind) for name, (_, kind) in shown.items())
        + "</tr>"
        for row in ordered.to_dict("records")
    ]
    counts = ", ".join(f"{n} {status}" for status, n in slides["status"].value_counts().items())
    body = (
        f"<p>{len(slides)} slides: {html.escape(counts)}{_noted(int(is_noted.sum()))}.</p>\n"
        f"<table><thead><tr>{head}</tr></thead>\n<tbody>\n" + "\n".join(rows) + "\n</tbody></table>"
    )
    return page(f"Slides of {cohort}", body)


def _row_class(row: Mapping[Hashable, object]) -> str:
    if row["status"] != "ok":
        return " class=bad"
    return "" if pd.isna(row["detail"]) or row["detail"] == "" else " class=noted"


def _noted(count: int) -> str:
    return f"; {count} ok with a note" if count else ""


def _cell(value: object, kind: str) -> str:
    if not kind.startswith("."):
        return f"<td class='{kind}'>{'' if pd.isna(value) else html.escape(str(value))}</td>"
    text = "" if pd.isna(value) else format(float(str(value)), kind)
    return f"<td class='number'>{text}</td>"
