"""`robustness`: measure how a change of stain affects an encoder's embeddings."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from stainssl.encoders.loading import LoadedEncoder
from stainssl.errors import StainsslError
from stainssl.evaluation.folds import read_folds
from stainssl.evaluation.labels import Labels
from stainssl.evaluation.probe import balanced_sample
from stainssl.evaluation.projection import MAX_TILES
from stainssl.evaluation.robustness import measure, measure_unlabelled, most_different
from stainssl.evaluation.stainings import MetricRow, Stainings
from stainssl.plan.encoders import RobustnessJob
from stainssl.plan.rows import Part
from stainssl.runtime.devices import reserve_device
from stainssl.stages.embed import load_source
from stainssl.stages.probe import part_labels, rows_of_part
from stainssl.stain import LabStats, StainProfile, estimate, normalize
from stainssl.stain.restain import restain_reinhard
from stainssl.stores.atomic import replacing
from stainssl.stores.pixels import Pixels, decode, open_pixels
from stainssl.stores.tables import write_table

MAX_COMPARED_TILES = (
    1500  # enough for intervals over patients; a minute on one core with a small backbone
)
_BATCH = 32
_GAP = 16  # largest distance between rows that are read together
log = logging.getLogger(__name__)


Encode = Callable[[torch.Tensor], torch.Tensor]  # (B, 3, H, W) uint8 → (B, D) float32


class ComparedTiles(Protocol):
    """Protocol of N tiles on which robustness is measured.

    Attributes:
        table: N rows: `patient_id`, `slide_id`, `tile`, `site`, `label`.
    """

    @property
    def table(self) -> pd.DataFrame:
        """One row per tile."""
        ...

    def batches(self, use: NDArray[np.bool_] | None = None) -> Iterator[torch.Tensor]:
        """Yield (B, 3, H, W) uint8 batches of all tiles, or of those with True in (N,) `use`."""
        ...


@dataclass(frozen=True)
class TileSample:
    """N tiles of a task as JPEG, with their table. See `ComparedTiles`."""

    jpegs: list[bytes]
    table: pd.DataFrame

    def batches(self, use: NDArray[np.bool_] | None = None) -> Iterator[torch.Tensor]:
        """See `ComparedTiles`."""
        rows = np.arange(len(self.jpegs)) if use is None else np.flatnonzero(use)
        return in_batches(rows, lambda row: decode(self.jpegs[row]))


def in_batches(
    rows: NDArray[np.intp], read: Callable[[int], NDArray[np.uint8]]
) -> Iterator[torch.Tensor]:
    """Yield (B, 3, H, W) uint8 batches of tiles of equal size.

    Args:
        rows: indices of the tiles.
        read: index → (H, W, 3) tile.
    """
    for start in range(0, len(rows), _BATCH):
        images = np.stack([read(row) for row in rows[start : start + _BATCH].tolist()])
        yield torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def run(job: RobustnessJob) -> None:
    """Measure the robustness of an encoder on the tiles of all benchmarks with `robustness: true`.

    For tile tasks, all metrics are computed; for slide and patient tasks, those that need no tile
    labels. A slide or patient task without tiles of two different stainings has no metrics; this is
    logged as a warning.

    Writes the folder `robustness/{encoder}/`: `metrics.csv` with a column `task`,
    `confounded.parquet` (predictions of the confounded test) and `sample.parquet` (some tiles with
    their embeddings).

    Raises:
        StainsslError: an input is missing, or the tiles of a tile task are not sufficient.
    """
    loaded = load_source(job.source, reserve_device())
    figures, predictions, samples = [], [], []
    for name, task in job.tasks.items():
        measured = _measure_task if task["label"] is not None else _measure_unlabelled
        found, predicted, sampled = measured(job, name, loaded)
        samples.append(sampled.assign(task=name))
        figures.append(pd.DataFrame(found, columns=MetricRow._fields).assign(task=name))
        predictions.append(predicted.assign(task=name))
    settings = {"encoder": job.encoder, "seed": job.seed, "stain_method": job.family}
    with replacing(job.output) as folder:
        folder.mkdir()
        sample = pd.concat(samples, ignore_index=True)
        write_table(folder / "sample.parquet", sample, "sample", settings)
        pd.concat(figures)[["task", *MetricRow._fields]].to_csv(folder / "metrics.csv", index=False)
        confounded = pd.concat(predictions, ignore_index=True)
        write_table(folder / "confounded.parquet", confounded, "predictions", settings)


def _measure_task(
    job: RobustnessJob, name: str, encoder: LoadedEncoder
) -> tuple[list[MetricRow], pd.DataFrame, pd.DataFrame]:
    folds = read_folds(job.folds[name])
    sample = draw_sample(job, name, set(folds["patient_id"]))
    first_fold = folds[(folds["repeat"] == folds["repeat"].min()) & (folds["fold"] == 0)]
    training = set(first_fold["patient_id"][first_fold["role"] != "test"])
    targets = two_targets(sample, training, job.family)
    log.info("%s: %d tiles re-stained by %s", name, len(sample.jpegs), job.family)
    stainings = embed_stainings(sample, encoder, targets)
    return *measure(stainings, folds, seed=job.seed), _some_vectors(stainings, job.seed)


def _measure_unlabelled(
    job: RobustnessJob, name: str, encoder: LoadedEncoder
) -> tuple[list[MetricRow], pd.DataFrame, pd.DataFrame]:
    folds = read_folds(job.folds[name])
    try:
        sample = draw_sample(job, name, set(folds["patient_id"]))
        targets = two_targets(sample, set(sample.table["patient_id"]), job.family)
    except StainsslError as error:
        log.warning("%s: no robustness metrics: %s", name, error)
        return [], pd.DataFrame(), pd.DataFrame()
    log.info("%s: %d tiles re-stained by %s", name, len(sample.jpegs), job.family)
    stainings = embed_stainings(sample, encoder, targets)
    figures = measure_unlabelled(stainings, seed=job.seed)
    return figures, pd.DataFrame(), _some_vectors(stainings, job.seed)


def _some_vectors(stainings: Stainings, seed: int) -> pd.DataFrame:
    """Table of at most `MAX_TILES` tiles with their original embedding: `vector`, (D,) float32."""
    patient = stainings.table["patient_id"].to_numpy()
    rows = balanced_sample(patient, MAX_TILES, np.random.default_rng(seed))
    vectors = list(stainings.original[rows].astype(np.float32))
    return stainings.table.iloc[rows].assign(vector=vectors)


def draw_sample(job: RobustnessJob, task: str, patients: set[str]) -> TileSample:
    """Draw at most `MAX_COMPARED_TILES` tiles of a task; the same for every encoder.

    Args:
        job: the job.
        task: name of the task; tiles of a tile task must have a label.
        patients: patients whose tiles are drawn, balanced over them.

    Raises:
        StainsslError: there are no such tiles.
    """
    tiles = pd.concat(_tile_tables(job, task), ignore_index=True)
    tiles = tiles[tiles["patient_id"].isin(patients)].reset_index(drop=True)
    if not len(tiles):
        label = job.tasks[task]["label"]
        asked = f"a known {label.label!r} and " if label else ""
        raise StainsslError(
            f"No tile of tasks.{task} can be used for robustness: none has {asked}a patient in the"
            " folds."
        )
    rng = np.random.default_rng(job.seed)
    rows = balanced_sample(tiles["patient_id"].to_numpy(), MAX_COMPARED_TILES, rng)
    tiles = tiles.iloc[rows].reset_index(drop=True)
    jpegs: list[bytes] = []
    for path, part in tiles.groupby("store", sort=False):
        jpegs += read_jpegs(open_pixels(path), part["row"].to_numpy())
    readable = [bool(jpeg) for jpeg in jpegs]
    table = tiles.loc[readable].drop(columns=["store", "row"]).reset_index(drop=True)
    return TileSample([jpeg for jpeg in jpegs if jpeg], table)


def read_jpegs(store: Pixels, rows: NDArray[np.int64]) -> list[bytes]:
    """Read the JPEGs of ascending rows of a store, rows close to each other in one request."""
    out: list[bytes] = []
    for run in np.split(rows, np.flatnonzero(np.diff(rows) > _GAP) + 1):
        block = store.jpegs(int(run[0]), int(run[-1]) + 1)
        out += [block[row - run[0]] for row in run]
    return out


def _tile_tables(job: RobustnessJob, task: str) -> Iterator[pd.DataFrame]:
    label = job.tasks[task]["label"]
    for part in job.tasks[task]["parts"]:
        tiles = _some_tiles(job, part) if label is None else _labelled_tiles(job, part, label)
        sheet = rows_of_part(job.rows, *part)[["slide_id", "patient_id", "site"]]
        tiles = tiles.merge(sheet, on="slide_id")
        yield tiles.sort_values("row").assign(store=job.pixels[part])


def _labelled_tiles(job: RobustnessJob, part: Part, label: Labels) -> pd.DataFrame:
    """`slide_id`, `tile`, `row` (in the store) and `label` of the labelled tiles of a part."""
    store = open_pixels(job.pixels[part])
    slide = np.asarray(store.slide_id, object)[store.slide]
    tiles = pd.DataFrame({"slide_id": slide, "tile": store.tile, "row": range(len(store))})
    tiles = tiles.merge(part_labels(job.labels[part], label), on=["slide_id", "tile"])
    return tiles[tiles["label"] != ""]


def _some_tiles(job: RobustnessJob, part: Part) -> pd.DataFrame:
    """The same columns for at most `MAX_COMPARED_TILES` tiles of a part, without a label."""
    store = open_pixels(job.pixels[part])
    rng = np.random.default_rng(job.seed)
    rows = balanced_sample(np.asarray(store.slide), MAX_COMPARED_TILES, rng)
    slide = np.asarray(store.slide_id, object)[np.asarray(store.slide)[rows]]
    tile = np.asarray(store.tile)[rows]
    return pd.DataFrame({"slide_id": slide, "tile": tile, "row": rows, "label": ""})


def two_targets(
    sample: ComparedTiles, training: set[str], family: str
) -> tuple[StainProfile, StainProfile]:
    """The pooled stain profiles of the two most different sites, to which tiles are re-stained.

    If the training patients are from one site, their own profiles are compared instead.

    Args:
        sample: tiles that are compared.
        training: patients whose tiles are used.
        family: method by which profiles are estimated.

    Raises:
        StainsslError: fewer than two sites (or patients) have a valid profile.
    """
    ours = sample.table["patient_id"].isin(training).to_numpy()
    column = "site" if sample.table["site"][ours].nunique() > 1 else "patient_id"
    pooled = pooled_profiles(sample, ours, column, family)
    if len(pooled) < 2:
        raise StainsslError(
            f"Robustness needs two stainings in the training part; found {len(pooled)} {column}"
            " with a valid stain profile. Add sites or patients."
        )
    first, second = farthest(pooled)
    log.info("stainings: %s %s and %s", column, first, second)
    return pooled[first], pooled[second]


def pooled_profiles(
    sample: ComparedTiles, use: NDArray[np.bool_], column: str, family: str
) -> dict[str, StainProfile]:
    """Mean stain profile of each group of tiles (group → profile).

    Groups without a valid profile are left out.

    Args:
        sample: N tiles.
        use: (N,) bool, tiles that are used.
        column: column of the table with the groups.
        family: method by which profiles are estimated.
    """
    profiles = StainProfile.cat([estimate(images, family) for images in sample.batches(use)])
    group = sample.table.loc[use, column].to_numpy(str)
    pooled = {name: profiles[torch.from_numpy(group == name)].pooled() for name in np.unique(group)}
    return {name: profile for name, profile in pooled.items() if bool(profile.valid)}


def farthest(profiles: Mapping[str, StainProfile]) -> tuple[str, str]:
    """Names of the two profiles that are farthest apart."""
    names = list(profiles)
    return most_different(np.stack([profiles[n].coordinates().numpy() for n in names]), names)


def restain(images: torch.Tensor, target: StainProfile) -> torch.Tensor:
    """Re-stain (B, 3, H, W) uint8 tiles to a target, by the method of the target."""
    if isinstance(target, LabStats):
        return restain_reinhard(images, target)
    return normalize(images, estimate(images, target.method), target)


def embed_stainings(
    sample: ComparedTiles, encoder: Encode, targets: tuple[StainProfile, StainProfile]
) -> Stainings:
    """Embed the tiles as they are and re-stained to each of two targets."""
    out: list[list[np.ndarray]] = [[], [], []]
    for images in sample.batches():
        views = [images, *(restain(images, target) for target in targets)]
        for kept, view in zip(out, views, strict=True):
            kept.append(encoder(view).float().cpu().numpy())
    original, first, second = (np.concatenate(blocks) for blocks in out)
    return Stainings(original, first, second, sample.table)


def embedded(sample: ComparedTiles, encoder: Encode) -> NDArray[np.float32]:
    """Embed the tiles as they are: (N, D) float32."""
    blocks = [encoder(images).float().cpu().numpy() for images in sample.batches()]
    return np.concatenate(blocks)
