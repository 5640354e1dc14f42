"""Static files of the viewer: its own, and OpenSeadragon's, which npm installs."""

from __future__ import annotations

from pathlib import Path

from stainssl.errors import StainsslError

HERE = Path(__file__).resolve().parent
OWN = {
    "index.html": "text/html",
    "style.css": "text/css",
    "icon.svg": "image/svg+xml",
    "core.js": "text/javascript",
    "cohort.js": "text/javascript",
    "overlay.js": "text/javascript",
    "pane.js": "text/javascript",
    "viewmodel.js": "text/javascript",
    "slide.js": "text/javascript",
    "plots.js": "text/javascript",
    "benchmark.js": "text/javascript",
    "stain.js": "text/javascript",
    "main.js": "text/javascript",
}
INSTALLED = {
    "openseadragon.js": "openseadragon/build/openseadragon/openseadragon.min.js",
    "openseadragon-license.txt": "openseadragon/LICENSE.txt",
}
MEDIA_TYPES = {".js": "text/javascript", ".txt": "text/plain"}


def page_files() -> dict[str, tuple[Path, str]]:
    """Map each name in a URL to its file and media type.

    Raises:
        StainsslError: OpenSeadragon is not installed.
    """
    own = {name: (HERE / "page" / name, kind) for name, kind in OWN.items()}
    for name, place in INSTALLED.items():
        path = HERE / "node_modules" / place
        if not path.is_file():
            raise StainsslError(
                f"{path} is missing: this stainssl was installed without OpenSeadragon. "
                f"Run `npm ci --omit=dev --ignore-scripts` in {HERE}; in a clone `make view` does."
            )
        own[name] = path, MEDIA_TYPES[path.suffix]
    return own
