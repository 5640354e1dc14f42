"""`predict`: apply the fold models of a trained task to new slides, with attention."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stainssl.cohort import installed, outside_problems, parts
from stainssl.cohort.sheet_file import shown
from stainssl.config import REFERENCE, Cohort, Config, Encoder, Run, dump
from stainssl.errors import StainsslError, translate_disk_errors
from stainssl.evaluation.folds import GRADE, RISK, VALUE, read_folds
from stainssl.evaluation.predictions import THRESHOLD, predicted_labels, prediction_columns
from stainssl.mil import bags as bagging
from stainssl.mil.attention import AttentionMean, attention_table
from stainssl.mil.bags import ID_COLUMNS, Bag, SlideTiles
from stainssl.mil.predict import concatenated, load_models, predict_bag, predictions_of
from stainssl.mil.reference import Reference, references, slide_means, stacked
from stainssl.mil.train import FoldModel
from stainssl.plan.encoders import stain_preprocessing
from stainssl.plan.rows import Part
from stainssl.runtime.parallel import TimeSpent
from stainssl.stages import run_stage
from stainssl.stages.attention import write_attention
from stainssl.stages.mil import slide_reader, stain_of_slides
from stainssl.stores.atomic import write_text
from stainssl.stores.tables import read_table, without_formulas, write_table
from stainssl.stores.tiles import read_qc

NEW = "new"  # name of the cohort of new slides in the output folder
INTERVAL = (0.025, 0.975)  # quantiles over the fold models
OUT_OF_RANGE_NOTES = {
    "feature_distance": "its features are outside the task's training range",
    "stain_distance": "its stain is outside the task's training range",
}
UNSTAINED = "no H&E stain found: its stain could not be compared"
log = logging.getLogger(__name__)
Models = dict[tuple[int, int], FoldModel]


@dataclass(frozen=True)
class ModelSelection:
    """Task, encoder and head whose models are applied."""

    task: str
    encoder: str
    head: str


@dataclass(frozen=True)
class ScoredBag:
    """Predictions of all fold models for one bag.

    Attributes:
        means: slide → (D,) mean tile embedding.
        predictions: label ("" if the task has only one) → one row per model.
        attention: one row per tile; the mean over the models, as a percentile rank.
    """

    means: dict[str, np.ndarray]
    predictions: dict[str, pd.DataFrame]
    attention: pd.DataFrame


def run(
    config: Config,
    task: str,
    encoder: str,
    head: str,
    sheet: Path,
    root: Path,
    out: Path,
    pictures: bool = True,
    outside_root: bool = False,
) -> None:
    """Tile, embed and predict new slides with all fold models of a trained task.

    The slides are processed by the same stages as those of the task, so that embeddings and
    predictions are the same. Writes to `out`: `predictions.csv` (one row per patient or slide),
    `slides.csv` (one row per slide: status, distance from the training slides),
    `by-model.parquet`, `attention.parquet` and the folder `attention/`.

    Args:
        config: config of the results that contain the models.
        task, encoder, head: names in this config; the encoder's is that of a run.
        sheet: table with `slide_id`, `patient_id` and `path`; labels are not read.
        root: folder to which the sheet's paths are relative.
        out: output folder.
        pictures: whether to draw pictures of attention; GeoJSON is always written.
        outside_root: whether paths may lie outside `root`.

    Raises:
        StainsslError: the task is of level tile or has no models, a path lies outside `root`, no
            slide can be used, or the disk is full.
    """
    models, reference = _trained(config, task, encoder, head)
    new = config_of_new(config, task, encoder, sheet, root, out, outside_root)
    if found := list(outside_problems(new, NEW, "--root", "give --outside-root")):
        raise StainsslError("\n".join(found))
    for sentence in installed.missing(new):
        log.warning("%s", sentence)
    with translate_disk_errors(out):
        _predict(config, new, ModelSelection(task, encoder, head), models, reference, pictures)


def _trained(
    config: Config, task: str, encoder: str, head: str
) -> tuple[Models, tuple[Reference, Reference]]:
    """Load the fold models of a task and the reference of its training slides.

    Raises:
        StainsslError: there are no models, or they cannot be applied to new slides.
    """
    if config.tasks[task].level == "tile":
        raise StainsslError(
            f"tasks.{task} is of level tile: `predict` answers slide and patient tasks."
        )
    run = config.run(encoder)
    if run.encoder.center:
        raise StainsslError(
            f"encoders.{encoder} is centred by site, and the mean of a new site could only be"
            f" computed on the slides to predict: use encoders.{run.encoder.vectors}."
        )
    if source := config.encoders[config.source_encoder(run.key)].features:
        raise StainsslError(
            f"encoders.{encoder} is imported from files ({source}), without a network to embed new "
            "slides: use an encoder with `method` or `weights`."
        )
    trained = config.paths.mil(task, encoder, head)
    models = load_models(trained / "models")
    return models, references(read_table(trained / "reference.parquet", "reference"))


def _predict(
    config: Config,
    new: Config,
    selection: ModelSelection,
    models: Models,
    reference: tuple[Reference, Reference],
    pictures: bool,
) -> None:
    """Predict the slides of the config `new` and write the results to its results folder."""
    out, encoder, level = new.results, selection.encoder, config.tasks[selection.task].level
    write_text(new.paths.config(), dump(new))  # for `stainssl view`
    spent = TimeSpent()
    slides = _prepared(new, spent)
    with spent.on("scoring"):
        scored = list(_scored(slides, level, slide_reader(_stores(new, encoder), slides), models))
    slides = _with_distances(slides, scored, reference, stain_of_slides(_pixels(new), slides))
    table = without_formulas(slides.drop(columns=["cohort", "part", "unstained"]))
    write_text(out / "slides.csv", table.to_csv(index=False))
    if not scored:
        raise StainsslError(
            f"No slide of {new.cohorts[NEW].sheet} has a usable tile: "
            f"see {out / 'slides.csv'} for the reasons."
        )
    tables = concatenated(one.predictions for one in scored)
    attention = pd.concat([one.attention for one in scored], ignore_index=True)
    known = known_patients(config, selection.task, encoder)
    slides = slides.assign(known=slides["patient_id"].map(known))
    answers = with_label({label: summary(t, slides, level) for label, t in tables.items()})
    settings = {**asdict(selection), "models": len(models)}
    write_table(out / "by-model.parquet", with_label(tables), "predictions", settings)
    write_table(out / "attention.parquet", attention, "attention", settings)
    write_text(out / "predictions.csv", answers.to_csv(index=False, float_format="%.6g"))
    title = f"{selection.task}, {selection.head} on {encoder}"
    with spent.on("attention"):
        write_attention(new, NEW, attention, out / "attention", title, pictures)
    unit = f"{level}_id"
    units = set(answers[unit])
    log.info("%d %s(s) scored by %d models: %s", len(units), level, len(models), out)
    if without := sorted(set(slides[unit]) - units):
        said = "%d %s(s) have no usable slide and no prediction: %s"
        log.warning(said, len(without), level, shown(without))
    log.info("%s", spent.line(len(slides), "slides"))


def config_of_new(
    config: Config,
    task: str,
    encoder: str,
    sheet: Path,
    root: Path,
    out: Path,
    outside_root: bool = False,
) -> Config:
    """Make a config with which new slides are tiled and embedded like those of the task.

    Its only cohort has the new slides, its results are in `out`, and a missing file is a status.
    """
    run = config.run(encoder)
    like = config.cohorts[config.tasks[task].cohorts[0]]
    cohort = Cohort(
        sheet=sheet,
        root=root,
        kind=like.kind,
        tiling=run.encoder.tiling,
        outside_root=outside_root,
    )
    return Config(
        results=out,
        seed=config.seed,
        slides=config.slides.model_copy(update={"on_missing": "quarantine"}),
        cohorts={NEW: cohort},
        tilings=config.tilings,
        encoders=_encoders_of_new(config, run),
    )


def _encoders_of_new(config: Config, run: Run) -> dict[str, Encoder]:
    """The encoder with its model as `weights`, after the one whose embeddings it takes, if any."""
    if (other := config.source_run(run)) is not None:
        vectors = _encoders_of_new(config, other)
        return {**vectors, run.name: run.encoder.model_copy(update={"vectors": other.name})}
    return {
        run.name: Encoder(
            weights=run.encoder.weights or str(config.paths.model(run.name)),
            recipe=run.encoder.recipe if run.encoder.weights else None,
            revision=run.encoder.revision if run.encoder.weights else None,
            tiling=run.encoder.tiling,
            input_size=run.encoder.given_size,
            preprocess=_preprocess(config, run.name),
            normalizer=run.encoder.normalizer,
            compile=run.encoder.compile,
        )
    }


def _preprocess(config: Config, encoder: str) -> bool | str | list[str]:
    """The key `preprocess` with which tiles are normalized like those of the task."""
    found = stain_preprocessing(config, encoder)
    if found is None:  # not normalized, or to the profile in the model's folder
        return False
    named = [REFERENCE if file is None else str(file) for file in found.files]
    return named if found.is_averaged else named[0]


def _prepared(new: Config, spent: TimeSpent) -> pd.DataFrame:
    """Tile and embed the new slides; one row per slide with `status`, `detail` and `tiles`."""
    paths, tables = new.paths, []
    for part, rows in parts(new, NEW).items():
        for verb in ("tile", "pixels"):
            with spent.on(verb):
                run_stage(verb, new, NEW, part)
        for encoder in new.encoders:
            with spent.on("embed"):
                run_stage("embed", new, NEW, encoder, part)
        qc = read_qc(paths.qc(NEW, part))
        qc = qc.rename(columns={"tiles_kept": "tiles"})
        kept = rows[["slide_id", "patient_id", "site"]].assign(cohort=NEW, part=part)
        tables.append(kept.merge(qc[["slide_id", "status", "detail", "tiles"]], on="slide_id"))
    return pd.concat(tables, ignore_index=True)


def _stores(new: Config, encoder: str) -> dict[Part, Path]:
    return {(NEW, p): new.paths.embeddings(NEW, encoder, p) for p in parts(new, NEW)}


def _pixels(new: Config) -> dict[Part, Path]:
    return {(NEW, p): new.paths.pixels(NEW, p) for p in parts(new, NEW)}


def _scored(
    slides: pd.DataFrame, level: str, read: Callable[[str], SlideTiles], models: Models
) -> Iterator[ScoredBag]:
    """Predict one bag after another, so that only one is in memory at a time."""
    unknown = next(iter(models.values())).target.unknown
    for _, rows in slides.assign(label=unknown).groupby(ID_COLUMNS[level], sort=False):
        for bag in bagging.build(rows, level, read)[0]:
            yield _score(bag, models)


def _score(bag: Bag, models: Models) -> ScoredBag:
    mean, tables = AttentionMean(), []
    for (repeat, fold), model in models.items():
        said, attention = predict_bag(model, bag)
        mean.add(bag, attention)
        found = predictions_of(model, [bag], said[None], repeat, fold, unknown=True)
        tables.append({label: _called(table) for label, table in found.items()})
    means = dict(zip(bag.slides, slide_means(bag), strict=True))
    return ScoredBag(means, concatenated(tables), attention_table([bag], mean.means()))


def _called(table: pd.DataFrame) -> pd.DataFrame:
    """Add the column `predicted` (class or risk group) if the label has classes or groups."""
    words = predicted_labels(table)
    return table if words is None else table.assign(predicted=words)


def _with_distances(
    slides: pd.DataFrame,
    scored: list[ScoredBag],
    reference: tuple[Reference, Reference],
    stain: dict[str, np.ndarray],
) -> pd.DataFrame:
    """Add `feature_distance`, `stain_distance` and `unstained`; warn about unusual slides."""
    means = {slide: mean for one in scored for slide, mean in one.means.items()}
    none = np.empty(0, np.float32)
    out = slides.copy()
    for column, known, points in zip(OUT_OF_RANGE_NOTES, reference, (means, stain), strict=True):
        rows = stacked([points.get(slide, none) for slide in slides["slide_id"]])
        if rows.shape[1] != known.points.shape[1]:  # unknown for the new or the training slides
            rows = np.full((len(rows), known.points.shape[1]), np.nan, np.float32)
        out[column] = known.distances(rows)
        for slide, distance in zip(out["slide_id"], out[column], strict=True):
            if distance > 1:
                log.warning(
                    "%s: %s (distance %.2f, limit 1)", slide, OUT_OF_RANGE_NOTES[column], distance
                )
        if not known.is_known:
            log.warning("%s is unknown: nothing is stored of the training slides", column)
    has_none = out["stain_distance"].isna() & out["slide_id"].isin(list(means))
    out["unstained"] = has_none & reference[1].is_known
    for slide in out.loc[out["unstained"], "slide_id"]:
        log.warning("%s: %s", slide, UNSTAINED)
    for row in out[out["status"] != "ok"].itertuples():
        log.warning("%s: left out: %s: %s", row.slide_id, row.status, row.detail)
    return out


def summary(by_model: pd.DataFrame, slides: pd.DataFrame, level: str) -> pd.DataFrame:
    """Summarise the predictions of all fold models in one row per patient or slide.

    Args:
        by_model: one row per unit and fold model, with `p_<class>` (and `threshold` for two
            classes), `value`, or `risk` and `s_<time>`.
        slides: one row per slide, with `tiles`, `feature_distance`, `stain_distance`, and
            optionally `unstained` and `known` (see `known_patients`).
        level: `patient` or `slide`.

    Returns:
        One row per unit, whose columns depend on the kind of label. Means are over the fold
        models, and `low` and `high` are the limits of 95 % of them.

        - its id, and `slides` and `tiles` (numbers of those used);
        - classes: `p_<class>` (mean) with `low_<class>` and `high_<class>`, and `predicted`: for
          two classes by `threshold`, the mean over the models, otherwise the most probable class;
          for ordered classes the median class, with `grade`, the mean rank;
        - numbers: `value` with `low` and `high`;
        - survival: `risk` with `low` and `high`, `s_<time>` with `low_<time>` and `high_<time>`,
          and, if there is a `threshold`, the risk group as `predicted`;
        - `models`, the number of models; `feature_distance` and `stain_distance`, the largest over
          the unit's slides; `note`, on unusual slides and patients known from training.
    """
    unit = ID_COLUMNS[level]
    groups = by_model.groupby(unit, sort=False)
    out = slides[slides["tiles"] > 0].groupby(unit, sort=False).agg(
        slides=("slide_id", "size"), tiles=("tiles", "sum"),
        **{column: (column, "max") for column in OUT_OF_RANGE_NOTES},
    )  # fmt: skip
    out = out.loc[[name for name, _ in groups]]
    for column in prediction_columns(by_model):
        out[column] = groups[column].mean()
        for side, share in zip(("low", "high"), INTERVAL, strict=True):
            out[_limit(side, column)] = groups[column].quantile(share)
    if THRESHOLD in by_model:
        out.insert(2, THRESHOLD, groups[THRESHOLD].mean())
    if GRADE in by_model:
        out.insert(2, GRADE, groups[GRADE].mean())
    if (words := predicted_labels(out)) is not None:
        out.insert(2, "predicted", words)
    out["models"] = groups.size()
    bare = set(slides.loc[slides["unstained"], unit]) if "unstained" in slides else set()
    known = slides.groupby(unit, sort=False)["known"].first() if "known" in slides else pd.Series()
    for name in out.index.intersection(known.dropna().index):
        log.warning("%s: %s", name, known[name])
    out["note"] = [
        "; ".join(_notes(row, name in bare, known.get(name)))
        for name, row in out.to_dict("index").items()
    ]
    return out.reset_index()


def with_label(tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Concatenate the tables of several labels, with a column `label`.

    Classes that a label does not have are empty in its rows. The table of a task with one label
    (key "") is returned unchanged.
    """
    if set(tables) == {""}:
        return tables[""]
    for label, table in tables.items():
        table.insert(1, "label", label)
    return pd.concat(tables.values(), ignore_index=True)


def _limit(side: str, column: str) -> str:
    """Name of the column for the lower or upper limit of a predicted column."""
    return side if column in (VALUE, RISK) else f"{side}_{column.partition('_')[2]}"


def _notes(row: dict[Hashable, Any], is_bare: bool, known: object) -> list[str]:
    told = [said for column, said in OUT_OF_RANGE_NOTES.items() if row[column] > 1]
    told += [UNSTAINED] if is_bare else []
    return [*told, known] if isinstance(known, str) else told


def known_patients(config: Config, task: str, encoder: str) -> dict[str, str]:
    """Patients on which the models or the encoder were trained (patient_id → note)."""
    paths, known = config.paths, {}
    if (seen := paths.seen(encoder)).exists():
        names = pd.read_csv(seen, dtype=str, keep_default_na=False)["patient_id"]
        known = dict.fromkeys(names, "pretraining saw a patient with this id")
    if paths.folds(task).exists():
        names = read_folds(paths.folds(task))["patient_id"]
        known |= dict.fromkeys(names, "the models were trained on a patient with this id")
    return known
