"""Implementation of the commands, one module per command; `run_stage` plans and runs a job."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from stainssl.config import Config
from stainssl.errors import translate_disk_errors
from stainssl.plan.workflow import BUILDERS


def run_stage(verb: str, config: Config, *names: Any, **options: Any) -> None:
    """Plan the job of a command and run it.

    Args:
        verb: a key of `stainssl.plan.workflow.BUILDERS`.
        config: the config.
        names: arguments of the function that plans the job, such as cohort and part.
        options: options that do not affect the result: `gpus` of `pretrain`, `processes` of `demo`.

    Raises:
        StainsslError: the job cannot be planned or run, or the disk is full.
    """
    run = import_module(f"stainssl.stages.{verb}").run
    with translate_disk_errors(config.results):
        run(BUILDERS[verb](config, *names), **options)
