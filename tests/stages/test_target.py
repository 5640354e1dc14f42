"""`target`: the targets that it writes, the tiles that they are chosen from, and its errors."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import dask
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from stainssl.config import Config, parse
from stainssl.errors import StainsslError
from stainssl.stages import run_stage, target
from stainssl.stain import METHODS, StainProfile, estimate, targets
from stainssl.stores.pixels import SlidePixels, encode, write_pixels

SITES = {"a": (0.60, 0.70, 0.38), "b": (0.70, 0.65, 0.28), "c": (0.50, 0.80, 0.33)}
SIZE = 48


def tissue(rng: np.random.Generator, hematoxylin: tuple[float, ...]) -> np.ndarray:
    """(48, 48, 3) uint8: half hematoxylin, half eosin, of varying strength."""
    matrix = np.array([hematoxylin, (0.15, 0.85, 0.5)])
    share = np.repeat(rng.random((SIZE // 4, SIZE // 4)).round(), 4, 0).repeat(4, 1)
    amount = (0.5 + rng.random((SIZE, SIZE)))[..., None]
    concentration = amount * np.stack([share, 1 - share], -1)
    return np.clip(256 * np.exp(-concentration @ matrix) - 1, 0, 255).astype(np.uint8)


def one_slide(rng: np.random.Generator, name: str, site: str, n: int) -> SlidePixels:
    images = np.stack([tissue(rng, SITES[site]) for _ in range(n)])
    batch = torch.from_numpy(images).permute(0, 3, 1, 2)
    found = {method: estimate(batch, method) for method in METHODS}
    return SlidePixels(
        name,
        np.arange(n, dtype=np.int32) * 2,
        [encode(image) for image in images],
        {method: profile.to_arrays() for method, profile in found.items()},
        {method: profile.pooled().to_arrays() for method, profile in found.items()},
    )


ROWS = [(f"s{i}", f"p{i // 2}", "aabbcc"[i], "train") for i in range(6)]
ROWS += [("t0", "p8", "c", "test"), ("t1", "p9", "c", "test")]


def make_config(folder: Path, **encoder: object) -> Config:
    """Six slides of three sites in training, two of site c in test; one encoder `e`."""
    lines = [f"{s},{p},{s}.svs,{site},{split}" for s, p, site, split in ROWS]
    sheet = folder / "slides.csv"
    sheet.write_text("slide_id,patient_id,path,site,split\n" + "\n".join(lines) + "\n")
    base = {"method": "stain-invariant", "train": {"cohorts": ["clinic"]}, "backbone": "resnet18"}
    return parse(
        {
            "results": str(folder / "results"),
            "slides": {"part_size": 2},
            "cohorts": {"clinic": {"sheet": str(sheet), "root": str(folder)}},
            "encoders": {"e": base | encoder},
        }
    )


def write_stores(config: Config, tiles: int = 5) -> None:
    """Write the pixels of the three training parts; the test part has no store."""
    rng = np.random.default_rng(0)
    for part in range(3):
        slides = [one_slide(rng, s, site, tiles) for s, _, site, _ in ROWS[2 * part :][:2]]
        path = config.paths.pixels("clinic", f"train-{part:04d}")
        write_pixels(path, slides, size_px=SIZE, mpp=0.5, settings={})


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clinic")
    write_stores(make_config(folder))
    return folder


@pytest.fixture
def without_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the picture, which takes most of the time and has tests of its own."""
    monkeypatch.setattr(target, "picture", lambda *_: Figure(figsize=(1, 1)))


def run(config: Config) -> dict:
    run_stage("target", config, "e")
    return json.loads(config.paths.target("e").read_text())


@pytest.mark.usefixtures("without_picture")
@pytest.mark.parametrize("normalizer", METHODS)
@pytest.mark.parametrize("policy", ["batch", "cohort", "site", "medoid", "spread"])
def test_the_target_of_every_policy_loads(policy, normalizer, filled):
    config = make_config(filled, target={"policy": policy, "per": "image"}, normalizer=normalizer)
    content = run(config)
    assert content["pool"] | {"valid": 0} == {
        "cohorts": ["clinic"],
        "splits": ["train"],
        "tiles": 30,
        "valid": 0,
        "slides": 6,
        "patients": 3,
        "sampled": content["pool"]["valid"],
    }
    assert content["pool"]["valid"] > 20
    assert set(content["sites"]) == {"a", "b", "c"}
    assert {c["slide"].split("/")[0] for c in content["candidates"]} <= {"clinic"}
    batch = StainProfile.cat([StainProfile.reference(normalizer)] * 4)
    drawn = targets.load(content).draw(batch, torch.Generator(), list("abca"))
    assert drawn.valid.all()
    assert drawn.method == normalizer


@pytest.mark.parametrize(
    ("policy", "normalizer"), [("batch", "macenko"), ("spread", "macenko"), ("site", "reinhard")]
)
def test_the_picture_has_color_and_is_wide_enough_to_read(policy, normalizer, filled):
    config = make_config(filled, target={"policy": policy}, normalizer=normalizer)
    run(config)
    with Image.open(config.paths.target_png("e")) as image:
        assert image.width >= 900
        assert len(set(image.convert("RGB").reduce(4).get_flattened_data())) > 200


@pytest.mark.usefixtures("without_picture")
def test_stain_angles_are_small_within_a_site_and_large_between_sites(filled):
    content = run(make_config(filled, target={"policy": "cohort"}))
    own = [c["angles_deg"][c["site"]]["hematoxylin"] for c in content["candidates"]]
    other = [
        c["angles_deg"]["b" if c["site"] != "b" else "c"]["hematoxylin"]
        for c in content["candidates"]
    ]
    assert np.median(own) < 3 < np.median(other)


@pytest.mark.usefixtures("without_picture")
def test_several_targets_cover_the_stains_better_than_one(filled):
    medoid = run(make_config(filled, target={"policy": "medoid"}))["coverage"]
    spread = run(make_config(filled, target={"policy": "spread"}))["coverage"]
    assert spread["largest_distance"] < medoid["largest_distance"]


@pytest.mark.usefixtures("without_picture")
def test_the_medoid_of_a_site_belongs_to_the_site(filled):
    content = run(make_config(filled, target={"policy": "medoid", "by": "site"}))
    assert [c["site"] for c in content["candidates"]] == ["a", "b", "c"]
    own = [c["angles_deg"][c["site"]]["hematoxylin"] for c in content["candidates"]]
    assert max(own) < 3


@pytest.mark.usefixtures("without_picture")
def test_spread_chooses_the_given_number_of_targets(filled):
    content = run(make_config(filled, target={"policy": "spread", "count": 3}))
    assert len(content["candidates"]) == 3


def two_splits(folder: Path, **target_keys: object) -> Config:
    """Slides of sites a and b in split `train`, of c in `more`; both train the encoder."""
    train = {"cohorts": ["clinic"], "splits": ["train", "more"]}
    config = make_config(folder, target=target_keys, train=train)
    lines = [
        f"{s},{p},{s}.svs,{site},{'more' * (site == 'c') or 'train'}" for s, p, site, _ in ROWS
    ]
    sheet = folder / "slides.csv"
    sheet.write_text("slide_id,patient_id,path,site,split\n" + "\n".join(lines[:6]) + "\n")
    return config


@pytest.mark.usefixtures("without_picture")
def test_a_target_of_some_splits_does_not_read_the_others(tmp_path):
    config = two_splits(tmp_path, policy="cohort", splits=["train"])
    rng = np.random.default_rng(0)
    for part in range(2):  # the part of split `more` has no store, so opening it would fail
        slides = [one_slide(rng, s, site, 5) for s, _, site, _ in ROWS[2 * part :][:2]]
        path = config.paths.pixels("clinic", f"train-{part:04d}")
        write_pixels(path, slides, size_px=SIZE, mpp=0.5, settings={})
    content = run(config)
    assert content["pool"]["splits"] == ["train"]
    assert {c["site"] for c in content["candidates"]} == {"a", "b"}


@pytest.mark.parametrize("change", [{"cohorts": ["other"]}, {"splits": ["test"]}])
def test_a_target_from_outside_the_training_data_is_refused(change, tmp_path):
    with pytest.raises(StainsslError, match="within train"):
        make_config(tmp_path, target={"policy": "cohort", **change})


class SyntheticPixels:
    """A store of 100,000 stain profiles, generated when it is opened."""

    TILES = 100_000

    def __init__(self, path: Path) -> None:
        rng = np.random.default_rng(int(path.name))
        self.slide_id = [f"{path.name}-{i}" for i in range(32)]
        self.slide = rng.integers(0, 32, self.TILES, dtype=np.int32)
        self.tile = np.arange(self.TILES, dtype=np.int32)
        self._scale = rng.random((self.TILES, 2), np.float32) + 0.5

    def __len__(self) -> int:
        return self.TILES

    def profile(self, method: str) -> dict[str, np.ndarray]:
        one = StainProfile.reference(method).batched().to_arrays()["matrix"]
        matrix = np.repeat(one, self.TILES, 0)
        return {"matrix": matrix, "scale": self._scale, "valid": np.ones(self.TILES, bool)}


def pooling_peak(parts: int) -> tuple[int, target.PartSummary]:
    names = {f"{part}-{i}": "ab"[i % 2] for part in range(parts) for i in range(32)}
    sources = [target.TargetPart("c", str(p), Path(str(p)), names, names) for p in range(parts)]
    tracemalloc.start()
    with dask.config.set(num_workers=2):
        summary = target.reduce_parts(sources, "macenko", 0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak, summary


def test_memory_of_pooling_does_not_grow_with_the_number_of_profiles(monkeypatch):
    monkeypatch.setattr(target, "open_pixels", SyntheticPixels)
    few, _ = pooling_peak(4)
    many, summary = pooling_peak(20)
    assert sum(summary.pool.tiles.values()) == 2_000_000
    assert len(summary.pool.key) == target.SAMPLE
    assert summary.pool.mean().scale.mean() == pytest.approx(1.0, abs=0.01)
    assert many < 1.5 * few
    assert many < 100e6


def test_pooling_uses_the_configured_dask_scheduler(monkeypatch):
    called = []

    class Client:
        def __init__(self, address: str) -> None:
            called.append(address)

        def __enter__(self) -> Client:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def compute(self, graph: object) -> SimpleNamespace:
            return SimpleNamespace(result=lambda: dask.compute(graph, scheduler="sync")[0])

    monkeypatch.setattr("dask.distributed.Client", Client)
    with dask.config.set({"scheduler-address": "tcp://somewhere:8786"}):
        assert target._computed(dask.delayed(lambda: 5)()) == 5
    assert called == ["tcp://somewhere:8786"]


@pytest.mark.usefixtures("without_picture")
def test_the_same_seed_writes_the_same_target(filled):
    config = make_config(filled, target={"policy": "cohort"})
    assert run(config) == run(config)


@pytest.mark.usefixtures("without_picture")
def test_test_slides_are_never_opened(filled):
    config = make_config(filled, target={"policy": "cohort"})  # test parts have no store
    assert {c["slide"] for c in run(config)["candidates"]} <= {f"clinic/s{i}" for i in range(6)}


@pytest.mark.usefixtures("without_picture")
def test_a_part_without_tiles_is_skipped(tmp_path):
    config = make_config(tmp_path)
    write_stores(config)
    path = config.paths.pixels("clinic", "train-0001")
    write_pixels(path, [], size_px=SIZE, mpp=0.5, settings={})
    assert run(config)["pool"]["slides"] == 4


@pytest.mark.usefixtures("without_picture")
def test_training_data_without_any_tile_is_refused(tmp_path):
    config = make_config(tmp_path)
    for part in range(3):
        path = config.paths.pixels("clinic", f"train-{part:04d}")
        write_pixels(path, [], size_px=SIZE, mpp=0.5, settings={})
    with pytest.raises(StainsslError, match="has no tiles"):
        run(config)


def test_without_a_valid_profile_the_fallback_is_used(tmp_path):
    config = make_config(tmp_path, target={"policy": "spread"})
    for part in range(3):
        path = config.paths.pixels("clinic", f"train-{part:04d}")
        white = np.full((SIZE, SIZE, 3), 255, np.uint8)
        batch = torch.full((2, 3, SIZE, SIZE), 255, dtype=torch.uint8)
        profiles = {"macenko": estimate(batch).to_arrays()}
        slide = SlidePixels(f"s{2 * part}", np.arange(2), [encode(white)] * 2, profiles)
        write_pixels(path, [slide], size_px=SIZE, mpp=0.5, settings={})
    content = run(config)
    assert content["candidates"] == []
    assert content["coverage"] is None
    assert targets.load(content).draw(estimate(batch), torch.Generator()).valid


@pytest.mark.usefixtures("without_picture")
def test_an_encoder_that_is_not_trained_is_refused(filled):
    with pytest.raises(StainsslError, match="not trained"):
        run(make_config(filled, method="random", train=None))


def run_fixed(filled: Path, change: dict, **encoder: object) -> dict:
    content = run(make_config(filled, target={"policy": "spread"}))
    content["pool"] |= change
    path = filled / "given.json"
    path.write_text(json.dumps(content))
    return run(make_config(filled, target={"policy": "fixed", "path": str(path)}, **encoder))


@pytest.mark.usefixtures("without_picture")
def test_a_fixed_target_has_the_candidates_of_its_file(filled):
    assert len(run_fixed(filled, {})["candidates"]) == 8


@pytest.mark.usefixtures("without_picture")
@pytest.mark.parametrize("change", [{"cohorts": ["clinic", "other"]}, {"splits": ["test"]}])
def test_a_fixed_target_from_outside_the_training_data_is_refused(change, filled):
    with pytest.raises(StainsslError, match="leak"):
        run_fixed(filled, change)


@pytest.mark.usefixtures("without_picture")
def test_a_fixed_target_of_another_method_is_refused(filled):
    with pytest.raises(StainsslError, match="same method"):
        run_fixed(filled, {}, normalizer="reinhard")


@pytest.mark.usefixtures("without_picture")
@pytest.mark.parametrize(
    ("text", "message"), [(None, "does not exist"), ("{}", "schema"), ("no", "not a stain target")]
)
def test_a_fixed_target_file_without_a_target_is_refused(text, message, tmp_path, filled):
    path = tmp_path / "given.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(StainsslError, match=message):
        run(make_config(filled, target={"policy": "fixed", "path": str(path)}))
