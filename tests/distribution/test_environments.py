"""The conda environment of a rule holds what its verb may import, and tables need no torch."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import sys
from pathlib import Path

import pytest
import yaml

REPO = Path(__file__).resolve().parents[2]
OPTIONAL = {"triton", "tiatoolbox", "fastslide"}  # looked for, and done without


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
    """Top-level modules of others that a module may import, inside functions too."""
    todo, seen, others = {module}, set(), set()
    while todo:
        name = todo.pop()
        top = name.split(".")[0]
        if name in seen or top in sys.stdlib_module_names:
            continue
        seen.add(name)
        if top != "stainssl":
            others.add(top)
        elif file := _file_of(name):
            todo |= _imports(file)
            todo |= {name.rsplit(".", n)[0] for n in range(1, name.count(".") + 1)}
    return others


def rules() -> list[tuple[str, str]]:
    """(verb, environment) of every rule, in the order of the files."""
    found = []
    for path in sorted((REPO / "workflow/rules").glob("*.smk")):
        text = path.read_text()
        environment = re.search(r'^CONDA = "../envs/(\w+)\.yaml"', text, re.M)
        for verb in re.findall(r'"stainssl (?:cohort )?(\w+) ', text):
            assert environment is not None, path
            found.append((verb, environment.group(1)))
    return found


@pytest.mark.parametrize(("verb", "environment"), rules())
def test_a_rules_environment_has_what_its_verb_imports(verb: str, environment: str) -> None:
    lines = yaml.safe_load((REPO / f"workflow/envs/{environment}.yaml").read_text())
    pins = {re.sub(r"[-_.]+", "-", pin.split("==")[0]).lower() for pin in _pip(lines)}
    owners = importlib.metadata.packages_distributions()
    for module in imported_by(f"stainssl.stages.{verb}") - OPTIONAL:
        names = {re.sub(r"[-_.]+", "-", name).lower() for name in owners.get(module, [module])}
        assert names & pins, f"stainssl {verb} may import {module}, which {environment} lacks"


def _pip(environment: dict[str, list[object]]) -> list[str]:
    return next(one["pip"] for one in environment["dependencies"] if isinstance(one, dict))


def test_tables_and_labels_need_no_torch() -> None:
    text = (REPO / "workflow/envs/statistics.yaml").read_text()
    assert not re.search(r"- (torch|nvidia|cuda)", text)
