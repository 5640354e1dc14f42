"""Tables of results: formats, rows, bold cells, marks and notes."""

import json
import re

import numpy as np
import pandas as pd
import pytest

from stainssl.evaluation import table_formats
from stainssl.evaluation.evaluate import evaluate
from stainssl.evaluation.grid import (
    FEW,
    SEEDS,
    SEEN_NOTE,
    SITE_METRICS,
    format_interval,
    make_grid,
    make_site_grid,
)
from stainssl.evaluation.long_table import comparisons, long_table, robustness_tree
from stainssl.evaluation.table import (
    FEW_MARK,
    NOTHING,
    SEEN_MARK,
    Cell,
    ResultGrid,
    Robustness,
    TaskResult,
)

SHOWN = {"tumor": ["auroc"]}


def _predictions(signal: float, seed: int, patients: int = 40) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    y = np.repeat(np.arange(patients) % 2, 5)
    p = 1 / (1 + np.exp(-(signal * (y - 0.5) + rng.normal(size=len(y)))))
    ids = [f"p{i // 5}" for i in range(len(y))]
    return pd.DataFrame(
        {"patient_id": ids, "slide_id": ids, "tile": range(len(y)), "y": y, "p_0": 1 - p, "p_1": p}
    )


def _result(encoder: str, signal: float, run: str = "", task: str = "tumor", **more) -> TaskResult:
    predictions = _predictions(signal, seed=len(run or encoder))
    metrics = evaluate(predictions, "tile", 0, resamples=200)
    result = {"level": "tile", "head": "linear", "metrics": metrics, "predictions": predictions}
    return TaskResult(task=task, encoder=encoder, run=run or encoder, **(result | more))


def _robustness(encoder: str, signal: float, run: str = "") -> Robustness:
    confounded = _predictions(signal, seed=7 + len(encoder)).assign(task="tumor")
    auroc = evaluate(confounded, "tile", 0, resamples=200).query("metric == 'auroc'")
    rows = [auroc.assign(metric="confounded_auroc")]
    for metric, value in (
        ("stain_retrieval_top1", 0.8),
        ("site_predictability", 0.6),
        ("site_chance", 1 / 3),
    ):
        rows.append(auroc.assign(metric=metric, value=value, low=value - 0.1, high=value + 0.1))
    return Robustness(encoder, run or encoder, pd.concat(rows).assign(task="tumor"), confounded)


@pytest.fixture(scope="module")
def benchmark():
    results = [
        _result("stain_invariant", 3.0, seen=2),
        _result("simclr", 2.8),
        _result("random", 0.0),
    ]
    robustness = [_robustness("stain_invariant", 2.0), _robustness("simclr", -1.0),
                  _robustness("random", 0.0)]  # fmt: skip
    long = long_table(results, robustness)
    compared = comparisons(results, robustness, seed=0)
    return long, compared, make_grid(long, compared, SHOWN)


NUMBER = re.compile(r"\d\.\d\d")


def _numbers(text: str) -> list[str]:
    body = text.replace("--", "–")
    return NUMBER.findall(re.sub(r"<style>.*?</style>", "", body, flags=re.S))


def test_every_format_has_the_same_numbers(benchmark):
    long, _, grid = benchmark
    found = [
        _numbers(text)
        for text in (
            table_formats.to_markdown(grid),
            table_formats.to_latex(grid),
            table_formats.to_html(grid, "main"),
        )
    ]
    assert found[0] == found[1] == found[2]
    shown = long[(long["metric"] == "auroc") & (long["group"] == "all") & (long["head"] != "")]
    for row in shown.itertuples():
        assert format_interval(row.value, row.low, row.high) in table_formats.to_markdown(grid)


def test_the_site_table_has_the_same_numbers_in_every_format():
    predictions = _predictions(1.0, seed=3).assign(
        site=lambda rows: (
            rows["patient_id"].str[-1].isin(list("01234")).map({True: "a", False: "b"})
        )
    )
    metrics = evaluate(predictions, "tile", 0, resamples=200)
    long = long_table([_result("enc", 1.0, predictions=predictions, metrics=metrics)], [])
    grid = make_site_grid(long)
    texts = [
        table_formats.to_markdown(grid),
        table_formats.to_latex(grid),
        table_formats.html_table(grid, "By site"),
    ]
    assert _numbers(texts[0]) == _numbers(texts[1]) == _numbers(texts[2])
    assert [name for _, name in grid.rows] == ["a (20 patients)", "b (20 patients)"]
    shown = metrics[metrics["group"].str.startswith("site=") & metrics["metric"].isin(SITE_METRICS)]
    assert set(shown["metric"]) == {"auroc", "brier", "calibration_error"}
    assert len(shown) == 6
    for row in shown.itertuples():
        assert format_interval(row.value, row.low, row.high) in texts[0]


@pytest.mark.parametrize(("count", "text"), [(4, "4 patients"), (1, "1 patient")])
def test_a_site_with_fewer_than_five_patients_is_gray_with_the_reason(count, text):
    predictions = _predictions(1.0, seed=3)
    few = sorted(predictions["patient_id"].unique())[:count]
    site = predictions["patient_id"].isin(few).map({True: "a", False: "b"})
    predictions = predictions.assign(site=site)
    metrics = evaluate(predictions, "tile", 0, resamples=200)
    long = long_table([_result("enc", 1.0, predictions=predictions, metrics=metrics)], [])
    grid = make_site_grid(long)
    assert [name for _, name in grid.rows] == [f"a ({text})", f"b ({40 - count} patients)"]
    small, large = grid.cells
    assert all(cell.gray for cell in small if cell.text != NOTHING)
    assert not any(cell.gray for cell in large)
    assert FEW in grid.notes
    assert FEW_MARK in table_formats.to_markdown(grid)
    assert table_formats.html_table(grid, "By site").count("class='few'") == sum(
        c.gray for c in small
    )


def test_predictions_of_one_site_have_no_site_table(benchmark):
    assert make_site_grid(benchmark[0]).rows == []


def test_the_best_row_and_those_it_does_not_beat_are_bold(benchmark):
    _, compared, grid = benchmark
    bold = [[cell.bold for cell in row] for row in grid.cells]
    assert [row[0] for row in bold] == [
        True,
        True,
        False,
    ]  # signals 3.0 and 2.8 do not differ significantly
    assert [row[1] for row in bold] == [True, False, False]  # in the confounded test they do
    family = compared["p_holm"].notna().sum()
    assert family == 6
    assert (compared["p_holm"] >= compared["p"]).all()
    assert "**" in table_formats.to_markdown(grid)


def test_seen_patients_are_marked_with_a_footnote(benchmark):
    _, _, grid = benchmark
    markdown = table_formats.to_markdown(grid)
    assert [row[0].seen for row in grid.cells] == [True, False, False]
    assert f"){SEEN_MARK}" in markdown
    assert SEEN_NOTE in markdown


def test_the_header_has_the_number_of_patients_and_the_chance_level(benchmark):
    _, _, grid = benchmark
    assert grid.columns[0] == "tumor: AUROC (40 patients)"
    assert grid.columns[3] == "tumor: site predictability (40 patients, chance 0.33)"


def test_the_mean_over_seeds_has_a_row_above_those_of_the_seeds():
    runs = [_result("simclr", s, run=f"simclr.{i}") for i, s in enumerate((1.0, 2.0, 3.0))]
    results = [*runs, _result("random", 0.0)]
    long = long_table(results, [])
    grid = make_grid(long, comparisons(results, [], seed=0), SHOWN)
    assert [name for name, _ in grid.rows] == [
        "simclr (3 seeds)", "simclr.0", "simclr.1", "simclr.2", "random",
    ]  # fmt: skip
    own = long.query("metric == 'auroc' and encoder == 'simclr'").set_index("run")
    mean = own.loc["simclr (3 seeds)"]
    assert (mean["seeds"], own.loc["simclr.0", "seeds"]) == (3, 1)
    assert mean["value"] == pytest.approx(own.query("seeds == 1")["value"].mean())
    assert mean["low"] < own["low"].mean()
    assert mean["high"] <= 1
    assert grid.cells[0][0].text == format_interval(mean["value"], mean["low"], mean["high"])
    assert grid.cells[0][0].bold
    assert SEEDS in grid.notes


def test_heads_are_rows_and_robustness_is_shown_once_per_encoder():
    results = [
        _result("simclr", 1.0),
        *(_result("simclr", 1.0, task="her2", head=h) for h in ("mean", "abmil")),
    ]
    long = long_table(results, [_robustness("simclr", 1.0)])
    shown = {"tumor": ["auroc"], "her2": ["auroc"]}
    grid = make_grid(long, comparisons(results, [], seed=0), shown)
    assert grid.rows == [("simclr", "linear"), ("simclr", "mean"), ("simclr", "abmil")]
    texts = [[cell.text != NOTHING for cell in row] for row in grid.cells]
    assert texts == [
        [True, False, True, True, True],
        [False, True, False, False, False],
        [False, True, False, False, False],
    ]


def test_robustness_is_in_the_row_of_the_linear_probe_in_any_order():
    results = [_result("simclr", 1.0, task="her2", head="abmil"), _result("simclr", 1.0)]
    long = long_table(results, [_robustness("simclr", 1.0)])
    shown = {"her2": ["auroc"], "tumor": ["auroc"]}
    grid = make_grid(long, comparisons(results, [], seed=0), shown)
    assert grid.rows == [("simclr", "abmil"), ("simclr", "linear")]
    texts = [[cell.text != NOTHING for cell in row] for row in grid.cells]
    assert texts == [[True, False, False, False, False], [False, True, True, True, True]]


def test_the_note_on_auroc_is_shown_only_with_auroc():
    results = [_result("a", 3.0, shown=["accuracy"]), _result("b", 0.0, shown=["accuracy"])]
    long, compared = long_table(results, []), comparisons(results, [], seed=0)
    notes = [make_grid(long, compared, {"tumor": [m]}).notes[0] for m in ("accuracy", "auroc")]
    assert ["AUROC" in note for note in notes] == [False, True]
    assert all(note.endswith("A dash: undefined.") for note in notes)


def test_a_task_shows_and_compares_its_metrics():
    results = [_result(e, s, shown=["accuracy", "auroc"]) for e, s in (("a", 3.0), ("b", 0.0))]
    long, compared = long_table(results, []), comparisons(results, [], seed=0)
    grid = make_grid(long, compared, {"tumor": ["accuracy", "auroc"]})
    assert grid.columns == ["tumor: accuracy (40 patients)", "tumor: AUROC (40 patients)"]
    assert compared["test"].tolist() == ["accuracy", "auroc"]
    assert [[cell.bold for cell in row] for row in grid.cells] == [[True, True], [False, False]]


def test_an_undefined_value_is_a_dash_and_not_bold():
    blank = _result("simclr", 1.0)
    blank.metrics.loc[:, ["value", "low", "high"]] = np.nan
    results = [blank, _result("random", 0.0)]
    grid = make_grid(long_table(results, []), comparisons(results, [], seed=0), SHOWN)
    assert grid.cells[0][0] == Cell()
    assert format_interval(0.5, np.nan, np.nan) == "0.50"


def test_the_robustness_tree_has_every_metric_and_is_json():
    one = _robustness("simclr", 1.0, run="simclr.1")
    one.metrics.iloc[1, one.metrics.columns.get_loc("low")] = np.nan
    tree = json.loads(json.dumps(robustness_tree([one]), allow_nan=False))
    assert list(tree) == ["tumor"]
    assert list(tree["tumor"]) == ["simclr.1"]
    for row in one.metrics.itertuples():
        found = tree["tumor"]["simclr.1"][row.metric][row.group]
        assert found["value"] == row.value
        assert found["patients"] == row.patients
        assert found["low"] == (None if np.isnan(row.low) else row.low)


def test_names_are_escaped_in_latex_and_html(benchmark):
    _, _, grid = benchmark
    assert r"stain\_invariant" in table_formats.to_latex(grid)
    odd = ResultGrid(["a < b & c"], [("x", "y")], [[Cell("1.00")]])
    assert "a &lt; b &amp; c" in table_formats.to_html(odd, "t")
    assert r"a < b \& c" in table_formats.to_latex(odd)


def test_names_are_escaped_in_markdown() -> None:
    assert table_formats.markdown("a|b <script>") == r"a\|b &lt;script&gt;"
