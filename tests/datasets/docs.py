"""The configs in docs/cohorts/, with miniatures as roots and with small settings."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from tests.conftest import REPO

PAGES = REPO / "docs" / "cohorts"
SMALL_ENCODER = {"backbone": "test_resnet", "input_size": 32, "batch_size": 8, "epochs": 1}


def config_of(page: str) -> dict[str, Any]:
    """The page's last YAML block."""
    text = (PAGES / f"{page}.md").read_text(encoding="utf-8")
    found: dict[str, Any] = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", text, re.S)[-1])
    return found


def with_miniature_roots(config: dict[str, Any], releases: dict[str, Path]) -> dict[str, Any]:
    """Set the root of every release to its miniature."""
    for cohort in config["cohorts"].values():
        cohort["root"] = str(releases[cohort["release"]])
    return config


def reduced(config: dict[str, Any]) -> dict[str, Any]:
    """Reduce a config for miniatures: a tiny backbone, one epoch, one seed, two folds, small parts.

    The rest is unchanged: cohorts, options, pixel size, tasks, labels, kinds of split.
    """
    config["slides"] = {**config.get("slides", {}), "part_size": 40, "max_bad_slides": 0.3}
    for tiling in config.setdefault("tilings", {"default": {"mpp": 0.5}}).values():
        tiling["size"] = min(tiling.get("size", 256), 64)
    for encoder in config["encoders"].values():
        encoder.pop("seeds", None)
        is_trained = encoder.get("method") not in (None, "random")
        encoder |= SMALL_ENCODER if is_trained else {"backbone": "test_resnet", "input_size": 32}
    for task in config["tasks"].values():
        if task["split"]["kind"] == "cv":
            task["split"] |= {"folds": 2, "repeats": 1}
    for head in config.get("heads", {}).values():
        head |= {"epochs": 2, "hidden": 8}
    return config
