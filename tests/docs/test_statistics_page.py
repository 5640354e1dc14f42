"""docs/statistics.md names every figure that a table or a metrics.csv has."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from stainssl.evaluation.metrics import METRICS
from stainssl.evaluation.table import TITLES

REPO = Path(__file__).resolve().parents[2]
PAGE = (REPO / "docs" / "statistics.md").read_text(encoding="utf-8")


def _robustness() -> set[str]:
    """The names that `evaluation.robustness` gives its figures: the first word of their makers."""
    made = {
        "Figure",
        "mean_figure",
        "median_figure",
        "jackknife_figure",
        "_figure",
        "_auroc_figures",
    }
    tree = ast.parse((REPO / "stainssl" / "evaluation" / "robustness.py").read_text())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and node.args]
    named = [c.args[0] for c in calls if isinstance(c.func, ast.Name) and c.func.id in made]
    return {one.value for one in named if isinstance(one, ast.Constant)} | {
        "confounded_auroc", "mixed_auroc", "worst_site_auroc", "stain_retrieval_top1",
        "stain_retrieval_top10",
    }  # fmt: skip


@pytest.mark.parametrize("name", [*METRICS, *sorted(_robustness())])
def test_every_figure_is_on_the_page(name: str) -> None:
    cut = re.sub(r"auroc_cut[3-9]$", "auroc_cut2", name)  # told of the first two
    title = TITLES.get(name, name).removeprefix("macro ").removeprefix("weighted ")
    assert f"`{cut}`" in PAGE or title.casefold() in PAGE.casefold()


def test_the_names_of_robustness_are_found() -> None:
    assert {"stain_margin", "effective_rank", "site_predictability", "croma"} <= _robustness()
