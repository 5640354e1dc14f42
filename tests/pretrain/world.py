"""A small synthetic cohort of four slides with two stains, up to its pixel stores."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from stainssl.config import Config, parse
from stainssl.pretrain.data import Batch, TrainTiles
from stainssl.pretrain.methods import SimClr
from stainssl.stain import StainProfile, estimate
from stainssl.stores.pixels import SlidePixels, encode, open_pixels, write_pixels
from stainssl.stores.tiles import write_tiles
from tests.stain.synthetic import tile

SIZE = 48
STAINS = {
    "a": np.array([[0.65, 0.70, 0.29], [0.10, 0.95, 0.28]]),
    "b": np.array([[0.52, 0.75, 0.40], [0.27, 0.80, 0.53]]),
}
BACKBONE = "test_resnet"


def images(count: int, site: str, seed: int = 0) -> np.ndarray:
    """(count, SIZE, SIZE, 3) uint8 tiles of a site."""
    rng = np.random.default_rng(seed)
    return np.stack([tile(rng, STAINS[site], quality=None, size=SIZE) for _ in range(count)])


def profiles(tiles: np.ndarray, method: str = "macenko") -> StainProfile:
    """Stain profiles of (N, H, W, 3) uint8 tiles."""
    return estimate(torch.from_numpy(tiles).permute(0, 3, 1, 2), method)


def slide_pixels(slide_id: str, tiles: np.ndarray) -> SlidePixels:
    """Encoded tiles of a slide, with their stain profiles."""
    found = {method: profiles(tiles, method) for method in ("macenko", "reinhard")}
    return SlidePixels(
        slide_id,
        np.arange(len(tiles), dtype=np.int32),
        [encode(image) for image in tiles],
        {method: profile.to_arrays() for method, profile in found.items()},
        {method: profile.pooled().to_arrays() for method, profile in found.items()},
    )


def tile_table(slide_id: str, count: int) -> pd.DataFrame:
    """Tile table of a slide whose tiles lie in a row."""
    number = np.arange(count)
    known = {"tissue": 1.0, "sharpness": 1.0, "pen": 0.0, "saturation": 0.5, "od": 0.5}
    columns = {"slide_id": slide_id, "tile": number, "x": number * SIZE, "y": 7, "side": SIZE}
    return pd.DataFrame({**columns, **known, "kept": True, "reason": ""})


def write_part(path: Path, slides: dict[str, np.ndarray]) -> None:
    """Write the pixel store of a part."""
    made = (slide_pixels(slide_id, tiles) for slide_id, tiles in slides.items())
    write_pixels(path, made, size_px=SIZE, mpp=0.5, settings={})


def _sheet(slides: dict[str, np.ndarray]) -> Iterator[dict[str, str]]:
    for number, slide_id in enumerate(slides):
        patient = f"p{max(number, 1)}"  # the first two slides are of one patient
        yield {"slide_id": slide_id, "patient_id": patient, "path": "none.svs",
               "site": slide_id[0], "split": "train"}  # fmt: skip


def cohort(folder: Path, counts: tuple[int, ...] = (12, 11, 10, 9), **recipe: object) -> Config:
    """Write the sheet, tiles and pixels of a training part, and return the config.

    Args:
        folder: of all files.
        counts: tiles of each slide; sites alternate.
        recipe: keys of the encoders `si` and `simclr`.
    """
    sites = ["ab"[number % 2] for number in range(len(counts))]
    slides = {
        f"{site}{number}": images(count, site, number)
        for number, (site, count) in enumerate(zip(sites, counts, strict=True))
    }
    folder.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(_sheet(slides)).to_csv(folder / "slides.csv", index=False)
    keys = {"backbone": BACKBONE, "input_size": 32, "batch_size": 8, "epochs": 2}
    keys |= {"train": {"cohorts": ["small"]}, **recipe}
    config = parse(
        {
            "results": str(folder / "results"),
            "slides": {"part_size": 100},
            "cohorts": {"small": {"sheet": str(folder / "slides.csv"), "root": str(folder)}},
            "tilings": {"default": {"size": SIZE}},
            "encoders": {
                "si": {"method": "stain-invariant", **keys},
                "simclr": {"method": "simclr", **keys},
                "random": {"method": "random", "backbone": BACKBONE, "input_size": 32},
            },
        }
    )
    paths = config.paths
    write_part(paths.pixels("small", "train-0000"), slides)
    tables = [tile_table(slide_id, len(tiles)) for slide_id, tiles in slides.items()]
    write_tiles(paths.tiles("small", "train-0000"), pd.concat(tables), {})
    return config


def tiles_of_two_sites(folder: Path) -> TrainTiles:
    """13 tiles of a slide of site a and 12 of a slide of site b."""
    write_part(folder / "part.zarr", {"a0": images(13, "a", 0), "b0": images(12, "b", 1)})
    return TrainTiles([open_pixels(folder / "part.zarr")])


class Stopped(Exception):
    """Simulates that the job is killed."""


class Interrupted(SimClr):
    """SimCLR that raises `Stopped` at a step."""

    stop_at = -1

    def views(self, batch: Batch, step: int) -> tuple[Tensor, Tensor]:
        if step == self.stop_at:
            raise Stopped
        return super().views(batch, step)
