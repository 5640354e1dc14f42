"""Patients whose tile labels cannot be predicted linearly from simple features."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from stainssl.config import Config, parse
from stainssl.encoders.loading import new_backbone
from stainssl.encoders.saving import save_local_dir
from stainssl.stages import run_stage
from stainssl.stores.pixels import SlidePixels, encode, write_pixels
from stainssl.stores.tiles import write_labels
from tests.pretrain.world import slide_pixels

SIZE = 32
PATIENTS = {"train": 8, "val": 3, "test": 5}
STAIN = np.array([[0.65, 0.70, 0.29], [0.10, 0.95, 0.28]])  # H and E over R, G, B


def tile_image(odd: bool, rng: np.random.Generator) -> np.ndarray:
    """(32, 32, 3) uint8: two nuclei, of different size if and only if the label is 1.

    So no size alone predicts the label, and the stain varies from tile to tile.
    """
    first = bool(rng.integers(2))
    y, x = np.mgrid[:SIZE, :SIZE]
    angle, h = rng.uniform(0, 2 * np.pi), np.zeros((SIZE, SIZE))
    for offset, is_large in ((0, first), (np.pi, first != odd)):
        cy = 16 + 8 * np.sin(angle + offset) + rng.uniform(-2, 2)
        cx = 16 + 8 * np.cos(angle + offset) + rng.uniform(-2, 2)
        h = np.maximum(h, np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (16 if is_large else 4)))
    stain = STAIN * np.exp(0.3 * rng.standard_normal((2, 3)))
    e = rng.uniform(0.1, 0.7) + 0.03 * rng.standard_normal((SIZE, SIZE))
    density = np.stack([rng.uniform(0.6, 1.1) * h, np.clip(e, 0.05, None)], -1) @ stain
    return (255 * 10**-density).clip(0, 255).astype(np.uint8)


def save_network(folder: Path, name: str = "test_resnet", size: int = SIZE) -> str:
    """Save a network with random weights; returns its source as written in a config."""
    torch.manual_seed(1)
    model, args = new_backbone(name, size)
    save_local_dir(model, folder, backbone=name, input_size=size, mean=(0.7, 0.5, 0.6),
                   std=(0.2, 0.2, 0.2), model_args=args, card={})  # fmt: skip
    return f"local-dir:{folder}"


def config_of(folder: Path, fine_tune: dict[str, Any] | None = None, **task: Any) -> Config:
    """Config of that cohort: task `tuned` fine-tunes the network, `probed` does not."""
    own = {"level": "tile", "label": "odd", "cohorts": ["clinic"], "split": {"kind": "sheet"}}
    tuning = {"lr": 3e-3, "epochs": 12, "patience": 6, "batch_size": 32, **(fine_tune or {})}
    return parse({
        "results": str(folder / "results"),
        "slides": {"part_size": 100},
        "cohorts": {"clinic": {"sheet": str(folder / "slides.csv"), "root": str(folder),
                               "annotations": "{slide_id}.geojson"}},
        "tilings": {"default": {"size": SIZE}},
        "encoders": {"net": {"weights": f"local-dir:{folder / 'net'}"}},
        "tasks": {"tuned": {**own, "protocol": "fine-tune", "fine_tune": tuning, **task},
                  "probed": own},
        "benchmarks": {"main": {"tasks": ["probed", "tuned"], "encoders": ["net"],
                                "robustness": False}},
    })  # fmt: skip


def sheet_of(patients: dict[str, int]) -> pd.DataFrame:
    """A slide per patient, with its split in the name."""
    return pd.DataFrame([
        {"slide_id": f"{split}{i}-s", "patient_id": f"{split}{i}", "path": "none.svs",
         "site": "ab"[i % 2], "split": split}
        for split, count in patients.items() for i in range(count)
    ])  # fmt: skip


def write_slides(
    config: Config, rows: pd.DataFrame, tiles: int, rng: np.random.Generator, with_stain: bool
) -> None:
    """Write pixels and labels of the slides of one split; each slide has one unknown label."""
    paths, part = config.paths, ("clinic", f"{rows['split'].iloc[0]}-0000")
    pixels, labels, number = [], [], np.arange(tiles, dtype=np.int32)
    for slide in rows["slide_id"]:
        odd = rng.random(tiles) < 0.5
        images = np.stack([tile_image(bool(label), rng) for label in odd])
        plain = SlidePixels(slide, number, [encode(image) for image in images])
        pixels.append(slide_pixels(slide, images) if with_stain else plain)
        known = np.where(number == 1, np.nan, odd.astype(np.float32))
        labels.append(pd.DataFrame({"slide_id": slide, "tile": number, "odd": known}))
    write_pixels(paths.pixels(*part), pixels, size_px=SIZE, mpp=0.5, settings={})
    write_labels(paths.labels(*part), pd.concat(labels), {})


def build(
    folder: Path, tiles: int = 40, network: str = "test_resnet", with_stain: bool = False
) -> Config:
    """Write sheet, pixels, labels and network, and draw the folds.

    Args:
        tiles: number of tiles per slide.
        with_stain: whether pixels have stain profiles.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sheet, rng = sheet_of(PATIENTS), np.random.default_rng(0)
    sheet.to_csv(folder / "slides.csv", index=False)
    save_network(folder / "net", network)
    config = config_of(folder)
    for _, rows in sheet.groupby("split", sort=False):
        write_slides(config, rows, tiles, rng, with_stain)
    for task in config.tasks:
        run_stage("folds", config, task)
    return config
