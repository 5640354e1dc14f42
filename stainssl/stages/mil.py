"""`mil`: train and evaluate a multiple-instance learning head on a slide or patient task."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stainssl.config import Head
from stainssl.errors import StainsslError
from stainssl.evaluation.centring import sites_of
from stainssl.evaluation.collapse import write_mean_cosine
from stainssl.evaluation.evaluate import evaluate
from stainssl.evaluation.folds import each_fold, read_folds
from stainssl.evaluation.fusion import FOLDER
from stainssl.evaluation.labels import Labels
from stainssl.evaluation.predictions import ensemble
from stainssl.mil import bags as bagging
from stainssl.mil.attention import AttentionMean, attention_table
from stainssl.mil.bags import Bag, SlideTiles
from stainssl.mil.centring import centred_bags, means_of
from stainssl.mil.clinical import clinical_columns, with_clinical
from stainssl.mil.predict import (
    concatenated,
    load_models,
    model_name,
    predict_bag,
    predictions_of,
    save_model,
    with_thresholds,
)
from stainssl.mil.reference import reference_table
from stainssl.mil.target import Target
from stainssl.mil.targets import target_of
from stainssl.mil.train import FoldModel, HeadSettings, fit
from stainssl.paths import of_label
from stainssl.plan.rows import Part
from stainssl.plan.tasks import MilJob
from stainssl.runtime.parallel import TimeSpent
from stainssl.stain import StainProfile
from stainssl.stores.atomic import replacing
from stainssl.stores.embeddings import open_embeddings
from stainssl.stores.pixels import open_pixels
from stainssl.stores.spool import Spool
from stainssl.stores.tables import write_table

SHOWN = 10  # ids listed in a message; the rest are counted
MAX_BYTES = 2 << 30  # of tile embeddings in memory; the rest are in a temporary file
STAIN = "macenko"  # stain profiles by which `predict` compares slides
log = logging.getLogger(__name__)


def run(job: MilJob) -> None:
    """Train a head on tile embeddings in each fold of a task and evaluate it on the test bags.

    Writes a folder with `predictions.parquet` (test bags), `metrics.csv`, `attention.parquet`
    (tiles of test bags), `models/` (one model per fold), `spread.json`, and `reference.parquet`
    (mean embedding and stain of the training slides). For each external cohort, predictions and
    metrics are in `external-{cohort}.parquet` and `.csv`. For a task with several labels,
    predictions and metrics are in `labels/{label}/`.

    Raises:
        StainsslError: the folds share patients between roles, or the bags are not suitable for
            training.
    """
    made_by = {
        "task": job.task, "encoder": job.encoder, "head": job.head_name, "seed": job.seed,
    }  # fmt: skip
    spent = TimeSpent()
    try:
        folds = read_folds(job.folds)
        slides = labelled_slides(job.rows, job.label, job.level)
        target = target_of(job.label, slides["word"], job.is_balanced, job.hazard)
        slides["label"] = target.codes(slides["word"])
        read = spooled(slide_reader(job.embeddings, slides), job.scratch)
        trained = set(folds["patient_id"][folds["role"] != "test"])
        with spent.on("reading"):
            bags = _bags(slides, job.level, read)
            reference = reference_table(bags, trained, stain_of_slides(job.pixels, slides))
        _tell_limits(bags, job.head)
        with replacing(job.output) as folder:
            folder.mkdir()
            predictions, attention = _answer(job, bags, folds, target, folder, spent)
            _write(job, folder, "predictions", predictions, made_by, spent)
            features = (t.features[:] for bag in bags for t in bag.tiles)
            made_of = open_embeddings(next(iter(job.embeddings.values()))).settings
            places = [of_label(folder, label) for label in predictions]
            with spent.on("writing"):
                write_mean_cosine(features, *places, made_by=made_of)
                write_table(folder / "attention.parquet", attention, "attention", made_by)
                write_table(folder / "reference.parquet", reference, "reference", made_by)
            if job.clinical:
                fused, _ = _answer(job, bags, folds, target, None, spent)
                _write(job, folder, "predictions", fused, made_by, spent, FOLDER)
            for cohort in job.external:
                with spent.on("external cohorts"):
                    found = _external(job, cohort, target, folder / "models")
                _write(job, folder, f"external-{cohort}", found, made_by, spent)
    except StainsslError as error:
        raise StainsslError(f"tasks.{job.task}: {error}") from None
    log.info("%s", spent.line(len(bags), "bags"))


def _write(
    job: MilJob,
    folder: Path,
    name: str,
    tables: dict[str, pd.DataFrame],
    made_by: dict[str, Any],
    spent: TimeSpent,
    inside: str = "",
) -> None:
    """Write predictions and metrics of each label, in the subfolder `inside` of its folder.

    For an external cohort, the mean over the fold models is evaluated.
    """
    is_own = name == "predictions"
    for label, table in tables.items():
        place = of_label(folder, label) / inside
        place.mkdir(parents=True, exist_ok=True)
        with spent.on("writing"):
            write_table(place / f"{name}.parquet", table, "predictions", made_by)
        with spent.on("metrics"):
            judged = table if is_own else ensemble(table, job.level)
            metrics = evaluate(judged, job.level, job.seed)
        metrics.to_csv(place / f"{'metrics' if is_own else name}.csv", index=False)


def labelled_slides(rows: pd.DataFrame, label: Labels, level: str = "slide") -> pd.DataFrame:
    """Select the slides with a known label, or with at least one known label of several.

    Args:
        rows: one row per slide: `cohort`, `part`, `slide_id`, `patient_id`, `site` and the label.
        label: column of the label and meaning of its values.
        level: level of the task; for `patient`, a label holds for all slides of a patient.

    Returns:
        `slide_id`, `patient_id`, `site`, `cohort`, `part` and `word` (value of the label), in the
        order of `rows`.

    Raises:
        StainsslError: no label is known, or two cohorts have a slide of the same name.
    """
    words = label.words_of(rows)
    if level == "patient":
        words = label.of_patients(words, rows["patient_id"])
    slides = rows.assign(word=words)
    known = slides[slides["word"] != ""].reset_index(drop=True)
    log.info("%d of %d slides have a known %r", len(known), len(slides), label.label)
    if known.empty:
        cohorts = ", ".join(rows["cohort"].unique())
        raise StainsslError(f"no slide of {cohorts} has a known {label.label!r}.")
    if (twice := known["slide_id"].duplicated()).any():
        names = _some(known["slide_id"][twice].tolist())
        raise StainsslError(
            f"slides of the same name are in two of its cohorts: {names}. Rename them in one sheet."
        )
    return known[["slide_id", "patient_id", "site", "cohort", "part", "word"]]


def slide_reader(
    embeddings: Mapping[Part, Path], slides: pd.DataFrame
) -> Callable[[str], SlideTiles]:
    """Make a function that reads the tiles of a slide that have an embedding.

    The store of each part is opened once.

    Args:
        embeddings: (cohort, part) → store.
        slides: `slide_id`, `cohort` and `part` of all slides to be read.

    Returns:
        slide_id → tiles.
    """
    wanted = slides[["cohort", "part"]].drop_duplicates().itertuples(index=False, name=None)
    stores = {part: open_embeddings(embeddings[part]) for part in wanted}
    place = {
        row.slide_id: stores[row.cohort, row.part]
        for row in slides[["slide_id", "cohort", "part"]].itertuples(index=False)
    }

    def read(slide_id: str) -> SlideTiles:
        store = place[slide_id]
        rows = store.rows(slide_id)
        return bagging.valid_tiles(
            store.read(rows),
            store.valid[rows],
            store.tile[rows],
            store.x[rows],
            store.y[rows],
        )

    return read


def spooled(read: Callable[[str], SlideTiles], folder: Path) -> Callable[[str], SlideTiles]:
    """Wrap a reader so that embeddings beyond `MAX_BYTES` go to a temporary file in `folder`."""
    spool = Spool(folder)
    held = 0

    def spooling(slide_id: str) -> SlideTiles:
        nonlocal held
        tiles = read(slide_id)
        features = tiles.features[:]
        held += features.nbytes
        if held <= MAX_BYTES:
            return tiles
        return dataclasses.replace(tiles, features=spool.keep(features))

    return spooling


def stain_of_slides(pixels: Mapping[Part, Path], slides: pd.DataFrame) -> dict[str, np.ndarray]:
    """Coordinates of the pooled stain profile of each slide (slide → (D,) float array).

    Slides without stored pixels or without a valid profile are left out.

    Args:
        pixels: (cohort, part) → store, which need not exist.
        slides: `slide_id`, `cohort` and `part`.
    """
    found: dict[str, np.ndarray] = {}
    wanted = slides[["cohort", "part"]].drop_duplicates().itertuples(index=False, name=None)
    for path in (pixels[part] for part in wanted if part in pixels):
        store = open_pixels(path) if path.exists() else None
        fields = store.pooled(STAIN) if store else {}
        if store is None or not fields:
            continue
        profiles = StainProfile.from_arrays(STAIN, fields)
        points = profiles.coordinates().numpy()
        names = np.asarray(store.slide_id, object)
        found |= {names[i]: points[i] for i in np.flatnonzero(profiles.valid.numpy())}
    return {slide: found[slide] for slide in slides["slide_id"] if slide in found}


def _bags(slides: pd.DataFrame, level: str, read: Callable[[str], SlideTiles]) -> list[Bag]:
    bags, empty = bagging.build(slides, level, read)
    if empty:
        log.warning(
            "%d %s(s) left out, none of their slides has a usable tile: %s",
            len(empty), level, _some(empty),
        )  # fmt: skip
    if not bags:
        raise StainsslError("no slide has a usable tile: see the cohort's slides.csv for why.")
    tiles = [len(bag) for bag in bags]
    log.info("%d bags of %d to %d tiles", len(bags), min(tiles), max(tiles))
    return bags


def _tell_limits(bags: list[Bag], head: Head) -> None:
    """Log how many tiles a training step leaves out, and whether attention is informative."""
    sizes = np.array([len(bag) for bag in bags])
    if (large := sizes > head.max_tiles).any():
        share = head.max_tiles / sizes[large].mean()
        log.info(
            "max_tiles: %d of %d bags have more than %d tiles: a training step samples that many,"
            " on average %.0f %% of a bag; prediction uses all",
            int(large.sum()), len(bags), head.max_tiles, 100 * share,
        )  # fmt: skip
    if head.kind == "mean":
        log.info("head of kind mean: all tiles have equal weight, so attention is not informative")


def _answer(
    job: MilJob,
    bags: list[Bag],
    folds: pd.DataFrame,
    target: Target,
    folder: Path | None,
    spent: TimeSpent,
) -> tuple[dict[str, pd.DataFrame], pd.DataFrame]:
    """Train a model per fold and predict the test bags.

    Args:
        folder: output folder, in which the models are saved. None: the head also takes clinical
            columns, and no model is saved.

    Returns:
        Predictions (label → rows), and attention of the tiles.
    """
    tables, looked_at = [], AttentionMean()
    columns = None if folder else clinical_columns(bags, job.rows, job.clinical)
    models = spent.each("training", _fold_models(job, bags, folds, target, columns))
    for repeat, fold, model, test in models:
        if folder:
            save_model(model, folder / "models" / model_name(repeat, fold))
        with spent.on("predicting"):
            answers = [predict_bag(model, bag) for bag in test]
        for bag, (_, attention) in zip(test, answers, strict=True):
            looked_at.add(bag, attention)
        said = np.stack([answer for answer, _ in answers])
        tables.append(predictions_of(model, test, said, repeat, fold))
    if not tables:
        raise StainsslError("no test patient has a usable tile: see the cohort's slides.csv.")
    return concatenated(tables), attention_table(bags, looked_at.means())


def _external(job: MilJob, cohort: str, target: Target, models: Path) -> dict[str, pd.DataFrame]:
    """Predictions of all fold models on an external cohort, each model as one repeat.

    Raises:
        StainsslError: the cohort has no labelled slide with tiles, or a class on which the models
            were not trained.
    """
    slides = labelled_slides(job.external[cohort], job.label, job.level)
    if strange := target.unseen_labels(slides["word"].tolist()):
        raise StainsslError(f"external cohort {cohort} has {strange}.")
    slides["label"] = target.codes(slides["word"])
    bags = _bags(slides, job.level, spooled(slide_reader(job.embeddings, slides), job.scratch))
    tables = []
    for number, model in enumerate(load_models(models).values()):
        said = np.stack([predict_bag(model, bag)[0] for bag in bags])
        tables.append(predictions_of(model, bags, said, number, 0))
    log.info("%d bags of external cohort %s predicted by %d models", len(bags), cohort, len(tables))
    return concatenated(tables)


def _fold_models(
    job: MilJob,
    bags: list[Bag],
    folds: pd.DataFrame,
    target: Target,
    columns: pd.DataFrame | None,
) -> Iterator[tuple[int, int, FoldModel, list[Bag]]]:
    """Train a model in each fold that has a test bag; yield (repeat, fold, model, test bags).

    Args:
        columns: clinical columns, one row per bag, that the head takes as well; None: no columns.
    """
    settings, plain = HeadSettings(**job.head.model_dump()), bags
    sites = dict(zip(job.rows["slide_id"], sites_of(job.rows), strict=True))
    for repeat, fold, patients in each_fold(folds):
        if columns is not None:
            bags = with_clinical(plain, columns, patients["train"])
            settings = dataclasses.replace(settings, columns=len(bags[0].columns))
        train, val, test = (
            [bag for bag in bags if bag.patient_id in patients[role]]
            for role in ("train", "val", "test")
        )
        if job.center:
            train, val, test = _centred(train, val, test, sites)
        if not test:
            log.warning("repeat %d fold %d has no test bag and is left out", repeat, fold)
            continue
        own_seed = int(np.random.default_rng([job.seed, repeat, fold]).integers(2**31))
        try:
            model = fit(train, val, target, settings, own_seed)
            model = with_thresholds(model, val, job.decision_rule, train)
        except StainsslError as error:
            raise StainsslError(f"repeat {repeat} fold {fold}: {error}") from None
        log.info(
            "repeat %d fold %d: %d training, %d validation, %d test bags; epoch %d of %d kept, "
            "validation loss %.3f",
            repeat, fold, len(train), len(val), len(test),
            model.epoch + 1, len(model.history), model.history[model.epoch][1],
        )  # fmt: skip
        yield repeat, fold, model, test


def _centred(
    train: list[Bag], val: list[Bag], test: list[Bag], sites: Mapping[str, str]
) -> tuple[list[Bag], list[Bag], list[Bag]]:
    """Subtract from each slide the mean of its site over training and validation patients."""
    means = means_of([*train, *val], sites)
    test, left_out = centred_bags(test, sites, means)
    if left_out:
        log.warning(
            "%d slides left out, their site has no training slide with usable tiles: %s",
            len(left_out), _some(left_out),
        )  # fmt: skip
    return centred_bags(train, sites, means)[0], centred_bags(val, sites, means)[0], test


def _some(names: list[str]) -> str:
    rest = len(names) - SHOWN
    return ", ".join(map(str, names[:SHOWN])) + (f" and {rest} more" if rest > 0 else "")
