"""The workflow embeds a streamed cohort without a pixel store."""

from __future__ import annotations

import pytest
import yaml

from tests.chain.conftest import Workflow
from tests.stages.trained import save_encoder

pytestmark = pytest.mark.chain


def test_a_streamed_cohort_has_embeddings_and_no_pixel_store(fresh: Workflow) -> None:
    config = yaml.safe_load((fresh.folder / "config.yaml").read_text())
    kept = {key: config[key] for key in ("slides", "cohorts", "tilings")}
    kept["cohorts"]["clinic"]["pixels"] = "stream"
    models = {name: save_encoder(fresh.folder / name / "model") for name in ("one", "two")}
    kept["encoders"] = {name: {"weights": f"local-dir:{path}"} for name, path in models.items()}
    (fresh.folder / "config.yaml").write_text(yaml.safe_dump(kept))
    assert "pixels" not in fresh.planned()

    fresh.run()
    tiling = fresh.folder / "results/cohorts/clinic/default"
    assert not (tiling / "pixels").exists()
    for name in models:
        assert len(list((tiling / "embeddings" / name).glob("*.zarr"))) == 3  # parts
    assert fresh.planned() == {}

    fresh.edit("config.yaml", lambda text: text.replace("size: 64", "size: 72"))
    assert {"tile", "embed_together"} <= set(fresh.planned())
