"""Published results: sources, selection by task, and tables in every format."""

from __future__ import annotations

import re

from stainssl.datasets import RELEASES, find
from stainssl.evaluation import published
from stainssl.evaluation.table import Cell, ResultGrid
from stainssl.evaluation.table_formats import tex, to_html


def test_every_published_result_has_a_known_release_and_label_and_a_source() -> None:
    for one in published.every():
        assert one.release in RELEASES
        assert one.label in find(one.release).classes
        assert re.search(r"\d{4}|page", one.source), one
        assert one.protocol
        assert one.version
        assert one.split


def test_verified_results_have_the_published_values() -> None:
    found = {(o.release, o.method, o.external or o.metric): o.figure for o in published.every()}
    assert found["camelyon17-wilds", "ERM", "accuracy, test hospital"] == "70.3 (6.4)"
    assert found["camelyon17-wilds", "GroupDRO", "accuracy, test hospital"] == "68.4"
    assert found["her2-yale", "Inception v3 on annotated tumour", "TCGA"] == "0.81"
    assert found["bracs-roi", "HACT-Net", "weighted F1, seven classes"] == "61.5"


def test_results_are_selected_by_release_and_label() -> None:
    found = published.figures_for([("t", "response-yale", "response"), ("u", "bracs-roi", "group")])
    assert [(task, one.value) for task, one in found] == [("t", 0.80)]
    assert "85 of the 187 patients" in found[0][1].note


def test_every_format_has_the_same_results_below_a_line() -> None:
    found = published.figures_for([("tumour_1", "camelyon17-wilds", "tumor")])
    markdown = published.to_markdown(found)
    latex = published.to_latex(found, tex)
    page = to_html(ResultGrid(["a"], [("e", "h")], [[Cell("0.5")]]), "T", published.to_html(found))
    for text, task in ((markdown, "tumour_1"), (latex, r"tumour\_1"), (page, "tumour_1")):
        assert [v for v in ("70.3 (6.4)", "59.5", "64.2", "68.4") if v not in text] == []
        assert text.count(task) == len(found)
        assert "Published, not run here" in text
    assert markdown.startswith("\n---\n")
    assert page.index("0.5") < page.index("<hr>") < page.index("70.3")
    assert page.endswith("</body></html>\n")
    assert published.to_rows(found)["value"].tolist() == [70.3, 59.5, 64.2, 68.4]


def test_without_a_release_nothing_is_added() -> None:
    assert published.figures_for([]) == []
    assert published.to_markdown([]) == published.to_latex([], tex) == published.to_html([]) == ""
