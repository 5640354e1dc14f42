"""Commits of weights from the Hugging Face hub, and when they are embedded again."""

from __future__ import annotations

import json

import pytest
import torch
import yaml
from safetensors.torch import save

from stainssl.config import parse
from stainssl.encoders import loading
from stainssl.encoders.revisions import commit, repository_of
from stainssl.plan import revisions, workflow
from stainssl.plan.encoders import embed
from stainssl.plan.run import FixedRun
from stainssl.plan.workflow import Plan
from tests.encoders.fake_hub import COMMITS, cache, put

FIRST, SECOND = COMMITS
MODEL = "model.safetensors"


def _data(folder, **encoder):
    return {
        "results": str(folder / "results"), "cohorts": {"c": {"demo": {}}},
        "encoders": {"e": {"weights": "uni", **encoder}},
    }  # fmt: skip


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty cache of the hub, whose files need not be weights in these tests."""
    monkeypatch.setattr(workflow, "network_problems", lambda _: [])
    return cache(tmp_path, monkeypatch)


def _planned(folder, **encoder):
    """The settings of the embedding job of a run, and the plan of the run."""
    plan = Plan(_data(folder, **encoder), is_main=True)
    [part, *_] = revisions.part_names(plan.config, "c")
    return embed(plan.config, "c", "e", part).param(), plan


def _embedded(plan, commit=None):
    """Write the results of a job of the run: a store with its commit, and the record of commits."""
    [part, *_] = revisions.part_names(plan.config, "c")
    store = plan.config.paths.embeddings("c", "e", part)
    store.mkdir(parents=True, exist_ok=True)
    settings = {"revision": commit} if commit else {}
    content = {"attributes": {"settings": settings}}
    (store / "zarr.json").write_text(json.dumps(content))
    if plan.commits:
        plan.config.paths.revisions().write_text(json.dumps(plan.commits))


def test_weights_that_the_first_run_downloaded_are_not_embedded_again(tmp_path, hub):
    first, plan = _planned(tmp_path)
    assert plan.commits == {}
    put(hub, "MahmoodLab/UNI", MODEL, b"", FIRST)  # as the job did
    _embedded(plan, FIRST)
    second, plan = _planned(tmp_path)
    assert second == first
    assert plan.commits == {"uni": [FIRST]}


def test_another_commit_in_the_cache_is_embedded_once(tmp_path, hub):
    put(hub, "MahmoodLab/UNI", MODEL, b"", FIRST)
    first, plan = _planned(tmp_path)
    _embedded(plan, FIRST)
    put(hub, "MahmoodLab/UNI", MODEL, b"new", SECOND)
    second, plan = _planned(tmp_path)
    assert second != first
    assert SECOND in second
    assert plan.config.encoders["e"].revision == SECOND  # loaded by its jobs
    _embedded(plan, SECOND)
    assert _planned(tmp_path)[0] == second
    (hub / "models--MahmoodLab--UNI" / "refs" / "main").write_text("gone")  # another machine
    assert _planned(tmp_path)[0] == second


def test_a_pinned_revision_changes_the_settings(tmp_path, hub):
    plain, _ = _planned(tmp_path)
    pinned, _ = _planned(tmp_path, revision=FIRST)
    assert plain != pinned != _planned(tmp_path, revision=SECOND)[0]
    both = {_planned(tmp_path, weights=w)[0] for w in (f"hf-hub:a/b@{FIRST}", "hf-hub:a/b")}
    assert len(both) == 2
    at = _planned(tmp_path, weights="hf-hub:a/b", revision=FIRST)[0]
    assert at == _planned(tmp_path, weights=f"hf-hub:a/b@{FIRST}")[0]


def test_a_moved_tag_is_embedded_again(tmp_path, hub):
    put(hub, "MahmoodLab/UNI", MODEL, b"", FIRST, "v1")
    first, plan = _planned(tmp_path, revision="v1")
    _embedded(plan, FIRST)
    put(hub, "MahmoodLab/UNI", MODEL, b"new", SECOND, "v1")
    assert _planned(tmp_path, revision="v1")[0] != first


def test_weights_that_are_not_from_the_hub_have_no_commit(tmp_path, hub):
    put(hub, "MahmoodLab/UNI", MODEL, b"", FIRST)
    for source in ("resnet18", "uni@/somewhere", "local-dir:x", "efficientnet-lite0", "chief"):
        assert repository_of(source) is None
        assert commit(source) is None
    assert commit("hf-hub:MahmoodLab/UNI") == commit("uni") == FIRST
    put(hub, "MahmoodLab/madeleine", "model.pt", b"", SECOND)
    assert commit("madeleine") == SECOND


def test_the_record_of_commits_is_written_with_the_run(tmp_path):
    file = tmp_path / "revisions.json"
    FixedRun("a: 1\n", {}, "", {"uni": [FIRST]}, str(file)).write(tmp_path / "configs" / "x.yaml")
    assert revisions.read(file) == {"uni": [FIRST]}
    assert revisions.read(tmp_path / "none.json") == {}


def test_the_config_of_a_run_can_be_read_again(tmp_path, hub):
    put(hub, "a/b", MODEL, b"", FIRST)
    _embedded(_planned(tmp_path, weights="hf-hub:a/b@main")[1], FIRST)
    put(hub, "a/b", MODEL, b"new", SECOND)
    _, plan = _planned(tmp_path, weights="hf-hub:a/b@main")
    again = parse(yaml.safe_load(yaml.safe_dump(plan.config.model_dump(mode="json"))))
    assert again.encoders["e"].revision == SECOND


def test_cached_weights_are_loaded_without_a_request_to_the_hub(hub, monkeypatch):
    """The newest commit in the cache is loaded, or the requested revision."""
    monkeypatch.setattr(loading, "hf_hub_download", None)
    model = {"architecture": "test_vit", "mean": [0.5] * 3, "std": [0.5] * 3, "input_px": 64}
    nets = {}
    for number, at in enumerate(COMMITS):
        torch.manual_seed(number)
        nets[at] = loading.new_backbone("test_vit", 64)[0]
        put(hub, "a/b", MODEL, save(nets[at].state_dict()), at)
    data = {"cohorts": {"c": {"demo": {}}}, "encoders": {
        "newest": {"weights": "hf-hub:a/b", "recipe": model},
        "pinned": {"weights": "hf-hub:a/b", "recipe": model, "revision": FIRST},
    }}  # fmt: skip
    for name, at in (("newest", SECOND), ("pinned", FIRST)):
        loaded = loading.load(str(parse(data).encoders[name].source))
        assert loaded.weights_sha256 == loading.digest(nets[at])
