"""docs/reference/config.md shows every key of the config with its default."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel

from stainssl.config import Config
from tests.chain.test_keys import leaves

PAGE = Path(__file__).resolve().parents[2] / "docs/reference/config.md"
SHOWN: dict[str, Any] = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.S)[0])


def _missing(keys: Iterator[str]) -> Iterator[str]:
    """Keys that the page does not show; null or {} on the page covers all keys below."""
    for key in keys:
        node: Any = SHOWN
        for part in key.split("."):
            if not node or not isinstance(node, dict):
                break
            if part != "*" and part not in node:
                yield key
                break
            node = next(iter(node.values())) if part == "*" else node[part]


def test_every_key_is_shown() -> None:
    assert list(_missing(leaves())) == []


def test_a_missing_key_is_detected() -> None:
    assert list(_missing(iter(["tilings.*.mpp", "tilings.*.color"]))) == ["tilings.*.color"]


SECTIONS = ("slides", "cohorts", "tilings", "encoders", "tasks", "heads", "benchmarks")
EXAMPLES = {  # keys with an example or a rounded value on the page
    "cohorts": {"sheet", "root"},
    "encoders": {"method", "train", "backbone", "geometry"},
    "tasks": {"label"},
    "benchmarks": {"heads"},
}


def _defaults(model: type[BaseModel]) -> dict[str, Any]:
    """Key → its default, for keys with a default."""
    found = {k: f.get_default(call_default_factory=True) for k, f in model.model_fields.items()}
    return {
        name: value.model_dump(mode="json") if isinstance(value, BaseModel) else value
        for name, value in found.items()
        if not model.model_fields[name].is_required()
    }


@pytest.mark.parametrize("section", SECTIONS)
def test_the_values_shown_are_the_defaults(section: str) -> None:
    annotation = Config.model_fields[section].annotation
    shown = SHOWN[section] if section == "slides" else SHOWN[section]["NAME"]
    defaults = _defaults(get_args(annotation)[-1] if get_args(annotation) else annotation)
    compared = defaults.keys() - EXAMPLES.get(section, set())
    assert {name: shown[name] for name in compared} == {name: defaults[name] for name in compared}
