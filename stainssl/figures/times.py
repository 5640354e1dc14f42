"""Where the time of a run went: a bar a rule, from the records that Snakemake keeps of its jobs."""

from __future__ import annotations

import html
from pathlib import Path

import pandas as pd

from stainssl.figures.pages import page
from stainssl.runtime.pace import duration

COLUMNS = ("rule", "jobs", "hours", "core_hours", "longest_s", "peak_mb")


def times_by_rule(folder: Path) -> pd.DataFrame:
    """What the jobs of each rule took, those that took most first.

    Args:
        folder: `times/` of the results: a folder or file a rule, a table a job.

    Returns:
        `COLUMNS`: wall-clock hours of all jobs together, hours of a core that they used, seconds of
        the longest, and the largest memory of one. A job that was run again counts once, as it ran
        last.
    """
    frames = [_job(folder, file) for file in sorted(folder.rglob("*.tsv"))]
    jobs = pd.concat(frames) if frames else pd.DataFrame(columns=["rule", "s", "cpu", "rss"])
    found = jobs.groupby("rule").agg(
        jobs=("s", "size"), hours=("s", "sum"), core_hours=("cpu", "sum"), longest_s=("s", "max"),
        peak_mb=("rss", "max"),
    )  # fmt: skip
    found[["hours", "core_hours"]] /= 3600
    return found.sort_values("hours", ascending=False).reset_index()[list(COLUMNS)]


def _job(folder: Path, file: Path) -> pd.DataFrame:
    rule = file.relative_to(folder).parts[0].removesuffix(".tsv")
    row = pd.read_csv(file, sep="\t", na_values=["-", "NA"]).tail(1)
    cpu = pd.to_numeric(row["cpu_time"]) if "cpu_time" in row else float("nan")
    rss = pd.to_numeric(row["max_rss"]) if "max_rss" in row else float("nan")
    return pd.DataFrame({"rule": rule, "s": row["s"].astype(float), "cpu": cpu, "rss": rss})


_STYLE = """
body { font: 14px/1.4 system-ui, sans-serif; color: #1b1b1b; margin: 1.2em; }
table { border-collapse: collapse; width: 100%; }
th, td { padding: .3em .6em; text-align: left; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
td.bar { width: 40%; }
td.bar div { background: #0072b2; height: 1em; }
tr { border-bottom: 1px solid #ddd; }
"""
_TITLES = ("rule", "jobs", "time", "core hours", "longest job", "peak memory, MB", "")


def times_page(times: pd.DataFrame) -> str:
    """The table of `times_by_rule` as an HTML page with a bar a rule."""
    most = max(float(times["hours"].max()), 1e-12) if len(times) else 1.0
    head = "".join(f"<th{' class=number' if i else ''}>{t}</th>" for i, t in enumerate(_TITLES))
    rows = "\n".join(_row(row, most) for row in times.to_dict("records"))
    total = (
        f"<p>{int(times['jobs'].sum())} jobs, {duration(3600 * times['hours'].sum())} in total, "
        f"{times['core_hours'].sum():.3g} core hours.</p>\n"
    )
    body = f"{total}<table><thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody></table>"
    return page("Run time by rule", body, _STYLE)


def _row(row: dict[str, object], most_hours: float) -> str:
    hours = float(str(row["hours"]))
    cells = [
        str(row["jobs"]), duration(3600 * hours), _number(row["core_hours"], ".3g"),
        duration(float(str(row["longest_s"]))), _number(row["peak_mb"], ".0f"),
    ]  # fmt: skip
    numbers = "".join(f"<td class=number>{cell}</td>" for cell in cells)
    bar = f"<td class=bar><div style='width:{100 * hours / most_hours:.1f}%'></div></td>"
    return f"<tr><td>{html.escape(str(row['rule']))}</td>{numbers}{bar}</tr>"


def _number(value: object, how: str) -> str:
    return "–" if pd.isna(value) else format(float(str(value)), how)
