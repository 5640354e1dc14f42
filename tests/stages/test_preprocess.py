"""Stain normalization before pretrained encoders: to a mean, a reference, a file or several."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from stainssl.config import parse
from stainssl.encoders.loading import load
from stainssl.encoders.saving import save_local_dir
from stainssl.encoders.stain_profiles import stain_profile
from stainssl.errors import StainsslError
from stainssl.plan import encoders as plan
from stainssl.plan import groups
from stainssl.stages import predict, run_stage
from stainssl.stain import StainProfile, estimate, normalize
from stainssl.stain.targets import profile_from_json, profile_to_json
from stainssl.stores.embeddings import open_embeddings
from stainssl.stores.pixels import open_pixels
from tests.pretrain.world import cohort, images, profiles

KINDS = {
    "plain": {},
    "reference": {"preprocess": "reference"},
    "mean": {"preprocess": True, "train": {"cohorts": ["small"]}},
    "other": {"preprocess": "reference", "normalizer": "reinhard"},
    "each": {
        "preprocess": "each", "train": {"cohorts": ["small"]},
        "target": {"policy": "spread", "count": 3},
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("given")
    torch.manual_seed(5)
    model = timm.create_model("test_resnet", num_classes=0)
    save_local_dir(model, folder / "m", backbone="test_resnet", input_size=48, mean=(0.7, 0.5, 0.6),
                   std=(0.2, 0.3, 0.25), model_args={}, card={})  # fmt: skip
    found = cohort(folder, counts=(5, 4)).model_dump(mode="json")
    file = folder / "stain.json"
    file.write_text(json.dumps(profile_to_json(profiles(images(4, "b", 9)).pooled())))
    files = {"file": {"preprocess": str(file)}, "list": {"preprocess": ["reference", str(file)]}}
    kinds = {**KINDS, **files}
    found["encoders"] = {k: {"weights": str(folder / "m"), **keys} for k, keys in kinds.items()}
    found["tasks"] = {"t": {"level": "slide", "label": "site", "cohorts": ["small"]}}
    found["benchmarks"] = {"b": {"tasks": ["t"], "encoders": list(kinds)}}
    made = parse(found)
    for name in ("mean", "each"):
        run_stage("target", made, name)
    for name in kinds:
        run_stage("embed", made, "small", name, "train-0000")
    return made


def _embeddings(config, name):
    store = open_embeddings(config.paths.embeddings("small", name, "train-0000"))
    return store.read(slice(0, len(store))).astype(np.float32) / store.scale


def _target_profile(config, name):
    if name == "mean":
        return profile_from_json(json.loads(config.paths.target("mean").read_text())["fallback"])
    method = "reinhard" if name == "other" else "macenko"
    given = config.encoders[name].preprocess
    return (
        StainProfile.reference(method)
        if given == "reference"
        else stain_profile(method, Path(given))
    )


@pytest.mark.parametrize("name", ["reference", "mean", "other", "file"])
def test_embeddings_are_those_of_normalized_tiles(config, name):
    store = open_pixels(config.paths.pixels("small", "train-0000"))
    tiles = torch.from_numpy(store.images(np.arange(len(store))))
    tiles = tiles.permute(0, 3, 1, 2).contiguous()
    target = _target_profile(config, name)
    plain = load(config.encoders["plain"].weights)
    expected = plain(normalize(tiles, estimate(tiles, target.method), target)).numpy()
    found = _embeddings(config, name)
    np.testing.assert_allclose(found, expected, atol=2e-3 * np.abs(expected).max())
    assert np.abs(found - _embeddings(config, "plain")).max() > 0.01 * np.abs(expected).max()


def _target_profiles(config, name):
    """The stain profiles over which embeddings are averaged."""
    if name == "list":
        file = Path(config.encoders["file"].preprocess)
        return [StainProfile.reference("macenko"), stain_profile("macenko", file)]
    target = json.loads(config.paths.target(name).read_text())
    return [profile_from_json(one["profile"]) for one in target["candidates"]]


@pytest.mark.parametrize(("name", "count"), [("each", 3), ("list", 2)])
def test_embeddings_are_the_mean_over_several_stains_of_a_tile(config, name, count):
    store = open_pixels(config.paths.pixels("small", "train-0000"))
    tiles = torch.from_numpy(store.images(np.arange(len(store)))).permute(0, 3, 1, 2).contiguous()
    plain, own = load(config.encoders["plain"].weights), estimate(tiles, "macenko")
    stains = _target_profiles(config, name)
    assert len(stains) == count
    expected = np.mean([plain(normalize(tiles, own, one)).numpy() for one in stains], axis=0)
    np.testing.assert_allclose(
        _embeddings(config, name), expected, atol=2e-3 * np.abs(expected).max()
    )
    assert np.abs(expected - _embeddings(config, "reference")).max() > 0.01 * np.abs(expected).max()


def test_a_mean_over_one_stain_equals_that_stain(config):
    target = StainProfile.reference("macenko")
    images = torch.randint(0, 256, (3, 3, 48, 48), dtype=torch.uint8)
    weights = config.encoders["plain"].weights
    one, several = (
        load(weights, stain_profile=target),
        load(weights, stain_profile=target.batched()),
    )
    assert torch.equal(one(images), several(images))
    with pytest.raises(ValueError, match="unpack"):
        load(weights, stain_profile=StainProfile.cat([target.batched()] * 2)).stain_normalized(
            images
        )


def test_robustness_and_predict_use_the_same_preprocessing(config, tmp_path):
    for name in ("reference", "mean", "file", "each", "list"):
        job = plan.robustness(config, name)
        assert job.source == plan.embed(config, "small", name, "train-0000").sources[name]
        assert (job.target is not None) == (name in ("mean", "each"))
        new = predict.config_of_new(config, "t", name, tmp_path / "s.csv", tmp_path, tmp_path / "o")
        assert plan.source_of(new, name) == job.source
        assert plan.source_of(new, name).preprocess.is_averaged == (name in ("each", "list"))
    assert plan.robustness(config, "other").family == "macenko"  # not its own method


def test_the_normalization_target_is_part_of_the_job(config):
    jobs = {n: plan.embed(config, "small", n, "train-0000") for n in config.encoders}
    texts = [job.settings()["identities"].replace(n, "x", 1) for n, job in jobs.items()]
    assert len(set(texts)) == len(texts)
    path = Path(config.encoders["file"].preprocess)
    before = {n: plan.given_identity(config.encoders[n]) for n in ("file", "list")}
    content = path.read_text()
    path.write_text(content + " ")
    for name, identity in before.items():
        assert plan.given_identity(config.encoders[name]) != identity
    path.write_text(content)
    [group] = groups.plan(config, {})["small"]
    assert "mean" not in group  # its target does not exist yet
    assert set(group) == {"plain", "reference", "other", "file", "list"}
    for name in ("mean", "each"):
        job = plan.embed(config, "small", name, "train-0000")
        assert job.inputs()["targets"] == [str(config.paths.target(name))]


def test_two_stain_profiles_are_refused(config):
    folder = Path(config.encoders["plain"].weights)
    (folder / "stain.json").write_text(
        json.dumps(profile_to_json(StainProfile.reference("macenko")))
    )
    try:
        assert load(folder).stain_profile is not None
        with pytest.raises(StainsslError, match=r"already normalized .* leave `preprocess` out"):
            load(folder, stain_profile=StainProfile.reference("macenko"))
    finally:
        (folder / "stain.json").unlink()


def test_a_file_without_a_stain_profile_is_an_error(tmp_path):
    with pytest.raises(StainsslError, match="no such stain profile"):
        stain_profile("macenko", tmp_path / "none.json")
    for text in ("half", "[]", "{}", '{"method": "macenko"}', '{"method": "x", "valid": true}'):
        (tmp_path / "f.json").write_text(text)
        with pytest.raises(StainsslError, match=r"has no stain profile .* give a target.json"):
            stain_profile("macenko", tmp_path / "f.json")
    (tmp_path / "f.json").write_text(
        json.dumps(profile_to_json(StainProfile.reference("reinhard")))
    )
    with pytest.raises(StainsslError, match=r"a reinhard profile, .* set normalizer: reinhard"):
        stain_profile("macenko", tmp_path / "f.json")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"weights": "resnet18", "preprocess": True}, "the mean stain of the tiles of 'train"),
        ({"weights": "resnet18", "preprocess": "each"}, "the stains that 'target' chooses"),
        ({"weights": "resnet18", "preprocess": "each", "train": {"cohorts": ["d"]}},
         "policy: spread"),
        ({"weights": "resnet18", "preprocess": []}, "at least 1 item"),
        ({"method": "simclr", "train": {"cohorts": ["d"]}, "preprocess": ["reference"]},
         "true or false with a method that trains"),
        ({"method": "random", "preprocess": True}, "give a method that trains, or weights"),
        ({"features": "clam:x", "preprocess": "reference"}, "a method that trains, or weights"),
        ({"method": "simclr", "train": {"cohorts": ["d"]}, "preprocess": "reference"},
         "true or false with a method that trains"),
    ],
)  # fmt: skip
def test_preprocess_without_effect_is_refused(keys, message):
    with pytest.raises(StainsslError, match=message):
        parse({"cohorts": {"d": {"demo": {}}}, "encoders": {"x": keys}})
