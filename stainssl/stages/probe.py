"""`probe`: embeddings, tile labels and folds → predictions and metrics of a tile task."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import numpy as np
import pandas as pd

from stainssl.cohort import parts
from stainssl.config import Config, Task
from stainssl.errors import StainsslError
from stainssl.evaluation.folds import read_folds
from stainssl.evaluation.labels import labels_of
from stainssl.evaluation.metrics import evaluate
from stainssl.evaluation.probe import Tiles, few_shot, probe
from stainssl.plan.paths import Paths
from stainssl.stores.atomic import replacing
from stainssl.stores.embeddings import open_embeddings
from stainssl.stores.tables import write_table
from stainssl.stores.tiles import read_labels

log = logging.getLogger(__name__)


def run(config: Config, task: str, encoder: str) -> None:
    """Answer a tile task by a linear probe, and by nearest neighbours beside it.

    Writes the folder `probe/`: `predictions.parquet` and `neighbours.parquet` (test tiles),
    `metrics.csv`, where the neighbours' metrics are `knn_…`, and `few_shot.csv`.

    Raises:
        StainsslError: the task is of another level, or its labels cannot be probed.
    """
    spec, paths = config.tasks[task], Paths(config.results)
    if spec.level != "tile":
        raise StainsslError(
            f"tasks.{task} is of level {spec.level}: a probe answers tile tasks; ask `mil`."
        )
    try:
        tiles = labelled_tiles(config, spec, encoder)
        folds = read_folds(paths.folds(task))
        linear, neighbours = probe(tiles, folds, seed=config.seed)
    except StainsslError as error:
        raise StainsslError(f"tasks.{task}: {error}") from None
    metrics = pd.concat(
        [evaluate(linear, "tile", config.seed), _knn(evaluate(neighbours, "tile", config.seed))]
    )
    settings = {"task": task, "encoder": encoder, "seed": config.seed}
    with replacing(paths.probe(task, encoder)) as folder:
        folder.mkdir()
        write_table(folder / "predictions.parquet", linear, "predictions", settings)
        write_table(folder / "neighbours.parquet", neighbours, "predictions", settings)
        metrics.to_csv(folder / "metrics.csv", index=False)
        few_shot(tiles, folds, seed=config.seed).to_csv(folder / "few_shot.csv", index=False)


def _knn(metrics: pd.DataFrame) -> pd.DataFrame:
    return metrics.assign(metric="knn_" + metrics["metric"])


def labelled_tiles(config: Config, task: Task, encoder: str) -> Tiles:
    """The tiles of a task's cohorts that have a known label and a valid vector.

    Raises:
        StainsslError: no tile has both, or the labels lack the task's column.
    """
    blocks = list(_blocks(config, task, encoder))
    kept = [frame for frame, _ in blocks if len(frame)]
    if not kept:
        raise StainsslError(
            f"No tile of {', '.join(task.cohorts)} has both a known {task.label!r} and a valid"
            " vector: check the annotations and the sheet."
        )
    table = pd.concat(kept, ignore_index=True)
    features = np.concatenate([x for frame, x in blocks if len(frame)])
    words = table.pop("label")
    classes = tuple(labels_of(task).order(words))
    y = words.map({name: i for i, name in enumerate(classes)})
    return Tiles(features, np.asarray(y, np.int64), classes, table)


def _blocks(config: Config, task: Task, encoder: str) -> Iterator[tuple[pd.DataFrame, np.ndarray]]:
    # A part at a time: its labelled, valid tiles and their vectors.
    paths = Paths(config.results)
    for cohort in task.cohorts:
        tiling = config.cohorts[cohort].tiling
        for part, sheet in parts(config, cohort).items():
            labels = part_labels(config, task, cohort, part)
            store = open_embeddings(paths.embeddings(cohort, tiling, encoder, part))
            rows = pd.DataFrame(
                {"slide_id": store.slide_of_row, "tile": store.tile, "row": range(len(store))}
            )
            found = rows.merge(labels, on=["slide_id", "tile"])
            known = found[(found["label"] != "") & store.valid[found["row"].to_numpy(int)]]
            log.info(
                "%s %s: %d of %d tiles have a known label and a valid vector",
                cohort, part, len(known), len(store),
            )  # fmt: skip
            features = np.asarray(store.features[:])[known["row"].to_numpy(int)]
            table = known.merge(sheet[["slide_id", "patient_id", "site"]], on="slide_id")
            columns = ["patient_id", "slide_id", "tile", "site", "label"]
            yield table[columns], features.astype(np.float32)


def part_labels(config: Config, task: Task, cohort: str, part: str) -> pd.DataFrame:
    """`slide_id`, `tile` and `label` (class word, "" where unknown) of a part's tiles.

    Raises:
        StainsslError: the labels have no column for the task.
    """
    path = Paths(config.results).labels(cohort, config.cohorts[cohort].tiling, part)
    labels = read_labels(path)
    if task.label not in labels:
        raise StainsslError(
            f"{path} has no label {task.label!r}; it has"
            f" {', '.join(str(c) for c in labels if c not in ('slide_id', 'tile'))}. Correct"
            " the task's label, or name it in the annotations."
        )
    words = labels_of(task).words(labels[task.label])
    return labels[["slide_id", "tile"]].assign(label=words.to_numpy())
