"""The chain of verbs in one process, in the order of the graph: what Snakemake would run."""

from __future__ import annotations

from importlib import import_module

from stainssl.cohort import parts
from stainssl.config import Config


def run_all(config: Config) -> None:
    """Run every stage that the config's benchmarks need."""

    def verb(name: str, **words: str) -> None:
        import_module(f"stainssl.stages.{name}").run(config, **words)

    each = [(cohort, part) for cohort in config.cohorts for part in parts(config, cohort)]
    for cohort, part in each:
        verb("tile", cohort=cohort, part=part)
    for cohort in config.cohorts:
        verb("statuses", cohort=cohort)
        verb("gate", cohort=cohort)
    for cohort, part in each:
        verb("label", cohort=cohort, part=part)
        verb("pixels", cohort=cohort, part=part)
    for run in config.runs():
        if run.encoder.needs_target:
            verb("target", encoder=run.name)
        verb("pretrain", encoder=run.name)
        for cohort, part in each:
            verb("embed", cohort=cohort, part=part, encoder=run.name)
    for name, task in config.tasks.items():
        verb("folds", task=name)
        for run in config.runs():
            if task.level == "tile":
                verb("probe", task=name, encoder=run.name)
            for head in config.heads if task.level != "tile" else ():
                verb("mil", task=name, encoder=run.name, head=head)
    for name, benchmark in config.benchmarks.items():
        has_tiles = any(config.tasks[task].level == "tile" for task in benchmark.tasks)
        for run in config.runs() if benchmark.robustness and has_tiles else ():
            verb("robustness", encoder=run.name)
        verb("benchmark", benchmark=name)
