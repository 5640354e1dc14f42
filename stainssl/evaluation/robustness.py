"""Robustness of an encoder's embeddings, and of probes on them, to stain and site."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stainssl.errors import StainsslError
from stainssl.evaluation.evaluate import evaluate
from stainssl.evaluation.folds import class_order, make_folds
from stainssl.evaluation.geometry import geometry, retrieval, similarity
from stainssl.evaluation.intervals import combine
from stainssl.evaluation.metrics import estimate
from stainssl.evaluation.predictions import read_scored
from stainssl.evaluation.site_effects import (
    VALUE_COLUMNS,
    probe_predictions,
    robustness_indices,
    site_probe,
)
from stainssl.evaluation.stainings import MetricRow, Stainings, Vectors
from stainssl.evaluation.table import FEW_PATIENTS

log = logging.getLogger(__name__)
CONFOUNDING = 0.9  # share of training tiles whose stain agrees with the label


def _auroc_rows(metric: str, predictions: pd.DataFrame, seed: int) -> list[MetricRow]:
    rows = evaluate(predictions, "tile", seed)
    rows = rows[rows["metric"] == "auroc"]
    return [MetricRow(metric, *row) for row in rows[VALUE_COLUMNS].itertuples(index=False)]


def confounded_vectors(
    stainings: Stainings, share: float, seed: int, positive: str
) -> tuple[Vectors, Vectors]:
    """Training embeddings with stain and label confounded, and test embeddings with it reversed.

    Args:
        stainings: labelled tiles.
        share: share of training tiles whose stain agrees with the label (first staining: positive
            class); 0.5 is no confounding.
        seed: of the draw, which is the same for all encoders.
        positive: name of the positive class.

    Returns:
        Two arrays (N, D), from which the rows of training and of test patients are taken.
    """
    rng = np.random.default_rng(seed)
    is_positive = (stainings.table["label"] == positive).to_numpy()
    follows = rng.random(len(is_positive)) < share
    first_in_training = is_positive == follows
    both = stainings.first, stainings.second
    train, test = (
        np.where(first[:, None], *both) for first in (first_in_training, ~first_in_training)
    )
    return train, test


def confounded_test(
    stainings: Stainings, folds: pd.DataFrame, seed: int
) -> tuple[list[MetricRow], pd.DataFrame]:
    """AUROC of a probe trained where stain and label agree in 90 % of tiles, tested reversed.

    `mixed_auroc` is the same with stain and label independent. The difference is the cost of the
    shortcut, without that of re-staining.

    Args:
        stainings: labelled tiles of patients in `folds`.
        folds: folds of the task.
        seed: random seed.

    Returns:
        `confounded_auroc` and `mixed_auroc`, over all tiles and per site, and the predictions of
        the confounded test. Both are empty unless the task has two classes.
    """
    classes = class_order(stainings.table["label"].unique().tolist())
    if len(classes) != 2:
        log.info("confounded test skipped: it needs two classes, found %d", len(classes))
        return [], pd.DataFrame()
    rows, kept = [], pd.DataFrame()
    for name, share in (("mixed_auroc", 0.5), ("confounded_auroc", CONFOUNDING)):
        train, test = confounded_vectors(stainings, share, seed, classes[1])
        kept = probe_predictions(train, test, stainings.table, folds, seed)
        rows += _auroc_rows(name, kept, seed)
    return rows, kept


def site_metrics(stainings: Stainings, folds: pd.DataFrame, seed: int) -> list[MetricRow]:
    """AUROC of a probe on the original tiles: over all, per site, of the worst site, and its drop.

    The drop is to sites not used in training: the out-of-fold AUROC on the training patients minus
    that on the test patients. It needs a single fold whose test sites are not among its training
    sites, and is left out otherwise.
    """
    predicted = probe_predictions(
        stainings.original, stainings.original, stainings.table, folds, seed
    )
    rows = _auroc_rows("clean_auroc", predicted, seed)
    per_site = [f for f in rows if f.group != "all" and np.isfinite(f.value)]
    per_site = [f for f in per_site if f.patients >= FEW_PATIENTS] or per_site
    if per_site:
        worst = min(per_site, key=lambda row: row.value)
        rows.append(worst._replace(metric="worst_site_auroc"))
    return rows + _site_drop(stainings, folds, predicted, seed)


def _site_drop(
    stainings: Stainings, folds: pd.DataFrame, unseen: pd.DataFrame, seed: int
) -> list[MetricRow]:
    first = folds[(folds["repeat"] == folds["repeat"].min()) & (folds["fold"] == 0)]
    one_fold = len(folds) == len(first)
    role = stainings.table["patient_id"].map(first.set_index("patient_id")["role"])
    tested, sites = (role == "test").to_numpy(), stainings.table["site"]
    if not one_fold or set(sites[tested]) & set(sites[~tested]):
        log.info("drop to held-out sites skipped: it needs one fold with held-out test sites")
        return []
    seen = _seen_predictions(stainings, ~tested, seed)
    if seen is None:
        return []
    drop = combine(
        [
            estimate("auroc", read_scored(rows, "tile"), seed=own_seed)
            for rows, own_seed in ((seen, seed), (unseen, seed + 1))
        ],
        [1, -1],
    )
    patients = stainings.patient[role.notna().to_numpy()]
    return [*_auroc_rows("seen_site_auroc", seen.drop(columns="site"), seed),
            MetricRow("site_drop", "all", drop.value, *drop.interval,
                   len(np.unique(patients)), len(patients))]  # fmt: skip


def _seen_predictions(
    stainings: Stainings, training: NDArray[np.bool_], seed: int
) -> pd.DataFrame | None:
    # Out-of-fold predictions for the training patients, in new folds among them.
    table = stainings.table[training]
    by_patient = table.groupby("patient_id")
    patients = by_patient[["label", "site"]].agg({"label": "max", "site": "first"}).reset_index()
    try:
        folds = make_folds(
            patients.assign(label=""), kind="cv", folds=5, stratify=["site"], seed=seed
        )
        vectors = stainings.original[training]
        return probe_predictions(vectors, vectors, table, folds, seed)
    except StainsslError as error:
        log.info("drop to held-out sites skipped: %s", error)
        return None


def measure_unlabelled(stainings: Stainings, *, seed: int = 0) -> list[MetricRow]:
    """All robustness metrics that need no label."""
    return [
        row
        for part in (similarity, retrieval, geometry, site_probe)
        for row in part(stainings, seed)
    ]


def measure(
    stainings: Stainings, folds: pd.DataFrame, *, seed: int = 0
) -> tuple[list[MetricRow], pd.DataFrame]:
    """All robustness metrics of one encoder on the tiles of one task.

    Args:
        stainings: labelled tiles of patients in `folds`.
        folds: folds of the task.
        seed: random seed of resamples and draws.

    Returns:
        The metrics, and the predictions of the confounded test (empty unless the task has two
        classes).
    """
    rows = [*measure_unlabelled(stainings, seed=seed), *robustness_indices(stainings, seed)]
    tests, predictions = confounded_test(stainings, folds, seed)
    return [*rows, *tests, *site_metrics(stainings, folds, seed)], predictions


def most_different(coordinates: NDArray[Any], names: Sequence[str]) -> tuple[str, str]:
    """The two of G names whose coordinates (G, D) lie farthest apart, in the order of `names`."""
    distance = np.linalg.norm(coordinates[:, None] - coordinates[None], axis=-1)
    i, j = np.unravel_index(int(np.argmax(np.triu(distance))), distance.shape)
    return names[int(i)], names[int(j)]
