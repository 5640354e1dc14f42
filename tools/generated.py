"""Files that are made: JSON schemas, the conda environment, the table of what reruns what."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from stainssl.cohort import SheetRow
from stainssl.config import Config
from stainssl.stores.atomic import write_text

ROOT = Path(__file__).resolve().parent.parent
PYTHON = "3.11"
CONFIG_PAGE = Path("docs/reference/config.md")
BEGIN, END = "<!-- generated: reruns -->", "<!-- end -->"


def schema_text(model: type[Config] | type[SheetRow]) -> str:
    """The JSON schema of the config or of a sheet's row."""
    return json.dumps(model.model_json_schema(), indent=2, sort_keys=True) + "\n"


def conda_text(lock: str) -> str:
    """The conda environment that holds what `requirements.lock` pins.

    Snakemake copies the file before it makes the environment, so that it cannot point to the lock.
    """
    pins = [line for line in lock.splitlines() if line and not line.startswith(("#", " ", "-"))]
    environment = {
        "channels": ["conda-forge", "nodefaults"],
        "dependencies": [f"python ={PYTHON}", "pip", {"pip": pins}],
    }
    return yaml.safe_dump(environment, sort_keys=False)


def reruns_text(page: str) -> str:
    """The page of the config with its table of what each key reruns, as the test's list has it."""
    keys = yaml.safe_load((ROOT / "tests/chain/keys.yaml").read_text(encoding="utf-8"))
    rows = [f"| `{key}` | {_reruns(entry)} |" for key, entry in keys.items()]
    table = "\n".join(["| key | reruns |", "|---|---|", *rows])
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n{table}\n{END}{rest.split(END, 1)[1]}"


def _reruns(entry: dict[str, Any]) -> str:
    if "not" in entry:
        return f"{entry['not']}"
    return ", ".join(f"`{rule}`" for rule in entry["reruns"]) or "–"


def files() -> dict[Path, str]:
    """Every generated file, relative to the repository, with the text that it should have."""
    return {
        Path("workflow/schemas/config.schema.json"): schema_text(Config),
        Path("workflow/schemas/sheet.schema.json"): schema_text(SheetRow),
        CONFIG_PAGE: reruns_text((ROOT / CONFIG_PAGE).read_text(encoding="utf-8")),
        Path("workflow/envs/stainssl.yaml"): conda_text((ROOT / "requirements.lock").read_text()),
    }


if __name__ == "__main__":
    for path, text in files().items():
        write_text(ROOT / path, text)
