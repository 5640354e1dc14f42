"""The benchmark of one model for several labels: its table and its simulated labels."""

from __future__ import annotations

import json

import numpy as np
import torch

from benchmarks import several
from tools.pages import between


def test_the_table_equals_the_recorded_results() -> None:
    found = json.loads(several.RESULTS.read_text(encoding="utf-8"))
    text = several.PAGE.read_text(encoding="utf-8")
    assert between(text, several.MARKS, several.section(found)) == text
    measured = [several.Cell(*(one[key] for key in several.Cell.__annotations__))
                for one in found["cells"]]  # fmt: skip
    assert set(measured) <= set(several.design())
    assert len(set(measured)) == len(measured)


def test_bags_have_the_known_labels_of_the_simulation() -> None:
    rng = np.random.default_rng(0)
    cohort = several.draw(60, 0.7, rng)
    assert np.corrcoef(cohort.truth.T)[0, 1] > 0.2
    bags = several.labelled(cohort, 0.5, rng)
    classes = several.TARGET.classes(torch.tensor([bag.label for bag in bags])).numpy()
    patients = [int(bag.patient_id.removeprefix("p")) for bag in bags]
    known = classes >= 0
    assert 0.35 < known.mean() < 0.75
    assert known.any(axis=1).all()
    assert (classes[known] == cohort.truth[patients][known]).all()
    train, val = several.split(bags)
    assert not {one.patient_id for one in train} & {one.patient_id for one in val}
