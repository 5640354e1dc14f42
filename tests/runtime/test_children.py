"""Child processes end with the process that started them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time

import psutil
import pytest

POOL = """
    import multiprocessing, os, time
    from concurrent.futures import ProcessPoolExecutor
    from stainssl.runtime.children import end_with_parent

    if __name__ == "__main__":
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(
            2, mp_context=context, initializer=end_with_parent, initargs=(os.getpid(),)
        ) as pool:
            print(*pool.map(one, [0.2, 0.2]), flush=True)
            list(pool.map(time.sleep, [60, 60]))
"""
ONE = """
    def one(seconds):
        import os, time
        time.sleep(seconds)
        return os.getpid()
"""


def _has_ended(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.parametrize("kill_signal", [signal.SIGKILL, signal.SIGTERM])
def test_workers_of_a_killed_job_end_and_close_its_output(tmp_path, kill_signal: int) -> None:
    script = tmp_path / "job.py"
    script.write_text(textwrap.dedent(ONE) + textwrap.dedent(POOL))
    job = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True)
    assert job.stdout is not None
    workers = {int(word) for word in job.stdout.readline().split()}
    assert workers
    os.kill(job.pid, kill_signal)
    assert job.stdout.read() == ""  # blocks while a worker is alive
    job.wait()
    for _ in range(100):
        if all(map(_has_ended, workers)):
            return
        time.sleep(0.1)
    raise AssertionError("workers outlived their job")
