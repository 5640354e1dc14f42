"""A tile re-stained with other stains, and the cosine of its embeddings to the original's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from stainssl.cohort import parts, stored_pixels
from stainssl.encoders.loading import LoadedEncoder
from stainssl.errors import StainsslError
from stainssl.plan.encoders import Source, source_of
from stainssl.runtime.devices import reserve_device
from stainssl.stages.embed import load_source
from stainssl.stain import METHODS, StainProfile, estimate, normalize
from stainssl.stain.targets import profile_from_json
from stainssl.stores.pixels import open_pixels
from stainssl.view.handles import LRUCache
from stainssl.view.neighbors import Neighbors, unit
from stainssl.view.records import Json, Records, read_json, versions

METHOD = "macenko"  # of the sites' mean stains
MAX_CANDIDATES = 3  # shown per target
MAX_ENCODERS = 2  # kept in memory
ORIGINAL = "original"
Tile = Callable[[str, str, int], np.ndarray]


@dataclass(frozen=True)
class Stain:
    """Stain with which tiles can be shown.

    Attributes:
        name: identifier in URLs.
        group: `site`, `normalizer` or `target`.
        title: name shown to the user.
        profile: a single valid profile.
    """

    name: str
    group: str
    title: str
    profile: StainProfile


class RestainedTiles:
    """Tiles under each site's mean stain, each normalizer and each encoder's targets.

    Args:
        records: cohorts from whose stored pixels mean stains are computed.
        neighbors: gives the median cosine to other tiles.
        tile: returns the pixels of a tile, (H, W, 3) uint8 RGB, from cohort, slide and number.
    """

    def __init__(self, records: Records, neighbors: Neighbors, tile: Tile) -> None:
        self._records, self._neighbors, self._tile = records, neighbors, tile
        self._stains: LRUCache[list[Stain]] = LRUCache(8, lambda _: 1)
        self._loaded: LRUCache[LoadedEncoder] = LRUCache(MAX_ENCODERS, lambda _: 1)
        self._lock = Lock()  # one network at a time, for memory; torch has its own threads

    def of(self, cohort: str, slide: str, tile: int) -> Json:
        """Return the stains for a tile, and each encoder's cosines to the original tile.

        Raises:
            KeyError: the slide has no such tile.
            StainsslError: no pixels are stored, so that mean stains are unknown.
            StainsslError, SlideError, OSError: the tile cannot be read.
        """
        stains = self.stains(cohort)
        image = _batch(self._tile(cohort, slide, tile))
        shown = [image, *(restain(image, stain.profile) for stain in stains)]
        return {
            "stains": [{"name": s.name, "group": s.group, "title": s.title} for s in stains],
            "told": {m: bool(estimate(image, m).valid[0]) for m in METHODS},
            "encoders": [
                self._cosines(name, source, torch.cat(shown))
                for name, source in self._sources(cohort)
            ],
        }

    def picture(self, cohort: str, slide: str, tile: int, name: str) -> np.ndarray:
        """Return a re-stained tile, (H, W, 3) uint8 RGB.

        Raises:
            KeyError: unknown tile or stain.
            StainsslError, SlideError, OSError: as `of`.
        """
        return self.under(cohort, self._tile(cohort, slide, tile), name)

    def under(self, cohort: str, image: np.ndarray, name: str) -> np.ndarray:
        """Re-stain an image of a cohort, (H, W, 3) uint8 RGB; `original` returns it unchanged.

        Raises:
            KeyError: unknown stain.
            StainsslError: no pixels are stored, so that mean stains are unknown.
        """
        if name == ORIGINAL:
            return image
        profile = {stain.name: stain.profile for stain in self.stains(cohort)}[name]
        return restain(_batch(image), profile)[0].permute(1, 2, 0).contiguous().numpy()

    def stains(self, cohort: str) -> list[Stain]:
        """Return the stains with which a cohort's tiles can be shown.

        Raises:
            StainsslError: no cohort with the same tiling has stored pixels.
        """
        tiling = self._records.tiling(cohort)
        stores = list(self._stores(tiling))
        if not stores:
            raise StainsslError("No pixels are stored, so site stains are unknown.")
        targets = list(self._targets())
        paths = [*(path for path, _ in stores), *(path for _, path in targets)]
        stamp = tiling, versions(paths)

        def made() -> list[Stain]:
            return [*_of_stores(stores), *(s for name, p in targets for s in _of_target(name, p))]

        return self._stains.get(stamp, made)

    def _stores(self, tiling: str) -> Iterator[tuple[Path, pd.DataFrame]]:
        for name in self._records.readable():
            if self._records.tiling(name) != tiling:
                continue
            for part, sheet in parts(self._records.config, name).items():
                if path := stored_pixels(self._records.config, name, part):
                    yield path, sheet

    def _targets(self) -> Iterator[tuple[str, Path]]:
        for run in self._records.config.runs():
            path = self._records.paths.target(run.name)
            if path.exists():
                yield run.name, path

    def _sources(self, cohort: str) -> Iterator[tuple[str, Source]]:
        """Encoders whose weights are on this machine: the viewer downloads nothing."""
        tiling = self._records.tiling(cohort)
        for run in self._records.config.runs():
            model = self._records.paths.model(run.name)
            given = run.encoder.weights or ""
            if run.encoder.tiling != tiling or not run.encoder.sees_tiles:
                continue
            if given.startswith("local-dir:") or (not given and model.is_dir()):
                yield run.name, source_of(self._records.config, run.name)

    def _cosines(self, name: str, source: Source, images: Tensor) -> Json:
        try:
            with self._lock:
                loaded = self._loaded.get(source, lambda: load_source(source, reserve_device()))
                vectors = unit(loaded(images).cpu().numpy())
        except StainsslError as error:
            return {"name": name, "problem": str(error)}
        cosine = (vectors[1:] @ vectors[0]).astype(float)
        return {
            "name": name,
            "cosine": [float(f"{c:.4g}") for c in cosine],
            "other": self._neighbors.median_cosine(name, vectors[0]),
        }


def _batch(image: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]


def restain(images: Tensor, profile: StainProfile) -> Tensor:
    """Re-stain images (B, 3, H, W) uint8 RGB to a profile, as in pretraining.

    An image without a valid profile is assumed to have the target stain already.
    """
    own = estimate(images, profile.method).where_valid(profile)
    return normalize(images, own, profile)


def _of_stores(stores: list[tuple[Path, pd.DataFrame]]) -> list[Stain]:
    """Mean stain of each site by `METHOD`, and of all slides by each normalizer."""
    fields: dict[str, list[dict[str, Any]]] = {method: [] for method in METHODS}
    sites: dict[str, list[np.ndarray]] = {method: [] for method in METHODS}
    for path, sheet in stores:
        pixels = open_pixels(path)
        site = sheet.set_index("slide_id")["site"].reindex(pixels.slide_id).fillna("")
        for method in METHODS:
            if pooled := pixels.pooled(method):
                fields[method].append(pooled)
                sites[method].append(site.to_numpy(object))
    joined = {m: (_joined(f), np.concatenate(sites[m])) for m, f in fields.items() if f}
    return [*_of_sites(joined), *_of_methods(joined)]


def _joined(fields: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([one[name] for one in fields]) for name in fields[0]}


def _mean(method: str, fields: dict[str, np.ndarray], rows: np.ndarray) -> StainProfile:
    return StainProfile.from_arrays(method, {k: v[rows] for k, v in fields.items()}).pooled()


def _of_sites(joined: dict[str, tuple[dict[str, np.ndarray], np.ndarray]]) -> Iterator[Stain]:
    if METHOD not in joined:
        return
    fields, sites = joined[METHOD]
    for number, site in enumerate(sorted(set(sites))):
        profile = _mean(METHOD, fields, sites == site)
        if bool(profile.valid):
            yield Stain(f"site-{number}", "site", site or "not given", profile)


def _of_methods(joined: dict[str, tuple[dict[str, np.ndarray], np.ndarray]]) -> Iterator[Stain]:
    for method, (fields, sites) in joined.items():
        profile = _mean(method, fields, np.ones(len(sites), bool))
        if bool(profile.valid):
            yield Stain(f"normalizer-{method}", "normalizer", method, profile)


def _of_target(encoder: str, path: Path) -> Iterator[Stain]:
    """The candidates of an encoder's target; the fallback if it is drawn from batches."""
    data = read_json(path)
    found = [c["profile"] for c in data.get("candidates", [])][:MAX_CANDIDATES]
    for number, profile in enumerate(found or [data["fallback"]]):
        title = f"{encoder}, candidate {number + 1}" if found else f"{encoder}, mean of its batches"
        yield Stain(f"target-{encoder}-{number}", "target", title, profile_from_json(profile))
