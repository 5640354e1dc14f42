"""Warnings about pretrained encoders, before any job starts and below a benchmark table."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from huggingface_hub import constants

from stainssl.cohort import encoder_warnings
from stainssl.cohort.encoder_warnings import memory_problem, row_warnings, warnings
from stainssl.config import parse
from stainssl.encoders import hub
from stainssl.encoders.loading import build_network
from stainssl.encoders.recipes import RECIPES
from stainssl.encoders.sizes import PARAMETERS_M
from stainssl.plan.tasks import benchmark
from stainssl.plan.workflow import Plan
from tests.encoders.fake_hub import COMMITS, cache, put

OWN = {"architecture": "test_vit", "mean": [0.5] * 3, "std": [0.5] * 3, "mpp": [0.25],
       "tile_px": 512}  # fmt: skip


def _data(tiling=None, **encoders):
    return {
        "cohorts": {"d": {"demo": {}}}, "tilings": {"default": tiling or {}}, "encoders": encoders,
        "tasks": {"t": {"level": "slide", "label": "her2", "cohorts": ["d"]}},
        "benchmarks": {"b": {"tasks": ["t"], "encoders": list(encoders), "heads": ["h"]}},
        "heads": {"h": {"kind": "mean"}},
    }  # fmt: skip


def test_a_run_prints_the_warnings_and_its_table_has_them(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "has_token", lambda: True)
    data = _data({"mpp": 0.25, "size": 512}, uni={"weights": "uni"})
    plan = Plan({**data, "results": str(tmp_path)}, is_main=True)
    scale, size = plan.notices
    assert "uni was trained at 0.5 µm/px, and tiling 'default' has 0.25" in scale
    assert "tiles of 512 px are resized to 224 px" in size
    assert benchmark(plan.config, "b").warnings == [scale, size]


def test_a_warning_about_an_own_recipe_names_its_weights(monkeypatch):
    monkeypatch.setattr(hub, "has_token", lambda: True)
    config = parse(_data({"mpp": 0.5, "size": 256}, mine={"weights": "hf-hub:a/b", "recipe": OWN}))
    [found] = warnings(config)
    assert found == (
        "encoders.mine: hf-hub:a/b was trained at 0.25 µm/px, and tiling 'default' has 0.5."
    )


def test_another_tile_size_gives_a_warning_for_a_slide_encoder():
    encoders = {"conch": {"weights": "conch-v1.5"}, "f": {"weights": "feather", "vectors": "conch"}}
    found = row_warnings(parse(_data({"mpp": 0.5, "size": 256}, **encoders)), ["f"])
    assert found == ["encoders.f: feather was trained on vectors of tiles of 512 px, and tiling"
                     " 'default' has 256 px."]  # fmt: skip


def test_gated_weights_without_a_token_give_a_warning(tmp_path, monkeypatch):
    folder = cache(tmp_path, monkeypatch)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "has_token", lambda: False)
    config = parse(_data(v={"weights": "virchow2"}, open={"weights": "phikon"}))
    [found] = warnings(config)
    assert "the weights of virchow2 are gated" in found
    assert "accept the license on https://huggingface.co/paige-ai/Virchow2" in found
    put(folder, "paige-ai/Virchow2", "model.safetensors", b"", COMMITS[0])
    assert warnings(config) == []
    local = {"v": {"weights": f"virchow2@{tmp_path}"}}
    assert warnings(parse(_data(**local))) == []


def test_weights_not_in_the_cache_give_a_warning_if_offline(tmp_path, monkeypatch):
    cache(tmp_path, monkeypatch)
    [found] = warnings(parse(_data(p={"weights": "phikon"})))
    assert "HF_HUB_OFFLINE is set: run `hf download owkin/phikon`" in found
    assert "phikon@FOLDER" in found


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_tiles_as_in_training_give_no_warning(name):
    recipe = RECIPES[name]
    tiling = {"mpp": recipe.mpp[0] if recipe.mpp else 0.5, "size": recipe.tile_px}
    assert row_warnings(parse(_data(tiling, e={"weights": name})), ["e"]) == []


def test_plan_and_warnings_do_not_import_torch():
    """It would take a second or more of every dry-run and job of Snakemake."""
    code = (
        "import sys; import stainssl.plan.workflow, stainssl.cohort.encoder_warnings;"
        "print([m for m in ('torch', 'timm', 'zarr', 'huggingface_hub') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_weights_larger_than_the_memory_give_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "has_token", lambda: True)
    monkeypatch.setattr(encoder_warnings, "memory_bytes", lambda: 10**9)
    data = _data(small={"weights": "kaiko-vits16"}, large={"weights": "uni"})
    [found] = Plan({**data, "results": str(tmp_path)}, is_main=True).notices
    assert found == (
        "encoders.large: the weights of uni alone need 1.2 GB in 32 bits, and this device has"
        " 1.0 GB: use one with more memory."
    )


def test_the_size_of_other_weights_is_taken_from_their_file(tmp_path, monkeypatch):
    file = tmp_path / "ours.safetensors"
    with file.open("wb") as out:
        out.truncate(3 * 10**9)  # a sparse file
    monkeypatch.setattr(encoder_warnings, "memory_bytes", lambda: 2 * 10**9)
    assert "alone need 3.0 GB in 32 bits, and this device has 2.0" in memory_problem(f"net@{file}")
    assert memory_problem("resnet50") == ""
    assert memory_problem("uni@elsewhere.bin") == ""  # 1.2 GB


H0_MINI = {"init_values": 1e-5, "reg_tokens": 4, "mlp_ratio": 5.33334}  # as in its config.json


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_listed_numbers_of_parameters_equal_those_of_the_networks(name):
    config = {"architecture": "vit_base_patch14_dinov2", "model_args": H0_MINI}
    with torch.device("meta"):
        model = build_network(RECIPES[name], config if RECIPES[name].needs_config else None)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6) == PARAMETERS_M[name]


def test_every_recipe_has_a_number_of_parameters():
    assert set(PARAMETERS_M) == set(RECIPES)
