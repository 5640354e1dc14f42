"""Robustness of encoders to stain: all methods with the same recipe, tested on shifted stains.

    python -m benchmarks.robustness_real tiles --real-data REAL --work /tmp/tiles
    python -m benchmarks.robustness_real synthetic --real-data REAL --work /tmp/synthetic
    python -m benchmarks.robustness_real my.yaml --cohort wilds --label tumor --split sheet \
        --real-data REAL --work /tmp/wilds

`tiles`: the BreakHis tiles in six folds of patients, with pretraining on the training patients of
each fold. `synthetic`: 200 patients of five sites from a seed of its own; three quarters of the
patients of sites a, b and c are for training, sites d and e only for testing. `choosing`: the
cohort by which defaults are chosen, namely the training patients of another such cohort, a third of
them for testing, with the stains of four pictures of other laboratories. Or any cohort of a config,
in folds or by the split in its sheet.

Test tiles are re-stained to the five CAMELYON17 centres by Reinhard over tissue pixels, and by gain
and gamma of the optical density with blur and JPEG. An encoder that was trained with Reinhard
normalization is tested with the second only. No pixel or profile of the centres or of a test
patient is used for training or for choices: nothing about pretraining is chosen here, and the
penalty of every probe is chosen on training patients.

Values are written to `WORK/values/`, a file per run, so that an interrupted benchmark can be
resumed, and tables can be made of the finished runs (`--table`): `summary.json`, `tables.md`,
`top1.png` and `auroc.png`, as described in `robustness_table.py`. One seed of all encoders and
folds is run before the next.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import shutil
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pandas as pd
import torch
import yaml

from benchmarks import robustness_table
from benchmarks.robustness_measure import (
    Embed,
    Images,
    Stained,
    Tiles,
    Vectors,
    pooled_stain,
    run_values,
    stained,
)
from stainssl.cohort import PART, parts, read_sheet
from stainssl.config import Config, Encoder, load, parse
from stainssl.demo import make as make_demo
from stainssl.demo import sheet as demo_sheet
from stainssl.encoders.loading import load as load_encoder
from stainssl.evaluation.probe import balanced_sample
from stainssl.slides.readers import open_slide
from stainssl.stages import run_stage
from stainssl.stores.atomic import replacing, write_text
from stainssl.stores.pixels import Pixels, decode, open_pixels
from stainssl.stores.tiles import read_labels

log = logging.getLogger("robustness_real")
COHORT, FOLDS, BATCH = "evidence", 6, 128  # BATCH: tiles per forward pass
SYNTHETIC_SEED = 20261126  # of a cohort on which nothing was chosen
CHOOSING_SEED = 20261125
REFERENCES = (
    "slides/CMU-1-Small-Region.svs", "slides/tcga-cr-7395-01a-01-ts1.svs",
    "stain-reference/source.png", "stain-reference/target.png",
)  # fmt: skip
REFERENCE_PX = 512
SEEN_SITES, UNSEEN_SITES = "abc", "de"
SLIDE_PX = 768  # side of a synthetic slide; small, for many patients with few tiles each
_SI = {"method": "stain-invariant", "stain_jitter": "none"}
_SIMCLR = {"method": "simclr", "stain_jitter": "none"}
GIVEN = "efficientnet-lite0"  # ImageNet weights
_IMAGENET = {"weights": GIVEN}
_CONTINUED = {"init": GIVEN, "backbone": None, "lr": 3e-4, "freeze_norms": True}
_MOVING = _CONTINUED | {"freeze_norms": False}  # batch norm statistics follow the views
ENCODERS: dict[str, dict[str, Any]] = {
    "random": {"method": "random"},
    "simclr": _SIMCLR,
    "stain-invariant": _SI,
    "simclr, no jitter": _SIMCLR | {"color": "none"},
    "simclr, strong": _SIMCLR | {"color": "strong"},
    "stain-invariant, strong": _SI | {"color": "strong"},
    "stain-invariant, two targets": _SI | {"views": "different"},
    "stain-invariant, hed": _SI | {"stain_jitter": "hed"},
    "simclr, hed": _SIMCLR | {"stain_jitter": "hed"},
    "simclr, randstainna": _SIMCLR | {"stain_jitter": "randstainna"},
    "simclr, macenko first": _SIMCLR | {"preprocess": True},
    "stain-invariant, vicreg": _SI | {"loss": "vicreg"},
    "stain-invariant, barlow": _SI | {"loss": "barlow-twins"},
    "stain-invariant, dino": _SI | {"loss": "dino"},
    "stain-invariant, drawn": _SI | {"normalizer": ["macenko", "reinhard"]},
    "stain-invariant, supervised": _SI | {"temperature": 0.7, "supervised_weight": 1.0},
    "imagenet": _IMAGENET,
    "stain-invariant, continued": _CONTINUED | {"method": "stain-invariant"},
    "simclr, continued": _CONTINUED | {"method": "simclr"},
    "stain-invariant, continued, norms move": _MOVING | {"method": "stain-invariant"},
    "simclr, continued, norms move": _MOVING | {"method": "simclr"},
}


class Options(NamedTuple):
    """Settings of a benchmark, the same for every encoder.

    Attributes:
        work: folder for data, models and results.
        real_data: folder with `camelyon17-centres`, or with the pictures `REFERENCES`.
        encoders: names in `ENCODERS`.
        seeds: seeds of each encoder.
        recipe: keys common to all encoders.
        max_tiles: maximum number of training tiles for probes, and of test tiles.
        label: column of the sheet, or tile label; None runs no probe of a label.
        positive: class of the label tested against all others; None if the label is 0 or 1.
        set_aside: number of folds, the last ones, that are only trained on, since choices were
            made on them.
        choosing: use the stains of the references, not of the centres.
    """

    work: Path
    real_data: Path
    encoders: tuple[str, ...]
    seeds: tuple[int, ...]
    recipe: dict[str, Any]
    max_tiles: int
    label: str | None = None
    positive: str | None = None
    set_aside: int = 0
    choosing: bool = False


# --- cohorts --------------------------------------------------------------------------------------


def tiles_cohort(real_data: Path, work: Path) -> dict[str, Any]:
    """Config of the BreakHis tiles, with a sheet of one row per tile."""
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


def synthetic_cohort(work: Path, patients: int, choosing: bool = False) -> dict[str, Any]:
    """Config of a synthetic cohort of five sites with equally many patients, two only for testing.

    Args:
        work: folder for its slides and sheet.
        patients: number of patients at all sites together.
        choosing: use only the training patients of `CHOOSING_SEED`, a third of them for testing.
    """
    seed = CHOOSING_SEED if choosing else SYNTHETIC_SEED
    share = dict.fromkeys(SEEN_SITES + UNSEEN_SITES, patients // 5)
    if not (work / "demo").exists():
        make_demo(work / "demo", seed, share, side_px=SLIDE_PX)
    sheet = demo_sheet(seed, share)
    number = sheet["patient_id"].str.extract(r"(\d+)$")[0].astype(int)
    trains = sheet["site"].isin(list(SEEN_SITES)) & (number % 4 != 0)
    sheet["split"] = np.where(trains, "train", "test")
    if choosing:
        sheet["split"] = np.where(number % 4 == 3, "test", "train")
        sheet = sheet[trains]
    sheet.to_csv(work / "synthetic.csv", index=False)
    truth = str(work / "demo" / "truth" / "{slide_id}.geojson")
    where = {"sheet": str(work / "synthetic.csv"), "root": str(work / "demo")}
    tiling = {"mpp": 0.5, "size": 128, "filters": {"min_sharpness": 0.1}}
    return {"cohorts": {COHORT: where | {"annotations": truth}}, "tilings": {"default": tiling}}


def config_cohort(path: Path, name: str) -> dict[str, Any]:
    """Config of one cohort (release or sheet) of a user's config."""
    config = load(path)  # reports all problems at once
    data = yaml.safe_load(path.read_text(encoding="utf-8"))
    kept = {key: data[key] for key in ("tilings", "slides") if key in data}
    return {**kept, "cohorts": {COHORT: config.cohorts[name].model_dump(mode="json")}}


def folded(data: dict[str, Any], work: Path, folds: int) -> dict[str, Any]:
    """The config with patients assigned to folds, as splits f0, f1 … of a new sheet."""
    config = parse({**data, "results": str(work / "results")})
    sheet = read_sheet(config, COHORT)
    rng = np.random.default_rng(0)
    patients = rng.permutation(sheet["patient_id"].unique())
    fold = {patient: f"f{i % folds}" for i, patient in enumerate(patients)}
    sheet["split"] = sheet["patient_id"].map(fold)
    sheet.drop(columns=[PART]).to_csv(work / "folded.csv", index=False)
    # Also for a release: the new sheet replaces it, and the other keys keep what it has set.
    own = {k: v for k, v in data["cohorts"][COHORT].items() if k not in ("release", "options")}
    cohort = {**own, "sheet": str(work / "folded.csv"), "root": "/"}
    return {**data, "cohorts": {COHORT: cohort}}


def fold_splits(config: Config, set_aside: int = 0) -> list[tuple[list[str], str]]:
    """(training splits, test split) of every fold that is tested."""
    splits = sorted(set(read_sheet(config, COHORT)["split"]))
    if "test" in splits:
        return [(["train"], "test")]
    tested = splits[: len(splits) - set_aside]
    return [([s for s in splits if s != test], test) for test in tested]


def full_config(data: dict[str, Any], options: Options) -> Config:
    """The config with an encoder for every method, seed and fold."""
    found = {"results": str(options.work / "results"), "slides": {"part_size": 500}, **data}
    plain = parse(found)
    of_tiles = plain.cohorts[COHORT].kind == "patches"  # tile labels are in the sheet
    if options.label and (of_tiles or options.label not in read_sheet(plain, COHORT)):
        found["tasks"] = {"task": {"level": "tile", "label": options.label, "cohorts": [COHORT]}}
    encoders: dict[str, Any] = {}
    recipe = {**options.recipe, "tiling": plain.cohorts[COHORT].tiling}
    for fold, (train, _) in enumerate(fold_splits(plain, options.set_aside)):
        for name in options.encoders:
            keys = {**recipe, **ENCODERS[name]}
            if "weights" in keys:
                keys = {key: keys[key] for key in ("weights", "tiling", "input_size")}
            elif keys["method"] != "random":
                keys["train"] = {"cohorts": [COHORT], "splits": train}
            keys = {key: value for key, value in keys.items() if value is not None}
            if keys.get("supervised_weight"):
                keys["label"] = options.label
            for seed in options.seeds:
                encoders[_run_name(name, seed, fold)] = keys | {"seeds": [seed]}
    return parse({**found, "encoders": encoders})


def _run_name(name: str, seed: int, fold: int) -> str:
    return f"{name.replace(', ', '-').replace(' ', '-')}-f{fold}-s{seed}"


def knows_reinhard(encoder: Encoder) -> bool:
    """Whether the encoder was trained with Reinhard normalization or RandStainNA."""
    normalizes = encoder.needs_target and "reinhard" in encoder.normalizers
    return normalizes or encoder.stain_jitter == "randstainna"


def prepare(config: Config) -> None:
    """Run `tile`, `label` and `pixels` for every part without pixels."""
    paths = config.paths
    for part in parts(config, COHORT):
        if not paths.pixels(COHORT, part).exists():
            run_stage("tile", config, COHORT, part)
            run_stage("label", config, COHORT, part)
            run_stage("pixels", config, COHORT, part)


# --- tiles ----------------------------------------------------------------------------------------


def read_tiles(config: Config, splits: Sequence[str], options: Options) -> Tiles:
    """Read the tiles of some splits, at most `max_tiles`, balanced over patients."""
    frames, jpegs = [], []
    paths = config.paths
    for part, sheet in parts(config, COHORT).items():
        if sheet["split"].iloc[0] not in splits:
            continue
        store = open_pixels(paths.pixels(COHORT, part))
        jpegs += store.jpegs(0, len(store))
        labels = read_labels(paths.labels(COHORT, part))
        frames.append(_rows(store, sheet, labels, options))
    table = pd.concat(frames, ignore_index=True)
    known = np.flatnonzero(table["y"] != "") if options.label else np.arange(len(table))
    patient = table["patient"].to_numpy(str)[known]
    rows = known[balanced_sample(patient, options.max_tiles, np.random.default_rng(0))]
    images = np.stack([decode(jpegs[i]) for i in rows]).transpose(0, 3, 1, 2)
    return Tiles(np.ascontiguousarray(images), table.iloc[rows].reset_index(drop=True))


def _rows(
    store: Pixels, sheet: pd.DataFrame, labels: pd.DataFrame, options: Options
) -> pd.DataFrame:
    slide = np.asarray(store.slide_id, dtype=object)[store.slide]
    table = pd.DataFrame({"slide_id": slide, "tile": store.tile})
    table = table.merge(sheet, on="slide_id", how="left")
    if options.label and options.label not in table:  # a tile label; the sheet has slide labels
        found = labels[["slide_id", "tile", options.label]]
        table = table.merge(found, on=["slide_id", "tile"], how="left")
    y = table[options.label].map(lambda v: _binary(v, options.positive)) if options.label else ""
    photo = table["photo"] if "photo" in table else table["slide_id"]
    columns = {"patient": table["patient_id"], "photo": photo, "site": table["site"], "y": y}
    return pd.DataFrame(columns)


def _binary(value: Any, positive: str | None) -> str:
    """`0`, `1`, or an empty string if the label is unknown."""
    if pd.isna(value) or value == "":
        return ""
    return str(int(value == positive if positive else float(value)))


def centre_images(real_data: Path) -> dict[str, Images]:
    """Centre → its three tiles (3, 3, 512, 512) uint8 in `camelyon17-centres`."""
    folder = real_data / "camelyon17-centres"
    table = pd.read_csv(folder / "tiles.csv")
    return {
        f"centre {centre}": np.stack([
            cv2.cvtColor(cv2.imread(str(folder / path)), cv2.COLOR_BGR2RGB).transpose(2, 0, 1)
            for path in rows["path"]
        ])
        for centre, rows in table.groupby("centre")
    }  # fmt: skip


def reference_images(real_data: Path) -> dict[str, Images]:
    """Picture → its three most colored squares (3, 3, 512, 512), for `choosing`."""
    found = {}
    for path in REFERENCES:
        with open_slide(real_data / path) as slide:
            image = slide.read_region(0, 0, 0, slide.level_sizes_px[0])
        found[path] = _most_colored(image).transpose(0, 3, 1, 2)
    return found


def _most_colored(image: np.ndarray, count: int = 3) -> np.ndarray:
    """The `count` non-overlapping squares of (h, w, 3) with most colored pixels."""
    side, colored = REFERENCE_PX, np.ptp(image, axis=2) > 20
    places = itertools.product(*(range(0, n - side + 1, side // 2) for n in image.shape[:2]))
    ranked = sorted(((colored[y : y + side, x : x + side].mean(), y, x) for y, x in places))[::-1]
    chosen: list[tuple[int, int]] = []
    for _, y, x in ranked:
        if all(max(abs(y - b), abs(x - a)) >= side for b, a in chosen):
            chosen.append((y, x))
    return np.stack([image[y : y + side, x : x + side] for y, x in chosen[:count]])


def embedder(source: Path | str, input_size: int | None = None) -> Embed:
    """A function that embeds (N, 3, H, W) uint8 with an encoder to (N, D) float32."""
    encoder = load_encoder(source, input_size=input_size)

    def embed(images: Images) -> Vectors:
        blocks = torch.from_numpy(images).split(BATCH)
        return np.concatenate([encoder(block).numpy() for block in blocks])

    return embed


# --- the runs -------------------------------------------------------------------------------------


def measure(config: Config, options: Options) -> None:
    """Train and measure unfinished runs, one seed of all folds and encoders after the other."""
    centres = (reference_images if options.choosing else centre_images)(options.real_data)
    for seed in options.seeds:
        for fold, (splits, test) in enumerate(fold_splits(config, options.set_aside)):
            missing = [n for n in options.encoders if not _values(options, n, seed, fold).exists()]
            if not missing:
                continue
            train, tested = (read_tiles(config, names, options) for names in (splits, [test]))
            stains = stained(train, tested, {n: pooled_stain(x) for n, x in centres.items()})
            for name in missing:
                started = time.process_time()
                found = _measured(config, _run_name(name, seed, fold), stains, centres)
                found = found.assign(encoder=name, seed=seed, fold=fold)
                with replacing(_values(options, name, seed, fold)) as made:
                    found.to_parquet(made, index=False)
                seconds = time.process_time() - started
                log.info("%s: %.0f CPU seconds", _run_name(name, seed, fold), seconds)


def _measured(
    config: Config, name: str, stains: Stained, centres: dict[str, Images]
) -> pd.DataFrame:
    """Values of a run, which is trained if it is not yet."""
    run, paths = config.run(name), config.paths
    if run.encoder.weights is not None:
        embed = embedder(run.encoder.weights, run.encoder.input_size)
        return run_values(embed, stains, centres, knows_reinhard=False)
    if not paths.model(name).exists():
        if run.encoder.needs_target:
            run_stage("target", config, name)
        run_stage("pretrain", config, name)
        shutil.rmtree(paths.checkpoints(name), ignore_errors=True)  # not needed after training
    embed = embedder(paths.model(name))
    return run_values(embed, stains, centres, knows_reinhard(run.encoder))


def _values(options: Options, name: str, seed: int, fold: int) -> Path:
    return options.work / "values" / f"{_run_name(name, seed, fold)}.parquet"


def report(work: Path, encoders: Sequence[str]) -> pd.DataFrame:
    """Write and print the tables of the finished runs of some encoders; draw the pictures."""
    files = sorted((work / "values").glob("*.parquet"))
    values = pd.concat([pd.read_parquet(file) for file in files], ignore_index=True)
    values = _in_order(values[values["encoder"].isin(encoders)])
    values = robustness_table.comparable(values)
    summary = robustness_table.summarise(values)
    runs = values.groupby("encoder")[["seed", "fold"]].nunique().to_dict("index")
    record = {
        "options": json.loads((work / "options.json").read_text(encoding="utf-8")),
        "runs": runs,
        "figures": summary.to_dict("records"),
    }
    write_text(work / "summary.json", json.dumps(record, indent=1))
    write_text(work / "tables.md", robustness_table.pages(summary))
    for kind, (_, worst, _) in robustness_table.SHOWN.items():
        if worst in set(summary["metric"]):
            with replacing(work / f"{kind}.png") as made:
                robustness_table.picture(summary, kind).savefig(made, format="png")
    print(robustness_table.pages(summary))
    print(f"{len(files)} runs measured; compared: {runs}")
    return summary


def _in_order(values: pd.DataFrame) -> pd.DataFrame:
    place = {name: i for i, name in enumerate(ENCODERS)}
    return values.sort_values("encoder", key=lambda names: names.map(place), kind="stable")


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("what", help="tiles, synthetic, choosing, or a config file")
    parser.add_argument("--work", type=Path, required=True, help="folder for data and results")
    parser.add_argument("--real-data", type=Path, required=True, help="holds camelyon17-centres")
    parser.add_argument("--cohort", help="of the config")
    parser.add_argument(
        "--label", help="column of the sheet or tile label; default: as the cohort has it"
    )
    parser.add_argument("--positive", help="class of the label that stands against all others")
    parser.add_argument("--split", choices=("folds", "sheet"), help="of a config; default: folds")
    parser.add_argument("--encoders", nargs="*", default=list(ENCODERS), choices=list(ENCODERS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--input-size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--steps", type=int, help="stop after so many; default: after the epochs")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--precision", default="auto", help="bf16: twice as fast on some CPUs")
    parser.add_argument("--max-tiles", type=int, default=1500)
    parser.add_argument("--patients", type=int, default=200, help="of the synthetic cohort")
    parser.add_argument("--folds", type=int, default=FOLDS)
    parser.add_argument("--set-aside", type=int, default=0, help="folds trained on, never tested")
    parser.add_argument("--table", action="store_true", help="only tell what has been measured")
    return parser.parse_args(words)


def cohort_data(given: argparse.Namespace, work: Path) -> tuple[dict[str, Any], str | None]:
    """The config of the cohort, and its tile label."""
    if given.what == "tiles":
        return folded(tiles_cohort(given.real_data, work), work, given.folds), "label"
    if given.what in ("synthetic", "choosing"):
        return synthetic_cohort(work, given.patients, given.what == "choosing"), "tumor"
    data = config_cohort(Path(given.what), given.cohort)
    return data if given.split == "sheet" else folded(data, work, given.folds), None


def options_of(given: argparse.Namespace, work: Path, task_label: str | None) -> Options:
    """The options given on the command line."""
    recipe = {
        "backbone": given.backbone, "input_size": given.input_size, "epochs": given.epochs,
        "steps": given.steps,
        "precision": given.precision, "batch_size": given.batch_size,
    }  # fmt: skip
    return Options(
        work, given.real_data.resolve(), tuple(given.encoders), tuple(given.seeds), recipe,
        given.max_tiles, given.label or task_label, given.positive, given.set_aside,
        given.what == "choosing",
    )  # fmt: skip


def main(words: Sequence[str] | None = None) -> pd.DataFrame:
    """Measure unfinished runs, then report all."""
    given = arguments(words)
    for noisy in ("timm", "dask", "matplotlib"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    work = given.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    if not given.table:
        data, task_label = cohort_data(given, work)
        options = options_of(given, work, task_label)
        config = full_config(data, options)
        prepare(config)
        write_text(work / "options.json", json.dumps(options._asdict(), indent=1, default=str))
        measure(config, options)
    return report(work, given.encoders)


if __name__ == "__main__":
    main()
