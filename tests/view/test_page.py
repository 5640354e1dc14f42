"""The page in a browser: tables, slides, layers, tiles, links and exports."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from stainssl.cohort import parts
from stainssl.config import Task, parse
from stainssl.stages import run_stage
from stainssl.stores.tables import read_table, write_table
from stainssl.view.export import write_export
from stainssl.view.run import config_of
from stainssl.view.viewer_data import ViewerData
from tests.stages.trained import Trained
from tests.view.conftest import Served, Tab, await_count, inaccessible
from tests.view.test_server import sheet_config, slide_of

LAYERS = ("tissue", "ink", "grid", "annotations", "attention", "hematoxylin", "eosin")


def overlay_pixels(tab: Tab) -> int:
    """Number of pixels of the first overlay that are not transparent."""
    return int(
        tab.page.evaluate(
            """() => {
              const canvas = current.panes[0].overlay.canvas;
              const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
              return data.data.filter((v, i) => i % 4 === 3 && v > 0).length;
            }"""
        )
    )


def wait_for_pixels(tab: Tab) -> None:
    """Wait until the pixels of the slide are drawn."""
    tab.page.wait_for_function("() => current.panes[0].viewer.world.getItemAt(0).getFullyLoaded()")


def test_the_cohort_table_is_sorted_filtered_and_links_to_slides(
    tab: Tab, served: str, shown: Trained
) -> None:
    tab.expected = ("422",)  # the thumbnail of a truncated slide
    tab.open(served)
    page = tab.page
    rows = page.locator("table.slides tbody tr:not(.space)")
    await_count(rows, len(shown.sheet))
    page.get_by_role("button", name="tiles").click()
    page.get_by_role("button", name="tiles").click()  # descending
    counts = [int(t) for t in page.locator("tbody tr td:nth-child(7)").all_inner_texts()]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[-1]
    page.get_by_label("Filter tiles").fill(">0")
    page.get_by_label("Filter site").fill("b")
    sites = page.locator("tbody tr td:nth-child(4)").all_inner_texts()
    assert set(sites) == {"b"}
    page.get_by_label("Filter site").fill("")
    page.get_by_label("Filter tiles").fill("")
    page.get_by_role("button", name="truncated: 1").click()
    await_count(rows, 1)
    assert "ends at byte" in rows.inner_text()
    page.get_by_role("button", name="truncated: 1").click()
    page.get_by_label("Predictions").select_option(label="slide: abmil on enc")
    page.get_by_label("Search", exact=True).fill(slide_of(shown))
    await_count(rows, 1)
    assert "–" in rows.inner_text()
    page.get_by_role("link", name=slide_of(shown)).click()
    page.wait_for_selector("main[data-ready=yes] .osd canvas")
    assert page.title().startswith(slide_of(shown))


def test_a_slide_zooms_and_draws_every_layer(tab: Tab, served: str, shown: Trained) -> None:
    slide = slide_of(shown)
    tab.open(f"{served}#slide/clinic/{slide}?layers=none:0")
    wait_for_pixels(tab)
    page = tab.page
    assert page.locator(".scalebar span").inner_text().endswith("µm")
    before = page.evaluate("current.panes[0].where().z")
    page.get_by_role("button", name="Zoom in").click()
    page.wait_for_function(f"() => current.panes[0].where().z > {1.5 * before}")
    page.locator(".osd .openseadragon-canvas").first.press("ArrowRight")
    page.get_by_role("button", name="Show the whole slide").click()
    assert overlay_pixels(tab) == 0
    for name in LAYERS:
        box = page.locator(f"#layer-{name}")
        box.check()
        page.wait_for_function(f"() => current.panes[0].overlay.layers.has('{name}')")
        assert overlay_pixels(tab) > 0 or name == "ink"  # most slides have no ink
        box.uncheck()
        page.wait_for_function(f"() => !current.panes[0].overlay.layers.has('{name}')")
    assert overlay_pixels(tab) == 0


def test_a_click_shows_a_tile_and_the_link_reopens_it(
    tab: Tab, served: str, shown: Trained, viewer: ViewerData
) -> None:
    slide = slide_of(shown)
    tab.open(f"{served}#slide/clinic/{slide}?layers=attention:0.5")
    wait_for_pixels(tab)
    page = tab.page
    found = viewer.data("attention", "clinic", slide, "patient~enc~abmil")
    tile = found["tile"][len(found["tile"]) // 2]
    place = page.evaluate(
        f"""() => {{
          const {{ tiles, panes }} = current;
          const row = tiles.at.get({tile});
          const view = panes[0].overlay.view();
          const box = panes[0].viewer.container.getBoundingClientRect();
          return [box.x + view.x + view.scale * (tiles.x[row] + tiles.side / 2),
                  box.y + view.y + view.scale * (tiles.y[row] + tiles.side / 2)];
        }}"""
    )
    page.mouse.click(*place)
    page.get_by_role("heading", name=f"Tile {tile}", exact=True).wait_for()
    page.get_by_text("Cosine of embeddings by enc").wait_for()
    box = page.locator(".tilebox")
    assert "µm" in box.inner_text()
    assert "hematoxylin" in box.inner_text()
    page.wait_for_function(f"() => location.hash.includes('tile={tile}')")
    link = page.url
    tab.open(link)
    page.get_by_role("heading", name=f"Tile {tile}", exact=True).wait_for()
    assert page.locator("#layer-attention").is_checked()
    assert not page.locator("#layer-tissue").is_checked()
    neighbor = page.locator(".near .tiles a").first
    neighbor.wait_for()
    neighbor.click()
    page.wait_for_function(f"() => current && current.data.slide !== '{slide}'")
    page.get_by_role("heading", name="Nearest tiles").wait_for()


def test_a_tile_with_other_stains(tab: Tab, served: str, shown: Trained) -> None:
    tab.open(f"{served}#slide/clinic/{slide_of(shown)}")
    tab.page.locator(".strip button").first.click()
    tab.page.get_by_role("link", name="This tile under other stains").click()
    tab.page.locator("table.stains tbody").wait_for()
    tab.page.wait_for_function("() => [...document.images].every((i) => i.complete)")
    sizes = tab.page.evaluate("() => [...document.images].map((i) => i.naturalWidth)")
    assert sizes == [64] * 7
    assert "enc" in tab.page.locator("table.stains tbody").inner_text()
    tab.page.get_by_label("Show the field").check()
    tab.page.wait_for_function("() => [...document.images].some((i) => i.naturalWidth === 256)")
    tab.page.get_by_role("link", name=slide_of(shown)).click()
    tab.page.wait_for_function("() => current && current.tile !== null")


def test_a_tile_of_the_strip_opens_by_keyboard(tab: Tab, served: str, shown: Trained) -> None:
    tab.open(f"{served}#slide/clinic/{slide_of(shown)}")
    wait_for_pixels(tab)
    first = tab.page.locator(".strip button").first
    first.wait_for()
    name = first.get_attribute("aria-label") or ""
    before = tab.page.evaluate("current.panes[0].where().z")
    first.press("Enter")  # by keyboard
    tab.page.get_by_role("heading", name=name.split(",")[0].capitalize(), exact=True).wait_for()
    tab.page.wait_for_function(f"() => current.panes[0].where().z > {before}")


IN_STEP = """() => {
  const [a, b] = current.panes.map((pane) => pane.where());
  return Math.abs(a.z - b.z) < 1e-3 * a.z && Math.abs(a.x - b.x) < 2 && Math.abs(a.y - b.y) < 2;
}"""


@pytest.fixture(scope="module")
def paired(shown: Trained) -> Iterator[ViewerData]:
    """The cohort, a cohort of the same slides with larger tiles, and a second encoder.

    The attention of the second encoder is 1 minus that of the first. A tile task has the attention
    values of both as probabilities.
    """
    config = shown.config
    coarse = config.cohorts["clinic"].model_copy(update={"tiling": "coarse"})
    tilings = config.tilings | {
        "coarse": config.tilings["default"].model_copy(update={"size": 128})
    }
    encoders = config.encoders | {"other": config.encoders["enc"]}
    tumor = Task(level="tile", label="tumor", cohorts=["clinic"])
    changed = {
        "cohorts": config.cohorts | {"coarse": coarse},
        "encoders": encoders,
        "tasks": config.tasks | {"tumor": tumor},
        "tilings": tilings,
    }
    viewer = ViewerData(config.model_copy(update=changed))
    for part in parts(viewer.records.config, "coarse"):
        run_stage("tile", viewer.records.config, "coarse", part)
    paths = viewer.records.paths
    own, other = (
        paths.mil("slide", run, "abmil") / "attention.parquet" for run in ("enc", "other")
    )
    table = read_table(own, "attention")
    for run, attention in (("enc", table["attention"]), ("other", 1 - table["attention"])):
        predictions = table[["slide_id", "tile"]].assign(p_0=1 - attention, p_1=attention)
        write_table(
            paths.probe("tumor", run) / "predictions.parquet", predictions, "predictions", {}
        )
    write_table(other, table.assign(attention=1 - table["attention"]), "attention", {})
    yield viewer
    viewer.close()


def drag(tab: Tab, pane: int) -> None:
    """Pan a view by the mouse."""
    box = tab.page.locator(".pane").nth(pane).bounding_box()
    assert box
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    tab.page.mouse.move(x, y)
    tab.page.mouse.down()
    tab.page.mouse.move(x - 60, y - 40, steps=4)
    tab.page.mouse.up()


def test_views_of_two_encoders_move_together(tab: Tab, page: None, paired: ViewerData) -> None:
    slide = paired.data("cohort", "clinic")["columns"]["slide_id"][0]
    with Served(paired) as server:
        query = "layers=attention:1&answer=slide~enc~abmil"
        tab.open(f"{server.address}#slide/clinic/{slide}?{query}")
        wait_for_pixels(tab)
        tab.page.get_by_label("Second view", exact=True).select_option("slide~other~abmil")
        tab.page.wait_for_function("() => current.panes.length === 2")
        tab.page.wait_for_function("() => current.panes[1].overlay.layers.has('attention')")
        captions = tab.page.locator(".panetitle").all_inner_texts()
        assert captions == [f"clinic · slide: abmil on {run}" for run in ("enc", "other")]
        pictures = [
            tab.page.evaluate(f"current.panes[{i}].overlay.canvas.toDataURL()") for i in (0, 1)
        ]
        assert pictures[0] != pictures[1]
        for pane in (0, 1):
            before = tab.page.evaluate("current.panes[0].where().z")
            tab.page.get_by_role("button", name="Zoom in").nth(pane).click()
            tab.page.wait_for_function(f"() => current.panes[0].where().z > {1.5 * before}")
            tab.page.wait_for_function(IN_STEP)
            left = tab.page.evaluate("current.panes[0].where().x")
            drag(tab, pane)
            tab.page.wait_for_function(f"() => current.panes[0].where().x > {left} + 10")
            tab.page.wait_for_function(IN_STEP)
        tab.page.locator(".strip button").first.click()
        tab.page.get_by_text("attention, right").wait_for()
        assert not inaccessible(tab)
        tab.open(tab.page.url)  # the link contains both views
        await_count(tab.page.locator(".pane"), 2)
        tab.leave()


def test_tile_probabilities_of_two_encoders_side_by_side(
    tab: Tab, page: None, paired: ViewerData
) -> None:
    slide = paired.data("cohort", "clinic")["columns"]["slide_id"][0]
    with Served(paired) as server:
        tab.open(f"{server.address}#slide/clinic/{slide}?layers=probability:1")
        wait_for_pixels(tab)
        tab.page.wait_for_function("() => current.panes[0].overlay.layers.has('probability')")
        assert overlay_pixels(tab) > 0
        assert "probability that tumor is 1" in tab.page.locator("#under-probability").inner_text()
        tab.page.get_by_label("Second view", exact=True).select_option("tumor~other")
        tab.page.wait_for_function("() => current.panes[1]?.overlay.layers.has('probability')")
        assert (
            tab.page.locator(".panetitle").nth(1).inner_text() == "clinic · tumor: tiles by other"
        )
        tab.page.locator(".strip button").first.click()
        tab.page.get_by_text("probability, right").wait_for()
        tab.leave()


def test_two_cohorts_side_by_side(tab: Tab, page: None, paired: ViewerData) -> None:
    slide = paired.data("cohort", "clinic")["columns"]["slide_id"][0]
    with Served(paired) as server:
        tab.open(f"{server.address}#slide/clinic/{slide}?layers=grid:1")
        wait_for_pixels(tab)
        tab.page.get_by_label("Second view", exact=True).select_option(label="coarse: tiles")
        tab.page.wait_for_function("() => current.panes.length === 2")
        tab.page.wait_for_function("() => current.panes[1].overlay.layers.has('grid')")
        sides = tab.page.evaluate("current.views.map((view) => view.tiles.side)")
        assert sides == [64, 128]
        tab.page.get_by_role("button", name="Zoom in").nth(1).click()
        tab.page.wait_for_function(IN_STEP)
        tab.open(tab.page.url)
        assert tab.page.evaluate("current.views.map((view) => view.data.cohort)") == [
            "clinic", "coarse",
        ]  # fmt: skip
        tab.page.get_by_label("Second view", exact=True).select_option(label="none")
        tab.page.wait_for_function("() => current.panes.length === 1")
        tab.leave()


def test_pages_have_no_accessibility_violations(tab: Tab, served: str, shown: Trained) -> None:
    tab.expected = ("422",)
    slide = slide_of(shown)
    tile = ViewerData(shown.config).data("stain", "clinic", slide)["tile"][0]
    for place in (
        "#cohort/clinic",
        f"#slide/clinic/{slide}?layers=grid:1,attention:0.5&tile={tile}",
        f"#stain/clinic/{slide}/{tile}",
    ):
        tab.open(served + place)
        assert not inaccessible(tab)


def test_html_in_names_is_shown_as_text(tab: Tab, page: None, tmp_path: Path) -> None:
    text = '<img src=x onerror="window.hit=1">'
    rows = [{"slide_id": "s1", "patient_id": "p1", "path": "gone.svs", "site": text, "note": text}]
    tab.expected = ("503",)
    with Served(ViewerData(sheet_config(tmp_path, rows))) as server:
        tab.open(server.address)
        assert text in tab.page.locator("tbody").inner_text()
        tab.open(f"{server.address}#slide/c/s1")
        assert text in tab.page.locator("main").inner_text()
        assert "cannot be opened" in tab.page.locator(".problem").inner_text()
        assert tab.page.evaluate("window.hit") is None
        tab.leave()


def test_the_table_of_ten_thousand_slides(tab: Tab, page: None, tmp_path: Path) -> None:
    rows = [
        {"slide_id": f"s{i:05d}", "patient_id": f"p{i // 2:05d}", "path": "gone.svs", "her2": i % 2}
        for i in range(10_000)
    ]
    tab.expected = ("503",)
    sizes: list[int] = []
    tab.page.on("response", lambda r: sizes.append(int(r.headers.get("content-length", 0))))
    with Served(ViewerData(sheet_config(tmp_path, rows))) as server:
        tab.open(server.address)
        assert "10,000 of 10,000" in tab.page.locator(".count").inner_text()
        assert tab.page.locator("tbody tr").count() < 100  # only visible rows are elements
        tab.page.evaluate("document.querySelector('.scroller').scrollTop = 48 * 9000")
        tab.page.get_by_role("link", name="s09000", exact=True).wait_for()
        tab.page.get_by_label("Filter slide").fill("s0123")
        assert "10 of 10,000" in tab.page.locator(".count").inner_text()
        tab.leave()
    assert sum(sizes) < 1e6


@pytest.mark.parametrize("name", ["CMU-1-Small-Region.svs", "fluorescence-tritc.ndpi"])
def test_real_slides_without_results(
    tab: Tab, page: None, real_slides: Path, tmp_path: Path, name: str
) -> None:
    """Picture, tissue outline and scale bar."""
    row = {"slide_id": "s1", "patient_id": "p1", "path": str(real_slides / name)}
    with Served(ViewerData(sheet_config(tmp_path, [row]))) as server:
        tab.open(f"{server.address}#slide/c/s1")
        wait_for_pixels(tab)
        colors = tab.page.evaluate(
            """() => {
              const canvas = current.panes[0].viewer.drawer.canvas;
              const { width, height } = canvas;
              const data = canvas.getContext("2d").getImageData(0, 0, width, height).data;
              return new Set(new Uint32Array(data.buffer)).size;
            }"""
        )
        assert colors > 50
        tab.page.locator("#layer-tissue").wait_for()
        assert "µm" in tab.page.locator(".scalebar").inner_text()
        assert "Not tiled yet" in tab.page.locator(".note").inner_text()
        tab.leave()


def test_an_export_opens_from_disk(
    tab: Tab, page: None, viewer: ViewerData, shown: Trained, tmp_path: Path
) -> None:
    slide, messages = slide_of(shown), list[str]()
    write_export(viewer, tmp_path / "out", [slide], messages.append)
    tab.open((tmp_path / "out" / "index.html").as_uri())
    rows = tab.page.locator("table.slides tbody tr:not(.space)")
    await_count(rows, 1)
    tab.page.get_by_role("link", name=slide).click()
    tab.page.wait_for_selector("main[data-ready=yes] .osd canvas")
    wait_for_pixels(tab)
    tab.page.locator("#layer-attention").check()
    tab.page.wait_for_function("() => current.panes[0].overlay.layers.has('attention')")
    assert overlay_pixels(tab) > 0
    await_count(tab.page.locator(".strip img"), 24)
    broken = tab.page.evaluate(
        "[...document.images].filter((i) => i.complete && !i.naturalWidth).map((i) => i.src)"
    )
    assert broken == []


def test_predictions_and_attention_of_new_slides(
    tab: Tab, page: None, shown: Trained, tmp_path: Path
) -> None:
    """An output folder of `predict`, with intervals, distances and attention."""
    viewer = ViewerData(shown.config)
    answer = viewer.records.find_predictions("clinic", "slide~enc~abmil")
    data = json.loads(shown.config.model_dump_json()) | {"tasks": {}, "heads": {}}
    config = parse(data)
    out = tmp_path / "out"
    out.mkdir()
    (out / "config.yaml").write_text(json.dumps(json.loads(config.model_dump_json())))
    (out / "cohorts").symlink_to(shown.config.results / "cohorts")
    (out / "attention.parquet").write_bytes((answer.folder / "attention.parquet").read_bytes())
    slide = slide_of(shown)
    pd.DataFrame(
        {"slide_id": [slide], "p_1": [0.7], "low_1": [0.6], "high_1": [0.8], "note": [""]}
    ).to_csv(out / "predictions.csv", index=False)
    pd.DataFrame({"slide_id": [slide], "feature_distance": [1.25]}).to_csv(
        out / "slides.csv", index=False
    )
    tab.expected = ("422",)
    with Served(ViewerData(config_of(out))) as server:
        tab.open(f"{server.address}#cohort/clinic?answer=predictions&q={slide}")
        text = tab.page.locator("tbody").inner_text()
        assert "0.70 (0.60–0.80)" in text
        assert "1.25" in text
        tab.open(f"{server.address}#slide/clinic/{slide}?layers=attention:0.5")
        tab.page.wait_for_function("() => current.panes[0].overlay.layers.has('attention')")
        tab.leave()
