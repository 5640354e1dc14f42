"""Code blocks of the documentation are valid, and their commands and options exist."""

from __future__ import annotations

import csv
import io
import json
import pkgutil
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import typer
import yaml

from stainssl.cli import app

REPO = Path(__file__).resolve().parents[2]
PAGES = [REPO / "README.md", REPO / "config/README.md", *sorted((REPO / "docs").rglob("*.md"))]
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", re.M | re.S)
SOURCES = [
    f"/{path.relative_to(REPO).as_posix()}"
    for folder in ("benchmarks", "stainssl", "tests", "tools", "workflow")
    for path in (REPO / folder).rglob("*.*")
    if path.suffix in (".py", ".smk")
]
SNAKEFILE = re.compile(r"^(module|rule|use rule) ", re.M)


def blocks_of(page: Path) -> list[tuple[str, str]]:
    return [(language, text) for _, language, text in FENCE.findall(page.read_text())]


def commands_of(text: str) -> list[list[str]]:
    """Arguments of the lines that begin with `stainssl`, continued lines joined."""
    joined = text.replace("\\\n", " ")
    parts = re.split(r"\n|&&|;|\|", joined)
    found = [shlex.split(part, comments=True) for part in parts if part.count("'") % 2 == 0]
    return [
        arguments[1:] for arguments in found if arguments[:1] == ["stainssl"] and len(arguments) > 1
    ]


def check_command(arguments: list[str]) -> None:
    command = typer.main.get_command(app)
    while hasattr(command, "commands") and arguments:
        subcommand, *arguments = arguments
        if subcommand.startswith("-") or not subcommand.islower():
            return
        assert subcommand in command.commands, f"no verb {subcommand}"
        command = command.commands[subcommand]
    if command.name == "run":
        return  # options of Snakemake
    known = {name for option in command.params for name in (*option.opts, *option.secondary_opts)}
    for argument in arguments:
        if argument.startswith("--"):
            assert argument.split("=")[0] in {*known, "--help"}, f"{command.name} has no {argument}"


def check_block(language: str, text: str) -> None:
    if language == "python" and not SNAKEFILE.search(text):
        compile(text, "block", "exec")
    elif language in ("yaml", "yml"):
        list(yaml.safe_load_all(text))
    elif language == "json":
        json.loads(text)
    elif language == "csv":
        widths = {len(row) for row in csv.reader(io.StringIO(text)) if row}
        assert len(widths) == 1, f"rows of {widths} fields"
    elif language in ("sh", "bash", "console"):
        done = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True)
        assert done.returncode == 0, done.stderr
        for arguments in commands_of(text):
            check_command(arguments)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPO)))
def test_code_blocks_are_valid(page: Path) -> None:
    for language, text in blocks_of(page):
        check_block(language, text)


def test_unknown_commands_and_options_are_detected() -> None:
    with pytest.raises(AssertionError, match="no --cohrt"):
        check_block("sh", "stainssl tile --cohrt x --part y\n")
    with pytest.raises(AssertionError, match="no verb"):
        check_block("sh", "stainssl tyle --cohort x\n")


def inline_code(page: Path, pattern: str) -> list[str]:
    """Inline code of a page that matches a pattern."""
    return re.findall(rf"`({pattern})`", FENCE.sub("", page.read_text()))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPO)))
def test_modules_and_scripts_in_inline_code_exist(page: Path) -> None:
    missing = [name for name in inline_code(page, r"stainssl(?:\.\w+)+") if not _exists(name)]
    scripts = [f"/{name}" for name in inline_code(page, r"[\w/]+\.(?:py|smk)")]
    assert missing + [name for name in scripts if not any(f.endswith(name) for f in SOURCES)] == []


def _exists(name: str) -> bool:
    try:
        pkgutil.resolve_name(name)
    except (ImportError, AttributeError):
        return (REPO / name).is_file()  # stainssl.def
    return True


def test_results_in_the_readme_equal_those_of_the_appendix() -> None:
    results = (REPO / "docs/results-appendix.md").read_text().splitlines()
    readme = (REPO / "README.md").read_text()
    table = readme[readme.index("| encoder | top-1, worst pair") :].split("\n\n")[0].splitlines()
    assert len(table) > 5
    assert not [row for row in table if row not in results]


def test_the_comparison_in_the_readme_equals_that_of_its_page() -> None:
    page = (REPO / "docs/comparison.md").read_text().splitlines()
    readme = (REPO / "README.md").read_text()
    section = readme[readme.index("## Beside other tools") :].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    assert len(rows) > 5
    assert not [row for row in rows if row not in page]
