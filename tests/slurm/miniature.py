"""`python -m tests.slurm.miniature FOLDER`: the WILDS miniature and a small config of its page."""

from __future__ import annotations

import sys
from pathlib import Path

import yaml

from tests.datasets.docs import config_of, pointed, shrunk
from tests.datasets.miniature import camelyon17_wilds, draw


def make(folder: Path) -> None:
    """Write the release's folder and `config.yaml`."""
    root = camelyon17_wilds(folder / "camelyon17_v1.0", draw(folder / "pictures"))
    config = shrunk(pointed(config_of("camelyon17-wilds"), {"camelyon17-wilds": root}))
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")


if __name__ == "__main__":
    make(Path(sys.argv[1]).resolve())
