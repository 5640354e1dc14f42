"""The workflow as a module of another one: with a prefix, without, and from another folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.chain.conftest import ENV, REPO, Workflow

pytestmark = [pytest.mark.chain]
FOLDS = "results/tasks/her2/folds.csv"
OUTPUTS = {
    "": FOLDS,
    'prefix: "breast"': f"breast/{FOLDS}",
    'replace_prefix: {"results/": "out/breast/"}': "out/breast/tasks/her2/folds.csv",
}


def _outer(folder: Path, modifier: str) -> Path:
    file = folder / "outer" / "Snakefile"
    file.parent.mkdir()
    file.write_text(
        'configfile: "config.yaml"\n\n\n'
        "module breast:\n"
        f'    snakefile: "{REPO / "Snakefile"}"\n'
        "    config: config\n" + (f"    {modifier}\n" if modifier else "") + "\n\n"
        "use rule * from breast as breast_*\n"
    )
    return file


def _run(outer: Path, *arguments: str, cwd: Path) -> str:
    command = [sys.executable, "-m", "snakemake", "-s", str(outer), "--cores", "1", *arguments]
    done = subprocess.run(command, env=ENV, capture_output=True, text=True, check=False, cwd=cwd)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout + done.stderr


@pytest.mark.parametrize("modifier", OUTPUTS)
@pytest.mark.parametrize("is_elsewhere", [False, True])
def test_a_module_writes_to_the_paths_that_snakemake_expects(
    fresh: Workflow, tmp_path: Path, modifier: str, is_elsewhere: bool
) -> None:
    outer = _outer(tmp_path, modifier)
    where = ["--directory", str(fresh.folder)] if is_elsewhere else []
    cwd = tmp_path if is_elsewhere else fresh.folder
    planned = _run(outer, "-n", "breast_all", *where, cwd=cwd)
    assert "breast_benchmark" in planned
    assert "MissingInput" not in planned
    assert not (fresh.folder / Path(OUTPUTS[modifier]).parts[0]).exists()
    _run(outer, OUTPUTS[modifier], *where, cwd=cwd)
    assert (fresh.folder / OUTPUTS[modifier]).read_text().startswith("task,")
    made = {path.parts[0] for path in map(Path, OUTPUTS.values())}
    wrong = made - {Path(OUTPUTS[modifier]).parts[0]}
    assert not [name for name in wrong if (fresh.folder / name).exists()]


def _deployed(study: Workflow, source: str) -> Path:
    """The Snakefile and the config as `snakedeploy deploy-workflow` writes them to a folder."""
    (study.folder / "config").mkdir()
    (study.folder / "config.yaml").rename(study.folder / "config" / "config.yaml")
    file = study.folder / "workflow" / "Snakefile"
    file.parent.mkdir()
    file.write_text(
        'configfile: "config/config.yaml"\n\n\n'
        f'module breast:\n    snakefile:\n        "{source}"\n    config:\n        config\n\n\n'
        "use rule * from breast\n"
    )
    return file


def _git_source() -> str:
    """Source of this clone's last commit, of which Snakemake fetches every file separately."""
    done = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=REPO, capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip("not a git clone")
    return f"git+{REPO.as_uri()}/workflow/Snakefile@{done.stdout.strip()}"


@pytest.mark.parametrize("is_from_git", [False, True])
def test_a_deployed_workflow_plans_all_jobs(fresh: Workflow, is_from_git: bool) -> None:
    source = _git_source() if is_from_git else str(REPO / "workflow" / "Snakefile")
    planned = _run(_deployed(fresh, source), "-n", cwd=fresh.folder)
    assert "rule benchmark:" in planned
    assert "MissingInput" not in planned
