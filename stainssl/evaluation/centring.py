"""Center embeddings by site: subtract the mean of the site's training patients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stainssl.evaluation.folds import each_fold

Means = dict[str, NDArray[np.float32]]
Names = Sequence[str] | NDArray[Any]
SHOWN = 5  # slides that a message names; the rest are counted


def sites_of(rows: pd.DataFrame) -> pd.Series:
    """Site of each row of a sheet; the cohort if `site` is empty."""
    return rows["site"].fillna("").astype(str).where(lambda site: site != "", rows["cohort"])


def site_means(vectors: NDArray[np.floating], slide: Names, site: Names) -> Means:
    """Mean vector of each site: the mean of its slides' means, so that slides have equal weight.

    Args:
        vectors: (N, D) vectors of tiles or slides of the training part.
        slide: N slide names.
        site: N site names.

    Returns:
        Site → (D,) float32.
    """
    keys = [np.asarray(site, object), np.asarray(slide, object)]
    of_slides = pd.DataFrame(np.asarray(vectors, np.float64)).groupby(keys, sort=False).mean()
    means = of_slides.groupby(level=0).mean()
    return {str(name): row.to_numpy(np.float32) for name, row in means.iterrows()}


def centred(vectors: NDArray[np.float32], site: Names, means: Means) -> NDArray[np.float32]:
    """Subtract the mean of its site from each of (N, D) vectors."""
    if not len(site):
        return vectors
    names = {name: i for i, name in enumerate(means)}
    table = np.stack(list(means.values()))
    return vectors - table[[names[one] for one in site]]


def unknown_sites(slides: pd.DataFrame, folds: pd.DataFrame) -> list[str]:
    """Test slides of sites without training patients: a phrase per fold and site.

    Args:
        slides: one row per labelled slide: `slide_id`, `patient_id` and `site` (see `sites_of`).
        folds: as returned by `make_folds`.
    """
    found = []
    for repeat, fold, role in each_fold(folds):
        trains = slides["patient_id"].isin(role["train"] | role["val"])
        tested = slides[slides["patient_id"].isin(role["test"])]
        lone = tested[~tested["site"].isin(set(slides.loc[trains, "site"]))]
        for site, rows in lone.groupby("site"):
            names = rows["slide_id"].tolist()
            rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            shown = ", ".join(map(str, names[:SHOWN]))
            found.append(f"repeat {repeat} fold {fold}, site {site!r} ({shown}{rest})")
    return found
