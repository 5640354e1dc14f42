"""The configs in docs/cohorts/ hold on miniatures: they are sound, and Snakemake plans them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from stainssl.cohort import check
from stainssl.config import parse
from stainssl.datasets import RELEASES
from tests.chain.conftest import Workflow
from tests.datasets.docs import PAGES, config_of, pointed, shrunk


@pytest.mark.parametrize("page", RELEASES)
def test_a_pages_config_is_sound(releases: dict[str, Path], page: str) -> None:
    config = shrunk(pointed(config_of(page), releases))
    assert check(parse(config)) == []


def test_every_release_has_a_page_with_its_own_traps_and_the_index_names_it() -> None:
    index = (PAGES / "README.md").read_text(encoding="utf-8")
    for name in RELEASES:
        text = (PAGES / f"{name}.md").read_text(encoding="utf-8")
        assert f"({name}.md)" in index
        for said in ("| from |", "| licence |", "**Pitfalls**", "```yaml"):
            assert said in text, f"{name}: {said}"
        assert f"release: {name}" in text


def renamed(config: dict[str, Any], page: str) -> dict[str, Any]:
    """The config with the page's name before every name, so that pages can be joined."""
    kinds = ("cohorts", "tilings", "encoders", "tasks", "heads", "benchmarks")
    names = {name for kind in kinds for name in config.get(kind, {})}

    def walk(value: Any, is_name: bool) -> Any:
        if isinstance(value, list):
            return [f"{page}.{v}" if v in names else v for v in value]
        if not isinstance(value, dict):
            return f"{page}.{value}" if is_name and value in names else value
        return {k: walk(v, k == "tiling") for k, v in value.items()}

    config["tilings"].setdefault("default", {"mpp": 0.5, "size": 64})
    names.add("default")
    for kind in ("cohorts", "encoders"):
        for one in config[kind].values():
            one.setdefault("tiling", "default")
    return {
        kind: {f"{page}.{name}": walk(one, False) for name, one in config.get(kind, {}).items()}
        for kind in kinds
    }


@pytest.mark.chain
def test_all_pages_together_are_planned(releases: dict[str, Path], tmp_path: Path) -> None:
    joined: dict[str, Any] = {"slides": {"part_size": 40}}
    for page in RELEASES:
        one = renamed(shrunk(pointed(config_of(page), releases)), page)
        for kind, found in one.items():
            joined.setdefault(kind, {}).update(found)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(joined))
    planned = Workflow(tmp_path).planned()
    tables = planned["benchmark"]
    assert len(tables) == len(RELEASES)
    tiled = Counter(output.split("/")[2] for output in planned["tile"])
    assert len(tiled) == sum(len(config_of(page)["cohorts"]) for page in RELEASES)
