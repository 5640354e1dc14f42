"""A small cohort processed up to trained tasks; fixtures build it once per session."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pandas as pd
import torch

from stainssl.config import Config, parse
from stainssl.demo import make
from stainssl.encoders.loading import new_backbone
from stainssl.encoders.saving import save_local_dir
from stainssl.stages import run_stage

SIDE_PX = 512


@dataclasses.dataclass(frozen=True)
class Trained:
    """The folder of slides, their sheet with labels, and the config of the results."""

    root: Path
    sheet: pd.DataFrame
    config: Config

    def rows(self, *slides: str) -> pd.DataFrame:
        """Rows of these slides as in a sheet of new slides, without labels."""
        columns = ["slide_id", "patient_id", "path"]
        return self.sheet.loc[self.sheet["slide_id"].isin(slides), columns]


def save_encoder(path: Path, name: str = "test_resnet") -> Path:
    """A timm `local-dir` folder with random weights."""
    torch.manual_seed(0)
    model, args = new_backbone(name, 64)
    save_local_dir(model, path, backbone=name, input_size=64, mean=(0.7, 0.5, 0.6),
                   std=(0.2, 0.2, 0.2), model_args=args, card={})  # fmt: skip
    return path


def build(folder: Path) -> Trained:
    """Slides of eight patients: tiled, embedded with random weights; folds drawn, heads trained."""
    make(folder / "clinic", 3, {"a": 4, "b": 4}, processes=1, side_px=SIDE_PX)
    sheet = pd.read_csv(folder / "clinic" / "slides.csv", dtype=str)
    split = {"kind": "cv", "folds": 2, "repeats": 2}
    config = parse({
        "results": str(folder / "results"),
        "slides": {"part_size": 6},
        "cohorts": {"clinic": {"sheet": str(folder / "clinic" / "slides.csv"),
                               "root": str(folder / "clinic"),
                               "annotations": str(folder / "clinic/truth/{slide_id}.geojson")}},
        "tilings": {"default": {"mpp": 0.5, "size": 64, "min_tissue": 0.3}},
        "encoders": {"enc": {"weights": f"local-dir:{save_encoder(folder / 'enc' / 'model')}"}},
        "tasks": {level: {"level": level, "label": "her2", "cohorts": ["clinic"], "split": split}
                  for level in ("patient", "slide")},
        "heads": {"abmil": {"kind": "abmil", "epochs": 4, "hidden": 8}},
    })  # fmt: skip
    for part in _parts(config):
        run_stage("tile", config, "clinic", part)
        run_stage("pixels", config, "clinic", part)
        run_stage("embed", config, "clinic", "enc", part)
    for task in config.tasks:
        run_stage("folds", config, task)
        run_stage("mil", config, task, "enc", "abmil")
    return Trained(folder / "clinic", sheet, config)


def _parts(config: Config) -> list[str]:
    from stainssl.cohort import parts

    return list(parts(config, "clinic"))
