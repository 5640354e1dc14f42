"""What the wheel holds, asks for, and does in an environment that has nothing else."""

from __future__ import annotations

import re
import shutil
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import stainssl
from tests.distribution.bare import Bare, asked_by, metadata, normal

pytestmark = pytest.mark.xdist_group("wheel")  # one worker builds it once

REPO = Path(__file__).resolve().parents[2]
EXTRAS = {"lightning", "lightly", "starlette", "uvicorn"}
STAIN = (
    "import stainssl, torch, sys; from pathlib import Path\n"
    "import stainssl.stain.normalize, stainssl.stain.estimate\n"
    "print(Path(stainssl.__file__).parent)"
)


def test_the_wheel_asks_for_no_tool_of_a_developer(wheel: Path) -> None:
    told = metadata(wheel)
    assert told["Version"] == stainssl.__version__
    plain = {name for name, _ in asked_by(told.get_all("Requires-Dist") or [], ())}
    assert not plain & {
        "pytest", "hypothesis", "mypy", "ruff", "pre-commit", "snakemake", "tiatoolbox",
        "lightning", "xarray", "torchmil", "torchmetrics", "jinja2", "rich", "seaborn", "pandera",
    }  # fmt: skip
    assert {"workflow", "tiatoolbox", "train", "view", "all"} <= set(
        told.get_all("Provides-Extra") or []
    )


def test_the_wheel_holds_the_workflow_as_it_lies_in_the_clone(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    for top in ("workflow", "config", "profiles"):
        for path in (REPO / top).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                assert f"stainssl/bundled/{path.relative_to(REPO)}" in names
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/"))]


def test_lower_bounds_allow_what_the_lock_pins() -> None:
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    lock = (REPO / "requirements.lock").read_text()
    pins = dict(re.findall(r"^([\w.-]+)==([\w.+]+)", lock, re.M))
    extras = [one for several in project["optional-dependencies"].values() for one in several]
    pins = {normal(name): version for name, version in pins.items()}
    for text in (*project["dependencies"], *extras):
        asked = Requirement(text)
        if asked.name == project["name"]:
            continue  # the extra all
        assert asked.specifier.contains(pins[normal(asked.name)], prereleases=True), text
        assert any(one.operator == ">=" for one in asked.specifier), f"{text}: no lower bound"


def test_help_and_stain_in_a_bare_environment(bare: Bare, tmp_path: Path) -> None:
    assert "stainssl" in bare.stainssl("--help", cwd=tmp_path)
    done = bare.run("-c", STAIN, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(bare.folder)


def test_every_module_is_imported_by_what_is_asked_for(bare: Bare, tmp_path: Path) -> None:
    code = (
        "import pkgutil, importlib, stainssl\n"
        "for found in pkgutil.walk_packages(stainssl.__path__, 'stainssl.'):\n"
        "    if found.name.endswith('__main__') or '.bundled' in found.name: continue\n"
        "    try: importlib.import_module(found.name)\n"
        "    except ModuleNotFoundError as error: print(found.name, error.name)\n"
    )
    done = bare.run("-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    missing = dict(line.split() for line in done.stdout.splitlines())
    trains = ("pretrain", "stages.finetune", ".view")
    needs_extra = {name for name in missing if any(part in name for part in trains)}
    assert {name.split(".")[0] for name in missing.values()} <= EXTRAS, missing
    assert set(missing) == needs_extra, missing


def test_the_workflow_without_its_extra_is_a_sentence(bare: Bare, tmp_path: Path) -> None:
    refused = bare.run("-m", "stainssl", "run", "-n", cwd=tmp_path)
    assert refused.returncode == 1
    assert "pip install 'stainssl[workflow]'" in refused.stderr


def test_snakemake_finds_the_bar(wheel: Path, tmp_path: Path) -> None:
    environment = Bare(tmp_path / "env", wheel, ("workflow",))
    asked = (
        "from snakemake_interface_logger_plugins.registry import LoggerPluginRegistry\n"
        "print(LoggerPluginRegistry().get_plugin('stainssl').log_handler.__module__)"
    )
    found = environment.run("-c", asked, cwd=tmp_path)
    assert found.stdout.strip() == "snakemake_logger_plugin_stainssl", found.stderr


@pytest.mark.chain
def test_a_run_of_the_workflow_without_the_clone(wheel: Path, tmp_path: Path) -> None:
    """The demo's slides to a table with the extras workflow and train, and without tiatoolbox."""
    environment = Bare(tmp_path / "env", wheel, ("workflow", "train"))
    folder = tmp_path / "study"
    environment.stainssl("init", str(folder), cwd=tmp_path)
    shutil.copy(Path(__file__).with_name("study.yaml"), folder / "my.yaml")
    words = ("run", "--config", "my.yaml", "--cores", "2")
    said = environment.stainssl(*words, cwd=folder)
    assert (folder / "results/demo/slides.csv").is_file()
    assert (folder / "results/benchmarks/main/table.csv").is_file(), said[-3000:]
    assert "Nothing to be done" in environment.stainssl(*words, "-n", cwd=folder)
