"""The verbs' bodies, a module each; `run_stage` plans a verb's job and hands it over."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from stainssl.config import Config
from stainssl.errors import disk_faults_told
from stainssl.plan.workflow import BUILDERS


def run_stage(verb: str, config: Config, *names: Any, **options: Any) -> None:
    """Plan the job of a verb and run its stage, which is handed that job and nothing else.

    Args:
        verb: a key of `stainssl.plan.workflow.BUILDERS`.
        names: what the job is of, in the order of the function that plans it.
        options: of the machine: `gpus` of `pretrain`, `processes` of `demo`.
    """
    run = import_module(f"stainssl.stages.{verb}").run
    with disk_faults_told(config.results):
        run(BUILDERS[verb](config, *names), **options)
