"""The rooms that docs/design.md draws are those whose imports are checked, in the same order."""

import re
import tomllib
from pathlib import Path

REPO = Path(__file__).parents[2]


def test_the_rooms_are_drawn_in_the_order_that_imports_are_checked_by():
    contracts = tomllib.loads((REPO / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers = next(c["layers"] for c in contracts["contracts"] if c["type"] == "layers")
    checked = [layer.replace("stainssl.", "").split(" | ") for layer in layers]
    drawn = re.findall(r"^ *([a-z, ]+) │", (REPO / "docs" / "design.md").read_text(), re.M)
    assert [line.split(", ") for line in drawn] == checked
