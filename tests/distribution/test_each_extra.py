"""Each extra suffices for its command; without it, the command says what to install."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
import timm
import torch
import yaml
from safetensors.torch import save_file

from stainssl.demo import make
from stainssl.errors import StainsslError
from stainssl.view.files import page_files
from tests.distribution.bare import Bare

pytestmark = pytest.mark.xdist_group("wheel")
PART = "--cohort clinic --part train-0000"
WITHOUT_EXTRAS = f"""\
cohort check
tile {PART}
label {PART}
pixels {PART}
embed {PART} --encoder given
folds --task tumor
probe --task tumor --encoder given
folds --task her2
mil --task her2 --encoder given --head mean
folds --task relapse
mil --task relapse --encoder given --head mean
benchmark --benchmark main
"""
CONFIG = """\
slides: {part_size: 20}
cohorts:
  clinic: {sheet: clinic/slides.csv, root: clinic, annotations: "clinic/truth/{slide_id}.geojson"}
tilings:
  default: {mpp: 0.5, size: 64, min_tissue: 0.3}
encoders:
  given: {weights: test_resnet@network.safetensors, input_size: 64}
  simclr:
    method: simclr
    train: {cohorts: [clinic], splits: [train]}
    backbone: test_resnet
    input_size: 32
    batch_size: 16
    steps: 2
tasks:
  tumor: {level: tile, label: tumor, cohorts: [clinic], split: {kind: cv, folds: 2}}
  her2: {level: patient, label: her2, cohorts: [clinic], split: {kind: cv, folds: 2}}
  relapse:
    level: patient
    kind: survival
    time: months
    event: relapse
    clinical: [tils]
    cohorts: [clinic]
    split: {kind: cv, folds: 2}
heads:
  mean: {kind: mean, epochs: 2}
benchmarks:
  main: {tasks: [tumor, her2], encoders: [given], heads: [mean], robustness: false}
  times: {tasks: [relapse], encoders: [given], heads: [mean], robustness: false}
"""
EVERY_HELP = """\
import typer
from stainssl.cli import app
root = typer.main.get_command(app)
def walk(command, words):
    root.main([*words, '--help'], standalone_mode=False)
    for name, inner in getattr(command, 'commands', {}).items():
        walk(inner, [*words, name])
        print('seen', *words, name)
walk(root, [])
"""
NEEDS = {
    "workflow": "run --config given.yaml -n",
    "train": "pretrain --encoder simclr",
    "view": "view --export shown --slide a-001-1",
    "survival": "benchmark --benchmark times",
    "demo": "robustness --weights efficientnet-lite0 --tiles tiles --out told",
    "tiatoolbox": "slide some.ome.tif",
}
"""Extra → a command that needs it, run in the folder of `study`."""


@pytest.fixture(scope="module")
def study(bare: Bare, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a cohort, processed from slides to a table without extras."""
    folder = tmp_path_factory.mktemp("study")
    make(folder / "clinic", 3, {"a": 4, "b": 4}, processes=1, side_px=512)
    torch.manual_seed(0)
    save_file(timm.create_model("test_resnet").state_dict(), folder / "network.safetensors")
    (folder / "config.yaml").write_text(CONFIG)
    config = yaml.safe_load(CONFIG)
    del config["encoders"]["simclr"], config["tasks"]["relapse"], config["benchmarks"]["times"]
    (folder / "given.yaml").write_text(yaml.safe_dump(config))
    white = np.full((512, 512, 3), 240, np.uint8)
    size = {"axes": "YXS", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
    tifffile.imwrite(
        folder / "some.ome.tif", white, ome=True, tile=(128, 128), photometric="rgb", metadata=size
    )
    (folder / "tiles/a").mkdir(parents=True)
    noise = np.random.default_rng(0).integers(80, 220, (24, 32, 32, 3), np.uint8)
    for number, tile in enumerate(noise):
        cv2.imwrite(str(folder / f"tiles/a/{number}.png"), tile)
    bare.verbs(WITHOUT_EXTRAS, cwd=folder)
    return folder


def require_openseadragon() -> None:
    """Skip the test if npm has not installed it."""
    try:
        page_files()
    except StainsslError as error:
        pytest.skip(str(error))


def test_a_table_is_made_from_slides_and_weights_without_extras(study: Path) -> None:
    table = (study / "results/benchmarks/main/table.csv").read_text()
    assert {"tumor", "her2"} <= set(table.replace("\n", ",").split(","))


def test_every_command_has_help_without_extras(bare: Bare, tmp_path: Path) -> None:
    done = bare.run("-c", EVERY_HELP, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    seen = {line for line in done.stdout.splitlines() if line.startswith("seen ")}
    assert {"seen cohort check", "seen pretrain", "seen run", "seen view"} <= seen


@pytest.mark.parametrize(("extra", "line"), NEEDS.items())
def test_a_command_without_its_extra_says_what_to_install(
    bare: Bare, study: Path, extra: str, line: str
) -> None:
    done = bare.run("-m", "stainssl", *line.split(), cwd=study)
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"pip install 'stainssl[{extra}]'" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("extra", "line"), NEEDS.items())
def test_an_extra_alone_suffices_for_its_command(
    wheel: Path, study: Path, tmp_path: Path, extra: str, line: str
) -> None:
    if extra == "view":
        require_openseadragon()
    folder = shutil.copytree(study, tmp_path / "study")
    Bare(tmp_path / "environment", wheel, (extra,)).verbs(line, cwd=folder)
