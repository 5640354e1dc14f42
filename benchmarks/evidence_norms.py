"""Choice of batch norm statistics of a continued network: as given, or recomputed from the views.

    python -m benchmarks.robustness_real choosing --work WORK --real-data REAL --seeds 0 \
        --steps 120 --epochs 200 --batch-size 64 --encoders imagenet "simclr, continued" …
    python -m benchmarks.robustness_real tiles --work WORK2 --folds 3 …
    python -m benchmarks.evidence_norms record --choosing WORK --breakhis WORK2
    python -m benchmarks.evidence_norms docs

`record` stores the results shown in the tables in docs/evidence/norms.json; `docs` writes the
tables of docs/results-appendix.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.evidence_table import RESULTS, span, table
from stainssl.stores.atomic import write_text
from tools.pages import fill, marks

PAGE = RESULTS.with_name("results-appendix.md")
RECORD = RESULTS.parent / "evidence" / "norms.json"
COHORTS = {
    "choosing": "synthetic tiles that defaults are chosen by",
    "breakhis": "BreakHis, three folds of patients",
}
RETRIEVAL = {
    "top1, worst pair": "same tile under another stain, top-1, worst pair",
    "top1, mean of pairs": "mean of pairs",
    "stain told": "stain told",
}
LABEL = {
    "auroc, as it is": "label, AUROC",
    "auroc, worst stain": "under the worst unseen stain",
    "auroc, confounded": "stain goes with the label",
}
# The label of BreakHis has 18 patients, five of them benign: too few to compare encoders.
SHOWN = {"choosing": RETRIEVAL | LABEL, "breakhis": RETRIEVAL}
SETTINGS = ("seeds", "recipe", "max_tiles")


def kept(summary: Mapping[str, Any], shown: Mapping[str, str]) -> dict[str, Any]:
    """Select the metrics in `shown` from a `summary.json` of robustness_real.py."""
    encoders: dict[str, dict[str, Any]] = {}
    for row in summary["figures"]:
        if not row["minus"] and row["metric"] in shown:
            found = {key: round(row[key], 4) for key in ("value", "low", "high")}
            encoders.setdefault(row["encoder"], {})[row["metric"]] = found
    settings = {key: summary["options"][key] for key in SETTINGS}
    return {"patients": summary["figures"][0]["patients"], **settings, "encoders": encoders}


def section(made: Mapping[str, Any]) -> str:
    """Both tables as Markdown."""
    lines = []
    for key, title in COHORTS.items():
        one = made[key]
        head = [f"{title}; {one['patients']} patients tested", *SHOWN[key].values()]
        rows = [
            [name, *(span(found[metric]) for metric in SHOWN[key])]
            for name, found in one["encoders"].items()
        ]
        lines += table(head, rows)
    return "\n".join(lines)


def main(words: Sequence[str] | None = None) -> None:
    """Record the results, or write the section."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    one = verbs.add_parser("record", help="keep the figures of two runs of robustness_real.py")
    for name in COHORTS:
        one.add_argument(f"--{name}", type=Path, required=True, help="its work folder")
    verbs.add_parser("docs", help="write the tables")
    given = parser.parse_args(words)
    if given.verb == "record":
        found = {
            name: kept(
                json.loads((getattr(given, name) / "summary.json").read_text("utf-8")), SHOWN[name]
            )
            for name in COHORTS
        }
        write_text(RECORD, json.dumps(found, indent=1) + "\n")
        return
    fill(PAGE, marks(RECORD.stem), f"\n\n{section(json.loads(RECORD.read_text('utf-8')))}\n")


if __name__ == "__main__":
    main()
