"""The config reports all problems at once, and is the same after a round trip through YAML."""

from pathlib import Path

import pytest
import yaml

from stainssl.config import Config, dump, load, parse, read_yaml
from stainssl.errors import StainsslError

REPO = Path(__file__).resolve().parent.parent
DEMO = {"cohorts": {"demo": {"demo": {"seed": 1}}}}


def test_the_shipped_config_is_valid_and_survives_a_round_trip() -> None:
    config = load(REPO / "config.yaml")
    assert parse(yaml.safe_load(dump(config))) == config
    runs = [run.name for run in config.runs()]
    assert runs == ["imagenet", "stain-invariant", "simclr", "random"]


def test_several_seeds_are_several_runs() -> None:
    config = parse(DEMO | {"encoders": {"r": {"method": "random", "seeds": [3, 5]}}})
    assert [(run.name, run.seed) for run in config.runs()] == [("r.3", 3), ("r.5", 5)]
    assert config.run("r.5").key == "r"
    with pytest.raises(StainsslError, match=r"did you mean 'r\.[35]'"):
        config.run("r.6")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"cohort": {}}, "unknown key cohort; did you mean 'cohorts'"),
        (
            {"tilings": {"default": {"mask": {"mp": 8}}}},
            "unknown key tilings.default.mask.mp; did you mean 'mpp'",
        ),
        ({"tilings": {"default": {"min_tisue": 1}}}, "did you mean 'min_tissue'"),
        ({"tilings": {"default": {"size": 0}}}, "tilings.default.size"),
        ({"tilings": {"default": {"size": 64, "overlap": 64}}}, "must be below size"),
        ({"tilings": {"default": {"mpp": 500}}}, "tilings.default.mpp"),
        ({"encoders": {"e": {"method": "simclr"}}}, "needs 'train"),
        ({"encoders": {"e": {}}}, "one of 'method'"),
        ({"encoders": {"e": {"method": "random", "tiling": "fine"}}}, "no such name 'fine'"),
        (
            {"tasks": {"t": {"level": "tile", "label": "x", "cohorts": ["dmo"]}}},
            "did you mean 'demo'",
        ),
        ({"benchmarks": {"b": {"tasks": ["t"], "encoders": ["e"]}}}, "benchmarks.b.tasks"),
        ({"cohorts": {"a b": {"demo": {}}}}, "cohorts.a b"),
        ({"slides": {"threads": 4}}, "unknown key slides.threads"),
    ],
)
def test_problems_are_reported_with_key_and_remedy(change: dict, expected: str) -> None:
    with pytest.raises(StainsslError) as caught:
        parse(DEMO | change, "my.yaml")
    assert expected in str(caught.value)
    assert all(line.startswith("my.yaml: ") for line in str(caught.value).split("\n"))


def test_all_problems_are_reported_at_once() -> None:
    change = {"tilings": {"default": {"size": 0, "mpp": -1, "min_tisue": 1}}, "slidse": {}}
    with pytest.raises(StainsslError) as caught:
        parse(DEMO | change)
    assert len(str(caught.value).split("\n")) == 4


@pytest.mark.parametrize(("text", "expected"), [("a: [", "not YAML"), ("- a", "mapping of keys")])
def test_files_that_are_not_a_config_are_refused(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(StainsslError, match=expected):
        load(tmp_path / "c.yaml")
    with pytest.raises(StainsslError, match="no such config file"):
        load(tmp_path / "none.yaml")


def test_the_config_is_frozen() -> None:
    config = parse(DEMO)
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 3  # type: ignore[misc]
    assert isinstance(config, Config)


def test_a_duplicate_key_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("seed: 1\ncohorts:\n  c: {sheet: a.csv}\n  c: {sheet: b.csv}\n")
    with pytest.raises(StainsslError, match="line 4: duplicate key 'c'"):
        load(path)


def test_merged_keys_may_be_overridden(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(
        "a: &a {x: 1, y: 1}\nb: &b {<<: *a, x: 2}\nc: &c {<<: *b, x: 3}\nd: {<<: [*c, *a], x: 4}\n"
    )
    assert [value["x"] for value in read_yaml(path).values()] == [1, 2, 3, 4]
