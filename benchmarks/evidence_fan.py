"""Real stains: retrieval of the same 25 fields of tissue across nine H&E protocols.

    python -m benchmarks.evidence_fan measure --tiles FAN --json FILE --encoder NAME=SOURCE
    python -m benchmarks.evidence_fan picture --tiles FAN
    python -m benchmarks.evidence_fan docs --json FILE

FAN is a folder with `tiles.csv` (`path`, `patient_id`, `site`, `field`) and the tiles. A field is
retrieved by cosine among the 25 fields under another protocol; ties count against it. No encoder
was trained on these tiles. Sections are serial, so that distant protocols also differ in tissue:
results are therefore given by distance too. SOURCE is as in `evidence_amibr`; sources joined by
commas are the seeds of one encoder, whose results are averaged. Intervals are over the five blocks
of tissue.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmarks.evidence_amibr import Embedder, described_source, normalized, profiles
from benchmarks.evidence_table import add_docs_verb, log_to_terminal, span, table, write_section
from stainssl.evaluation.stainings import mean_metric, unit_length
from stainssl.stores.atomic import replacing, write_text

log = logging.getLogger("evidence_fan")
REPO = Path(__file__).resolve().parent.parent
PICTURE = REPO / "docs" / "pictures" / "fan-protocols.jpg"
FIGURES = {"top1": "top-1", "reciprocal_rank": "mean average precision", "margin": "margin"}
SHOWN = "C2"  # field in the picture
TARGET = 4  # index of the protocol to which it is normalized

Values = dict[str, NDArray[np.float64]]  # metric → (pairs, fields)


def read_tiles(folder: Path) -> tuple[pd.DataFrame, NDArray[np.uint8]]:
    """Read rows, sorted by protocol and field, and their pixels, (N, H, W, 3) uint8 RGB."""
    rows = pd.read_csv(folder / "tiles.csv", dtype=str).sort_values(["site", "field"])
    images = [np.asarray(Image.open(folder / path).convert("RGB")) for path in rows["path"]]
    return rows.reset_index(drop=True), np.stack(images)


def of_a_pair(first: NDArray[Any], second: NDArray[Any]) -> dict[str, NDArray[np.float64]]:
    """Metric → (F,) of each field, averaged over both directions.

    Args:
        first, second: (F, D) embeddings of the same fields under two protocols.
    """
    cosine = unit_length(first) @ unit_length(second).T
    same = np.diagonal(cosine)
    ranks = np.stack([(matrix >= same[:, None]).sum(1) for matrix in (cosine, cosine.T)])
    others = (cosine.sum(1) + cosine.sum(0) - 2 * same) / (2 * (len(cosine) - 1))
    return {
        "top1": (ranks == 1).mean(0),
        # With one correct field, the reciprocal rank is the average precision.
        "reciprocal_rank": (1 / ranks).mean(0),
        "margin": same - others,
    }


def of_an_encoder(vectors: NDArray[Any], protocols: int) -> Values:
    """Metric → (P, F), for each pair of protocols and each field."""
    stacked = vectors.reshape(protocols, -1, vectors.shape[1])
    pairs = [of_a_pair(stacked[i], stacked[j]) for i, j in combinations(range(protocols), 2)]
    return {name: np.stack([pair[name] for pair in pairs]) for name in FIGURES}


def summary(values: Values, protocols: int, block: NDArray[np.int64]) -> dict[str, Any]:
    """Means with intervals over blocks, for all pairs and the worst, and means by distance."""
    pairs = list(combinations(range(protocols), 2))
    distance = np.array([j - i for i, j in pairs])
    found: dict[str, Any] = {}
    for name, of_pairs in values.items():
        worst = int(of_pairs.mean(1).argmin())
        found[name] = {
            "mean": _figure(of_pairs.mean(0), block),
            "worst": {**_figure(of_pairs[worst], block), "pair": list(pairs[worst])},
            "by_distance": [
                round(float(of_pairs[distance == d].mean()), 4) for d in range(1, protocols)
            ],
        }
    return found


def _figure(of_fields: NDArray[np.float64], block: NDArray[np.int64]) -> dict[str, float]:
    found = mean_metric("", of_fields, block, 0)
    return {key: round(float(getattr(found, key)), 4) for key in ("value", "low", "high")}


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Measure every encoder; returns the record."""
    rows, images = read_tiles(given.tiles)
    protocols = rows["site"].nunique()
    block = np.unique(rows["patient_id"][: len(rows) // protocols], return_inverse=True)[1]
    found: dict[str, Any] = {}
    for name, sources in (word.split("=", 1) for word in given.encoder):
        seeds = [
            of_an_encoder(
                Embedder(source, images, given.input_size)("", np.ones(len(rows), bool)), protocols
            )
            for source in sources.split(",")
        ]
        mean = {figure: np.mean([seed[figure] for seed in seeds], axis=0) for figure in FIGURES}
        described = described_source(sources.split(",")[0])
        found[name] = {
            "source": described, "seeds": len(seeds), **summary(mean, protocols, block),
        }  # fmt: skip
        log.info("%s: top-1 %.3f", name, found[name]["top1"]["mean"]["value"])
    counts = {"fields": len(rows) // protocols, "protocols": protocols, "blocks": len(set(block))}
    return {**counts, "input_size": given.input_size, "encoders": found}


# --- docs -----------------------------------------------------------------------------------------


def section(made: Mapping[str, Any]) -> str:
    """The section as Markdown."""
    order = sorted(made["encoders"], key=lambda n: -made["encoders"][n]["top1"]["mean"]["value"])
    lines = [
        f"{made['fields']} fields of {made['blocks']} blocks under {made['protocols']} protocols, "
        f"networks at {made['input_size']} px; a field is retrieved among {made['fields']}. 95 % "
        "intervals over blocks. Best first.",
        "",
    ]
    head = ["encoder", "seeds", "top-1, mean of pairs", "top-1, worst pair",
            "mean average precision", "margin, mean of pairs", "margin, worst pair"]  # fmt: skip
    lines += table(head, [_row(name, made["encoders"][name]) for name in order])
    far = range(1, made["protocols"])
    lines += table(
        ["top-1 by distance of protocols", *map(str, far)],
        [
            [f"`{n}`", *(f"{v:.2f}" for v in made["encoders"][n]["top1"]["by_distance"])]
            for n in order
        ],
    )
    return "\n".join(lines)


def _row(name: str, one: Mapping[str, Any]) -> list[str]:
    shown = [("top1", "mean"), ("top1", "worst"), ("reciprocal_rank", "mean"), ("margin", "mean"),
             ("margin", "worst")]  # fmt: skip
    return [f"`{name}`", str(one["seeds"]), *(span(one[figure][kind]) for figure, kind in shown)]


def draw(rows: pd.DataFrame, images: NDArray[np.uint8], path: Path) -> None:
    """Draw one field under all protocols, as stained and normalized to one by two methods."""
    protocols = sorted(rows["site"].unique())
    target_rows = torch.tensor((rows["site"] == protocols[TARGET]).to_numpy())
    shown = (rows["field"] == SHOWN).to_numpy()
    lines = {"as stained": images[shown]}
    for method in ("macenko", "reinhard"):
        own = profiles(images, method)
        lines[method] = normalized(images, own, own[target_rows].pooled())[shown]
    figure, axes = plt.subplots(len(lines), len(protocols), figsize=(9.6, 3.5))
    for axis, (picture, place) in zip(axes.flat, _cells(lines), strict=True):
        axis.imshow(picture)
        axis.set(xticks=[], yticks=[])
        if place < len(protocols):
            axis.set_title(f"protocol {place}" + (" (target)" if place == TARGET else ""), size=7)
    for axis, name in zip(axes[:, 0], lines, strict=True):
        axis.set_ylabel(name, size=8)
    figure.subplots_adjust(0.03, 0.01, 0.995, 0.93, 0.04, 0.04)
    with replacing(path) as made:
        figure.savefig(made, dpi=150, format="jpg", pil_kwargs={"quality": 88})
    plt.close(figure)


def _cells(lines: Mapping[str, NDArray[np.uint8]]) -> Iterator[tuple[NDArray[np.uint8], int]]:
    pictures = [picture for line in lines.values() for picture in line]
    return ((picture, place) for place, picture in enumerate(pictures))


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    one = verbs.add_parser("measure", help="figures as JSON")
    one.add_argument("--tiles", type=Path, required=True)
    one.add_argument("--json", type=Path, required=True)
    one.add_argument("--encoder", nargs="+", required=True, metavar="NAME=SOURCE[,SOURCE…]")
    one.add_argument("--input-size", type=int, default=64, help="side in px of every network")
    two = verbs.add_parser("picture", help="draw docs/pictures/fan-protocols.jpg")
    two.add_argument("--tiles", type=Path, required=True)
    add_docs_verb(verbs)
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> None:
    """Measure, draw, or write the section."""
    given = arguments(words)
    log_to_terminal()
    if given.verb == "measure":
        write_text(given.json, json.dumps(measure(given), indent=1) + "\n")
    elif given.verb == "picture":
        draw(*read_tiles(given.tiles), PICTURE)
    else:
        write_section(given, section)


if __name__ == "__main__":
    main()
