"""Names of classes, type aliases and imported functions are unique in the package."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import stainssl

PACKAGE = Path(stainssl.__file__).parent
TREES = {
    ".".join(("stainssl", *file.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(
        ".__init__"
    ): ast.parse(file.read_text(encoding="utf-8"))
    for file in sorted(PACKAGE.rglob("*.py"))
}
BACKENDS = {"Sample"}  # the class that every backend of `stain` defines
# Main functions of modules, used as MODULE.FUNCTION, such as `run` of a stage.
MAIN_FUNCTIONS = {"run", "load", "fit", "estimate"}


def _types(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """(name, definition) of a module's public classes and type aliases."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield node.name, f"class on line {node.lineno}"
        elif isinstance(node, ast.Assign) and re.match("[A-Z][a-z]", ast.unparse(node.targets)):
            yield ast.unparse(node.targets), ast.unparse(node.value).replace("npt.", "")


def test_classes_and_type_aliases_have_unique_names() -> None:
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for module, tree in TREES.items():
        for name, definition in _types(tree):
            is_class = definition.startswith("class")
            if not (name in BACKENDS and module.endswith("_backend")):
                found[name][f"{module}, {definition}" if is_class else definition] = module
    assert not {name: list(of) for name, of in found.items() if len(of) > 1}


def test_functions_that_are_imported_by_name_have_unique_names() -> None:
    defined = {
        (module, node.name)
        for module, tree in TREES.items()
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name not in MAIN_FUNCTIONS
    }
    found: dict[str, set[str]] = defaultdict(set)
    for tree in TREES.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    if (node.module, alias.name) in defined and not alias.asname:
                        found[alias.name].add(node.module)
    assert not {name: modules for name, modules in found.items() if len(modules) > 1}
