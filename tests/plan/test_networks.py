"""Networks that cannot be loaded are refused before any job, if possible without torch."""

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


@pytest.mark.parametrize(("encoder", "message"), [
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
def test_networks_that_cannot_be_loaded_are_reported(tmp_path, encoder, message):
    found = network_problems(_config(tmp_path, **encoder))
    assert len(found) == 1
    assert message in found[0]


@pytest.mark.parametrize("encoder", [
    {**TRAIN, "backbone": "resnet18"}, {**TRAIN, "backbone": "vit_tiny_patch16_224"},
    {"method": "random"}, {"weights": "resnet18.a1_in1k"}, {"weights": "virchow2"},
    {"weights": "hf-hub:somebody/model"}, {"weights": "vit_tiny_patch16_224", "input_size": 96},
    {**TRAIN, "init": "resnet18"}, {"weights": "efficientnet-lite0", "input_size": 64},
    {"weights": "resnet18", "preprocess": "reference"},
])  # fmt: skip
def test_valid_names_are_accepted_without_torch(tmp_path, encoder, monkeypatch):
    calls = []
    monkeypatch.setattr(encoder_checks, "problems", lambda config: calls.append(config) or [])
    config = _config(tmp_path, **encoder)
    assert network_problems(config) == []
    assert not calls
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
def mismatched(tmp_path):
    """A config with a weights file of another network."""
    torch.save(timm.create_model("test_resnet", num_classes=0).state_dict(), tmp_path / "w.pth")
    return _config(tmp_path / "results", weights=f"test_vit@{tmp_path / 'w.pth'}")


def _start(config):
    text = dump(config)
    file = config.paths.run_config(short_digest(text))
    FixedRun(text, {}, "", started=time.time()).to_environment("results/")
    restore(file)
    return file


def test_weights_files_are_checked_until_a_run_has_started_and_after_a_change(
    mismatched, monkeypatch
):
    monkeypatch.setattr("os.environ", dict(os.environ))
    [found] = network_problems(mismatched)
    assert "not those of test_vit" in found
    file = _start(mismatched)
    assert network_problems(mismatched) == []
    os.utime(file, (1, 1))  # as if the weights had been written since
    assert "not those of test_vit" in network_problems(mismatched)[0]
    _start(mismatched)
    assert network_problems(mismatched) == []


def test_a_missing_weights_file_is_reported_even_after_a_run_has_started(mismatched, monkeypatch):
    monkeypatch.setattr("os.environ", dict(os.environ))
    _start(mismatched)
    (mismatched.results.parent / "w.pth").unlink()
    assert "no such weights file" in network_problems(mismatched)[0]


def test_a_task_cannot_fine_tune_more_blocks_than_the_network_has(tmp_path):
    task = {"level": "tile", "label": "x", "cohorts": ["d"], "protocol": "fine-tune"}
    config = parse({
        "results": str(tmp_path), "cohorts": {"d": {"demo": {}}},
        "encoders": {"e": {"weights": "resnet18"}},
        "tasks": {"t": {**task, "fine_tune": {"tune": "last-13"}}},
        "benchmarks": {"b": {"tasks": ["t"], "encoders": ["e"]}},
    })  # fmt: skip
    [found] = network_problems(config)
    assert found.startswith("tasks.t.fine_tune.tune, of encoders.e: last-13")


def test_the_first_job_of_a_run_writes_the_config_of_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr("os.environ", dict(os.environ))
    files = {}
    for text in ("a: 1\n", "a: 2\n", "a: 1\n"):
        FixedRun(text, {}, "", started=time.time()).to_environment("results/")
        files[text] = tmp_path / "configs" / f"{short_digest(text)}.yaml"
        restore(files[text])
        os.utime(files[text], (1, 1))
    assert (tmp_path / "config.yaml").read_text() == "a: 1\n"  # that of the latest run
