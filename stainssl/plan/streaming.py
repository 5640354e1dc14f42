"""Notices about cohorts that are streamed, but whose tiles some jobs need stored."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from stainssl.config import Config
from stainssl.plan.encoders import pretrain, robustness, robustness_tasks_of_encoder, target
from stainssl.plan.rows import Part
from stainssl.plan.tasks import finetune


def streaming_notices(config: Config) -> list[str]:
    """Return a notice for each cohort with `pixels: stream` whose tiles are stored all the same.

    It names what reads the stored tiles.
    """
    is_kept = config.slides.keep_pixels
    removed = "With slides.keep_pixels: false they" if is_kept else "They"
    streamed = [name for name, cohort in config.cohorts.items() if cohort.pixels == "stream"]
    readers = list(_readers(config)) if streamed else []
    sentences = []
    for name in streamed:
        found: dict[str, dict[str, None]] = {}  # what → names, in order and without duplicates
        for what, reader, parts in readers:
            if any(cohort == name for cohort, _ in parts):
                found.setdefault(what, {})[reader] = None
        if found:
            listed = "; ".join(f"{what} {', '.join(names)}" for what, names in found.items())
            sentences.append(
                f"cohorts.{name} has pixels: stream, but its tiles are also stored, for {listed}."
                f" {removed} are removed afterwards."
            )
    return sentences


def _readers(config: Config) -> Iterator[tuple[str, str, Collection[Part]]]:
    """Yield what reads stored tiles, other than `embed`: job, encoder or task, and its stores."""
    for run in config.runs():
        encoder = f"encoders.{run.key}"
        is_final = run.encoder.method is not None and run.encoder.frozen  # its model is used as is
        if run.encoder.needs_target and not is_final:
            yield "the stain target of", encoder, target(config, run.name).pixels
        if run.encoder.is_trained and not is_final:
            yield "the pretraining of", encoder, pretrain(config, run.name).pixels
        if robustness_tasks_of_encoder(config, run.key):
            yield "the robustness of", encoder, robustness(config, run.name).pixels
    for task, key in config.benchmarked():
        if config.tasks[task].is_fine_tuned:
            for run in config.runs_of(key):
                stores = finetune(config, task, run.name).pixels
                yield "the fine-tuning of", f"tasks.{task}", stores
