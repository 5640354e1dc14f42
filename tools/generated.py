"""Files that are made from the package and the lock: JSON schemas and the conda environment."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from stainssl.cohort import SheetRow
from stainssl.config import Config
from stainssl.stores.atomic import write_text

ROOT = Path(__file__).resolve().parent.parent
PYTHON = "3.11"


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


def files() -> dict[Path, str]:
    """Every generated file, relative to the repository, with the text that it should have."""
    return {
        Path("workflow/schemas/config.schema.json"): schema_text(Config),
        Path("workflow/schemas/sheet.schema.json"): schema_text(SheetRow),
        Path("workflow/envs/stainssl.yaml"): conda_text((ROOT / "requirements.lock").read_text()),
    }


if __name__ == "__main__":
    for path, text in files().items():
        write_text(ROOT / path, text)
