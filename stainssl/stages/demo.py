"""`stainssl demo`: seed → slides, sheet and truth of the synthetic cohort."""

from __future__ import annotations

from stainssl.plan.slides import DemoJob


def run(job: DemoJob, processes: int = 1) -> None:
    """Make the synthetic cohort.

    Args:
        processes: slides rendered at the same time.
    """
    from stainssl.demo import make

    make(job.folder, job.demo.seed, job.demo.patients, processes)
