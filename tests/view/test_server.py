"""Responses, refused requests and errors of the server."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path

import cv2
import httpx
import numpy as np
import pandas as pd
import pytest
import torch
from starlette.testclient import TestClient

from stainssl.cohort import parts
from stainssl.config import Config, parse
from stainssl.errors import StainsslError
from stainssl.slides.tiling import REASONS
from stainssl.stain import estimate
from stainssl.view import server
from stainssl.view.files import HERE
from stainssl.view.handles import LRUCache
from stainssl.view.records import json_column, summarized, with_numbers
from stainssl.view.run import config_of
from stainssl.view.server import application, bound
from stainssl.view.viewer_data import ViewerData
from tests.stages.trained import Trained
from tests.view.conftest import Served

pytestmark = pytest.mark.usefixtures("page")


@pytest.fixture
def client(viewer: ViewerData) -> TestClient:
    return TestClient(application(viewer), base_url="http://127.0.0.1")


def sheet_config(folder: Path, rows: list[dict[str, object]], **more: object) -> Config:
    """A config of one cohort without results, with a sheet of these rows."""
    pd.DataFrame(rows).to_csv(folder / "slides.csv", index=False)
    cohort = {"sheet": str(folder / "slides.csv"), "root": str(folder)}
    return parse({"results": str(folder / "none"), "cohorts": {"c": cohort}, **more})


def slide_of(trained: Trained, status: str = "ok") -> str:
    table = ViewerData(trained.config).data("cohort", "clinic")["columns"]
    return str(table["slide_id"][table["status"].index(status)])


def test_cohort_table(client: TestClient, shown: Trained) -> None:
    table = client.get("/data/cohort/clinic.json").json()
    columns = table["columns"]
    assert columns["slide_id"] == shown.sheet["slide_id"].tolist()
    assert {len(values) for values in columns.values()} == {len(shown.sheet)}
    bad = [d for s, d in zip(columns["status"], columns["detail"], strict=True) if s != "ok"]
    assert bad
    assert all(bad)
    assert {a["name"] for a in table["answers"]} == {"patient~enc~abmil", "slide~enc~abmil"}


def test_predictions_have_an_interval(client: TestClient, shown: Trained) -> None:
    found = client.get("/data/predictions/clinic/slide~enc~abmil.json").json()
    columns = found["columns"]
    assert found["classes"] == ["0", "1"]
    for low, p, high in zip(columns["low_1"], columns["p_1"], columns["high_1"], strict=True):
        assert (low is None) == (p is None)
        assert p is None or low <= p <= high


def test_a_numeric_column_may_have_unknown_cells() -> None:
    sheet = pd.DataFrame({"slide_id": ["1", "2", "3"], "age": ["61.5", "NaN", ""],
                          "block": ["20231234", "7", "-"],
                          "grade": ["2", "n/a", "III"], "her2": ["", "?", "NA"]})  # fmt: skip
    found = with_numbers(sheet)
    assert json_column(found["age"]) == [61.5, None, None]
    assert json_column(found["block"]) == [20231234, 7, None]
    assert found["grade"].tolist() == ["2", "n/a", "III"]
    assert found["slide_id"].tolist() == ["1", "2", "3"]
    assert found["her2"].tolist() == ["", "?", "NA"]


@pytest.mark.parametrize("kind", ["value", "risk"])
def test_predicted_values_have_an_interval(kind: str) -> None:
    table = pd.DataFrame({"slide_id": ["a", "a", "b", "b"], kind: [1.0, 3.0, 5.0, 5.0], "fold": 0})
    found = summarized(table, "slide_id")
    assert found[kind].tolist() == [2.0, 5.0]
    assert found[f"low_{kind}"].tolist() == pytest.approx([1.05, 5.0])
    assert found[f"high_{kind}"].tolist() == pytest.approx([2.95, 5.0])


def test_predicted_values_of_new_slides(shown: Trained, tmp_path: Path) -> None:
    """An output folder of `predict` for a regression task."""
    viewer = ViewerData(shown.config)
    source = (
        viewer.records.find_predictions("clinic", "slide~enc~abmil").folder / "attention.parquet"
    )
    (tmp_path / "attention.parquet").write_bytes(source.read_bytes())
    row = {"slide_id": [slide_of(shown)], "value": [2.0], "low": [1.5], "high": [2.5]}
    pd.DataFrame(row).to_csv(tmp_path / "predictions.csv", index=False)
    (tmp_path / "cohorts").symlink_to(shown.config.results / "cohorts")
    new = ViewerData(shown.config.model_copy(update={"results": tmp_path, "tasks": {}}))
    found = new.data("predictions", "clinic", "predictions")["columns"]
    row_number = shown.sheet["slide_id"].tolist().index(slide_of(shown))
    values_of_slide = {name: values[row_number] for name, values in found.items()}
    assert values_of_slide == {"value": 2.0, "low_value": 1.5, "high_value": 2.5}


def test_data_of_a_slide_and_its_layers(client: TestClient, shown: Trained) -> None:
    slide = slide_of(shown)
    found = client.get(f"/data/slide/clinic/{slide}.json").json()
    assert found["problems"] == []
    assert found["geometry"]["mpp"] == pytest.approx(0.5)
    tiles = found["tiles"]["columns"]
    kept = {t for t, r in zip(tiles["tile"], tiles["reason"], strict=True) if not r}
    attention = client.get(f"/data/attention/clinic/{slide}/slide~enc~abmil.json").json()
    assert set(attention["tile"]) == kept
    assert all(0 < v <= 1 for v in attention["value"])
    stain = client.get(f"/data/stain/clinic/{slide}.json").json()
    assert set(stain["tile"]) <= kept
    assert min(stain["hematoxylin"]) > 0
    assert found["annotations"]
    assert all(a["rings"] for a in found["annotations"])


def test_the_tissue_outline_agrees_with_the_tissue_share_of_tiles(
    client: TestClient, shown: Trained
) -> None:
    slide = slide_of(shown)
    found = client.get(f"/data/slide/clinic/{slide}.json").json()
    outlines = client.get(f"/data/outlines/clinic/{slide}.json").json()
    mask = np.zeros((found["geometry"]["height"], found["geometry"]["width"]), np.uint8)
    cv2.fillPoly(mask, [np.rint(ring).astype(np.int32) for ring in outlines["tissue"]], 1)
    tiles, side = found["tiles"]["columns"], int(found["tiles"]["side"])
    for x, y, tissue in zip(tiles["x"], tiles["y"], tiles["tissue"], strict=True):
        share = mask[y : y + side, x : x + side].mean()
        assert share == pytest.approx(tissue, abs=0.25)


def test_pictures_thumbnails_and_tiles(client: TestClient, shown: Trained) -> None:
    slide = slide_of(shown)
    geometry = client.get(f"/data/slide/clinic/{slide}.json").json()["geometry"]
    response = client.get(f"/pictures/picture/clinic/{slide}/{geometry['deepest']}/0/0.jpg")
    image = cv2.imdecode(np.frombuffer(response.content, np.uint8), cv2.IMREAD_COLOR)
    assert image.shape == (256, 256, 3)
    assert client.get(f"/pictures/thumbnail/clinic/{slide}.jpg").status_code == 200
    tile = client.get(f"/data/attention/clinic/{slide}/slide~enc~abmil.json").json()["tile"][0]
    assert client.get(f"/pictures/tile/clinic/{slide}/{tile}.jpg").status_code == 200


def test_nearest_tiles_are_of_other_slides(client: TestClient, shown: Trained) -> None:
    slide = slide_of(shown)
    tile = client.get(f"/data/attention/clinic/{slide}/slide~enc~abmil.json").json()["tile"][0]
    found = client.get(f"/data/neighbors/clinic/{slide}/enc/{tile}.json").json()
    columns = found["columns"]
    assert slide not in columns["slide_id"]
    assert set(columns["site"]) == {"a", "b"}
    assert pd.Series(columns["slide_id"]).value_counts().max() <= 2
    assert all(-1.001 <= c <= 1.001 for c in columns["cosine"])
    assert found["searched"] == found["total"]


def test_a_tile_with_other_stains(client: TestClient, viewer: ViewerData, shown: Trained) -> None:
    slide = slide_of(shown)
    tile = client.get(f"/data/attention/clinic/{slide}/slide~enc~abmil.json").json()["tile"][0]
    found = client.get(f"/data/stains/clinic/{slide}/{tile}.json").json()
    titles = [s["title"] for s in found["stains"]]
    assert titles == ["a", "b", "macenko", "vahadane", "ruifrok", "reinhard"]
    [encoder] = found["encoders"]
    assert len(encoder["cosine"]) == len(titles)
    assert all(-1.001 <= c <= 1.001 for c in [*encoder["cosine"], encoder["other"]])
    restained = viewer._restained()
    own = restained.picture("clinic", slide, tile, "original")
    assert np.array_equal(own, viewer.pixels_of("clinic", slide, tile))
    [target] = [s for s in restained.stains("clinic") if s.name == "site-1"]
    batch = torch.from_numpy(np.ascontiguousarray(own)).permute(2, 0, 1)[None]
    restained_tile = torch.from_numpy(
        restained.picture("clinic", slide, tile, "site-1").transpose(2, 0, 1)
    )
    before, after = (
        (estimate(x, "macenko").coordinates() - target.profile.coordinates()).norm()
        for x in (batch, restained_tile[None].contiguous())
    )
    assert after < before / 2
    assert client.get(f"/pictures/stained/clinic/{slide}/{tile}/site-9.jpg").status_code == 404
    field = client.get(f"/pictures/field/clinic/{slide}/{tile}/site-1.jpg").content
    assert cv2.imdecode(np.frombuffer(field, np.uint8), cv2.IMREAD_COLOR).shape == (256, 256, 3)


@pytest.mark.parametrize(
    "path",
    [
        "/data/../../etc/passwd", "/data/%2e%2e/%2e%2e/etc/passwd.json", "/..%2fserver.py",
        "/data/cohort/nobody.json", "/data/cohort.json", "/data/slide/clinic/nobody.json",
        "/data/slide/clinic.json", "/data/nothing.json", "/pictures/nothing.jpg",
        "/pictures/picture/clinic/nobody/0/0/0.jpg", "/server.py",
    ],
)  # fmt: skip
def test_unknown_names_are_not_found(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 404


@pytest.mark.parametrize("at", ["99/0/0", "0/1/0", "-1/0/0", "x/0/0", "0/0", "0/0/0/0", "0/0/²"])
def test_missing_pictures_are_not_found(client: TestClient, shown: Trained, at: str) -> None:
    assert client.get(f"/pictures/picture/clinic/{slide_of(shown)}/{at}.jpg").status_code == 404


def test_security_headers_are_on_every_response(client: TestClient) -> None:
    for path in ("/", "/core.js", "/data/overview.json", "/nothing"):
        headers = client.get(path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"


def test_requests_from_other_sites_are_refused(client: TestClient, viewer: ViewerData) -> None:
    cross_site = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}
    assert client.get("/data/overview.json", headers=cross_site).status_code == 403
    link = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    assert client.get("/", headers=link).status_code == 200
    other_host = TestClient(
        application(viewer, None, ["127.0.0.1"]), base_url="http://evil.example"
    )
    assert other_host.get("/").status_code == 400


def test_requests_without_the_token_are_refused(viewer: ViewerData) -> None:
    app = application(viewer, "secret")
    assert TestClient(app).get("/data/overview.json").status_code == 401
    assert TestClient(app).get("/?token=wrong").status_code == 401
    client = TestClient(app)
    assert client.get("/?token=secret").status_code == 200
    assert client.get("/data/overview.json").status_code == 200


def test_write_methods_are_refused(client: TestClient) -> None:
    for method in ("POST", "PUT", "DELETE"):
        assert client.request(method, "/data/overview.json").status_code == 405


def test_bad_slides_have_their_reason(client: TestClient, shown: Trained) -> None:
    columns = client.get("/data/cohort/clinic.json").json()["columns"]
    for slide, status, detail in zip(
        columns["slide_id"], columns["status"], columns["detail"], strict=True
    ):
        found = client.get(f"/data/slide/clinic/{slide}.json").json()
        if found["geometry"]:
            assert found["remark"] == (
                detail if status == "ok" else f"Left out: {status}: {detail}"
            )
        if status == "truncated":
            assert found["geometry"] is None
            assert "ends at byte" in found["problems"][0]
            assert client.get(f"/pictures/thumbnail/clinic/{slide}.jpg").status_code == 422
        if status == "no-mpp":
            assert found["geometry"]["mpp"] is None
            outlines = client.get(f"/data/outlines/clinic/{slide}.json").json()
            assert "no pixel size" in outlines["problem"]


def test_a_missing_slide_without_results(tmp_path: Path) -> None:
    rows = [{"slide_id": "s1", "patient_id": "p1", "path": "gone.svs", "site": "<img src=x>"}]
    client = TestClient(application(ViewerData(sheet_config(tmp_path, rows))))
    table = client.get("/data/cohort/c.json").json()
    assert table["columns"]["status"] == ["not tiled"]
    assert table["columns"]["site"] == ["<img src=x>"]
    assert "missing" in table["problems"][0]
    found = client.get("/data/slide/c/s1.json").json()
    assert "cannot be opened" in found["problems"][0]
    assert client.get("/pictures/thumbnail/c/s1.jpg").status_code == 503


def test_an_invalid_sheet_is_reported(tmp_path: Path) -> None:
    config = sheet_config(tmp_path, [{"slide_id": "s1", "patient_id": "p1", "file": "x"}])
    client = TestClient(application(ViewerData(config)))
    assert "path" in client.get("/data/overview.json").json()["cohorts"][0]["problem"]
    assert "path" in client.get("/data/cohort/c.json").json()["problem"]


def test_results_of_another_schema_are_reported(tmp_path: Path, shown: Trained) -> None:
    config = shown.config.model_copy(update={"results": tmp_path})
    viewer = ViewerData(config)
    part = viewer.records.part("clinic", slide_of(shown))
    path = viewer.records.paths.tiles("clinic", part)
    path.parent.mkdir(parents=True)
    pd.DataFrame({"slide_id": ["x"]}).to_parquet(path)
    found = viewer.data("slide", "clinic", slide_of(shown))
    assert found["geometry"]
    assert "expected tiles of schema" in found["problems"][0]


def test_slow_pictures_do_not_block_tables(shown: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    viewer, slide, release = ViewerData(shown.config), slide_of(shown), threading.Event()
    viewer.pyramid("clinic", slide)
    at_once: list[int] = []
    lock, running = threading.Lock(), [0]

    def slow(*_: object) -> np.ndarray:
        with lock:
            running[0] += 1
            at_once.append(running[0])
        release.wait(30)
        with lock:
            running[0] -= 1
        return np.zeros((8, 8, 3), np.uint8)

    monkeypatch.setattr("stainssl.view.viewer_data.read_pyramid_picture", slow)
    monkeypatch.setattr(server.os, "cpu_count", lambda: 2)
    pyramid = viewer.pyramid("clinic", slide)
    names = [(n, 0, 0) for n in range(pyramid.deepest + 1)] * 10
    with Served(viewer) as served, ThreadPoolExecutor(100) as pool:
        urls = [f"{served.address}pictures/picture/clinic/{slide}/{n}/{c}/{r}.jpg"
                for n, c, r in names]  # fmt: skip
        jobs = [pool.submit(httpx.get, url, timeout=60) for url in urls]
        try:
            assert httpx.get(f"{served.address}data/overview.json", timeout=20).status_code == 200
        finally:
            release.set()
        assert {job.result().status_code for job in jobs} == {200}
    assert max(at_once) <= 2


def test_an_invalid_sheet_does_not_affect_other_cohorts(tmp_path: Path, shown: Trained) -> None:
    (tmp_path / "bad.csv").write_text("slide_id,file\ns1,x\n")
    bad = shown.config.cohorts["clinic"].model_copy(update={"sheet": tmp_path / "bad.csv"})
    cohorts = {"bad": bad, **shown.config.cohorts}
    viewer, slide = (
        ViewerData(shown.config.model_copy(update={"cohorts": cohorts})),
        slide_of(shown),
    )
    assert viewer.data("slide", "clinic", slide)["problems"] == []
    tile = viewer.data("stain", "clinic", slide)["tile"][0]
    assert viewer.data("neighbors", "clinic", slide, "enc", str(tile))["searched"]
    assert viewer.data("stains", "clinic", slide, str(tile))["stains"]
    assert "path" in viewer.data("slide", "bad", "s1")["problem"]


def test_the_same_slide_in_other_cohorts(shown: Trained, tmp_path: Path) -> None:
    rows = shown.sheet.loc[:1, ["slide_id", "patient_id", "path"]]
    rows.assign(slide_id=["x1", "x2"]).to_csv(tmp_path / "renamed.csv", index=False)
    renamed = shown.config.cohorts["clinic"].model_copy(update={"sheet": tmp_path / "renamed.csv"})
    cohorts = shown.config.cohorts | {"renamed": renamed, "again": shown.config.cohorts["clinic"]}
    records = ViewerData(shown.config.model_copy(update={"cohorts": cohorts})).records
    first, third = shown.sheet["slide_id"].iloc[[0, 2]]
    assert records.same_slide_elsewhere("clinic", first) == [("renamed", "x1"), ("again", first)]
    assert records.same_slide_elsewhere("clinic", third) == [("again", third)]
    assert records.same_slide_elsewhere("renamed", "x2")[0][0] == "clinic"


def test_new_results_of_a_run_are_read_and_known_ones_are_cached(
    shown: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First part of the results, then all of them, while the server runs."""
    results = tmp_path / "results"
    shutil.copytree(shown.config.results, results)
    viewer = ViewerData(shown.config.model_copy(update={"results": results}))
    records, slide = viewer.records, slide_of(shown)
    paths = records.paths
    last_part = list(parts(records.config, "clinic"))[-1]
    assert last_part != records.part("clinic", slide)
    stores = [paths.pixels("clinic", last_part), paths.embeddings("clinic", "enc", last_part)]
    for store in stores:
        store.rename(tmp_path / f"{store.name}-{store.parent.name}")
    tile = str(viewer.data("stain", "clinic", slide)["tile"][0])

    def counts() -> tuple[int, int]:
        near = viewer.data("neighbors", "clinic", slide, "enc", tile)
        return len(records.stains("clinic")), near["searched"]

    opened: list[Path] = []
    for module in ("stages.mil.open_pixels", "view.neighbors.open_embeddings"):
        real = getattr(
            import_module(f"stainssl.{module.rpartition('.')[0]}"), module.split(".")[-1]
        )
        monkeypatch.setattr(
            f"stainssl.{module}", lambda path, real=real: opened.append(path) or real(path)
        )
    partial = counts()
    count = len(opened)
    assert counts() == partial
    assert len(opened) == count + 1  # only the embedding of the tile
    for store in stores:
        (tmp_path / f"{store.name}-{store.parent.name}").rename(store)
    complete = counts()
    assert complete[0] > partial[0]
    assert complete[1] > partial[1]


def test_the_page_has_a_color_and_a_text_for_every_reason() -> None:
    lines = (HERE / "page" / "overlay.js").read_text().splitlines()
    for name in ("REASONS", "REASON_WORDS"):
        [line] = [one for one in lines if one.startswith(f"const {name} ")]
        assert all(f" {reason}: " in line for reason in REASONS)


def test_connections_use_tcp_nodelay() -> None:
    with bound("127.0.0.1", 0) as listening:
        client = socket.create_connection(listening.getsockname())
        accepted, _ = listening.accept()
        with client, accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_port_in_use_is_an_error() -> None:
    first = bound("127.0.0.1", 0)
    with first, pytest.raises(StainsslError, match="--port"):
        bound("127.0.0.1", first.getsockname()[1])


def test_the_config_of_a_folder_has_the_folder_as_results(tmp_path: Path, shown: Trained) -> None:
    with pytest.raises(StainsslError, match=r"config\.yaml does not exist"):
        config_of(tmp_path)
    data = json.loads(shown.config.model_dump_json())
    (tmp_path / "config.yaml").write_text(json.dumps(data))
    assert config_of(tmp_path).results == tmp_path


def test_the_cache_is_bounded_and_keeps_the_most_recently_used() -> None:
    cache: LRUCache[bytes] = LRUCache(10, len)
    made: list[str] = []

    def get(key: str) -> bytes:
        def make() -> bytes:
            made.append(key)
            return b"1234"

        return cache.get(key, make)

    for key in ("a", "b", "a", "c", "a", "b"):
        get(key)
    assert made == ["a", "b", "c", "b"]


def test_the_field_of_a_tile_contains_the_tile(viewer: ViewerData, shown: Trained) -> None:
    slide = slide_of(shown)
    table = viewer.layers.tile_table("clinic", slide)
    for row in table.iloc[[0, len(table) // 2, -1]].itertuples():
        tile = viewer.read_tile("clinic", slide, row.tile)
        field = viewer.read_tile("clinic", slide, row.tile, 3)
        assert field.shape == (192, 192, 3)
        found = cv2.matchTemplate(field, tile, cv2.TM_SQDIFF)
        assert found.min() == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("with_token", [False, True])
def test_the_command_serves_the_page(shown: Trained, tmp_path: Path, with_token: bool) -> None:
    (tmp_path / "config.yaml").write_text(shown.config.model_dump_json())
    arguments = ["view", "--config", str(tmp_path / "config.yaml"), "--port", "0"]
    command = [sys.executable, "-m", "stainssl", *arguments, *(["--token"] if with_token else [])]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path)
    try:
        assert process.stdout
        address = process.stdout.readline().strip()
        assert address.startswith("http://127.0.0.1:")
        assert ("token=" in address) == with_token
        bare = address.split("?")[0]
        with httpx.Client(follow_redirects=True, timeout=60) as client:
            status = client.get(f"{bare}data/overview.json").status_code
            assert status == (401 if with_token else 200)
            assert "stainssl" in client.get(address).text
            assert client.get(f"{bare}data/overview.json").json()["cohorts"][0]["name"] == "clinic"
    finally:
        process.terminate()
        process.wait(20)


def test_the_command_reports_a_missing_config(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "stainssl", "view", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "config.yaml does not exist" in done.stderr
