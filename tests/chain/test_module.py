"""The workflow as a module of another one: with a prefix, without, and from another folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.chain.conftest import ENV, REPO, Workflow

pytestmark = [pytest.mark.chain]
FOLDS = "results/tasks/her2/folds.csv"
PLACES = {
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


def _run(outer: Path, *words: str, cwd: Path) -> str:
    command = [sys.executable, "-m", "snakemake", "-s", str(outer), "--cores", "1", *words]
    done = subprocess.run(command, env=ENV, capture_output=True, text=True, check=False, cwd=cwd)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout + done.stderr


@pytest.mark.parametrize("modifier", PLACES)
@pytest.mark.parametrize("is_elsewhere", [False, True])
def test_a_module_writes_where_snakemake_waits(
    fresh: Workflow, tmp_path: Path, modifier: str, is_elsewhere: bool
) -> None:
    outer = _outer(tmp_path, modifier)
    where = ["--directory", str(fresh.folder)] if is_elsewhere else []
    cwd = tmp_path if is_elsewhere else fresh.folder
    planned = _run(outer, "-n", "breast_all", *where, cwd=cwd)
    assert "breast_benchmark" in planned
    assert "MissingInput" not in planned
    assert not (fresh.folder / Path(PLACES[modifier]).parts[0]).exists()
    _run(outer, PLACES[modifier], *where, cwd=cwd)
    assert (fresh.folder / PLACES[modifier]).read_text().startswith("task,")
    made = {path.parts[0] for path in map(Path, PLACES.values())}
    wrong = made - {Path(PLACES[modifier]).parts[0]}
    assert not [name for name in wrong if (fresh.folder / name).exists()]
