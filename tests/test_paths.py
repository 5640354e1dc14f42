"""Files of a cohort are in the folder of its tiling, and match the patterns of the Snakefile."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from stainssl.config import parse
from stainssl.paths import Paths

NAMES = {"cohort": "clinic", "tiling": "fine", "part": "train-0000", "encoder": "e", "task": "t"}
NAMES |= {"head": "abmil", "benchmark": "b", "digest": "d", "label": ""}
METHODS = {
    name: list(inspect.signature(method).parameters)[1:]
    for name, method in inspect.getmembers(Paths, inspect.isfunction)
    if not name.startswith("_")
}
OF_COHORT = [name for name, parameters in METHODS.items() if "cohort" in parameters]


@pytest.mark.parametrize("method", METHODS)
def test_a_pattern_with_its_wildcards_replaced_is_the_path_of_the_config(method: str) -> None:
    cohorts = {"clinic": {"sheet": "c.csv", "tiling": "fine"}, "other": {"sheet": "o.csv"}}
    config = parse({"cohorts": cohorts, "tilings": {"default": {}, "fine": {"mpp": 0.25}}})
    patterns = Paths(config.results, {"{cohort}": "{tiling}"})
    wildcards = [name for name in METHODS[method] if name != "label"]
    pattern = getattr(patterns, method)(*(f"{{{name}}}" for name in wildcards))
    path = getattr(config.paths, method)(*(NAMES[name] for name in wildcards))
    assert Path(str(pattern).format(**NAMES)) == path


def test_files_of_a_cohort_are_in_the_folder_of_its_tiling() -> None:
    paths = Paths(Path("results"), {"clinic": "fine", "other": "default"})
    for method in OF_COHORT:
        arguments = [NAMES[name] for name in METHODS[method][1:]]
        assert getattr(paths, method)("clinic", *arguments).is_relative_to(
            "results/cohorts/clinic/fine"
        )
        with pytest.raises(KeyError):
            getattr(paths, method)("unknown", *arguments)
