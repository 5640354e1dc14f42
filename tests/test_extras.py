"""Missing optional packages are reported before any job starts, with how to install them."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from typer.testing import CliRunner

from stainssl import doctor, extras
from stainssl.cli import app
from stainssl.cohort import installed
from stainssl.config import Config, parse
from stainssl.errors import SlideError, StainsslError, Status
from stainssl.slides.errors import translate_errors
from stainssl.slides.readers import open_slide

REPO = Path(__file__).resolve().parent.parent


def config_of(**keys: object) -> object:
    return parse({"cohorts": {"d": {"demo": {}}}, **keys}, "config")


def test_no_problems_if_everything_is_installed() -> None:
    config = config_of(
        encoders={"random": {"method": "random"}}, tilings={"default": {"mask": {"kind": "otsu"}}}
    )
    assert extras.problems(config) == []


def test_missing_packages_are_reported_with_their_extra(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_survival_task_needs_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    task = {"level": "patient", "kind": "survival", "time": "t", "event": "e", "cohorts": ["d"]}
    config = config_of(tasks={"os": task})
    assert extras.problems(config) == []
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    (message,) = extras.problems(config)
    assert message.startswith("tasks.os.kind: survival needs lifelines")
    assert "stainssl[survival]" in message


def test_frozen_and_pretrained_encoders_do_not_need_the_extra_train(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    frozen = {"method": "random", "frozen": True}
    config = config_of(encoders={"a": {"weights": "resnet18"}, "b": frozen})
    assert extras.problems(config) == []


def test_a_command_without_its_extra_ends_with_a_message(tmp_path: Path) -> None:
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


def config_of_slides(tmp_path: Path, *names: str) -> Config:
    rows = [f"s{i},p{i},{name}" for i, name in enumerate(names)]
    (tmp_path / "sheet.csv").write_text("\n".join(["slide_id,patient_id,path", *rows]) + "\n")
    cohort = {"sheet": str(tmp_path / "sheet.csv"), "root": str(tmp_path)}
    return parse({"cohorts": {"c": cohort}}, "config")


def test_slides_without_an_installed_reader_are_reported_once_per_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of_slides(tmp_path, "a.ome.tif", "b.OME.TIFF", "c.czi", "d.svs")
    assert installed.missing(config) == []
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    ome, czi = installed.missing(config)
    assert "2 of 4 slides, such as" in ome
    assert "a.ome.tif, are read by tiatoolbox" in ome
    assert ome.endswith("pip install 'stainssl[tiatoolbox]'")
    assert "1 of 4 slides" in czi
    assert czi.endswith("fastslide, which is not installed: pip install fastslide")


def test_a_thorough_check_reads_the_content_of_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((64, 64, 3), np.uint8), ome=True)
    (tmp_path / "b.tif").write_bytes(b"II*\0 and nothing more")
    config = config_of_slides(tmp_path, "a.tif", "b.tif", "gone.tif")
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    assert installed.missing(config) == []
    (message,) = installed.missing(config, thorough=True)
    assert "1 of 3 slides" in message
    assert "a.tif, are read by tiatoolbox" in message


def test_cohort_check_reports_a_missing_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config_of_slides(tmp_path, "a.ome.tif")
    (tmp_path / "c.yaml").write_text(
        f"cohorts: {{c: {{sheet: {tmp_path}/sheet.csv, root: {tmp_path}}}}}\n"
        "slides: {on_missing: quarantine, reader: tiatoolbox}\n"
    )
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    result = CliRunner().invoke(app, ["cohort", "check", "--config", str(tmp_path / "c.yaml")])
    assert result.output.count("pip install 'stainssl[tiatoolbox]'") == 1


def test_doctor_prints_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    assert doctor.report() == 1
    output = capsys.readouterr().out
    assert "not installed: pip install 'stainssl[tiatoolbox]'" in output
    assert "MISSING: pip install fastslide" in output


def opencv_without_libgl(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        raise ImportError("libGL.so.1: cannot open shared object file", name=name)

    monkeypatch.setattr(extras, "distribution", lambda name: name)
    monkeypatch.setattr(extras, "import_module", refuse)


def test_opencv_without_libgl_is_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opencv_without_libgl(monkeypatch)
    (message,) = extras.problems(config_of())
    assert "libGL.so.1" in message
    assert "pip uninstall opencv-python" in message
    assert doctor.report() == 1
    assert f"WRONG: {message}" in capsys.readouterr().out


def test_a_failed_import_of_a_reader_is_not_a_fault_of_the_slide(tmp_path: Path) -> None:
    with (
        pytest.raises(StainsslError, match=r"libfast.*stainssl doctor"),
        translate_errors(tmp_path / "a.czi", "opening"),
    ):
        raise ImportError("libfast.so: cannot open shared object file")


def test_a_slide_that_needs_tiatoolbox_is_unsupported_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tifffile.imwrite(tmp_path / "s.ome.tif", np.zeros((64, 64, 3), np.uint8), ome=True)
    for module in [name for name in sys.modules if name.split(".")[0] == "tiatoolbox"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "tiatoolbox", None)
    with pytest.raises(SlideError, match=r"stainssl\[tiatoolbox\]") as caught:
        open_slide(tmp_path / "s.ome.tif", "tiatoolbox")
    assert caught.value.status is Status.UNSUPPORTED
