"""Files generated from the package and the lock: schemas, environments, reference pages."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import typer
import yaml
from packaging.requirements import Requirement

from stainssl.cli import app
from stainssl.cohort import SheetRow
from stainssl.config import Config
from stainssl.encoders.listing import slides_table, table
from stainssl.stores.atomic import write_text
from tools.pages import between

ROOT = Path(__file__).resolve().parent.parent
PYTHON = "3.11"
# Independent of the Python that runs this.
MARKERS = {"python_version": PYTHON, "python_full_version": f"{PYTHON}.0"}
CONFIG_PAGE = Path("docs/reference/config.md")
ENCODERS_PAGE = Path("docs/encoders.md")
TABLE = ("<!-- table -->", "<!-- end of table -->")
SLIDES_TABLE = ("<!-- table of slides -->", "<!-- end of table of slides -->")
BEGIN, END = "<!-- generated: reruns -->", "<!-- end -->"


def schema_text(model: type[Config] | type[SheetRow]) -> str:
    """Return the JSON schema of the config or of a row of a sheet."""
    return json.dumps(model.model_json_schema(), indent=2, sort_keys=True) + "\n"


NOT_FOR_STATISTICS = (
    "croma", "dask", "distributed", "fastslide", "imagecodecs", "openslide-bin", "openslide-python",
    "pillow", "safetensors", "simplejpeg", "timm", "torch", "torchvision",
)  # fmt: skip


def environments() -> dict[str, list[str]]:
    """Map conda environments to their requirements; labels and tables need no torch."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    plain, extras = project["dependencies"], project["optional-dependencies"]
    tables = [one for one in plain if Requirement(one).name not in NOT_FOR_STATISTICS]
    return {
        "statistics": [*tables, *extras["survival"]],
        "reading": [*plain, *extras["demo"], *extras["tiatoolbox"]],
        "training": [*plain, *extras["demo"], *extras["train"]],
    }


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def distributions(asked: Iterable[str]) -> set[str]:
    """Return the distributions that requirements install, resolved in the current environment."""
    todo, done = list(asked), set()
    while todo:
        one = Requirement(todo.pop())
        extras = tuple(sorted(one.extras))
        if (key := (_normal(one.name), extras)) in done or not _holds(one):
            continue
        done.add(key)
        with suppress(metadata.PackageNotFoundError):
            brought = map(Requirement, metadata.requires(one.name) or [])
            todo += [str(_without_marker(other)) for other in brought if _holds(other, extras)]
    return {name for name, _ in done}


def _holds(one: Requirement, extras: Iterable[str] = ()) -> bool:
    marker = one.marker
    return marker is None or any(marker.evaluate({**MARKERS, "extra": e}) for e in (*extras, ""))


def _without_marker(one: Requirement) -> Requirement:
    one.marker = None
    return one


def conda_text(lock: str, asked: Iterable[str]) -> str:
    """Return a conda environment with the pins of the lock that some requirements need.

    It cannot refer to the lock file, since Snakemake copies it before creating the environment.
    """
    wanted = distributions(asked)
    pins = [line for line in lock.splitlines() if _normal(line.split("==")[0]) in wanted]
    environment = {
        "channels": ["conda-forge", "nodefaults"],
        "dependencies": [f"python ={PYTHON}", "pip", {"pip": pins}],
    }
    return yaml.safe_dump(environment, sort_keys=False)


def reruns_text(page: str) -> str:
    """Return the config page with the table of the rules that each key reruns, from the tests."""
    keys = yaml.safe_load((ROOT / "tests/chain/keys.yaml").read_text(encoding="utf-8"))
    rows = [f"| `{key}` | {_reruns(entry)} |" for key, entry in keys.items()]
    table = "\n".join(["| key | reruns |", "|---|---|", *rows])
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n{table}\n{END}{rest.split(END, 1)[1]}"


def _reruns(entry: dict[str, Any]) -> str:
    if "not" in entry:
        return f"{entry['not']}"
    return ", ".join(f"`{rule}`" for rule in entry["reruns"]) or "–"


def cli_text() -> str:
    """Return the reference of the command line: all commands with their help and options."""
    root = typer.main.get_command(app)
    text = ["# Command line", f"`stainssl COMMAND`. {root.help}", ""]
    for path, command in sorted(_verbs(root)):
        text += [f"## {path}", "", " ".join((command.help or "").split()), ""]
        rows = [_option_row(option) for option in command.params if option.name != "help"]
        if rows:
            text += ["| | | default |", "| --- | --- | --- |", *rows, ""]
    return "\n".join(text).rstrip() + "\n"


def _verbs(group: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        path = f"{prefix} {name}".strip()
        if hasattr(command, "commands"):
            yield from _verbs(command, path)
        else:
            yield path, command


def _option_row(option: Any) -> str:
    names = ", ".join(f"`{name}`" for name in [*option.opts, *option.secondary_opts])
    default = "required" if option.required else "" if option.default is None else option.default
    told = (getattr(option, "help", "") or "").replace("|", "\\|")
    return f"| {names} | {told} | {default} |"


def encoders_text(page: str) -> str:
    """Return the page of encoders with the tables of named encoders."""
    filled = between(page, TABLE, f"\n{table()}")
    return between(filled, SLIDES_TABLE, f"\n{slides_table()}")


def files() -> dict[Path, str]:
    """Map the path of every generated file, relative to the repository, to its text."""
    lock = (ROOT / "requirements.lock").read_text()
    return {
        Path("workflow/schemas/config.schema.json"): schema_text(Config),
        Path("workflow/schemas/sheet.schema.json"): schema_text(SheetRow),
        CONFIG_PAGE: reruns_text((ROOT / CONFIG_PAGE).read_text(encoding="utf-8")),
        Path("docs/reference/cli.md"): cli_text(),
        **{
            Path(f"workflow/envs/{name}.yaml"): conda_text(lock, asked)
            for name, asked in environments().items()
        },
        ENCODERS_PAGE: encoders_text((ROOT / ENCODERS_PAGE).read_text(encoding="utf-8")),
    }


if __name__ == "__main__":
    for path, text in files().items():
        write_text(ROOT / path, text)
