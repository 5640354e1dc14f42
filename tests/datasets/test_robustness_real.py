"""The robustness benchmark accepts releases like other cohorts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
import yaml

from benchmarks import robustness_real as evidence
from stainssl.datasets import _load_cached
from tests.datasets.docs import config_of, reduced, with_miniature_roots
from tests.datasets.miniature import Pictures


def _centres(folder: Path, pictures: Pictures) -> None:
    """Fifteen tiles of five centres, each with its own color cast."""
    (folder / "camelyon17-centres").mkdir(parents=True)
    rows = []
    for centre in range(5):
        for index in range(3):
            path = f"centre_{centre}_{index}.png"
            tile = pictures.images[index % 2][:256, 256 * (index // 2) :][:256, :256]
            cast = tile.astype(float) * (1 - 0.06 * centre, 1, 1 - 0.03 * centre)
            cv2.imwrite(str(folder / "camelyon17-centres" / path), cast.astype(np.uint8)[..., ::-1])
            rows.append((path, centre))
    table = pd.DataFrame(rows, columns=["path", "centre"])
    table.to_csv(folder / "camelyon17-centres" / "tiles.csv", index=False)


@pytest.mark.parametrize(
    ("page", "cohort", "label"),
    [
        ("camelyon17-wilds", "wilds", ["--label", "tumor"]),
        ("bracs-roi", "bracs", ["--label", "group", "--positive", "malignant"]),
    ],
)
def test_the_table_of_a_release_has_all_metrics(
    releases: dict[str, Path], pictures: Pictures, page: str, cohort: str, label: list[str],
    tmp_path: Path,
) -> None:  # fmt: skip
    config: dict[str, Any] = reduced(with_miniature_roots(config_of(page), releases))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    _centres(tmp_path, pictures)
    _load_cached.cache_clear()
    arguments = ["--cohort", cohort, "--split", "sheet", *label, "--work", str(tmp_path / "work")]
    arguments += ["--real-data", str(tmp_path), "--backbone", "test_resnet", "--input-size", "32"]
    arguments += ["--epochs", "1", "--batch-size", "8", "--max-tiles", "40", "--seeds", "0"]
    arguments += ["--encoders", "random", "stain-invariant"]
    summary = evidence.main([str(tmp_path / "config.yaml"), *arguments])
    plain = summary[summary["minus"] == ""]
    found = plain.set_index(["encoder", "metric"])["value"]
    for metric in ("top1, worst pair", "auroc, worst stain", "effective_rank", "stain told"):
        assert np.isfinite(found["stain-invariant", metric])
        assert np.isfinite(found["random", metric])
