"""The WILDS miniature with a small config: `python -m tests.slurm.miniature FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path

import yaml

from tests.datasets.docs import config_of, reduced, with_miniature_roots
from tests.datasets.miniature import camelyon17_wilds, draw


def make(folder: Path) -> None:
    """Write the release's folder and `config.yaml`."""
    root = camelyon17_wilds(folder / "camelyon17_v1.0", draw(folder / "pictures"))
    config = reduced(
        with_miniature_roots(config_of("camelyon17-wilds"), {"camelyon17-wilds": root})
    )
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")


if __name__ == "__main__":
    make(Path(sys.argv[1]).resolve())
