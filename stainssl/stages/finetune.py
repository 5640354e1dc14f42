"""`finetune`: train an encoder's network on the tile labels of a task, and predict test tiles."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from stainssl.cohort.sheet_file import shown
from stainssl.encoders.loading import LoadedEncoder
from stainssl.encoders.modules import Pooled
from stainssl.errors import StainsslError
from stainssl.evaluation.evaluate import evaluate
from stainssl.evaluation.folds import each_fold, read_folds
from stainssl.evaluation.probe import prediction_rows
from stainssl.plan.tasks import FinetuneJob
from stainssl.pretrain import tile_metadata
from stainssl.pretrain.data import TrainTiles
from stainssl.pretrain.finetune import (
    WHOLE,
    Checkpoint,
    TileClassifier,
    TileSubset,
    TuneSettings,
    ViewMaker,
    fit,
    predict,
    single_view,
)
from stainssl.pretrain.lock import training_lock
from stainssl.pretrain.methods import NormalizerState, StainInvariant, StainTargets, ViewSettings
from stainssl.pretrain.train import fingerprint
from stainssl.runtime.devices import reserve_device
from stainssl.runtime.parallel import job_threads
from stainssl.stages.embed import load_source
from stainssl.stages.pretrain import freeze, stain_jitter
from stainssl.stages.probe import part_labels, rows_of_part
from stainssl.stain.targets import BatchTarget, profile_to_json
from stainssl.stores.atomic import replacing
from stainssl.stores.pixels import Pixels, open_pixels
from stainssl.stores.tables import write_table

KEPT = ".safetensors"  # suffix of the files from which an interrupted training resumes
NORMALIZER = "macenko"  # re-stains tiles for `consistency`
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LabelledTiles:
    """The n labelled tiles of a task.

    Attributes:
        stores: stores of the pixels.
        tiles: all tiles of these stores, including unlabelled ones, numbered consecutively.
        table: n rows: `number` (in `tiles`), `patient_id`, `slide_id`, `tile`, `site`.
        y: (n,) int64 class index.
        classes: names of the classes.
    """

    stores: list[Pixels]
    tiles: TrainTiles
    table: pd.DataFrame
    y: np.ndarray
    classes: tuple[str, ...]

    def subset(self, patients: set[str]) -> TileSubset:
        """The labelled tiles of some patients."""
        rows = self.table["patient_id"].isin(patients).to_numpy()
        return TileSubset(self.table["number"].to_numpy()[rows], self.y[rows])


@dataclass(frozen=True)
class FoldPredictions:
    """Predictions of one fold's network.

    Attributes:
        p: (m, K) class probabilities of the test tiles that can be decoded.
        readable: (n,) bool, which of the n test tiles these are.
        thresholds: chosen on validation tiles (column of the predictions → threshold).
    """

    p: np.ndarray
    readable: np.ndarray
    thresholds: dict[str, float]

    def save(self, path: Path) -> None:
        """Write the predictions, so that an interrupted job does not train this fold again."""
        values = {"p": torch.from_numpy(self.p), "readable": torch.from_numpy(self.readable)}
        with replacing(path) as made:
            save_file(values, made, {"cuts": json.dumps(self.thresholds)})

    @staticmethod
    def load(path: Path) -> FoldPredictions:
        """Read a file written by `save`."""
        with safe_open(path, "np") as file:
            thresholds = json.loads(file.metadata()["cuts"])
            return FoldPredictions(file.get_tensor("p"), file.get_tensor("readable"), thresholds)


def run(job: FinetuneJob) -> None:
    """Fine-tune a network in each fold of a tile task and evaluate it on the test tiles.

    Writes the folder `fine-tune/`: `predictions.parquet` (test tiles) and `metrics.csv`.

    Raises:
        StainsslError: the labels are not suitable for training, or the network cannot be loaded.
    """
    device = reserve_device()
    try:
        labelled, folds = _labelled_tiles(job), read_folds(job.folds)
        _tell_absent(labelled, set(folds["patient_id"]))
        with training_lock(job.checkpoints):
            _write(job, _answers(job, labelled, folds, device))
            for kept in job.checkpoints.glob(f"*{KEPT}"):
                kept.unlink()
    except StainsslError as error:
        raise StainsslError(f"tasks.{job.task}: {error}") from None


def _write(job: FinetuneJob, predictions: pd.DataFrame) -> None:
    """Write the output folder."""
    settings = {"task": job.task, "encoder": job.encoder, "seed": job.seed}
    with replacing(job.output) as folder:
        folder.mkdir()
        write_table(folder / "predictions.parquet", predictions, "predictions", settings)
        evaluate(predictions, "tile", job.seed).to_csv(folder / "metrics.csv", index=False)


def _labelled_tiles(job: FinetuneJob) -> LabelledTiles:
    """Open the stored pixels and read the labels of their tiles.

    Raises:
        StainsslError: no tile has a known label.
    """
    stores = [open_pixels(path) for path in job.pixels.values()]
    first = np.cumsum([0, *map(len, stores)])
    parts = zip(job.pixels, stores, first[:-1].tolist(), strict=True)
    blocks = [_block(job, *part, store, number) for part, store, number in parts]
    table = pd.concat(blocks, ignore_index=True)
    if table.empty:
        cohorts = ", ".join(dict.fromkeys(cohort for cohort, _ in job.pixels))
        raise StainsslError(
            f"No tile of {cohorts} has a known {job.label.label!r}: check the annotations and the"
            " sheet."
        )
    words = table.pop("label")
    classes = tuple(job.label.order(words))
    y = words.map({name: i for i, name in enumerate(classes)}).to_numpy(np.int64)
    tiles = TrainTiles(stores, workers=job_threads())
    return LabelledTiles(stores, tiles, table, y, classes)


def _block(job: FinetuneJob, cohort: str, part: str, store: Pixels, first: int) -> pd.DataFrame:
    """Table of the labelled tiles of a part; `first` is the number of its first tile."""
    slide = np.asarray(store.slide_id, dtype=object)[store.slide]
    number = np.arange(first, first + len(store))
    rows = pd.DataFrame({"slide_id": slide, "tile": store.tile, "number": number})
    labels = part_labels(job.labels[cohort, part], job.label)
    sheet = rows_of_part(job.rows, cohort, part)[["slide_id", "patient_id", "site"]]
    known = rows.merge(labels[labels["label"] != ""], on=["slide_id", "tile"])
    log.info("%s %s: %d of %d tiles have a known label", cohort, part, len(known), len(store))
    columns = ["number", "patient_id", "slide_id", "tile", "site", "label"]
    return known.merge(sheet, on="slide_id")[columns]


def _tell_absent(labelled: LabelledTiles, patients: set[str]) -> None:
    absent = sorted(patients - set(labelled.table["patient_id"]))
    if absent:
        log.warning(
            "%d of %d patients of the folds have no tile with a known label: %s",
            len(absent), len(patients), shown(absent),
        )  # fmt: skip


def _answers(
    job: FinetuneJob, labelled: LabelledTiles, folds: pd.DataFrame, device: str
) -> pd.DataFrame:
    """Predictions of the test tiles of all folds.

    Raises:
        StainsslError: a fold cannot be trained, or no test tile is labelled.
    """
    tables = []
    for repeat, fold, role in each_fold(folds):
        rows = np.flatnonzero(labelled.table["patient_id"].isin(role["test"]))
        if not len(rows):
            log.warning("repeat %d fold %d has no test tile and is left out", repeat, fold)
            continue
        try:
            predictions = _fold_predictions(job, labelled, (repeat, fold), role, device)
        except StainsslError as error:
            raise StainsslError(f"repeat {repeat} fold {fold}: {error}") from None
        rows = rows[predictions.readable]
        table = labelled.table.iloc[rows].drop(columns="number")
        said = prediction_rows(table, labelled.y[rows], labelled.classes, predictions.p)
        tables.append(said.assign(repeat=repeat, fold=fold, **predictions.thresholds))
    if not sum(map(len, tables)):
        raise StainsslError("No test patient has a labelled tile: check labels and split.")
    return pd.concat(tables, ignore_index=True)


def _fold_predictions(
    job: FinetuneJob, labelled: LabelledTiles, place: tuple[int, int], role: dict[str, set[str]],
    device: str,
) -> FoldPredictions:  # fmt: skip
    """Train one fold's network and predict its test tiles, or load saved predictions."""
    train, val, test = (labelled.subset(role[name]) for name in ("train", "val", "test"))
    if not len(val.tile):
        log.warning("no validation tiles: all epochs are trained, and no threshold is chosen")
    seeds = [job.seed, job.run_seed, *place]
    seed = int(np.random.default_rng(seeds).integers(2**31))
    encoder = load_source(job.source, device)
    network = _network(job, labelled, train, encoder, seed)
    mark = _mark(job, labelled, (train, val, test), encoder, seed)
    kept = job.checkpoints / f"{mark}{KEPT}"
    if kept.exists():
        return FoldPredictions.load(kept)
    settings = _settings(job)
    checkpoint = Checkpoint(job.checkpoints / f"last{KEPT}", mark)
    progress = fit(
        network, labelled.tiles, train, val, settings, _views(job, labelled, seed), seed=seed,
        checkpoint=checkpoint,
    )  # fmt: skip
    log.info(
        "repeat %d fold %d: %d training, %d validation, %d test tiles; %d epochs, %s kept",
        *place, len(train.tile), len(val.tile), len(test.tile), len(progress.losses),
        progress.best_epoch + 1 if progress.losses else "the last",
    )  # fmt: skip
    of_val, seen = predict(network, labelled.tiles, val.tile, settings.batch_size)
    line = job.decision_rule.recalibration(val.y[seen], of_val)
    thresholds = job.decision_rule.thresholds(val.y[seen], line(of_val))
    of_test, asked = predict(network, labelled.tiles, test.tile, settings.batch_size)
    predictions = FoldPredictions(line(of_test), asked, thresholds)
    predictions.save(kept)
    return predictions


def _network(
    job: FinetuneJob, labelled: LabelledTiles, train: TileSubset, encoder: LoadedEncoder, seed: int
) -> TileClassifier:
    """The encoder's network with a new linear layer; parts are frozen according to the config.

    Raises:
        StainsslError: the training tiles have only one class, or the settings do not suit the
            encoder.
    """
    trained = np.unique(train.y).tolist()
    if len(trained) < 2:
        raise StainsslError(
            "The training tiles have one class only: fine-tuning needs tiles of two classes in the"
            " training part. Check the labels, or use another split."
        )
    if encoder.stain_profile is not None and job.tuning.consistency:
        raise StainsslError(
            f"encoders.{job.encoder} normalizes its tiles, which removes the stain that"
            " fine_tune.consistency changes: leave consistency out."
        )
    model = encoder.model.requires_grad_(True)
    # A pooling around timm's network follows its last block and is trained with it.
    has_pooling = isinstance(model, Pooled) and job.tuning.last_blocks is not None
    inner: Any = model.model if has_pooling else model
    freeze(inner, job.tuning, encoder.input_size, seed)
    torch.manual_seed(seed)
    network = TileClassifier(
        model, encoder.dim, encoder.stain_normalized, encoder.prepared, trained,
        len(labelled.classes), freeze_norms=job.tuning.freeze_norms,
    )  # fmt: skip
    return network.to(encoder.device)


def _mark(
    job: FinetuneJob,
    labelled: LabelledTiles,
    parts: tuple[TileSubset, ...],
    encoder: LoadedEncoder,
    seed: int,
) -> str:
    """Hash of everything that affects a fold's predictions; not the classes of its test tiles."""
    train, val, test = parts
    found = hashlib.sha256()
    for values in (train.tile, train.y, val.tile, val.y, test.tile):
        found.update(np.ascontiguousarray(values, np.int64).tobytes() + b"|")
    names = pd.util.hash_pandas_object(labelled.table[["number", "slide_id", "tile"]])
    asked = {
        "settings": job.tuning.model_dump(mode="json"), "balanced": job.is_balanced,
        "decision_rule": str(job.decision_rule), "classes": labelled.classes,
        "tiles": found.hexdigest(),
        "names": hashlib.sha256(names.to_numpy().tobytes()).hexdigest(),
        "weights": encoder.weights_sha256, "input_size": encoder.input_size,
        "standard": encoder.stain_profile and profile_to_json(encoder.stain_profile),
        "seed": seed, "torch": torch.__version__,
    }  # fmt: skip
    return fingerprint(asked)


def _settings(job: FinetuneJob) -> TuneSettings:
    wanted = job.tuning
    return TuneSettings(
        epochs=wanted.epochs,
        patience=wanted.patience,
        batch_size=wanted.batch_size,
        lr=wanted.lr,
        weight_decay=wanted.weight_decay,
        class_weight="balanced" if job.is_balanced else None,
        consistency=wanted.consistency,
    )


def _views(job: FinetuneJob, labelled: LabelledTiles, seed: int) -> ViewMaker:
    """How views of a batch are made: one view, or with `consistency` two stainings of each tile."""
    views = ViewSettings(
        size_px=labelled.tiles.size_px,
        color=job.tuning.color,
        seed=seed,
        geometry=WHOLE,
        stain_jitter=stain_jitter(labelled.stores, job.tuning),
    )
    if not job.tuning.consistency:
        return single_view(views)
    profiles = tile_metadata.profiles(labelled.stores, NORMALIZER)
    staining = NormalizerState(profiles, BatchTarget(profiles.pooled()))
    return StainInvariant(views, StainTargets([staining], lambda tiles: [])).views
