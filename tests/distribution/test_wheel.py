"""Contents and dependencies of the wheel, and its use in an environment with nothing else."""

from __future__ import annotations

import re
import shutil
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import stainssl
from tests.distribution.bare import Bare, metadata, normalized, required_by

pytestmark = pytest.mark.xdist_group("wheel")  # one worker builds it once

REPO = Path(__file__).resolve().parents[2]
EXTRAS = {"lightning", "lightly", "starlette", "uvicorn"}
STAIN = (
    "import stainssl, torch, sys; from pathlib import Path\n"
    "import stainssl.stain.normalize, stainssl.stain.estimate\n"
    "print(Path(stainssl.__file__).parent)"
)


def test_the_wheel_does_not_depend_on_development_tools(wheel: Path) -> None:
    wheel_metadata = metadata(wheel)
    assert wheel_metadata["Version"] == stainssl.__version__
    dependencies = {
        name for name, _ in required_by(wheel_metadata.get_all("Requires-Dist") or [], ())
    }
    assert not dependencies & {
        "pytest", "hypothesis", "mypy", "ruff", "pre-commit", "snakemake", "tiatoolbox",
        "lightning", "xarray", "torchmil", "torchmetrics", "jinja2", "rich", "seaborn", "pandera",
    }  # fmt: skip
    assert {"workflow", "tiatoolbox", "train", "view", "all"} <= set(
        wheel_metadata.get_all("Provides-Extra") or []
    )


def test_the_wheel_contains_the_workflow(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    for top in ("workflow", "config", "profiles"):
        for path in (REPO / top).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                assert f"stainssl/bundled/{path.relative_to(REPO)}" in names
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/"))]


def test_lower_bounds_allow_the_pins_of_the_lock() -> None:
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    lock = (REPO / "requirements.lock").read_text()
    pins = dict(re.findall(r"^([\w.-]+)==([\w.+]+)", lock, re.M))
    extras = [one for several in project["optional-dependencies"].values() for one in several]
    pins = {normalized(name): version for name, version in pins.items()}
    for text in (*project["dependencies"], *extras):
        requirement = Requirement(text)
        if requirement.name == project["name"]:
            continue  # the extra all
        assert requirement.specifier.contains(
            pins[normalized(requirement.name)], prereleases=True
        ), text
        assert any(one.operator == ">=" for one in requirement.specifier), f"{text}: no lower bound"


def test_help_and_stain_in_a_bare_environment(bare: Bare, tmp_path: Path) -> None:
    assert "stainssl" in bare.stainssl("--help", cwd=tmp_path)
    done = bare.run("-c", STAIN, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(bare.folder)


def test_modules_can_be_imported_without_extras_unless_they_need_one(
    bare: Bare, tmp_path: Path
) -> None:
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


def test_the_workflow_without_its_extra_says_what_to_install(bare: Bare, tmp_path: Path) -> None:
    result = bare.run("-m", "stainssl", "run", "-n", cwd=tmp_path)
    assert result.returncode == 1
    assert "pip install 'stainssl[workflow]'" in result.stderr


def test_snakemake_finds_the_logger_plugin(wheel: Path, tmp_path: Path) -> None:
    environment = Bare(tmp_path / "env", wheel, ("workflow",))
    code = (
        "from snakemake_interface_logger_plugins.registry import LoggerPluginRegistry\n"
        "print(LoggerPluginRegistry().get_plugin('stainssl').log_handler.__module__)"
    )
    found = environment.run("-c", code, cwd=tmp_path)
    assert found.stdout.strip() == "snakemake_logger_plugin_stainssl", found.stderr


@pytest.mark.chain
def test_the_workflow_runs_without_the_clone(wheel: Path, tmp_path: Path) -> None:
    """From the demo's slides to a table with the extras workflow and train, without tiatoolbox."""
    environment = Bare(tmp_path / "env", wheel, ("workflow", "train"))
    folder = tmp_path / "study"
    environment.stainssl("init", str(folder), cwd=tmp_path)
    shutil.copy(Path(__file__).with_name("study.yaml"), folder / "my.yaml")
    arguments = ("run", "--config", "my.yaml", "--cores", "2")
    output = environment.stainssl(*arguments, cwd=folder)
    assert (folder / "results/demo/slides.csv").is_file()
    assert (folder / "results/benchmarks/main/table.csv").is_file(), output[-3000:]
    assert "Nothing to be done" in environment.stainssl(*arguments, "-n", cwd=folder)
