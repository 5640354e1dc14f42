"""Networks fine-tuned on AMi-Br with one site left out, as rows of `evidence_amibr.py`.

    python -m benchmarks.evidence_finetune --root AMi-Br --work FOLDER --encoder NAME=SOURCE …

The workflow trains each network end to end (`protocol: fine-tune`) on the labelled tiles of four
sites, a fifth of whose cases are for validation, and tests it on the fifth site, for each site in
turn. The folds of cases are those of the linear probes. Predictions are written to `FOLDER/runs/`
as `NAME`, or as `NAME.SEED` for several seeds, where `evidence_amibr.py table` finds them.

SOURCE is the `weights` of an encoder of a config; `macenko-reference+SOURCE` normalizes every tile
first, as in `evidence_amibr.py`. The training time of each set of five networks is in
`FOLDER/results/times/`.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from benchmarks import evidence_table
from benchmarks.evidence_amibr import LABEL, REFERENCE, described_source, read_sheet, run_path
from benchmarks.evidence_pretrain import make, tile_cohorts
from stainssl.config import load
from stainssl.evaluation.predictions import THRESHOLD
from stainssl.stores.atomic import replacing, write_text

log = logging.getLogger("evidence_finetune")


def encoder(source: str, given: argparse.Namespace) -> dict[str, Any]:
    """The config of an encoder."""
    before, _, weights = source.rpartition("+")
    made: dict[str, Any] = {
        "weights": weights, "input_size": given.input_size, "seeds": given.seeds
    }  # fmt: skip
    if before:
        made |= {"preprocess": "reference", "normalizer": before.removesuffix(REFERENCE)}
    return made


def config(given: argparse.Namespace, sources: dict[str, str]) -> dict[str, Any]:
    """The config: a cohort per site, the encoders and the task."""
    tiles = tile_cohorts(given.root.resolve(), given.work.resolve())
    task = {
        "level": "tile",
        "label": LABEL,
        "cohorts": list(tiles["cohorts"]),
        "split": {"kind": "leave-one-out", "group": "site"},
        "protocol": "fine-tune",
        "fine_tune": {"epochs": given.epochs, "patience": given.patience, **given.keys},
    }
    encoders = {name: encoder(source, given) for name, source in sources.items()}
    benchmarks = {"main": {"tasks": [LABEL], "encoders": list(encoders)}}
    return {**tiles, "encoders": encoders, "tasks": {LABEL: task}, "benchmarks": benchmarks}


def collect(given: argparse.Namespace, name: str, source: str, predictions: pd.DataFrame) -> None:
    """Write the predictions of a run, a file per site, and a description of the run."""
    (given.work / "runs").mkdir(parents=True, exist_ok=True)
    described = {
        "source": described_source(source), "input_size": given.input_size, "per_case": None,
        "tiles": len(predictions), "cases": int(predictions["patient_id"].nunique()),
    }  # fmt: skip
    write_text(given.work / "runs" / f"{name}.json", json.dumps(described))
    for site, of_site in predictions.groupby("site"):
        columns = ["patient_id", "slide_id", "site", "tile", "y", "p_0", "p_1", THRESHOLD]
        with replacing(run_path(given.work, name, str(site))) as made:
            of_site[columns].reset_index(drop=True).to_parquet(made, index=False)


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--root", type=Path, required=True, help="the release's folder")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--encoder", nargs="+", required=True, metavar="NAME=SOURCE")
    parser.add_argument("--input-size", type=int, default=64, help="side in px of every network")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--epochs", type=int, default=10, help="at most")
    parser.add_argument("--patience", type=int, default=3)
    parser.add_argument("--keys", type=yaml.safe_load, default={}, help="further keys of fine_tune")
    parser.add_argument("--cores", type=int, default=1)
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> None:
    """Train the encoders one after the other, so that complete rows are available early."""
    given = arguments(words)
    evidence_table.log_to_terminal()
    sources = dict(word.split("=", 1) for word in given.encoder)
    file = given.work.resolve() / "config.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, yaml.safe_dump(config(given, sources), sort_keys=False))
    made = load(file)
    paths, tiles = made.paths, len(read_sheet(given.root))
    for run in made.runs():
        folder = paths.fine_tuned(LABEL, run.name)
        make(file, [folder], given.cores)
        predictions = pd.read_parquet(folder / "predictions.parquet")
        assert len(predictions) == tiles, f"{run.name}: {len(predictions)} of {tiles} tiles"
        seed = run.name.removeprefix(run.key)  # e.g. `.1`; empty for a single seed
        collect(given, f"{run.key}{seed}", sources[run.key], predictions)
        log.info("%s: %d tiles tested", run.name, len(predictions))


if __name__ == "__main__":
    main()
