"""Interface to the Snakefile: the job of each rule, and the target files of a run."""

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
from stainssl.plan.streaming import streaming_notices

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
"""Verb → function that plans its job from the config and the names on its command line."""

NOTHING = "(?!)"  # regular expression that matches nothing


class Plan:
    """A config as Snakemake needs it: jobs, paths with wildcards, and target files.

    Attributes:
        config: config with the results folder as written; Snakemake adds a module's prefix.
        run_config: config with the actual results folder, as read by the verbs.
        patterns: paths with wildcards, for the outputs of rules.
        config_file: file from which the verbs read `run_config`, named by its digest.
        groups: cohort → groups of pretrained encoders that are embedded together.
        commits: source of pretrained weights → commits used in these results.
        notices: warnings to show before any job starts.
        job: (verb, names) → job, cached.
    """

    def __init__(
        self, data: Mapping[str, Any], is_main: bool, moved: Callable[[str], str] = str
    ) -> None:
        """Read and check the config; in the process of a single job, use that of its run.

        Args:
            data: the config as parsed by Snakemake.
            is_main: False in the process of a single job.
            moved: path of this workflow → the path Snakemake uses if the workflow is a module.

        Raises:
            StainsslError: all problems of the config and its sheets, one per line.
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
        run.to_environment(moved(f"{folder}/"))
        self.notices: list[str] = []
        if is_main:
            self.notices = [
                *encoder_warnings.warnings(self.run_config),
                *cohorts.feature_warnings(self.run_config),
                *retraining_notices(self.run_config),
                *streaming_notices(self.run_config),
            ]
        self.job = lru_cache(maxsize=None)(self._job)

    def _settle(self, file: Path) -> dict[str, list[str]]:
        """Pin pretrained weights to their current commit in the cache if it has changed."""
        commits = revisions.plan(self.run_config, revisions.read(file))
        self.config = revisions.pin_revisions(self.config, commits)
        self.run_config = revisions.pin_revisions(self.run_config, commits)
        return commits

    def _job(self, verb: str, **names: Any) -> Job:
        return BUILDERS[verb](self.config, **names)

    def inputs(self, verb: str, *names: str, **fixed: str) -> Callable[[Any], dict[str, list[str]]]:
        """Return an input function: wildcards → field → files.

        Args:
            verb: key of `BUILDERS`.
            names: wildcards that identify the job.
            fixed: names that identify it and are no wildcards of the rule.
        """

        def found(wildcards: Any) -> dict[str, list[str]]:
            inputs = self._of(verb, names, wildcards, **fixed).inputs()
            return {name: list(map(self._placed, files)) for name, files in inputs.items()}

        return found

    def _placed(self, file: str) -> str:
        """Make a file outside the results absolute if a module's prefix would move it."""
        if self._moved(file) == file:
            return file
        inside = self.config.results == Path(".") or Path(file).is_relative_to(self.config.results)
        return file if inside else os.path.abspath(file)

    def param(self, verb: str, *names: str) -> Callable[[Any], str]:
        """Return a function for `params`: wildcards → all settings of the job, as text."""
        return lambda wildcards: self._of(verb, names, wildcards).param()

    def _of(self, verb: str, names: Iterable[str], wildcards: Any, **fixed: str) -> Job:
        return self.job(verb, **{name: getattr(wildcards, name) for name in names}, **fixed)

    def threads(self, cohort: str, cores: int | None) -> int:
        """Threads of a job on one part: the cores shared out over the cohort's parts, at least 1.

        Args:
            cohort: name of the cohort.
            cores: cores of this machine; None on a cluster, where the profile sets threads.
        """
        return max(1, (cores or 1) // max(1, len(cohorts.part_names(self.run_config, cohort))))

    def embed_threads(self, cohort: str, cores: int | None) -> int:
        """Threads of a job that embeds a part: as `threads` if it reads slides, otherwise 1."""
        is_streamed = self.config.cohorts[cohort].pixels == "stream"
        return self.threads(cohort, cores) if is_streamed else 1

    def trainable(self) -> str:
        """Regular expression of the encoders that may be trained: with a method, not frozen."""
        runs = self.config.runs()
        return any_of(r.name for r in runs if r.encoder.method and not r.encoder.frozen)

    def embedded_alone(self) -> str:
        """Regular expression of the encoders that the rule `embed` may embed, one per job.

        Encoders that every cohort embeds in a group are left out: Snakemake would plan a second
        job for each of their parts before choosing one.
        """
        groups = self.together()
        grouped = [
            {name for _, names, read, _ in groups if cohort in read for name in names}
            for cohort in self.config.cohorts
        ]
        everywhere = set.intersection(*grouped) if grouped else set()
        return any_of(run.name for run in self.config.runs() if run.name not in everywhere)

    def together(self) -> list[tuple[str, list[str], list[str], str]]:
        """List (rule, encoders, cohorts, param) of each group planned with several encoders."""
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

    def group_param(self, group: str) -> Callable[[Any], str]:
        """Return a function for `params` of a group's jobs: wildcards → all settings, as text."""

        def text(wildcards: Any) -> str:
            if self.config.cohorts[wildcards.cohort].pixels == "store":
                return group
            return group + self.param("pixels", "cohort", "part")(wildcards)

        return text

    def demo_files(self) -> dict[str, list[str]]:
        """Outputs of `stainssl demo`; without a synthetic cohort, no slides and no polygons."""
        if not any(cohort.demo for cohort in self.config.cohorts.values()):
            sheet = self.config.paths.demo() / "slides.csv"
            return {"sheet": [str(sheet)], "slides": [], "truth": []}
        return self.job("demo").outputs()

    def wanted(self) -> list[Path]:
        """List the targets of a run: benchmark tables, and files that no table depends on.

        The latter are the gates and overviews of slides, counts of embedded tiles and pretraining
        curves, and without a benchmark also the pixels of cohorts that are not streamed.
        """
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
            for name, cohort in self.config.cohorts.items()
            if cohort.pixels == "store"
            for part in cohorts.part_names(self.config, name)
        ]


def _refuse(problems: list[str]) -> None:
    if problems:
        raise StainsslError("\n".join(problems))


def any_of(names: Iterable[str]) -> str:
    """Return a regular expression that matches any of the names; no name: nothing."""
    return "|".join(map(re.escape, names)) or NOTHING
