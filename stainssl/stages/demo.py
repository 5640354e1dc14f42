"""`stainssl demo`: render the synthetic cohort (slides, sheet and ground truth) from a seed."""

from __future__ import annotations

from stainssl.plan.slides import DemoJob


def run(job: DemoJob, processes: int = 1) -> None:
    """Write the synthetic cohort.

    Args:
        job: folder and settings.
        processes: number of slides rendered in parallel.
    """
    from stainssl.demo import make

    make(job.folder, job.demo.seed, job.demo.patients, processes)
