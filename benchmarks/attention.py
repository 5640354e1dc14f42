"""Does attention find the tumour on held-out HER2-positive slides of the synthetic cohort?

    OMP_NUM_THREADS=1 python benchmarks/attention.py RESULTS/config.yaml --work FOLDER

Reads the embeddings and tile labels of a finished run on a larger demo cohort (for example of
`benchmarks/demo_claim.py`), writes nothing there, and trains heads for `her2` with at least 60
patients outside the test set of each fold. The metric is the AUROC of a tile's attention for tumour
(the true polygons) within each held-out HER2-positive slide: its mean over slides, with a 95 %
bootstrap interval over patients. HER2 is visible in tumour cells only, as a membrane ring and by
their size. Prints a table and writes `attention.json`.

`--encoders imagenet` requires `encoders: {imagenet: {weights: efficientnet-lite0}}` in the config,
and `stainssl embed` of every part beforehand.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from stainssl.cohort import parts, read_sheet
from stainssl.config import Config, Head, Split, Task, load
from stainssl.stages import run_stage
from stainssl.stores.tables import read_table
from stainssl.stores.tiles import read_labels

MIN_TRAINING = 60  # patients
TASK = "her2"


def config_of(source: Path, work: Path, heads: list[str]) -> Config:
    """The run's config with this task and these heads; its results are linked into `work`."""
    found = load(source)
    results = work / "results"
    shutil.rmtree(results, ignore_errors=True)
    results.mkdir(parents=True)
    for name in ("cohorts", "encoders", "demo"):
        (results / name).symlink_to((found.results / name).resolve())
    (cohort,) = found.cohorts
    patients = read_sheet(found, cohort)["patient_id"].nunique()
    if patients <= MIN_TRAINING:
        raise SystemExit(f"{patients} patients: more than {MIN_TRAINING} are needed.")
    count = -(-patients // (patients - MIN_TRAINING))
    split = Split(folds=count, stratify=["site"])
    task = Task(level="slide", label=TASK, cohorts=[cohort], split=split)
    made = {kind: Head(kind=kind) for kind in heads}
    return found.model_copy(update={"results": results, "tasks": {TASK: task}, "heads": made})


def truth(config: Config, cohort: str) -> pd.DataFrame:
    """`slide_id`, `tile` and `tumor` of the tiles with a known label."""
    tables = [read_labels(config.paths.labels(cohort, part)) for part in parts(config, cohort)]
    return pd.concat(tables).dropna(subset=["tumor"])[["slide_id", "tile", "tumor"]]


def measure(config: Config, encoder: str, head: str) -> dict[str, Any]:
    """Train a head on an encoder's embeddings; returns a row of the table."""
    (cohort,) = config.cohorts
    run_stage("mil", config, TASK, encoder, head)
    folder = config.paths.mil(TASK, encoder, head)
    sheet = read_sheet(config, cohort)
    positive = sheet[sheet[TASK] == "1"][["slide_id", "patient_id"]]
    tiles = read_table(folder / "attention.parquet", "attention").merge(positive, on="slide_id")
    tiles = tiles.merge(truth(config, cohort), on=["slide_id", "tile"])
    rows = [
        (patient, roc_auc_score(one["tumor"], one["attention"]))
        for (patient, _), one in tiles.groupby(["patient_id", "slide_id"])
        if one["tumor"].nunique() == 2
    ]
    table = pd.DataFrame(rows, columns=["patient", "auroc"])
    by_patient = [group["auroc"].to_numpy() for _, group in table.groupby("patient")]
    rng = np.random.default_rng(0)
    drawn = [
        np.concatenate([by_patient[i] for i in rng.integers(len(by_patient), size=len(by_patient))])
        for _ in range(2000)
    ]
    low, high = np.quantile([one.mean() for one in drawn], [0.025, 0.975])
    label = pd.read_csv(folder / "metrics.csv").query("metric == 'auroc' and group == 'all'")
    return {
        "encoder": encoder, "head": head, "slides": len(table), "patients": len(by_patient),
        "attention AUROC": round(table["auroc"].mean(), 3), "low": round(low, 3),
        "high": round(high, 3), "slides at or above 0.8": round((table["auroc"] >= 0.8).mean(), 2),
        "her2 AUROC": round(label["value"].item(), 3),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--encoders", nargs="+", default=["stain-invariant.0", "simclr.0"])
    parser.add_argument("--heads", nargs="+", default=["abmil", "clam", "dsmil"])
    words = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    config = config_of(words.config, words.work, words.heads)
    run_stage("folds", config, TASK)
    rows = [measure(config, e, h) for e in words.encoders for h in words.heads]
    training = pd.read_csv(config.paths.folds(TASK))
    least = training[training["role"] != "test"].groupby("fold")["patient_id"].nunique().min()
    print(pd.DataFrame(rows).to_string(index=False))
    print(f"at least {least} patients in a training part (a fifth of them validate)")
    (words.work / "attention.json").write_text(
        json.dumps({"rows": rows, "training_patients": int(least)}, indent=1)
    )


if __name__ == "__main__":
    main()
