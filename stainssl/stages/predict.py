"""`predict`: new slides and a trained task → what every fold model says, and where it looks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stainssl.cohort import installed, outside_problems, parts
from stainssl.config import REFERENCE, Cohort, Config, Encoder, Run, dump
from stainssl.errors import StainsslError, disk_faults_told
from stainssl.evaluation.folds import GRADE, RISK, VALUE, read_folds
from stainssl.evaluation.predictions import THRESHOLD, answer_columns, words_called
from stainssl.mil import bags as bagging
from stainssl.mil.attention import AttentionMean, attention_table
from stainssl.mil.bags import ID_COLUMNS, Bag, SlideTiles
from stainssl.mil.predict import end_to_end, load_models, predict_bag, predictions_of
from stainssl.mil.reference import Reference, references, slide_means, stacked
from stainssl.mil.train import FoldModel
from stainssl.plan.encoders import standard_of
from stainssl.plan.rows import Part
from stainssl.runtime.parallel import TimeSpent
from stainssl.stages import run_stage
from stainssl.stages.attention import write_attention
from stainssl.stages.mil import slide_reader, stain_of_slides
from stainssl.stores.atomic import write_text
from stainssl.stores.tables import read_table, without_formulas, write_table
from stainssl.stores.tiles import read_qc

NEW = "new"  # the cohort's name in the folder of predictions
INTERVAL = (0.025, 0.975)  # quantiles over the fold models
FOREIGN = {
    "feature_distance": "its features are outside the task's training range",
    "stain_distance": "its stain is outside the task's training range",
}
UNSTAINED = "no H&E stain found: its stain could not be compared"
log = logging.getLogger(__name__)
Models = dict[tuple[int, int], FoldModel]


@dataclass(frozen=True)
class Asked:
    """Which of a config's models answer."""

    task: str
    encoder: str
    head: str


@dataclass(frozen=True)
class ScoredBag:
    """What the fold models say of one bag.

    Attributes:
        means: slide → (D,) its mean tile embedding.
        predictions: label ("" where the task has one) → a row per model.
        attention: a row per tile.
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
    """Tile, embed and score new slides with all fold models of a trained task.

    The slides go through the same stages as the task's own, under `out`, so that a slide gets the
    same vectors and each fold model the same answer. Writes there `predictions.csv` (a row per
    patient or slide), `slides.csv` (a row per slide: what it ended as, how far it lies from what
    the task was trained on), `by-model.parquet`, `attention.parquet` and the folder `attention/`.

    Args:
        config: of the results that hold the task's models.
        sheet: `slide_id`, `patient_id`, `path`; a label is not needed and not read.
        root: what the sheet's paths are relative to.
        out: a folder for what is made.
        pictures: whether to draw attention, beside its GeoJSON.
        outside_root: whether the sheet's paths may leave `root`.

    Raises:
        StainsslError: the task is of level tile or has no models, a path leaves `root`, no slide
            can be used, or the disk is full.
    """
    models, reference = _trained(config, task, encoder, head)
    new = config_of_new(config, task, encoder, sheet, root, out, outside_root)
    if found := list(outside_problems(new, NEW, "--root", "give --outside-root")):
        raise StainsslError("\n".join(found))
    for sentence in installed.missing(new):
        log.warning("%s", sentence)
    with disk_faults_told(out):
        _predict(config, new, Asked(task, encoder, head), models, reference, pictures)


def _trained(
    config: Config, task: str, encoder: str, head: str
) -> tuple[Models, tuple[Reference, Reference]]:
    """The fold models of a task, and what slides are compared with.

    Raises:
        StainsslError: there are none that new slides could be given to.
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
    if source := config.encoders[config.origin(run.key)].features:
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
    asked: Asked,
    models: Models,
    reference: tuple[Reference, Reference],
    pictures: bool,
) -> None:
    """Answer for the slides of `new`, and write it where that has its results."""
    out, encoder, level = new.results, asked.encoder, config.tasks[asked.task].level
    write_text(new.paths.config(), dump(new))  # `stainssl view` opens the folder by it
    spent = TimeSpent()
    slides = _prepared(new, spent)
    with spent.on("scoring"):
        scored = list(_scored(slides, level, slide_reader(_stores(new, encoder), slides), models))
    slides = _with_distances(slides, scored, reference, stain_of_slides(_pixels(new), slides))
    shown = without_formulas(slides.drop(columns=["cohort", "part", "unstained"]))
    write_text(out / "slides.csv", shown.to_csv(index=False))
    if not scored:
        raise StainsslError(
            f"No slide of {new.cohorts[NEW].sheet} has a usable tile: "
            f"see {out / 'slides.csv'} for the reasons."
        )
    tables = end_to_end(one.predictions for one in scored)
    attention = pd.concat([one.attention for one in scored], ignore_index=True)
    known = known_patients(config, asked.task, encoder)
    slides = slides.assign(known=slides["patient_id"].map(known))
    answers = with_label({label: summary(t, slides, level) for label, t in tables.items()})
    settings = {**asdict(asked), "models": len(models)}
    write_table(out / "by-model.parquet", with_label(tables), "predictions", settings)
    write_table(out / "attention.parquet", attention, "attention", settings)
    write_text(out / "predictions.csv", answers.to_csv(index=False, float_format="%.6g"))
    title = f"{asked.task}, {asked.head} on {encoder}"
    with spent.on("attention"):
        write_attention(new, NEW, attention, out / "attention", title, pictures)
    log.info("%d %s(s) scored by %d models: %s", len(answers), level, len(models), out)
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
    """The config under which new slides are tiled and embedded as the task's own were.

    A missing file costs its slide, and the results go under `out`.
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
    """The encoder as given weights, and before it the one whose vectors it takes, if any."""
    if (other := config.origin_run(run)) is not None:
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
    """What the new slides' tiles are normalized to: as the task's own were."""
    found = standard_of(config, encoder)
    if found is None:  # nothing, or the model's folder says
        return False
    named = [REFERENCE if file is None else str(file) for file in found.files]
    return named if found.is_averaged else named[0]


def _prepared(new: Config, spent: TimeSpent) -> pd.DataFrame:
    """The new slides, tiled and embedded: the sheet's columns, `status`, `detail` and `tiles`."""
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
    """Bags one after another, so that the tiles of one are in memory at a time."""
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
    return ScoredBag(means, end_to_end(tables), attention_table([bag], mean.means()))


def _called(table: pd.DataFrame) -> pd.DataFrame:
    """Predictions with the class, or the group of risk, that is called, where any is."""
    words = words_called(table)
    return table if words is None else table.assign(predicted=words)


def _with_distances(
    slides: pd.DataFrame,
    scored: list[ScoredBag],
    reference: tuple[Reference, Reference],
    stain: dict[str, np.ndarray],
) -> pd.DataFrame:
    """The slides with `feature_distance` and `stain_distance`; says which lie outside."""
    means = {slide: mean for one in scored for slide, mean in one.means.items()}
    none = np.empty(0, np.float32)
    out = slides.copy()
    for column, known, points in zip(FOREIGN, reference, (means, stain), strict=True):
        rows = stacked([points.get(slide, none) for slide in slides["slide_id"]])
        if rows.shape[1] != known.points.shape[1]:  # not known of one side
            rows = np.full((len(rows), known.points.shape[1]), np.nan, np.float32)
        out[column] = known.distances(rows)
        for slide, distance in zip(out["slide_id"], out[column], strict=True):
            if distance > 1:
                log.warning("%s: %s (distance %.2f, limit 1)", slide, FOREIGN[column], distance)
        if not known.points.size:
            log.warning("%s is unknown: no reference to compare the slides with", column)
    has_none = out["stain_distance"].isna() & out["slide_id"].isin(list(means))
    out["unstained"] = has_none & bool(reference[1].points.size)
    for slide in out.loc[out["unstained"], "slide_id"]:
        log.warning("%s: %s", slide, UNSTAINED)
    for row in out[out["status"] != "ok"].itertuples():
        log.warning("%s: left out: %s: %s", row.slide_id, row.status, row.detail)
    return out


def summary(by_model: pd.DataFrame, slides: pd.DataFrame, level: str) -> pd.DataFrame:
    """One row per patient or slide.

    Args:
        by_model: a row per unit and fold model, with `p_<class>` and, of two classes, `threshold`;
            with `value`, or with `risk` and `s_<time>`.
        slides: a row per slide, with `tiles`, `feature_distance`, `stain_distance`.
        level: `patient` or `slide`.

    Returns:
        The unit's id, `slides` and `tiles` that were used, `predicted` (by the mean of the fold
        models' thresholds, as an external cohort is judged; without thresholds the most probable
        class), `threshold`, where there are two classes, `p_<class>` (mean over the fold models)
        with `low_<class>` and `high_<class>` (95 % of them); of ordered classes `grade`
        and the median class; of a number `value`, `low` and `high`
        instead of all these; of survival `risk`, `low`, `high`, and `s_<time>` with `low_<time>`
        and `high_<time>`, and the group of risk as `predicted`; `models`, the largest of
        its slides' distances, and `note`: what lies outside, and whether the patient is known.
    """
    unit = ID_COLUMNS[level]
    groups = by_model.groupby(unit, sort=False)
    out = slides[slides["tiles"] > 0].groupby(unit, sort=False).agg(
        slides=("slide_id", "size"), tiles=("tiles", "sum"),
        **{column: (column, "max") for column in FOREIGN},
    )  # fmt: skip
    out = out.loc[[name for name, _ in groups]]
    for column in answer_columns(by_model):
        out[column] = groups[column].mean()
        for side, share in zip(("low", "high"), INTERVAL, strict=True):
            out[_limit(side, column)] = groups[column].quantile(share)
    if THRESHOLD in by_model:
        out.insert(2, THRESHOLD, groups[THRESHOLD].mean())
    if GRADE in by_model:
        out.insert(2, GRADE, groups[GRADE].mean())
    if (words := words_called(out)) is not None:
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
    """The tables of several labels end to end, with a column `label`; one of one label as it is.

    A class that a label does not have is empty in its rows.
    """
    if set(tables) == {""}:
        return tables[""]
    for label, table in tables.items():
        table.insert(1, "label", label)
    return pd.concat(tables.values(), ignore_index=True)


def _limit(side: str, column: str) -> str:
    """The name of a limit of a column of answers."""
    return side if column in (VALUE, RISK) else f"{side}_{column.partition('_')[2]}"


def _notes(row: dict[Hashable, Any], is_bare: bool, known: object) -> list[str]:
    told = [said for column, said in FOREIGN.items() if row[column] > 1]
    told += [UNSTAINED] if is_bare else []
    return [*told, known] if isinstance(known, str) else told


def known_patients(config: Config, task: str, encoder: str) -> dict[str, str]:
    """Patients that the models, or the encoder in pretraining, were trained on: id → a note."""
    paths, known = config.paths, {}
    if (seen := paths.seen(encoder)).exists():
        names = pd.read_csv(seen, dtype=str, keep_default_na=False)["patient_id"]
        known = dict.fromkeys(names, "pretraining saw a patient with this id")
    if paths.folds(task).exists():
        names = read_folds(paths.folds(task))["patient_id"]
        known |= dict.fromkeys(names, "the models were trained on a patient with this id")
    return known
