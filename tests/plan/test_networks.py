"""A run refuses networks that do not load before any job, and imports torch for doubts alone."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
import timm
import torch

from stainssl.cohort import encoder_checks
from stainssl.config import dump, parse
from stainssl.plan.networks import network_problems
from stainssl.plan.run import FixedRun, restore, short_digest
from tests.cohort.test_encoder_checks import TRAIN


def _config(folder, **encoder):
    cohorts = {"d": {"demo": {}}}
    return parse({"results": str(folder), "cohorts": cohorts, "encoders": {"e": encoder}})


@pytest.mark.parametrize(("encoder", "sentence"), [
    ({**TRAIN, "backbone": "resnot50"}, "e.backbone: 'resnot50' is not a timm name; did you mean"),
    ({**TRAIN, "backbone": "vit_tiny_patch16_224", "input_size": 100}, "patches of 16 px"),
    ({"method": "random", "backbone": "resnet18.a9"}, "no weights 'resnet18.a9'"),
    ({"weights": "vircow2"}, "did you mean 'virchow2'"),
    ({"weights": "resnet18.a9_in1k"}, "weights of that network: resnet18.a1_in1k"),
    ({"weights": "chief"}, "is a slide encoder"),
    ({"weights": "hf-hub:UNI"}, "hf-hub:OWNER/NAME"),
    ({"weights": "local-dir:/nowhere"}, "not a folder with config.json"),
    ({"weights": "resnet18@/nowhere.pth"}, "/nowhere.pth: no such weights file"),
    ({"weights": "resnet18", "preprocess": "/nowhere.json"}, "e.preprocess: /nowhere.json"),
    ({**TRAIN, "init": "resnet81"}, "e.init: 'resnet81' is not in"),
    ({**TRAIN, "init": "virchow2", "input_size": 224}, "can be used for embedding, but be"),
    ({**TRAIN, "init": "resnet18", "tune": "last-13"}, "e.tune: last-13"),
    ({**TRAIN, "init": "resnet18", "backbone": "resnet50"}, "e.backbone: "),
])  # fmt: skip
def test_what_cannot_be_loaded_is_told(tmp_path, encoder, sentence):
    found = network_problems(_config(tmp_path, **encoder))
    assert len(found) == 1
    assert sentence in found[0]


@pytest.mark.parametrize("encoder", [
    {**TRAIN, "backbone": "resnet18"}, {**TRAIN, "backbone": "vit_tiny_patch16_224"},
    {"method": "random"}, {"weights": "resnet18.a1_in1k"}, {"weights": "virchow2"},
    {"weights": "hf-hub:somebody/model"}, {"weights": "vit_tiny_patch16_224", "input_size": 96},
    {**TRAIN, "init": "resnet18"}, {"weights": "efficientnet-lite0", "input_size": 64},
    {"weights": "resnet18", "preprocess": "reference"},
])  # fmt: skip
def test_names_that_are_right_need_no_torch(tmp_path, encoder, monkeypatch):
    asked = []
    monkeypatch.setattr(encoder_checks, "problems", lambda config: asked.append(config) or [])
    config = _config(tmp_path, **encoder)
    assert network_problems(config) == []
    assert not asked
    monkeypatch.undo()
    assert list(encoder_checks.problems(config)) == []


def test_a_plan_of_usual_encoders_imports_no_torch(tmp_path):
    code = (
        "import sys; from stainssl.plan.workflow import Plan;"
        f"Plan({{'results': {str(tmp_path)!r}, 'cohorts': {{'d': {{'demo': {{}}}}}}, 'encoders':"
        " {'a': {'weights': 'uni'}, 'b': {'method': 'random', 'backbone': 'resnet18'}}}, True);"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("False")


@pytest.fixture
def given(tmp_path):
    """A config whose weights are in a file, which is one of another network."""
    torch.save(timm.create_model("test_resnet", num_classes=0).state_dict(), tmp_path / "w.pth")
    return _config(tmp_path / "results", weights=f"test_vit@{tmp_path / 'w.pth'}")


def _start(config):
    text = dump(config)
    file = config.paths.run_config(short_digest(text))
    FixedRun(text, {}, "", started=time.time()).to_environment("results/")
    restore(file)
    return file


def test_files_are_read_until_a_run_has_started_and_when_they_change(given, monkeypatch):
    monkeypatch.setattr("os.environ", dict(os.environ))
    [found] = network_problems(given)
    assert "not those of test_vit" in found
    file = _start(given)
    assert network_problems(given) == []
    os.utime(file, (1, 1))  # as if the weights were written since
    assert "not those of test_vit" in network_problems(given)[0]
    _start(given)
    assert network_problems(given) == []


def test_weights_that_are_gone_are_told_whatever_has_started(given, monkeypatch):
    monkeypatch.setattr("os.environ", dict(os.environ))
    _start(given)
    (given.results.parent / "w.pth").unlink()
    assert "no such weights file" in network_problems(given)[0]


def test_blocks_of_tasks_are_counted_in_the_network(tmp_path):
    task = {"level": "tile", "label": "x", "cohorts": ["d"], "protocol": "fine-tune"}
    config = parse({
        "results": str(tmp_path), "cohorts": {"d": {"demo": {}}},
        "encoders": {"e": {"weights": "resnet18"}},
        "tasks": {"t": {**task, "fine_tune": {"tune": "last-13"}}},
        "benchmarks": {"b": {"tasks": ["t"], "encoders": ["e"]}},
    })  # fmt: skip
    [found] = network_problems(config)
    assert found.startswith("tasks.t.fine_tune.tune, of encoders.e: last-13")


def test_the_first_job_of_a_run_writes_its_config_again(tmp_path, monkeypatch):
    monkeypatch.setattr("os.environ", dict(os.environ))
    files = {}
    for text in ("a: 1\n", "a: 2\n", "a: 1\n"):
        FixedRun(text, {}, "", started=time.time()).to_environment("results/")
        files[text] = tmp_path / "configs" / f"{short_digest(text)}.yaml"
        restore(files[text])
        os.utime(files[text], (1, 1))
    assert (tmp_path / "config.yaml").read_text() == "a: 1\n"  # that of the latest run
