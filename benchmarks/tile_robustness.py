"""Example output of `stainssl robustness --weights --tiles` for docs/howto/robustness.md.

    python -m benchmarks.tile_robustness measure --real-data FOLDER
    python -m benchmarks.tile_robustness write

FOLDER contains `ami-br-tiles.zip` and `fan-protocols.zip` with their tables. Tiles are sorted into
subfolders of a temporary folder, and the command is called as on the page. Writes
`benchmarks/results/tile_robustness.json` and the picture; `write` writes the record into the page.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from benchmarks.machine import processor
from stainssl.stores.atomic import replacing, write_text
from tools.pages import fill, marks

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "tile_robustness.json"
PAGE = ROOT / "docs" / "howto" / "robustness.md"
PICTURE = ROOT / "docs" / "pictures" / "tile-robustness.jpg"
WEIGHTS = "efficientnet-lite0"
CALLS = {  # name of the run → options of `stainssl robustness`
    "sites": ["--tiles", "ami-br", "--folders", "site/label/patient", "--mpp", "0.25"],
    "paired": ["--tiles", "protocols", "--paired"],
}


def command(name: str) -> list[str]:
    """The command of a run, as shown on the page."""
    return ["robustness", "--weights", WEIGHTS, *CALLS[name], "--out", f"robustness-{name}"]


def sort_amibr(real_data: Path, folder: Path) -> None:
    """Unpack the tiles of AMi-Br as `site/label/patient/tile.jpg`."""
    table = pd.read_csv(real_data / "ami-br-tiles.csv", dtype=str)
    label = table["atypical"].map({"0": "normal", "1": "atypical"})
    to = table["site"] + "/" + label + "/" + table["patient_id"] + "/" + table["tile_id"] + ".jpg"
    _unpack(real_data / "ami-br-tiles.zip", table["path"], to, folder)


def sort_protocols(real_data: Path, folder: Path) -> None:
    """Unpack the fields under nine protocols as `protocol/field.jpg`."""
    table = pd.read_csv(real_data / "fan-protocols.csv", dtype=str)
    to = table["site"] + "/" + table["field"] + ".jpg"
    _unpack(real_data / "fan-protocols.zip", table["path"], to, folder)


def _unpack(archive: Path, paths: pd.Series, to: pd.Series, folder: Path) -> None:
    with zipfile.ZipFile(archive) as found:
        for path, name in zip(paths, to, strict=True):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(found.read(path))


def measure(real_data: Path) -> None:
    """Run the command on both folders and store its output."""
    record: dict[str, Any] = {"machine": f"one core of {processor()}", "runs": {}}
    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        sort_amibr(real_data, work / "ami-br")
        sort_protocols(real_data, work / "protocols")
        for name in CALLS:
            record["runs"][name] = _called(name, work)
        _keep_picture(work / "robustness-sites" / "robustness.png")
    write_text(RESULTS, json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def _called(name: str, work: Path) -> dict[str, Any]:
    begun = _cpu_seconds()
    call = [sys.executable, "-m", "stainssl", *command(name), "--threads", "1"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run(call, cwd=work, env=environment, check=True)
    page = (work / f"robustness-{name}" / "robustness.md").read_text(encoding="utf-8")
    return {"cpu_seconds": round(_cpu_seconds() - begun), "page": page}


def _cpu_seconds() -> float:
    """CPU time of the finished calls, which other load on the machine affects less."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _keep_picture(path: Path) -> None:
    with Image.open(path) as picture, replacing(PICTURE) as made:
        picture.convert("RGB").save(made, "JPEG", quality=80)


def section(record: dict[str, Any], name: str) -> str:
    """The part of the page for a run: the command and its output."""
    run = record["runs"][name]
    page = run["page"].split("\n", 1)[1].strip()
    call = " ".join(["stainssl", *command(name)])
    took = f"{run['cpu_seconds']} seconds of {record['machine']}, the start of Python included"
    return f"\n```sh\n{call}\n```\n\n{took}:\n\n{page}\n\n"


def main() -> None:
    """Measure, or write the record into the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("verb", choices=["measure", "write"])
    parser.add_argument("--real-data", type=Path, default=Path())
    words = parser.parse_args()
    if words.verb == "measure":
        measure(words.real_data)
        return
    record = json.loads(RESULTS.read_text(encoding="utf-8"))
    for name in CALLS:
        fill(PAGE, marks(name), section(record, name))


if __name__ == "__main__":
    main()
