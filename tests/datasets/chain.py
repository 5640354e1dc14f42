"""All stages in one process, in the order in which Snakemake would run them."""

from __future__ import annotations

from stainssl.cohort import parts
from stainssl.config import Config
from stainssl.stages import run_stage


def run_all(config: Config) -> None:
    """Run every stage that the config's benchmarks need."""

    all_parts = [(cohort, part) for cohort in config.cohorts for part in parts(config, cohort)]
    for cohort, part in all_parts:
        run_stage("tile", config, cohort, part)
    for cohort in config.cohorts:
        run_stage("statuses", config, cohort)
        run_stage("gate", config, cohort)
    for cohort, part in all_parts:
        run_stage("label", config, cohort, part)
        run_stage("pixels", config, cohort, part)
    for run in config.runs():
        if run.encoder.needs_target:
            run_stage("target", config, run.name)
        run_stage("pretrain", config, run.name)
        for cohort, part in all_parts:
            run_stage("embed", config, cohort, run.name, part)
    for name, task in config.tasks.items():
        run_stage("folds", config, name)
        for run in config.runs():
            if task.level == "tile":
                stage = "finetune" if task.protocol == "fine-tune" else "probe"
                run_stage(stage, config, name, run.name)
            for head in config.heads if task.level != "tile" else ():
                run_stage("mil", config, name, run.name, head)
    for name, benchmark in config.benchmarks.items():
        has_tiles = any(config.tasks[task].level == "tile" for task in benchmark.tasks)
        for run in config.runs() if benchmark.robustness and has_tiles else ():
            run_stage("robustness", config, run.name)
        run_stage("benchmark", config, name)
