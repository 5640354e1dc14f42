"""What the wheel holds, asks for, and does in an environment that has nothing else."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterable
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import stainssl

REPO = Path(__file__).resolve().parents[2]
# Modules of distributions that the wheel did not ask for are not there.
BLOCK = (
    "import re, sys\n"
    "from importlib.machinery import PathFinder\n"
    "class AskedFor(PathFinder):\n"
    "    @classmethod\n"
    "    def find_spec(cls, name, path=None, target=None):\n"
    "        blocked = name.split('.')[0] in {names}\n"
    "        return None if blocked else PathFinder.find_spec(name, path, target)\n"
    "    @classmethod\n"
    "    def find_distributions(cls, *words):\n"
    "        for found in PathFinder.find_distributions(*words):\n"
    "            if re.sub('[-_.]+', '-', found.metadata['Name']).lower() in {distributions}:\n"
    "                yield found\n"
    "sys.meta_path[sys.meta_path.index(PathFinder)] = AskedFor\n"
)
EXTRAS = {"lightning", "lightly", "starlette", "uvicorn"}
STAIN = (
    "import stainssl, torch, sys; from pathlib import Path\n"
    "import stainssl.stain.normalize, stainssl.stain.estimate\n"
    "print(Path(stainssl.__file__).parent)"
)


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _asked(requirements: Iterable[str], extras: Iterable[str]) -> set[tuple[str, tuple[str, ...]]]:
    """(distribution, its extras) of the requirements that hold here under some extras."""
    found = set()
    for requirement in map(Requirement, requirements):
        environments = [{"extra": extra} for extra in (*extras, "")]
        if requirement.marker is None or any(map(requirement.marker.evaluate, environments)):
            found.add((_normal(requirement.name), tuple(sorted(requirement.extras))))
    return found


def _closure(requirements: Iterable[str], extras: Iterable[str]) -> set[str]:
    """Every distribution that an install of the wheel with these extras brings."""
    todo = _asked(requirements, extras)
    done: set[tuple[str, tuple[str, ...]]] = set()
    while todo:
        name, its_extras = todo.pop()
        done.add((name, its_extras))
        try:
            metadata = importlib.metadata.metadata(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # of another system
        todo |= _asked(metadata.get_all("Requires-Dist") or [], its_extras) - done
    return {name for name, _ in done}


def _others(distributions: set[str]) -> set[str]:
    """Top-level modules that are installed here and belong to none of the distributions."""
    modules = importlib.metadata.packages_distributions()
    return {
        module
        for module, owners in modules.items()
        if not {_normal(owner) for owner in owners} & distributions and module.isidentifier()
    } - {"stainssl"}


class Bare:
    """An environment with the wheel and what it asks for, taken from the one that tests run in."""

    def __init__(self, folder: Path, wheel: Path, extras: tuple[str, ...] = ()) -> None:
        subprocess.run(
            [sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=120
        )
        self.folder = folder
        self.python = folder / "bin" / "python"
        packages = next(folder.glob("lib/python3*/site-packages"))
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(packages)
        here = importlib.metadata.distribution("numpy").locate_file("")
        (packages / "rest.pth").write_text(f"{here}\n")  # without that folder's own .pth files
        asked_for = _closure(metadata(wheel).get_all("Requires-Dist") or [], extras)
        block = BLOCK.format(names=_others(asked_for), distributions={*asked_for, "stainssl"})
        (packages / "only_asked_for.py").write_text(block)
        (packages / "only_asked_for.pth").write_text("import only_asked_for\n")

    def run(self, *words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        env = {"PATH": "/usr/bin:/bin", "HOME": str(cwd), "OMP_NUM_THREADS": "1"}
        env |= {k: v for k, v in os.environ.items() if k.startswith(("OPENBLAS", "NUMBA"))}
        return subprocess.run(
            [str(self.python), *words],
            cwd=cwd,
            env=env,
            capture_output=True,
            text=True,
            check=False,
        )

    def stainssl(self, *words: str, cwd: Path) -> str:
        done = self.run("-m", "stainssl", *words, cwd=cwd)
        assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
        return done.stdout + done.stderr


def metadata(wheel: Path) -> importlib.metadata.PackageMetadata:
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        return Parser().parsestr(archive.read(name).decode())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the source archive of this clone."""
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(REPO)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Bare:
    return Bare(tmp_path_factory.mktemp("bare") / "env", wheel)


def test_the_wheel_asks_for_no_tool_of_a_developer(wheel: Path) -> None:
    told = metadata(wheel)
    assert told["Version"] == stainssl.__version__
    plain = {name for name, _ in _asked(told.get_all("Requires-Dist") or [], ())}
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
    pins = {_normal(name): version for name, version in pins.items()}
    for text in (*project["dependencies"], *extras):
        asked = Requirement(text)
        if asked.name == project["name"]:
            continue  # the extra all
        assert asked.specifier.contains(pins[_normal(asked.name)], prereleases=True), text
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
