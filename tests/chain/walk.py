"""Many dry-runs of a finished run, each with its own config.

`python -m tests.chain.walk FOLDER < changes.json > planned.json`: reads name → config, and writes
name → the planned rules, or the end of the output if the dry-run failed. Snakemake is imported
once, and each dry-run is a fork of that process.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml
from snakemake.cli import main as snakemake

import stainssl.plan.workflow  # noqa: F401  imported here, once for all children

REPO = Path(__file__).resolve().parents[2]


def _dry_run(folder: Path, config: dict[str, Any]) -> list[str] | str:
    with tempfile.TemporaryDirectory() as made:
        file, output = Path(made) / "config.yaml", Path(made) / "said.txt"
        file.write_text(yaml.safe_dump(config))
        child = os.fork()
        if not child:
            _child(folder, file, output)
        _, status = os.waitpid(child, 0)
        text = output.read_text()
    if status:
        return text[-3000:]
    found = re.findall(r"^(?:local)?rule (\w+):\n(?:    .*\n)*", text, re.M)
    return sorted(set(found) - {"all", "default"})


def _child(folder: Path, config: Path, output: Path) -> None:
    code = 1
    try:
        out = os.open(output, os.O_WRONLY | os.O_CREAT)
        os.dup2(out, 1)
        os.dup2(out, 2)
        os.chdir(folder)
        where = ["--snakefile", str(REPO / "Snakefile"), "--configfile", str(config)]
        snakemake([*where, "--cores", "1", "--dry-run", "--nolock"])
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    folder = Path(sys.argv[1])
    changes = json.load(sys.stdin)
    with ThreadPoolExecutor(2) as pool:
        planned = list(pool.map(lambda config: _dry_run(folder, config), changes.values()))
    json.dump(dict(zip(changes, planned, strict=True)), sys.stdout)


if __name__ == "__main__":
    main()
