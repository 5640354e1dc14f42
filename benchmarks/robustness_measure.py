"""Metrics of the robustness of one encoder to changes of stain, for one run.

`benchmarks/robustness_real.py` trains the encoders and calls `run_values`. This module does not
depend on files, folds or seeds.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations

import cv2
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from stainssl.evaluation.geometry import effective_rank
from stainssl.evaluation.probe import Linear, linear_probe
from stainssl.evaluation.robustness import most_different
from stainssl.evaluation.stainings import unit_length
from stainssl.pretrain.losses import alignment, uniformity
from stainssl.stain import StainProfile, estimate
from stainssl.stain.density import DEFAULTS, Constants, optical_density
from stainssl.stain.profile import LabStats
from stainssl.stain.restain import restain_reinhard
from stainssl.stain.torch_backend import in_chunks
from stainssl.stores.pixels import decode, encode

log = logging.getLogger(__name__)
ORIGINAL, SHIFTED, DOSE = "as it is", "od shift", "dose"
SHIFT = 0.4  # strength of `od_shift`: a channel's OD times 0.67 to 1.49
DOSES = (0.0, 0.5, 1.0, 1.5)  # fractions of the way from the training stain to a centre's
CONFOUNDING = 0.9  # share of training tiles whose stain follows the label; reversed in test
CROP = 112  # side of the centres' crops in px

Images = NDArray[np.uint8]  # (N, 3, H, W)
Vectors = NDArray[np.float32]  # (N, D)
Embed = Callable[[Images], Vectors]


@dataclass(frozen=True)
class Tiles:
    """N decoded tiles.

    Attributes:
        images: (N, 3, H, W) uint8 RGB.
        table: N rows with `patient`, `photo`, `site` and the label `y` (`""` if unknown).
    """

    images: Images
    table: pd.DataFrame


@dataclass(frozen=True)
class Stained:
    """Training and test tiles of one fold, unchanged and under every stain.

    Attributes:
        train, test: the tiles.
        of_train, of_test: stain → re-stained tiles; `of_test` includes the doses.
        distance: stain → distance (ΔE of LAB means and standard deviations) of the test tiles
            from the training tiles.
        farthest: the two centres with the most different stains.
    """

    train: Tiles
    test: Tiles
    of_train: Mapping[str, Images]
    of_test: Mapping[str, Images]
    distance: Mapping[str, float]
    farthest: tuple[str, str]


# --- stains ---------------------------------------------------------------------------------------


def pooled_stain(images: Images) -> LabStats:
    """The pooled Reinhard profile of tiles (N, 3, H, W) uint8."""
    found = estimate(torch.from_numpy(images), "reinhard").pooled()
    assert isinstance(found, LabStats)
    return found


def stain_distance(one: StainProfile, other: StainProfile) -> float:
    """Euclidean distance of the coordinates of two profiles; for Reinhard's, ΔE in LAB."""
    return float((one.coordinates() - other.coordinates()).norm())


def od_shift(
    images: Tensor, generator: Generator, strength: float = 0.2, constants: Constants = DEFAULTS
) -> Tensor:
    """Apply a random gain and gamma to each channel's optical density.

    OD' = gain · OD^gamma with ln(gain) and ln(gamma) uniform in ± strength and ± strength / 2,
    drawn for each image and channel. This models staining time, lamp and sensor, not a mix of two
    stains. White stays white.

    Args:
        images: (B, 3, H, W) RGB, uint8 or float in [0, 1].
        generator: CPU generator, the only source of random numbers.
        strength: 0 changes nothing; 0.2 multiplies a channel's OD by 0.82 to 1.22.
        constants: constants of the optical density.

    Returns:
        (B, 3, H, W) with the dtype of the images.

    Raises:
        ValueError: `strength` is negative.
    """
    if strength < 0:
        raise ValueError(f"strength is {strength}: give 0 or more.")
    drawn = (2 * torch.rand(2, len(images), 3, 1, generator=generator) - 1) * strength
    gain, gamma = drawn[0].exp().to(images.device), (drawn[1] / 2).exp().to(images.device)

    def mapped(grey: Tensor, gain: Tensor, gamma: Tensor) -> Tensor:
        density = optical_density(grey, constants).clamp_min(1e-6)
        return constants.io * constants.log_base ** -(gain * density**gamma) - constants.offset

    return in_chunks(images, mapped, gain, gamma)


def shifted(images: Tensor, strength: float, seed: int = 0) -> Tensor:
    """Apply `od_shift`, then blur and JPEG of quality 60."""
    changed = od_shift(images, torch.Generator().manual_seed(seed), strength)
    out = [
        encode(cv2.GaussianBlur(i, (0, 0), 0.6), 60) for i in changed.permute(0, 2, 3, 1).numpy()
    ]
    return torch.from_numpy(np.stack([decode(jpeg) for jpeg in out])).permute(0, 3, 1, 2)


def stainings(images: Images, centres: Mapping[str, StainProfile]) -> dict[str, Images]:
    """The images unchanged, under the stain of every centre, and with `shifted` densities."""
    given = torch.from_numpy(images)
    found = {name: restain_reinhard(given, profile).numpy() for name, profile in centres.items()}
    return {ORIGINAL: images, **found, SHIFTED: shifted(given, SHIFT).numpy()}


def between(one: LabStats, other: LabStats, share: float) -> LabStats:
    """Interpolate between two stains; a share above 1 extrapolates."""
    mean = one.mean + share * (other.mean - one.mean)
    std = (one.std + share * (other.std - one.std)).clamp_min(1)
    return LabStats(one.method, one.valid, mean, std)


def doses(images: Images, trained: LabStats, centres: Mapping[str, LabStats]) -> dict[str, Images]:
    """The images at `DOSES` between the training stain and the centre farthest from it."""
    goal = max(centres.values(), key=lambda centre: stain_distance(trained, centre))
    given = torch.from_numpy(images)
    return {
        f"{DOSE} {share:g}": restain_reinhard(given, between(trained, goal, share)).numpy()
        for share in DOSES
    }


def stained(train: Tiles, test: Tiles, centres: Mapping[str, LabStats]) -> Stained:
    """Re-stain the training and test tiles of a fold."""
    own = pooled_stain(train.images)
    of_train, of_test = (stainings(tiles.images, centres) for tiles in (train, test))
    of_test |= doses(test.images, own, centres)
    distance = {n: stain_distance(own, pooled_stain(images)) for n, images in of_test.items()}
    places = torch.stack([profile.coordinates() for profile in centres.values()]).numpy()
    return Stained(train, test, of_train, of_test, distance, most_different(places, list(centres)))


# --- retrieval ------------------------------------------------------------------------------------


def retrieval_values(first: Vectors, second: Vectors, photo: NDArray) -> dict[str, NDArray]:
    """Retrieve each tile under one stain among all tiles under another; mean of both directions.

    Args:
        first, second: (N, D) embeddings of the same tiles under two stains.
        photo: (N,) photograph of each tile.

    Returns:
        Metric → (N,): `top1` and `top10` (the same tile is found), `photo_map` (average precision
        of the other tiles of its photograph; NaN if there are none), `margin` (cosine to itself
        minus the mean cosine to the others).
    """
    cosine = unit_length(first) @ unit_length(second).T
    itself = np.diagonal(cosine).copy()
    both = (cosine, cosine.T)
    # Ties count against the tile, so that a collapsed encoder finds nothing.
    rank = [(matrix >= itself[:, None]).sum(1) for matrix in both]
    others = [(matrix.sum(1) - itself) / max(len(matrix) - 1, 1) for matrix in both]
    same = (photo[:, None] == photo[None]) & ~np.eye(len(photo), dtype=bool)
    return {
        "top1": np.mean([r <= 1 for r in rank], axis=0),
        "top10": np.mean([r <= 10 for r in rank], axis=0),
        "photo_map": np.mean([average_precision(matrix, same) for matrix in both], axis=0),
        "margin": itself - np.mean(others, axis=0),
    }


def average_precision(score: Vectors, relevant: NDArray[np.bool_]) -> NDArray:
    """(N,) average precision of each row without the tile itself; NaN without relevant tiles."""
    score = score.copy()
    np.fill_diagonal(score, -np.inf)
    order = np.argsort(-score, axis=1, kind="stable")
    hit = np.take_along_axis(relevant, order, 1)
    precision = np.cumsum(hit, 1) / np.arange(1, hit.shape[1] + 1)
    count = hit.sum(1)
    with np.errstate(invalid="ignore"):
        return np.where(count > 0, (precision * hit).sum(1) / count, np.nan)


# --- probes ---------------------------------------------------------------------------------------


def choosing(patient: NDArray, y: NDArray) -> NDArray[np.bool_]:
    """(N,) True for the tiles of every third training patient, used to choose a probe's penalty.

    Patients are ordered by their mean label, so that both parts have every class.
    """
    mean = pd.Series(y, dtype=float).groupby(patient).mean()
    ranked = mean.reset_index().sort_values([0, "index"])["index"].to_numpy()
    return np.isin(patient, ranked[1::3])


def _probe(vectors: Vectors, y: NDArray, patient: NDArray, classes: int) -> Linear:
    return linear_probe(vectors, y, patient, choosing(patient, y), classes, 0)[0]


def stain_hits(
    train: Mapping[str, Vectors], patient: NDArray, test: Mapping[str, Vectors]
) -> dict[str, NDArray]:
    """Stain → (N,) whether a probe trained on other patients predicts it from each test tile."""
    names, count = list(train), len(patient)
    y, whose = np.repeat(np.arange(len(names)), count), np.tile(patient, len(names))
    # Every patient has every stain, so any third of the patients can choose the penalty.
    val = choosing(whose, np.zeros(len(y)))
    vectors = np.concatenate([train[n] for n in names])
    probe, _ = linear_probe(vectors, y, whose, val, len(names), 0)
    return {n: probe(test[n]).argmax(1) == i for i, n in enumerate(names)}


def label_scores(
    seen: Mapping[str, Vectors], found: Mapping[str, Vectors], stains: Stained
) -> dict[str, NDArray]:
    """Test → (N,) score of the label by probes trained on the training tiles.

    A probe trained on unchanged tiles is tested under every stain. In `confounded`, the stains of
    the two centres farthest apart follow the label in 90 % of the training tiles, and are reversed
    in the test.
    """
    y, test_y = (t.table["y"].to_numpy(int) for t in (stains.train, stains.test))
    patient = stains.train.table["patient"].to_numpy(str)
    plain = _probe(seen[ORIGINAL], y, patient, 2)
    scores = {name: plain(vectors)[:, 1] for name, vectors in found.items()}
    first, second = stains.farthest
    if not {first, second} <= set(found):
        return scores  # the encoder was trained with Reinhard's normalization, as the centres'
    rng = np.random.default_rng(0)
    follows, test_follows = (rng.random(len(k)) < CONFOUNDING for k in (y, test_y))
    mixed = np.where(((y == 1) == follows)[:, None], seen[first], seen[second])
    turned = np.where(((test_y == 1) != test_follows)[:, None], found[first], found[second])
    return scores | {"confounded": _probe(mixed, y, patient, 2)(turned)[:, 1]}


def centre_hits(embed: Embed, centres: Mapping[str, Images]) -> pd.DataFrame:
    """Whether a probe predicts the centre of each 112 px crop, with whole tiles held out."""
    crops, rows = [], []
    for number, images in enumerate(centres.values()):
        for index, image in enumerate(images):
            grid = range(0, image.shape[1] - CROP + 1, CROP)
            crops += [image[:, y : y + CROP, x : x + CROP] for y in grid for x in grid]
            rows += [(number, index)] * len(grid) ** 2
    vectors, (y, index) = embed(np.stack(crops)), np.array(rows).T
    hit = np.zeros(len(y))
    for left_out in np.unique(index):
        seen = index != left_out
        val = index[seen] == index[seen].min()  # one of the two remaining tiles per centre
        probe, _ = linear_probe(vectors[seen], y[seen], index[seen], val, len(centres), 0)
        hit[~seen] = probe(vectors[~seen]).argmax(1) == y[~seen]
    name = [f"{centre}-{i}" for centre, i in zip(y, index, strict=True)]
    return _frame(pd.Series(name), "", "centre_hit", hit)


# --- all figures ----------------------------------------------------------------------------------


def run_values(
    embed: Embed, stains: Stained, centres: Mapping[str, Images], knows_reinhard: bool
) -> pd.DataFrame:
    """Compute all metrics of one encoder on one fold.

    Args:
        embed: embeds images.
        stains: the tiles of the fold.
        centres: centre → its own tiles, (n, 3, 512, 512) uint8.
        knows_reinhard: the encoder was trained with Reinhard normalization, so that re-stained
            tiles are left out.

    Returns:
        `patient, pair, metric, value, y`: means over the tiles of a patient, except `score: …`,
        which are of single tiles with their label `y`.
    """
    allowed = {ORIGINAL, SHIFTED} if knows_reinhard else set(stains.of_test)
    seen = {n: embed(images) for n, images in stains.of_train.items() if n in allowed}
    found = {n: embed(images) for n, images in stains.of_test.items() if n in allowed}
    means = pd.concat([*_retrieval(found, stains, list(seen)), *_stain_probe(seen, found, stains),
                       centre_hits(embed, centres)])  # fmt: skip
    means = means.groupby(["patient", "pair", "metric"], as_index=False)["value"].mean()
    distance = [("", name, "distance", stains.distance[name]) for name in found]
    columns = ["patient", "pair", "metric", "value"]
    frames = [means, pd.DataFrame(distance, columns=columns), _geometry(found)]
    return pd.concat([*frames, *_scores(seen, found, stains)], ignore_index=True)


def _retrieval(
    found: Mapping[str, Vectors], stains: Stained, names: list[str]
) -> Iterator[pd.DataFrame]:
    table = stains.test.table
    photo = table["photo"].to_numpy(str)
    for a, b in combinations(names, 2):
        for metric, values in retrieval_values(found[a], found[b], photo).items():
            yield _frame(table["patient"], f"{a} | {b}", metric, values)
    for name in (n for n in found if n.startswith(DOSE)):
        values = retrieval_values(found[ORIGINAL], found[name], photo)["top1"]
        yield _frame(table["patient"], name, "dose_top1", values)


def _stain_probe(
    seen: Mapping[str, Vectors], found: Mapping[str, Vectors], stains: Stained
) -> Iterator[pd.DataFrame]:
    patient = stains.train.table["patient"].to_numpy(str)
    for name, hit in stain_hits(seen, patient, {n: found[n] for n in seen}).items():
        yield _frame(stains.test.table["patient"], name, "stain_hit", hit)


def _scores(
    seen: Mapping[str, Vectors], found: Mapping[str, Vectors], stains: Stained
) -> Iterator[pd.DataFrame]:
    table = stains.test.table
    if set(stains.train.table["y"]) != {"0", "1"}:
        log.info("no label is probed: the training tiles are not all of one or the other class")
        return
    for name, score in label_scores(seen, found, stains).items():
        rows = _frame(table["patient"], "", f"score: {name}", score)
        yield rows.assign(y=table["y"].astype(int))
        if name != ORIGINAL:
            continue
        for site in sorted(set(table["site"]) - set(stains.train.table["site"])):
            of_site = (table["site"] == site).to_numpy()
            yield rows.assign(y=table["y"].astype(int), metric=f"score: site {site}")[of_site]


def _frame(patient: pd.Series, pair: str, metric: str, values: NDArray) -> pd.DataFrame:
    fixed = {"pair": pair, "metric": metric}
    return pd.DataFrame({"patient": patient.to_numpy(), **fixed, "value": values.astype(float)})


def _geometry(found: Mapping[str, Vectors]) -> pd.DataFrame:
    original, other = (torch.from_numpy(found[n]) for n in (ORIGINAL, SHIFTED))
    values = {
        "effective_rank": effective_rank(found[ORIGINAL]),
        "alignment": alignment(original, other),
        "uniformity": uniformity(original),
    }
    rows = {"patient": "", "pair": "", "metric": list(values), "value": list(values.values())}
    return pd.DataFrame(rows)
