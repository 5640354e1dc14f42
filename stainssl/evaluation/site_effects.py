"""Predict the site from embeddings; robustness index and CRoMa of labels against sites."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stainssl.evaluation.evaluate import evaluate
from stainssl.evaluation.folds import class_order, each_fold, make_folds
from stainssl.evaluation.probe import balanced_sample, linear_probe
from stainssl.evaluation.stainings import (
    Ints,
    MetricRow,
    Stainings,
    Vectors,
    index,
    jackknife_metric,
    mean_metric,
    median_metric,
)

log = logging.getLogger(__name__)
CROMA_NEIGHBOURS = (5, 11, 21)
CROMA_TILES = 600  # takes 20 s, as the package's search for neighbors is slow


def site_probe(stainings: Stainings, seed: int) -> Iterator[MetricRow]:
    """Balanced accuracy of a linear probe that predicts the site of held-out patients; and chance.

    Sites with fewer than three patients are left out. Nothing, with the reason in the log, if
    fewer than two sites are left.
    """
    sites = stainings.table.groupby("patient_id")["site"].first()
    sites = sites[sites != ""]
    counts = sites.value_counts()
    sites = sites[sites.map(counts) >= 3]  # for testing, validation and training
    if sites.nunique() < 2:
        log.info("site probe skipped: two sites with three patients each are needed")
        return
    patients = pd.DataFrame({"patient_id": sites.index, "label": sites.to_numpy()})
    folds = int(min(5, patients["label"].value_counts().min()))
    kept = stainings.table["patient_id"].isin(set(sites.index)).to_numpy()
    split = make_folds(patients, kind="cv", folds=folds, seed=seed)
    yield from _site_probe_rows(
        stainings.original[kept], stainings.table[kept], split, sites.nunique(), seed
    )


def shared_site_probe(stainings: Stainings, seed: int) -> Iterator[MetricRow]:
    """As `site_probe`, if every patient is at every site: tissue stained at several sites.

    Nothing, with the reason in the log, for fewer than three patients.
    """
    table = stainings.table
    patients = table[["patient_id"]].drop_duplicates().assign(label="")
    if len(patients) < 3:
        log.info("site probe skipped: three patients are needed")
        return
    split = make_folds(patients, kind="cv", folds=min(5, len(patients)), seed=seed)
    yield from _site_probe_rows(stainings.original, table, split, table["site"].nunique(), seed)


def _site_probe_rows(
    vectors: Vectors, table: pd.DataFrame, split: pd.DataFrame, sites: int, seed: int
) -> Iterator[MetricRow]:
    labelled = table.assign(label=table["site"])
    predicted = probe_predictions(vectors, vectors, labelled, split, seed)
    row = evaluate(predicted.drop(columns="site"), "tile", seed).set_index("metric")
    found = row.loc["balanced_accuracy"]
    yield MetricRow("site_predictability", *found[VALUE_COLUMNS])
    chance = 1 / sites
    yield MetricRow("site_chance", "all", chance, chance, chance, *found[["patients", "units"]])


VALUE_COLUMNS = ["group", "value", "low", "high", "patients", "units"]


def robustness_indices(stainings: Stainings, seed: int) -> Iterator[MetricRow]:
    """Robustness index (PathoROB) and CRoMa of labels against sites, by the package `croma`.

    Up to `CROMA_TILES` tiles of known site are used; tiles of the same patient are not neighbors of
    each other. Nothing, with the reason in the log, unless there are at least two labels and each
    occurs at two sites.
    """
    table = stainings.table
    known = np.flatnonzero(table["site"] != "")
    rng = np.random.default_rng(seed)
    patient = table["patient_id"].to_numpy(str)
    known = known[balanced_sample(patient[known], CROMA_TILES, rng)]
    table = table.iloc[known]
    crossed = table.groupby("label")["site"].nunique()
    if len(crossed) < 2 or crossed.min() < 2:
        log.info("robustness index skipped: it needs two labels that each occur at two sites")
        return
    patient_of = index(table["patient_id"])
    features, manifest = stainings.original[known].astype(np.float64), _manifest(table)
    try:
        yield from _robustness_index(features, manifest, patient_of, seed)
    except (ValueError, RuntimeError) as error:  # too few neighbors of a kind, or equal vectors
        log.info("robustness index skipped: %s", error)
    try:
        yield _margin(features, manifest, patient_of, seed)
    except (ValueError, RuntimeError) as error:
        log.info(
            "CRoMa skipped: each tile needs tiles of other patients with its label at another site"
            " and with another label at its site (%s)", error,
        )  # fmt: skip


def _manifest(table: pd.DataFrame) -> pd.DataFrame:
    """Tiles as the package `croma` reads them."""
    return pd.DataFrame(
        {
            "sample_id": np.arange(len(table)).astype(str),
            "image_path": "",
            "label": table["label"].to_numpy(),
            "group_id": table["patient_id"].to_numpy(),
            "site": table["site"].to_numpy(),
        }
    )


def _robustness_index(
    features: NDArray[np.float64], manifest: pd.DataFrame, patient: Ints, seed: int
) -> Iterator[MetricRow]:
    from croma import RI

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # low support, which is reported below
        ri = RI.compute(features, manifest, confounder_column="site", k_candidates=CROMA_NEIGHBOURS)

    def index_of(kept: NDArray[np.bool_]) -> float:
        part = manifest[kept].reset_index(drop=True)
        return RI.compute_curve(features[kept], part, confounder_column="site", k_values=[ri.k])[
            ri.k
        ]

    yield jackknife_metric("robustness_index", index_of, patient)
    yield mean_metric(
        "robustness_index_support", np.isfinite(ri.sample_values_aligned), patient, seed
    )


def _margin(
    features: NDArray[np.float64], manifest: pd.DataFrame, patient: Ints, seed: int
) -> MetricRow:
    from croma import CRoMa

    margin = CRoMa.compute(features, manifest, confounder_column="site")
    return median_metric("croma", margin.sample_values_aligned, patient, seed)


def probe_predictions(
    train: Vectors, test: Vectors, table: pd.DataFrame, folds: pd.DataFrame, seed: int
) -> pd.DataFrame:
    """Test predictions of a linear probe for `label` in all folds.

    Args:
        train, test: (N, D) embeddings of the same tiles for training and for testing.
        table: N rows: `patient_id`, `label`; further columns are kept.
        folds: as returned by `make_folds`.
        seed: random seed of the probe.

    Returns:
        The test rows of `table` with `label` as `y`, `repeat`, `fold` and `p_<class>`.
    """
    classes = class_order(table["label"].unique().tolist())
    y = table["label"].map({name: i for i, name in enumerate(classes)}).to_numpy()
    patient = table["patient_id"].to_numpy()
    parts = []
    for repeat, fold, role in each_fold(folds):
        fit = np.isin(patient, sorted(role["train"] | role["val"]))
        tested = np.isin(patient, sorted(role["test"]))
        val = np.isin(patient[fit], sorted(role["val"]))
        model, _ = linear_probe(train[fit], y[fit], patient[fit], val, len(classes), seed)
        p = pd.DataFrame(model(test[tested]), columns=[f"p_{name}" for name in classes])
        rows = table[tested].reset_index(drop=True).rename(columns={"label": "y"})
        parts.append(pd.concat([rows.assign(repeat=repeat, fold=fold), p], axis=1))
    return pd.concat(parts, ignore_index=True)
