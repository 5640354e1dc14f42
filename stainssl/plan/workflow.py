"""What the Snakefile asks: the job of each rule, and the files that a plain run makes."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from stainssl import cohort as cohorts
from stainssl import config as models
from stainssl.cohort import encoder_warnings
from stainssl.errors import StainsslError
from stainssl.paths import Paths
from stainssl.plan import encoders, groups, revisions, slides, tasks
from stainssl.plan.job import Job, as_text
from stainssl.plan.networks import network_problems
from stainssl.plan.retraining import retraining_notices
from stainssl.plan.run import FixedRun, latest, short_digest

BUILDERS: dict[str, Callable[..., Job]] = {
    "demo": slides.demo,
    "tile": slides.tile,
    "statuses": slides.statuses,
    "gate": slides.gate,
    "label": slides.label,
    "pixels": slides.pixels,
    "target": encoders.target,
    "pretrain": encoders.pretrain,
    "embed": encoders.embed,
    "embedded": encoders.embedded,
    "folds": tasks.folds,
    "probe": tasks.probe,
    "finetune": tasks.finetune,
    "mil": tasks.mil,
    "robustness": encoders.robustness,
    "benchmark": tasks.benchmark,
}
"""Verb → the function that plans its job out of the config and the names on its command line."""

NOTHING = "(?!)"  # a pattern that matches no wildcard


class Plan:
    """One config as Snakemake needs it.

    Attributes:
        config: with the results where the Snakefile says; a module's prefix comes on top.
        run_config: with the results where they really are; what the verbs read.
        patterns: paths with wildcards, for the rules' outputs.
        config_file: where the verbs read it. Its name is a digest of it.
        commits: source of given weights → the commits of the hub that it has had here.
        notices: sentences to tell before anything starts.
    """

    def __init__(
        self, data: Mapping[str, Any], is_main: bool, moved: Callable[[str], str] = str
    ) -> None:
        """Read the config; in the process of one job, the one that its run was started with.

        Args:
            data: the config as Snakemake parsed it.
            is_main: False in the process of one job.
            moved: what Snakemake makes of a path of this workflow where that is used as a module.

        Raises:
            StainsslError: every problem of the config and its sheets, a line each.
        """
        folder = str(data.get("results", "results"))
        self._moved = moved
        fixed = None if is_main else latest(moved(f"{folder}/"))
        read = yaml.safe_load(fixed.config) if fixed else dict(data)
        self.config = models.parse({**read, "results": folder}, "config")
        results = Path(moved(f"{folder}/"))
        self.run_config = self.config.model_copy(update={"results": results})
        if is_main:
            _refuse([*cohorts.check(self.run_config), *network_problems(self.run_config)])
        self.patterns = Paths(self.config.results, {"{cohort}": "{tiling}"})
        real = self.run_config.paths
        self.commits = fixed.revisions if fixed else self._settle(real.revisions())
        text, kept = models.dump(self.run_config), real.groups()
        self.config_file = real.run_config(short_digest(text))
        known = groups.read(kept)
        self.groups = fixed.groups if fixed else groups.plan(self.run_config, known)
        started = fixed.started if fixed else time.time()
        run = FixedRun(text, self.groups, str(kept), self.commits, str(real.revisions()), started)
        run.announce(moved(f"{folder}/"))
        self.notices: list[str] = []
        if is_main:
            self.notices = [
                *encoder_warnings.warnings(self.run_config),
                *cohorts.feature_warnings(self.run_config),
                *retraining_notices(self.run_config),
            ]
        self.job = lru_cache(maxsize=None)(self._job)

    def _settle(self, file: Path) -> dict[str, list[str]]:
        """Give encoders the commit of the hub that their weights have now, where it changed."""
        commits = revisions.plan(self.run_config, revisions.read(file))
        self.config = revisions.settled(self.config, commits)
        self.run_config = revisions.settled(self.run_config, commits)
        return commits

    def _job(self, verb: str, **names: Any) -> Job:
        return BUILDERS[verb](self.config, **names)

    def inputs(self, verb: str, *names: str) -> Callable[[Any], dict[str, list[str]]]:
        """An input function: wildcards → field → files.

        Args:
            names: the wildcards that name the job.
        """

        def found(wildcards: Any) -> dict[str, list[str]]:
            inputs = self._of(verb, names, wildcards).inputs()
            return {name: list(map(self._placed, files)) for name, files in inputs.items()}

        return found

    def _placed(self, file: str) -> str:
        """A file outside of the results, absolute where a module's prefix would move it."""
        if self._moved(file) == file:
            return file
        inside = self.config.results == Path(".") or Path(file).is_relative_to(self.config.results)
        return file if inside else os.path.abspath(file)

    def param(self, verb: str, *names: str) -> Callable[[Any], str]:
        """A function for `params`: wildcards → all that the job depends on, as text."""
        return lambda wildcards: self._of(verb, names, wildcards).param()

    def _of(self, verb: str, names: Iterable[str], wildcards: Any) -> Job:
        return self.job(verb, **{name: getattr(wildcards, name) for name in names})

    def threads(self, cohort: str, cores: int | None) -> int:
        """Threads of a job on a part's slides: all cores, where parts are fewer than they are.

        Args:
            cores: of this machine; None on a cluster, whose profile says how many.
        """
        return max(1, (cores or 1) // max(1, len(cohorts.part_names(self.run_config, cohort))))

    def trainable(self) -> str:
        """A pattern of the encoders that may be trained: no frozen and no given one."""
        runs = self.config.runs()
        return any_of(r.name for r in runs if r.encoder.method and not r.encoder.frozen)

    def embedded_alone(self) -> str:
        """A pattern of the encoders that a rule of their own may embed.

        Left out are those that every cohort reads together with others: Snakemake would plan a
        second job for each of their parts and then choose.
        """
        groups = self.together()
        grouped = [
            {name for _, names, read, _ in groups if cohort in read for name in names}
            for cohort in self.config.cohorts
        ]
        everywhere = set.intersection(*grouped) if grouped else set()
        return any_of(run.name for run in self.config.runs() if run.name not in everywhere)

    def together(self) -> list[tuple[str, list[str], list[str], str]]:
        """(rule, its encoders, the cohorts that it reads, its param) of each group of encoders."""
        found: dict[tuple[str, tuple[str, ...]], list[str]] = {}
        for cohort, planned in self.groups.items():
            for group in planned if cohort in self.config.cohorts else ():
                members = tuple(groups.members(self.run_config, cohort, group))
                if len(group) > 1 and members:
                    found.setdefault((as_text(group), members), []).append(cohort)
        return [
            (f"embed_together_{i}" if i else "embed_together", list(members), read, text)
            for i, ((text, members), read) in enumerate(found.items())
        ]

    def demo_files(self) -> dict[str, list[str]]:
        """What `stainssl demo` makes; nothing where no cohort is synthetic."""
        if not any(cohort.demo for cohort in self.config.cohorts.values()):
            sheet = self.config.paths.demo() / "slides.csv"
            return {"sheet": [str(sheet)], "slides": [], "truth": []}
        return self.job("demo").outputs()

    def wanted(self) -> list[Path]:
        """What a plain run makes: tables, and what no table asks for but the config names."""
        config, paths = self.config, self.config.paths
        files = [paths.benchmark(name) / "table.csv" for name in config.benchmarks]
        for cohort in config.cohorts:
            if config.needs_slides:
                files += [paths.gate(cohort), paths.overview(cohort)]
        for cohort in config.cohorts:
            files += [paths.embedded(cohort, r.name) for r in config.runs_on(cohort)]
        files += [paths.curves(run.name) for run in config.runs() if run.encoder.is_trained]
        return files if config.benchmarks else [*files, *self._pixels()]

    def _pixels(self) -> list[Path]:
        if not (self.config.needs_slides and self.config.slides.keep_pixels):
            return []
        return [
            self.config.paths.pixels(name, part)
            for name in self.config.cohorts
            for part in cohorts.part_names(self.config, name)
        ]


def _refuse(problems: list[str]) -> None:
    if problems:
        raise StainsslError("\n".join(problems))


def any_of(names: Iterable[str]) -> str:
    """A pattern that matches one of some names."""
    return "|".join(map(re.escape, names)) or NOTHING
