"""Jobs that are planned after a change of config, sheet or file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import pandas as pd
import pytest
import yaml

from stainssl.config import Config, Model
from tests.chain.conftest import REPO, Workflow

pytestmark = [pytest.mark.chain, pytest.mark.xdist_group("finished")]
KEYS: dict[str, dict[str, Any]] = yaml.safe_load(
    (Path(__file__).parent / "keys.yaml").read_text(encoding="utf-8")
)
DEPENDENTS = {
    "tile": {"statuses", "label", "pixels", "embed", "embedded"},
    "statuses": {"gate"},
    "label": {"probe", "robustness", "benchmark"},
    "pixels": {"target", "pretrain", "embed", "mil", "robustness"},
    "target": {"pretrain"},
    "pretrain": {"embed", "robustness", "benchmark"},
    "embed": {"embedded", "probe", "mil"},
    "folds": {"probe", "mil", "robustness", "benchmark"},
    "probe": {"benchmark"},
    "finetune": {"benchmark"},
    "mil": {"benchmark"},
    "robustness": {"benchmark"},
}
"""Rule → the rules that read its output."""


def with_dependents(rules: list[str]) -> set[str]:
    """Some rules and all that depend on them."""
    found: set[str] = set()
    left = list(rules)
    while left:
        if (rule := left.pop()) not in found:
            found.add(rule)
            left += DEPENDENTS.get(rule, ())
    return found


def expected(entry: dict[str, Any]) -> set[str]:
    """Rules that a key reruns according to the list, and those that depend on them."""
    return with_dependents(entry["reruns"]) - set(entry.get("spares", ()))


def leaves(model: type[Model] = Config, above: str = "") -> Iterator[str]:
    """Every key of the config that has a value; names of entries are `*`."""
    for name, field in model.model_fields.items():
        inner = _inner(field.annotation)
        if inner is None:
            yield f"{above}{name}"
        else:
            star = "*." if get_origin(field.annotation) is dict else ""
            yield from leaves(inner, f"{above}{name}.{star}")


def _inner(annotation: Any) -> type[Model] | None:
    if isinstance(annotation, type) and issubclass(annotation, Model):
        return annotation
    return next((found for one in get_args(annotation) if (found := _inner(one))), None)


def set_key(config: dict[str, Any], path: str, value: Any) -> None:
    *parents, key = path.split(".")
    for parent in parents:
        config = config.setdefault(parent, {})
    config[key] = value


def planned_under(folder: Path, configs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Name → the rules that are planned under its config."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.chain.walk", str(folder)],
        input=json.dumps(configs), capture_output=True, text=True, check=False, cwd=REPO,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_every_key_of_the_config_is_in_the_list() -> None:
    assert set(KEYS) == set(leaves())


def test_each_key_reruns_the_jobs_that_depend_on_it_and_no_others(finished: Workflow) -> None:
    configs = {}
    for key, entry in KEYS.items():
        if "set" in entry:
            config = yaml.safe_load((finished.folder / finished.config).read_text())
            config = json.loads(json.dumps(config))  # encoders share no dictionary by YAML anchors
            for path, value in entry["set"].items():
                set_key(config, path, value)
            configs[key] = config
    planned = planned_under(finished.folder, configs)
    wrong = {
        key: (found, sorted(expected(KEYS[key])))
        for key, found in planned.items()
        if not isinstance(found, list) or set(found) != expected(KEYS[key])
    }
    assert not wrong


SHEET = {
    "site": ("z", ["statuses", "target", "pretrain", "embedded", "probe", "mil", "robustness"]),
    "her2": (None, ["folds", "mil", "benchmark"]),
    "response": (None, []),
    "mpp": ("0.51", ["tile"]),
    "exclude": ("yes", ["tile", "statuses", "label", "pixels", "target", "embedded", "folds"]),
    "notes": ("anything", []),
}
"""Column → new value for a training patient (None: the other class), and the rules that rerun."""


@pytest.mark.parametrize("column", SHEET)
def test_each_column_of_the_sheet_reruns_the_jobs_that_read_it(
    finished: Workflow, tmp_path: Path, column: str
) -> None:
    workflow = finished.copied(tmp_path / "run")
    value, reruns = SHEET[column]
    path = workflow.folder / "clinic" / "slides.csv"
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    patient = frame.loc[frame["split"] == "train", "patient_id"].iloc[-1]
    mine = frame["patient_id"] == patient
    if value is None:
        frame.loc[mine, column] = frame.loc[mine, column].map({"0": "1", "1": "0"})
    else:
        frame[column] = frame.get(column, "")
        frame.loc[mine, column] = value
    frame.to_csv(path, index=False)
    # Probe and robustness use the tile task only.
    unaffected = {"probe", "robustness"} if column == "her2" else set()
    assert set(workflow.planned()) == with_dependents(reruns) - unaffected


def _annotation(workflow: Workflow) -> Path:
    return next((workflow.folder / "clinic" / "truth").glob("*.geojson"))


def _slide(workflow: Workflow) -> Path:
    return next((workflow.folder / "clinic" / "slides").glob("*.svs"))


@pytest.mark.parametrize(("file", "reruns"), [(_annotation, ["label"]), (_slide, ["tile"])])
def test_a_file_replaced_in_place_reruns_the_jobs_that_read_it(
    finished: Workflow, tmp_path: Path, file: Callable[[Workflow], Path], reruns: list[str]
) -> None:
    workflow = finished.copied(tmp_path / "run")
    path = file(workflow)
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content + b" ")
    assert set(workflow.planned()) == with_dependents(reruns)


def test_a_dry_run_a_report_and_unlock_write_nothing(finished: Workflow, tmp_path: Path) -> None:
    workflow = finished.copied(tmp_path / "run")
    workflow.edit("config.yaml", lambda text: text.replace("min_tissue: 0.5", "min_tissue: 0.6"))
    before = _listing(workflow.folder)
    workflow.run("-n")
    workflow.run("--unlock")
    workflow.run("--report", str(tmp_path / "report.html"))
    assert _listing(workflow.folder) == before


def _listing(folder: Path) -> dict[str, tuple[int, int]]:
    """File → size and time, without Snakemake's own folder."""
    files = (path for path in folder.rglob("*") if ".snakemake" not in path.parts)
    return {str(path): (os.stat(path).st_size, os.stat(path).st_mtime_ns) for path in files}
