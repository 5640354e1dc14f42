"""Shared by all rules: plan of the run, shell prefix, wildcard constraints, config file."""

import os
import re
import sys

from snakemake.logging import logger

# A clone uses its own package, whatever else is installed; in a wheel, the workflow is part of it.
CLONE = Path(str(workflow.current_basedir)).parents[1]
if (CLONE / "stainssl" / "cli.py").is_file():
    sys.path.insert(0, str(CLONE))
    # Snakemake loads its plugins first, and with ours the installed package.
    loaded = sys.modules.get("stainssl")
    if loaded and Path(loaded.__file__).resolve().parents[1] != CLONE.resolve():
        for name in [n for n in sys.modules if n.partition(".")[0] == "stainssl"]:
            del sys.modules[name]

from stainssl import launch
from stainssl.cohort import installed
from stainssl.config import NAME, read_yaml
from stainssl.errors import StainsslError
from stainssl.plan.workflow import Plan, any_of

DEPLOYMENT = set(map(str, workflow.deployment_settings.deployment_method))


# For `--sdm apptainer`: image built with stainssl.def, in the working folder or at STAINSSL_IMAGE.
container: os.environ.get("STAINSSL_IMAGE", "stainssl.sif")


def planned():
    """Return the plan of the config; all problems are raised together, before any job."""
    for file in workflow.configfiles:
        read_yaml(file)  # refuses duplicate keys, of which Snakemake would use the last
    moved = workflow.modifier.path_modifier.replace_prefix
    plan = Plan(config, workflow.is_main_process, moved)
    if problems := [] if DEPLOYMENT else installed.missing(plan.config):
        raise StainsslError("\n".join(problems))
    return plan


try:
    PLAN = planned()
except StainsslError as error:
    problems = str(error).split("\n")
    raise WorkflowError(
        f"{len(problems)} problem(s), nothing was run:\n  " + "\n  ".join(problems)
    ) from None

for sentence in PLAN.notices:
    logger.warning(sentence)

if workflow.is_main_process:
    if sentence := launch.not_recorded(PLAN.run_config.results, Path()):
        logger.warning(sentence)

PATHS = PLAN.patterns
LOGS = PATHS.results / "logs"
TIMES = PATHS.results / "times"
shell.prefix(launch.shell_prefix(DEPLOYMENT, PLAN.run_config.results))


wildcard_constraints:
    cohort=NAME,
    tiling=NAME,
    part=NAME,
    encoder=NAME,
    task=NAME,
    head=NAME,
    benchmark=NAME,


def config_file(wildcards, output):
    """Config of this run. A param that takes `output` is not compared, so it reruns no job."""
    return str(PLAN.config_file)
