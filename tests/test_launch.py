"""`stainssl run` is Snakemake on the package's workflow; `stainssl init` makes a folder for it."""

import os
import shlex
import subprocess
import sys
from base64 import urlsafe_b64encode
from pathlib import Path

import pytest

from stainssl import launch
from stainssl.cohort import check
from stainssl.config import load
from stainssl.errors import StainsslError
from stainssl.runtime.orphans import STAT

SNAKEFILE = launch.workflow_files() / "workflow" / "Snakefile"


def arguments_of(folder: Path, *arguments: str) -> list[str]:
    command = launch.snakemake_command(arguments, folder)
    assert command[:5] == [sys.executable, "-m", "snakemake", "--snakefile", str(SNAKEFILE)]
    return command[5:]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    (tmp_path / "my.yaml").write_text("seed: 0\n")
    return tmp_path


def test_options_of_snakemake_are_passed_unchanged(folder: Path) -> None:
    arguments = [
        "-n",
        "--cores",
        "all",
        "--config",
        "seed=1",
        "results=r",
        "results/tile.txt",
        "-p",
    ]
    assert arguments_of(folder, *arguments) == arguments


@pytest.mark.parametrize("arguments", [("--config", "my.yaml"), ("--config=my.yaml",)])
def test_a_named_config_replaces_the_default(folder: Path, arguments: tuple[str, ...]) -> None:
    assert arguments_of(folder, *arguments, "-n") == ["--configfile", "my.yaml", "-n"]


def test_the_progress_bar_is_the_default_output(folder: Path) -> None:
    assert arguments_of(folder, "--cores", "2", "target") == [launch.BAR, "--cores", "2", "target"]
    for other in ("--verbose", "--logger=rich", "--dry-run"):
        assert arguments_of(folder, other) == [other]


@pytest.mark.parametrize("logs_only", ["", "1"])
@pytest.mark.parametrize("code", [0, 3])
def test_the_output_of_a_job_is_in_its_log(tmp_path: Path, logs_only: str, code: int) -> None:
    prefix = launch.shell_prefix([], tmp_path).format()  # as Snakemake does
    script = f"{prefix} logged 'a log' bash -c 'echo one; echo two >&2; exit {code}'; echo after"
    environment = os.environ | {launch.LOGS_ONLY: logs_only}
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == code
    assert (tmp_path / "a log").read_text() == "one\ntwo\n"
    expected = "" if logs_only else "one\ntwo\n"
    assert done.stdout == expected + ("" if code else "after\n")


def test_results_without_a_record_of_snakemake_are_reported(tmp_path: Path) -> None:
    results = Path("results") / ("deep" * 50)
    assert launch.not_recorded(results, tmp_path) == ""
    for part in ("all-0000", "all-0001"):
        path = tmp_path / results / "cohorts" / "c" / "default" / "qc" / f"{part}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        name = urlsafe_b64encode(str(path.relative_to(tmp_path)).encode()).decode()
        assert 254 < len(name) < 508
        assert f"all-000{part[-1]}" in launch.not_recorded(results, tmp_path)
        record = tmp_path / ".snakemake" / "metadata" / f"@{name[:254]}" / name[254:]
        record.parent.mkdir(parents=True, exist_ok=True)
        record.touch()
        assert launch.not_recorded(results, tmp_path) == ""
    (tmp_path / "results").rename(tmp_path / "moved")
    moved = Path("moved", *results.parts[1:])
    assert "2 of 2 tiled parts" in launch.not_recorded(moved, tmp_path)
    assert "2 of 2 tiled parts" in launch.not_recorded(tmp_path / moved, tmp_path)


def test_slides_that_are_left_out_are_counted_by_status(tmp_path: Path) -> None:
    table = tmp_path / "slides.csv"
    table.write_text('slide_id,status,detail\na,ok,"x, y"\nb,empty,\nc,no-mpp,\nd,empty,\n')
    (message,) = launch.left_out({"clinic": table, "new": tmp_path / "none.csv"})
    assert message.startswith("clinic: 3 of 4 slides are left out (2 empty, 1 no-mpp): ")
    assert str(table) in message
    table.write_text("slide_id,status\na,ok\n")
    assert launch.left_out({"clinic": table}) == []


def test_a_missing_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StainsslError, match="stainssl init"):
        arguments_of(tmp_path, "-n")
    with pytest.raises(StainsslError, match=r"no such file my\.yaml"):
        arguments_of(tmp_path, "--config", "my.yaml")


@pytest.mark.parametrize("arguments", [("-d", "other"), ("--directory=other",)])
def test_another_working_folder_is_left_to_snakemake(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    assert arguments_of(tmp_path, *arguments) == [launch.BAR, *arguments]


def test_init_writes_a_config_in_which_only_slides_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = launch.init(tmp_path / "study")
    monkeypatch.chdir(tmp_path / "study")
    names = {str(path.relative_to(tmp_path / "study")) for path in written}
    assert {"config.yaml", "slides.csv", "profiles/slurm/config.yaml"} <= names
    (tmp_path / "study" / "slides").mkdir()
    problems = check(load(Path("config.yaml")))
    assert problems, "the example names slides that nobody has"
    assert all("s00" in problem for problem in problems), problems


def test_init_does_not_overwrite_files(tmp_path: Path) -> None:
    (tmp_path / "slides.csv").write_text("mine")
    with pytest.raises(StainsslError, match=r"has slides\.csv already"):
        launch.init(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["slides.csv"]


def test_init_demo_writes_only_the_config_of_the_demo(tmp_path: Path) -> None:
    assert launch.init(tmp_path, demo=True) == [tmp_path / "config.yaml"]
    assert load(tmp_path / "config.yaml").cohorts["demo"].demo is not None


@pytest.mark.parametrize(
    ("deployment", "python"),
    [((), sys.executable), (("conda",), "python"), (("apptainer",), "python")],
)
def test_jobs_use_the_python_of_their_deployment(
    tmp_path: Path, deployment: tuple[str, ...], python: str
) -> None:
    prefix = launch.shell_prefix(deployment, tmp_path)
    assert prefix.startswith("set -euo pipefail")
    assert python in prefix
    assert ("PYTHONPATH" in prefix) == (deployment != ("apptainer",))
    assert (STAT in prefix) == (deployment != ("apptainer",))


def test_a_conda_job_has_only_the_package_of_an_installed_wheel_on_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site-packages" / "stainssl"
    (package / "bundled").mkdir(parents=True)
    (package.parent / "numpy").mkdir()
    monkeypatch.setattr(launch, "PACKAGE", package)
    for _ in range(2):
        prefix = launch.shell_prefix(["conda"], tmp_path / "results")
    folder = Path(shlex.split(prefix.split("PYTHONPATH=")[1])[0])
    assert [path.name for path in folder.iterdir()] == ["stainssl"]
    assert (folder / "stainssl").resolve() == package
