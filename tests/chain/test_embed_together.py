"""The workflow embeds pretrained encoders of a cohort together, and later ones alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.chain.conftest import Workflow
from tests.stages.trained import save_encoder

pytestmark = pytest.mark.chain


def _set_encoders(workflow: Workflow, **weights: Path) -> None:
    """Write a config with these pretrained encoders only."""
    config = yaml.safe_load((workflow.folder / "config.yaml").read_text())
    kept = {key: config[key] for key in ("slides", "cohorts", "tilings")}
    kept["encoders"] = {name: {"weights": f"local-dir:{path}"} for name, path in weights.items()}
    (workflow.folder / "config.yaml").write_text(yaml.safe_dump(kept))


def test_pretrained_encoders_are_embedded_together_and_later_ones_alone(fresh: Workflow) -> None:
    models = [save_encoder(fresh.folder / name / "model") for name in ("one", "two", "three")]
    _set_encoders(fresh, a=models[0], b=models[1])
    assert len(fresh.planned()["embed_together"]) == 3  # parts
    fresh.run()
    assert fresh.planned() == {}

    _set_encoders(fresh, a=models[0], b=models[1], c=models[2])
    planned = fresh.planned()
    assert set(planned) == {"embed", "embedded"}
    assert len(planned["embed"]) == 3
    assert all("/c/" in output for outputs in planned.values() for output in outputs)

    _set_encoders(fresh, a=models[2], b=models[1])  # other weights
    planned = fresh.planned()
    assert set(planned) == {"embed", "embedded"}
    assert all("/a/" in output for outputs in planned.values() for output in outputs)
