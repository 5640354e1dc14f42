"""`snakemake --logger stainssl` on jobs that write to log files, one of which fails."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chain.conftest import ENV, REPO

pytestmark = pytest.mark.chain
SNAKEFILE = """
from pathlib import Path
from stainssl import launch
shell.prefix(launch.shell_prefix([], Path("results")))
rule all:
    input: expand("{n}.txt", n=range(3)), "bad.txt" if config.get("bad") else []
rule tile:
    output: "{n,[0-9]+}.txt"
    log: "logs/{n}.log"
    shell: "logged {log:q} bash -c 'echo reading of {wildcards.n}; sleep 2' && touch {output}"
rule fails:
    output: "bad.txt"
    log: "logs/bad.log"
    shell: "logged {log:q} bash -c 'seq 100 130; echo no such slide >&2; exit 3'"
"""
ENVIRONMENT = ENV | {"PYTHONPATH": str(REPO), "TERM": "xterm", "COLUMNS": "100"}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "snakemake", "--cores", "2", *arguments]


def on_a_terminal(arguments: list[str], folder: Path) -> str:
    """What a command writes to a terminal."""
    reader, writer = pty.openpty()
    process = subprocess.Popen(arguments, cwd=folder, env=ENVIRONMENT, stdout=writer, stderr=writer)
    os.close(writer)
    text = b"".join(read_all(reader)).decode()
    process.wait()
    return text


def read_all(terminal: int) -> Iterator[bytes]:
    while True:
        try:
            block = os.read(terminal, 65536)
        except OSError:  # closed by the last process that had it open
            return
        if not block:
            return
        yield block


def in_a_file(arguments: list[str], folder: Path) -> tuple[str, int]:
    done = subprocess.run(
        arguments, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    return done.stdout + done.stderr, done.returncode


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "Snakefile").write_text(SNAKEFILE)
    return tmp_path


def test_on_a_terminal_a_progress_bar_shows_the_last_line_of_each_job(folder: Path) -> None:
    text = on_a_terminal(command("--logger=stainssl"), folder)
    assert "0 of 4 jobs done, 2 running, 2 left" in text
    assert "reading of 0" in text
    assert text.count("4 of 4 jobs done, in") == 1
    assert "rule tile" not in text


def test_in_a_file_lines_show_progress_and_the_end_of_the_log_of_a_failed_job(folder: Path) -> None:
    text, code = in_a_file(
        command("--logger=stainssl", "--keep-going", "--config", "bad=1"), folder
    )
    assert code == 1
    assert "fails failed." in text
    assert "no such slide" in text
    assert "    130" in text
    assert "    100" not in text  # only the end of the log is shown
    assert "reading of" not in text
    assert "3 of 5 jobs done, 1 failed, in" in text
    assert (folder / "logs/0.log").read_text() == "reading of 0\n"
    assert (folder / "logs/bad.log").read_text().startswith("100\n")


@pytest.mark.parametrize("arguments", [("--logger=stainssl", "--verbose"), ()])
def test_verbose_output_has_the_output_of_jobs(folder: Path, arguments: tuple[str, ...]) -> None:
    text, code = in_a_file(command(*arguments), folder)
    assert code == 0
    assert "rule tile" in text
    assert "reading of 2" in text
    assert (folder / "logs/2.log").read_text() == "reading of 2\n"
