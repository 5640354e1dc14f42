"""The page of the config shows every key of the model, with the model's own default."""

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
    """Keys that the page does not show; one that is null or {} there stands for all below it."""
    for key in keys:
        at: Any = SHOWN
        for word in key.split("."):
            if not at or not isinstance(at, dict):
                break
            if word != "*" and word not in at:
                yield key
                break
            at = next(iter(at.values())) if word == "*" else at[word]


def test_every_key_is_shown() -> None:
    assert list(_missing(leaves())) == []


def test_a_key_that_is_not_shown_would_be_found() -> None:
    assert list(_missing(iter(["tilings.*.mpp", "tilings.*.color"]))) == ["tilings.*.color"]


SECTIONS = ("slides", "cohorts", "tilings", "encoders", "tasks", "heads", "benchmarks")
EXAMPLES = {  # keys that the page fills in as a user would, or rounds
    "cohorts": {"sheet", "root"},
    "encoders": {"method", "train", "backbone", "geometry"},
    "tasks": {"label"},
    "benchmarks": {"heads"},
}


def _defaults(model: type[BaseModel]) -> dict[str, Any]:
    """Key → its default, of the keys that have one."""
    found = {k: f.get_default(call_default_factory=True) for k, f in model.model_fields.items()}
    return {
        name: value.model_dump(mode="json") if isinstance(value, BaseModel) else value
        for name, value in found.items()
        if not model.model_fields[name].is_required()
    }


@pytest.mark.parametrize("section", SECTIONS)
def test_what_is_shown_is_the_default(section: str) -> None:
    annotation = Config.model_fields[section].annotation
    shown = SHOWN[section] if section == "slides" else SHOWN[section]["NAME"]
    defaults = _defaults(get_args(annotation)[-1] if get_args(annotation) else annotation)
    asked = defaults.keys() - EXAMPLES.get(section, set())
    assert {name: shown[name] for name in asked} == {name: defaults[name] for name in asked}
