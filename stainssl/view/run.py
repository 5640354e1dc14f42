"""`stainssl view`: serve the page, or write it as static files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from stainssl.config import Config, load
from stainssl.errors import StainsslError
from stainssl.paths import Paths
from stainssl.view.contents import Contents
from stainssl.view.export import write_export
from stainssl.view.server import serve

Say = Callable[[str], object]


def run(
    results: Path | None,
    config: Path,
    host: str,
    port: int,
    token: bool,
    export: Path | None,
    slides: Sequence[str],
    say: Say,
) -> None:
    """Serve until interrupted, or export.

    Args:
        results: a folder that a run or `predict` wrote; None: `config` says where results are.
        config: read where `results` is None.
        host, port: to serve on.
        token: whether the address holds a token on loopback too.
        export: a folder for static files; None: serve.
        slides: those that are exported; empty: all.
        say: told what a person is to know.

    Raises:
        StainsslError: no such config or results, a port that cannot be used, an unknown slide.
    """
    contents = Contents(config_of(results) if results is not None else load(config))
    if not contents.records.paths.results.is_dir():
        say(f"{contents.records.paths.results} does not exist yet: showing slides without results.")
    if export is not None:
        write_export(contents, export, slides, say)
    else:
        serve(contents, host, port, token, lambda address: say(f"{address}\nPress Ctrl-C to stop."))


def config_of(results: Path) -> Config:
    """The config that a folder of results was made by, its results being where the folder is now.

    Raises:
        StainsslError: the folder is not there, or holds no `config.yaml`.
    """
    path = Paths(results).config()
    if not path.is_file():
        raise StainsslError(
            f"{path} does not exist: give a folder written by a run or by `stainssl predict`, or "
            "--config."
        )
    return load(path).model_copy(update={"results": results})
