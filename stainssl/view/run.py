"""`stainssl view`: serve the viewer, or export it as static files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from stainssl.config import Config, load
from stainssl.errors import StainsslError
from stainssl.paths import Paths
from stainssl.view.export import write_export
from stainssl.view.server import serve
from stainssl.view.viewer_data import ViewerData

Report = Callable[[str], object]


def run(
    results: Path | None,
    config: Path,
    host: str,
    port: int,
    token: bool,
    export: Path | None,
    slides: Sequence[str],
    report: Report,
) -> None:
    """Serve until interrupted, or export.

    Args:
        results: folder written by a run or by `predict`; None uses the results of `config`.
        config: config file, read only if `results` is None.
        host, port: address to listen on.
        token: require a token on loopback too.
        export: folder for static files; None serves.
        slides: names of the slides to export; empty exports all.
        report: called with messages for the user.

    Raises:
        StainsslError: the config or the results do not exist, the port cannot be used, or a slide
            is unknown.
    """
    viewer = ViewerData(config_of(results) if results is not None else load(config))
    if not viewer.records.paths.results.is_dir():
        report(
            f"{viewer.records.paths.results} does not exist yet: showing slides without results."
        )
    if export is not None:
        write_export(viewer, export, slides, report)
    else:
        serve(
            viewer, host, port, token, lambda address: report(f"{address}\nPress Ctrl-C to stop.")
        )


def config_of(results: Path) -> Config:
    """Load the config stored in a results folder, with `results` set to the folder itself.

    Raises:
        StainsslError: the folder does not exist or has no `config.yaml`.
    """
    path = Paths(results).config()
    if not path.is_file():
        raise StainsslError(
            f"{path} does not exist: give a folder written by a run or by `stainssl predict`, or "
            "--config."
        )
    return load(path).model_copy(update={"results": results})
