"""Screenshots of the viewer for the docs, with headless Chromium.

    python tools/view_pictures.py CONFIG [OUT]

CONFIG is the config of a finished run; the pictures show the first slide with attention. Writes
`view-slide.jpg` and `view-stain.jpg` to OUT (docs/pictures).
"""

from __future__ import annotations

import argparse
import shutil
import threading
from pathlib import Path

import uvicorn
from playwright.sync_api import Page, sync_playwright

from stainssl.config import load
from stainssl.errors import StainsslError
from stainssl.view.server import LOOPBACK, application, bound
from stainssl.view.viewer_data import ViewerData

WIDTH_PX = 1300
HEIGHT_PX = {"view-slide.jpg": 800, "view-stain.jpg": 440}
QUALITY = 82


def views(viewer: ViewerData) -> dict[str, str]:
    """Map the name of each picture to the URL fragment of its view.

    Raises:
        StainsslError: no slide has attention.
    """
    for cohort in viewer.records.config.cohorts:
        for answer in viewer.records.stored_predictions(cohort):
            for slide in viewer.records.sheet(cohort)["slide_id"]:
                found = viewer.data("attention", cohort, slide, answer.name)
                if not found.get("tile"):
                    continue
                best = max(zip(found["value"], found["tile"], strict=True))[1]
                asked = f"layers=tissue:1,attention:0.55&answer={answer.name}&tile={best}"
                return {
                    "view-slide.jpg": f"#slide/{cohort}/{slide}?{asked}",
                    "view-stain.jpg": f"#stain/{cohort}/{slide}/{best}",
                }
    raise StainsslError("No slide of the config has attention: run it first.")


def shoot(page: Page, address: str, path: Path) -> None:
    """Take a picture when all requests have finished."""
    page.set_viewport_size({"width": WIDTH_PX, "height": HEIGHT_PX[path.name]})
    page.goto("about:blank")
    page.goto(address)
    page.wait_for_selector("main[data-ready=yes]", timeout=120_000)
    page.wait_for_load_state("networkidle")
    page.wait_for_timeout(1000)  # until pictures have faded in
    page.screenshot(path=path, type="jpeg", quality=QUALITY)


def main() -> None:
    """Serve the viewer and take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("out", type=Path, nargs="?", default=Path("docs/pictures"))
    asked = parser.parse_args()
    viewer, sock = ViewerData(load(asked.config)), bound("127.0.0.1", 0)
    app = application(viewer, None, list(LOOPBACK))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    thread = threading.Thread(target=server.run, args=([sock],))
    thread.start()
    try:
        with sync_playwright() as running:
            path = shutil.which("chromium")
            browser = running.chromium.launch(executable_path=path, args=["--no-sandbox"])
            page = browser.new_page()
            for name, place in views(viewer).items():
                shoot(page, f"http://127.0.0.1:{sock.getsockname()[1]}/{place}", asked.out / name)
    finally:
        server.should_exit = True
        thread.join()


if __name__ == "__main__":
    main()
