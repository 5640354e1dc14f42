"""`robustness --weights --tiles`: metrics, page and figure for a folder of tiles, and errors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
from PIL import Image
from timm.models import save_for_hf
from typer.testing import CliRunner

from stainssl.cli import app
from stainssl.errors import StainsslError
from stainssl.stages import tile_robustness
from stainssl.stages.tile_robustness import TileOptions, color_vectors, run
from stainssl.stain import StainProfile
from stainssl.stain.targets import profile_to_json
from tests.evaluation.world import MorphologyEncoder, tile_image


def _save(folder, name, image) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def _tiles(folder, sites="ab", patients=4, tiles=6):
    """Write tiles in folders site/label/patient."""
    rng = np.random.default_rng(0)
    for site in sites:
        for patient in range(patients):
            for i in range(tiles):
                kind = "tumor" if i % 2 else "normal"
                image = tile_image(site, bool(i % 2), rng)
                _save(folder, f"{site}/{kind}/{site}{patient}/{i}.png", image)
    return folder


@pytest.fixture(scope="module")
def tiles(tmp_path_factory):
    return _tiles(tmp_path_factory.mktemp("tiles"))


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """The source of a small network with random weights, saved by timm."""
    folder = tmp_path_factory.mktemp("network") / "tiny"
    save_for_hf(timm.create_model("test_resnet", num_classes=0), str(folder))
    return f"local-dir:{folder}"


@pytest.fixture
def texture_encoder(monkeypatch):
    """Load the weights `morphology` as an encoder that sees only texture."""

    def encoder(name, _):
        given = {"morphology": MorphologyEncoder(), "color alone": color_vectors}
        return given[name], [f"Weights of {name}."]

    monkeypatch.setattr(tile_robustness, "_encoder", encoder)
    monkeypatch.setattr(tile_robustness, "_check", lambda _: None)


def _values(out) -> pd.DataFrame:
    table = pd.read_csv(out / "metrics.csv").drop_duplicates(["encoder", "metric"])
    return table.pivot(index="metric", columns="encoder", values="value")


def test_the_command_writes_metrics_page_and_figure(tiles, network, tmp_path):
    command = ["robustness", "--weights", network, "--tiles", str(tiles), "--out", str(tmp_path)]
    done = CliRunner().invoke(app, [*command, "--folders", "site/label/patient", "--threads", "1"])
    assert done.exit_code == 0, done.exception
    page = (tmp_path / "robustness.md").read_text()
    assert page.strip() in done.stdout
    assert "48 of 48 tiles of 32×32 px, 8 patients, 2 labels; sites: a 24, b 24." in page
    assert "Re-stained by reinhard, as site a and as site b" in page
    assert f"| {network} | " in page
    assert "SHA-256" in page
    with Image.open(tmp_path / "robustness.png") as picture:
        assert picture.width > 800
    table = pd.read_csv(tmp_path / "metrics.csv")
    assert set(table["encoder"]) == {network, "color alone"}
    assert {"stain_retrieval_top1", "stain_margin", "tile_croma", "tile_robustness_index",
            "site_predictability", "croma"} <= set(table["metric"])  # fmt: skip
    found = table[table["metric"] == "stain_margin"]
    assert (found["low"] <= found["value"]).all()
    assert (found["patients"] == 8).all()


def test_a_texture_encoder_is_more_robust_than_color(tiles, texture_encoder, tmp_path):
    lines = list(run(TileOptions(["morphology"], tiles, tmp_path)))
    value = _values(tmp_path)
    more_is_robust = value.loc[["stain_retrieval_top1", "tile_croma", "tile_robustness_index"]]
    assert (more_is_robust["morphology"] > more_is_robust["color alone"]).all()
    assert value.loc["site_predictability", "color alone"] > 0.9
    assert value.loc["site_predictability", "morphology"] < 0.8
    page = "\n".join(lines)
    assert "sites (the sub-folders; change with --folders): a 24, b 24" in page
    assert "No patients are given" in page
    assert "needs labels (--folders site/label)" in page


@pytest.mark.parametrize("out", [".", "robustness", "a"])
def test_outputs_in_the_folder_of_tiles_are_not_read_as_tiles(
    texture_encoder, tmp_path, monkeypatch, out
):
    monkeypatch.chdir(_tiles(tmp_path / "tiles"))
    for _ in range(2):  # the second run finds the figure of the first
        page = "\n".join(run(TileOptions(["morphology"], Path(), Path(out))))
        assert "sites (the sub-folders; change with --folders): a 24, b 24." in page
        assert "Files ignored" not in page


def test_tiles_of_one_site_are_restained_as_the_published_reference(texture_encoder, tmp_path):
    folder = _tiles(tmp_path / "tiles", sites="a")
    page = "\n".join(run(TileOptions(["morphology"], folder, tmp_path / "out")))
    assert "as their mean and as the published reference" in page
    assert "No site predictability: needs two sites" in page
    assert "| site predictability" not in page


def test_paired_tiles_of_several_sites_are_not_restained(texture_encoder, tmp_path):
    folder = tmp_path / "tiles"
    for site in "abc":
        rng = np.random.default_rng(1)
        for i in range(24):
            _save(folder, f"{site}/p{i % 6}/{i}.png", tile_image(site, bool(i % 2), rng))
    _save(folder, "a/p0/alone.png", tile_image("a", True, rng))
    (folder / "b" / "p1" / "7.png").write_bytes(b"no picture")
    options = TileOptions(
        ["morphology"], folder, tmp_path / "out", ["site", "patient"], paired=True
    )
    page = "\n".join(run(options))
    value = _values(tmp_path / "out")
    retrieval_hits = value.loc["site_retrieval_top1"]
    assert retrieval_hits["morphology"] > 2 * retrieval_hits["color alone"]
    assert value.loc["site_predictability", "color alone"] > 0.9
    assert value.loc["site_chance", "color alone"] == pytest.approx(1 / 3)
    worst = value.loc["worst_pair_retrieval_top1"]
    assert (worst <= value.loc["site_retrieval_top1"]).all()
    assert value.loc["tile_croma", "morphology"] > value.loc["tile_croma", "color alone"]
    assert "The same tissue at 3 sites: 23 tiles." in page
    assert "69 of 73 tiles" in page
    assert "1 cannot be read, such as b/p1/7.png" in page
    assert "stain_retrieval_top1" not in value.index  # nothing is re-stained


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"paired": True, "levels": ["label"]}, "between sites, and .* has 0"),
        ({"paired": True, "levels": ["-", "-", "site"]}, "all 8 sites of .* share no file name"),
        ({"levels": ["site"] * 2}, "named twice"),
    ],
)
def test_folders_that_cannot_be_compared_are_an_error(
    tiles, texture_encoder, tmp_path, options, message
):
    with pytest.raises(StainsslError, match=message):
        list(run(TileOptions(["morphology"], tiles, tmp_path / "out", **options)))
    assert not (tmp_path / "out").exists()


def test_too_few_tiles_and_tiles_without_tissue_are_errors(texture_encoder, tmp_path):
    few = _tiles(tmp_path / "few", sites="a", patients=1)
    with pytest.raises(StainsslError, match="6 tiles can be compared; at least 20 are needed"):
        list(run(TileOptions(["morphology"], few, tmp_path / "out")))
    for i in range(24):
        _save(tmp_path / "glass", f"{i}.png", np.full((32, 32, 3), 245, np.uint8))
    with pytest.raises(StainsslError, match="are these H&E tiles"):
        list(run(TileOptions(["morphology"], tmp_path / "glass", tmp_path / "out")))


def test_all_problems_of_the_options_are_reported_together(tmp_path):
    options = TileOptions(
        ["virchw2", "feather"], tmp_path / "none", tmp_path, method="macenco", max_tiles=3
    )
    with pytest.raises(StainsslError) as found:
        list(run(options))
    lines = str(found.value).splitlines()
    assert len(lines) == 4
    assert "did you mean 'virchow2'" in lines[0]
    assert "feather is a slide encoder" in lines[1]
    assert "--stain-method 'macenco' is none of macenko" in lines[2]
    assert "--max-tiles 3: at least 20" in lines[3]


def test_an_encoder_that_normalizes_by_the_same_method_is_noted(tmp_path):
    save_for_hf(timm.create_model("test_resnet", num_classes=0), str(tmp_path))
    standard = profile_to_json(StainProfile.reference("macenko"))
    (tmp_path / "stain.json").write_text(json.dumps(standard))
    notes = {
        m: tile_robustness._encoder(str(tmp_path), m)[1] for m in ("macenko", "reinhard", None)
    }
    assert "normalizes tiles by macenko itself" in notes["macenko"][1]
    assert len(notes["reinhard"]) == len(notes[None]) == 1


def test_weights_that_cannot_be_downloaded_are_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(tile_robustness, "download_problem", lambda _: "they are gated")
    with pytest.raises(StainsslError, match="uni: they are gated"):
        list(run(TileOptions(["uni"], tmp_path, tmp_path)))


def test_tiles_unlike_the_training_tiles_are_noted():
    found = list(tile_robustness._unlike("uni", 0.25, 512))
    assert found == [
        "uni was trained at 0.5 µm/px, and these tiles have 0.25.",
        "uni was trained on tiles of 224 px; these of 512 px are resized to 224 px, which changes"
        " their scale.",
    ]
    assert list(tile_robustness._unlike("uni", None, 224)) == []
    assert list(tile_robustness._unlike("resnet18", 3.0, 100)) == []


ALL = ["--encoder", "a", "--weights", "uni", "--tiles", "."]


@pytest.mark.parametrize("options", [["--weights", "uni"], ["--tiles", "."], [], ALL])
def test_incomplete_options_are_an_error(options):
    done = CliRunner().invoke(app, ["robustness", *options])
    assert isinstance(done.exception, StainsslError)
    assert "Give --weights and --tiles, or --encoder" in str(done.exception)
