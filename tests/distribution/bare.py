"""An environment with the wheel and its dependencies, and with nothing else."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from email.parser import Parser
from pathlib import Path

from packaging.requirements import Requirement

# Hides the modules of distributions that are not dependencies of the wheel.
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
# Runs several commands in one process, which imports the libraries once and compiles nothing.
VERBS = (
    "import shlex, sys, typer\n"
    "sys.modules['stainssl.stain.numba_backend'] = None\n"
    "from stainssl.cli import app\n"
    "for line in sys.stdin:\n"
    "    typer.main.get_command(app).main(shlex.split(line), standalone_mode=False)\n"
)


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def required_by(
    requirements: Iterable[str], extras: Iterable[str]
) -> set[tuple[str, tuple[str, ...]]]:
    """(distribution, its extras) of the requirements that apply here with the given extras."""
    found = set()
    for requirement in map(Requirement, requirements):
        environments = [{"extra": extra} for extra in (*extras, "")]
        if requirement.marker is None or any(map(requirement.marker.evaluate, environments)):
            found.add((normalized(requirement.name), tuple(sorted(requirement.extras))))
    return found


def _closure(requirements: Iterable[str], extras: Iterable[str]) -> set[str]:
    """All distributions that are installed with the wheel and these extras."""
    todo = required_by(requirements, extras)
    done: set[tuple[str, tuple[str, ...]]] = set()
    while todo:
        name, its_extras = todo.pop()
        done.add((name, its_extras))
        try:
            metadata = importlib.metadata.metadata(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # only for other systems
        todo |= required_by(metadata.get_all("Requires-Dist") or [], its_extras) - done
    return {name for name, _ in done}


def _others(distributions: set[str]) -> set[str]:
    """Installed top-level modules that belong to none of the distributions."""
    modules = importlib.metadata.packages_distributions()
    return {
        module
        for module, owners in modules.items()
        if not {normalized(owner) for owner in owners} & distributions and module.isidentifier()
    } - {"stainssl"}


class Bare:
    """An environment with the wheel and its dependencies, taken from that of the tests."""

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
        installed = _closure(metadata(wheel).get_all("Requires-Dist") or [], extras)
        block = BLOCK.format(names=_others(installed), distributions={*installed, "stainssl"})
        (packages / "only_asked_for.py").write_text(block)
        (packages / "only_asked_for.pth").write_text("import only_asked_for\n")

    def run(self, *arguments: str, cwd: Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run its Python in a folder, with its own environment variables and `stdin` as input."""
        env = {"PATH": "/usr/bin:/bin", "HOME": str(cwd), "OMP_NUM_THREADS": "1"}
        env |= {k: v for k, v in os.environ.items() if k.startswith(("OPENBLAS", "NUMBA"))}
        return subprocess.run(
            [str(self.python), *arguments],
            cwd=cwd, env=env, input=stdin, capture_output=True, text=True, check=False,
        )  # fmt: skip

    def stainssl(self, *arguments: str, cwd: Path) -> str:
        """Output of a command, which must succeed."""
        return _output(self.run("-m", "stainssl", *arguments, cwd=cwd))

    def verbs(self, lines: str, cwd: Path) -> str:
        """Output of commands run in one process, which must succeed."""
        return _output(self.run("-c", VERBS, cwd=cwd, stdin=lines))


def _output(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return done.stdout + done.stderr


def metadata(wheel: Path) -> importlib.metadata.PackageMetadata:
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        return Parser().parsestr(archive.read(name).decode())
