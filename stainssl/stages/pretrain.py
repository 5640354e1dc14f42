"""`pretrain`: pixels and stain target → a model, its figures, and the patients it has seen."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import nn

from stainssl.cohort import read_sheet, train_parts
from stainssl.config import Config, Encoder, Run
from stainssl.encoders import new_backbone, save_local_dir, vector_length
from stainssl.figures.pretrain import curves
from stainssl.paths import Paths
from stainssl.pretrain.data import TrainTiles
from stainssl.pretrain.methods import METHODS, Recipe, Stain
from stainssl.pretrain.train import (
    METRICS,
    Contrastive,
    Preprocessing,
    Settings,
    fingerprint,
    fit,
)
from stainssl.stain import StainProfile
from stainssl.stain import targets as stain_targets
from stainssl.status import StainsslError
from stainssl.stores.atomic import replacing, write_text
from stainssl.stores.pixels import Pixels, open_pixels

log = logging.getLogger(__name__)
SEEN = ("patient_id", "cohort", "slides", "tiles")


@dataclass(frozen=True)
class Cohorts:
    """The training parts: their stores, and the sheet's row of every slide in them.

    Attributes:
        stores: a store a part.
        slides: a row per slide that has tiles, in the stores' order: `store`, `slide_id`,
            `patient_id`, `cohort`, `site`, `tiles`.
    """

    stores: list[Pixels]
    slides: pd.DataFrame

    def of_tiles(self, column: str) -> npt.NDArray[Any]:
        """A column of `slides`, a value per tile."""
        return np.repeat(self.slides[column].to_numpy(object), self.slides["tiles"].to_numpy(int))


def run(config: Config, encoder: str) -> None:
    """Train one encoder under one seed, or write its random weights.

    Raises:
        StainsslError: an input is missing, too few tiles, or training failed; see
            `stainssl.pretrain.train.fit`.
    """
    wanted, paths = config.run(encoder), Paths(config.results)
    if wanted.encoder.method is None:
        raise StainsslError(f"{encoder} has `weights`: there is nothing to train.")
    torch.manual_seed(wanted.seed)  # the backbone's weights are the same under every method
    size = wanted.encoder.input_size or config.tilings[wanted.encoder.tiling].size
    backbone, model_args = new_backbone(wanted.encoder.backbone, size)
    if METHODS[wanted.encoder.method].trains:
        seen, metrics = _train(config, wanted, backbone, size)
    else:
        seen, metrics = pd.DataFrame(columns=list(SEEN)), pd.DataFrame(columns=list(METRICS))
    preprocessing = _preprocessing(backbone)
    save_local_dir(
        backbone, paths.model(encoder), backbone=wanted.encoder.backbone, input_size=size,
        mean=preprocessing.mean, std=preprocessing.std, model_args=model_args,
        card=_card(config, wanted, seen),
    )  # fmt: skip
    _write_csv(paths.seen(encoder), seen)
    _write_csv(paths.metrics(encoder), metrics)
    with replacing(paths.curves(encoder)) as made:
        curves({encoder: metrics}).savefig(made)


def _preprocessing(backbone: nn.Module) -> Preprocessing:
    found: Any = backbone.pretrained_cfg
    return Preprocessing(tuple(found["mean"]), tuple(found["std"]))


def _train(
    config: Config, run: Run, backbone: nn.Module, size: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Train `backbone` in place; returns who was seen, and the figures."""
    encoder, paths = run.encoder, Paths(config.results)
    cohorts = _open(config, encoder)
    tiles = TrainTiles(cohorts.stores, workers=torch.get_num_threads())
    batch_size = _batch_size(encoder.batch_size, len(tiles))
    settings = _settings(encoder, len(tiles) // batch_size)
    method_class = METHODS[encoder.method or ""]
    recipe = Recipe(size, encoder.colour, run.seed)
    target = paths.target(run.name)
    stain = _stain(cohorts, encoder, target) if method_class.needs_stain else None
    mark = fingerprint(_identity(run, size, cohorts, target if stain else None))
    torch.manual_seed(run.seed)  # as is the projector's
    module = Contrastive(
        backbone,
        vector_length(backbone, size),
        method_class(recipe, stain),
        _preprocessing(backbone),
        settings,
    )
    log.info(
        "%s: %s on %d tiles of %d slides, %d px, %d steps of %d tiles", run.name, encoder.backbone,
        len(tiles), len(cohorts.slides), size, settings.steps, batch_size,
    )  # fmt: skip
    metrics = fit(
        module, tiles, settings, batch_size=batch_size, seed=run.seed,
        checkpoints=paths.checkpoints(run.name), mark=mark,
    )  # fmt: skip
    return _seen(cohorts.slides), metrics


def _open(config: Config, encoder: Encoder) -> Cohorts:
    """Open the pixels of the training parts."""
    paths = Paths(config.results)
    stores: list[Pixels] = []
    frames: list[pd.DataFrame] = []
    for cohort, part in train_parts(config, encoder):
        store = open_pixels(paths.pixels(cohort, config.cohorts[cohort].tiling, part))
        rows = read_sheet(config, cohort).set_index("slide_id").loc[store.slide_id]
        counts = np.bincount(store.slide, minlength=len(store.slide_id))
        frames.append(
            rows[["patient_id", "site"]].reset_index().assign(
                cohort=cohort, store=len(stores), tiles=counts
            )
        )  # fmt: skip
        stores.append(store)
    return Cohorts(stores, pd.concat(frames, ignore_index=True))


def _batch_size(wanted: int, tiles: int) -> int:
    if wanted > tiles:
        log.warning(
            "batch_size %d is more than the %d training tiles: using %d", wanted, tiles, tiles
        )
    return min(wanted, tiles)


def _settings(encoder: Encoder, steps_per_epoch: int) -> Settings:
    steps = encoder.epochs * steps_per_epoch
    return Settings(
        steps=min(steps, encoder.steps or steps),
        lr=encoder.lr,
        weight_decay=encoder.weight_decay,
        temperature=encoder.temperature,
    )


def _stain(cohorts: Cohorts, encoder: Encoder, target: Path) -> Stain:
    """Profiles of all training tiles, an invalid one replaced by its slide's, and the target."""
    method = encoder.normalizer
    profiles = StainProfile.cat([_profiles(store, method) for store in cohorts.stores])
    if not bool(profiles.valid.any()):
        raise StainsslError(
            f"None of the {len(profiles)} training tiles has a valid {method} profile: are they "
            "H&E? Try normalizer: reinhard, or look at the previews of the tiles."
        )
    if not target.exists():
        raise StainsslError(f"{target} is missing: run `stainssl target` first.")
    try:
        policy = stain_targets.load(target)
    except ValueError as error:
        raise StainsslError(str(error)) from error
    return Stain(profiles, cohorts.of_tiles("site").tolist(), policy, encoder.views)


def _profiles(store: Pixels, method: str) -> StainProfile:
    """A profile per tile of a store."""
    of_tiles, of_slides = store.profile(method), store.pooled(method)
    if not of_tiles or not of_slides:
        if not len(store):
            return StainProfile.reference(method).batched()[:0]
        raise StainsslError(
            f"The pixels of the training parts hold no {method} profiles (found: "
            f"{', '.join(store.profile_methods()) or 'none'}). Make the pixels again."
        )
    pooled = StainProfile.from_arrays(method, of_slides)[torch.from_numpy(store.slide).long()]
    return StainProfile.from_arrays(method, of_tiles).where_valid(pooled)


def _identity(run: Run, size: int, cohorts: Cohorts, target: Path | None) -> Mapping[str, Any]:
    """All that decides a run's weights."""
    return {
        "encoder": run.encoder.model_dump(mode="json", exclude={"seeds", "frozen"}),
        "seed": run.seed,
        "input_size": size,
        "slides": cohorts.slides[["slide_id", "tiles"]].values.tolist(),
        "target": target.read_text(encoding="utf-8") if target else None,
        "torch": torch.__version__,
    }


def _seen(slides: pd.DataFrame) -> pd.DataFrame:
    """A row per patient whose tiles may have been seen."""
    groups = slides.groupby(["patient_id", "cohort"], sort=True)
    return groups.agg(slides=("slide_id", "nunique"), tiles=("tiles", "sum")).reset_index()[
        list(SEEN)
    ]


def _card(config: Config, run: Run, seen: pd.DataFrame) -> dict[str, Any]:
    encoder, tiling = run.encoder, config.tilings[run.encoder.tiling]
    card: dict[str, Any] = {"method": encoder.method, "seed": run.seed}
    if encoder.train is None or seen.empty:
        return card | {"training": "none: random weights"}
    card |= {
        "cohorts": ", ".join(encoder.train.cohorts),
        "splits": ", ".join(encoder.train.splits),
        "tiles": f"{int(seen['tiles'].sum())} of {tiling.size} px at {tiling.mpp:g} µm/px",
        "slides": int(seen["slides"].sum()),
        "patients seen": f"{len(seen)}: {', '.join(seen['patient_id'])}",
        "colour jitter": encoder.colour,
        "budget": f"{encoder.epochs} epochs, at most {encoder.steps or 'all'} steps, "
        f"batches of {encoder.batch_size}, lr {encoder.lr:g}, temperature {encoder.temperature:g}",
    }
    if encoder.needs_target:
        card["stain target"] = f"{encoder.target.policy} per {encoder.target.per}"
        card["normaliser"] = f"{encoder.normalizer}, views: {encoder.views}"
    return card


def _write_csv(path: Path, frame: pd.DataFrame) -> None:
    write_text(path, frame.to_csv(index=False))
