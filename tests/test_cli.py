"""Command line: help, messages, and imports."""

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import stainssl
from stainssl.cli import app
from stainssl.errors import StainsslError

REPO = Path(__file__).resolve().parent.parent


def _stainssl(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    call = [sys.executable, "-m", "stainssl", *arguments]
    env = {"PYTHONPATH": str(REPO), "PATH": "/usr/bin:/bin"}
    return subprocess.run(call, cwd=cwd, env=env, capture_output=True, text=True, check=False)


def test_help_lists_every_command(tmp_path: Path) -> None:
    out = _stainssl("--help", cwd=tmp_path).stdout
    commands = (
        "demo cohort tile label pixels target pretrain embed folds probe finetune mil robustness"
        " benchmark predict export import slide"
    )
    for name in [*commands.split(), "doctor"]:
        assert name in out


def test_version_is_printed(tmp_path: Path) -> None:
    assert _stainssl("--version", cwd=tmp_path).stdout.strip() == stainssl.__version__


def test_an_error_in_the_config_is_printed_with_exit_code_1(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("cohorts: {d: {demo: {}}}\nseeed: 1\n")
    done = _stainssl("tile", "--config", "c.yaml", "--cohort", "d", "--part", "x", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.strip().endswith("unknown key seeed; did you mean 'seed'?")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "module", ["tile", "slide", "label", "folds", "statuses", "gate", "embedded"]
)
def test_light_stages_import_neither_torch_nor_tiatoolbox(module: str) -> None:
    code = (
        f"import sys, stainssl.stages.{module}, stainssl.slides.tiling, stainssl.cohort;"
        "print([m for m in ('torch', 'tiatoolbox', 'snakemake') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_cohort_check_prints_a_summary(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("cohorts: {d: {demo: {patients: {a: 4, c: 4}}}}\n")
    done = _stainssl("cohort", "check", "--config", "c.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "8 patients" in done.stdout
    assert "no problem found" in done.stdout


def test_unknown_cohorts_and_parts_are_refused(tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_text("slide_id,patient_id,path\na,a,a.svs\n")
    config = tmp_path / "c.yaml"
    config.write_text(f"cohorts: {{clinic: {{sheet: {tmp_path / 's.csv'}, root: {tmp_path}}}}}\n")
    arguments = ["tile", "--config", str(config)]
    for cohort, part, message in (
        ("clinic", "../../../../x", "--part: clinic has no part '../../../../x'"),
        ("clinics", "all-0000", "--cohort: no such name 'clinics'; did you mean 'clinic'?"),
    ):
        done = CliRunner().invoke(app, [*arguments, "--cohort", cohort, "--part", part])
        assert isinstance(done.exception, StainsslError)
        assert message in str(done.exception)


@pytest.mark.parametrize("threads", [1, 3])
def test_opencv_uses_one_thread(threads: int) -> None:
    setup = f"from stainssl import cli; cli._prepare_libraries({threads})"
    code = f"{setup}; import cv2; print(cv2.getNumThreads())"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "1", done.stderr


LARGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
FAULTS = """
import resource
from stainssl import cli
cli._prepare_libraries(1)
import torch
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.ones(2**26)  # 256 MB: 65,536 pages of 4 kB
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _page_faults(**variables: str) -> int:
    env = {"PYTHONPATH": str(REPO), "PATH": "/usr/bin:/bin", **variables}
    call = [sys.executable, "-c", FAULTS]
    return int(subprocess.run(call, env=env, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(
    not LARGE_PAGES.exists() or "[madvise]" not in LARGE_PAGES.read_text(encoding="utf-8"),
    reason="the system gives large pages always or never",
)
def test_tensors_of_a_job_lie_in_large_pages_unless_they_are_switched_off() -> None:
    assert _page_faults() < _page_faults(THP_MEM_ALLOC_ENABLE="0") / 2
