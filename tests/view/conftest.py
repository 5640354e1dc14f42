"""A cohort with results, the viewer's server, and a browser."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import uvicorn

from stainssl.errors import StainsslError
from stainssl.view.files import HERE, page_files
from stainssl.view.server import LOOPBACK, application, bound
from stainssl.view.viewer_data import ViewerData
from tests.stages.trained import Trained, build

if TYPE_CHECKING:
    from playwright.sync_api import Locator

AXE = HERE / "node_modules" / "axe-core" / "axe.min.js"


@pytest.fixture(scope="session")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A cohort with trained tasks; tests only read it."""
    return build(tmp_path_factory.mktemp("shown"))


@pytest.fixture(scope="session")
def viewer(shown: Trained) -> Iterator[ViewerData]:
    made = ViewerData(shown.config)
    yield made
    made.close()


@pytest.fixture(scope="session")
def page() -> None:
    """Skip if OpenSeadragon is not installed."""
    try:
        page_files()
    except StainsslError as error:
        pytest.skip(str(error))


class Served:
    """The server in a thread of this process, on a free port of loopback."""

    def __init__(self, viewer: ViewerData, token: str | None = None) -> None:
        app = application(viewer, token, list(LOOPBACK))
        self._socket = bound("127.0.0.1", 0)
        self.address = f"http://127.0.0.1:{self._socket.getsockname()[1]}/"
        self._server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],))

    def __enter__(self) -> Served:
        self._thread.start()
        while not self._server.started:
            assert self._thread.is_alive(), "the server did not start"
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(20)


@pytest.fixture(scope="session")
def served(page: None, viewer: ViewerData) -> Iterator[str]:
    """Address of the page that shows `viewer`."""
    with Served(viewer) as server:
        yield server.address


@pytest.fixture
def tab(browser: object) -> Iterator[Tab]:
    """A page of the browser, which must have no error and request only local URLs."""
    one = Tab(browser)
    yield one
    one.close()


class Tab:
    """A page of the browser that records its errors and requests."""

    def __init__(self, browser: object) -> None:
        self.page = browser.new_page(viewport={"width": 1300, "height": 850})  # type: ignore[attr-defined]
        self.errors: list[str] = []
        self.asked: list[str] = []
        self.expected: tuple[str, ...] = ()  # parts of the messages of errors that a test causes
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", self._said)
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.set_default_timeout(60_000)

    def _said(self, message: object) -> None:
        if message.type == "error":  # type: ignore[attr-defined]
            self.errors.append(message.text)  # type: ignore[attr-defined]

    def open(self, address: str) -> None:
        """Open an address and wait until the view is drawn."""
        self.page.goto("about:blank")
        self.page.goto(address)
        self.page.wait_for_selector("main[data-ready=yes]")

    def leave(self) -> None:
        """Leave the page, so that it requests nothing while the server stops."""
        self.page.goto("about:blank")

    def close(self) -> None:
        self.page.close()
        unexpected = [e for e in self.errors if not any(text in e for text in self.expected)]
        assert not unexpected
        local = ("http://127.0.0.1:", "file:", "data:", "blob:", "about:")
        assert all(url.startswith(local) for url in self.asked)


def await_count(found: Locator, count: int) -> None:
    """Wait for a number of elements, because the page draws after an input, not with it."""
    from playwright.sync_api import expect

    expect(found).to_have_count(count)


def inaccessible(tab: Tab) -> list[str]:
    """Violations that axe-core finds on the open page; skips if it is not installed."""
    if not AXE.is_file():
        pytest.skip(f"axe-core is not installed: `npm ci` in {HERE}")
    # The page's content security policy forbids loading it from the page.
    tab.page.evaluate(AXE.read_text(encoding="utf-8"))
    found = tab.page.evaluate("axe.run()")["violations"]
    return [
        f"{violation['id']}: {[n['html'] for n in violation['nodes']][:3]}" for violation in found
    ]


@pytest.fixture(scope="session")
def real_slides(real_data: Path) -> Path:
    return real_data / "slides"
