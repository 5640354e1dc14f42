"""Summary of the results on real tiles, for the README and the top of docs/results.md.

    python -m benchmarks.evidence_summary

The numbers are from `docs/evidence/amibr.json`, `confounded.json` and `fan.json`, from the records
`…-longer.json` of networks that were trained longer, and `…-128-px.json` of those at 128 px.
Published results on AMi-Br, from the package's table, are written to docs/results.md too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.evidence_table import RESULTS, span, table
from stainssl.evaluation import published
from tools.pages import fill, marks

REPO = RESULTS.parent.parent
PAGES = RESULTS, REPO / "README.md"
NAME = "real tiles"
PUBLISHED = "amibr-published"
NOTHING = "–"
# Row → names of its encoder in the records `amibr`, `confounded` and `fan`.
ROWS: dict[str, tuple[str, str, str]] = {
    "ImageNet, frozen": ("imagenet", "imagenet", "imagenet"),
    "Macenko in front of it": ("macenko", "macenko", "macenko"),
    "Reinhard in front of it": ("reinhard", "reinhard", "reinhard"),
    "pretrained further with SimCLR": ("simclr-without", "simclr-all", "simclr-all"),
    "pretrained further with `stain-invariant`": (
        "stain-invariant-without", "stain-invariant-all", "stain-invariant-all",
    ),
    "Macenko in front of the latter": (
        "macenko-stain-invariant-without", "macenko-stain-invariant-all",
        "macenko-stain-invariant-all",
    ),
    "SimCLR, 480 steps": (
        "simclr-480-steps-without", "simclr-480-steps-all", "simclr-480-steps-all",
    ),
    "`stain-invariant`, 480 steps": (
        "stain-invariant-480-steps-without", "stain-invariant-480-steps-all",
        "stain-invariant-480-steps-all",
    ),
    "Macenko in front of the latter, 480 steps": (
        "macenko-stain-invariant-480-steps-without", "macenko-stain-invariant-480-steps-all",
        "macenko-stain-invariant-480-steps-all",
    ),
    "random weights": ("random", "random", "random"),
    "color statistics": ("color", "color", "color"),
    "128 px: ImageNet, frozen": ("imagenet-128-px",) * 3,
    "128 px: Macenko in front of it": ("macenko-128-px",) * 3,
    "128 px: SimCLR, 480 steps": ("simclr-480-steps-128-px-all",) * 3,
    "128 px: `stain-invariant`, 480 steps": ("stain-invariant-480-steps-128-px-all",) * 3,
    "128 px: Macenko in front of the latter": (
        "macenko-stain-invariant-480-steps-128-px-all",
    ) * 3,
}  # fmt: skip
HEAD = (
    "EfficientNet-lite0, 64 or 128 px", "unseen site: AUROC", "label confounded with site: AUROC",
    "site predictability (chance 0.2)", "retrieval under another stain: top-1",
)  # fmt: skip


def load() -> dict[str, dict[str, Any]]:
    """Record → encoder → results, including those trained longer and those at 128 px."""
    folder, names = REPO / "docs" / "evidence", ("amibr", "confounded", "fan")
    found: dict[str, dict[str, Any]] = {name: {} for name in names}
    for name in names:
        others = [folder / f"{name}-{kind}.json" for kind in ("longer", "128-px")]
        for path in filter(Path.exists, [*others, folder / f"{name}.json"]):
            found[name] |= json.loads(path.read_text(encoding="utf-8"))["encoders"]
    return found


def _cells(made: Mapping[str, Mapping[str, Any]], keys: tuple[str, str, str]) -> list[str]:
    unseen, confounded, fan = (
        made[record].get(key) for record, key in zip(made, keys, strict=True)
    )
    return [
        span(unseen["mean"]["auroc"]) if unseen else NOTHING,
        *(span(confounded[key]) if confounded else NOTHING for key in ("auroc", "site")),
        span(fan["top1"]["mean"]) if fan else NOTHING,
    ]


def section(made: Mapping[str, Mapping[str, Any]]) -> str:
    """The table as Markdown, without rows that are in no record."""
    rows = [[name, *_cells(made, keys)] for name, keys in ROWS.items()]
    return "\n".join(table(HEAD, [row for row in rows if set(row[1:]) != {NOTHING}]))


def of_others() -> str:
    """Published results on AMi-Br as a Markdown table."""
    found = published.figures_for([("atypical", "amibr", "atypical")])
    rows = [
        [one.method, one.protocol, one.figure, one.metric, one.split, one.source]
        for _, one in found
    ]
    return "\n".join(table(["method", "protocol", "figure", "metric", "split", "source"], rows))


def main() -> None:
    """Write the tables into the pages."""
    text = f"\n\n{section(load())}\n"
    for page in PAGES:
        fill(page, marks(NAME), text)
    fill(RESULTS, marks(PUBLISHED), f"\n\n{of_others()}\n")


if __name__ == "__main__":
    main()
