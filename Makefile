# `make demo` and `make test` work in a fresh clone with Python >= 3.11 and make.
PYTHON ?= python3
BIN := .venv/bin
VIEWER := stainssl/view/node_modules/.package-lock.json
export PATH := $(CURDIR)/.venv/bin:$(PATH)
# If it is set, every job compiles all its imports again, which takes four seconds.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo report view test test-quick test-slurm docs lint format lock clean

demo: .venv/ready
	snakemake --cores all --logger=stainssl
	@cat results/benchmarks/main/table.md results/benchmarks/kinds/table.md

report: .venv/ready
	snakemake --report results/report.html

# The viewer, after `make demo`.
view: .venv/ready $(VIEWER)
	stainssl view

# Without npm or its registry, the tests of the viewer are skipped.
test: .venv/ready
	@command -v npm >/dev/null && $(MAKE) --no-print-directory $(VIEWER) || echo "no OpenSeadragon"
	pytest -n auto --dist loadgroup

# Under 90 seconds on two cores: no Snakemake, no training.
test-quick: .venv/ready
	STAINSSL_QUICK=1 pytest -n auto --dist loadgroup

# A real SLURM on this machine, run by hand: needs root, slurmctld, slurmd, slurmdbd, munge, mariadb-server.
test-slurm: .venv/ready
	tests/slurm/run.sh

# The documentation site, in site/.
docs: .venv/ready
	mkdocs build --strict

lint: .venv/ready
	ruff check .
	ruff format --check .
	mypy
	lint-imports
	deptry .
	snakefmt --check Snakefile workflow
	snakemake --lint

format: .venv/ready
	ruff check --fix .
	ruff format .
	snakefmt Snakefile workflow

# The environment, with uv, the packages of the lock, and this clone as an editable install.
.venv: .venv/ready
.venv/ready: requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --requirement requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	touch $@

# OpenSeadragon for the viewer and axe-core for its tests, with checksums in the lock file.
$(VIEWER): stainssl/view/package-lock.json
	cd stainssl/view && npm ci --ignore-scripts --no-audit --no-fund
	touch $@

# After a change of pyproject.toml or of a model in stainssl/config.py. opencv-python is left out: tiatoolbox
# requires it, but it would overwrite the files of opencv-python-headless.
lock: .venv/ready
	echo 'opencv-python; sys_platform == "never"' | uv pip compile pyproject.toml --extra all --group dev \
		--override - --output-file requirements.lock --python-version 3.11 \
		--no-header --no-annotate --no-emit-index-url --quiet
	python -m tools.generated

clean:
	rm -rf results .snakemake
