"""`probe`: evaluate the embeddings of tiles by a linear probe and by nearest neighbours."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pandas as pd

from stainssl.errors import StainsslError
from stainssl.evaluation.centring import sites_of
from stainssl.evaluation.collapse import write_mean_cosine
from stainssl.evaluation.evaluate import evaluate
from stainssl.evaluation.folds import read_folds
from stainssl.evaluation.labels import Labels
from stainssl.evaluation.probe import Tiles, few_shot, probe
from stainssl.plan.tasks import ProbeJob
from stainssl.runtime.parallel import TimeSpent
from stainssl.stores.atomic import replacing
from stainssl.stores.embeddings import open_embeddings
from stainssl.stores.tables import write_table
from stainssl.stores.tiles import read_labels

log = logging.getLogger(__name__)


def run(job: ProbeJob) -> None:
    """Fit a linear probe and nearest neighbours in each fold of a tile task and evaluate them.

    Writes the folder `probe/`: `predictions.parquet` and `neighbours.parquet` (test tiles),
    `metrics.csv` (with `knn_…` for nearest neighbours), `few_shot.csv` and `spread.json`.

    Raises:
        StainsslError: the labels are not suitable for a probe.
    """
    spent = TimeSpent()
    try:
        with spent.on("reading"):
            tiles, folds = labelled_tiles(job), read_folds(job.folds)
        weight = "balanced" if job.is_balanced else None
        with spent.on("fitting"):
            linear, neighbours = probe(
                tiles, folds, seed=job.seed, class_weight=weight, decision_rule=job.decision_rule
            )
    except StainsslError as error:
        raise StainsslError(f"tasks.{job.task}: {error}") from None
    with spent.on("few shots"):
        few = few_shot(tiles, folds, seed=job.seed)
    with spent.on("metrics"):
        metrics = pd.concat(
            [evaluate(linear, "tile", job.seed), _knn(evaluate(neighbours, "tile", job.seed))]
        )
    settings = {"task": job.task, "encoder": job.encoder, "seed": job.seed}
    with spent.on("writing"), replacing(job.output) as folder:
        folder.mkdir()
        write_table(folder / "predictions.parquet", linear, "predictions", settings)
        write_table(folder / "neighbours.parquet", neighbours, "predictions", settings)
        metrics.to_csv(folder / "metrics.csv", index=False)
        made_of = open_embeddings(next(iter(job.embeddings.values()))).settings
        write_mean_cosine([tiles.features], folder, made_by=made_of)
        few.to_csv(folder / "few_shot.csv", index=False)
    log.info("%s", spent.line(len(tiles.y), "tiles"))


def _knn(metrics: pd.DataFrame) -> pd.DataFrame:
    return metrics.assign(metric="knn_" + metrics["metric"])


def labelled_tiles(job: ProbeJob) -> Tiles:
    """Read the tiles of a task that have a known label and a valid embedding.

    Raises:
        StainsslError: no tile has both, or the labels lack the task's column.
    """
    blocks = [_block(job, *part) for part in job.embeddings]
    kept = [frame for frame, _ in blocks if len(frame)]
    if not kept:
        cohorts = ", ".join(dict.fromkeys(cohort for cohort, _ in job.embeddings))
        raise StainsslError(
            f"No tile of {cohorts} has both a known {job.label.label!r} and a valid"
            " embedding: check the annotations and the sheet."
        )
    table = pd.concat(kept, ignore_index=True)
    features = np.concatenate([x for frame, x in blocks if len(frame)])
    words = table.pop("label")
    classes = tuple(job.label.order(words))
    y = np.asarray(words.map({name: i for i, name in enumerate(classes)}), np.int64)
    center = table.pop("center").to_numpy(object)
    return Tiles(features, y, classes, table, center if job.center else None)


def _block(job: ProbeJob, cohort: str, part: str) -> tuple[pd.DataFrame, np.ndarray]:
    """Table and (n, D) float32 embeddings of the labelled and valid tiles of a part."""
    labels = part_labels(job.labels[cohort, part], job.label)
    store = open_embeddings(job.embeddings[cohort, part])
    rows = pd.DataFrame(
        {"slide_id": store.slide_of_row, "tile": store.tile, "row": range(len(store))}
    )
    found = rows.merge(labels, on=["slide_id", "tile"])
    known = found[(found["label"] != "") & store.valid[found["row"].to_numpy(int)]]
    log.info(
        "%s %s: %d of %d tiles have a known label and a valid embedding",
        cohort, part, len(known), len(store),
    )  # fmt: skip
    features = np.asarray(store.features[:])[known["row"].to_numpy(int)]
    sheet = rows_of_part(job.rows, cohort, part)
    sheet = sheet.assign(center=sites_of(sheet))
    table = known.merge(sheet[["slide_id", "patient_id", "site", "center"]], on="slide_id")
    columns = ["patient_id", "slide_id", "tile", "site", "center", "label"]
    return table[columns], features.astype(np.float32)


def rows_of_part(rows: pd.DataFrame, cohort: str, part: str) -> pd.DataFrame:
    """Select the rows of one part from a table with the columns `cohort` and `part`."""
    return rows[(rows["cohort"] == cohort) & (rows["part"] == part)]


def part_labels(path: Path, label: Labels) -> pd.DataFrame:
    """Read the labels of a part's tiles.

    Args:
        path: tile labels of the part.
        label: column of the label and meaning of its values.

    Returns:
        `slide_id`, `tile` and `label` (class name, "" if unknown).

    Raises:
        StainsslError: the file has no such column.
    """
    labels = read_labels(path)
    if label.label not in labels:
        raise StainsslError(
            f"{path} has no label {label.label!r}; it has"
            f" {', '.join(str(c) for c in labels if c not in ('slide_id', 'tile'))}. Correct"
            " the task's label, or name it in the annotations."
        )
    words = label.words(labels[label.label])
    return labels[["slide_id", "tile"]].assign(label=words.to_numpy())
