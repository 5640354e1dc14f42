"""Notices about encoders that a run retrains because their training slides have changed."""

from __future__ import annotations

import csv
from pathlib import Path

import pandas as pd

from stainssl.config import Config, Run
from stainssl.plan.encoders import training_slides
from stainssl.runtime.pace import duration

TRAINED_ON = "trained-on.csv"  # beside the checkpoint: all training slides, even without tiles
MAX_LISTED = 3


def write_trained_on(checkpoints: Path, rows: pd.DataFrame) -> None:
    """Write `cohort` and `slide_id` of an encoder's training slides to `TRAINED_ON`.

    Args:
        checkpoints: folder to write to.
        rows: one row per slide with `cohort` and `slide_id`; may be empty.
    """
    from stainssl.stores.atomic import write_text

    slides = rows[["cohort", "slide_id"]] if len(rows) else rows
    write_text(checkpoints / TRAINED_ON, slides.to_csv(index=False))


def retraining_notices(config: Config) -> list[str]:
    """Return a notice for each trained encoder whose training slides have changed.

    It names the slides, the duration of the last training, and how to keep the encoder.
    """
    found = (_notice(config, run) for run in config.runs() if run.encoder.is_trained)
    return [sentence for sentence in found if sentence]


def _notice(config: Config, run: Run) -> str:
    paths = config.paths
    known = paths.checkpoints(run.name) / TRAINED_ON
    if run.encoder.frozen or not (known.exists() and paths.model(run.name).exists()):
        return ""
    with known.open(encoding="utf-8", newline="") as file:
        before = {(row["cohort"], row["slide_id"]) for row in csv.DictReader(file)}
    now = training_slides(config, run)
    changes = {"new": now - before, "gone": before - now}
    said = [f"{len(rows)} {word} ({_some(rows)})" for word, rows in changes.items() if rows]
    if not said:
        return ""
    return (
        f"encoders.{run.key} ({run.name}) will be trained again: its training slides changed, "
        f"{' and '.join(said)}.{_cost(config, run)} To keep it, set `frozen: true` under "
        f"encoders.{run.key}, or give the new slides a split that it is not trained on."
    )


def _some(rows: set[tuple[str, str]]) -> str:
    names = sorted(slide for _, slide in rows)
    return ", ".join(names[:MAX_LISTED]) + (" …" if len(names) > MAX_LISTED else "")


def _cost(config: Config, run: Run) -> str:
    """Duration of the last training as a sentence, from Snakemake's benchmark file; or empty."""
    try:
        times = pd.read_csv(config.results / "times" / "pretrain" / f"{run.name}.tsv", sep="\t")
        return f" The last training took {duration(float(times['s'].iloc[-1]))}."
    except (OSError, ValueError, KeyError, IndexError):
        return ""
