"""Networks pretrained further on the tiles of AMi-Br, for `evidence_amibr.py measure`.

    python -m benchmarks.evidence_pretrain --root AMi-Br --work FOLDER

Writes a sheet per site and a config to the folder, and runs the workflow, which trains from the
given weights `METHOD-without-SITE`, on the tiles of the other four sites, and `METHOD-all`, on
those of all sites without labels, as a laboratory can do with its own slides. Methods differ only
in the keys in `METHODS`. `--backbone` trains a timm architecture from random weights instead. An
interrupted training is resumed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from benchmarks.evidence_amibr import LABEL
from stainssl.config import load
from stainssl.datasets import load as load_release
from stainssl.stores.atomic import write_text

REPO = Path(__file__).resolve().parent.parent
METHODS: dict[str, dict[str, Any]] = {
    "stain-invariant": {"method": "stain-invariant"},
    "simclr": {"method": "simclr"},
    "macenko-simclr": {"method": "simclr", "preprocess": True},
    "stain-invariant-no-hed": {"method": "stain-invariant", "stain_jitter": "none"},
    "simclr-no-hed": {"method": "simclr", "stain_jitter": "none"},
    "simclr-randstainna": {"method": "simclr", "stain_jitter": "randstainna"},
    "stain-invariant-two-targets": {"method": "stain-invariant", "views": "different"},
    "stain-invariant-per-image": {"method": "stain-invariant", "target": {"per": "image"}},
    "stain-invariant-medoid": {"method": "stain-invariant", "target": {"policy": "medoid"}},
    "stain-invariant-moving-norms": {"method": "stain-invariant", "freeze_norms": False},
    "simclr-moving-norms": {"method": "simclr", "freeze_norms": False},
}
# Learning rate and batch size are the demo's, chosen on the synthetic cohort. Crops are at least
# half of a tile, since the label belongs to one cell in its center.
COMMON: dict[str, Any] = {"batch_size": 64, "lr": 3e-4, "geometry": {"area": [0.5, 1.0]}}


def write_sheets(root: Path, work: Path) -> dict[str, str]:
    """Write a sheet per site; returns site → path."""
    rows = load_release("amibr", root).sheet
    rows = rows[rows["exclude"] == ""]
    (work / "sheets").mkdir(parents=True, exist_ok=True)
    found = {}
    for site, of_site in rows.groupby("site"):
        found[str(site)] = str(work / "sheets" / f"{site}.csv")
        text = of_site[["slide_id", "patient_id", "path", "site", "mpp", LABEL]].to_csv(index=False)
        write_text(Path(found[str(site)]), text)
    return found


def encoders(sites: Sequence[str], given: argparse.Namespace) -> dict[str, Any]:
    """The encoders of the config."""
    start = {"backbone": given.backbone} if given.backbone else {"init": given.init}
    common = {**COMMON, **start, "input_size": given.input_size, "steps": given.steps}
    seen = {f"without-{site}": [s for s in sites if s != site] for site in sites}
    seeds = dict.fromkeys(seen, given.seeds) | {"all": given.seeds_all}
    seen["all"] = list(sites)
    return {
        f"{method}-{name}": {
            **common,
            **METHODS[method],
            "train": {"cohorts": cohorts, "splits": ["all"]},
            "seeds": seeds[name],
        }
        for method in given.methods
        for name, cohorts in seen.items()
        if seeds[name]
    }


def tile_cohorts(root: Path, work: Path) -> dict[str, Any]:
    """The part of the config about tiles, with a cohort per site."""
    cohorts = {
        site: {"sheet": sheet, "root": str(root), "kind": "patches"}
        for site, sheet in write_sheets(root, work).items()
    }
    return {
        "results": str(work / "results"),
        "slides": {"part_size": 2000},
        "cohorts": cohorts,
        "tilings": {"default": {"mpp": 0.25, "size": 128, "min_tissue": 0.0, "filters": NO_FILTER}},
    }


def config(root: Path, work: Path, given: argparse.Namespace) -> dict[str, Any]:
    """The config: a cohort per site, and the encoders."""
    tiles = tile_cohorts(root, work)
    return {**tiles, "encoders": encoders(list(tiles["cohorts"]), given)}


NO_FILTER = {"max_pen": None, "min_sharpness": None}  # keep all published tiles


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--root", type=Path, required=True, help="the release's folder")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--init", default="efficientnet-lite0")
    parser.add_argument("--backbone", help="an architecture to train from random weights instead")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS)[:2])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2], help="a site left out")
    parser.add_argument("--seeds-all", nargs="*", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--input-size", type=int, default=64, help="side in px")
    parser.add_argument("--cores", type=int, default=1)
    return parser.parse_args(words)


def train(config_file: Path, names: Sequence[str], cores: int) -> None:
    """Run the workflow for some encoders of a config, e.g. `METHOD-all.0`."""
    paths = load(config_file).paths
    make(config_file, [paths.model(name) for name in names], cores)


def make(config_file: Path, files: Sequence[Path], cores: int) -> None:
    """Run the workflow for some output files of a config."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(REPO / "Snakefile")]
    command += ["--configfile", str(config_file), "--directory", str(config_file.parent)]
    command += ["--cores", str(cores), "--rerun-incomplete", "--keep-going"]
    command += ["--quiet", "rules", "host", "--", *map(str, files)]
    subprocess.run(command, check=True)


def main(words: Sequence[str] | None = None) -> None:
    """Write sheets and config, then train seed by seed, so that the first seed is done early."""
    given = arguments(words)
    work = given.work.resolve()
    made = config(given.root.resolve(), work, given)
    write_text(work / "config.yaml", yaml.safe_dump(made, sort_keys=False))
    runs = load(work / "config.yaml").runs()
    for seed in dict.fromkeys(run.seed for run in runs):
        names = [run.name for run in runs if run.seed == seed]
        train(work / "config.yaml", names, given.cores)


if __name__ == "__main__":
    main()
