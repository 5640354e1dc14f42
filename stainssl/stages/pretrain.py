"""`pretrain`: train an encoder on stored tiles, or write its random weights."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from stainssl.config import Encoder, FineTune
from stainssl.encoders.adapters import Base
from stainssl.encoders.blocks import adaptable, last_blocks
from stainssl.encoders.initial import Backbone, backbone_of, seen_too
from stainssl.encoders.loading import vector_length
from stainssl.encoders.saving import save_adapter, save_local_dir
from stainssl.encoders.weights import read_source
from stainssl.errors import StainsslError
from stainssl.figures.pretrain import curves
from stainssl.plan.encoders import PretrainJob
from stainssl.plan.retraining import write_trained_on
from stainssl.pretrain import tile_metadata
from stainssl.pretrain.data import TrainTiles
from stainssl.pretrain.distributed import is_main, placement
from stainssl.pretrain.lora import adapt
from stainssl.pretrain.methods import (
    PRETRAINING_METHODS,
    HedJitter,
    NormalizerState,
    RandStainNA,
    StainJitter,
    StainMix,
    StainTargets,
    TileNormalizer,
    ViewSettings,
)
from stainssl.pretrain.monitoring import METRICS, Row, TensorBoardLogger, TileMetadata
from stainssl.pretrain.objectives import OBJECTIVES
from stainssl.pretrain.train import (
    Learner,
    Preprocessing,
    Supervision,
    TrainSettings,
    fingerprint,
    fit,
)
from stainssl.pretrain.tuning import DistillationLoss, freeze_all_but
from stainssl.pretrain.views import ViewGeometry
from stainssl.runtime.devices import reserve_gpus
from stainssl.stain import StainProfile
from stainssl.stain import targets as stain_targets
from stainssl.stores.atomic import replacing, write_text
from stainssl.stores.pixels import Pixels, open_pixels
from stainssl.stores.tiles import read_labels

log = logging.getLogger(__name__)
SEEN = ("patient_id", "cohort", "slides", "tiles")


# Default strengths: HED-strong of Tellez et al. 2018; the unscaled spread (Shen et al. 2022); the
# value of Chang et al. 2021.
JITTER_STRENGTH = {"hed": 0.2, "randstainna": 1.0, "mix": 0.2}


@dataclass(frozen=True)
class Cohorts:
    """Stored tiles of the training parts, with the sheet's rows of their slides.

    Attributes:
        stores: one store per part.
        labels: one file of tile labels per part; empty if the encoder has no label.
        slides: one row per stored slide, in the order of the stores: `store` (index), `slide_id`,
            `patient_id`, `cohort`, `site`, `tiles` (number).
    """

    stores: list[Pixels]
    labels: list[Path]
    slides: pd.DataFrame


@dataclass(frozen=True)
class Trained:
    """Results of a training other than the weights.

    Attributes:
        seen: patients whose tiles were used for training, with the columns `SEEN`.
        metrics: one row per epoch, with the columns `METRICS`.
        tile_normalizer: normalization of tiles before the network, if the encoder has `preprocess`.
    """

    seen: pd.DataFrame
    metrics: pd.DataFrame
    tile_normalizer: TileNormalizer | None = None


def run(job: PretrainJob, gpus: int = 0) -> None:
    """Train one encoder with one seed, or write its random weights.

    Writes the model's folder, the metrics, the training curves and the patients seen.

    Args:
        job: the job.
        gpus: number of visible GPUs to train on; 0 for all.

    Raises:
        StainsslError: an input is missing, there are too few tiles, or training failed (see
            `stainssl.pretrain.train.fit`).
    """
    encoder = job.encoder
    reserve_gpus(gpus)
    torch.manual_seed(job.seed)  # the same initial weights for every method
    size = encoder.input_size or job.tile_px
    adapted = encoder.tune == "lora" and not encoder.lora.merge
    backbone = backbone_of(job.init, encoder.architecture, encoder.backbone, size, adapted)
    distillation = DistillationLoss(backbone.model, encoder.keep) if encoder.keep else None
    adapters = freeze(backbone.model, encoder, size, job.seed)
    trained = Trained(pd.DataFrame(columns=list(SEEN)), pd.DataFrame(columns=list(METRICS)))
    if PRETRAINING_METHODS[encoder.method or ""].trains:
        trained = _train(job, backbone, size, distillation)
    if not is_main():  # only one process writes
        return
    seen = seen_too(trained.seen, job.init)
    _save(job, backbone, adapters, size, trained, _card(job, trained.seen, seen))
    if PRETRAINING_METHODS[encoder.method or ""].trains:
        write_trained_on(job.checkpoints, job.rows)
    _write_csv(job.seen, seen)
    _write_csv(job.metrics, trained.metrics)
    with replacing(job.curves) as made:
        curves({job.name: trained.metrics}).savefig(made)


def freeze(model: nn.Module, wanted: Encoder | FineTune, size: int, seed: int) -> Any:
    """Freeze the parameters of a pretrained network that are not trained, and add adapters.

    Args:
        model: network whose parameters are all trainable; changed in place.
        wanted: settings with `tune`.
        size: side of the network's input in px.
        seed: seed of the initial weights of adapters.

    Returns:
        peft's model if adapters are trained, otherwise None.

    Raises:
        StainsslError: the network has fewer blocks, or no layer for an adapter.
    """
    if wanted.last_blocks is not None:
        freeze_all_but(model, last_blocks(model, wanted.last_blocks))
    if wanted.tune != "lora":
        return None
    layers = adaptable(model, wanted.lora.rank, size)
    whole = sum(value.numel() for value in model.parameters())
    found = adapt(model, layers, wanted.lora.rank, wanted.lora.alpha, seed)
    learnt = sum(value.numel() for value in model.parameters() if value.requires_grad)
    log.info(
        "adapters of rank %d in %d layers: %.1f %% of %d parameters are trained",
        wanted.lora.rank, len(layers), 100 * learnt / whole, whole,
    )  # fmt: skip
    return found


def _save(
    job: PretrainJob, backbone: Backbone, adapters: Any, size: int, trained: Trained,
    card: Mapping[str, Any],
) -> None:  # fmt: skip
    """Write the model's folder: its weights, or an adapter of the initial weights."""
    normalizer = trained.tile_normalizer
    kwargs: dict[str, Any] = {
        "backbone": backbone.name, "input_size": size, "mean": backbone.mean, "std": backbone.std,
        "card": card, "stain_profile": normalizer.target if normalizer else None,
    }  # fmt: skip
    if adapters is not None and not job.encoder.lora.merge:
        save_adapter(adapters, job.model, Base(job.init or "", backbone.sha256), **kwargs)
        return
    model = adapters.merge_and_unload() if adapters is not None else backbone.model
    save_local_dir(model, job.model, model_args=backbone.model_args, **kwargs)


def _train(
    job: PretrainJob, backbone: Backbone, size: int, distillation: DistillationLoss | None = None
) -> Trained:
    """Train `backbone` in place."""
    encoder, cohorts = job.encoder, _open(job)
    gpu = torch.cuda.is_available()
    tiles = TrainTiles(cohorts.stores, workers=torch.get_num_threads(), gpu=gpu)
    batch_size = _batch_size(encoder.batch_size, len(tiles), placement().processes)
    settings = _settings(encoder, len(tiles) // batch_size)
    target = _target(job.target) if job.target else None
    views = _view_settings(job, size, cohorts, target)
    facts = _facts(cohorts, encoder)
    identity = _identity(job, size, cohorts, target)
    if job.init is not None:
        identity = {**identity, "init": backbone.sha256}
    module = _learner(
        job, backbone, size, views, _stain(cohorts, encoder, target), facts, settings, distillation
    )
    log.info(
        "%s: %s on %d tiles of %d slides, %d px, %d steps of %d tiles", job.name, backbone.name,
        len(tiles), len(cohorts.slides), size, settings.steps, batch_size,
    )  # fmt: skip
    metrics = fit(
        module, tiles, settings, batch_size=batch_size, seed=job.seed, facts=facts,
        checkpoints=job.checkpoints, on_row=_Live(job.checkpoints),
        mark=fingerprint(identity),
    )  # fmt: skip
    return Trained(_seen(cohorts.slides), metrics, views.tile_normalizer)


def _learner(
    job: PretrainJob, backbone: Backbone, size: int, views: ViewSettings,
    stain: StainTargets | None, facts: TileMetadata, settings: TrainSettings,
    distillation: DistillationLoss | None,
) -> Learner:  # fmt: skip
    encoder, dim = job.encoder, vector_length(backbone.model, size)
    torch.manual_seed(job.seed)  # the same initial head for every method
    objective = OBJECTIVES[encoder.loss](backbone.model, dim, encoder.temperature, encoder.queue)
    weight = encoder.supervised_weight
    return Learner(
        backbone.model,
        objective,
        PRETRAINING_METHODS[encoder.method or ""](views, stain),
        Preprocessing(backbone.mean, backbone.std),
        settings,
        Supervision(dim, facts.label, weight) if weight else None,
        distillation,
    )


class _Live:
    """Write `metrics.csv` and TensorBoard logs next to the checkpoint during training."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._board = folder, TensorBoardLogger(folder / "tensorboard")

    def __call__(self, rows: list[Row]) -> None:
        _write_csv(self._folder / "metrics.csv", pd.DataFrame(rows, columns=list(METRICS)))
        self._board(rows)


def _open(job: PretrainJob) -> Cohorts:
    """Open the stores of the training parts."""
    stores: list[Pixels] = []
    frames: list[pd.DataFrame] = []
    sheets = {name: rows.set_index("slide_id") for name, rows in job.rows.groupby("cohort")}
    for (cohort, _), path in job.pixels.items():
        store = open_pixels(path)
        rows = sheets[cohort].loc[store.slide_id, ["patient_id", "site"]].reset_index()
        rows["site"] = rows["site"].where(rows["site"] != "", cohort)  # as in `target`
        counts = np.bincount(store.slide, minlength=len(store.slide_id))
        frames.append(rows.assign(cohort=cohort, store=len(stores), tiles=counts))
        stores.append(store)
    return Cohorts(stores, list(job.labels.values()), pd.concat(frames, ignore_index=True))


def _facts(cohorts: Cohorts, encoder: Encoder) -> TileMetadata:
    slides = cohorts.slides
    patient = tile_metadata.codes(slides["cohort"] + "/" + slides["patient_id"])
    of_slides = (patient, tile_metadata.codes(slides["site"]))
    patients, sites = (tile_metadata.of_tiles(values, cohorts.stores) for values in of_slides)
    if encoder.label is None:
        return TileMetadata(patients, sites, np.full(len(patients), -1, np.int32))
    tables = [read_labels(path) for path in cohorts.labels]
    return TileMetadata(
        patients, sites, tile_metadata.labels(cohorts.stores, tables, encoder.label)
    )


def _target(path: Path) -> dict[str, Any]:
    """Read and check a `target.json`."""
    if not path.exists():
        raise StainsslError(f"{path} is missing: run `stainssl target` first.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        stain_targets.load(content)
    except (ValueError, KeyError) as error:
        raise StainsslError(f"{path}: {error}") from error
    return content


def _batch_size(wanted: int, tiles: int, processes: int) -> int:
    """Tiles per step: at most `wanted` and `tiles`, and a multiple of `processes`."""
    size = min(wanted, tiles) // processes * processes
    if size < 2 * processes:
        raise StainsslError(
            f"batch_size {wanted} on {tiles} training tiles leaves {size // processes} tile(s) for "
            f"each of {processes} devices: two are needed. Use fewer devices, or a larger batch."
        )
    if wanted > tiles:
        log.warning("batch_size %d exceeds the %d training tiles: using %d", wanted, tiles, size)
    elif size < wanted:
        log.warning(
            "batch_size %d is not a multiple of %d devices: using %d", wanted, processes, size
        )
    return size


def _settings(encoder: Encoder, steps_per_epoch: int) -> TrainSettings:
    steps = encoder.epochs * steps_per_epoch
    steps = min(steps, encoder.steps or steps)
    if encoder.freeze_steps >= steps:
        raise StainsslError(
            f"freeze_steps ({encoder.freeze_steps}) cover all {steps} steps, so the initial "
            "network would not be trained: set fewer, or more epochs."
        )
    return TrainSettings(
        steps=steps,
        lr=encoder.lr,
        weight_decay=encoder.weight_decay,
        optimizer=encoder.optimizer,
        warm_up=encoder.warm_up,
        precision=encoder.precision,
        lr_backbone=encoder.lr_backbone,
        layer_decay=encoder.layer_decay,
        freeze_steps=encoder.freeze_steps,
        freeze_norms=encoder.freeze_norms and encoder.init is not None,
    )


def _view_settings(
    job: PretrainJob, size: int, cohorts: Cohorts, target: Mapping[str, Any] | None
) -> ViewSettings:
    encoder, geometry = job.encoder, job.encoder.geometry
    tile_normalizer = None
    if encoder.preprocess and target is not None:
        # Tiles without a valid profile do not take that of their slide, which is unknown where the
        # encoder is used.
        own = tile_metadata.profiles(cohorts.stores, encoder.normalizers[0], slides=False)
        tile_normalizer = TileNormalizer(own, stain_targets.profile_from_json(target["fallback"]))
    return ViewSettings(
        size_px=size,
        color=encoder.color,
        seed=job.seed,
        geometry=ViewGeometry(geometry.area, geometry.ratio, geometry.turns),
        stain_jitter=stain_jitter(cohorts.stores, encoder),
        tile_normalizer=tile_normalizer,
    )


def stain_jitter(stores: Sequence[Pixels], wanted: Encoder | FineTune) -> StainJitter | None:
    """Stain augmentation for the tiles of some stores; None if the config has none."""
    kind = wanted.stain_jitter
    if kind == "none":
        return None
    strength = wanted.stain_jitter_strength or JITTER_STRENGTH[kind]
    if kind == "hed":
        return HedJitter(strength)
    if kind == "randstainna":
        return RandStainNA(tile_metadata.profiles(stores, "reinhard"), strength)
    return StainMix(tile_metadata.profiles(stores, "macenko"), strength)


def _stain(
    cohorts: Cohorts, encoder: Encoder, target: Mapping[str, Any] | None
) -> StainTargets | None:
    """Profiles and target policy for each normalizer; None if the method has no stain target."""
    if not PRETRAINING_METHODS[encoder.method or ""].needs_stain or target is None:
        return None
    first, *others = encoder.normalizers
    profiles = {m: tile_metadata.profiles(cohorts.stores, m) for m in encoder.normalizers}
    stainings = [NormalizerState(profiles[first], stain_targets.load(target))]
    stainings += [
        NormalizerState(profiles[m], stain_targets.load(_same_tiles(target, cohorts, profiles[m])))
        for m in others
    ]
    sites = tile_metadata.names_of(cohorts.slides["site"].tolist(), cohorts.stores)
    return StainTargets(stainings, sites, encoder.views, encoder.stain_probability)


def _same_tiles(
    target: Mapping[str, Any], cohorts: Cohorts, profiles: StainProfile
) -> dict[str, Any]:
    """The target with the same candidate tiles, described by another normalizer's profiles."""
    numbers = [_number(one, cohorts) for one in target["candidates"]]
    seen = [
        {"site": one["site"], "profile": stain_targets.profile_to_json(profiles[number])}
        for one, number in zip(target["candidates"], numbers, strict=True)
        if bool(profiles.valid[number])
    ]
    fallback = stain_targets.profile_to_json(profiles.pooled())
    return {**target, "candidates": seen, "fallback": fallback}


def _number(candidate: Mapping[str, Any], cohorts: Cohorts) -> int:
    """Index of a target's candidate among the training tiles."""
    cohort, slide_id = candidate["slide"].split("/", 1)
    slides = cohorts.slides
    index = int(
        slides.loc[(slides["cohort"] == cohort) & (slides["slide_id"] == slide_id), "store"].iloc[0]
    )
    store = cohorts.stores[index]
    rows = (store.slide == store.slide_id.index(slide_id)) & (store.tile == candidate["tile"])
    return sum(len(before) for before in cohorts.stores[:index]) + int(np.flatnonzero(rows)[0])


def _identity(
    job: PretrainJob, size: int, cohorts: Cohorts, target: Mapping[str, Any] | None
) -> Mapping[str, Any]:
    """Everything that affects the weights of a training."""
    return {
        "encoder": job.encoder.model_dump(mode="json"),
        "seed": job.seed,
        "input_size": size,
        "slides": cohorts.slides[["slide_id", "tiles"]].values.tolist(),
        "target": target,
        "torch": torch.__version__,
    }


def _seen(slides: pd.DataFrame) -> pd.DataFrame:
    """One row per patient in the training parts."""
    groups = slides.groupby(["patient_id", "cohort"], sort=True)
    return groups.agg(slides=("slide_id", "nunique"), tiles=("tiles", "sum")).reset_index()[
        list(SEEN)
    ]


def _card(job: PretrainJob, trained: pd.DataFrame, seen: pd.DataFrame) -> dict[str, Any]:
    """Contents of the model card.

    Args:
        trained: patients of this training.
        seen: the same, with those of earlier trainings.
    """
    encoder = job.encoder
    card: dict[str, Any] = {"method": encoder.method, "seed": job.seed}
    if encoder.train is None or trained.empty:
        return card | {"training": "none: random weights"}
    if encoder.init:
        card["initial weights"] = encoder.init
        card |= read_source(job.init or "")[1]
        card["trained of them"] = _tuned(encoder)
    card |= {
        "cohorts": ", ".join(encoder.train.cohorts),
        "splits": ", ".join(encoder.train.splits),
        "tiles": f"{int(trained['tiles'].sum())} of {job.tile_px} px at {job.tile_mpp:g} µm/px",
        "slides": int(trained["slides"].sum()),
        "patients seen": f"{len(seen)}: {', '.join(seen['patient_id'])}",
        "color jitter": f"{encoder.color}, of stain: {encoder.stain_jitter}",
        "loss": f"{encoder.loss}, temperature {encoder.temperature:g}",
        "budget": f"{encoder.epochs} epochs, at most {encoder.steps or 'all'} steps, "
        f"batches of {encoder.batch_size}, {encoder.optimizer}, lr {encoder.lr:g}",
    }
    if encoder.supervised_weight:
        card["supervised"] = f"label {encoder.label}, weight {encoder.supervised_weight:g}"
    if encoder.preprocess:
        card["preprocessing"] = (
            f"tiles are normalized ({encoder.normalizers[0]}) to stain.json: stainssl does so, "
            "timm does not"
        )
    if encoder.method == "stain-invariant":
        card["stain target"] = f"{encoder.target.policy} per {encoder.target.per}"
        card["normalizer"] = f"{', '.join(encoder.normalizers)}, views: {encoder.views}"
    return card


def _tuned(encoder: Encoder) -> str:
    """Description of how the initial weights were fine-tuned."""
    lora, what = encoder.lora, encoder.tune
    if what == "lora":
        what += f" of rank {lora.rank}, alpha {lora.alpha:g}"
    rate = f"lr {encoder.lr_backbone or encoder.lr:g}, layer decay {encoder.layer_decay:g}"
    norms = "" if encoder.freeze_norms else ", norms of the training views' statistics"
    return f"{what}, {rate}, frozen for {encoder.freeze_steps} steps, keep {encoder.keep:g}{norms}"


def _write_csv(path: Path, frame: pd.DataFrame) -> None:
    write_text(path, frame.to_csv(index=False))
