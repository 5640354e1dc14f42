"""One name, one meaning: a bare name is one thing in all of the package."""

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
BACKENDS = {"Sample"}  # the one class that every backend of `stain` has, with the same methods
# The main function of a module, which its module names: a verb's stage, an encoder's weights.
OF_MODULE = {"run", "load", "fit", "estimate"}


def _types(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """(name, definition) of a module's public classes and aliases of types."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield node.name, f"class on line {node.lineno}"
        elif isinstance(node, ast.Assign) and re.match("[A-Z][a-z]", ast.unparse(node.targets)):
            yield ast.unparse(node.targets), ast.unparse(node.value).replace("npt.", "")


def test_a_class_or_an_alias_of_a_type_has_a_name_of_its_own() -> None:
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for module, tree in TREES.items():
        for name, definition in _types(tree):
            is_class = definition.startswith("class")
            if not (name in BACKENDS and module.endswith("_backend")):
                found[name][f"{module}, {definition}" if is_class else definition] = module
    assert not {name: list(of) for name, of in found.items() if len(of) > 1}


def test_a_function_that_is_imported_by_its_bare_name_is_the_only_one_that_is() -> None:
    defined = {
        (module, node.name)
        for module, tree in TREES.items()
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name not in OF_MODULE
    }
    found: dict[str, set[str]] = defaultdict(set)
    for tree in TREES.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    if (node.module, alias.name) in defined and not alias.asname:
                        found[alias.name].add(node.module)
    assert not {name: modules for name, modules in found.items() if len(modules) > 1}
