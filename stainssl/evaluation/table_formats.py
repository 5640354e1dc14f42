"""Write a table of results as Markdown, LaTeX and HTML."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator

from stainssl.evaluation.table import FEW_MARK, NOTHING, SEEN_MARK, Cell, ResultGrid


def _marked(cell: Cell) -> str:
    if cell.text == NOTHING:
        return NOTHING
    return cell.text + SEEN_MARK * cell.seen + FEW_MARK * cell.gray


def _lines(grid: ResultGrid) -> Iterator[tuple[tuple[str, str], list[Cell]]]:
    yield from zip(grid.rows, grid.cells, strict=True)


def to_markdown(grid: ResultGrid) -> str:
    """Write a GitHub-flavored Markdown table with its notes."""
    head = [*grid.names, *grid.columns]
    lines = ["| " + " | ".join(map(markdown, head)) + " |", "|" + " --- |" * len(head)]
    for names, cells in _lines(grid):
        shown = [f"**{_marked(cell)}**" if cell.bold else _marked(cell) for cell in cells]
        lines.append("| " + " | ".join([*map(markdown, names), *shown]) + " |")
    return "\n".join([*lines, "", *(html.escape(note, quote=False) for note in grid.notes)]) + "\n"


def markdown(text: str) -> str:
    """Escape text for a cell of a Markdown table."""
    return html.escape(text, quote=False).replace("|", "\\|").replace("\n", " ")


_TEX = {"&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "$": r"\$", "–": "--", "±": r"$\pm$",
        "†": r"$^\dagger$", "‡": r"$^\ddagger$", "²": r"$^2$", "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "{": r"\{", "}": r"\}", "\\": r"\textbackslash{}"}  # fmt: skip


def tex(text: str) -> str:
    """Escape text for LaTeX."""
    return re.sub("|".join(map(re.escape, _TEX)), lambda found: _TEX[found.group()], text)


def to_latex(grid: ResultGrid) -> str:
    """Write a LaTeX `tabular` (package booktabs) with its notes as paragraphs."""
    lines = [r"\begin{tabular}{ll" + "l" * len(grid.columns) + "}", r"\toprule"]
    head = [*grid.names, *grid.columns]
    lines += [" & ".join(map(tex, head)) + r" \\", r"\midrule"]
    for names, cells in _lines(grid):
        shown = [
            rf"\textbf{{{tex(_marked(cell))}}}" if cell.bold else tex(_marked(cell))
            for cell in cells
        ]
        lines.append(" & ".join([*map(tex, names), *shown]) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    return "\n".join([*lines, "", *(rf"\par\smallskip {tex(note)}" for note in grid.notes)]) + "\n"


_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #1b1b1b; margin: 2em auto; max-width: 75em; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding: 0 0 .6em; }
th, td { padding: .35em .5em; text-align: left; }
td span, tbody th { white-space: nowrap; }
thead th { border-bottom: 2px solid #444; vertical-align: bottom; }
tbody tr { border-bottom: 1px solid #ddd; }
tbody tr:hover { background: #f3f6fa; }
.few { color: #9a9a9a; }
p { margin: .3em 0; font-size: 13px; color: #444; }
"""


def _unbroken(cell: str) -> str:
    """Allow a line break before the interval of a cell and nowhere else."""
    return " ".join(f"<span>{word}</span>" for word in cell.replace(" (", "\n(").split("\n"))


def html_table(grid: ResultGrid, caption: str) -> str:
    """Write an HTML table with its notes below it."""
    head = "".join(f"<th>{html.escape(c)}</th>" for c in [*grid.names, *grid.columns])
    body = []
    for names, cells in _lines(grid):
        shown = [_unbroken(html.escape(_marked(cell))) for cell in cells]
        shown = [f"<b>{s}</b>" if c.bold else s for s, c in zip(shown, cells, strict=True)]
        shown = [
            f"<span class='few'>{s}</span>" if c.gray else s
            for s, c in zip(shown, cells, strict=True)
        ]
        row = [f"<th scope='row'>{html.escape(names[0])}</th>", f"<td>{html.escape(names[1])}</td>"]
        body.append(f"<tr>{''.join(row)}{''.join(f'<td>{s}</td>' for s in shown)}</tr>")
    notes = "".join(f"<p>{html.escape(note)}</p>" for note in grid.notes)
    return (
        f"<div class='wide'><table><caption>{html.escape(caption)}</caption>"
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n"
        + "\n".join(body)
        + f"\n</tbody></table></div>{notes}"
    )


def to_html(grid: ResultGrid, title: str, below: str = "") -> str:
    """Write a self-contained HTML page; `below` is HTML that follows the notes."""
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>"
        f"{html_table(grid, title)}{below}</body></html>\n"
    )
