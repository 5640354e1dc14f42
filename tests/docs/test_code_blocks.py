"""Every code block of the documentation is parsed; commands name verbs and options that exist."""

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
    """Words of the lines that begin with `stainssl`, continued lines joined."""
    joined = text.replace("\\\n", " ")
    parts = re.split(r"\n|&&|;|\|", joined)
    found = [shlex.split(part, comments=True) for part in parts if part.count("'") % 2 == 0]
    return [words[1:] for words in found if words[:1] == ["stainssl"] and len(words) > 1]


def check_command(words: list[str]) -> None:
    command = typer.main.get_command(app)
    while hasattr(command, "commands") and words:
        verb, *words = words
        if verb.startswith("-") or not verb.islower():
            return
        assert verb in command.commands, f"no verb {verb}"
        command = command.commands[verb]
    if command.name == "run":
        return  # Snakemake's own
    known = {name for option in command.params for name in (*option.opts, *option.secondary_opts)}
    for word in words:
        if word.startswith("--"):
            assert word.split("=")[0] in {*known, "--help"}, f"{command.name} has no {word}"


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
        for words in commands_of(text):
            check_command(words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPO)))
def test_code_blocks_are_what_they_say(page: Path) -> None:
    for language, text in blocks_of(page):
        check_block(language, text)


def test_a_wrong_option_would_be_found() -> None:
    with pytest.raises(AssertionError, match="no --cohrt"):
        check_block("sh", "stainssl tile --cohrt x --part y\n")
    with pytest.raises(AssertionError, match="no verb"):
        check_block("sh", "stainssl tyle --cohort x\n")


def named(page: Path, pattern: str) -> list[str]:
    """What stands between backticks on a page, outside of its code blocks, and fits a pattern."""
    return re.findall(rf"`({pattern})`", FENCE.sub("", page.read_text()))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPO)))
def test_code_that_is_named_is_there(page: Path) -> None:
    wrong = [name for name in named(page, r"stainssl(?:\.\w+)+") if not _is_there(name)]
    scripts = [f"/{name}" for name in named(page, r"[\w/]+\.(?:py|smk)")]
    assert wrong + [name for name in scripts if not any(f.endswith(name) for f in SOURCES)] == []


def _is_there(name: str) -> bool:
    try:
        pkgutil.resolve_name(name)
    except (ImportError, AttributeError):
        return (REPO / name).is_file()  # stainssl.def
    return True


def test_the_first_pages_evidence_is_that_of_the_results() -> None:
    results = (REPO / "docs/results-appendix.md").read_text().splitlines()
    readme = (REPO / "README.md").read_text()
    table = readme[readme.index("| encoder | top-1, worst pair") :].split("\n\n")[0].splitlines()
    assert len(table) > 5
    assert not [row for row in table if row not in results]


def test_the_first_pages_comparison_is_that_of_its_page() -> None:
    page = (REPO / "docs/comparison.md").read_text().splitlines()
    readme = (REPO / "README.md").read_text()
    section = readme[readme.index("## Beside other tools") :].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    assert len(rows) > 5
    assert not [row for row in rows if row not in page]
