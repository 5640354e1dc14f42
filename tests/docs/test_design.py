"""The packages in docs/design.md are those of the import contract, in the same order."""

import re
import tomllib
from pathlib import Path

REPO = Path(__file__).parents[2]


def test_packages_are_in_the_order_of_the_import_contract():
    contracts = tomllib.loads((REPO / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers = next(c["layers"] for c in contracts["contracts"] if c["type"] == "layers")
    expected = [layer.replace("stainssl.", "").split(" | ") for layer in layers]
    found = re.findall(r"^ *([a-z, ]+) │", (REPO / "docs" / "design.md").read_text(), re.M)
    assert [line.split(", ") for line in found] == expected
