"""Run time by rule, from Snakemake's benchmark files: table and HTML page."""

from __future__ import annotations

import html
from pathlib import Path

import pandas as pd

from stainssl.figures.pages import page
from stainssl.runtime.gpus import gpu_count_from_log
from stainssl.runtime.pace import duration

_TITLES = {
    "rule": "rule",
    "jobs": "jobs",
    "hours": "time",
    "core_hours": "core hours",
    "gpu_hours": "GPU hours",
    "longest_s": "longest job",
    "peak_mb": "peak memory, MB",
}
COLUMNS = tuple(_TITLES)


def times_by_rule(folder: Path, logs: Path) -> pd.DataFrame:
    """Summarize the run time of each rule, the longest first.

    Args:
        folder: `times/` of the results, with a folder or file per rule and a table per job.
        logs: `logs/` of the results, where the log of a job has the same relative path.

    Returns:
        One row per rule with `COLUMNS`: number of jobs, total wall-clock hours, core hours used,
        GPU hours (0 without a GPU), seconds of the longest job, and peak memory (MB) of a job. A
        job that ran several times counts once, with its last run.
    """
    frames = [_job(folder, file, logs) for file in sorted(folder.rglob("*.tsv"))]
    empty = pd.DataFrame(columns=["rule", "s", "cpu", "gpu", "rss"])
    jobs = pd.concat(frames) if frames else empty
    found = jobs.groupby("rule").agg(
        jobs=("s", "size"), hours=("s", "sum"), core_hours=("cpu", "sum"), gpu_hours=("gpu", "sum"),
        longest_s=("s", "max"), peak_mb=("rss", "max"),
    )  # fmt: skip
    found[["hours", "core_hours", "gpu_hours"]] /= 3600
    return found.sort_values("hours", ascending=False).reset_index()[list(COLUMNS)]


def _job(folder: Path, file: Path, logs: Path) -> pd.DataFrame:
    log = logs / file.relative_to(folder).with_suffix(".log")
    gpus = gpu_count_from_log(log.read_text(errors="replace")) if log.is_file() else 0
    rule = file.relative_to(folder).parts[0].removesuffix(".tsv")
    row = pd.read_csv(file, sep="\t", na_values=["-", "NA"]).tail(1)
    cpu = pd.to_numeric(row["cpu_time"]) if "cpu_time" in row else float("nan")
    rss = pd.to_numeric(row["max_rss"]) if "max_rss" in row else float("nan")
    seconds = row["s"].astype(float)
    return pd.DataFrame({"rule": rule, "s": seconds, "cpu": cpu, "gpu": gpus * seconds, "rss": rss})


def times_text(times: pd.DataFrame) -> str:
    """Return the table of `times_by_rule` as aligned text, with whole seconds and MB."""
    whole = {n: [_number(v, ".0f") for v in times[n]] for n in ("longest_s", "peak_mb")}
    return times.assign(**whole).to_string(index=False, float_format="%.3g", na_rep="–")


_STYLE = """
body { font: 14px/1.4 system-ui, sans-serif; color: #1b1b1b; margin: 1.2em; }
table { border-collapse: collapse; width: 100%; }
th, td { padding: .3em .6em; text-align: left; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
td.bar { width: 40%; }
td.bar div { background: #0072b2; height: 1em; }
tr { border-bottom: 1px solid #ddd; }
"""


def times_page(times: pd.DataFrame) -> str:
    """Return the table of `times_by_rule` as an HTML page with a bar per rule.

    GPU hours are left out if no job had a GPU.
    """
    most = max(float(times["hours"].max()), 1e-12) if len(times) else 1.0
    has_gpu = bool((times["gpu_hours"] > 0).any())
    times = times if has_gpu else times.drop(columns="gpu_hours")
    titles = [_TITLES[name] for name in times] + [""]
    head = "".join(f"<th{' class=number' if i else ''}>{t}</th>" for i, t in enumerate(titles))
    of_gpus = f", {times['gpu_hours'].sum():.3g} GPU hours" if has_gpu else ""
    rows = "\n".join(_row(row, most) for row in times.to_dict("records"))
    total = (
        f"<p>{int(times['jobs'].sum())} jobs, {duration(3600 * times['hours'].sum())} in total, "
        f"{times['core_hours'].sum():.3g} core hours{of_gpus}.</p>\n"
    )
    body = f"{total}<table><thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody></table>"
    return page("Run time by rule", body, _STYLE)


def _row(row: dict[str, object], most_hours: float) -> str:
    hours = float(str(row["hours"]))
    cells = [
        str(row["jobs"]), duration(3600 * hours), _number(row["core_hours"], ".3g"),
        *([_number(row["gpu_hours"], ".3g")] if "gpu_hours" in row else []),
        duration(float(str(row["longest_s"]))), _number(row["peak_mb"], ".0f"),
    ]  # fmt: skip
    numbers = "".join(f"<td class=number>{cell}</td>" for cell in cells)
    bar = f"<td class=bar><div style='width:{100 * hours / most_hours:.1f}%'></div></td>"
    return f"<tr><td>{html.escape(str(row['rule']))}</td>{numbers}{bar}</tr>"


def _number(value: object, how: str) -> str:
    return "–" if pd.isna(value) else format(float(str(value)), how)
