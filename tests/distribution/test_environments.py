"""The conda environment of a rule has what its command imports; tables need no torch."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from stainssl.encoders.recipes import RECIPES
from tools.generated import environments

REPO = Path(__file__).resolve().parents[2]
OPTIONAL = {"triton", "tiatoolbox", "fastslide"}  # used if installed
BEFORE_JOBS = "stainssl.plan.networks"  # used by Snakemake, not by jobs


def _file_of(module: str) -> Path | None:
    path = REPO / module.replace(".", "/")
    files = (path / "__init__.py", path.with_suffix(".py"))
    return next((file for file in files if file.exists()), None)


def _imports(file: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(file.read_text())))
    blocks = [n for n in nodes if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test)]
    for_types = {inner for block in blocks for inner in ast.walk(block)}
    found: set[str] = set()
    for node in nodes:
        if node in for_types:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def imported_by(module: str) -> set[str]:
    """Third-party top-level modules that a module may import, also inside functions."""
    todo, seen, third_party = {module}, {BEFORE_JOBS}, set()
    while todo:
        name = todo.pop()
        top = name.split(".")[0]
        if name in seen or top in sys.stdlib_module_names:
            continue
        seen.add(name)
        if top != "stainssl":
            third_party.add(top)
        elif file := _file_of(name):
            todo |= _imports(file)
            todo |= {name.rsplit(".", n)[0] for n in range(1, name.count(".") + 1)}
    return third_party


def rules() -> list[tuple[str, str]]:
    """(command, environment) of every rule, in the order of the files."""
    found = []
    for path in sorted((REPO / "workflow/rules").glob("*.smk")):
        text = path.read_text()
        environment = re.search(r'^CONDA = "../envs/(\w+)\.yaml"', text, re.M)
        for command in re.findall(r"\bstainssl (?:cohort )?(\w+) --config", text):
            assert environment is not None, path
            found.append((command, environment.group(1)))
    assert {"tile", "embed", "pretrain", "benchmark"} <= {command for command, _ in found}
    return found


@pytest.mark.parametrize(("command", "environment"), rules())
def test_the_environment_of_a_rule_has_what_its_command_imports(
    command: str, environment: str
) -> None:
    pins = pins_of(environment)
    owners = importlib.metadata.packages_distributions()
    for module in imported_by(f"stainssl.stages.{command}") - OPTIONAL:
        names = set(map(_normal, owners.get(module, [module])))
        assert names & set(pins), (
            f"stainssl {command} may import {module}, which {environment} lacks"
        )


def _pip(environment: dict[str, list[object]]) -> list[str]:
    return next(one["pip"] for one in environment["dependencies"] if isinstance(one, dict))


def pins_of(environment: str) -> dict[str, str]:
    """Distribution → its pinned version in an environment."""
    lines = _pip(yaml.safe_load((REPO / f"workflow/envs/{environment}.yaml").read_text()))
    return {_normal(name): version for name, _, version in (line.partition("==") for line in lines)}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize(("environment", "bounds"), environments().items())
def test_pins_are_within_the_bounds_of_the_package(environment: str, bounds: list[str]) -> None:
    pins = pins_of(environment)
    for one in map(Requirement, bounds):
        assert one.specifier.contains(pins[_normal(one.name)]), f"{environment}: {one}"


@pytest.mark.parametrize("environment", ["reading", "training"])
def test_packages_that_contain_weights_are_in_the_environment(environment: str) -> None:
    """Recipes find such packages without importing them."""
    packages = {recipe.package for recipe in RECIPES.values() if recipe.package}
    assert packages
    assert {_normal(name) for name in packages} <= set(pins_of(environment))


def test_the_environment_of_tables_and_labels_has_no_torch() -> None:
    text = (REPO / "workflow/envs/statistics.yaml").read_text()
    assert not re.search(r"- (torch|nvidia|cuda)", text)


def test_the_post_deploy_script_of_reading_reinstalls_headless_opencv(tmp_path: Path) -> None:
    pip = tmp_path / "pip"
    pip.write_text(
        "#!/bin/sh\n"
        'if [ "$1" = list ]; then printf "numpy==2\\nopencv-python==4.9\\n'
        'opencv-python-headless==4.14.0.94\\n"; else echo "$@"; fi\n'
    )
    pip.chmod(0o755)
    script = REPO / "workflow/envs/reading.post-deploy.sh"
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = subprocess.run(
        ["/usr/bin/env", "bash", script], env={"PATH": path}, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert done.stdout.splitlines() == [
        "uninstall --yes opencv-python",
        "install --force-reinstall --no-deps opencv-python-headless==4.14.0.94",
    ]
