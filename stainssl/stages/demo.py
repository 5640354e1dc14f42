"""`stainssl demo`: seed → slides, sheet and truth of the synthetic cohort."""

from __future__ import annotations

from stainssl.config import Config
from stainssl.errors import StainsslError
from stainssl.plan.paths import Paths


def run(config: Config, processes: int = 1) -> None:
    """Make the synthetic cohort of the config under `results/demo/`.

    Args:
        processes: slides rendered at the same time.

    Raises:
        StainsslError: not exactly one cohort of the config is synthetic.
    """
    from stainssl.demo import make

    demos = [cohort.demo for cohort in config.cohorts.values() if cohort.demo]
    if len(demos) != 1:
        raise StainsslError(
            f"{len(demos)} cohorts have the key 'demo': `stainssl demo` makes exactly one."
        )
    make(Paths(config.results).demo(), demos[0].seed, demos[0].patients, processes)
