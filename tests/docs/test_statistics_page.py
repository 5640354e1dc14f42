"""docs/statistics.md describes every metric of tables and of metrics.csv."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from stainssl.evaluation.grid import TITLES
from stainssl.evaluation.metrics import METRICS

REPO = Path(__file__).resolve().parents[2]
MODULES = ("robustness", "stainings", "geometry", "site_effects")
PAGE = (REPO / "docs" / "statistics.md").read_text(encoding="utf-8")


def _robustness() -> set[str]:
    """Names of robustness metrics: the first argument of the functions that make them."""
    makers = {
        "MetricRow",
        "mean_metric",
        "median_metric",
        "jackknife_metric",
        "metric_row",
        "_auroc_rows",
    }
    folder = REPO / "stainssl" / "evaluation"
    trees = [ast.parse((folder / f"{name}.py").read_text()) for name in MODULES]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    calls = [node for node in nodes if isinstance(node, ast.Call) and node.args]
    names = [c.args[0] for c in calls if isinstance(c.func, ast.Name) and c.func.id in makers]
    return {one.value for one in names if isinstance(one, ast.Constant)} | {
        "confounded_auroc", "mixed_auroc", "worst_site_auroc", "stain_retrieval_top1",
        "stain_retrieval_top10",
    }  # fmt: skip


@pytest.mark.parametrize("name", [*METRICS, *sorted(_robustness())])
def test_every_metric_is_on_the_page(name: str) -> None:
    shown = re.sub(r"auroc_cut[3-9]$", "auroc_cut2", name)  # the page describes the first two
    title = TITLES.get(name, name).removeprefix("macro ").removeprefix("weighted ")
    assert f"`{shown}`" in PAGE or title.casefold() in PAGE.casefold()


def test_names_of_robustness_metrics_are_found() -> None:
    assert {"stain_margin", "effective_rank", "site_predictability", "croma"} <= _robustness()
