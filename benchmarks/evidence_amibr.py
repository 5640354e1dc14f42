"""Atypical mitoses at an unseen site: frozen encoders on the real tiles of AMi-Br.

    python -m benchmarks.evidence_amibr measure --root AMi-Br --work FOLDER --encoder NAME=SOURCE …
    python -m benchmarks.evidence_amibr table --root AMi-Br --work FOLDER \
        --json docs/evidence/amibr.json
    python -m benchmarks.evidence_amibr docs --json docs/evidence/amibr.json

Each of the five sites is left out in turn. A linear probe learns `atypical` from the cases of the
other four. A fifth of these cases, the validation cases, choose the penalty and the threshold above
which a mitotic figure is predicted atypical. Nothing is chosen on the site that is left out, and
cases are never split. Intervals are over cases (2,000 resamples), also for the mean over sites.

SOURCE is the `weights` of an encoder of a config; `{site}` in it stands for the site left out, for
encoders trained without that site (by `evidence_pretrain.py`). `NAME.0`, `NAME.1` … are the seeds
of one encoder: results are averaged over them, and intervals are over patients and seeds. Other
sources: `color` (means, standard deviations and covariances of RGB, no network), `random:NAME` (a
timm architecture with random weights), and `macenko+SOURCE` or `reinhard+SOURCE`, which first
normalize every tile to the mean stain of the training cases. `macenko-reference+SOURCE` normalizes
to the published reference instead, which does not depend on these tiles. `detail-64+SOURCE` first
reduces every tile to 64 px and enlarges it again, which removes finer detail.

Predictions are written to `WORK/runs/`, a file per encoder and site, so that an interrupted
measurement can be resumed. `table` adds them to the predictions beside the JSON (`amibr.parquet`),
compares all encoders with results at all five sites, and names the others.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.metrics import roc_curve

from benchmarks import evidence_predictions, evidence_table
from benchmarks.color import color_features
from stainssl.datasets import load as load_release
from stainssl.encoders.loading import LoadedEncoder, new_backbone
from stainssl.encoders.loading import load as load_encoder
from stainssl.evaluation.folds import each_fold, make_folds
from stainssl.evaluation.predictions import THRESHOLD
from stainssl.evaluation.probe import fit_linear, linear_probe
from stainssl.stain.estimate import estimate
from stainssl.stain.normalize import normalize
from stainssl.stain.profile import StainProfile
from stainssl.stores.atomic import replacing, write_text

log = logging.getLogger("evidence_amibr")
LABEL, BATCH = "atypical", 64  # tiles per batch
REFERENCE = "-reference"  # suffix of a normalizer's name
DETAIL = "detail-"  # prefix of the side in px

Images = NDArray[np.uint8]
Vectors = NDArray[np.float32]


# --- data -----------------------------------------------------------------------------------------


def read_sheet(root: Path) -> pd.DataFrame:
    """The sheet of the release, one row per tile, without excluded ones."""
    sheet = load_release("amibr", root).sheet
    return sheet[sheet["exclude"] == ""].reset_index(drop=True)


def read_tiles(root: Path, per_case: int | None) -> tuple[pd.DataFrame, Images]:
    """Read the sheet of the release and the pixels of its tiles, (N, 128, 128, 3) uint8 RGB.

    Args:
        root: folder of the release.
        per_case: maximum number of tiles per case, drawn with seed 0; None reads all.
    """
    sheet = read_sheet(root)
    if per_case is not None:
        sheet = sheet.sample(frac=1, random_state=0).groupby("patient_id").head(per_case)
        sheet = sheet.sort_index().reset_index(drop=True)
    images = [np.asarray(Image.open(root / path).convert("RGB")) for path in sheet["path"]]
    return sheet, np.stack(images)


def site_folds(sheet: pd.DataFrame) -> dict[str, dict[str, set[str]]]:
    """Site left out → role (`train`, `val`, `test`) → cases."""
    by_case = sheet.groupby("patient_id", as_index=False)
    cases = by_case.agg(site=("site", "first"), label=(LABEL, "max"))
    folds = make_folds(cases, kind="leave-one-out", group="site")
    site = cases.set_index("patient_id")["site"]
    return {str(site[min(role["test"])]): role for _, _, role in each_fold(folds)}


# --- vectors --------------------------------------------------------------------------------------


def network(source: str, input_size: int) -> LoadedEncoder:
    """Load the encoder of a source, with an input size that is the same for all."""
    if not source.startswith("random:"):
        return replace(load_encoder(source), input_size=input_size)
    torch.manual_seed(0)
    model, _ = new_backbone(source.removeprefix("random:"), input_size)
    config: Any = model.pretrained_cfg
    mean, std = (torch.tensor(config[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    return LoadedEncoder(
        model.eval(), model.num_features, input_size, mean, std, "bicubic", torch.device("cpu")
    )


def embed(encoder: LoadedEncoder, images: Images) -> Vectors:
    """Embed images (N, H, W, 3) uint8 RGB to (N, D)."""
    blocks = torch.from_numpy(images).permute(0, 3, 1, 2).split(BATCH)
    return np.concatenate([encoder(block).numpy() for block in blocks])


def profiles(images: Images, method: str) -> StainProfile:
    """Estimate the stain profile of each image (N, H, W, 3) uint8 RGB."""
    blocks = torch.from_numpy(images).permute(0, 3, 1, 2).split(BATCH)
    return StainProfile.cat([estimate(block, method) for block in blocks])


def normalized(images: Images, own: StainProfile, target: StainProfile) -> Images:
    """Normalize images (N, H, W, 3) to the target; those without a valid profile are unchanged."""
    out = images.copy()
    for rows in torch.arange(len(images)).split(BATCH):
        rows = rows[own.valid[rows]]
        given = torch.from_numpy(images[rows.numpy()]).permute(0, 3, 1, 2)
        out[rows.numpy()] = normalize(given, own[rows], target).permute(0, 2, 3, 1).numpy()
    return out


def without_detail(images: Images, side_px: int) -> Images:
    """Reduce square images (N, S, S, 3) uint8 RGB to `side_px`, and enlarge them again."""
    large = images.shape[1:3]
    tiles = (Image.fromarray(image) for image in images)
    reduced = (tile.resize((side_px, side_px), Image.Resampling.BOX) for tile in tiles)
    return np.stack([np.asarray(tile.resize(large, Image.Resampling.BICUBIC)) for tile in reduced])


class Embedder:
    """Embeddings of all tiles by one encoder, for each site left out.

    Args:
        source: SOURCE of the command line.
        images: (N, H, W, 3) uint8 RGB.
        input_size: side of the network's input in px.
    """

    def __init__(self, source: str, images: Images, input_size: int) -> None:
        self.source, self.images, self.input_size = source, images, input_size
        self._whatever_the_site = cache(self._vectors)
        self._profiles = cache(partial(profiles, images))

    def __call__(self, site: str, training: NDArray[np.bool_]) -> Vectors:
        """Return (N, D); `training` (N,) marks the tiles from which a target may be computed."""
        method, _, plain = self.source.rpartition("+")
        source = plain.format(site=site)
        if not method or method.endswith(REFERENCE) or method.startswith(DETAIL):
            return self._whatever_the_site(method, source)
        target = self._profiles(method)[torch.tensor(training)].pooled()
        return self._embedded(source, self._normalized(method, target))

    def _vectors(self, method: str, source: str) -> Vectors:
        """Embeddings by a method that uses no training tiles; `method` is empty for plain tiles."""
        if not method:
            plain = self.images
            return color_features(plain) if source == "color" else self._embedded(source, plain)
        if method.startswith(DETAIL):
            side_px = int(method.removeprefix(DETAIL))
            return self._embedded(source, without_detail(self.images, side_px))
        method = method.removesuffix(REFERENCE)
        target = StainProfile.reference(method)
        return self._embedded(source, self._normalized(method, target))

    def _normalized(self, method: str, target: StainProfile) -> Images:
        return normalized(self.images, self._profiles(method), target)

    def _embedded(self, source: str, images: Images) -> Vectors:
        return embed(network(source, self.input_size), images)


# --- runs -----------------------------------------------------------------------------------------


def best_threshold(y: NDArray, p: NDArray) -> float:
    """The threshold of the probability with the best balanced accuracy."""
    false, true, thresholds = roc_curve(y, p)
    return float(min(thresholds[np.argmax(true - false)], 1.0))


def predictions(sheet: pd.DataFrame, vectors: Vectors, role: Mapping[str, set[str]]) -> Any:
    """Test predictions of a fold, one row per tile, with the threshold chosen on validation."""
    y = (sheet[LABEL] == "1").to_numpy(np.int64)
    case = sheet["patient_id"].to_numpy(str)
    train, val, test = (np.isin(case, sorted(role[name])) for name in ("train", "val", "test"))
    both = train | val
    model, penalty = linear_probe(vectors[both], y[both], case[both], val[both], 2, seed=0)
    chooser = fit_linear(vectors[train], y[train], 2, penalty)
    p = model(vectors[test])
    table = sheet.loc[test, ["patient_id", "slide_id", "site"]].assign(tile=0)
    table["y"], table["p_0"], table["p_1"] = sheet.loc[test, LABEL], p[:, 0], p[:, 1]
    table[THRESHOLD] = best_threshold(y[val], chooser(vectors[val])[:, 1])
    return table.assign(penalty=penalty).reset_index(drop=True)


def run_path(work: Path, encoder: str, site: str) -> Path:
    """The file with the predictions of a finished run."""
    return work / "runs" / f"{encoder}@{site}.parquet"


def measure(given: argparse.Namespace) -> None:
    """Run every encoder at every site without a finished run."""
    (given.work / "runs").mkdir(parents=True, exist_ok=True)
    sheet, images = read_tiles(given.root, given.per_case)
    folds = site_folds(sheet)
    options = {"input_size": given.input_size, "per_case": given.per_case}
    counts = {"tiles": len(sheet), "cases": int(sheet["patient_id"].nunique())}
    for name, source in (word.split("=", 1) for word in given.encoder):
        described = {"source": described_source(source), **options, **counts}
        write_text(given.work / "runs" / f"{name}.json", json.dumps(described))
        embedder = Embedder(source, images, given.input_size)
        for site, role in folds.items():
            if (path := run_path(given.work, name, site)).exists():
                continue
            training = sheet["patient_id"].isin(role["train"] | role["val"]).to_numpy()
            found = predictions(sheet, embedder(site, training), role)
            with replacing(path) as made:
                found.to_parquet(made, index=False)
            log.info("%s without %s: %d tiles tested", name, site, len(found))


def described_source(source: str) -> str:
    """A source without paths, which differ between machines; a model is named by its encoder."""
    before, is_folder, folder = source.partition("local-dir:")
    if is_folder:
        return f"{before}{Path(folder).parent.name}"
    name, at, file = source.partition("@")
    return f"{name}{at}{Path(file).name}"


def finished(work: Path) -> dict[str, dict[str, pd.DataFrame]]:
    """Encoder → site → predictions, of every finished run."""
    found: dict[str, dict[str, pd.DataFrame]] = {}
    for path in sorted((work / "runs").glob("*@*.parquet")):
        encoder, site = path.stem.split("@")
        found.setdefault(encoder, {})[site] = pd.read_parquet(path)
    return found


def compared(given: argparse.Namespace) -> dict[str, Any]:
    """Add the finished runs to the predictions beside the JSON, and return the record of all."""
    path = given.json.with_suffix(".parquet")
    sheet = read_sheet(given.root)
    before, described = evidence_predictions.read(path, sheet, LABEL)
    described |= {p.stem: json.loads(p.read_text()) for p in (given.work / "runs").glob("*.json")}
    evidence_predictions.write(path, {**before, **finished(given.work)}, described)
    runs, _ = evidence_predictions.read(path, sheet, LABEL)
    return evidence_table.record(runs, described, given.resamples)


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    one = verbs.add_parser("measure", help="make the runs that are not there")
    one.add_argument("--root", type=Path, required=True, help="the release's folder")
    one.add_argument("--work", type=Path, required=True)
    one.add_argument("--encoder", nargs="+", required=True, metavar="NAME=SOURCE")
    one.add_argument("--input-size", type=int, default=128, help="side in px of every network")
    one.add_argument("--per-case", type=int, help="at most so many tiles of a case; default: all")
    two = verbs.add_parser("table", help="figures of the finished runs as JSON")
    two.add_argument("--root", type=Path, required=True, help="the release's folder")
    two.add_argument("--work", type=Path, required=True)
    two.add_argument("--json", type=Path, required=True)
    two.add_argument("--resamples", type=int, default=2000)
    evidence_table.add_docs_verb(verbs)
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> None:
    """Measure, compare, or write the section."""
    given = arguments(words)
    evidence_table.log_to_terminal()
    if given.verb == "measure":
        measure(given)
        return
    if given.verb == "table":
        write_text(given.json, json.dumps(compared(given), indent=1) + "\n")
        return
    evidence_table.write_section(given, evidence_table.section)


if __name__ == "__main__":
    main()
