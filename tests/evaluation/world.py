"""A small results folder as the earlier stages leave it: sheets, labels, pixels, embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from stainssl.config import Config, parse
from stainssl.paths import Paths
from stainssl.stores.embeddings import write_embeddings
from stainssl.stores.pixels import SlidePixels, encode, write_pixels
from stainssl.stores.tiles import write_labels

SIZE = 32
STAINS = {  # H and E as optical density over R, G, B
    "a": [[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]],
    "b": [[0.50, 0.75, 0.43], [0.25, 0.90, 0.35]],
    "c": [[0.72, 0.62, 0.31], [0.15, 0.95, 0.27]],
}


def tile_image(site: str, tumor: bool, rng: np.random.Generator) -> np.ndarray:
    """(32, 32, 3) uint8: many small nuclei if tumor, else few large ones.

    Both have the same amount of hematoxylin, in the stain colors of the site.
    """
    h = np.zeros((SIZE, SIZE))
    y, x = np.mgrid[:SIZE, :SIZE]
    for _ in range(16 if tumor else 4):
        cy, cx = rng.uniform(0, SIZE, 2)
        h = np.maximum(h, np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (5 if tumor else 20)))
    h *= rng.uniform(0.1, 0.2) / h.mean()
    e = 0.4 + 0.03 * rng.standard_normal((SIZE, SIZE))
    density = np.stack([h, np.clip(e, 0.05, None)], -1) @ np.array(STAINS[site])
    return (255 * 10**-density).clip(0, 255).astype(np.uint8)


class ColorEncoder:
    """Embeds color only: the mean of each channel."""

    dim, input_size = 3, SIZE

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return images.float().flatten(2).mean(-1)


class MorphologyEncoder:
    """Embeds texture only: dark area and edges of the standardised red channel."""

    dim, input_size = 6, SIZE

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        red = images[:, 0].float()
        red = (red - red.mean((1, 2), keepdim=True)) / red.std((1, 2), keepdim=True)
        dark = torch.stack([(red < t).float().mean((1, 2)) for t in (-1.5, -1, -0.5, 0)], 1)
        edges = torch.stack([red.diff(dim=d).abs().mean((1, 2)) for d in (1, 2)], 1)
        return torch.cat([dark, edges], 1)


@dataclass
class World:
    """A cohort of 14 patients at 3 sites (c: test split), the tile task `tumor`, two encoders."""

    config: Config
    paths: Paths
    sheet: pd.DataFrame

    def write_embeddings(self, name: str, encoder) -> None:
        """Embed the pixels of every part."""
        from stainssl.stores.pixels import open_pixels

        for part in ("train-0000", "test-0000"):
            store = open_pixels(self.paths.pixels("clinic", part))
            images = torch.from_numpy(store.images(np.arange(len(store)))).permute(0, 3, 1, 2)
            vectors = encoder(images).numpy().astype(np.float16)
            vectors[0] = np.nan  # a tile that could not be read
            write_embeddings(
                self.paths.embeddings("clinic", name, part),
                slide_id=store.slide_id,
                counts=np.bincount(store.slide).tolist(),
                dim=vectors.shape[1],
                blocks=[vectors],
                tile=store.tile,
                x=np.zeros(len(store), np.int64),
                y=np.zeros(len(store), np.int64),
                settings={},
            )


def sheet_of(patients: dict[str, int]) -> pd.DataFrame:
    """A sheet with one slide per patient; the label `her2` alternates; site c is the test split."""
    rows = [
        {
            "slide_id": f"{site}{i}-s",
            "patient_id": f"{site}{i}",
            "path": f"{site}{i}.svs",
            "site": site,
            "split": "test" if site == "c" else "train",
            "her2": str(i % 2),
        }
        for site, count in patients.items()
        for i in range(count)
    ]
    return pd.DataFrame(rows)


def make_config(folder: Path, sheet: pd.DataFrame, **task: object) -> Config:
    """A config in which the cohort `clinic` has this sheet."""
    sheet.to_csv(folder / "slides.csv", index=False)
    tumor = {"level": "tile", "label": "tumor", "cohorts": ["clinic"], "split": {"kind": "sheet"}}
    her2 = {"level": "patient", "label": "her2", "cohorts": ["clinic"], "split": {"folds": 2}}
    return parse(
        {
            "results": str(folder / "results"),
            "slides": {"part_size": 100},
            "cohorts": {
                "clinic": {
                    "sheet": str(folder / "slides.csv"),
                    "root": str(folder),
                    "annotations": "{slide_id}.geojson",
                }
            },
            "encoders": {
                "color": {"method": "random", "backbone": "resnet10t"},
                "morphology": {"method": "random", "backbone": "resnet10t"},
            },
            "tasks": {"tumor": tumor | task, "her2": her2},
            "heads": {"mean": {"kind": "mean"}},
            "benchmarks": {
                "main": {
                    "tasks": ["tumor", "her2"],
                    "encoders": ["color", "morphology"],
                    "heads": ["mean"],
                }
            },
        }
    )


def build(folder: Path, tiles: int = 16) -> World:
    """Write all files; tumor is most frequent at site a, so that color is a shortcut."""
    rng = np.random.default_rng(0)
    sheet = sheet_of({"a": 5, "b": 5, "c": 4})
    config = make_config(folder, sheet)
    world = World(config, config.paths, sheet)
    share = {"a": 0.8, "b": 0.2, "c": 0.5}
    for split, rows in sheet.groupby("split"):
        part = f"{split}-0000"
        slides, labels = [], []
        for row in rows.itertuples():
            tumor = rng.random(tiles) < share[row.site]
            images = [tile_image(row.site, t, rng) for t in tumor]
            index = np.arange(tiles, dtype=np.int32)
            slides.append(SlidePixels(row.slide_id, index, [encode(i) for i in images]))
            known = np.where(index == 1, np.nan, tumor.astype(np.float32))
            labels.append(pd.DataFrame({"slide_id": row.slide_id, "tile": index, "tumor": known}))
        write_pixels(
            world.paths.pixels("clinic", part),
            slides,
            size_px=SIZE,
            mpp=0.5,
            settings={},
        )
        write_labels(world.paths.labels("clinic", part), pd.concat(labels), {})
    world.write_embeddings("color", ColorEncoder())
    world.write_embeddings("morphology", MorphologyEncoder())
    return world
