"""Published results: select those of a task, and write them below the table."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path

import pandas as pd
import yaml
from pydantic import BaseModel, ConfigDict, Field

PATH = Path(__file__).with_name("published.yaml")
TITLE = "Published, not run here"


class Published(BaseModel):
    """A result published by others, with what is needed to judge whether it is comparable.

    Attributes:
        release: data set.
        label: label of the task.
        method: name of the published method.
        protocol: training and testing in a few words.
        metric: name of the metric.
        value: as published.
        spread: as published; the source defines what it means.
        split: split of the data.
        version: version of the data.
        source: reference.
        note: differences from our evaluation, if any.
        external: the data set on which it was tested, if that is another one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    release: str
    label: str
    method: str
    protocol: str
    metric: str
    value: float
    spread: str = ""
    split: str
    version: str
    source: str
    note: str = ""
    external: str = ""

    @property
    def figure(self) -> str:
        """Value and spread as text."""
        return f"{self.value:g}{f' ({self.spread})' if self.spread else ''}"


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    figures: list[Published] = Field(min_length=1)


@cache
def every(path: Path = PATH) -> tuple[Published, ...]:
    """All published results, in the order of the file."""
    return tuple(_File.model_validate(yaml.safe_load(path.read_text("utf-8"))).figures)


def figures_for(questions: Iterable[tuple[str, str, str]]) -> list[tuple[str, Published]]:
    """Select the published results that belong to tasks, by release and label.

    Args:
        questions: (task, release, label) of every cohort of every task.

    Returns:
        (task, published result), in the order of `questions`.
    """
    return [
        (task, one)
        for task, release, label in dict.fromkeys(questions)
        for one in every()
        if (one.release, one.label) == (release, label)
    ]


COLUMNS = ("task", "method", "protocol", "figure", "data", "source")


def _cells(task: str, one: Published) -> list[str]:
    data = f"{one.release} {one.version}, {one.split}"
    if one.external:
        data += f", tested on {one.external}"
    figure = f"{one.metric} {one.figure}"
    return [task, one.method, one.protocol, figure, data, f"{one.source}. {one.note}".rstrip(" .")]


def to_rows(found: Sequence[tuple[str, Published]]) -> pd.DataFrame:
    """Rows of the long table, with group and head `published`."""
    return pd.DataFrame(
        [
            {
                "encoder": one.method, "run": one.source, "head": "published", "task": task,
                "metric": one.metric, "group": "published", "value": one.value,
            }
            for task, one in found
        ]
    )  # fmt: skip


def to_markdown(found: Sequence[tuple[str, Published]]) -> str:
    """Write a separate Markdown table below a line; empty without results."""
    if not found:
        return ""
    lines = ["| " + " | ".join(_cells(*one)) + " |" for one in found]
    head = ["| " + " | ".join(COLUMNS) + " |", "|" + " --- |" * len(COLUMNS)]
    return "\n".join(["", "---", "", f"{TITLE}:", "", *head, *lines, ""])


def to_latex(found: Sequence[tuple[str, Published]], escape: Callable[[str], str]) -> str:
    """Write a separate LaTeX `tabular` below a rule; empty without results.

    Args:
        found: as returned by `figures_for`.
        escape: function that escapes text for LaTeX.
    """
    if not found:
        return ""
    rows = [" & ".join(map(escape, _cells(*one))) + r" \\" for one in found]
    head = " & ".join(COLUMNS) + r" \\"
    begin = r"\begin{tabular}{" + "l" * len(COLUMNS) + "}"
    parts = [r"\par\medskip\hrule\medskip", TITLE + r":\par", begin, r"\toprule", head, r"\midrule"]
    return "\n".join([*parts, *rows, r"\bottomrule", r"\end{tabular}", ""])


def to_html(found: Sequence[tuple[str, Published]]) -> str:
    """Write a separate HTML table below a line; empty without results."""
    if not found:
        return ""

    def row(cells: Iterable[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in cells) + "</tr>"

    body = "".join(row(_cells(*one), "td") for one in found)
    return (
        f"<hr><div class='wide'><table><caption>{TITLE}</caption>"
        f"<thead>{row(COLUMNS, 'th')}</thead><tbody>{body}</tbody></table></div>"
    )
