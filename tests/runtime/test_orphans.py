"""A job ends once the Snakemake process that started it has ended, and only then."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from stainssl.runtime import orphans

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")

JOB = """
    import hashlib, signal, sys, time
    from pathlib import Path
    from stainssl.runtime import orphans
    from stainssl.stores.atomic import replacing

    orphans._CHECK_SECONDS, orphans._GRACE_SECONDS = 0.1, float(sys.argv[1])
    orphans.end_with_snakemake()
    with replacing(Path("output.txt")) as made:
        made.write_text("incomplete")
        print("started", flush=True)
        {work}
"""
WAIT = "time.sleep(60)"
LONG_CALL = "hashlib.pbkdf2_hmac('sha256', b'', b'', 2**31 - 1)"
HANDLED = """
        stopped = []
        signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
        while not stopped:
            time.sleep(0.1)
        Path("checkpoint").touch()
        sys.exit(1)
"""


def stat_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text()


@pytest.fixture
def parent() -> Iterator[subprocess.Popen[bytes]]:
    """A process in the place of Snakemake."""
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


def started(folder: Path, work: str, stat: str, grace: float = 60.0) -> subprocess.Popen[str]:
    """A job in `folder` that has begun to write its output."""
    script = textwrap.dedent(JOB.format(work=work))
    job = subprocess.Popen(
        [sys.executable, "-c", script, str(grace)], cwd=folder, text=True,
        env=os.environ | {orphans.STAT: stat}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert job.stdout is not None
    assert job.stdout.readline() == "started\n", job.communicate()[1]
    return job


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_job_ends_with_its_parent_and_removes_its_files(
    tmp_path: Path, parent: subprocess.Popen[bytes]
) -> None:
    job = started(tmp_path, WAIT, stat_of(parent.pid))
    parent.kill()  # and not waited for: a zombie has ended as well
    _, said = job.communicate(timeout=30)
    assert job.returncode == 128 + signal.SIGTERM
    assert said == f"Snakemake (process {parent.pid}) has ended: this job ends as well\n"
    assert names(tmp_path) == []


def test_a_job_inside_a_long_library_call_is_killed(
    tmp_path: Path, parent: subprocess.Popen[bytes]
) -> None:
    job = started(tmp_path, LONG_CALL, stat_of(parent.pid), grace=0.5)
    parent.kill()
    job.communicate(timeout=30)
    assert job.returncode == -signal.SIGKILL


def test_a_handler_of_sigterm_ends_the_job_itself(
    tmp_path: Path, parent: subprocess.Popen[bytes]
) -> None:
    job = started(tmp_path, HANDLED.strip(), stat_of(parent.pid))
    parent.kill()
    job.communicate(timeout=30)
    assert job.returncode == 1
    assert names(tmp_path) == ["checkpoint"]


def test_a_job_goes_on_while_its_parent_lives(
    tmp_path: Path, parent: subprocess.Popen[bytes]
) -> None:
    job = started(tmp_path, "time.sleep(1.5)", stat_of(parent.pid))
    _, said = job.communicate(timeout=30)
    assert (job.returncode, said) == (0, "")
    assert names(tmp_path) == ["output.txt"]


def of_an_ended_process() -> str:
    """Its pid may be unknown, or be that of another process by now."""
    with subprocess.Popen(["sleep", "60"]) as process:
        stat = stat_of(process.pid)
        process.kill()
    return stat


def of_an_earlier_process_with_a_pid_in_use() -> str:
    fields = stat_of(os.getppid()).rpartition(")")
    words = fields[2].split()
    words[19] = str(int(words[19]) - 1)
    return f"{fields[0]}) {' '.join(words)}"


@pytest.mark.parametrize(
    "stat", [str, lambda: "x", of_an_ended_process, of_an_earlier_process_with_a_pid_in_use]
)
def test_without_a_visible_snakemake_nothing_is_watched(
    monkeypatch: pytest.MonkeyPatch, stat: Callable[[], str]
) -> None:
    monkeypatch.setenv(orphans.STAT, stat())
    before = signal.getsignal(signal.SIGUSR2)
    orphans.end_with_snakemake()
    assert "snakemake" not in {thread.name for thread in threading.enumerate()}
    assert signal.getsignal(signal.SIGUSR2) is before
