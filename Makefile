# make demo and make test work on a fresh clone with Python >= 3.11 and make.
PYTHON ?= python3
BIN := .venv/bin
VIEWER := stainssl/view/node_modules/.package-lock.json
export PATH := $(CURDIR)/.venv/bin:$(PATH)
# Where it is set every job compiles all that it imports anew: four seconds each.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo report view test test-quick test-slurm docs lint format lock clean

demo: .venv/ready
	snakemake --cores all --logger=stainssl
	@cat results/benchmarks/main/table.md results/benchmarks/kinds/table.md

report: .venv/ready
	snakemake --report results/report.html

# The page that opens the slides: after `make demo`.
view: .venv/ready $(VIEWER)
	stainssl view

# Where there is no npm or no registry of it, the tests of the page skip.
test: .venv/ready
	@command -v npm >/dev/null && $(MAKE) --no-print-directory $(VIEWER) || echo "no OpenSeadragon"
	pytest -n auto --dist loadgroup

# Under 90 seconds on two cores: no Snakemake, no training.
test-quick: .venv/ready
	STAINSSL_QUICK=1 pytest -n auto --dist loadgroup

# A real SLURM on this machine, by hand: needs root, slurmctld, slurmd, slurmdbd, munge, mariadb-server.
test-slurm: .venv/ready
	tests/slurm/run.sh

# The site, in site/.
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

# The environment: uv inside it, the lock synced, this clone on its path.
.venv: .venv/ready
.venv/ready: requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --requirement requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	touch $@

# OpenSeadragon for the page, axe-core for its test; the lock holds their checksums.
$(VIEWER): stainssl/view/package-lock.json
	cd stainssl/view && npm ci --ignore-scripts --no-audit --no-fund
	touch $@

# After a change of pyproject.toml or of a model in stainssl/config.py. tiatoolbox asks for the OpenCV
# with windows, whose files are those of the one without.
lock: .venv/ready
	echo 'opencv-python; sys_platform == "never"' | uv pip compile pyproject.toml --extra all --group dev \
		--override - --output-file requirements.lock --python-version 3.11 \
		--no-header --no-annotate --no-emit-index-url --quiet
	python -m tools.generated

clean:
	rm -rf results .snakemake
