"""The configs in docs/cohorts/ are valid with miniatures, and Snakemake can plan them."""

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
from tests.datasets.docs import PAGES, config_of, reduced, with_miniature_roots


@pytest.mark.parametrize("page", RELEASES)
def test_the_config_of_a_page_is_valid(releases: dict[str, Path], page: str) -> None:
    config = reduced(with_miniature_roots(config_of(page), releases))
    assert check(parse(config)) == []


def test_every_release_has_a_complete_page_that_is_in_the_index() -> None:
    index = (PAGES / "README.md").read_text(encoding="utf-8")
    for name in RELEASES:
        text = (PAGES / f"{name}.md").read_text(encoding="utf-8")
        assert f"({name}.md)" in index
        for expected in ("| from |", "| licence |", "**Pitfalls**", "```yaml"):
            assert expected in text, f"{name}: {expected}"
        assert f"release: {name}" in text


def with_prefix(config: dict[str, Any], page: str) -> dict[str, Any]:
    """Prefix all names in a config with its page, so that configs can be merged."""
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
def test_the_configs_of_all_pages_can_be_planned_together(
    releases: dict[str, Path], tmp_path: Path
) -> None:
    merged: dict[str, Any] = {"slides": {"part_size": 40}}
    for page in RELEASES:
        one = with_prefix(reduced(with_miniature_roots(config_of(page), releases)), page)
        for kind, found in one.items():
            merged.setdefault(kind, {}).update(found)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(merged))
    planned = Workflow(tmp_path).planned()
    tables = planned["benchmark"]
    assert len(tables) == len(RELEASES)
    tiled = Counter(output.split("/")[2] for output in planned["tile"])
    assert len(tiled) == sum(len(config_of(page)["cohorts"]) for page in RELEASES)
