"""Is stain-invariant pretraining robust to stain? Every encoder, one recipe, stains shifted.

    python benchmarks/robustness_real.py tiles --real-data REAL --work /tmp/tiles
    python benchmarks/robustness_real.py synthetic --real-data REAL --work /tmp/synthetic
    python benchmarks/robustness_real.py my.yaml --cohort wilds --label tumor --split sheet \
        --real-data REAL --work /tmp/wilds

`tiles`: the BreakHis tiles, six patient-grouped folds, pretraining inside each fold's training
patients. `synthetic`: 200 patients from a seed of its own, sites d and e never trained on. Or any
cohort of a config, in folds or by its sheet's own split. Test tiles are re-stained to the five
CAMELYON17 centres by Reinhard over tissue pixels, and by gain and gamma of the optical density with
blur and JPEG: families that no encoder is trained with, but those whose name says `reinhard` or
RandStainNA. No pixel or profile of the centres, nor of a test patient, enters training or choosing.

Figures per tile go into `WORK/values/`, a file a run, so that an interrupted benchmark goes on and
a table can be made of what is there (`--table`). Intervals are over patients, seeds averaged first.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pandas as pd
import torch
import yaml
from numpy.typing import NDArray
from torch import Tensor

from stainssl.benchmark.metrics import RESAMPLES, interval, weighted_auroc
from stainssl.benchmark.probe import DEFAULT_PENALTY, balanced_sample, fit_linear
from stainssl.benchmark.robustness import unit_length
from stainssl.cohort import parts, read_sheet
from stainssl.config import Config, load, parse
from stainssl.encoders import load as load_encoder
from stainssl.paths import Paths
from stainssl.pretrain.losses import alignment, effective_rank, uniformity
from stainssl.stages import demo, label, pixels, pretrain, target, tile
from stainssl.stain import StainProfile, estimate
from stainssl.stain.restain import od_shift, reinhard_to
from stainssl.stores.atomic import replacing, write_text
from stainssl.stores.pixels import decode, encode, open_pixels
from stainssl.stores.tiles import read_labels

log = logging.getLogger("robustness_real")
COHORT, FOLDS, BATCH = "evidence", 6, 128
SYNTHETIC_SEED = 20261125  # of a cohort on which nothing was ever chosen
CLAIMED, BASELINE = "stain-invariant", "simclr"
ORIGINAL, SHIFTED = "as it is", "od shift"
DOSES = (0.1, 0.2, 0.4, 0.8)  # strengths of `od_shift`, for the dose curve
CONFOUNDING = 0.9
CROP = 112  # px of the centres' crops
_SI = {"method": "stain-invariant"}
ENCODERS: dict[str, dict[str, Any]] = {
    "random": {"method": "random"},
    "simclr": {"method": "simclr"},
    "stain-invariant": _SI,
    "simclr, no jitter": {"method": "simclr", "colour": "none"},
    "simclr, strong": {"method": "simclr", "colour": "strong"},
    "stain-invariant, strong": _SI | {"colour": "strong"},
    "stain-invariant, two targets": _SI | {"views": "different"},
    "simclr, hed": {"method": "simclr", "stain_jitter": "hed"},
    "simclr, randstainna": {"method": "simclr", "stain_jitter": "randstainna"},
    "simclr, macenko first": {"method": "simclr", "preprocess": True},
    "stain-invariant, vicreg": _SI | {"loss": "vicreg"},
    "stain-invariant, barlow": _SI | {"loss": "barlow-twins"},
    "stain-invariant, dino": _SI | {"loss": "dino"},
    "stain-invariant, drawn": _SI | {"normalizer": ["macenko", "reinhard"]},
    "stain-invariant, supervised": _SI | {"temperature": 0.7, "supervised_weight": 1.0},
}

Images = NDArray[np.uint8]  # (N, 3, H, W)
Vectors = NDArray[np.float32]


class Options(NamedTuple):
    """How much is trained and looked at; the same for every encoder."""

    work: Path
    real_data: Path
    encoders: tuple[str, ...]
    seeds: tuple[int, ...]
    backbone: str
    input_size: int
    epochs: int
    max_tiles: int  # of the training patients that probes learn from, and of the test patients


# --- cohorts --------------------------------------------------------------------------------------


def tiles_cohort(real_data: Path, work: Path) -> dict[str, Any]:
    """Config of the BreakHis tiles: a sheet with a row a tile."""
    folder = work / "breakhis"
    if not folder.exists():
        with replacing(folder) as made, zipfile.ZipFile(real_data / "breakhis-tiles.zip") as found:
            found.extractall(made)
    table = pd.read_csv(real_data / "breakhis-tiles.csv", dtype=str)
    table["slide_id"] = table["path"].str.removesuffix(".jpg").str.replace("/", "-")
    root = next(folder.rglob(table["path"][0])).parent.parent
    sheet = table.rename(columns={"patient": "patient_id", "source_image": "photo"})
    sheet["label"] = (sheet["label"] == "1").astype(int)
    columns = ["slide_id", "patient_id", "path", "photo", "label"]
    sheet[columns].assign(site="").to_csv(work / "tiles.csv", index=False)
    cohort = {"sheet": str(work / "tiles.csv"), "root": str(root), "kind": "patches"}
    tiling = {"mpp": 1.0, "size": 112, "min_tissue": 0.0, "filters": {"max_pen": None}}
    return {"cohorts": {COHORT: cohort}, "tilings": {"default": tiling}}


def synthetic_cohort(work: Path, patients: int) -> dict[str, Any]:
    """Config of a synthetic cohort: three sites, the demo's third never trained on."""
    share = {"a": patients * 2 // 5, "b": patients * 2 // 5, "c": patients - patients * 4 // 5}
    truth = str(work / "results" / "demo" / "truth" / "{slide_id}.geojson")
    cohort = {"demo": {"seed": SYNTHETIC_SEED, "patients": share}, "annotations": truth}
    tiling = {"mpp": 0.5, "size": 128, "filters": {"min_sharpness": 0.1}}
    return {"cohorts": {COHORT: cohort}, "tilings": {"default": tiling}}


def folded(data: dict[str, Any], work: Path, folds: int, name: str = COHORT) -> dict[str, Any]:
    """The config with the cohort's patients dealt to folds, as splits f0, f1 … of its sheet."""
    config = parse({**data, "results": str(work / "results")})
    sheet = read_sheet(config, name)
    rng = np.random.default_rng(0)
    patients = rng.permutation(sheet["patient_id"].unique())
    fold = {patient: f"f{i % folds}" for i, patient in enumerate(patients)}
    sheet["split"] = sheet["patient_id"].map(fold)
    sheet.drop(columns=["part", "exclude"]).to_csv(work / "folded.csv", index=False)
    cohort = {**data["cohorts"][name], "sheet": str(work / "folded.csv"), "root": "/"}
    return {**data, "cohorts": {COHORT: cohort}}


def fold_splits(config: Config) -> list[tuple[list[str], str]]:
    """(splits trained on, split tested on) of every fold."""
    splits = sorted(set(read_sheet(config, COHORT)["split"]))
    if "test" in splits:
        return [(["train"], "test")]
    return [([s for s in splits if s != test], test) for test in splits]


def full_config(data: dict[str, Any], options: Options, task_label: str | None) -> Config:
    """The config with an encoder for every method and fold."""
    found = {"results": str(options.work / "results"), "slides": {"part_size": 500}, **data}
    if task_label:
        found["tasks"] = {"task": {"level": "tile", "label": task_label, "cohorts": [COHORT]}}
    recipe = {
        "backbone": options.backbone, "input_size": options.input_size, "epochs": options.epochs,
        "batch_size": BATCH,
    }  # fmt: skip
    encoders: dict[str, Any] = {}
    for fold, (train, _) in enumerate(fold_splits(parse(found))):
        for name in options.encoders:
            keys = {**recipe, **ENCODERS[name], "train": {"cohorts": [COHORT], "splits": train}}
            if keys["method"] == "random":
                keys["train"] = None
            if keys.get("supervised_weight"):
                keys["label"] = task_label
            for seed in options.seeds:
                encoders[_run_name(name, seed, fold)] = keys | {"seeds": [seed]}
    return parse({**found, "encoders": encoders})


def _run_name(name: str, seed: int, fold: int) -> str:
    return f"{name.replace(', ', '-').replace(' ', '-')}-f{fold}-s{seed}"


def prepare(config: Config, cores: int = 1) -> None:
    """Tiles, labels and pixels of every part that is not there yet."""
    paths, tiling = Paths(config.results), config.cohorts[COHORT].tiling
    if config.cohorts[COHORT].demo and not paths.demo().exists():
        demo.run(config, processes=cores)
    for part in parts(config, COHORT):
        if not paths.pixels(COHORT, tiling, part).exists():
            tile.run(config, COHORT, part)
            label.run(config, COHORT, part)
            pixels.run(config, COHORT, part)


# --- tiles and stains -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Tiles:
    """N tiles as decoded: images (N, 3, H, W) uint8, and `patient`, `photo`, `y` of each."""

    images: Images
    table: pd.DataFrame


def read_tiles(config: Config, splits: Sequence[str], task_label: str | None, most: int) -> Tiles:
    """The tiles of some splits, at most so many, balanced over patients."""
    frames, jpegs = [], []
    paths, tiling = Paths(config.results), config.cohorts[COHORT].tiling
    for part, sheet in parts(config, COHORT).items():
        if sheet["split"].iloc[0] not in splits:
            continue
        store = open_pixels(paths.pixels(COHORT, tiling, part))
        jpegs += store.jpegs(0, len(store))
        frames.append(
            _rows(store, sheet, read_labels(paths.labels(COHORT, tiling, part)), task_label)
        )
    table = pd.concat(frames, ignore_index=True)
    known = np.flatnonzero(table["y"] != "") if task_label else np.arange(len(table))
    rng = np.random.default_rng(0)
    rows = known[balanced_sample(table["patient"].to_numpy(str)[known], most, rng)]
    images = np.stack([decode(jpegs[i]) for i in rows]).transpose(0, 3, 1, 2)
    return Tiles(np.ascontiguousarray(images), table.iloc[rows].reset_index(drop=True))


def _rows(store: Any, sheet: pd.DataFrame, labels: pd.DataFrame, name: str | None) -> pd.DataFrame:
    slide = np.asarray(store.slide_id, dtype=object)[store.slide]
    table = pd.DataFrame({"slide_id": slide, "tile": store.tile})
    table = table.merge(sheet, on="slide_id", how="left")
    found = table[["slide_id", "tile"]].merge(labels, on=["slide_id", "tile"], how="left")
    y = found[name].map(lambda v: "" if pd.isna(v) else str(int(v))) if name else ""
    photo = table["photo"] if "photo" in table else table["slide_id"]
    return pd.DataFrame({"patient": table["patient_id"], "photo": photo, "y": y})


def centre_images(real_data: Path) -> dict[str, Images]:
    """Centre → its tiles (3, 3, 512, 512), of `camelyon17-centres`."""
    folder = real_data / "camelyon17-centres"
    table = pd.read_csv(folder / "tiles.csv")
    return {
        f"centre {centre}": np.stack([
            cv2.cvtColor(cv2.imread(str(folder / path)), cv2.COLOR_BGR2RGB).transpose(2, 0, 1)
            for path in rows["path"]
        ])
        for centre, rows in table.groupby("centre")
    }  # fmt: skip


def centre_profiles(real_data: Path) -> dict[str, StainProfile]:
    """Centre → its pooled Reinhard profile."""
    found = centre_images(real_data)
    return {n: estimate(torch.from_numpy(x), "reinhard").pooled() for n, x in found.items()}


def shifted(images: Tensor, strength: float, seed: int = 0) -> Tensor:
    """Gain and gamma of the optical density, then blur and JPEG of quality 60."""
    changed = od_shift(images, torch.Generator().manual_seed(seed), strength)
    out = [
        encode(cv2.GaussianBlur(i, (0, 0), 0.6), 60) for i in changed.permute(0, 2, 3, 1).numpy()
    ]
    return torch.from_numpy(np.stack([decode(jpeg) for jpeg in out])).permute(0, 3, 1, 2)


def stainings(images: Images, centres: dict[str, StainProfile]) -> dict[str, Images]:
    """The images as they are and under every stain that is tested."""
    given = torch.from_numpy(images)
    found = {name: reinhard_to(given, profile).numpy() for name, profile in centres.items()}
    return {ORIGINAL: images, **found, SHIFTED: shifted(given, 0.4).numpy()}


# --- figures of one run ---------------------------------------------------------------------------


def retrieval_values(first: Vectors, second: Vectors, photo: NDArray) -> dict[str, NDArray]:
    """Per tile, its stain `first` asking among all tiles under `second`, and the other way, mean.

    Returns:
        `top1`, `top10` (of the same tile), `photo_map` (average precision of the other tiles of
        its photograph; NaN where it has none), `margin` (cosine with itself less that with others).
    """
    cosine = unit_length(first) @ unit_length(second).T
    itself = np.diagonal(cosine).copy()
    both = (cosine, cosine.T)
    # Ties count against the tile: a collapsed encoder, to which all are alike, finds nothing.
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
    """(N,) average precision of each row's ranking, the tile itself left out; NaN without any."""
    score = score.copy()
    np.fill_diagonal(score, -np.inf)
    order = np.argsort(-score, axis=1, kind="stable")
    hit = np.take_along_axis(relevant, order, 1)
    precision = np.cumsum(hit, 1) / np.arange(1, hit.shape[1] + 1)
    count = hit.sum(1)
    with np.errstate(invalid="ignore"):
        return np.where(count > 0, (precision * hit).sum(1) / count, np.nan)


def stain_hits(train: dict[str, Vectors], test: dict[str, Vectors]) -> dict[str, NDArray]:
    """Stain → per test tile whether a probe, trained on other patients, names it."""
    names = list(train)
    y = np.repeat(np.arange(len(names)), [len(train[n]) for n in names])
    probe = fit_linear(np.concatenate([train[n] for n in names]), y, len(names), DEFAULT_PENALTY)
    return {n: probe(test[n]).argmax(1) == i for i, n in enumerate(names)}


def label_scores(
    train: dict[str, Vectors], y: NDArray, test: dict[str, Vectors], test_y: NDArray
) -> dict[str, NDArray]:
    """Test → (N,) probability of class 1, by probes trained on the training tiles.

    Under every stain by a probe of the tiles as they are; and `confounded`: of the two centres
    that lie farthest apart one goes with the label in 90 % of training, and the other way in test.
    """
    plain = fit_linear(train[ORIGINAL], y, 2, DEFAULT_PENALTY)
    scores = {f"auroc: {name}": plain(vectors)[:, 1] for name, vectors in test.items()}
    first, second = (n for n in ("centre 0", "centre 3"))
    rng = np.random.default_rng(0)
    follows, test_follows = (rng.random(len(k)) < CONFOUNDING for k in (y, test_y))
    seen = np.where(((y == 1) == follows)[:, None], train[first], train[second])
    turned = np.where(((test_y == 1) != test_follows)[:, None], test[first], test[second])
    scores["auroc: confounded"] = fit_linear(seen, y, 2, DEFAULT_PENALTY)(turned)[:, 1]
    return scores


def centre_hits(embed: Any, real_data: Path) -> pd.DataFrame:
    """Per 112 px crop of the centres whether a probe names its centre, tiles held out."""
    found = centre_images(real_data)
    crops, centre, group = [], [], []
    for number, images in enumerate(found.values()):
        for index, image in enumerate(images):
            grid = range(0, image.shape[1] - CROP + 1, CROP)
            crops += [image[:, y : y + CROP, x : x + CROP] for y in grid for x in grid]
            centre += [number] * len(grid) ** 2
            group += [index] * len(grid) ** 2
    vectors, y, index = embed(np.stack(crops)), np.array(centre), np.array(group)
    hit = np.zeros(len(y))
    for left_out in np.unique(index):
        seen = index != left_out
        probe = fit_linear(vectors[seen], y[seen], len(found), DEFAULT_PENALTY)
        hit[~seen] = probe(vectors[~seen]).argmax(1) == y[~seen]
    tile_name = [f"{c}-{i}" for c, i in zip(y, index, strict=True)]
    return pd.DataFrame({"patient": tile_name, "pair": "", "metric": "centre_hit", "value": hit})


def run_values(
    embed: Any, train: dict[str, Images], test: dict[str, Images], tables: tuple[Tiles, Tiles],
    real_data: Path,
) -> pd.DataFrame:  # fmt: skip
    """Every figure of one encoder on one fold, a row a tile: `patient, pair, metric, value, y`."""
    seen = {name: embed(images) for name, images in train.items()}
    found = {name: embed(images) for name, images in test.items()}
    of_train, of_test = (tiles.table for tiles in tables)
    stains = [name for name in train if name in found]
    frames = [centre_hits(embed, real_data)]
    for a, b in combinations(stains, 2):
        values = retrieval_values(found[a], found[b], of_test["photo"].to_numpy(str))
        frames += [_frame(of_test, f"{a} | {b}", n, v) for n, v in values.items()]
    hits = stain_hits({n: seen[n] for n in stains}, {n: found[n] for n in stains})
    frames += [_frame(of_test, name, "stain_hit", hit) for name, hit in hits.items()]
    if (of_train["y"] != "").all():
        y, test_y = (t["y"].to_numpy(int) for t in (of_train, of_test))
        scores = label_scores(seen, y, found, test_y)
        frames += [_frame(of_test, "", n, s).assign(y=test_y) for n, s in scores.items()]
    return pd.concat([*frames, _geometry(found)], ignore_index=True)


def _frame(table: pd.DataFrame, pair: str, metric: str, values: NDArray) -> pd.DataFrame:
    fixed = {"pair": pair, "metric": metric}
    return pd.DataFrame({"patient": table["patient"], **fixed, "value": values.astype(float)})


def _geometry(found: dict[str, Vectors]) -> pd.DataFrame:
    original, other = (torch.from_numpy(found[n]) for n in (ORIGINAL, SHIFTED))
    values = {
        "effective_rank": effective_rank(original),
        "alignment": alignment(original, other),
        "uniformity": uniformity(original),
    }
    rows = {"patient": "", "pair": "", "metric": list(values), "value": list(values.values())}
    return pd.DataFrame(rows)


def embedder(path: Path) -> Any:
    """A function from (N, 3, H, W) uint8 to (N, D) float32 vectors of an encoder made here."""
    encoder = load_encoder(path)

    def embed(images: Images) -> Vectors:
        blocks = torch.from_numpy(images).split(BATCH)
        return np.concatenate([encoder(block).numpy() for block in blocks])

    return embed


# --- the whole ------------------------------------------------------------------------------------


def measure(config: Config, options: Options, task_label: str | None) -> None:
    """Train and measure what is not there yet: a seed of all encoders and folds, then the next."""
    centres = centre_profiles(options.real_data)
    for seed in options.seeds:
        for fold, (splits, test) in enumerate(fold_splits(config)):
            missing = [n for n in options.encoders if not _values(options, n, seed, fold).exists()]
            if not missing:
                continue
            tiles = read_tiles(config, splits, task_label, options.max_tiles)
            held_out = read_tiles(config, [test], task_label, options.max_tiles)
            train, tested = (stainings(t.images, centres) for t in (tiles, held_out))
            tested |= _doses(held_out.images) if task_label else {}
            for name in missing:
                started = time.process_time()
                run = _trained(config, name, seed, fold)
                embed = embedder(Paths(config.results).model(run))
                found = run_values(embed, train, tested, (tiles, held_out), options.real_data)
                found = found.assign(encoder=name, seed=seed, fold=fold)
                with replacing(_values(options, name, seed, fold)) as made:
                    found.to_parquet(made, index=False)
                log.info("%s: %.0f CPU seconds", run, time.process_time() - started)


def _doses(images: Images) -> dict[str, Images]:
    given = torch.from_numpy(images)
    return {
        f"dose {d:g}": od_shift(given, torch.Generator().manual_seed(1), d).numpy() for d in DOSES
    }


def _values(options: Options, name: str, seed: int, fold: int) -> Path:
    return options.work / "values" / f"{_run_name(name, seed, fold)}.parquet"


def _trained(config: Config, name: str, seed: int, fold: int) -> str:
    """The run of that encoder, trained where it is not."""
    run = config.run(_run_name(name, seed, fold))
    if not Paths(config.results).model(run.name).exists():
        if run.encoder.needs_target:
            target.run(config, run.name)
        pretrain.run(config, run.name)
    return run.name


def by_patient(values: pd.DataFrame) -> pd.DataFrame:
    """Mean over a patient's tiles and over seeds: `encoder, metric, pair, patient, value`."""
    return values.groupby(["encoder", "metric", "pair", "patient"], as_index=False)["value"].mean()


def summarise(values: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """A row an encoder and figure: `value, low, high` over patients, and less `simclr`'s.

    Retrieval and margin are of the encoder's worst pair of stains; AUROCs of its worst stain too.
    """
    rows = [*_mean_rows(values, seed), *_auroc_rows(values, seed), *_plain_rows(values)]
    return pd.DataFrame(rows, columns=SUMMARY)


SUMMARY = ("encoder", "metric", "worst", "value", "low", "high", "minus_simclr", "minus_low",
           "minus_high", "patients", "seeds")  # fmt: skip


def _mean_rows(values: pd.DataFrame, seed: int) -> Iterator[tuple]:
    metrics = ("top1", "top10", "photo_map", "margin", "stain_hit", "centre_hit")
    for metric in metrics:
        table = by_patient(values[values["metric"] == metric].dropna(subset="value"))
        chosen = {}
        for name, rows in table.groupby("encoder"):
            wide = rows.pivot(index="patient", columns="pair", values="value")
            chosen[name] = wide.mean().idxmin(), wide
        for name, (pair, wide) in chosen.items():
            mean = metric in ("stain_hit", "centre_hit")  # of all stains: a probe's accuracy
            one = wide.mean(axis=1) if mean else wide[pair]
            base = chosen.get(BASELINE)
            other = None if base is None else base[1].mean(axis=1) if mean else base[1][base[0]]
            found = _with_interval(one, other, seed)
            yield name, metric, "" if mean else pair, *found, len(one), _seeds(values, name)


def _with_interval(one: pd.Series, other: pd.Series | None, seed: int) -> list[float]:
    """Mean over patients, its interval; and of the paired difference."""
    drawn = np.random.default_rng(seed).integers(0, len(one), (RESAMPLES, len(one)))
    own = one.to_numpy()
    found = [float(own.mean()), *interval(own[drawn].mean(1))]
    if other is None:
        return [*found, np.nan, np.nan, np.nan]
    less = own - other.reindex(one.index).to_numpy()
    return [*found, float(less.mean()), *interval(less[drawn].mean(1))]


def _auroc_rows(values: pd.DataFrame, seed: int) -> Iterator[tuple]:
    scores = values[values["metric"].str.startswith("auroc")]
    drawn: dict[tuple[str, str], tuple[float, NDArray]] = {}
    for (name, metric), rows in scores.groupby(["encoder", "metric"]):
        drawn[name, metric] = _auroc(rows, seed)
    for (name, metric), (value, resampled) in _with_worst(drawn).items():
        base = _with_worst(drawn).get((BASELINE, metric))
        less = [np.nan] * 3
        if base is not None:
            less = [value - base[0], *interval(resampled - base[1])]
        patients = scores.loc[scores["encoder"] == name, "patient"].nunique()
        yield name, metric, "", value, *interval(resampled), *less, patients, _seeds(values, name)


def _with_worst(drawn: dict[tuple[str, str], Any]) -> dict[tuple[str, str], Any]:
    """The figures, and each encoder's at its worst stain."""
    out = dict(drawn)
    for name in {name for name, _ in drawn}:
        stains = [k for k in drawn if k[0] == name and ("centre" in k[1] or SHIFTED in k[1])]
        if stains:
            out[name, "auroc: worst stain"] = drawn[min(stains, key=lambda k: drawn[k][0])]
    return out


def _auroc(rows: pd.DataFrame, seed: int) -> tuple[float, NDArray]:
    """Mean over seeds of the AUROC, as it is and under resampled patients."""
    names = np.unique(rows["patient"])
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), RESAMPLES)
    weights = np.vstack([np.ones((1, len(names))), draws])
    each = [
        weighted_auroc(
            r["y"].to_numpy() == 1, r["value"].to_numpy(),
            np.searchsorted(names, r["patient"].to_numpy(str)), weights,
        )
        for _, r in rows.groupby("seed")
    ]  # fmt: skip
    mean = np.mean(each, axis=0)
    return float(mean[0]), mean[1:]


def _plain_rows(values: pd.DataFrame) -> Iterator[tuple]:
    chosen = values[values["metric"].isin(["effective_rank", "alignment", "uniformity"])]
    for (name, metric), rows in chosen.groupby(["encoder", "metric"]):
        low, high = rows["value"].min(), rows["value"].max()  # over folds and seeds, no interval
        less = [np.nan] * 3
        yield name, metric, "", rows["value"].mean(), low, high, *less, 0, _seeds(values, name)


def _seeds(values: pd.DataFrame, name: str) -> int:
    return int(values.loc[values["encoder"] == name, "seed"].nunique())


def comparable(values: pd.DataFrame) -> pd.DataFrame:
    """The folds and seeds that every encoder has been measured on."""
    encoders = values.groupby(["seed", "fold"])["encoder"].transform("nunique")
    return values[encoders == encoders.max()].reset_index(drop=True)


def report(work: Path) -> pd.DataFrame:
    """Write `summary.csv` of what has been measured, and print it."""
    files = sorted((work / "values").glob("*.parquet"))
    values = comparable(pd.concat([pd.read_parquet(file) for file in files], ignore_index=True))
    summary = summarise(values)
    write_text(work / "summary.csv", summary.to_csv(index=False))
    with pd.option_context("display.width", 200, "display.max_rows", None):
        print(summary.round(3).to_string(index=False))
    print(f"{len(files)} runs measured; intervals are 95 %, over patients")
    return summary


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("what", help="tiles, synthetic, or a config file")
    parser.add_argument("--work", type=Path, required=True, help="folder for data and results")
    parser.add_argument("--real-data", type=Path, required=True, help="holds camelyon17-centres")
    parser.add_argument("--cohort", help="of the config")
    parser.add_argument("--label", help="a tile label; tiles: label, synthetic: tumor")
    parser.add_argument("--split", choices=("folds", "sheet"), help="default: sheet for synthetic")
    parser.add_argument("--encoders", nargs="*", default=list(ENCODERS), choices=list(ENCODERS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--input-size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--max-tiles", type=int, default=1500)
    parser.add_argument("--patients", type=int, default=200, help="of the synthetic cohort")
    parser.add_argument("--folds", type=int, default=FOLDS)
    parser.add_argument("--table", action="store_true", help="only tell what has been measured")
    return parser.parse_args(words)


def cohort_data(given: argparse.Namespace, work: Path) -> tuple[dict[str, Any], str | None, bool]:
    """The cohort's config, the tile label, and whether its patients are dealt to folds."""
    if given.what == "tiles":
        return tiles_cohort(given.real_data, work), given.label or "label", True
    if given.what == "synthetic":
        return synthetic_cohort(work, given.patients), given.label or "tumor", False
    data = yaml.safe_load(Path(given.what).read_text(encoding="utf-8"))
    load(Path(given.what))  # every problem at once
    kept = {key: data[key] for key in ("tilings", "slides") if key in data}
    kept["cohorts"] = {COHORT: data["cohorts"][given.cohort]}
    return kept, given.label, given.split != "sheet"


def main(words: Sequence[str] | None = None) -> pd.DataFrame:
    given = arguments(words)
    for noisy in ("timm", "dask"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    work = given.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    if not given.table:
        data, task_label, dealt = cohort_data(given, work)
        options = Options(
            work, given.real_data.resolve(), tuple(given.encoders), tuple(given.seeds),
            given.backbone, given.input_size, given.epochs, given.max_tiles,
        )  # fmt: skip
        config = full_config(
            folded(data, work, given.folds) if dealt else data, options, task_label
        )
        prepare(config)
        write_text(work / "options.json", json.dumps(options._asdict(), indent=1, default=str))
        measure(config, options, task_label)
    return report(work)


if __name__ == "__main__":
    main()
