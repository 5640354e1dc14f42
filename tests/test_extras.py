"""What a plain install leaves out is named before any job, with how to install it."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile

from stainssl import extras
from stainssl.config import parse
from stainssl.errors import SlideError, Status
from stainssl.slides.readers import open_slide

REPO = Path(__file__).resolve().parent.parent


def config_of(**keys: object) -> object:
    return parse({"cohorts": {"d": {"demo": {}}}, **keys}, "config")


def test_everything_is_installed_here() -> None:
    config = config_of(
        encoders={"random": {"method": "random"}}, tilings={"default": {"mask": {"kind": "otsu"}}}
    )
    assert extras.problems(config) == []


def test_what_is_missing_is_told_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    config = config_of(
        encoders={"random": {"method": "random"}},
        tilings={"default": {"mask": {"kind": "otsu"}}},
        slides={"reader": "tiatoolbox"},
    )
    train, mask, reader = extras.problems(config)
    assert train.startswith("encoders.random.method")
    assert "stainssl[train]" in train
    assert mask.startswith("tilings.default.mask.kind")
    assert "stainssl[tiatoolbox]" in mask
    assert reader.startswith("slides.reader")


def test_a_task_of_survival_asks_for_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    task = {"level": "patient", "kind": "survival", "time": "t", "event": "e", "cohorts": ["d"]}
    config = config_of(tasks={"os": task})
    assert extras.problems(config) == []
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    (told,) = extras.problems(config)
    assert told.startswith("tasks.os.kind: survival needs lifelines")
    assert "stainssl[survival]" in told


def test_frozen_and_given_encoders_need_no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    frozen = {"method": "random", "frozen": True}
    config = config_of(encoders={"a": {"weights": "resnet18"}, "b": frozen})
    assert extras.problems(config) == []


def test_a_verb_without_its_extra_ends_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(
        "cohorts: {d: {demo: {}}}\nencoders: {random: {method: random}}\n"
    )
    code = (
        "import sys\n"
        "sys.modules.update(lightning=None, lightly=None)\n"
        "sys.argv = 'stainssl pretrain --config c.yaml --encoder random'.split()\n"
        "from stainssl.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path, env={"PYTHONPATH": str(REPO)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "pip install 'stainssl[train]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_slide_that_tiatoolbox_would_read_ends_as_a_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tifffile.imwrite(tmp_path / "s.ome.tif", np.zeros((64, 64, 3), np.uint8), ome=True)
    for module in [name for name in sys.modules if name.split(".")[0] == "tiatoolbox"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "tiatoolbox", None)
    with pytest.raises(SlideError, match=r"stainssl\[tiatoolbox\]") as told:
        open_slide(tmp_path / "s.ome.tif", "tiatoolbox")
    assert told.value.status is Status.UNSUPPORTED
