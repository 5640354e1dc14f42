"""The Snakefile before any job runs: messages, dry-runs, lint and imports."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys

import pytest

from tests.chain.conftest import ENV, REPO, Workflow

pytestmark = pytest.mark.chain


def test_every_problem_is_reported_before_any_job(fresh: Workflow) -> None:
    fresh.edit("clinic/slides.csv", lambda text: text.replace("a-001-1,", "a 001,", 1))
    fresh.edit("config.yaml", lambda text: text.replace("label: her2", "label: her3"))
    text = fresh.run(fails=True)
    assert "slide_id is 'a 001'" in text
    assert "nothing was run" in text
    fresh.edit("clinic/slides.csv", lambda text: text.replace("a 001,", "a-001-1,", 1))
    fresh.edit(
        "config.yaml",
        lambda text: text.replace("random, backbone: test_resnet", "random, backbone: test_resnit"),
    )
    text = fresh.run(fails=True)
    assert "2 problem(s), nothing was run" in text
    assert "no column 'her3'; did you mean 'her2'" in text
    assert "encoders.random.backbone: 'test_resnit' is not a timm name; did you mean" in text
    assert not (fresh.folder / "results").exists()


def test_an_unknown_key_is_refused_with_the_nearest_key(fresh: Workflow) -> None:
    fresh.edit("config.yaml", lambda text: text.replace("min_tissue", "min_tisue"))
    assert "did you mean 'min_tissue'" in fresh.run("-n", fails=True)


def test_a_users_config_replaces_the_demo(fresh: Workflow) -> None:
    fresh.run("-n")
    planned = fresh.planned()
    assert "demo" not in planned
    assert not any("response" in output for outputs in planned.values() for output in outputs)


def test_a_dry_run_works_in_a_read_only_folder(fresh: Workflow) -> None:
    """Except for `.snakemake`; the mount is read-only for root, too, which ignores file modes."""
    own, folder = fresh.folder / ".snakemake", str(fresh.folder)
    own.mkdir()
    mounts = [
        ["mount", "--bind", folder, folder],
        ["mount", "-o", "remount,ro,bind", folder],
        ["mount", "-t", "tmpfs", "none", str(own)],
    ]
    mount_all = " && ".join(map(shlex.join, mounts))
    unshare = ["unshare", "--mount", "sh", "-c"]
    if not shutil.which("unshare") or subprocess.run([*unshare, mount_all], check=False).returncode:
        pytest.skip("no mounts of one's own here: unshare needs root, or user namespaces")
    arguments = shlex.join(fresh.command("-n", "--quiet"))
    write = f"! touch {shlex.quote(folder)}/made"
    done = subprocess.run(
        [*unshare, f"{mount_all} && {write} && {arguments}"],
        env=ENV, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_graph_has_no_job_per_slide(fresh: Workflow) -> None:
    planned = fresh.planned()
    assert len(planned["tile"]) == 3  # two parts of training slides, one of test slides


def test_reading_the_snakefile_imports_no_torch(fresh: Workflow) -> None:
    code = (
        "import sys; from snakemake.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "print('torch' in sys.modules, 'tiatoolbox' in sys.modules)"
    )
    arguments = fresh.command("-n", "--quiet")[3:]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=ENV, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip().endswith("False False")


def test_snakemake_lint_finds_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "--lint"],
        cwd=REPO, env=ENV, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_list_of_slides_is_written_if_the_gate_stops_the_run(fresh: Workflow) -> None:
    fresh.edit("config.yaml", lambda text: text.replace("max_bad_slides: 0.3", "max_bad_slides: 0"))
    table = "results/cohorts/clinic/default/slides.csv"
    text = fresh.run(fails=True)
    assert f"See {table} for the reasons" in text
    for name in (table, table.replace("csv", "html"), table.replace("slides.csv", "tissue.png")):
        assert (fresh.folder / name).exists()
    assert not list((fresh.folder / "results").glob("encoders/stain-invariant/model"))
